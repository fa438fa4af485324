"""Adam and its kin: AdamW, Adamax, Nadam."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from skoptim.optimizers._base import DECAY, NOT_NEGATIVE, POSITIVE, Optimizer


class _MomentOptimizer(Optimizer):
    """What the four share: two decays and a denominator's constant."""

    beta_1: float
    beta_2: float
    epsilon: float

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "beta_1": [DECAY],
        "beta_2": [DECAY],
        "epsilon": [POSITIVE],
        "amsgrad": ["boolean"],
        "momentum_decay": [NOT_NEGATIVE],
    }

    def _moments(self) -> dict[str, Any]:
        return {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "one_minus_beta_1": 1.0 - self.beta_1,
            "one_minus_beta_2": 1.0 - self.beta_2,
        }


class Adam(_MomentOptimizer):
    r"""Adam: moving averages of the gradient and of its square, corrected for their start.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        w_t &= w_{t-1} - \eta_t \frac{m_t / (1 - \beta_1^t)}
                                     {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    learning_rate : float or schedule, default=0.001
        The rate :math:`\eta_t`.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decays of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Added to the root of the corrected second moment.
    amsgrad : bool, default=False
        Divide by the largest second moment so far (as torch: before its correction).
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    This is the paper's Algorithm 1, as in torch. Keras and scikit-learn's MLP use the variant of
    its section 2 with :math:`\hat\epsilon` added to the uncorrected root: there the effective
    :math:`\epsilon` is larger by :math:`1/\sqrt{1 - \beta_2^t}` in early steps.

    The default when unsure; on small data it may over-fit where SGD does not.

    References
    ----------
    Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 1. Reddi, Kale and
    Kumar (2018), "On the convergence of Adam and beyond", algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Adam
    >>> optimizer, w = Adam(learning_rate=0.1), np.array([1.0, 2.0])
    >>> state = optimizer.init(w)
    >>> optimizer.step(w, np.array([100.0, -0.01]), state)
    >>> w.round(6)
    array([0.9, 2.1])
    >>> state.step
    1
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "adam_amsgrad" if self.amsgrad else "adam"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the bias corrections at each step."""
        return {
            **self._moments(),
            "correction_1": 1.0 - self.beta_1**steps,
            "root_correction_2": np.sqrt(1.0 - self.beta_2**steps),
        }


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    .. math:: w_t = (1 - \eta_t \lambda) w_{t-1} - \eta_t \, \text{(Adam's direction)}

    Parameters
    ----------
    learning_rate : float or schedule, default=0.001
        The rate :math:`\eta_t`.
    beta_1, beta_2, epsilon, amsgrad
        As in `Adam`.
    weight_decay : float, default=0.01
        The decay :math:`\lambda`; it never touches the intercepts of an estimator.
    l2, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The form is torch's: the decay is multiplied by the rate. An `alpha` of the estimator is
    another thing: it belongs to the objective and goes through the moments.

    Use it for nets trained long enough to over-fit.

    References
    ----------
    Loshchilov and Hutter (2019), "Decoupled weight decay regularization", algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import AdamW
    >>> optimizer, w = AdamW(learning_rate=0.1, weight_decay=0.5), np.array([1.0])
    >>> optimizer.step(w, np.array([3.0]), optimizer.init(w))
    >>> w.round(6)
    array([0.85])
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        *,
        weight_decay: float = 0.01,
        l2: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        super().__init__(
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            amsgrad,
            l2=l2,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
        )


class Adamax(_MomentOptimizer):
    r"""Adamax: Adam with the infinity norm in place of the second moment.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        u_t &= \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \\
        w_t &= w_{t-1} - \frac{\eta_t}{1 - \beta_1^t} \, m_t / u_t

    Parameters
    ----------
    learning_rate : float or schedule, default=0.002
        The rate :math:`\eta_t`.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decays of the moment and of the norm, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the norm from zero.
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The form is torch's. The paper has no :math:`\epsilon`; Keras divides by :math:`u_t + \epsilon`.

    Use it where single gradients are outliers, as with sparse features.

    References
    ----------
    Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Adamax
    >>> optimizer, w = Adamax(learning_rate=0.1), np.array([1.0])
    >>> optimizer.step(w, np.array([50.0]), optimizer.init(w))
    >>> w.round(6)
    array([0.9])
    """

    def __init__(
        self,
        learning_rate: Any = 2e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "adamax"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the bias correction at each step."""
        return {**self._moments(), "correction_1": 1.0 - self.beta_1**steps}


class Nadam(_MomentOptimizer):
    r"""Nadam: Adam with Nesterov's look-ahead.

    .. math::
        \mu_t &= \beta_1 (1 - \tfrac12 \, 0.96^{t \psi}) \\
        \hat m_t &= \frac{\mu_{t+1} m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
                  + \frac{(1 - \mu_t) g_t}{1 - \prod_{i=1}^{t} \mu_i} \\
        w_t &= w_{t-1} - \eta_t \, \hat m_t / (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)

    with Adam's :math:`m_t` and :math:`v_t`.

    Parameters
    ----------
    learning_rate : float or schedule, default=0.002
        The rate :math:`\eta_t`.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decays of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Added to the root of the corrected second moment.
    momentum_decay : float, default=0.004
        The speed :math:`\psi` at which the momentum warms up.
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The moment is corrected by the product up to the *next* step, the gradient by the product up to
    this one. The form is torch's; Keras is :math:`\psi = 1`.

    Often faster than Adam in the first epochs.

    References
    ----------
    Dozat (2016), "Incorporating Nesterov momentum into Adam", algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Nadam
    >>> optimizer, w = Nadam(learning_rate=0.1), np.array([1.0])
    >>> optimizer.step(w, np.array([4.0]), optimizer.init(w))
    >>> bool(w[0] < 0.9)
    True
    """

    def __init__(
        self,
        learning_rate: Any = 2e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        momentum_decay: float = 4e-3,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.momentum_decay = momentum_decay
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "nadam"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the weights of gradient and moment in the look-ahead at each step."""
        last = int(steps[-1]) + 1
        momenta, products = _momenta(self.beta_1, self.momentum_decay, 1 << last.bit_length())
        return {
            **self._moments(),
            "gradient_weight": (1.0 - momenta[steps]) / (1.0 - products[steps]),
            "moment_weight": momenta[steps + 1] / (1.0 - products[steps + 1]),
            "root_correction_2": np.sqrt(1.0 - self.beta_2**steps),
        }


@cache
def _momenta(beta_1: float, momentum_decay: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Nadam's momenta and their running products; entry t belongs to step t."""
    steps = np.arange(n + 1)
    momenta = beta_1 * (1.0 - 0.5 * 0.96 ** (steps * momentum_decay))
    momenta[0] = 1.0
    return momenta, np.cumprod(momenta)
