"""FTRL-Proximal."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval

from skoptim._devices import device_of
from skoptim.optimizers._base import LEARNING_RATE, NOT_NEGATIVE, Optimizer, OptimizerState
from skoptim.penalties import PenaltyTerms


class FTRL(Optimizer):
    r"""FTRL-Proximal: online learning with exact zeros, for very sparse data.

    With :math:`r(n) = n^{-p}` (:math:`\sqrt n` by default):

    .. math::
        n_t &= n_{t-1} + g_t^2, \qquad \sigma_t = (r(n_t) - r(n_{t-1})) / \alpha \\
        z_t &= z_{t-1} + g_t - \sigma_t w_{t-1} \\
        w_t &= \begin{cases}
            0 & |z_t| \le \lambda_1 \\
            -(z_t - \operatorname{sign}(z_t) \lambda_1) \Big/
             \left( \frac{\beta + r(n_t)}{\alpha} + \lambda_2 \right) & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    alpha : float or schedule, default=0.1
        The learning rate :math:`\alpha`, in the paper's name; not the estimator's `alpha`.
    beta : float, default=1.0
        Holds back the first steps.
    l1, l2 : float, default=0.0
        The paper's fixed strengths :math:`\lambda_1, \lambda_2`, against the *sum* of the gradients
        of all samples seen. They do not depend on the batch size.
    learning_rate_power : float, default=-0.5
        The power :math:`p`, negative.
    initial_accumulator_value : float, default=0.0
        The value of :math:`n_0`.
    clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The first :math:`z` is chosen so that the weights it implies are those given: warm starts and
    the random initialisation of a net survive the first step. The penalty of an estimator
    (`alpha` times L1 or L2, against the mean loss) joins in closed form, growing with t:
    :math:`\lambda_1 + t \alpha_{est}`. With a schedule for `alpha`, :math:`\sigma_t` is the change
    of :math:`(\beta + r(n_t)) / \alpha_t`, so a mere change of rate moves no weight.

    torch has no FTRL. Keras: `l2` here is twice Keras's `l2_regularization_strength`, its
    accumulator starts at 0.1, :math:`\beta` at 0.

    Use it for text, recommendation and clicks: very many features, few non-zeros per sample,
    one pass, a small final model.

    References
    ----------
    McMahan et al. (2013), "Ad click prediction: a view from the trenches", algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import FTRL
    >>> optimizer, w = FTRL(alpha=0.5, beta=1.0, l1=0.25), np.zeros(2)
    >>> optimizer.step(w, np.array([1.0, 0.2]), optimizer.init(w))
    >>> w
    array([-0.1875,  0.    ])
    """

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "alpha": LEARNING_RATE,
        "beta": [NOT_NEGATIVE],
        "l1": [NOT_NEGATIVE],
        "learning_rate_power": [Interval(Real, None, 0, closed="neither")],
        "initial_accumulator_value": [NOT_NEGATIVE],
    }

    def __init__(
        self,
        alpha: Any = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.alpha = alpha
        self.beta = beta
        self.l1 = l1
        self.l2 = l2
        self.learning_rate_power = learning_rate_power
        self.initial_accumulator_value = initial_accumulator_value
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "ftrl" if self.learning_rate_power == -0.5 else "ftrl_power"

    _rate_name = "alpha"
    _couples_l2 = False

    def learning_rates(self, steps: np.ndarray) -> np.ndarray:
        """Return alpha at each of the steps; FTRL divides by it."""
        rates = super().learning_rates(steps)
        if (rates == 0).any():
            raise ValueError(
                f"alpha of FTRL must be positive at every step; alpha={self.alpha!r} gives 0. Let "
                "the schedule end above 0."
            )
        return rates

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the constants of the rule."""
        return {"beta": self.beta, "power": self.learning_rate_power}

    def _own_scalars(
        self, steps: np.ndarray, rates: np.ndarray, state: OptimizerState
    ) -> dict[str, Any]:
        last = state.carries.get("last_rate", rates[0])
        state.carries["last_rate"] = float(rates[-1])
        changes = np.diff(1.0 / np.append(last, rates))
        return {**self.scalars(steps), "inverse_rate_change": changes}

    def _strengths(self, steps: Any, terms: PenaltyTerms, batch_size: int) -> tuple:
        # A step is given the mean gradient of its batch, so a strength against the sum over
        # samples is divided by the batch size.
        return (
            self.l1 / batch_size + steps * terms.l1,
            self.l2 / batch_size + steps * terms.l2,
        )

    def _init_slots(
        self, w: Any, batch_size: int = 1, n_penalised: int | None = None
    ) -> dict[str, Any]:
        xp = device_of(w).xp
        n = xp.full(w.shape, self.initial_accumulator_value, dtype=w.dtype)
        strengths = self._strengths(0, PenaltyTerms(), batch_size)
        rate = float(self.learning_rates(np.array([1]))[0])
        return {"z": self._dual(w, n, rate, strengths, n_penalised), "n": n}

    def adopt(self, w: Any, state: OptimizerState, terms: PenaltyTerms, batch_size: int) -> None:
        """Set z so that the weights it implies are `w`."""
        n, rate = state.slots["n"], state.carries["last_rate"]
        strengths = self._strengths(state.step, terms, batch_size)
        state.slots["z"] = self._dual(w, n, rate, strengths, terms.n_penalised)

    def _dual(self, w: Any, n: Any, rate: float, strengths: tuple, n_penalised: int | None) -> Any:
        """Return the z for which the formula gives `w`."""
        xp = device_of(w).xp
        l1, l2 = strengths
        z = -w * ((self.beta + n**-self.learning_rate_power) / rate)
        penalised = slice(n_penalised)
        z[penalised] -= w[penalised] * l2 + xp.sign(w[penalised]) * l1
        return z.astype(w.dtype)

    def _validate(self, dtype: Any) -> None:
        super()._validate(dtype)
        self.learning_rates(np.array([1]))

    @property
    def _rests_without_gradient(self) -> bool:
        return True
