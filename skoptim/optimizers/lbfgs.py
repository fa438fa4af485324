"""L-BFGS, and its orthant-wise form under L1."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

from sklearn.utils._param_validation import Interval

from skoptim._devices import device_of
from skoptim.optimizers._base import OptimizerState
from skoptim.optimizers._full_batch import (
    FullBatchOptimizer,
    Iteration,
    ValueAndGrad,
    max_norm,
    rounding_level,
)
from skoptim.optimizers._line_search import Point, decreases_enough, strong_wolfe
from skoptim.penalties import PenaltyTerms

__all__ = ["LBFGS"]

#: Slots of steps and of changes of the gradient along them, both (history_size, n_parameters).
_PAIRS = ("steps", "changes")


class LBFGS(FullBatchOptimizer):
    r"""Limited-memory BFGS over all samples at once; orthant-wise (OWL-QN) under L1.

    .. math:: w_{k+1} = w_k - t_k H_k g_k

    where :math:`H_k` is built from the last `history_size` pairs :math:`s_i = w_{i+1} - w_i`,
    :math:`y_i = g_{i+1} - g_i`, from :math:`H_k^0 = (s^T y / y^T D y) D`, and :math:`t_k` satisfies
    the strong Wolfe conditions. In linear models :math:`D` is about the inverse of the diagonal of
    the Hessian (see the notes), else the identity; before the first pair :math:`H_k = D`. Under L1
    of strength :math:`\lambda`, :math:`g` is the pseudo-gradient, whose entries are

    .. math:: g_i = \begin{cases}
        \partial_i f + \lambda\, \mathrm{sign}(w_i) & w_i \ne 0 \\
        \partial_i f - \mathrm{clip}(\partial_i f, -\lambda, \lambda) & w_i = 0
        \end{cases}

    and no coefficient changes sign within a step: one that would is set to exactly 0.

    Parameters
    ----------
    history_size : int, default=10
        How many pairs are kept. Memory and time of an iteration grow with it, by
        ``2 * history_size`` arrays like the parameters.
    max_line_search : int, default=20
        The most evaluations of the loss along one direction.

    Notes
    -----
    For feature :math:`j` of a linear model :math:`1 / D_j = c\, (1 + 0.03 / p_j)\,
    \overline{x_j^2} + \lambda_2`, with :math:`p_j` the share of the samples in which it is not
    zero, :math:`c` the largest second derivative of the loss and :math:`\lambda_2` the strength of
    L2. So iterates do not depend on the units of features, but for the penalty, as long as squares
    are in the range of the type; nor are rare features left behind. The measure of convergence is
    still in these units. Where features are scaled alike but correlated, or have a few huge
    entries, this gains nothing.

    Under L1 on large data the estimators hand over the columns alone that the penalty does not hold
    at zero, in rounds that each begin with a look at all.

    The first step is no longer than 1, measured by :math:`D`, whatever the size of the gradient.
    A pair whose :math:`s^T y` is tiny or negative is not kept. A loss that is NaN or infinite
    shortens the step. Where all losses in reach are equal up to rounding, the slopes decide
    instead, so that the gradient can be driven to about the precision of its own evaluation.

    Two more details differ from the paper on OWL-QN; on logistic regressions with correlated
    features they save half to nine tenths of the iterations. The recursion for :math:`H_k g_k` sees
    the free coefficients alone (those not held at 0), so that curvature among the others cannot
    spoil it; and only coefficients at 0 have to leave in the direction of steepest descent.

    SciPy's ``L-BFGS-B`` has the same `history_size`, begins from the identity, and takes box
    constraints, but no L1; it also stops on a small relative decrease (``ftol``), which has no
    counterpart here. ``torch.optim.LBFGS`` keeps 100 pairs and by default searches no step length:
    ``line_search_fn="strong_wolfe"`` corresponds to this class. ``optax.lbfgs`` keeps 10 pairs with
    a zoom search.

    Use it for up to some hundred thousand parameters and smooth losses, where it needs tens of
    passes over the data and no tuning. Do not use it for mini-batches or `partial_fit`; nor for
    groups or constraints, which ``ProximalGradient(full_batch=True)`` takes.

    References
    ----------
    .. [1] D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale
       optimization", Mathematical Programming 45, 1989, algorithm 2.1.
    .. [2] J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, 2006, algorithm 7.4
       and equation 7.20.
    .. [3] G. Andrew and J. Gao, "Scalable training of L1-regularized log-linear models",
       ICML 2007, equation 4 and algorithm 1.
    .. [4] R. H. Byrd, G. M. Chin, J. Nocedal and F. Oztoprak, "A family of second-order methods
       for convex l1-regularized optimization", Mathematical Programming 159, 2016: the restriction
       to free variables.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.optimize import rosen, rosen_der
    >>> from skoptim.optimizers import LBFGS
    >>> result = LBFGS().minimize(lambda w: (rosen(w), rosen_der(w)), np.array([-1.2, 1.0]))
    >>> result.success, result.x.round(4).tolist()
    (True, [1.0, 1.0])

    Under L1 the small entry becomes exactly zero:

    >>> target = np.array([3.0, -0.4])
    >>> def squared_error(w):
    ...     return 0.5 * np.sum((w - target) ** 2), w - target
    >>> LBFGS().minimize(squared_error, np.ones(2), penalty="l1").x
    array([2., 0.])
    """

    _parameter_constraints = {
        "history_size": [Interval(Integral, 1, None, closed="left")],
        "max_line_search": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, history_size: int = 10, max_line_search: int = 20):
        self.history_size = history_size
        self.max_line_search = max_line_search

    @property
    def is_full_batch(self) -> bool:
        """Whether a step needs the loss and gradient over all samples: always."""
        return True

    def check_penalty(self, terms: PenaltyTerms) -> None:
        """Raise ValueError under groups or constraints, which this optimizer cannot honour."""
        if terms.group_l1 or terms.is_constrained:
            kind = "GroupL1()" if terms.group_l1 else "NonNegative() or Box()"
            raise ValueError(
                f"penalty={kind} is not possible with LBFGS, which takes L1, L2 and ElasticNet; "
                "use optimizer=ProximalGradient(full_batch=True)."
            )

    def iterate(
        self, w: Any, value_and_grad: ValueAndGrad, state: OptimizerState, terms: PenaltyTerms
    ) -> Iteration:
        """Make one iteration in place; see the base class."""
        self.check_penalty(terms)
        objective = _Objective(w, value_and_grad, terms)
        if "value" not in state.carries:
            self._begin(w, objective, state)
            self._note_optimality(self._look_around(w, objective, state), state)
        trial = self._search(w, objective, state)
        if trial is None and state.carries["n_pairs"]:
            # The pairs mislead here: start a new history from the steepest descent.
            state.carries["n_pairs"] = 0.0
            trial = self._search(w, objective, state)
        if trial is not None:
            self._move(w, trial, state)
        value, optimality = state.carries["value"], self._look_around(w, objective, state)
        if trial is None:
            return Iteration(value, optimality, progressed=False)
        return self._report(w, state, value, optimality)

    def precondition(self, state: OptimizerState, curvature: Any, terms: PenaltyTerms) -> None:
        """Let steps along each parameter be in units of how far it has to go, L2 included."""
        curvature[: terms.n_penalised] += terms.l2
        super().precondition(state, curvature, terms)

    def _init_slots(
        self, w: Any, batch_size: int = 1, n_penalised: int | None = None
    ) -> dict[str, Any]:
        return {"gradient": device_of(w).xp.zeros_like(w)}

    def _begin(self, w: Any, loss: ValueAndGrad, state: OptimizerState) -> None:
        super()._begin(w, loss, state)
        slots, shape = state.slots, (self.history_size, len(w))
        old = slots.get("steps")
        if old is None or old.shape != shape:
            # Pairs are rows; after the last one the next is the first again.
            slots.update({name: device_of(w).xp.zeros(shape, w.dtype) for name in _PAIRS})
            state.carries["n_pairs"] = 0.0

    def _look_around(self, w: Any, objective: _Objective, state: OptimizerState) -> float:
        """Keep the pseudo-gradient at `w`; return its largest entry."""
        slots = state.slots
        slots["pseudo_gradient"] = objective.pseudo_gradient(w, slots["gradient"])
        return max_norm(slots["pseudo_gradient"])

    def _search(self, w: Any, objective: _Objective, state: OptimizerState) -> _Trial | None:
        """Return the next point along the quasi-Newton direction, or None."""
        device, gradient = device_of(w), state.slots["pseudo_gradient"]
        norm = math.sqrt(max(device.dot(gradient, self._scaled(gradient, state)), 0.0))
        if not 0.0 < norm < math.inf:
            return None
        first_step = 1.0 if state.carries["n_pairs"] else min(1.0, 1.0 / norm)
        if not objective.has_l1:
            direction = -self._inverse_hessian_product(gradient, state)
            search = partial(_search_line, objective, w, gradient, direction)
        else:
            free = device.xp.flatnonzero((w != 0) | (gradient != 0))
            direction = -self._inverse_hessian_product(gradient[free], state, free)
            search = partial(_search_orthant, objective, w, free, gradient[free], direction)
        return search(state.carries["value"], first_step, self.max_line_search)

    def _inverse_hessian_product(self, vector: Any, state: OptimizerState, free: Any = None) -> Any:
        """Return H @ vector; with H of the `free` coefficients alone, if these are named."""
        device, scale = device_of(vector), state.slots.get("scale")
        n_pairs, capacity = int(state.carries["n_pairs"]), len(state.slots["steps"])
        n_kept = min(n_pairs, capacity)
        pairs = [state.slots[name][:n_kept] for name in _PAIRS]
        if free is not None:
            pairs = [device.xp.take(pair, free, axis=1) for pair in pairs]
            scale = None if scale is None else scale[free]
        first, product = (n_pairs - n_kept) % capacity, vector.copy()
        device.inverse_hessian_product(*pairs, first, n_kept, scale, product)
        return product

    def _move(self, w: Any, trial: _Trial, state: OptimizerState) -> None:
        """Move `w` to the trial, and remember the pair if it tells of positive curvature."""
        slots, carries = state.slots, state.carries
        step, change = trial.w - w, trial.gradient - slots["gradient"]
        if _is_trusted(step, change, slots.get("scale")):
            place = int(carries["n_pairs"]) % len(slots["steps"])
            for name, row in zip(_PAIRS, (step, change), strict=True):
                slots[name][place] = row
            carries["n_pairs"] += 1.0
        w[:] = trial.w
        slots["gradient"] = trial.gradient
        carries["value"] = trial.value
        state.step += 1


class _Trial(NamedTuple):
    """A point with the objective there and the gradient of the objective's smooth part."""

    w: Any
    value: float
    gradient: Any

    def slope(self, gradient: Any, direction: Any) -> float:
        """Return the slope along a direction; NaN where the objective is not finite."""
        if not math.isfinite(self.value):
            return math.nan
        return device_of(self.w).dot(gradient, direction)


class _Objective:
    """The loss with the penalty: its value, its smooth part's gradient, and its orthants."""

    def __init__(self, w: Any, value_and_grad: ValueAndGrad, terms: PenaltyTerms):
        self.value_and_grad = value_and_grad
        self.terms = terms
        self.rough = replace(terms, l2=0.0)
        self.has_l1 = terms.l1 > 0.0
        if self.has_l1:
            self.l1 = device_of(w).xp.zeros_like(w)
            self.l1[: terms.n_penalised] = terms.l1

    def __call__(self, w: Any, gradient: Any) -> float:
        value = float(self.value_and_grad(w, gradient))
        return value + self.terms.smooth_value_and_grad(w, gradient) + self.rough.value(w)

    def pseudo_gradient(self, w: Any, gradient: Any) -> Any:
        """Return the subgradient of least norm (Andrew and Gao, equation 4)."""
        if not self.has_l1:
            return gradient
        xp = device_of(w).xp
        at_zero = gradient - xp.clip(gradient, -self.l1, self.l1)
        return xp.where(w == 0, at_zero, gradient + self.l1 * xp.sign(w))


def _search_line(
    objective: _Objective,
    w: Any,
    gradient: Any,
    direction: Any,
    value: float,
    first_step: float,
    max_evaluations: int,
) -> _Trial | None:
    """Return a point on the line from `w` that satisfies the strong Wolfe conditions."""
    device = device_of(w)
    slope = device.dot(gradient, direction)
    if not slope < 0.0:
        return None
    trials: dict[float, _Trial] = {}

    def phi(step: float) -> tuple[float, float]:
        trials.clear()
        moved, gradient = w + step * direction, device.xp.empty_like(w)
        trial = trials[step] = _Trial(moved, objective(moved, gradient), gradient)
        return trial.value, trial.slope(gradient, direction)

    noise = rounding_level(value, w)
    step = strong_wolfe(phi, value, slope, first_step, noise=noise, max_evaluations=max_evaluations)
    if step == 0.0:
        return None
    if step not in trials:
        phi(step)
    return trials[step]


def _search_orthant(
    objective: _Objective,
    w: Any,
    free: Any,
    pseudo_gradient: Any,
    direction: Any,
    value: float,
    first_step: float,
    max_evaluations: int,
) -> _Trial | None:
    """Return a point of the orthant of `w` that decreases enough, by backtracking.

    The pseudo-gradient and the direction are those of the `free` coefficients; the others stay.
    """
    device = device_of(w)
    xp = device.xp
    noise = rounding_level(value, w)
    here, l1 = w[free], objective.l1[free]
    # The signs that the coefficients may take in one step (Andrew and Gao, equation 5).
    orthant = xp.where(here == 0, -xp.sign(pseudo_gradient), xp.sign(here))
    step = first_step
    for _ in range(max_evaluations):
        there = here + step * direction
        there[(l1 > 0) & (there * orthant <= 0)] = 0  # What has left the orthant (equation 6).
        moved, smooth_gradient = w.copy(), xp.empty_like(w)
        moved[free] = there
        trial = _Trial(moved, objective(moved, smooth_gradient), smooth_gradient)
        change = there - here
        origin = Point(0.0, value, device.dot(pseudo_gradient, change))
        # Within its orthant the objective is smooth, with this gradient.
        slope = trial.slope(smooth_gradient[free] + l1 * orthant, change)
        if origin.slope < 0.0 and decreases_enough(origin, Point(1.0, trial.value, slope), noise):
            return trial
        step *= 0.5 if math.isfinite(trial.value) else 0.1
    return None


def _is_trusted(step: Any, change: Any, scale: Any) -> bool:
    """Tell whether s'y is not too small beside the lengths of s and y to be told from rounding.

    Lengths are measured in units in which all coefficients are alike.
    """
    device = device_of(step)
    own = (step, change) if scale is None else (step / scale, change * scale)
    curvature, *squares = device.dots((step, change), (own[0], step), (own[1], change))
    lengths = math.prod(map(math.sqrt, squares))
    return curvature > float(device.xp.finfo(step.dtype).eps) * lengths
