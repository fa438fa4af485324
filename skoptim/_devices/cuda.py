"""CUDA primitives: matrix products by cuBLAS through CuPy, everything else our own kernels.

The kernels are the CPU's own formulas (`_native/*.hpp`) in CUDA loops (`_native/cuda/*.cu`),
compiled by NVRTC when one is first needed and cached on disk by CuPy. CuPy itself is imported when
first needed. Every sum runs in an order that depends on sizes alone, so results repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sp

from skoptim._devices import cpu, is_cuda_array, kernel_sources

name = "cuda"
#: What batch_size="auto" means for a linear model: a step costs about the same up to thousands of
#: samples, and one sample a step would leave the device idle.
LINEAR_BATCH_SIZE = 1024

_BLOCK_SIZE = 256  # block_size in grid.cuh
_WARP_SIZE = 32
_MOST_BLOCKS = 1024
_ROWS_PER_CHUNK = 4096
_GROUP_L1 = 3  # the column of group_l1 in a row of prepared scalars


def __getattr__(attribute: str) -> Any:
    """Return `xp`, that is CuPy, without importing it any earlier."""
    if attribute == "xp":
        return _cupy()
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            'device="cuda" needs CuPy: pip install "skoptim[cuda12]", or "skoptim[cuda13]" with a '
            'CUDA 13 driver; or use device="cpu".'
        ) from error
    return cupy


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
        n_devices = _cupy().cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        raise RuntimeError(f"{_NO_DEVICE} ({error})") from error
    if n_devices == 0:
        raise RuntimeError(_NO_DEVICE)


_NO_DEVICE = (
    'device="cuda": no CUDA device is visible; check the driver (nvidia-smi) and '
    'CUDA_VISIBLE_DEVICES, or use device="cpu".'
)


# Launching kernels.


@dataclass(frozen=True)
class _Launcher:
    """A compiled kernel that takes its arguments by name, in the types that its source declares."""

    kernel: Any
    parameters: tuple[tuple[str, bool, np.dtype], ...]

    def __call__(self, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        if len(arguments) != len(self.parameters):
            wanted = [parameter for parameter, _, _ in self.parameters]
            raise TypeError(f"{self.kernel} takes {wanted}, got {list(arguments)}")
        values = [
            _array_argument(parameter, arguments[parameter], dtype)
            if is_array
            else dtype.type(arguments[parameter])
            for parameter, is_array, dtype in self.parameters
        ]
        self.kernel(grid, (_BLOCK_SIZE,), tuple(values))


def _array_argument(parameter: str, array: Any, dtype: np.dtype) -> Any:
    """Check what a kernel would read through blindly; None is a null pointer."""
    if array is None:
        return np.intp(0)
    if not is_cuda_array(array) or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{parameter} must be a contiguous {dtype} array on the device")
    return array


@cache
def _launcher(kernel_name: str, template: tuple[str, ...]) -> _Launcher:
    """Compile one instantiation, or take it from CuPy's cache on disk."""
    kernel = kernel_sources.kernels()[kernel_name]
    expression = kernel.expression(*template)
    module = _cupy().RawModule(
        code=kernel_sources.source(kernel.file),
        options=kernel_sources.OPTIONS,
        name_expressions=(expression,),
    )
    named = dict(zip(kernel.template, template, strict=True))
    types = {"double": "float64", "int64_t": "int64", "int32_t": "int32"}
    types |= {"uint64_t": "uint64", "uint32_t": "uint32"} | named
    return _Launcher(
        module.get_function(expression),
        tuple((p.name, p.is_array, np.dtype(types[p.type])) for p in kernel.parameters),
    )


def _launch(
    kernel: str, template: tuple[str, ...], n_threads: int, /, *, grid: Any = None, **arguments: Any
) -> None:
    """Run a kernel on about `n_threads` threads; its arguments go by name."""
    if n_threads > 0:
        _launcher(kernel, template)(grid or (_n_blocks(n_threads),), arguments)


def _n_blocks(n_threads: int) -> int:
    """Return the size of the grid; from the work alone, so that sums repeat on any device."""
    return min(-(-n_threads // _BLOCK_SIZE), _MOST_BLOCKS)


def _tile_size(width: int) -> int:
    """Return how many threads share an item of that width: a power of two up to a warp."""
    return min(_WARP_SIZE, 1 << max(width - 1, 0).bit_length())


def _sum(partial_sums: Any) -> Any:
    """Return the sum of the blocks' sums, in float64, on the device."""
    total = _cupy().empty(1, dtype=np.float64)
    column_sums(partial_sums.reshape(-1, 1), total)
    return total[0]


# Data.


class Matrix:
    """The rows that a fit reads, on the device: a dense array or a CSR matrix.

    Host data is moved once, in its own size and index type.

    Parameters
    ----------
    X : array or CSR matrix of shape (n_samples, n_features)
        NumPy, SciPy, CuPy or cupyx; float32 or float64. Column indices are checked here, once;
        kernels then trust them.

    Raises
    ------
    ValueError
        If the index arrays of a CSR matrix do not describe a matrix of that shape.
    """

    def __init__(self, X: Any):
        self.is_sparse = hasattr(X, "indptr")
        self.shape: tuple[int, int] = X.shape
        self.dtype = X.dtype
        self.longest_row = 0
        if not self.is_sparse:
            self.array = asarray(X)
            return
        if X.shape[1] > np.iinfo(np.int32).max:
            raise ValueError(f"X has {X.shape[1]} features; the GPU takes up to 2**31 - 1.")
        if sp.issparse(X):
            checked = cpu.Matrix(X)
            X, self.longest_row = checked.array, checked.longest_row
            self.data, self.indices, self.indptr = map(asarray, cpu._csr_arrays(X))
        else:
            self.data, self.indices, self.indptr = map(asarray, (X.data, X.indices, X.indptr))
            self.longest_row = _check_indices(self)
        self.array = X
        self._consecutive: dict[tuple[int, int], _Entries] = {}
        self._listed: tuple[Any, _Entries] | None = None

    @property
    def n_stored(self) -> int:
        """Number of stored entries of a CSR matrix."""
        return len(self.data)

    def entries(self, rows: Any, first: int, n: int) -> _Entries:
        """Return the stored entries of a batch, sorted by column.

        Those of consecutive rows are kept, as they come again in every epoch; all of them together
        take about twice the memory of X. Of listed rows only the last batch is kept.
        """
        if rows is None:
            if (first, n) not in self._consecutive:
                self._consecutive[first, n] = _sorted_entries(self, None, first, n)
            return self._consecutive[first, n]
        if self._listed is None or self._listed[0] is not rows:
            self._listed = rows, _sorted_entries(self, rows, first, n)
        return self._listed[1]

    @property
    def _template(self) -> tuple[str, str]:
        return self.dtype.name, self.indices.dtype.name


def _check_indices(X: Matrix) -> int:
    """Check the index arrays of a matrix that was on the device already; return its longest row."""
    xp, (n_rows, n_columns) = _cupy(), X.shape
    lengths = xp.diff(X.indptr)
    ends_well = len(X.indptr) == n_rows + 1 and int(X.indptr[0]) == 0
    if not ends_well or int(X.indptr[-1]) > len(X.data) or len(X.data) != len(X.indices):
        raise ValueError("X: the indptr of the CSR matrix must start at 0 and end within the data")
    if n_rows and int(lengths.min()) < 0:
        raise ValueError("X: the indptr of the CSR matrix must never fall")
    if len(X.indices) and not 0 <= int(X.indices.min()) <= int(X.indices.max()) < n_columns:
        raise ValueError("X: the CSR matrix has column indices outside 0..n_features - 1")
    return int(lengths.max()) if n_rows else 0


@dataclass
class _Entries:
    """The stored entries of a batch of CSR rows, listed and sorted as sparse.cu says."""

    keys: Any
    batch_rows: Any
    values: Any
    columns: Any  # (n_touched,), ascending
    starts: Any  # (n_touched + 1,) of each column's run in `keys`


def _sorted_entries(X: Matrix, rows: Any, first: int, n: int) -> _Entries:
    """List the entries of a batch; two sizes are read back, for the arrays that follow."""
    xp = _cupy()
    lengths = empty(n, np.int64)
    _launch(
        "row_lengths",
        X._template[1:],
        n,
        indptr=X.indptr,
        rows=rows,
        first=first,
        n=n,
        lengths=lengths,
    )
    ends = xp.cumsum(lengths)
    n_entries = int(ends[-1]) if n else 0
    keys, values = empty(n_entries, np.int64), empty(n_entries, X.dtype)
    batch_rows = empty(n_entries, np.int32)
    _launch(
        "list_entries",
        X._template,
        n * _WARP_SIZE,
        data=X.data,
        indices=X.indices,
        indptr=X.indptr,
        rows=rows,
        first=first,
        n=n,
        ends=ends,
        keys=keys,
        batch_rows=batch_rows,
        values=values,
    )
    if n_entries:
        keys.sort()
    is_first = empty(n_entries, np.int32)
    _launch("mark_runs", (), n_entries, keys=keys, n_entries=n_entries, is_first=is_first)
    run_numbers = xp.cumsum(is_first, dtype=np.int32)
    n_touched = int(run_numbers[-1]) if n_entries else 0
    columns, starts = empty(n_touched, np.int64), empty(n_touched + 1, np.int64)
    _launch(
        "list_runs",
        (),
        n_entries,
        keys=keys,
        run_numbers=run_numbers,
        n_entries=n_entries,
        columns=columns,
        starts=starts,
    )
    return _Entries(keys, batch_rows, values, columns, starts)


@dataclass
class Targets:
    """Targets on the device: class indices (n_samples,), or values (n_samples, n_outputs)."""

    labels: Any
    values: Any


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
    coefficients, the rest intercepts. With `sparse` a ledger tells which steps each column has
    been paid.

    Attributes
    ----------
    gradient_scale : array of shape (1,) or None
        On the device; what gradients are multiplied by, see `clip_norm`.
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
        self._n_columns, self._width = n_columns, width
        self._rows = asarray(rows, w.dtype)
        self._grouped = bool(rows[0, _GROUP_L1] > 0)
        padded = dict(zip(("slot_0", "slot_1", "slot_2"), [*slots, None, None, None], strict=False))
        self._parameters = {"w": w, "average": average, "unit": unit, **padded}
        self.gradient_scale: Any = None
        if sparse:
            self._start_ledger()

    def apply(self, g: Any, step: int) -> None:
        """Take step number `step` of the block with the gradient of all parameters."""
        self._apply_from(0, g, step)

    def apply_rest(self, g: Any, step: int) -> None:
        """Take a step of all but the first layer."""
        self._apply_from(self._n_columns * self._width, g, step)

    def multiply_touched(self, touched: Touched, step: int, z: Any) -> None:
        """Pay the touched columns the steps before `step`, and write X W of the batch to z."""
        self._pay(touched.columns, len(touched.columns), step)
        w = self._parameters["w"][: self._n_columns * self._width]
        csr_matmul(touched.X, touched.rows, touched.first, w.reshape(-1, self._width), z)

    def apply_touched(self, touched: Touched, delta: Any, factor: float, step: int) -> None:
        """Take a step of the touched columns, with `factor` times the gradient X.T @ delta."""
        g = touched.gradient(delta)
        if factor != 1:
            g *= factor
        columns = touched.columns
        _launch(
            "apply_columns",
            self._template,
            len(columns) * self._tile_size,
            **self._parameters,
            columns=columns,
            n=len(columns),
            width=self._width,
            g=g,
            gradient_scale=self.gradient_scale,
            row=self._rows[step],
            paid=self._paid,
            step=step,
            tile_size=self._tile_size,
        )

    def settle(self, step: int) -> None:
        """Pay all columns the steps before `step`."""
        self._pay(None, self._n_columns, step)

    @property
    def _tile_size(self) -> int:
        return _tile_size(self._width)

    def _apply_from(self, begin: int, g: Any, step: int) -> None:
        first_layer = self._n_columns * self._width
        if not self._grouped or begin >= first_layer:
            self._apply_range(begin, self._size, g, step, self._parameters)
            return
        # Groups are shrunk after the step, and averaged after that.
        not_averaged = {**self._parameters, "average": None}
        self._apply_range(begin, first_layer, g[: first_layer - begin], step, not_averaged)
        _launch(
            "shrink_groups",
            self._template,
            self._n_columns,
            w=self._parameters["w"],
            average=self._parameters["average"],
            row=self._rows[step],
            n_groups=self._n_columns,
            width=self._width,
        )
        self._apply_range(first_layer, self._size, g[first_layer - begin :], step, self._parameters)

    def _apply_range(
        self, begin: int, end: int, g: Any, step: int, parameters: dict[str, Any]
    ) -> None:
        _launch(
            "apply",
            self._template,
            end - begin,
            **parameters,
            g=g,
            gradient_scale=self.gradient_scale,
            row=self._rows[step],
            begin=begin,
            end=end,
            n_penalised=self._n_penalised,
            n_columns=self._n_columns,
            width=self._width,
        )

    def _start_ledger(self) -> None:
        n_steps, row_width = self._rows.shape
        self._paid = _cupy().zeros(self._n_columns, dtype=np.int32)
        self._steps = {
            **{
                name: empty(n_steps + 1, np.float64)
                for name in ("decay", "threshold", "averaged", "highest_rate")
            },
            "closed_idle": empty(1, np.int32),
            "rows": self._rows,
            "row_width": row_width,
        }
        averaging = self._parameters["average"] is not None
        _launch(
            "start_ledger", self._template, 1, **self._steps, n_steps=n_steps, averaging=averaging
        )

    def _pay(self, columns: Any, n: int, to: int) -> None:
        _launch(
            "pay_columns",
            self._template,
            n * self._tile_size,
            **self._parameters,
            **self._steps,
            columns=columns,
            n=n,
            width=self._width,
            paid=self._paid,
            to=to,
            tile_size=self._tile_size,
        )


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
    rule: str, rows: np.ndarray, touched_columns: float, n_columns: int, width: int
) -> bool:
    """Whether to step the touched columns only, rather than all; not measured on a device yet.

    Steps that are replayed cost arithmetic, those of all columns memory traffic.
    """
    return 8.0 * touched_columns < n_columns


def observe(X: Matrix, rows: Any, n: int, unit: Any) -> float:
    """Let the units of columns, 1 / their largest entry, know some rows.

    Returns the mean squared norm of these rows, measured in the units.
    """
    xp = _cupy()
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
    total = 0.0
    for columns, values in _parts(X, rows, n):
        scaled = values * (unit if columns is None else unit[columns])
        total += float(scaled.astype(np.float64).ravel() @ scaled.astype(np.float64).ravel())
    return total / max(n, 1)


def _parts(X: Matrix, rows: Any, n: int) -> Iterator[tuple[Any, Any]]:
    """Yield dense rows, or columns and values of CSR entries, of some of the rows at a time."""
    for first in range(0, n, _ROWS_PER_CHUNK):
        stop = min(n, first + _ROWS_PER_CHUNK)
        taken = None if rows is None else rows[first:stop]
        if not X.is_sparse:
            yield None, X.array[first:stop] if taken is None else X.array[taken]
            continue
        entries = _sorted_entries(X, taken, first, stop - first)
        yield entries.keys >> 32, entries.values[entries.keys & 0xFFFFFFFF]


def _scatter_max(target: Any, places: Any, values: Any) -> None:
    import cupyx

    cupyx.scatter_max(target, places, values)


def clip_norm(updater: Any, gradients: Sequence[Any], bound: float) -> None:
    """Bound the norm of the whole gradient of the next step; nothing is read back.

    Parameters
    ----------
    updater : Updater or ArrayUpdater
        A compiled rule multiplies by the factor as it reads the gradient. For an optimizer written
        in array code the gradients are scaled in place.
    gradients : sequence of arrays
        All parts of the gradient.
    bound : float
        The largest norm that goes unchanged.
    """
    partial_sums = _cupy().concatenate([_squares(g) for g in gradients])
    dtype = gradients[0].dtype
    scale = empty(1, dtype)
    _launch(
        "clipping_scale",
        (dtype.name,),
        _BLOCK_SIZE,
        partial_sums=partial_sums,
        n=len(partial_sums),
        clip_norm=bound,
        scale=scale,
    )
    if isinstance(updater, Updater):
        updater.gradient_scale = scale
        return
    for g in gradients:
        g *= scale


# The network's part.


def gather_rows(x: Any, rows: Any, out: Any) -> None:
    """Copy the rows x[rows] to `out`."""
    n, width = out.shape
    _launch("gather_rows", (x.dtype.name,), out.size, x=x, width=width, rows=rows, n=n, out=out)


def matmul(a: Any, b: Any, out: Any) -> None:
    """Write a @ b to `out`; transposed views go to cuBLAS as they are.

    TF32 is used only if the environment says CUPY_TF32=1.
    """
    _cupy().dot(a, b, out=out)


def csr_matmul(X: Matrix, rows: Any, first: int, w: Any, out: Any) -> None:
    """Write X[rows] @ w to `out`; X[first:first + len(out)] @ w when `rows` is None."""
    n, width = out.shape
    _launch(
        "csr_matmul",
        X._template,
        n * _WARP_SIZE,
        data=X.data,
        indices=X.indices,
        indptr=X.indptr,
        rows=rows,
        first=first,
        n=n,
        w=w,
        width=width,
        out=out,
        output_lanes=_tile_size(width),
    )


def csr_gradient(X: Matrix, rows: Any, first: int, delta: Any, g: Any) -> None:
    """Add X[rows].T @ delta to g."""
    entries = X.entries(rows, first, len(delta))
    _csr_gradient(X.dtype, entries, None, delta, g)


def _csr_gradient(dtype: Any, entries: _Entries, position: Any, delta: Any, g: Any) -> None:
    """Add the gradient to the rows of g that `position` gives the columns (None: all are there)."""
    width, n_runs = delta.shape[1], len(entries.columns)
    _launch(
        "csr_gradient",
        (dtype.name,),
        n_runs * _WARP_SIZE,
        keys=entries.keys,
        batch_rows=entries.batch_rows,
        values=entries.values,
        columns=entries.columns,
        starts=entries.starts,
        n_runs=n_runs,
        position=position,
        delta=delta,
        width=width,
        g=g,
        output_lanes=_tile_size(width),
    )


class Touched:
    """The stored entries of a batch by columns; updaters multiply and step these columns alone.

    Parameters
    ----------
    X : Matrix
        Sparse.
    """

    def __init__(self, X: Matrix):
        self.X, self.native = X, self
        self._position = _cupy().empty(X.shape[1], dtype=np.int32)

    def sort(self, rows: Any, first: int, n: int) -> None:
        """Take X[rows], or X[first:first + n] when `rows` is None."""
        self.rows, self.first = rows, first
        self._entries = self.X.entries(rows, first, n)
        n_touched = len(self._entries.columns)
        self.columns = empty(n_touched, np.int64)
        # Places of columns that this batch does not touch are left over, and not looked at.
        _launch(
            "place_columns",
            (),
            n_touched,
            touched=self._entries.columns,
            n=n_touched,
            position=self._position,
            columns=self.columns,
        )
        self._gradient: tuple[Any, Any] | None = None

    def gradient(self, delta: Any) -> Any:
        """Return the batch's X.T @ delta, a row for each touched column."""
        if self._gradient is None or self._gradient[0] is not delta:
            g = _cupy().zeros((len(self.columns), delta.shape[1]), dtype=delta.dtype)
            _csr_gradient(self.X.dtype, self._entries, self._position, delta, g)
            self._gradient = delta, g
        return self._gradient[1]

    def squared_norm(self, delta: Any) -> float:
        """Return the squared norm of the batch's X.T @ delta; this waits for the device."""
        return squared_norm(self.gradient(delta))


def activation_forward(name: str, z: Any, bias: Any, a: Any) -> None:
    """Add the bias to z and write f(z) to `a`, which may be `z`."""
    n, width = z.shape
    template = (name, z.dtype.name)
    _launch("activation_forward", template, z.size, z=z, bias=bias, a=a, n=n, width=width)


def activation_backward(name: str, z: Any, a: Any, delta: Any) -> None:
    """Multiply `delta` by f'(z)."""
    template = (name, z.dtype.name)
    _launch("activation_backward", template, z.size, z=z, a=a, delta=delta, n=z.size)


def loss_gradient(
    loss: str,
    z: Any,
    targets: Targets,
    rows: Any,
    first: int,
    weights: Any,
    parameter: float,
    scale: float,
    d: Any,
) -> Any:
    """Write `scale` times the derivatives to d; return the weighted sum of the batch's losses.

    The sum is a float64 scalar on the device, see `read_scalar`.
    """
    n, n_outputs = z.shape
    n_threads = n if loss == "multinomial" else z.size
    if n_threads == 0:
        return 0.0
    partial_sums = empty(_n_blocks(n_threads), np.float64)
    batch = {"z": z, "n": n, "n_outputs": n_outputs, "rows": rows, "first": first}
    batch |= {"labels": targets.labels, "weights": weights, "scale": scale, "d": d}
    if loss == "multinomial":
        template: tuple[str, ...] = (z.dtype.name,)
        _launch("multinomial_loss", template, n_threads, **batch, partial_sums=partial_sums)
    else:
        template = (loss, z.dtype.name)
        batch |= {"values": targets.values, "parameter": parameter}
        _launch("elementwise_loss", template, n_threads, **batch, partial_sums=partial_sums)
    return _sum(partial_sums)


def dropout(a: Any, seed: int, stream: int, rate: float, out: Any) -> None:
    """Silence a share `rate` of the units, scale up the rest; the same ones as on the CPU."""
    _launch(
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


def column_sums(a: Any, out: Any) -> None:
    """Write a.sum(axis=0) to `out`: chunks of rows first, then the sums of the chunks."""
    n, width = a.shape
    n_chunks = max(1, -(-n // _ROWS_PER_CHUNK))
    tile_size = _tile_size(width)
    sums = out if n_chunks == 1 else empty((n_chunks, width), a.dtype)
    _launch(
        "column_sums",
        (a.dtype.name,),
        width,
        grid=(-(-width // tile_size), n_chunks),
        a=a,
        n=n,
        width=width,
        rows_per_chunk=_ROWS_PER_CHUNK,
        out=sums,
        tile_size=tile_size,
    )
    if n_chunks > 1:
        column_sums(sums, out)


def dot(a: Any, b: Any) -> float:
    """Return the sum of a * b over all entries, in float64; this waits for the device."""
    return float((a.astype(np.float64) * b).sum())


def squared_norm(a: Any) -> float:
    """Return the sum of squares, in float64; this waits for the device."""
    return read_scalar(_sum(_squares(a))) if a.size else 0.0


def _squares(a: Any) -> Any:
    """Return the sums of squares of each block's part."""
    partial_sums = empty(_n_blocks(a.size), np.float64)
    _launch("squared_norm", (a.dtype.name,), a.size, a=a, n=a.size, partial_sums=partial_sums)
    return partial_sums


def prox(w: Any, step: Any, l1: float, l2: float, lower: float, upper: float) -> None:
    """Replace w by its prox under ``step * (l1, l2, box)``; one step size, or one a weight."""
    _launch(
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


def prox_groups(w: Any, n_groups: int, width: int, threshold: float) -> None:
    """Shrink the norm of each run of `width` weights by `threshold`, down to zero."""
    _launch(
        "prox_groups",
        (w.dtype.name,),
        n_groups,
        w=w,
        n_groups=n_groups,
        width=width,
        threshold=threshold,
    )


# Arrays.


def empty(shape: Any, dtype: Any) -> Any:
    """Return an uninitialised array."""
    return _cupy().empty(shape, dtype=dtype)


def asarray(array: Any, dtype: Any = None) -> Any:
    """Return `array` on this device."""
    return _cupy().asarray(array, dtype=dtype, order="C")


def read_scalar(value: Any) -> float:
    """Return a number that primitives left on the device; this waits for it."""
    return float(value)
