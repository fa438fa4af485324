"""CUDA primitives: matrix products by cuBLAS through CuPy, everything else our own kernels.

The kernels are the CPU's own formulas (`_native/*.hpp`) in CUDA loops (`_native/cuda/*.cu`),
compiled by NVRTC when one is first needed and cached on disk by CuPy. CuPy itself is imported when
first needed. Every sum runs in an order that depends on sizes alone, or in whole numbers, so that
results repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from skoptim._devices import cpu, cuda_blas, kernel_sources
from skoptim._devices.batches import Batches, ByColumns
from skoptim._devices.cuda_launch import (
    WARP_SIZE,
    aside,
    cupy,
    empty,
    join,
    launch,
    n_blocks,
    tile_size,
)
from skoptim._devices.cuda_recording import Recording
from skoptim._native import core

__all__ = ["Recording", "aside", "join"]

name = "cuda"
#: What batch_size="auto" means for a linear model: a step takes the same time from some tens of
#: samples up to a thousand, and with fewer an epoch teaches more (measured, docs/gpu.md).
LINEAR_BATCH_SIZE = 256

#: Up to so many outputs the terms of a sparse gradient are scattered, beyond they are sorted.
SCATTERED_WIDTH = 4

_ROWS_PER_CHUNK = 512  # of a column sum
_ROWS_PER_PART = 4096  # of a look at all of a dense matrix
_SAMPLED_ROWS = 256  # of which `observe` takes the mean norm, as on the CPU
_GROUP_L1 = 3  # the column of group_l1 in a row of prepared scalars
_ENTRIES_AT_ONCE = 4  # of a row in a thread, see for_entries in sparse.cuh
_PACK = 4  # numbers that a thread steps at once (two in float64), see Pack in grid.cuh
_MOST_CHUNKS = 65535  # of rows: the second dimension of a grid
#: Few blocks, as each begins with reading the scalars of the step (measured, docs/gpu.md).
_RULE_BLOCKS = 264
_ROWS_OF_A_BLOCK = 64  # of `scatter` in large batches, at 16 threads a row
_ROOM = 2**17  # threads that a large device runs at once, in blocks like those of `scatter`
_MOST_FREQUENT = 1024  # Frequent::most in sparse.cuh
_PRODUCTS_OF_A_PAIR = 3  # n_products in quasi_newton.cu
_NO_LIST = {"listed": None, "n_listed": None}


def __getattr__(attribute: str) -> Any:
    """Return `xp`, that is CuPy, without importing it any earlier."""
    if attribute == "xp":
        return cupy()
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def require_device() -> None:
    """Raise an error that says in one line what is missing, if anything is.

    Raises
    ------
    ImportError
        If CuPy is not installed.
    RuntimeError
        If no CUDA device is visible.
    """
    try:
        n_devices = cupy().cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        raise RuntimeError(f"{_NO_DEVICE} ({error})") from error
    if n_devices == 0:
        raise RuntimeError(_NO_DEVICE)


_NO_DEVICE = (
    'device="cuda": no CUDA device is visible; check the driver (nvidia-smi) and '
    'CUDA_VISIBLE_DEVICES, or use device="cpu".'
)


# Data.


class Matrix:
    """The rows that a fit reads, on the device: a dense array or a CSR matrix.

    Host data is moved once, in its own size and index type.

    Parameters
    ----------
    X : array or CSR matrix of shape (n_samples, n_features)
        NumPy, SciPy, CuPy or cupyx; float32 or float64. Column indices are checked here, once;
        kernels then trust them. Duplicate entries are summed in a copy.

    Raises
    ------
    ValueError
        If the index arrays of a CSR matrix do not describe a matrix of that shape.
    """

    def __init__(self, X: Any):
        self.is_sparse = hasattr(X, "indptr")
        self.shape: tuple[int, int] = X.shape
        self.dtype = X.dtype
        if not self.is_sparse:
            self.array = asarray(X)
            return
        if X.shape[1] > np.iinfo(np.int32).max:
            raise ValueError(f"X has {X.shape[1]} features; the GPU takes up to 2**31 - 1.")
        if sp.issparse(X):
            X = cpu.Matrix(X).array
        else:
            _check_indices(X)
            if not X.has_canonical_format:
                X = X.copy()
                X.sum_duplicates()
        self.array = X
        n_stored = int(X.indptr[-1])  # Its arrays may have room for more.
        self.data, self.indices = (
            asarray(X.data[:n_stored]),
            asarray(X.indices[:n_stored], np.int32),
        )
        self.indptr = asarray(X.indptr, np.int64)
        self._by_columns: ByColumns | None = None
        self._batches: Batches | None = None

    @property
    def n_stored(self) -> int:
        """Number of stored entries of a CSR matrix."""
        return len(self.data)

    def with_data(self, data: Any) -> Matrix:
        """Return a CSR matrix of the same places with other entries."""
        other = copy(self)
        other.data, other._by_columns, other._batches = data, None, None
        # What depends on the entries, or is changed in use.
        for name in ("bounds", "words"):
            vars(other).pop(name, None)
        return other

    def plan(self, rows: Any, first: int, n: int, batch_size: int, width: int) -> bool:
        """Sort the entries of rows[first:first + n] by batches; of consecutive rows when None.

        The lists take up to four times the memory of a float32 X, as much again while being made.
        They lie where the last ones lay, if there is room. Return whether they do not. For a few
        outputs (`width`) there is nothing to sort.
        """
        if width <= SCATTERED_WIDTH:
            return False
        if self._by_columns is None:
            self._by_columns = ByColumns.of(cupy(), self.data, self.indices, self.indptr)
        batches = Batches.of(cupy(), self._by_columns, rows, first, n, batch_size)
        before, self._batches = self._batches, None
        self._batches, moved = batches.moved_to(cupy(), before)
        return moved

    def batches(self, rows: Any, first: Any, n: int) -> tuple[Batches, Any]:
        """Return the lists that have the batch rows[first:first + n], and its number there."""
        found = self._batches
        if found is None or found.rows is not rows or not found.has(first, n):
            self.plan(rows, first, n, max(n, 1), SCATTERED_WIDTH + 1)
            found = self._batches
            assert found is not None
        return found, (first + -found.first) // found.batch_size

    @cached_property
    def bounds(self) -> Any:
        """The largest magnitude of each column's entries.

        For float32 one number, where they do not differ by more than a thousand. They decide
        about the units in which sums are taken as whole numbers.
        """
        xp = cupy()
        bounds = xp.zeros(self.shape[1], dtype=self.dtype)
        _scatter_max(bounds, self.indices, abs(self.data))
        largest = bounds.max() if bounds.size else xp.zeros((), dtype=self.dtype)
        smallest = xp.where(bounds > 0, bounds, largest).min() if bounds.size else largest
        alike = self.dtype == np.float32 and float(largest) <= 2**10 * float(smallest)
        return largest.reshape(1) if alike else bounds

    @cached_property
    def frequent(self) -> Frequent:
        """The columns of which sums of a block are taken in shared memory."""
        return Frequent(self)

    @cached_property
    def words(self) -> dict[int, Any]:
        """The sums of `scatter` by width, zero between steps."""
        return {}

    @property
    def arrays(self) -> dict[str, Any]:
        """The index arrays, as kernels name them."""
        return {"indices": self.indices, "indptr": self.indptr}

    def row_lanes(self, width: int) -> int:
        """Return how many threads go through a row, some entries each at once."""
        of_entries = -(-self.n_stored // (_ENTRIES_AT_ONCE * max(self.shape[0], 1)))
        return max(tile_size(width), tile_size(of_entries))

    @property
    def row_of(self) -> Any:
        """The row of each stored entry."""
        xp = cupy()
        return xp.searchsorted(self.indptr, xp.arange(self.n_stored), side="right") - 1


class Frequent:
    """The columns that one row in 64 has, as a block of a large batch does; the most frequent.

    Parameters
    ----------
    X : Matrix
        Sparse.

    Attributes
    ----------
    columns : array of int32
    marked : array of int32 of shape (n_stored,)
        The columns of the entries of X, or ~place for the `columns`.
    """

    def __init__(self, X: Matrix):
        xp, n_columns = cupy(), X.shape[1]
        # (CuPy counts no empty array.)
        counts = xp.bincount(X.indices, minlength=n_columns) if X.n_stored else xp.zeros(n_columns)
        columns = xp.flatnonzero(_ROWS_OF_A_BLOCK * counts >= max(X.shape[0], 1))
        if len(columns) > _MOST_FREQUENT:
            columns = columns[xp.argsort(-counts[columns])[:_MOST_FREQUENT]]
        self.columns = columns.astype(np.int32)
        place = xp.full(n_columns, -1, dtype=np.int32)
        place[self.columns] = xp.arange(len(self.columns), dtype=np.int32)
        place = place[X.indices]
        self.marked = xp.where(place < 0, X.indices, ~place)

    def __len__(self) -> int:
        return len(self.columns)


def _check_indices(X: Any) -> None:
    """Check the index arrays of a matrix that was on the device already."""
    xp, (n_rows, n_columns) = cupy(), X.shape
    lengths = xp.diff(X.indptr)
    ends_well = len(X.indptr) == n_rows + 1 and int(X.indptr[0]) == 0
    if not ends_well or int(X.indptr[-1]) > len(X.data) or len(X.data) != len(X.indices):
        raise ValueError("X: the indptr of the CSR matrix must start at 0 and end within the data")
    if n_rows and int(lengths.min()) < 0:
        raise ValueError("X: the indptr of the CSR matrix must never fall")
    if len(X.indices) and not 0 <= int(X.indices.min()) <= int(X.indices.max()) < n_columns:
        raise ValueError("X: the CSR matrix has column indices outside 0..n_features - 1")


class Targets:
    """Targets on the device: class indices (n_samples,), or values (n_samples, n_outputs)."""

    def __init__(self, labels: Any, values: Any):
        self.labels, self.values = labels, values


def make_targets(*, labels: Any = None, values: Any = None, n_outputs: int, dtype: Any) -> Any:
    """Return the targets of a fit, from class indices or from an (n_samples, n_outputs) array."""
    if labels is None:
        return Targets(None, asarray(values, dtype))
    labels = asarray(labels, np.int32)
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < max(2, n_outputs):
        raise ValueError("targets: class indices must lie in 0..n_classes - 1")
    return Targets(labels, None)


# The optimizer's part.


class Updater:
    """A rule bound to flat parameters and to one block of prepared scalars.

    The first ``n_columns * width`` parameters are the first layer, the first `n_penalised` are
    coefficients, the rest intercepts. With `sparse`, `multiply_touched` and `apply_touched` take a
    step of the columns of a batch: the one, then the other, once each.

    Attributes
    ----------
    gradient_scale : array of shape (1,) or None
        On the device; what gradients are multiplied by, see `clip_norm`.
    owes : bool
        Whether columns that a batch does not touch are paid the steps of this block later, by a
        ledger. Else their weights stay as they are, or are made out from the state when read.
    """

    def __init__(
        self,
        rule: str,
        w: Any,
        slots: list[Any],
        average: Any,
        rows: np.ndarray,
        n_columns: int,
        width: int,
        n_penalised: int,
        sparse: bool,
        unit: Any = None,
    ):
        self._template = rule, w.dtype.name
        self._size, self._n_penalised = len(w), n_penalised
        self._n_columns, self._width, self._tile_size = n_columns, width, tile_size(width)
        self._parameters = {"w": w, "average": average, "unit": unit, **_slots(slots)}
        self._rows = empty(rows.shape, w.dtype)
        self._sparse, self._may_rest = sparse, sparse and average is None
        is_derived = rule in kernel_sources.choices()["DerivedRule"]
        self._derives = self._may_rest and is_derived and width <= SCATTERED_WIDTH
        self._paid: Any = None
        self._first_layer = {**self._parameters, "stride": 1}
        self._records: Records | None = None
        if sparse and width <= SCATTERED_WIDTH:
            first = slice(n_columns * width)
            names = [*_slots(slots)][: len(slots)] + ([] if self._derives else ["w"])
            self._records = Records({name: self._parameters[name][first] for name in names})
            self._first_layer |= {**self._records.arrays, "stride": self._records.stride}
        self.gradient_scale: Any = None
        self.restart(rows)

    def restart(self, rows: np.ndarray) -> None:
        """Begin another block, of no more steps than the first one, in the same memory."""
        n_steps = len(rows)
        self._rows[:n_steps] = asarray(rows, self._rows.dtype)
        self._grouped = bool(rows[0, _GROUP_L1] > 0)
        rests = self._may_rest and core.rests(
            self._template[0], np.ascontiguousarray(rows, dtype=np.float64)
        )
        self.owes = self._sparse and not rests and not self._derives
        if self._records is not None:
            self._records.load()
        if self.owes:
            self._start_ledger(n_steps)

    def apply(self, g: Any, step: Any) -> None:
        """Take step number `step` of the block with the gradient of all parameters."""
        self._apply_from(0, g, step)

    def apply_rest(self, g: Any, step: Any) -> None:
        """Take a step of all but the first layer."""
        self._apply_from(self._n_columns * self._width, g, step)

    def multiply_touched(self, touched: Touched, step: Any, z: Any) -> None:
        """Pay the touched columns the steps before `step`, and write X W of the batch to z."""
        if self._records is not None:
            touched.records = self._records
        if self.owes and self._records is not None:
            touched.list_columns(self._width)
            self._pay(step, touched.most_listed, **touched.listed_batch, batch=0)
        elif self.owes:
            batches = touched.batches
            self._pay(
                step,
                batches.most_columns,
                columns=batches.columns,
                batch_columns=batches.batch_columns,
                batch=touched.batch,
            )
        n_threads, product = _csr_product(touched.X, touched.rows, touched.first, z)
        if self._derives:
            given = {**product, **self._first_layer, **self._scalars(step)}
            launch("multiply_derived", self._template, n_threads, **given)
        else:
            w = {"w": self._first_layer["w"], "w_stride": self._first_layer["stride"]}
            launch("csr_matmul", self._template[1:], n_threads, **product, **w)

    def apply_touched(self, touched: Touched, delta: Any, factor: float, step: Any) -> None:
        """Take a step of the touched columns, with `factor` times the gradient X.T @ delta."""
        if factor != 1:
            self.gradient_scale = cupy().full(1, factor, dtype=delta.dtype)
        given = {**self._first_layer, **self._scalars(step), "width": self._width}
        given |= {"gradient_scale": self.gradient_scale, "tile_size": self._tile_size}
        if not self._derives:
            given["paid"] = self._paid
        if self._records is not None:
            n_threads = touched.most_listed * self._tile_size
            given |= {**touched.scattered(delta), **touched.listed, "n": touched.n}
            grid = (min(n_blocks(n_threads), 2 * _RULE_BLOCKS),)
            assert touched.records is self._records, "one multiplication, then one step"
            if self._derives:
                launch("apply_derived", self._template, n_threads, grid=grid, **given)
            else:
                launch("apply_listed", self._template, n_threads, grid=grid, **given)
            touched.forget()
            touched.records = None
        else:
            n_threads = touched.batches.most_columns * self._tile_size
            given |= {**touched.columns, "sums": touched.segment_sums(delta)}
            del given["stride"]
            launch("apply_columns", self._template, n_threads, **given)
        if factor != 1:
            self.gradient_scale = None

    def settle(self, step: Any) -> None:
        """Let the weights of all columns be what they are before `step`."""
        if self.owes:
            self._pay(step, self._n_columns, columns=None, batch_columns=None, batch=0)
        elif self._derives:
            n = self._n_columns * self._width
            given = {**self._first_layer, **self._scalars(step), "n": n, "width": self._width}
            given["to"] = given.pop("step")
            launch("settle_derived", self._template, n, **given)
        if self._records is not None:
            self._records.store()

    def _scalars(self, step: Any) -> dict[str, Any]:
        return {"rows": self._rows, "row_width": self._rows.shape[1], "step": step}

    def _apply_from(self, begin: int, g: Any, step: Any) -> None:
        first_layer = self._n_columns * self._width
        if not self._grouped or begin >= first_layer:
            self._apply_range(begin, self._size, g, step, self._parameters)
            return
        # Groups are shrunk after the step, and averaged after that.
        not_averaged = {**self._parameters, "average": None}
        self._apply_range(begin, first_layer, g[: first_layer - begin], step, not_averaged)
        launch(
            "shrink_groups",
            self._template,
            self._n_columns,
            w=self._parameters["w"],
            average=self._parameters["average"],
            **self._scalars(step),
            n_groups=self._n_columns,
            width=self._width,
        )
        self._apply_range(first_layer, self._size, g[first_layer - begin :], step, self._parameters)

    def _apply_range(
        self, begin: int, end: int, g: Any, step: Any, parameters: dict[str, Any]
    ) -> None:
        launch(
            "apply",
            self._template,
            end - begin,
            grid=(min(n_blocks(-(-(end - begin) // _PACK)), _RULE_BLOCKS),),
            **parameters,
            **self._scalars(step),
            g=g,
            gradient_scale=self.gradient_scale,
            begin=begin,
            end=end,
            n_penalised=self._n_penalised,
            n_columns=self._n_columns,
            width=self._width,
        )

    def _make_ledger(self) -> None:
        n_steps, row_width = self._rows.shape
        self._paid = empty(self._n_columns, np.int32)
        self._steps = {
            **{
                name: empty(n_steps + 1, np.float64)
                for name in ("decay", "threshold", "averaged", "highest_rate", "lead")
            },
            "closed_idle": empty(1, np.int32),
            "rows": self._rows,
            "row_width": row_width,
        }

    def _start_ledger(self, n_steps: int) -> None:
        if self._paid is None:
            self._make_ledger()
        self._paid.fill(0)
        averaging = self._parameters["average"] is not None
        launch(
            "start_ledger", self._template, 1, **self._steps, n_steps=n_steps, averaging=averaging
        )

    def _pay(self, to: Any, most_columns: int, **columns: Any) -> None:
        launch(
            "pay_columns",
            self._template,
            most_columns * self._tile_size,
            **self._first_layer,
            **self._steps,
            **columns,
            n_columns=self._n_columns,
            width=self._width,
            paid=self._paid,
            to=to,
            tile_size=self._tile_size,
        )


def _slots(slots: list[Any]) -> dict[str, Any]:
    """Return the state arrays as kernels name them."""
    return dict(zip(("slot_0", "slot_1", "slot_2"), [*slots, None, None, None], strict=False))


class Records:
    """Arrays of a narrow first layer coefficient by coefficient, with a word for its gradient each.

    A batch touches columns here and there, and the device reads and writes whole sectors: one of a
    record instead of one of each array.

    Parameters
    ----------
    arrays : dict of arrays of shape (n,)
        Of one type.

    Attributes
    ----------
    arrays : dict of arrays
        Each array as it lies in the records: every `stride`-th number.
    stride : int
    words : array of int64
        Every `word_stride`-th is the gradient of a coefficient, see `Touched.scattered`.
    word_stride : int
    """

    def __init__(self, arrays: dict[str, Any]):
        n, dtype = next((len(array), array.dtype) for array in arrays.values())
        word = np.dtype(np.int64).itemsize // dtype.itemsize
        word_place = -(-len(arrays) // word) * word
        self._flat = arrays
        # A power of two, so that no record lies across more sectors than it must.
        self._records = cupy().zeros((n, 1 << (word_place + word - 1).bit_length()), dtype=dtype)
        self.stride = self._records.shape[1]
        in_a_row = self._records.reshape(-1)
        self.arrays = {name: in_a_row[place:] for place, name in enumerate(arrays)}
        self.words = in_a_row.view(np.int64)[word_place // word :]
        self.word_stride = self.stride // word

    def load(self) -> None:
        """Take the numbers from the arrays."""
        for place, array in enumerate(self._flat.values()):
            self._records[:, place] = array

    def store(self) -> None:
        """Write the numbers to the arrays."""
        for place, array in enumerate(self._flat.values()):
            array[...] = self._records[:, place]


def make_updater(
    rule: str,
    w: Any,
    slots: list[Any],
    average: Any,
    rows: np.ndarray,
    *,
    n_columns: int = 0,
    width: int = 0,
    n_penalised: int,
    sparse: bool = False,
    unit: Any = None,
) -> Updater:
    """Bind a compiled rule to flat parameters and to a block of prepared scalars."""
    return Updater(rule, w, slots, average, rows, n_columns, width, n_penalised, sparse, unit)


def owing_pays(
    rule: str,
    rows: np.ndarray,
    touched_columns: float,
    n_columns: int,
    width: int,
    *,
    in_table: bool,
) -> bool:
    """Whether to step the touched columns only, rather than all; not measured on a device yet.

    Steps that are replayed cost arithmetic, those of all columns memory traffic.
    """
    return 8.0 * touched_columns < n_columns


def observe(X: Matrix, rows: Any, n: int, unit: Any) -> float:
    """Let the units of columns, 1 / their largest entry, know some rows.

    Returns the mean squared norm of these rows, measured in the units.
    """
    xp = cupy()
    largest = xp.zeros_like(unit)
    for columns, values in _parts(X, rows, n):
        if columns is None:
            xp.maximum(largest, abs(values).max(axis=0), out=largest)
        else:
            _scatter_max(largest, columns, abs(values))
    seen = largest > 1e-30
    own = xp.where(seen, 1 / xp.where(seen, largest, 1), xp.inf)
    smallest = xp.minimum(xp.where(unit == 0, xp.inf, unit), own)
    unit[...] = xp.where(xp.isinf(smallest), 0, smallest)
    sample = (xp.arange(n) if rows is None else rows)[:: max(1, -(-n // _SAMPLED_ROWS))]
    total = 0.0
    for columns, values in _parts(X, sample, len(sample)):
        total += squared_norm(values * (unit if columns is None else unit[columns]))
    return total / max(len(sample), 1)


def _parts(X: Matrix, rows: Any, n: int) -> Iterator[tuple[Any, Any]]:
    """Yield dense rows, some at a time, or columns and values of CSR entries, of rows 0..n."""
    if X.is_sparse:
        if rows is None:
            yield X.indices, X.data
            return
        is_taken = cupy().zeros(X.shape[0], dtype=bool)
        is_taken[rows] = True
        kept = is_taken[X.row_of]
        yield X.indices[kept], X.data[kept]
        return
    for first in range(0, n, _ROWS_PER_PART):
        stop = min(n, first + _ROWS_PER_PART)
        yield None, X.array[first:stop] if rows is None else X.array[rows[first:stop]]


def _scatter_max(target: Any, places: Any, values: Any) -> None:
    """Raise target[places] to `values`, neither of them negative.

    As whole numbers, which are ordered alike: CuPy compares doubles in single precision.
    """
    kind = np.uint32 if target.dtype == np.float32 else np.uint64
    cupy().maximum.at(target.view(kind), places, values.view(kind))


def column_squares(X: Matrix, rows: Any, n: int, weights: Any) -> tuple[Any, Any]:
    """Return weighted means of each column's squares in some rows, in float64.

    The second are those over the entries that are not zero; zero where there is none.
    """
    xp, n_columns = cupy(), X.shape[1]
    of_rows = xp.ones(X.shape[0], X.dtype) if weights is None else weights
    if X.is_sparse:
        sums, counts = _sparse_squares(X, rows, n, of_rows)
    else:
        sums, counts = xp.zeros((2, n_columns))
        for first in range(0, n, _ROWS_PER_PART):
            part = slice(first, min(n, first + _ROWS_PER_PART))
            taken = part if rows is None else rows[part]
            squares, own = xp.square(X.array[taken], dtype=np.float64), of_rows[taken][:, None]
            sums += (own * squares).sum(axis=0)
            counts += (own * (squares > 0)).sum(axis=0, dtype=np.float64)
    return sums / n, sums / xp.where(counts > 0, counts, 1)


def _sparse_squares(X: Matrix, rows: Any, n: int, of_rows: Any) -> tuple[Any, Any]:
    """Return weighted sums of squares, and of entries that are not zero, in float64.

    Both are gradients, sums over columns whose order does not matter. Entries are taken in units of
    their column's largest, so that no square is out of reach.
    """
    xp = cupy()
    largest = xp.zeros(X.shape[1], dtype=X.dtype)
    for columns, values in _parts(X, rows, n):
        _scatter_max(largest, columns, abs(values))
    unit = xp.where(largest > 0, largest, 1)
    # Entries of other rows may be larger.
    shares = xp.minimum(abs(X.data) / unit[X.indices], 1)
    delta = xp.ascontiguousarray(of_rows[:n] if rows is None else of_rows[rows]).reshape(-1, 1)
    found = []
    for values in (shares**2, (shares > 0).astype(X.dtype)):
        sums = xp.zeros((X.shape[1], 1), dtype=X.dtype)
        csr_gradient(X.with_data(values), rows, 0, delta, sums)
        found.append(sums[:, 0].astype(np.float64))
    return found[0] * xp.square(unit, dtype=np.float64), found[1]


def clipping_factor(
    updater: Any, bound: float, g: Any, touched: Touched | None = None, delta: Any = None
) -> float:
    """Bound the norm of the next step's gradient; return what is left to multiply it by.

    A compiled rule multiplies as it reads the gradient, by a factor that stays on the device: 1 is
    left. For an optimizer written in array code the norm is read back.
    """
    own = n_blocks(g.size)
    of_touched = 0 if touched is None else touched.n_partial_sums(delta)
    partial_sums = empty(own + of_touched, np.float64)
    _dots(g, g, partial_sums[:own])
    if touched is not None:
        touched.squares(delta, partial_sums[own:])
    scale = empty(1, g.dtype)
    launch(
        "clipping_scale",
        (g.dtype.name,),
        1,
        partial_sums=partial_sums,
        n=len(partial_sums),
        clip_norm=bound,
        scale=scale,
    )
    if not isinstance(updater, Updater):
        return read_scalar(scale[0])
    updater.gradient_scale = scale
    return 1.0


# The network's part.


def gather_rows(x: Any, rows: Any, first: Any, out: Any) -> None:
    """Copy x[rows[first:first + len(out)]] (x[first:...] when `rows` is None) to `out`."""
    n, width = out.shape
    launch(
        "gather_rows",
        (x.dtype.name,),
        out.size,
        x=x,
        width=width,
        rows=rows,
        first=first,
        n=n,
        out=out,
    )


def matmul(a: Any, b: Any, out: Any) -> None:
    """Write a @ b to `out`; transposed views go to cuBLAS as they are.

    TF32 is used only if the environment says CUPY_TF32=1.
    """
    cuda_blas.gemm(a, b, out)


def csr_matmul(X: Matrix, rows: Any, first: Any, w: Any, out: Any) -> None:
    """Write X[rows[first:first + len(out)]] @ w to `out`; X[first:...] @ w when `rows` is None."""
    n_threads, product = _csr_product(X, rows, first, out)
    launch("csr_matmul", (X.dtype.name,), n_threads, **product, w=w, w_stride=1)


def _csr_product(X: Matrix, rows: Any, first: Any, out: Any) -> tuple[int, dict[str, Any]]:
    """Return the number of threads and the arguments of kernels that multiply rows of X."""
    n, width = out.shape
    lanes = {"row_lanes": X.row_lanes(width), "output_lanes": tile_size(width)}
    given = {**X.arrays, "data": X.data, "samples": rows, "first": first, "n": n, "width": width}
    return n * lanes["row_lanes"], {**given, **lanes, "out": out}


def csr_gradient(X: Matrix, rows: Any, first: Any, delta: Any, g: Any) -> None:
    """Add X[rows[first:first + len(delta)]].T @ delta to g.

    Beyond `SCATTERED_WIDTH` outputs the rows must be distinct.
    """
    touched = Touched(X)
    touched.sort(rows, first, len(delta))
    width, lanes = delta.shape[1], tile_size(delta.shape[1])
    if width <= SCATTERED_WIDTH:
        sums = touched.scattered(delta, listing=False)
        del sums["word_stride"]
        launch(
            "add_scattered",
            (g.dtype.name,),
            g.size,
            **sums,
            n=touched.n,
            n_columns=X.shape[1],
            width=width,
            g=g,
        )
        return
    launch(
        "add_gradient",
        (g.dtype.name,),
        touched.batches.most_columns * lanes,
        **touched.columns,
        sums=touched.segment_sums(delta),
        width=width,
        g=g,
        tile_size=lanes,
    )


class Touched:
    """The columns of a batch of CSR rows; updaters multiply and step these columns alone.

    Parameters
    ----------
    X : Matrix
        Sparse.
    """

    def __init__(self, X: Matrix):
        self.X = X
        self._sums: tuple[Any, Any] | None = None
        self._list: tuple[Any, Any] | None = None
        #: Where the gradient goes, from a multiplication to the step.
        self.records: Records | None = None

    @property
    def native(self) -> Touched:
        """What updaters take: itself. As an attribute it would keep itself alive."""
        return self

    def sort(self, rows: Any, first: Any, n: int) -> None:
        """Take X[rows[first:first + n]], or X[first:first + n] when `rows` is None."""
        self.rows, self.first, self.n = rows, first, n
        self._found: tuple[Batches, Any] | None = None
        self._is_listed = False
        self.forget()

    def forget(self) -> None:
        """Let go of the gradient."""
        self._sums = None

    # As a list of columns and of segments of their entries.

    @property
    def batches(self) -> Batches:
        """The lists that the batch is in."""
        return self._find()[0]

    def _find(self) -> tuple[Batches, Any]:
        if self._found is None:
            self._found = self.X.batches(self.rows, self.first, self.n)
        return self._found

    @property
    def batch(self) -> Any:
        """The number of the batch there."""
        return self._find()[1]

    @property
    def columns(self) -> dict[str, Any]:
        """The arguments of kernels that go through the columns of the batch."""
        names = "columns", "column_segments", "batch_columns", "batch_segments"
        return {"batch": self.batch, **{name: getattr(self.batches, name) for name in names}}

    def segment_sums(self, delta: Any) -> Any:
        """Return the sums of X.T @ delta over the segments of the batch's columns."""
        if self._sums is not None and self._sums[0] is delta:
            return self._sums[1]
        batches, width = self.batches, delta.shape[1]
        sums = empty((batches.most_segments, width), delta.dtype)
        launch(
            "segment_sums",
            (delta.dtype.name,),
            batches.most_segments * tile_size(width),
            values=batches.values,
            places=batches.places,
            segment_starts=batches.segment_starts,
            batch_segments=batches.batch_segments,
            batch=self.batch,
            delta=delta,
            width=width,
            sums=sums,
            tile_size=tile_size(width),
        )
        self._sums = delta, sums
        return sums

    # As entries, one by one; the columns are listed when they are met, after the frequent ones.

    @property
    def entries(self) -> dict[str, Any]:
        """The arguments of kernels that go through the entries of the batch."""
        marks = {"marked": self.X.frequent.marked, "indptr": self.X.indptr}
        batch = {"samples": self.rows, "first": self.first, "n": self.n}
        return {**marks, **batch, "row_lanes": self._lanes}

    @property
    def _lanes(self) -> int:
        """How many threads go through a row: more in small batches, which leave room for them."""
        lanes = self.X.row_lanes(1)
        spread = _ENTRIES_AT_ONCE * lanes
        return spread if self.n * spread <= _ROOM else lanes

    @property
    def n_threads(self) -> int:
        """How many threads go through the entries."""
        return self.n * self._lanes

    @property
    def most_listed(self) -> int:
        """About how many columns the list has at most."""
        n_samples, n_columns = self.X.shape
        touched = -(-self.X.n_stored * self.n // max(n_samples, 1))
        return min(n_columns, touched + len(self.X.frequent))

    @property
    def listed_batch(self) -> dict[str, Any]:
        """The list as that of one batch: the columns, and where the batch begins and ends."""
        if self._list is None:
            self._list = empty(self.X.shape[1], np.int32), cupy().zeros(2, dtype=np.int32)
            self._list[0][: len(self.X.frequent)] = self.X.frequent.columns
        return dict(zip(("columns", "batch_columns"), self._list, strict=True))

    @property
    def listed(self) -> dict[str, Any]:
        """The list, and how long it is."""
        batch = self.listed_batch
        return {"listed": batch["columns"], "n_listed": batch["batch_columns"][1:]}

    def list_columns(self, width: int) -> None:
        """List the columns of the batch."""
        self.listed["n_listed"].fill(len(self.X.frequent))
        given = {**self.entries, **self.listed, **self._words(width), "width": width}
        launch("list_columns", (), self.n_threads, **given)
        self._is_listed = True

    def _words(self, width: int) -> dict[str, Any]:
        """Return where the gradient goes."""
        if self.records is not None:
            return {"sums": self.records.words, "word_stride": self.records.word_stride}
        words = self.X.words
        if width not in words:
            words[width] = cupy().zeros(self.X.shape[1] * width, dtype=np.int64)
        return {"sums": words[width], "word_stride": 1}

    def scattered(self, delta: Any, *, listing: bool = True) -> dict[str, Any]:
        """Return X.T @ delta as sums of whole numbers, and what tells their unit.

        This lists the columns, unless they are listed already.
        """
        if self._sums is not None and self._sums[0] is delta:
            return self._sums[1]
        X, width, template = self.X, delta.shape[1], (delta.dtype.name,)
        listing = listing and not self._is_listed
        made = self.listed if listing else _NO_LIST
        grid = (n_blocks(delta.size),)
        largest = empty(grid, delta.dtype)
        of_delta = {"delta": delta, "n": delta.size, "largest": largest}
        of_list = {"n_listed": made["n_listed"], "n_frequent": len(X.frequent)}
        launch("largest_magnitude", template, 1, grid=grid, **of_delta, **of_list)
        sums = {**self._words(width), "largest": largest, "n_largest": len(largest)}
        sums |= {"bounds": X.bounds, "n_bounds": len(X.bounds)}
        given = {**self.entries, **made, **sums}
        given |= {"data": X.data, "delta": delta, "width": width}
        given |= {"frequent": X.frequent.columns, "n_frequent": len(X.frequent)}
        launch("scatter", template, self.n_threads, **given)
        self._is_listed = self._is_listed or listing
        self._sums = delta, sums
        return sums

    # Either way.

    def n_partial_sums(self, delta: Any) -> int:
        """Return how many numbers `squares` writes."""
        width = delta.shape[1]
        if width <= SCATTERED_WIDTH:
            return n_blocks(self.X.shape[1] * width)
        return max(1, n_blocks(self.batches.most_columns * tile_size(width)))

    def squares(self, delta: Any, partial_sums: Any) -> None:
        """Write the sums of squares of X.T @ delta, block by block."""
        width, template, grid = delta.shape[1], (delta.dtype.name,), (len(partial_sums),)
        given = {"width": width, "partial_sums": partial_sums}
        if width <= SCATTERED_WIDTH:
            given |= {**self.scattered(delta), "n": self.n, "n_columns": self.X.shape[1]}
            launch("scattered_squares", template, 1, grid=grid, **given)
            return
        columns = self.columns
        del columns["columns"]
        given |= {**columns, "sums": self.segment_sums(delta), "tile_size": tile_size(width)}
        launch("gradient_squares", template, 1, grid=grid, **given)

    def squared_norm(self, delta: Any) -> float:
        """Return the squared norm of the batch's X.T @ delta; this waits for the device."""
        partial_sums = empty(self.n_partial_sums(delta), np.float64)
        self.squares(delta, partial_sums)
        return float(partial_sums.sum())


def activation_forward(name: str, z: Any, bias: Any, a: Any) -> None:
    """Add the bias to z and write f(z) to `a`, which may be `z`."""
    n, width = z.shape
    template = (name, z.dtype.name)
    launch("activation_forward", template, z.size, z=z, bias=bias, a=a, n=n, width=width)


def activation_backward(name: str, z: Any, a: Any, delta: Any, sums: Any) -> None:
    """Multiply `delta` by f'(z), and write its column sums to `sums`."""
    template = (name, z.dtype.name)
    # Short chunks make more blocks of a small array.
    grid, chunks = _column_chunks(z, 32 if z.size < 2**21 else 256, WARP_SIZE, sums)
    launch("activation_backward", template, 1, grid=grid, z=z, a=a, delta=delta, **chunks)
    with aside(1):
        _add_chunks(chunks["sums"], sums)


def loss_gradient(
    loss: str,
    z: Any,
    targets: Targets,
    rows: Any,
    first: Any,
    weights: Any,
    parameter: float,
    scale: float,
    d: Any,
    bias: Any = None,
) -> Any:
    """Write `scale` times the derivatives to d; return the weighted sum of the batch's losses.

    Scores are z + bias. The batch are the rows `first` and on, of the listed ones if there are
    any. The sum is a float64 scalar on the device, see `read_scalar`.
    """
    n, n_outputs = z.shape
    if z.size == 0:
        return 0.0
    lanes = tile_size(n_outputs)
    n_threads = n * lanes if loss == "multinomial" else z.size
    grid = (n_blocks(n_threads),)
    partial_sums = empty(grid, np.float64)
    batch = {"z": z, "bias": bias, "n": n, "n_outputs": n_outputs, "rows": rows, "first": first}
    batch |= {"labels": targets.labels, "weights": weights, "scale": scale, "d": d}
    batch |= {"partial_sums": partial_sums}
    if loss == "multinomial":
        template: tuple[str, ...] = (z.dtype.name,)
        launch("multinomial_loss", template, n_threads, grid=grid, **batch, tile_size=lanes)
    else:
        template = (loss, z.dtype.name)
        batch |= {"values": targets.values, "parameter": parameter}
        launch("elementwise_loss", template, n_threads, grid=grid, **batch)
    with aside(1):
        return _added_up(partial_sums[None])[0]


def dropout(a: Any, seed: int, stream: Any, rate: float, out: Any) -> None:
    """Silence a share `rate` of the units, scale up the rest; the same ones as on the CPU."""
    launch(
        "dropout",
        (a.dtype.name,),
        -(-a.size // 4),
        a=a,
        n=a.size,
        seed=seed,
        stream=stream,
        threshold=int((1.0 - rate) * 4294967295.0),
        scale=1.0 / (1.0 - rate),
        out=out,
    )


def shuffled(n: int, seed: int, epoch: int) -> Any:
    """Return 0..n-1 in a random order, the same as on the CPU."""
    keys = empty(n, np.uint64)
    launch("shuffle_keys", (), -(-n // 4), seed=seed, epoch=epoch, n=n, keys=keys)
    keys.sort()
    return (keys & 0xFFFFFFFF).astype(np.int64)


def column_sums(a: Any, out: Any) -> None:
    """Write a.sum(axis=0) to `out`: chunks of rows first, then the sums of the chunks."""
    # Narrow tiles make more blocks of a small array.
    lanes = min(tile_size(a.shape[1]), 8 if a.size < 2**18 else WARP_SIZE)
    grid, chunks = _column_chunks(a, _ROWS_PER_CHUNK, lanes, out)
    launch("column_sums", (a.dtype.name,), a.shape[1], grid=grid, a=a, **chunks)
    _add_chunks(chunks["sums"], out)


def _column_chunks(a: Any, n_rows: int, lanes: int, out: Any) -> tuple[Any, dict[str, Any]]:
    """Return the grid and the arguments of kernels that sum columns by chunks of about `n_rows`.

    Where one chunk is all, its sums are `out`.
    """
    n, width = a.shape
    rows_per_chunk = max(n_rows, -(-n // _MOST_CHUNKS))
    n_chunks = max(1, -(-n // rows_per_chunk))
    sums = out if n_chunks == 1 else empty((n_chunks, width), out.dtype)
    given = {"n": n, "width": width, "rows_per_chunk": rows_per_chunk, "sums": sums}
    return (-(-width // lanes), n_chunks), {**given, "tile_size": lanes}


def _add_chunks(sums: Any, out: Any) -> None:
    if sums is not out:
        column_sums(sums, out)


def dot(a: Any, b: Any) -> float:
    """Return the sum of a * b over all entries, in float64; this waits for the device."""
    return dots((a, b))[0]


def dots(*pairs: tuple[Any, Any]) -> list[float]:
    """Return the sums of a * b over all entries, in float64, for each pair of arrays of one size.

    This waits for the device, once.
    """
    n = pairs[0][0].size
    if n == 0:
        return [0.0] * len(pairs)
    partial_sums = empty((len(pairs), n_blocks(n)), np.float64)
    for (a, b), row in zip(pairs, partial_sums, strict=True):
        _dots(a, b, row)
    return _added_up(partial_sums).tolist()


def _dots(a: Any, b: Any, partial_sums: Any) -> None:
    """Write the dot products of each block's part."""
    given = {"a": a, "b": b, "n": a.size, "partial_sums": partial_sums}
    launch("dot", (a.dtype.name,), 1, grid=(len(partial_sums),), **given)


def _added_up(partial_sums: Any) -> Any:
    """Return the sum of each row."""
    *shape, n = partial_sums.shape
    totals = empty(shape, np.float64)
    launch("add_up", (), 1, grid=(totals.size,), partial_sums=partial_sums, n=n, totals=totals)
    return totals


def inverse_hessian_product(
    steps: Any, changes: Any, first: Any, n_pairs: Any, scale: Any, vector: Any
) -> None:
    """Multiply a vector by what L-BFGS takes for the inverse Hessian.

    Steps and changes are (capacity, n); pairs are the rows first..first + n_pairs, the latest last,
    and go on at row 0 after the last row. `scale` is the diagonal before any pair, up to a factor;
    None is 1.
    """
    n, template = vector.size, (vector.dtype.name,)
    if n == 0:
        return
    grid = (min(n_blocks(n), _RULE_BLOCKS),)
    history = {"steps": steps, "changes": changes, "capacity": len(steps), "first_pair": first}
    history |= {"n": n}
    products = coefficients = None
    if n_pairs:
        partial_sums = empty((n_pairs, _PRODUCTS_OF_A_PAIR, *grid), np.float64)
        of_pairs = {"scale": scale, "partial_sums": partial_sums}
        launch("pair_products", template, 1, grid=(*grid, n_pairs), **history, **of_pairs)
        products, coefficients = _added_up(partial_sums), empty(n_pairs, np.float64)
    before, after = empty((2, *grid), np.float64)
    loop = {**history, "vector": vector, "n_pairs": n_pairs, "products": products}
    loop |= {"coefficients": coefficients}
    for pair in range(n_pairs, -1, -1):
        sums = {"products_before": before, "products_after": after}
        launch("descend", template, 1, grid=grid, **loop, **sums, scale=scale, pair=pair)
        before, after = after, before
    for pair in range(n_pairs):
        sums = {"products_before": before, "products_after": after}
        launch("ascend", template, 1, grid=grid, **loop, **sums, pair=pair)
        before, after = after, before


def squared_norm(a: Any) -> float:
    """Return the sum of squares, in float64; this waits for the device."""
    return dot(a, a)


def prox(w: Any, step: Any, l1: float, l2: float, lower: float, upper: float) -> None:
    """Replace w by its prox under ``step * (l1, l2, box)``; one step size, or one a weight."""
    launch(
        "prox",
        (w.dtype.name,),
        len(w),
        w=w,
        n=len(w),
        steps=step,
        n_steps=len(step),
        l1=l1,
        l2=l2,
        lower=lower,
        upper=upper,
    )


def prox_groups(w: Any, n_groups: int, width: int, thresholds: Any) -> None:
    """Shrink the norm of each run of `width` weights by a threshold: one, or one a group."""
    given = {"w": w, "n_groups": n_groups, "width": width}
    given |= {"thresholds": thresholds, "n_thresholds": len(thresholds)}
    launch("prox_groups", (w.dtype.name,), n_groups, **given)


# Arrays.


def asarray(array: Any, dtype: Any = None) -> Any:
    """Return `array` on this device."""
    return cupy().asarray(array, dtype=dtype, order="C")


def read_scalar(value: Any) -> float:
    """Return a number that primitives left on the device; this waits for it."""
    return float(value)
