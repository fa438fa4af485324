"""FTRL-Proximal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils._param_validation import Interval

from skoptim._devices import device_of
from skoptim.optimizers._base import (
    COMMON,
    LEARNING_RATE,
    NOT_NEGATIVE,
    Optimizer,
    OptimizerState,
    Scalars,
    compiled_rules,
    effective_unit,
    rate_scale,
)
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
    :math:`\lambda_1 + t \alpha_{est}`. With a schedule for `alpha`, :math:`\alpha` is the rate of
    the first step, and each later gradient in :math:`z`, and the penalty of its step, is weighted
    by its own rate over the first: neither a change of rate nor a rest moves a weight.

    The state is :math:`z` and ``root``, :math:`r(n)` in place of :math:`n`.

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
    stores_weights_in_state = True

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the constants of the rule."""
        return {"power": self.learning_rate_power, "unit": 1.0}

    def _own_scalars(self, steps: np.ndarray, rates: Any, state: OptimizerState) -> dict[str, Any]:
        alpha = self._first_rate(state)
        return {
            **self.scalars(steps),
            "beta": self._beta(state),
            "inverse_alpha": 1.0 / alpha,
            "gradient_weight": rates / alpha,
        }

    def _beta(self, state: OptimizerState) -> float:
        return self.beta

    def _first_rate(self, state: OptimizerState) -> float:
        """Return the rate of the first step, the alpha of the formula."""
        if "first_rate" in state.carries:
            return state.carries["first_rate"]
        return float(self.learning_rates(np.array([1], dtype=np.int64))[0] * rate_scale(state))

    def _strengths(
        self,
        steps: np.ndarray,
        rates: Any,
        state: OptimizerState,
        terms: PenaltyTerms,
        batch_size: int,
    ) -> tuple:
        # The estimator's penalty weighs in each step what the gradient does.
        weights = rates / self._first_rate(state)
        sums: Any = 0.0
        if terms.l1 or terms.l2:
            each = isinstance(weights, np.ndarray)
            sums = np.cumsum(weights) if each else weights * np.arange(1.0, len(steps) + 1.0)

        def strength(own: float, total: float, penalty: float) -> Any:
            # A step is given the mean gradient of its batch, so the paper's strength, against the
            # sum over samples, is divided by the batch size.
            total += own / batch_size
            return total + sums * penalty if penalty else total

        carries = state.carries
        return (
            strength(self.l1, carries.get("total_l1", 0.0), terms.l1),
            strength(self.l2, carries.get("total_l2", 0.0), terms.l2),
        )

    def _last_strengths(self, state: OptimizerState, batch_size: int) -> tuple[float, float]:
        """Return the strengths in the last step, or before the first."""
        carries = state.carries
        return (
            carries.get("last_l1", self.l1 / batch_size),
            carries.get("last_l2", self.l2 / batch_size),
        )

    def advance(self, state: OptimizerState, scalars: Scalars, terms: PenaltyTerms) -> None:
        """Count the steps as taken, and add up their penalties."""
        if not scalars.n_steps:
            return
        carries = state.carries
        first = carries["first_rate"] = self._first_rate(state)
        super().advance(state, scalars, terms)
        total = scalars.total("learning_rate") / first
        for name, strength in (("l1", terms.l1), ("l2", terms.l2)):
            carries[f"total_{name}"] = carries.get(f"total_{name}", 0.0) + total * strength
        # Parameters may be set to others before the weights are read.
        for name in ("l1", "l2", "lower", "upper"):
            carries[f"last_{name}"] = scalars.last(name)
        carries["last_beta"] = self._beta(state)

    def last_row(self, state: OptimizerState, terms: PenaltyTerms, batch_size: int) -> np.ndarray:
        """Return the scalars that were in force when the weights got their values."""
        row = super().last_row(state, terms, batch_size)
        row[[COMMON.index("l1"), COMMON.index("l2")]] = self._last_strengths(state, batch_size)
        for name in ("lower", "upper"):
            place = COMMON.index(name)
            row[place] = state.carries.get(f"last_{name}", row[place])
        place = len(COMMON) + compiled_rules()[self.rule]["scalars"].index("beta")
        row[place] = state.carries.get("last_beta", row[place])
        return row

    def _init_slots(
        self, w: Any, batch_size: int = 1, n_penalised: int | None = None
    ) -> dict[str, Any]:
        xp = device_of(w).xp
        slots = {name: xp.zeros(w.shape, dtype=w.dtype) for name in ("z", "root")}
        if self.initial_accumulator_value:
            slots["root"] += self.initial_accumulator_value**-self.learning_rate_power
        fresh = OptimizerState(slots=slots)
        self.adopt(w, fresh, PenaltyTerms(n_penalised=n_penalised), batch_size)
        return fresh.slots

    def adopt(self, w: Any, state: OptimizerState, terms: PenaltyTerms, batch_size: int) -> None:
        """Set z so that the weights it stands for are `w`."""
        xp = device_of(w).xp
        z = state.slots["z"] = xp.zeros_like(w)
        if not w.any():
            return
        l1, l2 = self._last_strengths(state, batch_size)
        unit = xp.ones_like(w)
        if (of_columns := effective_unit(state)) is not None:
            of_weights = xp.repeat(of_columns, terms.group_size)
            unit[: len(of_weights)] = of_weights
        z -= w * (self._beta(state) / unit + state.slots["root"]) / self._first_rate(state)
        penalised = slice(terms.n_penalised)
        z[penalised] -= (unit * (l2 * w + l1 * xp.sign(w)))[penalised]

    def _validate(self, dtype: Any) -> None:
        super()._validate(dtype)
        if self.learning_rates(np.array([1], dtype=np.int64))[0] == 0:
            raise ValueError(
                f"alpha of {type(self).__name__} must be positive at the first step, and "
                f"alpha={self.alpha!r} gives 0; let the schedule start above 0."
            )

    @property
    def _rests_without_gradient(self) -> bool:
        return True


class Moments(NamedTuple):
    """Number, mean, and sum of squared deviations from the mean of some values."""

    n: float
    mean: float
    squares: float

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Return those of an array that is not empty."""
        with np.errstate(over="ignore"):  # What is infinite is found, and told, in training.
            mean = float(values.mean(dtype=np.float64))
            squares = float(np.square(values - mean, dtype=np.float64).sum())
        return cls(values.size, mean, squares)

    def merged(self, other: Moments) -> Moments:
        """Return those of the values of both (Chan, Golub and LeVeque 1983, equation 2.1)."""
        n, difference = self.n + other.n, other.mean - self.mean
        between = difference * difference * self.n * other.n / n
        squares = self.squares + other.squares + between
        return Moments(n, self.mean + difference * other.n / n, squares)

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return (self.squares / self.n) ** 0.5


class NormalizedFTRL(FTRL):
    r"""FTRL-Proximal in units of the data: one rate for features and targets of any scale.

    It is :class:`FTRL` on inputs :math:`\tilde x_i = x_i / s_i`, where :math:`s_i` is the largest
    :math:`|x_i|` so far, with weights :math:`\tilde w_i = s_i w_i` and

    .. math::
        \tilde \alpha_t = \frac{\alpha_t \, \sigma}{\sqrt N}, \qquad \tilde \beta = \beta \gamma

    where :math:`N` is the mean of :math:`1 + \sum_i \tilde x_i^2` over the samples,
    :math:`\sigma` the standard deviation of the target for losses of a distance to it (1 for
    classifiers and Poisson), and :math:`\gamma` the size of the loss's derivative at a distance of
    :math:`\sigma`: :math:`\sigma` for the squared error, 1 for the absolute one. Changing the units
    of a feature, or of the target and of the loss's `epsilon`, changes nothing but the units of its
    weight. The penalty is that of the weights :math:`w_i`, as ever, and `tol` is in units of the
    loss.

    Parameters
    ----------
    alpha : float or schedule, default=1.0
        The learning rate, in units of the data.
    beta : float, default=0.1
        Holds back the first steps, in the same units.
    l1, l2 : float, default=0.0
        The paper's fixed strengths, as of :class:`FTRL`.
    learning_rate_power : float, default=-0.5
        The power, negative.
    initial_accumulator_value : float, default=0.0
        The value of :math:`n_0`.
    clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The scales :math:`s_i`, :math:`N` and :math:`\sigma` are measured before the first step, and in
    `partial_fit` brought up to date before each block; :math:`N` on some hundred samples. They are
    part of the state: ``optimizer_state_.slots["unit"]`` is :math:`1 / s_i`. In networks only the
    inputs of the first layer have scales, and the rate is :math:`\alpha_t`. Driven by hand, it is
    :class:`FTRL`.

    Vowpal Wabbit's default optimizer has the same aim, with Adagrad's steps: it shrinks a weight
    when its feature's scale grows, and corrects large steps for the curvature of the loss. The
    table in the user guide compares both.

    Use it for linear models when you do not want to choose a rate, nor scale the features. It
    minds units, not offsets: take means out (``StandardScaler``, ``TransformedTargetRegressor``)
    where those of features or target are many times as large as their standard deviations, as
    every stochastic optimizer needs.

    References
    ----------
    McMahan et al. (2013), "Ad click prediction: a view from the trenches", algorithm 1. Ross,
    Mineiro and Langford (2013), "Normalized online learning", algorithm 3 (NAG), for the scales.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim import SGDRegressor
    >>> X = np.linspace(0, 1, 200)[:, None]
    >>> y = 3 * X.ravel() + 1
    >>> model = SGDRegressor(penalty=None, optimizer="normalized_ftrl", random_state=0)
    >>> def score(X, y):
    ...     return model.fit(X, y).score(X, y)
    >>> [score(unit * X, 1000 * y) > 0.99 for unit in (1e-3, 1, 1e3)]
    [True, True, True]
    """

    has_units = True

    def __init__(
        self,
        alpha: Any = 1.0,
        beta: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        super().__init__(
            alpha,
            beta,
            l1,
            l2,
            learning_rate_power,
            initial_accumulator_value,
            clip_norm=clip_norm,
            clip_value=clip_value,
        )

    def set_rate_unit(
        self,
        state: OptimizerState,
        squared_norm: float,
        n_samples: int,
        target: Moments | None,
        typical_derivative: Callable[[float], float],
    ) -> None:
        """Let the units know more samples: their mean squared norm, their targets."""
        carries = state.carries
        seen = carries.get("samples_seen", 0.0)
        total = carries["samples_seen"] = seen + n_samples
        norm = carries.get("squared_norm", 0.0)
        carries["squared_norm"] = norm + (squared_norm - norm) * n_samples / total
        deviation = 1.0
        if target is not None:
            known = Moments(*(carries.get(f"target_{name}", 0.0) for name in Moments._fields))
            target = known.merged(target)
            carries.update({f"target_{k}": v for k, v in target._asdict().items()})
            deviation = target.deviation or 1.0
        carries["gradient_unit"] = 1.0 if target is None else typical_derivative(deviation)
        carries["rate_unit"] = deviation / (1.0 + carries["squared_norm"]) ** 0.5

    def change_units(
        self, w: Any, state: OptimizerState, old: Any, terms: PenaltyTerms, batch_size: int
    ) -> None:
        """Let z stand for the same weights as it did in the `old` units of the columns."""
        xp, slots = device_of(w).xp, state.slots
        z, root, width = slots["z"], slots["root"], terms.group_size
        changed = xp.flatnonzero(slots["unit"] != old)
        places = (changed[:, None] * width + xp.arange(width)).ravel()
        before = OptimizerState(state.step, {"root": root[places]}, state.carries)
        units = effective_unit(state)[changed], (old + (old == 0))[changed]
        part = replace(terms, n_penalised=None)
        before.slots["unit"] = units[0]
        self.adopt(w[places], before, part, batch_size)
        rested = z[places] * xp.repeat(units[0] / units[1], width)
        z[places] = xp.where(w[places] == 0, rested, before.slots["z"])

    def _beta(self, state: OptimizerState) -> float:
        return self.beta * state.carries.get("gradient_unit", 1.0)
