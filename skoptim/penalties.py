"""Penalties and constraints on the coefficients; an estimator multiplies them by its `alpha`.

None of them ever touches an intercept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval

from skoptim._devices import device_of

__all__ = ["L1", "L2", "Box", "ElasticNet", "GroupL1", "NonNegative", "Penalty", "PenaltyTerms"]


@dataclass(frozen=True)
class PenaltyTerms:
    r"""What a penalty amounts to on a flat parameter array, `alpha` included.

    .. math:: R(w) = l_1 \|w\|_1 + \tfrac{l_2}{2} \|w\|_2^2 + g \sum_j \|w_j\|_2
              + \text{indicator of } [lower, upper]

    over the first `n_penalised` entries; the groups :math:`w_j` are the first `n_groups` runs of
    `group_size` entries.
    """

    l1: float = 0.0
    l2: float = 0.0
    group_l1: float = 0.0
    lower: float = -np.inf
    upper: float = np.inf
    n_penalised: int | None = None
    group_size: int = 1
    n_groups: int = 0

    @property
    def is_constrained(self) -> bool:
        """Whether the coefficients are confined to an interval."""
        return self.lower > -np.inf or self.upper < np.inf

    @property
    def has_prox(self) -> bool:
        """Whether the prox does anything."""
        return bool(self.l1 or self.l2 or self.group_l1) or self.is_constrained

    def scaled(self, alpha: float) -> PenaltyTerms:
        """Return the terms with their strengths multiplied by `alpha`."""
        return replace(self, l1=alpha * self.l1, l2=alpha * self.l2, group_l1=alpha * self.group_l1)

    def value(self, w: Any) -> float:
        """Return R at `w`, the constraints left out."""
        penalised = w[: self.n_penalised]
        total = 0.0
        if self.l1:
            total += self.l1 * float(abs(penalised).sum(dtype=np.float64))
        if self.l2:
            total += 0.5 * self.l2 * device_of(w).squared_norm(penalised)
        if self.group_l1:
            groups = w[: self.n_groups * self.group_size].reshape(self.n_groups, self.group_size)
            total += self.group_l1 * float(((groups**2).sum(axis=1) ** 0.5).sum(dtype=np.float64))
        return total

    def smooth_value_and_grad(self, w: Any, grad: Any) -> float:
        """Add the L2 term's gradient to `grad` in place and return the L2 term's value."""
        if not self.l2:
            return 0.0
        penalised = w[: self.n_penalised]
        grad[: self.n_penalised] += self.l2 * penalised
        return 0.5 * self.l2 * device_of(w).squared_norm(penalised)

    def prox(self, w: Any, step: Any) -> None:
        """Replace `w` by the prox of ``step * R`` at `w`.

        `step` is a number, or one for each entry that all entries of a group share.
        """
        device = device_of(w)
        penalised = w[: self.n_penalised]
        if not penalised.size:
            return
        steps = device.xp.broadcast_to(
            device.xp.asarray(step, dtype=w.dtype), np.shape(step) or (1,)
        )
        steps = device.xp.ascontiguousarray(steps[: len(penalised)])
        if self.l1 or self.l2 or self.is_constrained:
            device.prox(penalised, steps, self.l1, self.l2, self.lower, self.upper)
        if self.group_l1:
            of_groups = steps if len(steps) == 1 else steps[:: self.group_size][: self.n_groups]
            thresholds = of_groups * self.group_l1 / (1 + of_groups * self.l2)
            device.prox_groups(penalised, self.n_groups, self.group_size, thresholds)


class Penalty(BaseEstimator):
    """Base of the penalties: hyper-parameters that turn into `PenaltyTerms`."""

    _parameter_constraints: dict = {}

    def terms(self) -> PenaltyTerms:
        """Return the penalty's terms for ``alpha=1``.

        Raises
        ------
        ValueError
            If a hyper-parameter is out of range; the message names it.
        """
        if self._parameter_constraints:  # To validate nothing would take longer than all the rest.
            self._validate_params()
        return self._terms()

    def _terms(self) -> PenaltyTerms:
        raise NotImplementedError(
            f"{type(self).__name__} must define terms(self), which returns a PenaltyTerms: "
            "penalties are made of L1, L2, group L1 and bounds."
        )

    def value(self, w: Any) -> float:
        """Return R(w) for coefficients `w` of shape (n_features,) or (n_features, n_outputs)."""
        return self._terms_for(w).value(np.ascontiguousarray(w).ravel())

    def prox(self, w: Any, step: float) -> np.ndarray:
        """Return the prox of ``step * R`` at `w`, an array of the shape of `w`."""
        flat = np.array(w, dtype=np.result_type(np.asarray(w).dtype, np.float32)).ravel()
        self._terms_for(w).prox(flat, step)
        return flat.reshape(np.shape(w))

    def _terms_for(self, w: Any) -> PenaltyTerms:
        shape = np.shape(w)
        n_columns = shape[0] if shape else 1
        size = int(np.prod(shape))
        return replace(self.terms(), n_groups=n_columns, group_size=size // max(n_columns, 1))


class L1(Penalty):
    r"""Sum of absolute values, :math:`\|w\|_1`: drives coefficients to exactly zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.penalties import L1
    >>> L1().prox(np.array([3.0, -0.5, 1.0]), step=1.0)
    array([2., 0., 0.])
    """

    def _terms(self) -> PenaltyTerms:
        return PenaltyTerms(l1=1.0)


class L2(Penalty):
    r"""Half the squared norm, :math:`\tfrac12 \|w\|_2^2`.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.penalties import L2
    >>> L2().value(np.array([3.0, 4.0]))
    12.5
    """

    def _terms(self) -> PenaltyTerms:
        return PenaltyTerms(l2=1.0)


class ElasticNet(Penalty):
    r"""Mixture :math:`\rho \|w\|_1 + \tfrac{1 - \rho}{2} \|w\|_2^2`.

    Parameters
    ----------
    l1_ratio : float, default=0.15
        The share :math:`\rho` of L1, in [0, 1].
    """

    _parameter_constraints = {"l1_ratio": [Interval(Real, 0, 1, closed="both")]}

    def __init__(self, l1_ratio: float = 0.15):
        self.l1_ratio = l1_ratio

    def _terms(self) -> PenaltyTerms:
        return PenaltyTerms(l1=self.l1_ratio, l2=1 - self.l1_ratio)


class GroupL1(Penalty):
    r"""Sum of the norms of the rows of the first layer, :math:`\sum_j \|w_j\|_2`.

    Row j holds the weights that leave feature j, so that features are kept or dropped as a whole
    (Yuan and Lin 2006, without the weights by group size, as in scikit-learn's `MultiTaskLasso`).
    It needs an optimizer with one step size for all coefficients: `SGD` or `ProximalGradient`.
    """

    def _terms(self) -> PenaltyTerms:
        return PenaltyTerms(group_l1=1.0)


class NonNegative(Penalty):
    """Constraint that every coefficient is at least zero; `alpha` has no effect on it."""

    def _terms(self) -> PenaltyTerms:
        return PenaltyTerms(lower=0.0)


class Box(Penalty):
    """Constraint that every coefficient lies in [lower, upper]; `alpha` has no effect on it.

    Parameters
    ----------
    lower, upper : float, default=-1.0, 1.0
        The bounds. Infinite for none on that side.
    """

    _parameter_constraints = {
        "lower": [Interval(Real, None, None, closed="both")],
        "upper": [Interval(Real, None, None, closed="both")],
    }

    def __init__(self, lower: float = -1.0, upper: float = 1.0):
        self.lower = lower
        self.upper = upper

    def _terms(self) -> PenaltyTerms:
        if not self.lower <= self.upper:
            raise ValueError(
                f"Box: lower={self.lower} must not exceed upper={self.upper}; swap them."
            )
        return PenaltyTerms(lower=float(self.lower), upper=float(self.upper))


def resolve_penalty(penalty: Any, alpha: float, l1_ratio: float | None) -> PenaltyTerms:
    """Return the terms of an estimator's `penalty`, `alpha` and `l1_ratio`."""
    if penalty is None:
        return PenaltyTerms()
    if isinstance(penalty, type) and issubclass(penalty, Penalty):
        raise ValueError(
            f"penalty must be an instance, got the class {penalty.__name__}; "
            f"write penalty={penalty.__name__}()."
        )
    if isinstance(penalty, Penalty):
        if type(penalty).prox is not Penalty.prox or type(penalty).value is not Penalty.value:
            raise ValueError(
                f"penalty={penalty!r} defines prox or value, which training does not call: define "
                "terms(self), which returns a PenaltyTerms."
            )
        return penalty.terms().scaled(alpha)
    if penalty == "elasticnet":
        if l1_ratio is None:
            raise ValueError(
                "l1_ratio must be a number in [0, 1] when penalty='elasticnet'; or pass "
                "penalty=ElasticNet(l1_ratio)."
            )
        return ElasticNet(l1_ratio).terms().scaled(alpha)
    if penalty in ("l1", "l2"):
        return (L1() if penalty == "l1" else L2()).terms().scaled(alpha)
    raise ValueError(
        f"penalty={penalty!r} is not known: use 'l2', 'l1', 'elasticnet', None, or an object of "
        "skoptim.penalties."
    )
