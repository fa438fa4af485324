"""Learning-rate schedules: callables from step numbers (from 1) to learning rates.

Every optimizer takes a schedule wherever it takes a learning rate. A schedule is called with the
numbers of a whole block of steps at once and never keeps a count of its own, so one schedule may
serve any number of fits. Any function from an integer array to a float array of the same shape is a
schedule too; the classes here have, besides, parameters that a grid search can reach
(``optimizer__learning_rate__initial``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)

__all__ = [
    "Adaptive",
    "Constant",
    "Cosine",
    "Exponential",
    "InverseScaling",
    "OneCycle",
    "Optimal",
    "Schedule",
    "Step",
    "Warmup",
    "as_schedule",
]

_POSITIVE = Interval(Real, 0, None, closed="neither")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_FRACTION = Interval(Real, 0, 1, closed="right")
_COUNT = Interval(Integral, 1, None, closed="left")


class Schedule(ABC, BaseEstimator):
    """Base of the schedules: hyper-parameters, and `_rates` to be written by the subclass.

    A subclass stores its hyper-parameters in ``__init__``, names their allowed values in
    ``_parameter_constraints`` (scikit-learn's convention) and implements ``_rates``.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def __call__(self, steps):
        """Return the learning rate of each step.

        Parameters
        ----------
        steps : int or ndarray of int
            Step numbers; the first step of a fit is 1.

        Returns
        -------
        float or ndarray of float64, of the shape of `steps`
            The learning rates.

        Raises
        ------
        ValueError
            If a hyper-parameter is out of range (the message names it) or a step is below 1.
        TypeError
            If the step numbers are not integers.
        """
        self.validate()
        numbers = np.asarray(steps)
        if numbers.dtype.kind not in "iu":
            raise TypeError(f"steps must be integers, got dtype {numbers.dtype}.")
        if numbers.size and numbers.min() < 1:
            raise ValueError(f"steps are counted from 1, got {numbers.min()}.")
        rates = self._rates(numbers.astype(np.float64))
        return float(rates) if numbers.ndim == 0 else np.asarray(rates, dtype=np.float64)

    @abstractmethod
    def _rates(self, t):
        """Return the learning rates at `t`, a float64 array of whole numbers from 1."""

    def validate(self):
        """Raise a ValueError that names the first hyper-parameter out of range."""
        constraints = self._parameter_constraints
        values = {name: value for name, value in vars(self).items() if name in constraints}
        # A check takes as long as the rates of thousands of steps.
        is_hashable = all(type(value) in (int, float) for value in values.values())
        check = _check_values_once if is_hashable else _check_values
        check(type(self), **values)

    def update_scale(self, scale: float, losses: Sequence[float], tol: float | None) -> float:
        """Return what the rates are multiplied by from now on; only `Adaptive` changes it.

        See :meth:`Adaptive.update_scale`.
        """
        return scale


def _check_values(schedule: type[Schedule], /, **values: Any) -> None:
    """Raise a ValueError that names the first value that the constraints exclude."""
    constraints = schedule._parameter_constraints
    validate_parameter_constraints(constraints, values, caller_name=schedule.__name__)


_check_values_once = lru_cache(typed=True)(_check_values)


class Constant(Schedule):
    """The same learning rate at every step.

    Parameters
    ----------
    learning_rate : float
        The rate; positive.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import Constant
    >>> Constant(0.1)(np.array([1, 2, 1000]))
    array([0.1, 0.1, 0.1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"learning_rate": [_POSITIVE]}

    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def _rates(self, t):
        return np.full_like(t, self.learning_rate)


class InverseScaling(Schedule):
    r"""A rate that falls as a power of the step number: :math:`\eta_t = \eta_0 / t^{power}`.

    Parameters
    ----------
    eta0 : float
        Rate at step 1; positive.
    power : float, default=0.5
        Not negative. A power in (0.5, 1] meets the conditions of Robbins and Monro [1]_ (the sum
        of the rates diverges, the sum of their squares does not).

    Notes
    -----
    scikit-learn's ``SGDClassifier(learning_rate="invscaling", power_t=power)``.

    References
    ----------
    .. [1] H. Robbins and S. Monro (1951), "A stochastic approximation method", Annals of
       Mathematical Statistics 22(3).

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import InverseScaling
    >>> InverseScaling(eta0=0.5)(np.array([1, 4, 100]))
    array([0.5 , 0.25, 0.05])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "eta0": [_POSITIVE],
        "power": [_NOT_NEGATIVE],
    }

    def __init__(self, eta0, power=0.5):
        self.eta0 = eta0
        self.power = power

    def _rates(self, t):
        return self.eta0 / t**self.power


class Optimal(Schedule):
    r"""Bottou's rate for a strongly convex objective, as scikit-learn's ``"optimal"``.

    .. math::
        \eta_t = \frac{1}{\alpha (t_0 + t - 1)}, \qquad
        t_0 = \frac{1}{\alpha \, \alpha^{-1/4}}

    so that the first rate, :math:`\alpha^{-1/4}`, has the size that Bottou's heuristic expects of
    a weight under the L2 penalty.

    Parameters
    ----------
    alpha : float, default=1e-4
        Strength of the L2 penalty; positive. Give the estimator's `alpha`.

    Notes
    -----
    scikit-learn divides the typical weight by the slope of the loss at a wrong prediction of
    that size, if the slope exceeds 1. The slope that it takes is signed, and negative for every
    loss that it offers, so the division never happens; the numbers here are its numbers.

    The first rates are large (10 for ``alpha=1e-4``). They suit the hinge and log losses on
    normalised rows, one sample at a time, and diverge for the squared losses.

    References
    ----------
    .. [1] L. Bottou (2012), "Stochastic gradient descent tricks", section 5.2.
    .. [2] S. Shalev-Shwartz, Y. Singer and N. Srebro (2007), "Pegasos: primal estimated
       sub-gradient solver for SVM", figure 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import Optimal
    >>> Optimal(alpha=1e-4)(np.array([1, 1001, 9001]))
    array([10.,  5.,  1.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"alpha": [_POSITIVE]}

    def __init__(self, alpha=1e-4):
        self.alpha = alpha

    def _rates(self, t):
        typical_weight = math.sqrt(1.0 / math.sqrt(self.alpha))
        t0 = 1.0 / (typical_weight * self.alpha)
        return 1.0 / (self.alpha * (t0 + t - 1.0))


class Exponential(Schedule):
    r"""A rate multiplied by `decay` every `decay_steps` steps, smoothly.

    .. math:: \eta_t = \eta_1 \cdot decay^{(t - 1) / decay\_steps}

    Parameters
    ----------
    initial : float
        Rate at step 1; positive.
    decay : float
        Factor in (0, 1].
    decay_steps : int, default=1
        Steps over which the rate falls by that factor.

    Notes
    -----
    torch's ``ExponentialLR(gamma=decay)`` stepped once per batch; Keras' ``ExponentialDecay``.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import Exponential
    >>> Exponential(initial=0.8, decay=0.5, decay_steps=10)(np.array([1, 11, 21]))
    array([0.8, 0.4, 0.2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "initial": [_POSITIVE],
        "decay": [_FRACTION],
        "decay_steps": [_COUNT],
    }

    def __init__(self, initial, decay, decay_steps=1):
        self.initial = initial
        self.decay = decay
        self.decay_steps = decay_steps

    def _rates(self, t):
        return self.initial * self.decay ** ((t - 1.0) / self.decay_steps)


class Step(Schedule):
    r"""A rate multiplied by `gamma` after every `step_size` steps.

    .. math:: \eta_t = \eta_1 \cdot gamma^{\lfloor (t - 1) / step\_size \rfloor}

    Parameters
    ----------
    initial : float
        Rate of the first `step_size` steps; positive.
    step_size : int
        Length of a stair, in steps.
    gamma : float, default=0.1
        Factor in (0, 1].

    Notes
    -----
    torch's ``StepLR`` stepped once per batch.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import Step
    >>> Step(initial=1.0, step_size=100, gamma=0.5)(np.array([1, 100, 101, 201]))
    array([1.  , 1.  , 0.5 , 0.25])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "initial": [_POSITIVE],
        "step_size": [_COUNT],
        "gamma": [_FRACTION],
    }

    def __init__(self, initial, step_size, gamma=0.1):
        self.initial = initial
        self.step_size = step_size
        self.gamma = gamma

    def _rates(self, t):
        return self.initial * self.gamma ** ((t - 1.0) // self.step_size)


class Cosine(Schedule):
    r"""Half a cosine wave from `initial` down to `final`, where the rate then stays.

    .. math::
        \eta_t = final + \frac{initial - final}{2}
        \left(1 + \cos \frac{\pi \min(t - 1, total\_steps)}{total\_steps}\right)

    Parameters
    ----------
    initial : float
        Rate at step 1; positive.
    total_steps : int
        Steps until the rate is `final`.
    final : float, default=0.0
        Rate from step ``total_steps + 1`` on; not negative.

    Notes
    -----
    Keras' ``CosineDecay``, and torch's ``CosineAnnealingLR`` (which turns up again afterwards)
    over its first half period. The restarts of [1]_ are not offered.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter (2017), "SGDR: stochastic gradient descent with warm
       restarts", ICLR, equation 5.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import Cosine
    >>> Cosine(initial=0.2, total_steps=100)(np.array([1, 51, 101, 500])).round(6)
    array([0.2, 0.1, 0. , 0. ])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "initial": [_POSITIVE],
        "total_steps": [_COUNT],
        "final": [_NOT_NEGATIVE],
    }

    def __init__(self, initial, total_steps, final=0.0):
        self.initial = initial
        self.total_steps = total_steps
        self.final = final

    def _rates(self, t):
        progress = np.minimum(t - 1.0, self.total_steps) / self.total_steps
        return _cosine_between(self.initial, self.final, progress)


class OneCycle(Schedule):
    r"""Smith's one cycle: up to a large rate, then down to almost none.

    The rate rises from ``maximum / initial_divisor`` to `maximum` over the first
    `rising_fraction` of the steps and falls to ``maximum / initial_divisor / final_divisor`` at
    step `total_steps`, where it stays.

    Parameters
    ----------
    maximum : float
        Largest rate; positive.
    total_steps : int
        Length of the cycle, in steps; at least 2.
    rising_fraction : float, default=0.3
        Part of the cycle in which the rate rises; in [0, 1].
    annealing : {"cosine", "linear"}, default="cosine"
        Shape of both slopes.
    initial_divisor : float, default=25.0
        `maximum` over the first rate; at least 1.
    final_divisor : float, default=1e4
        First rate over the last rate; at least 1.

    Notes
    -----
    The rates of torch's ``OneCycleLR``, whose `pct_start`, `div_factor` and `final_div_factor`
    are `rising_fraction`, `initial_divisor` and `final_divisor`. The momentum is not cycled.

    References
    ----------
    .. [1] L. N. Smith and N. Topin (2018), "Super-convergence: very fast training of neural
       networks using large learning rates", arXiv:1708.07120.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import OneCycle
    >>> OneCycle(maximum=0.5, total_steps=100)(np.array([1, 30, 65, 100])).round(5)
    array([0.02, 0.5 , 0.25, 0.  ])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "maximum": [_POSITIVE],
        "total_steps": [Interval(Integral, 2, None, closed="left")],
        "rising_fraction": [Interval(Real, 0, 1, closed="both")],
        "annealing": [StrOptions({"cosine", "linear"})],
        "initial_divisor": [Interval(Real, 1, None, closed="left")],
        "final_divisor": [Interval(Real, 1, None, closed="left")],
    }

    def __init__(
        self,
        maximum,
        total_steps,
        rising_fraction=0.3,
        annealing="cosine",
        initial_divisor=25.0,
        final_divisor=1e4,
    ):
        self.maximum = maximum
        self.total_steps = total_steps
        self.rising_fraction = rising_fraction
        self.annealing = annealing
        self.initial_divisor = initial_divisor
        self.final_divisor = final_divisor

    def _rates(self, t):
        between = _cosine_between if self.annealing == "cosine" else _line_between
        first = self.maximum / self.initial_divisor
        last = first / self.final_divisor

        number, end = np.minimum(t - 1.0, self.total_steps - 1.0), self.total_steps - 1.0
        # The peak may fall between two steps. Without room for a slope there is none.
        peak = min(max(self.rising_fraction * self.total_steps - 1.0, 0.0), end)
        rising = between(first, self.maximum, number / peak if peak > 0 else np.ones_like(t))
        falling = between(self.maximum, last, (number - peak) / (end - peak) if peak < end else 1.0)
        return np.where(number <= peak, rising, falling)


class Warmup(Schedule):
    r"""A linear rise over `warmup_steps` steps into another schedule.

    .. math::
        \eta_t = \begin{cases}
        s(1) \, t / (warmup\_steps + 1) & t \le warmup\_steps \\
        s(t - warmup\_steps) & \text{after that}
        \end{cases}

    Parameters
    ----------
    schedule : Schedule, callable or float
        What follows the warm-up, from its own step 1.
    warmup_steps : int
        Length of the rise, in steps; 0 for none.

    Notes
    -----
    torch's ``SequentialLR`` of ``LinearLR(start_factor=1 / (warmup_steps + 1),
    total_iters=warmup_steps)`` and the schedule, with the milestone at `warmup_steps`.

    References
    ----------
    .. [1] P. Goyal et al. (2017), "Accurate, large minibatch SGD: training ImageNet in 1 hour",
       section 2.2, arXiv:1706.02677.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.schedules import Warmup
    >>> Warmup(0.4, warmup_steps=3)(np.array([1, 2, 3, 4, 5]))
    array([0.1, 0.2, 0.3, 0.4, 0.4])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "schedule": [callable, _POSITIVE],
        "warmup_steps": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, schedule, warmup_steps):
        self.schedule = schedule
        self.warmup_steps = warmup_steps

    def validate(self):
        """Raise a ValueError that names the first hyper-parameter out of range, nested ones too."""
        super().validate()
        as_schedule(self.schedule, name="schedule")

    def _rates(self, t):
        schedule = as_schedule(self.schedule, name="schedule")
        later = np.maximum(t - self.warmup_steps, 1.0).astype(np.int64)
        return schedule(later) * np.minimum(t / (self.warmup_steps + 1.0), 1.0)

    def update_scale(self, scale, losses, tol):
        """Return what the schedule that follows the warm-up says, if it says anything."""
        update = getattr(self.schedule, "update_scale", None)
        return scale if update is None else update(scale, losses, tol)


class Adaptive(Schedule):
    r"""A constant rate, divided by `factor` each time the loss stops falling.

    The schedule itself gives the constant base rate. After every epoch the training loop asks
    :meth:`update_scale` for the number that multiplies it, and keeps that number with the rest
    of the state, so one schedule can serve several fits.

    Parameters
    ----------
    initial : float
        Rate until the first division; positive.
    factor : float, default=5.0
        The divisor; above 1.
    patience : int, default=5
        Epochs in a row without an improvement after which the rate is divided.
    minimum : float, default=1e-6
        A rate at or below this is not divided any more; not negative.

    Notes
    -----
    scikit-learn's ``learning_rate="adaptive"``, where `patience` is the estimator's
    ``n_iter_no_change`` (here the two are separate), with one difference: each loss is compared
    with the best since the last division (that epoch's own included), not with the best ever.
    One freak low loss therefore costs at most one division, instead of one every `patience`
    epochs until the rate is gone.

    Examples
    --------
    >>> from skoptim.schedules import Adaptive
    >>> schedule = Adaptive(initial=0.1, factor=5.0, patience=2)
    >>> schedule(1000)
    0.1
    >>> schedule.update_scale(1.0, [0.9, 0.5, 0.5], tol=1e-4)
    1.0
    >>> schedule.update_scale(1.0, [0.9, 0.5, 0.5, 0.5], tol=1e-4)
    0.2
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "initial": [_POSITIVE],
        "factor": [Interval(Real, 1, None, closed="neither")],
        "patience": [_COUNT],
        "minimum": [_NOT_NEGATIVE],
    }

    def __init__(self, initial, factor=5.0, patience=5, minimum=1e-6):
        self.initial = initial
        self.factor = factor
        self.patience = patience
        self.minimum = minimum

    def _rates(self, t):
        return np.full_like(t, self.initial)

    def update_scale(self, scale, losses, tol):
        """Return the multiplier of the base rate after the last epoch of `losses`.

        Parameters
        ----------
        scale : float
            The multiplier so far; 1.0 at the start of a fit.
        losses : sequence of float
            The loss of every epoch since the start of the fit, the latest last.
        tol : float or None
            Fall of the loss below the best one that counts as an improvement; None means any.

        Returns
        -------
        float
            ``scale / factor`` if the last epoch is the one that exhausts the patience and the rate
            is still above `minimum`, else `scale`.
        """
        if self.initial * scale <= self.minimum:
            return scale
        tol = 0.0 if tol is None else tol
        best, waited, divide = np.inf, 0, False
        for loss in losses:
            divide = False
            # A NaN is no improvement, and never becomes the best.
            if loss < best - tol:
                waited = 0
            else:
                waited += 1
                divide = waited >= self.patience
            best = min(best, loss) if loss == loss else best
            if divide:
                best, waited = (loss if loss == loss else np.inf), 0
        return scale / self.factor if divide else scale


def as_schedule(value, name="learning_rate") -> "Schedule | Callable":
    """Return `value` as a schedule.

    Parameters
    ----------
    value : float, Schedule or callable
        A number means :class:`Constant`; a callable is returned as it is.
    name : str, default="learning_rate"
        How an error message calls the value.

    Returns
    -------
    Schedule or callable
        Maps integer step numbers to float64 learning rates.

    Raises
    ------
    ValueError
        If the number is not positive and finite, or a schedule's own parameter is out of range.
    TypeError
        If `value` is neither a number nor a callable, or is a schedule class instead of an
        instance.

    Examples
    --------
    >>> from skoptim.schedules import as_schedule
    >>> as_schedule(0.1)
    Constant(learning_rate=0.1)
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be a number or a schedule, got the class {value.__name__}; "
            f"write {value.__name__}(...)."
        )
    if isinstance(value, Schedule):
        value.validate()
        return value
    if callable(value):
        return value
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a positive number or a schedule (see skoptim.schedules), "
            f"got {value!r}."
        )
    if not 0.0 < float(value) < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    return Constant(value)


def _cosine_between(start, end, progress):
    return end + (start - end) * 0.5 * (1.0 + np.cos(np.pi * progress))


def _line_between(start, end, progress):
    return start + (end - start) * progress
