"""Proximal gradient descent: the stochastic step, and ISTA and FISTA over all samples."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from skoptim._devices import device_of
from skoptim.optimizers._base import OptimizerState
from skoptim.optimizers._full_batch import (
    FullBatchOptimizer,
    Iteration,
    ValueAndGrad,
    max_norm,
    rounding_level,
)
from skoptim.penalties import PenaltyTerms

__all__ = ["ProximalGradient"]

#: The step size grows between iterations by at least the one and at most the other factor.
GROWTH = (1.02, 10.0)
#: After a failure it shrinks by a factor in this range.
SHRINKAGE = (0.1, 0.5)
MAX_BACKTRACKS = 60


class ProximalGradient(FullBatchOptimizer):
    r"""Gradient step on the loss, then the exact minimiser of penalty plus distance.

    .. math:: w_{k+1} = \mathrm{prox}_{\eta R}(v_k - \eta \nabla f(v_k)), \qquad
        \mathrm{prox}_{\eta R}(u) = \arg\min_w R(w) + \tfrac{1}{2 \eta} \|w - u\|^2

    With ``full_batch=True`` the loss is that of all samples, the step size :math:`\eta` is found
    by backtracking from `learning_rate`, and with `acceleration` (FISTA)

    .. math:: v_k = w_k + \frac{t_{k-1} - 1}{t_k} (w_k - w_{k-1}), \qquad
        t_{k+1} = \tfrac12 \Big(1 + \sqrt{1 + 4 t_k^2}\Big), \quad t_1 = 1;

    else :math:`v_k = w_k` (ISTA). With ``full_batch=False`` it is stochastic gradient descent on
    mini-batches with :math:`v_k = w_k` and :math:`\eta` the learning rate.

    Parameters
    ----------
    learning_rate : float or schedule, default=0.01
        The step size; with ``full_batch=True`` only where the search for it starts: a number.
    full_batch : bool, default=False
        Whether each step is given the loss of all samples.
    acceleration : bool, default=True
        FISTA rather than ISTA. Without effect when ``full_batch=False``.
    l2 : float, default=0.0
        Strength of L2 added to the gradient, ``g += l2 * w``. Like the following three, for
        ``full_batch=False`` only.
    weight_decay : float, default=0.0
        Decoupled decay, ``w *= 1 - learning_rate * weight_decay`` before the step.
    clip_norm, clip_value : float or None, default=None
        Bounds on the norm of the whole gradient of the loss, and on each entry of it.

    Notes
    -----
    The penalty (L1, L2, elastic net, groups, non-negativity, box) enters by its prox alone:
    zeros are exact and constraints hold exactly after every step. Intercepts carry none.

    Over all samples, in linear models, each coefficient has a step size of its own: the one that
    is searched for times :math:`D_j`, that of :class:`LBFGS` without :math:`\lambda_2`, which is
    left to the prox; distances above are then those of :math:`w_j / \sqrt{D_j}`. All outputs of a
    feature share one, as groups do. Under L1 or groups on large data the estimators hand over the
    columns alone that the penalty does not hold at zero, in rounds that each begin with a look at
    all.

    A step size is accepted when the quadratic model with curvature
    :math:`1 / \eta` lies above the loss at the new point. It is tried larger again in each
    iteration, the more so the flatter the loss was along the last step; a poor `learning_rate`
    thus costs a few evaluations, and steps are long where the loss is flat. The momentum is reset
    whenever it points uphill. Where losses differ by rounding alone, the gradients decide. The
    measure of optimality is the gradient mapping,
    :math:`(w - \mathrm{prox}_{\eta R}(w - \eta \nabla f(w))) / \eta`, at the point returned.

    SciPy, torch, Keras and optax have no such optimizer (optax has only the projections);
    TensorFlow 1 had ``ProximalGradientDescentOptimizer``, the stochastic form with L1 and L2.
    Other codes keep or only shrink the step size and weigh the momentum by
    :math:`k / (k + 3)`, which grows alike.

    Use it over all samples for convex losses with groups or constraints, or to be sure of an
    exact minimum. Do not use it there for smooth or L1 problems that are ill-conditioned, where
    :class:`LBFGS` needs fewer passes; nor expect much of the stochastic form beyond `SGD`: it
    needs the same tuning.

    References
    ----------
    .. [1] A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear
       inverse problems", SIAM Journal on Imaging Sciences 2, 2009, equations 4.1 to 4.3.
    .. [2] B. O'Donoghue and E. Candès, "Adaptive restart for accelerated gradient schemes",
       Foundations of Computational Mathematics 15, 2015, section 3: the gradient scheme.
    .. [3] S. Becker, E. Candès and M. Grant, "Templates for convex cone problems with applications
       to sparse signal recovery", Mathematical Programming Computation 3, 2011, section 5.3: step
       sizes that grow again, and the test that rounding does not spoil.
    .. [4] N. Parikh and S. Boyd, "Proximal algorithms", Foundations and Trends in Optimization 1,
       2014, sections 4.2 and 4.3.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import ProximalGradient
    >>> from skoptim.penalties import NonNegative
    >>> A, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([4.0, -3.0])
    >>> def least_squares(w):
    ...     residual = A @ w - b
    ...     return 0.5 * residual @ residual, A.T @ residual
    >>> optimizer = ProximalGradient(full_batch=True)
    >>> optimizer.minimize(least_squares, np.zeros(2), penalty=NonNegative()).x.round(4)
    array([1., 0.])
    """

    _parameter_constraints = {
        **FullBatchOptimizer._parameter_constraints,
        "full_batch": ["boolean"],
        "acceleration": ["boolean"],
    }

    def __init__(
        self,
        learning_rate: Any = 0.01,
        full_batch: bool = False,
        acceleration: bool = True,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.full_batch = full_batch
        self.acceleration = acceleration
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule of the stochastic step."""
        return "sgd"

    @property
    def is_full_batch(self) -> bool:
        """Whether a step needs the loss and gradient over all samples."""
        return bool(self.full_batch)

    def iterate(
        self, w: Any, value_and_grad: ValueAndGrad, state: OptimizerState, terms: PenaltyTerms
    ) -> Iteration:
        """Make one iteration in place; see the base class."""
        carries = state.carries
        if "value" not in carries:
            terms.prox(w, 0.0)  # Moves what is outside of the constraints to their boundary.
            self._begin(w, value_and_grad, state)
            carries.update(t=1.0, momentum=0.0)
            carries.setdefault("step_size", float(self.learning_rate))
            self._note_optimality(self._mapping_norm(w, state, terms), state)
        start = self._extrapolate(w, value_and_grad, state)
        reached = self._descend(start, value_and_grad, state, terms)
        if reached is not None:
            self._move(w, start, reached, state)
        value = carries["value"] + terms.value(w)
        optimality = self._mapping_norm(w, state, terms)
        if reached is None:
            return Iteration(value, optimality, progressed=False)
        return self._report(w, state, value, optimality)

    def _validate(self, dtype: Any) -> None:
        super()._validate(dtype)
        if not self.full_batch:
            return
        if callable(self.learning_rate):
            raise ValueError(
                f"learning_rate={self.learning_rate!r} must be a number when full_batch=True: "
                "backtracking takes the place of a schedule."
            )
        for name in ("l2", "weight_decay", "clip_norm", "clip_value"):
            off = getattr(FullBatchOptimizer, name)
            if getattr(self, name) != off:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for full_batch=False only; leave it at "
                    f"{off}, and shrink coefficients with the penalty."
                )

    def _init_slots(
        self, w: Any, batch_size: int = 1, n_penalised: int | None = None
    ) -> dict[str, Any]:
        if not self.full_batch:
            return super()._init_slots(w, batch_size, n_penalised)
        xp = device_of(w).xp
        return {"gradient": xp.zeros_like(w), "movement": xp.zeros_like(w)}

    def _extrapolate(self, w: Any, value_and_grad: ValueAndGrad, state: OptimizerState) -> _Point:
        """Return the point to step from: `w`, moved on with the momentum where that is finite."""
        carries, slots = state.carries, state.slots
        if carries["momentum"] > 0.0:
            start = _evaluate(w + carries["momentum"] * slots["movement"], value_and_grad)
            if math.isfinite(start.value):
                return start
        return _Point(w, carries["value"], slots["gradient"])

    def _descend(
        self,
        start: _Point,
        value_and_grad: ValueAndGrad,
        state: OptimizerState,
        terms: PenaltyTerms,
    ) -> _Point | None:
        """Return the proximal step from `start`, at a step size found by backtracking, or None."""
        carries = state.carries
        step_size = carries["step_size"] * carries.get("growth", 1.0)
        for _ in range(MAX_BACKTRACKS):
            reached = _evaluate(self._prox_step(start, step_size, state, terms), value_and_grad)
            curvature = self._relative_curvature(start, reached, step_size, state)
            if curvature <= 1.0:
                wanted = 0.5 / curvature if curvature > 0.0 else math.inf
                least = GROWTH[0] if curvature < 1.0 else 1.0
                carries.update(step_size=step_size, growth=min(max(wanted, least), GROWTH[1]))
                return reached
            wanted = 0.9 / curvature if curvature < math.inf else 0.0
            step_size *= min(max(wanted, SHRINKAGE[0]), SHRINKAGE[1])
        return None

    def _move(self, w: Any, start: _Point, reached: _Point, state: OptimizerState) -> None:
        """Move `w` to the point reached, and set the momentum of the next iteration."""
        carries, slots = state.carries, state.slots
        movement = reached.w - w
        uphill = self._product(start.w - reached.w, movement, state) > 0.0
        t = 1.0 if uphill else carries["t"]
        carries["t"] = 1.0 if uphill else 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t))
        carries["momentum"] = (t - 1.0) / carries["t"] if self.acceleration else 0.0
        w[:] = reached.w
        slots.update(gradient=reached.gradient, movement=movement)
        carries["value"] = reached.value
        state.step += 1

    # Lengths are those of w / sqrt(scale), where there is a scale.

    def _product(self, a: Any, b: Any, state: OptimizerState) -> float:
        scale = state.slots.get("scale")
        return device_of(a).dot(a if scale is None else a / scale, b)

    def _prox_step(
        self, start: _Point, step_size: float, state: OptimizerState, terms: PenaltyTerms
    ) -> Any:
        """Return the proximal step from a point."""
        scale = state.slots.get("scale")
        step = step_size if scale is None else step_size * scale
        moved = start.w - step * start.gradient
        terms.prox(moved, step)
        return moved

    def _relative_curvature(
        self, start: _Point, reached: _Point, step_size: float, state: OptimizerState
    ) -> float:
        """Return the loss's curvature along a step over what the step size allows for.

        The curvature is ``2 (f(w) - f(v) - f'(v)(w - v)) / |w - v|^2``, and ``1 / step_size`` is
        allowed. Where that difference is lost in rounding, the gradients give it instead; for a
        quadratic the two are equal. Infinite where the loss is, 1 for no movement.
        """
        if not math.isfinite(reached.value):
            return math.inf
        device = device_of(start.w)
        change = reached.w - start.w
        squared_length = self._product(change, change, state)
        if squared_length == 0.0:
            return 1.0
        excess = reached.value - start.value - device.dot(start.gradient, change)
        if abs(excess) <= rounding_level(start.value, start.w):
            excess = 0.5 * device.dot(reached.gradient - start.gradient, change)
        return 2.0 * step_size * excess / squared_length

    def _mapping_norm(self, w: Any, state: OptimizerState, terms: PenaltyTerms) -> float:
        """Return the max-norm of the gradient mapping at `w`."""
        step_size, scale = state.carries["step_size"], state.slots.get("scale")
        here = _Point(w, state.carries["value"], state.slots["gradient"])
        mapping = (w - self._prox_step(here, step_size, state, terms)) / step_size
        return max_norm(mapping if scale is None else mapping / scale)


class _Point(NamedTuple):
    """A point with the loss and its gradient there, the penalty left out."""

    w: Any
    value: float
    gradient: Any


def _evaluate(w: Any, value_and_grad: ValueAndGrad) -> _Point:
    gradient = device_of(w).xp.empty_like(w)
    return _Point(w, float(value_and_grad(w, gradient)), gradient)
