"""CPU primitives: matrix products by NumPy's BLAS, everything else one fused compiled pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import scipy.sparse as sp

from skoptim._devices import cpu_threads as threads
from skoptim._native import core

name = "cpu"
xp = np
#: What batch_size="auto" means for a linear model: per-sample steps, as scikit-learn's SGD.
LINEAR_BATCH_SIZE = 1

activation_forward = core.activation_forward
dropout = core.dropout
column_sums = core.column_sums
dot = core.dot
inverse_hessian_product = core.inverse_hessian_product
prox = core.prox
prox_groups = core.prox_groups

_WORTH_A_THREAD = 2**16

#: How the compiled classes of a dtype are named.
SUFFIX = {np.dtype(np.float32): "Float32", np.dtype(np.float64): "Float64"}


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return 0..n-1 in a random order, the same for the same seed and epoch on every device."""
    order = np.empty(n, dtype=np.int64)
    core.shuffle(seed, epoch, order)
    return order


class Matrix:
    """The rows that a fit reads: a dense array or a CSR matrix, never copied or densified.

    Parameters
    ----------
    X : ndarray or scipy CSR of shape (n_samples, n_features)
        float32 or float64. Column indices are checked here, once; compiled code then trusts them.
        Duplicate entries are summed in a copy.

    Raises
    ------
    ValueError
        If the index arrays of a CSR matrix do not describe a matrix of that shape.
    """

    def __init__(self, X: Any):
        self.is_sparse = sp.issparse(X)
        self.shape: tuple[int, int] = X.shape
        self.dtype = X.dtype
        self.array = X
        native = getattr(core, "Matrix" + SUFFIX[X.dtype])
        if not self.is_sparse:
            self.native = native(X)
            return
        self.native = native(*_csr_arrays(X), *X.shape)
        if self.native.has_duplicates:
            self.array = X = X.copy()
            X.sum_duplicates()
            self.native = native(*_csr_arrays(X), *X.shape)

    @property
    def n_stored(self) -> int:
        """Number of stored entries."""
        return self.array.nnz if self.is_sparse else self.array.size

    @property
    def n_bytes(self) -> int:
        """Memory of the stored entries, with column indices of 32 bits."""
        index = np.dtype(np.int32).itemsize if self.is_sparse else 0
        return self.n_stored * (self.dtype.itemsize + index)

    def columns(self, chosen: np.ndarray, most_bytes: float) -> Matrix | None:
        """Return a copy of some columns, numbers in ascending order; None if it takes too much."""
        n_rows, n_columns = self.shape
        if not self.is_sparse:
            too_many = n_rows * len(chosen) * self.dtype.itemsize > most_bytes
            return None if too_many else Matrix(np.take(self.array, chosen, axis=1))
        places = np.full(n_columns, -1, dtype=np.int32)
        places[chosen] = np.arange(len(chosen))
        starts = np.zeros(n_rows + 1, dtype=np.int32)
        with threads.alone() as n_threads:
            core.count_chosen(self.native, places, n_threads, starts[1:])
            n_entries = int(starts.sum(dtype=np.int64))
            if n_entries * (self.dtype.itemsize + starts.itemsize) > most_bytes:
                return None
            np.cumsum(starts, out=starts)
            data, numbers = np.empty(n_entries, self.dtype), np.empty(n_entries, np.int32)
            core.copy_chosen(self.native, places, n_threads, starts, data, numbers)
        return Matrix(sp.csr_array((data, numbers, starts), shape=(n_rows, len(chosen))))

    def plan(self, rows: Any, first: int, n: int, batch_size: int, width: int) -> bool:
        """Do nothing: a batch is sorted when it comes. Return False."""
        return False

    @property
    def longest_row(self) -> int:
        """The largest number of stored entries in a row; 0 for a dense matrix."""
        return self.native.longest_row


def _csr_arrays(X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return data, indices and indptr with one integer type for both index arrays."""
    indices, indptr = X.indices, X.indptr
    if indices.dtype != indptr.dtype or indices.dtype not in (np.int32, np.int64):
        wide = np.int64 if len(indices) > np.iinfo(np.int32).max else np.int32
        if indices.dtype in (np.int32, np.int64) and wide != np.int64:
            indptr = indptr.astype(indices.dtype)
        else:
            indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    return (
        np.ascontiguousarray(X.data),
        np.ascontiguousarray(indices),
        np.ascontiguousarray(indptr),
    )


def make_targets(*, labels: Any = None, values: Any = None, n_outputs: int, dtype: Any) -> Any:
    """Return the targets of a fit, from class indices or from an (n_samples, n_outputs) array."""
    kind = getattr(core, "Targets" + SUFFIX[np.dtype(dtype)])
    if labels is not None:
        return kind(np.ascontiguousarray(labels, dtype=np.int32), n_outputs)
    return kind(np.ascontiguousarray(values, dtype=dtype))


def make_updater(
    rule: str,
    w: np.ndarray,
    slots: list[np.ndarray],
    average: np.ndarray | None,
    rows: np.ndarray,
    *,
    n_columns: int = 0,
    width: int = 0,
    n_penalised: int,
    sparse: bool = False,
    unit: np.ndarray | None = None,
) -> Any:
    """Bind a compiled rule to flat parameters and to a block of prepared scalars.

    With `sparse`, steps of columns that a batch does not touch are owed; see the calls of
    `cuda.Updater`, which are the same.
    """
    kind = getattr(core, "Updater" + SUFFIX[w.dtype])
    rows = np.ascontiguousarray(rows, dtype=w.dtype)
    # A few numbers are done with before the limit is known.
    n_threads = threads.limit() if w.size >= _WORTH_A_THREAD else 1
    return kind(
        rule, w, slots, average, rows, n_columns, width, n_penalised, sparse, unit, n_threads
    )


def owing_pays(
    rule: str,
    rows: np.ndarray,
    touched_columns: float,
    n_columns: int,
    width: int,
    *,
    in_table: bool,
) -> bool:
    """Whether owing idle steps to the columns that a batch does not touch is cheaper.

    Parameters
    ----------
    rule : str
    rows : ndarray of shape (n_steps, n_scalars)
        Prepared scalars of some steps.
    touched_columns : float
        How many columns a batch touches.
    n_columns : int
        How many there are.
    width : int
        Coefficients of a column.
    in_table : bool
        Whether the training would be that of a linear model in a table.
    """
    rows = np.ascontiguousarray(rows)
    return core.owing_pays(rule, rows, touched_columns, n_columns, width, in_table)


def observe(X: Matrix, rows: Any, n: int, unit: np.ndarray) -> float:
    """Let the units of columns, 1 / their largest entry, know some rows.

    Returns the mean squared norm of these rows, measured in the units.
    """
    return core.observe(X.native, rows, 0, n, unit)


def column_squares(
    X: Matrix, rows: Any, n: int, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return weighted means of each column's squares in some rows, in float64.

    The second are those over the entries that are not zero; zero where there is none.
    """
    sums, counts = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    core.column_squares(X.native, rows, 0, n, weights, sums, counts)
    return sums / n, sums / np.where(counts > 0, counts, 1)


def clipping_factor(
    updater: Any, bound: float, g: np.ndarray, touched: Any = None, delta: Any = None
) -> float:
    """Return what bounds the norm of a gradient: of `g`, and of X.T @ delta of a batch, if any."""
    norm = (squared_norm(g) + (0.0 if touched is None else touched.squared_norm(delta))) ** 0.5
    return bound / norm if norm > bound else 1.0


def dots(*pairs: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """Return the sums of a * b over all entries, in float64, for each pair of arrays."""
    return [core.dot(a, b) for a, b in pairs]


def squared_norm(a: np.ndarray) -> float:
    """Return the sum of the squares of all entries."""
    return core.dot(a, a)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Out = a @ b; transposed views go to BLAS as they are."""
    np.matmul(a, b, out=out)


def gather_rows(x: np.ndarray, rows: np.ndarray, first: Any, out: np.ndarray) -> None:
    """Copy x[rows[first:first + len(out)]] to `out`."""
    core.gather_rows(x, rows[first : first + len(out)], out)


def csr_matmul(X: Matrix, rows: Any, first: Any, w: np.ndarray, out: np.ndarray) -> None:
    """Out = X[rows[first:first + len(out)]] @ w; X[first:...] @ w when `rows` is None."""
    core.csr_matmul(X.native, *_taken(rows, first, len(out)), w, out)


def csr_gradient(X: Matrix, rows: Any, first: Any, delta: np.ndarray, g: np.ndarray) -> None:
    """G += X[rows[first:first + len(delta)]].T @ delta."""
    core.csr_gradient(X.native, *_taken(rows, first, len(delta)), delta, g)


def _taken(rows: Any, first: int, n: int) -> tuple[Any, int]:
    """Return which rows compiled code is to take: those listed, or some from the first on."""
    return (None, first) if rows is None else (rows[first : first + n], 0)


class Touched:
    """The stored entries of a batch by columns; updaters multiply and step these columns alone.

    Parameters
    ----------
    X : Matrix
        Sparse.
    """

    def __init__(self, X: Matrix):
        self.X = X
        self.native = getattr(core, "Touched" + SUFFIX[X.dtype])()

    def sort(self, rows: Any, first: Any, n: int) -> None:
        """Take X[rows[first:first + n]], or X[first:first + n] when `rows` is None."""
        self.native.sort(self.X.native, *_taken(rows, first, n), n)

    def squared_norm(self, delta: np.ndarray) -> float:
        """Return the squared norm of the batch's X.T @ delta."""
        return self.native.squared_norm(delta)


def loss_gradient(
    loss: str,
    z: np.ndarray,
    targets: Any,
    rows: Any,
    first: Any,
    weights: Any,
    parameter: float,
    scale: float,
    d: np.ndarray | None,
    bias: np.ndarray | None = None,
) -> float:
    """Return the weighted sum of the batch's losses; write `scale` times the derivatives to d.

    Scores are z + bias; z may be overwritten with them. The batch are the rows `first` and on, of
    the listed ones if there are any.
    """
    if bias is not None:
        z += bias
    taken = _taken(rows, first, len(z))
    return core.loss_gradient(loss, z, targets, *taken, weights, parameter, scale, d)


def activation_backward(
    name: str, z: np.ndarray, a: np.ndarray, delta: np.ndarray, sums: np.ndarray
) -> None:
    """Multiply `delta` by f'(z), and write its column sums to `sums`."""
    core.activation_backward(name, z, a, delta)
    core.column_sums(delta, sums)


def aside(side: int) -> AbstractContextManager:
    """Return a context of what may run beside what follows; here it runs first."""
    return nullcontext()


def join() -> None:
    """Wait for what runs aside: nothing does."""


def empty(shape: Any, dtype: Any) -> np.ndarray:
    """Return an uninitialised array."""
    return np.empty(shape, dtype)


def asarray(array: Any, dtype: Any = None) -> np.ndarray:
    """Return `array` on this device."""
    return np.ascontiguousarray(array, dtype=dtype)


def read_scalar(value: Any) -> float:
    """Return a number that primitives left on the device."""
    return float(value)
