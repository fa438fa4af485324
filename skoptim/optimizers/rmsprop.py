"""RMSprop."""

from __future__ import annotations

from typing import Any

import numpy as np

from skoptim.optimizers._base import DECAY, POSITIVE, Optimizer


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over a moving root mean square of itself.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2 \\
        w_t &= w_{t-1} - \eta_t \, g_t / (\sqrt{v_t} + \epsilon)

    Centered, :math:`v_t - \bar g_t^2` stands under the root, with
    :math:`\bar g_t = \rho \bar g_{t-1} + (1 - \rho) g_t`. With momentum, the quotient enters a
    buffer :math:`b_t = \mu b_{t-1} + g_t / (\cdot)`, and :math:`w_t = w_{t-1} - \eta_t b_t`.

    Parameters
    ----------
    learning_rate : float or schedule, default=0.01
        The rate :math:`\eta_t`.
    rho : float, default=0.99
        Decay of the averages, in [0, 1).
    epsilon : float, default=1e-8
        Added to the root.
    momentum : float, default=0.0
        The decay :math:`\mu` of the buffer, in [0, 1).
    centered : bool, default=False
        Divide by the standard deviation instead of the root mean square.
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The average is of :math:`g^2`, not a running sum. The form is torch's; Keras puts
    :math:`\epsilon` (1e-7) inside the root and has :math:`\rho = 0.9`.

    Use it for non-stationary or noisy gradients (dropout, small batches), where Adagrad's rate
    would have died.

    References
    ----------
    Tieleman and Hinton (2012), "Lecture 6.5: RMSprop", COURSERA: Neural Networks for Machine
    Learning. Graves (2013), "Generating sequences with recurrent neural networks", equations 38 to
    45 (centered).

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import RMSprop
    >>> optimizer, w = RMSprop(learning_rate=0.1, rho=0.75), np.array([1.0])
    >>> optimizer.step(w, np.array([4.0]), optimizer.init(w))
    >>> w.round(6)
    array([0.8])
    """

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "rho": [DECAY],
        "epsilon": [POSITIVE],
        "momentum": [DECAY],
        "centered": ["boolean"],
    }

    def __init__(
        self,
        learning_rate: Any = 0.01,
        rho: float = 0.99,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.rho = rho
        self.epsilon = epsilon
        self.momentum = momentum
        self.centered = centered
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "rmsprop" + "_centered" * bool(self.centered) + "_momentum" * bool(self.momentum)

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the constants of the rule."""
        return {
            "rho": self.rho,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "one_minus_rho": 1.0 - self.rho,
        }
