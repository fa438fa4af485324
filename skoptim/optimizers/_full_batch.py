"""What the full-batch optimizers share: the report of an iteration, the end game, `minimize`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult

from skoptim._devices import device_of
from skoptim.optimizers._base import Optimizer, OptimizerState
from skoptim.penalties import PenaltyTerms, resolve_penalty

__all__ = ["FullBatchOptimizer", "Iteration", "ValueAndGrad"]

#: ``value_and_grad(w, grad_out) -> float`` on flat parameters: the loss, its gradient written out.
ValueAndGrad = Callable[[Any, Any], float]

_MESSAGES = (
    "Converged: the optimality measure is at most tol.",
    "Stopped: max_iter iterations were made before tol was reached.",
    "Stopped: no step improves the objective any more; tol may be below what the precision of w "
    "allows.",
)
CONVERGED, ITERATION_LIMIT, NO_PROGRESS = range(3)


class Iteration(NamedTuple):
    """What one outer iteration of a full-batch optimizer reports.

    Attributes
    ----------
    value : float
        The full objective after the step, penalty included.
    optimality : float
        Max-norm of the (pseudo-)gradient or of the gradient mapping there; 0 at a minimum.
    progressed : bool
        False when no step could be found, or when steps have long stopped improving anything.
    """

    value: float
    optimality: float
    progressed: bool


class FullBatchOptimizer(Optimizer):
    """Base of the optimizers that are given a loss to evaluate instead of a gradient."""

    #: Iterations without any improvement, beyond rounding, after which there is no progress.
    _patience: ClassVar[int] = 200

    def iterate(
        self, w: Any, value_and_grad: ValueAndGrad, state: OptimizerState, terms: PenaltyTerms
    ) -> Iteration:
        """Make one iteration in place.

        Parameters
        ----------
        w : array of shape (n_parameters,)
            The parameters, changed in place.
        value_and_grad : callable
            ``value_and_grad(w, grad_out) -> float``: the loss, with its gradient written into
            `grad_out`.
        state : OptimizerState
            From `init`, changed in place. It keeps the loss and the gradient at `w`, so that they
            are evaluated once; call `refresh` when anything else has changed them.
        terms : PenaltyTerms
            The penalty, its strength included.

        Returns
        -------
        iteration : Iteration

        Raises
        ------
        ValueError
            If this optimizer cannot honour the penalty.
        """
        raise NotImplementedError

    def precondition(self, state: OptimizerState, curvature: Any, terms: PenaltyTerms) -> None:
        """Let steps along each parameter be in units of how far it has to go.

        Parameters
        ----------
        state : OptimizerState
            Changed in place.
        curvature : array of shape (n_parameters,)
            About the diagonal of the Hessian of the loss; 0 where nothing is known. All that are
            in one group of the penalty have the same.
        terms : PenaltyTerms
            The penalty, its strength included.
        """
        limits = np.finfo(curvature.dtype)
        least, most = 1e3 * float(limits.tiny), 1e-3 * float(limits.max)
        xp = device_of(curvature).xp
        state.slots["scale"] = 1 / xp.where(curvature > 0, xp.clip(curvature, least, most), 1)

    def refresh(self, state: OptimizerState) -> None:
        """Forget the loss and the gradient at `w`, because `w`, the data or the penalty changed."""
        state.carries.pop("value", None)

    def step(self, w: Any, grad: Any, state: OptimizerState) -> None:
        """Take one step in place from a gradient; full-batch optimizers refuse (TypeError)."""
        if self.is_full_batch:
            raise TypeError(
                f"{self!r} needs the loss at several points for each step, not one gradient; "
                "call minimize(value_and_grad, w), or iterate."
            )
        super().step(w, grad, state)

    def minimize(
        self,
        value_and_grad: Callable[[Any], tuple[float, Any]],
        w: Any,
        *,
        penalty: Any = None,
        alpha: float = 1.0,
        max_iter: int = 1000,
        tol: float = 1e-5,
    ) -> OptimizeResult:
        """Minimise a function, plus a penalty, from `w` on; SciPy's conventions.

        Parameters
        ----------
        value_and_grad : callable
            ``value_and_grad(w) -> (value, gradient)``, as ``scipy.optimize.minimize`` takes with
            ``jac=True``; the gradient has the shape of `w`.
        w : array of any shape
            The starting point, NumPy or CuPy; it is not changed. Whole numbers become float64.
        penalty : object of `skoptim.penalties`, 'l1', 'l2' or None, default=None
            Acts on every entry of `w`; groups are its rows.
        alpha : float, default=1.0
            Strength of the penalty.
        max_iter : int, default=1000
            Most iterations to make.
        tol : float, default=1e-5
            Converged when the max-norm of the (pseudo-)gradient, or of the gradient mapping, is
            at most this.

        Returns
        -------
        result : scipy.optimize.OptimizeResult
            `x`, an array like `w`; `fun`, the objective there, penalty included; `jac`, the
            gradient of `value_and_grad` there; `optimality`, what `tol` is compared with; `nit`;
            `nfev`; `success`; `status` (0 converged, 1 `max_iter` reached, 2 no progress any
            more); `message`.

        Raises
        ------
        ValueError
            If a hyper-parameter or an argument is out of range, if this optimizer cannot honour
            the penalty, if the function is not finite at `w`, or if the gradient has another
            shape than `w`.
        """
        _check_stopping(max_iter, tol)
        if not self.is_full_batch:
            raise ValueError(
                f"minimize takes all of the loss at once: use {type(self).__name__}"
                "(full_batch=True)."
            )
        xp = device_of(w).xp
        x = xp.array(w, order="C")
        if x.dtype.kind != "f":
            x = x.astype(xp.float64)
        flat = x.reshape(-1)
        loss = _CountedLoss(value_and_grad, x.shape)
        terms = _terms_on_rows(resolve_penalty(penalty, alpha, None), x.shape)
        state = self.init(flat)
        status = ITERATION_LIMIT
        while status == ITERATION_LIMIT and state.step < max_iter:
            iteration = self.iterate(flat, loss, state, terms)
            if iteration.optimality <= tol:
                status = CONVERGED
            elif not iteration.progressed:
                status = NO_PROGRESS
        if not math.isfinite(iteration.value):
            raise ValueError(
                f"value_and_grad returns {iteration.value} at the starting point w; start where "
                "it is finite."
            )
        gradient = xp.empty_like(flat)
        loss(flat, gradient)
        return OptimizeResult(
            x=x,
            fun=iteration.value,
            jac=gradient.reshape(x.shape),
            optimality=iteration.optimality,
            nit=state.step,
            nfev=loss.n_calls,
            success=status == CONVERGED,
            status=status,
            message=_MESSAGES[status],
        )

    def _begin(self, w: Any, loss: ValueAndGrad, state: OptimizerState) -> None:
        """Evaluate at `w`, and start to watch for stagnation."""
        value = float(loss(w, state.slots["gradient"]))
        state.carries.update(
            value=value, best_value=math.inf, best_optimality=math.inf, stalled=0.0
        )

    def _scaled(self, gradient: Any, state: OptimizerState) -> Any:
        """Return a gradient as a step of size one along each parameter."""
        scale = state.slots.get("scale")
        return gradient if scale is None else gradient * scale

    def _note_optimality(self, optimality: float, state: OptimizerState) -> None:
        """Keep how far the first point was from a minimum: fits stop at `tol` times that.

        Of a warm start, too, if it is farther away: the very first point may be a minimum, as zero
        is under a strong L1.
        """
        carries = state.carries
        carries["first_optimality"] = max(carries.get("first_optimality", 0.0), optimality)

    def _report(self, w: Any, state: OptimizerState, value: float, optimality: float) -> Iteration:
        """Report a step made; it is no progress if all has been at rest for `_patience` steps.

        Near a minimum all values are equal up to rounding, while the optimality may still fall by
        orders of magnitude, not evenly: only when both have long been at rest nothing is left.
        """
        carries = state.carries
        lower = carries["best_value"] - value > rounding_level(value, w)
        if lower:
            carries["best_value"] = value
        if lower or optimality < carries["best_optimality"]:
            carries.update(best_optimality=optimality, stalled=0.0)
        else:
            carries["stalled"] += 1.0
        return Iteration(value, optimality, carries["stalled"] < self._patience)


class _CountedLoss:
    """A user's ``w -> (value, gradient)`` in the form that `iterate` takes, with a counter."""

    def __init__(self, value_and_grad: Callable, shape: tuple[int, ...]):
        self.value_and_grad = value_and_grad
        self.shape = shape
        self.n_calls = 0

    def __call__(self, flat: Any, grad_out: Any) -> float:
        self.n_calls += 1
        value, gradient = self.value_and_grad(flat.reshape(self.shape))
        gradient = device_of(flat).xp.asarray(gradient)
        if gradient.shape != self.shape:
            raise ValueError(
                f"value_and_grad returned a gradient of shape {gradient.shape} for w of shape "
                f"{self.shape}; return one entry for each entry of w."
            )
        grad_out[:] = gradient.reshape(-1)
        return float(value)


def _check_stopping(max_iter: int, tol: float) -> None:
    if not max_iter >= 1:
        raise ValueError(f"max_iter={max_iter!r} must be at least 1.")
    if not tol >= 0.0:
        raise ValueError(f"tol={tol!r} must be at least 0.")


def _terms_on_rows(terms: PenaltyTerms, shape: tuple[int, ...]) -> PenaltyTerms:
    """Return the terms with one group for each row of an array of this shape."""
    n_groups = shape[0] if shape else 1
    return replace(terms, n_groups=n_groups, group_size=math.prod(shape) // max(n_groups, 1))


def max_norm(x: Any) -> float:
    """Return the largest absolute entry of `x`; 0.0 if it has none."""
    return float(abs(x).max()) if x.size else 0.0


def rounding_level(value: float, w: Any) -> float:
    """Return how far values near `value`, computed in the precision of `w`, may differ by chance.

    64 units in the last place, which allow for the rounding of sums over samples.
    """
    return 64.0 * float(device_of(w).xp.finfo(w.dtype).eps) * abs(value)
