"""The base of every optimizer: hyper-parameters here, state in `OptimizerState`, steps below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from skoptim._devices import device_of, is_cuda_array
from skoptim._native import core
from skoptim.penalties import PenaltyTerms
from skoptim.schedules import as_schedule

__all__ = ["Optimizer", "OptimizerState"]

POSITIVE = Interval(Real, 0, None, closed="neither")
NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
DECAY = Interval(Real, 0, 1, closed="left")
LEARNING_RATE: list[Any] = [POSITIVE, callable]

#: The columns that every row of prepared scalars starts with (`Common` in rules.hpp).
COMMON = (
    "learning_rate",
    "l1",
    "l2",
    "group_l1",
    "shrink",
    "clip_value",
    "lower",
    "upper",
    "average",
    "coupled_l2",
)


@cache
def compiled_rules() -> Mapping[str, Mapping[str, Any]]:
    """Return name -> slots, scalars and properties of the compiled rules."""
    return core.describe_rules()


@dataclass
class OptimizerState:
    """What an optimizer remembers between steps; kept by the fitted model, not by the optimizer.

    Attributes
    ----------
    step : int
        Number of steps taken.
    slots : dict of str to array (or list of arrays)
        Arrays like the parameters, by name.
    carries : dict of str to float
        Numbers carried from step to step.
    """

    step: int = 0
    slots: dict[str, Any] = field(default_factory=dict)
    carries: dict[str, float] = field(default_factory=dict)


# What a single step shares with all others.
_NO_VALUES = np.empty((1, 0))


@dataclass(frozen=True)
class Scalars:
    """The scalars of a block of steps, in float64: those of one step, and what varies.

    Attributes
    ----------
    n_steps : int
    row : ndarray of shape (n_scalars,)
        The `COMMON` ones, then the rule's own, of the first step.
    varying : tuple of int
        Which of them are not the same in all steps.
    values : ndarray of shape (n_steps, n_varying)
        These, step by step.
    """

    n_steps: int
    row: np.ndarray
    varying: tuple[int, ...]
    values: np.ndarray

    @classmethod
    def of(cls, n_steps: int, columns: Sequence[Any]) -> Scalars:
        """Return the scalars that are given column by column, as numbers or arrays of all steps."""
        if n_steps == 1:
            row = [c[0] if isinstance(c, np.ndarray) and c.ndim else c for c in columns]
            return cls(1, np.array(row, dtype=np.float64), (), _NO_VALUES)
        first: list[float] = []
        varying: list[int] = []
        for i, column in enumerate(columns):
            is_array = isinstance(column, np.ndarray) and column.ndim > 0
            first.append(column[0] if is_array else column)
            if is_array and column.strides != (0,):
                varying.append(i)
        values = np.empty((n_steps, len(varying)))
        for j, i in enumerate(varying):
            values[:, j] = columns[i]
        numbers = np.array(first, dtype=np.float64)
        return cls(n_steps, numbers, tuple(varying), values)

    def rows(self) -> np.ndarray:
        """Return a row for each step, shape (n_steps, n_scalars)."""
        if self.n_steps == 1:
            return self.row[None]
        rows = np.tile(self.row, (self.n_steps, 1))
        rows[:, list(self.varying)] = self.values
        return rows

    def total(self, name: str) -> float:
        """Return the sum of one of the `COMMON` scalars over all steps."""
        column = COMMON.index(name)
        if column in self.varying:
            return float(self.values[:, self.varying.index(column)].sum())
        return float(self.n_steps * self.row[column])

    def last(self, name: str) -> float:
        """Return one of the `COMMON` scalars of the last step."""
        column = COMMON.index(name)
        if column in self.varying:
            return float(self.values[-1, self.varying.index(column)])
        return float(self.row[column])

    def first(self, n_steps: int) -> Scalars:
        """Return the first steps alone."""
        return Scalars(n_steps, self.row, self.varying, self.values[:n_steps])


class Optimizer(BaseEstimator):
    """Base class of the optimizers, built in and your own.

    An optimizer holds hyper-parameters only. To write one, subclass, list the state arrays in
    `slots`, and write `update` in array code; it then works in every estimator, on dense and CSR
    data, on the CPU and the GPU.

    Attributes
    ----------
    slots : tuple of str
        Class attribute: names of the state arrays, each of the shape of the parameters, zero at
        first.
    l2 : float
        Strength of L2 added to the gradient, ``g += l2 * w``. Constructor argument of the built-in
        rules; 0 if a subclass has none.
    weight_decay : float
        Decoupled decay, ``w *= 1 - learning_rate * weight_decay`` before the rule.
    clip_norm, clip_value : float or None
        Bounds on the norm of the whole gradient of the loss, and on each entry of it; both act
        before `l2`.

    Notes
    -----
    A penalty of the estimator is a prox step after `update` (a soft threshold for L1), in the
    metric that `update` returns: return the step size that a unit of gradient is given,
    ``learning_rate / denominator``, as an array like `w`. Returning None means `learning_rate`,
    right for rules of the form ``w -= learning_rate * g``.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Optimizer
    >>> class SignSGD(Optimizer):
    ...     def __init__(self, learning_rate=0.1):
    ...         self.learning_rate = learning_rate
    ...     def update(self, xp, w, g, slots, scalars):
    ...         w -= scalars["learning_rate"] * xp.sign(g)
    >>> optimizer, w = SignSGD(), np.array([1.0, -2.0])
    >>> optimizer.step(w, np.array([5.0, -0.1]), optimizer.init(w))
    >>> w
    array([ 0.9, -1.9])
    """

    slots: ClassVar[tuple[str, ...]] = ()
    #: Whether one step size serves all coefficients, which group penalties need.
    uniform: ClassVar[bool] = False
    #: Whether rates are in units of the data, which the training loop then measures.
    has_units: ClassVar[bool] = False
    l2: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    _parameter_constraints: dict = {
        "learning_rate": LEARNING_RATE,
        "l2": [NOT_NEGATIVE],
        "weight_decay": [NOT_NEGATIVE],
        "clip_norm": [POSITIVE, None],
        "clip_value": [POSITIVE, None],
    }

    # What a subclass may say of itself.

    @property
    def rule(self) -> str | None:
        """Name of the compiled rule; None for an optimizer written in array code."""
        return None

    @property
    def is_full_batch(self) -> bool:
        """Whether a step needs the loss and gradient over all samples."""
        return False

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return what `update` needs besides the learning rate, for many steps at once.

        Parameters
        ----------
        steps : ndarray of int64 of shape (n_steps,)
            Step numbers, from 1.

        Returns
        -------
        scalars : dict of str to float or ndarray of shape (n_steps,)
            Evaluated in float64.
        """
        return {}

    def update(self, xp: Any, w: Any, g: Any, slots: Any, scalars: Any) -> Any:
        """Take one step in place, in array code.

        Parameters
        ----------
        xp : module
            numpy or cupy.
        w, g : array
            Parameters and gradient, of one shape; change `w` in place.
        slots : dict of str to array like w
            State arrays; change them in place.
        scalars : dict of str to float
            `learning_rate`, `step` (from 1), and what `scalars` adds.

        Returns
        -------
        step_size : float, array like w, or None
            The metric of non-smooth penalties; see Notes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define update(self, xp, w, g, slots, scalars)."
        )

    # Driving by hand.

    def init(
        self, w: Any, *, batch_size: int = 1, n_penalised: int | None = None
    ) -> OptimizerState:
        """Return the state before the first step.

        Parameters
        ----------
        w : array or list of arrays
            The parameters, float32 or float64, NumPy or CuPy.
        batch_size : int, default=1
            Samples whose mean gradient one step will be given.
        n_penalised : int or None, default=None
            Only the first so many entries along the first axis are coefficients, the rest are
            intercepts; None: all are coefficients.

        Returns
        -------
        state : OptimizerState

        Raises
        ------
        ValueError
            If a hyper-parameter is out of range; the message names it.
        """
        if isinstance(type(self).slots, str):
            raise ValueError(f"slots must be a tuple of names: slots = ({type(self).slots!r},).")
        for leaf in _leaves(w):
            if not hasattr(leaf, "dtype"):
                raise ValueError("w must be an array, or a list of arrays.")
            self._validate(leaf.dtype)
        if reserved := set(self.slot_names) & {"parameters", "average_sum", "unit"}:
            raise ValueError(f"slots: {sorted(reserved)} are names that the training loop uses.")
        states = [self._init_slots(leaf, batch_size, n_penalised) for leaf in _leaves(w)]
        if isinstance(w, Sequence):
            names = self.slot_names
            return OptimizerState(slots={name: [state[name] for state in states] for name in names})
        return OptimizerState(slots=states[0])

    def step(self, w: Any, grad: Any, state: OptimizerState) -> None:
        """Take one step in place.

        Parameters
        ----------
        w : array or list of arrays
            The parameters, changed in place.
        grad : array, scipy.sparse matrix, or list of them
            The gradient, of the shape of `w`. A sparse one is accepted by the rules that do nothing
            where the gradient is zero.
        state : OptimizerState
            From `init`, changed in place.

        Raises
        ------
        ValueError
            If the shapes differ.
        TypeError
            If the state is not from `init`, or the gradient is sparse and the rule moves parameters
            whose gradient is zero.
        """
        if not isinstance(state, OptimizerState) or not set(self.slot_names) <= set(state.slots):
            raise TypeError(
                f"state is not one of {type(self).__name__}: pass what its init(w) returned."
            )
        leaves = _leaves(w)
        gradients = _checked_gradients(leaves, _leaves(grad))
        if not self._rests_without_gradient and any(_is_sparse(g) for g in gradients):
            raise TypeError(
                f"grad is sparse, and {self!r} also moves parameters whose gradient is zero; "
                "pass grad.toarray()."
            )
        scale = self._clipping_factor(gradients)
        terms = PenaltyTerms()
        scalars = self.prepare(state, 1, terms)
        rows = scalars.rows()
        for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
            slots = state.slots
            if leaf is not w:
                slots = {name: slot[i] for name, slot in slots.items()}
            take_step = self._step_sparse if _is_sparse(gradient) else self._step_dense
            gradient = gradient * scale if scale != 1 else gradient
            take_step(leaf, gradient, slots, rows, state.step)
        self.advance(state, scalars, terms)

    # What the training loop uses.

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the state arrays in use with these hyper-parameters."""
        return compiled_rules()[self.rule]["slots"] if self.rule else tuple(type(self).slots)

    def learning_rates(self, steps: np.ndarray) -> np.ndarray:
        """Return the learning rate at each of the steps, before any adaptive division."""
        rate: Any = self._learning_rate
        if isinstance(rate, float) and 0 <= rate < np.inf:
            return _constant(rate, len(steps))
        rates = np.asarray(rate(steps) if callable(rate) else rate, dtype=np.float64)
        if rates.shape not in ((), steps.shape):
            problem = (
                f"rates of shape {rates.shape} for {len(steps)} steps; a schedule must return one "
                "rate for each step number."
            )
        elif not ((rates >= 0) & (rates < np.inf)).all():
            problem = (
                "a rate that is negative or not finite; schedules must return rates of at least 0."
            )
        else:
            return rates if rates.shape == steps.shape else np.broadcast_to(rates, steps.shape)
        raise ValueError(f"{self._rate_name}={rate!r} of {type(self).__name__} gives {problem}")

    def prepare(
        self,
        state: OptimizerState,
        n_steps: int,
        terms: PenaltyTerms,
        *,
        batch_size: int = 1,
        average: Any = 0.0,
    ) -> Scalars:
        """Return the scalars of the next steps.

        Parameters
        ----------
        state : OptimizerState
            Tells where the steps begin, and what rates are multiplied by; not changed.
        n_steps : int
        terms : PenaltyTerms
        batch_size : int
            Samples whose mean gradient one step is given.
        average : float or array of shape (n_steps,)
            Weight of each step in the averaged model.

        Returns
        -------
        scalars : Scalars
        """
        steps = np.arange(state.step + 1, state.step + n_steps + 1, dtype=np.int64)
        rates: Any = self.learning_rates(steps)
        if rates.strides == (0,):
            rates = float(rates[0])  # What is the same in all steps is computed once.
        rates = rates * rate_scale(state)
        l1, l2 = self._strengths(steps, rates, state, terms, batch_size)
        own = self._own_scalars(steps, rates, state)
        if self.rule:
            own = {name: own[name] for name in compiled_rules()[self.rule]["scalars"]}
        common = (
            rates,
            l1,
            l2,
            terms.group_l1,
            1.0 - rates * self.weight_decay if self.weight_decay else 1.0,
            np.inf if self.clip_value is None else self.clip_value,
            terms.lower,
            terms.upper,
            average,
            self.l2 if self._couples_l2 else 0.0,
        )
        return Scalars.of(n_steps, (*common, *own.values()))

    def last_row(self, state: OptimizerState, terms: PenaltyTerms, batch_size: int) -> np.ndarray:
        """Return the scalars that were in force when the weights got their values."""
        row = self.prepare(state, 1, terms, batch_size=batch_size).row
        if state.step == 0:
            # Weights may start outside of their bounds.
            row[COMMON.index("lower")], row[COMMON.index("upper")] = -np.inf, np.inf
        return row

    def advance(self, state: OptimizerState, scalars: Scalars, terms: PenaltyTerms) -> None:
        """Count the steps with these scalars as taken."""
        state.step += scalars.n_steps

    def check_penalty(self, terms: PenaltyTerms) -> None:
        """Raise ValueError if this optimizer cannot honour the penalty."""
        uniform = compiled_rules()[self.rule]["uniform"] if self.rule else self.uniform
        if terms.group_l1 and not uniform:
            raise ValueError(
                f"penalty=GroupL1() needs one step size for all coefficients, and "
                f"{type(self).__name__} has one for each; use optimizer=SGD() or "
                "ProximalGradient()."
            )

    # Hooks of the families.

    #: The constructor's name of the learning rate.
    _rate_name: ClassVar[str] = "learning_rate"

    @property
    def _learning_rate(self) -> Any:
        return getattr(self, self._rate_name)

    def _validate(self, dtype: Any) -> None:
        """Raise ValueError naming the first hyper-parameter that is out of range."""
        name = type(self).__name__
        if self.rule is not None and type(self).update is not Optimizer.update:
            raise ValueError(
                f"{name} defines update, but inherits the compiled rule {self.rule!r}, which would "
                "be used instead: subclass Optimizer to write a rule of your own."
            )
        if not self.is_full_batch and not hasattr(self, self._rate_name):
            raise ValueError(
                f"{name} needs an attribute {self._rate_name}, a number or a schedule: set it in "
                "__init__, which should take it."
            )
        constraints = {
            name: self._parameter_constraints[name]
            for name in self.get_params(deep=False)
            if name in self._parameter_constraints
        }
        validate_parameter_constraints(constraints, self.get_params(deep=False), caller_name=name)
        if not self.is_full_batch:
            as_schedule(self._learning_rate)
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"w has dtype {dtype}; optimizers work in float32 or float64.")
        epsilon = getattr(self, "epsilon", None)
        if epsilon is not None and dtype.type(epsilon) < np.finfo(dtype).tiny:
            raise ValueError(
                f"epsilon={epsilon} of {name} counts as zero in {dtype}; "
                "use a larger epsilon or float64 data."
            )

    def _init_slots(
        self, w: Any, batch_size: int = 1, n_penalised: int | None = None
    ) -> dict[str, Any]:
        xp = device_of(w).xp
        return {name: xp.zeros(w.shape, dtype=w.dtype) for name in self.slot_names}

    #: Whether weights are a function of the state, which has to `adopt` those set from outside.
    stores_weights_in_state: ClassVar[bool] = False

    def adopt(self, w: Any, state: OptimizerState, terms: PenaltyTerms, batch_size: int) -> None:
        """Bring the state in line with flat parameters that were set from outside."""

    def _own_scalars(self, steps: np.ndarray, rates: Any, state: OptimizerState) -> dict[str, Any]:
        """Return the scalars besides the common ones, given the rates in force (or the rate)."""
        return self.scalars(steps)

    def _strengths(
        self,
        steps: np.ndarray,
        rates: Any,
        state: OptimizerState,
        terms: PenaltyTerms,
        batch_size: int,
    ) -> tuple:
        """Return the L1 and L2 strengths at each of the steps with these rates (or this rate)."""
        return terms.l1, terms.l2

    #: Whether `l2` is added to the gradient; FTRL's is part of its formula.
    _couples_l2: ClassVar[bool] = True

    @property
    def _rests_without_gradient(self) -> bool:
        """Whether a zero gradient changes neither parameters nor state."""
        return False

    # One step of one array.

    def _clipping_factor(self, gradients: Sequence[Any]) -> float:
        if self.clip_norm is None:
            return 1.0
        arrays = [g.data if _is_sparse(g) else g for g in gradients]
        norm = sum(device_of(a).squared_norm(a) for a in arrays) ** 0.5
        return min(1.0, self.clip_norm / norm) if norm > 0 else 1.0

    def _step_dense(
        self, w: Any, g: Any, slots: dict[str, Any], rows: np.ndarray, step: int
    ) -> None:
        device = device_of(w)
        flat_w = device.asarray(w).reshape(-1)
        flat_slots = {name: device.asarray(slot).reshape(-1) for name, slot in slots.items()}
        updater = bind_updater(
            self,
            device,
            flat_w,
            flat_slots,
            None,
            rows,
            first_step=step,
            n_penalised=len(flat_w),
        )
        # Array code may change its gradient, which is the caller's.
        updater.apply(g.reshape(-1) if self.rule else g.ravel().copy(), 0)
        # Strided arrays were stepped in a contiguous copy.
        for array, flat in ((w, flat_w), *((slots[name], flat_slots[name]) for name in slots)):
            if not array.flags.c_contiguous:
                array[...] = flat.reshape(array.shape)

    def _step_sparse(
        self, w: Any, g: Any, slots: dict[str, Any], rows: np.ndarray, step: int
    ) -> None:
        place = g.coords
        part = w[place]
        part_slots = {name: slot[place] for name, slot in slots.items()}
        self._step_dense(part, g.data, part_slots, rows, step)
        w[place] = part
        for name, slot in slots.items():
            slot[place] = part_slots[name]


class ArrayUpdater:
    """The updater of an optimizer written in array code: same calls as a compiled one."""

    def __init__(
        self,
        optimizer: Optimizer,
        device: Any,
        w: Any,
        slots: dict[str, Any],
        average: Any,
        rows: np.ndarray,
        terms: PenaltyTerms,
        first_step: int,
    ):
        self.optimizer, self.xp = optimizer, device.xp
        self.w, self.slots, self.average = w, slots, average
        self.rows, self.first_step, self.terms = rows, first_step, terms
        self.own_names = tuple(optimizer.scalars(np.array([1], dtype=np.int64)))

    def apply(self, g: Any, step: int) -> None:
        """Take step number `step` of the block with the flat gradient `g`."""
        row = self.rows[step].tolist()
        common = dict(zip(COMMON, row, strict=False))
        scalars = {"learning_rate": common["learning_rate"], "step": self.first_step + step + 1}
        scalars.update(zip(self.own_names, row[len(COMMON) :], strict=True))
        w, penalised = self.w, slice(self.terms.n_penalised)
        if np.isfinite(common["clip_value"]):
            g = self.xp.clip(g, -common["clip_value"], common["clip_value"])
        if common["coupled_l2"]:
            g[penalised] += common["coupled_l2"] * w[penalised]
        if common["shrink"] != 1:
            w[penalised] *= common["shrink"]
        given = dict(self.slots)
        step_size = self.optimizer.update(self.xp, w, g, self.slots, scalars)
        if rebound := [name for name, slot in given.items() if self.slots.get(name) is not slot]:
            raise ValueError(
                f"{type(self.optimizer).__name__}.update put another array into slots"
                f"[{rebound[0]!r}], which would be lost: write slots[{rebound[0]!r}][...] = value."
            )
        if step_size is not None and (self.xp.asarray(step_size) < 0).any():
            raise ValueError(
                f"{type(self.optimizer).__name__}.update returned a negative step size: it must "
                "change w in place, and return None or the step size of the penalty's prox."
            )
        if self.terms.has_prox:
            step_size = common["learning_rate"] if step_size is None else step_size
            self.terms.prox(w, step_size)
        if self.average is not None and common["average"]:
            self.average += common["average"] * w


def bind_updater(
    optimizer: Optimizer,
    device: Any,
    w: Any,
    slots: dict[str, Any],
    average: Any,
    rows: np.ndarray,
    *,
    terms: PenaltyTerms | None = None,
    first_step: int = 0,
    n_penalised: int,
    n_columns: int = 0,
    width: int = 0,
    sparse: bool = False,
    unit: Any = None,
) -> Any:
    """Bind an optimizer to flat parameters and a block of prepared scalars."""
    if optimizer.rule is None:
        terms = terms or PenaltyTerms(n_penalised=n_penalised)
        return ArrayUpdater(optimizer, device, w, slots, average, rows, terms, first_step)
    return device.make_updater(
        optimizer.rule,
        w,
        [slots[name] for name in optimizer.slot_names],
        average,
        rows,
        n_penalised=n_penalised,
        n_columns=n_columns,
        width=width,
        sparse=sparse,
        unit=unit,
    )


@lru_cache(maxsize=64)
def _constant(value: float, n: int) -> np.ndarray:
    return np.broadcast_to(np.float64(value), (n,))


def effective_unit(state: OptimizerState) -> Any:
    """Return the units of the columns, 1 for those without a value so far; None without units."""
    unit = state.slots.get("unit")
    return None if unit is None else unit + (unit == 0)


def rate_scale(state: OptimizerState) -> float:
    """Return what all rates are multiplied by: adaptive divisions, and units of the data."""
    carries = state.carries
    return carries.get("learning_rate_scale", 1.0) * carries.get("rate_unit", 1.0)


def _leaves(arrays: Any) -> list[Any]:
    if isinstance(arrays, np.ndarray) or not isinstance(arrays, Sequence):
        return [arrays]
    return list(arrays)


def _checked_gradients(leaves: list[Any], gradients: list[Any]) -> list[Any]:
    """Return gradients of the dtype of the parameters: contiguous, or COO without duplicates."""
    if len(leaves) != len(gradients):
        raise ValueError(f"grad: {len(gradients)} arrays for {len(leaves)} parameter arrays.")
    checked = []
    for w, g in zip(leaves, gradients, strict=True):
        if not getattr(w.flags, "writeable", True):  # CuPy's arrays are always writeable.
            raise ValueError("w is read-only, and a step changes it in place; pass a copy.")
        if getattr(g, "shape", None) != w.shape:
            raise ValueError(f"grad has shape {np.shape(g)}, w has shape {w.shape}.")
        if g.dtype.kind not in "fiub":
            raise ValueError(f"grad has dtype {g.dtype}; expected real numbers.")
        if _is_sparse(g):
            # Converting to CSR sums duplicate entries.
            # (A sparse array, which has coordinates in one dimension as in two.)
            checked.append(sp.coo_array(g.astype(w.dtype).tocsr()))
        else:
            checked.append(device_of(w).asarray(g, dtype=w.dtype))
    return checked


def _is_sparse(array: Any) -> bool:
    if type(array) is np.ndarray:  # The usual case, in less than a microsecond.
        return False
    return sp.issparse(array) or (is_cuda_array(array) and hasattr(array, "tocoo"))
