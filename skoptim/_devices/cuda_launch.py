"""Launching our kernels: compiled when first needed, with arguments by name.

CuPy is imported when first needed, compiles through NVRTC and keeps kernels on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from skoptim._devices import is_cuda_array, kernel_sources
from skoptim._devices.kernel_sources import BLOCK_SIZE

WARP_SIZE = 32
MOST_BLOCKS = 1024


@cache
def cupy() -> Any:
    """Return the module, or say how to install it."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            'device="cuda" needs CuPy: pip install "skoptim[cuda12]", or "skoptim[cuda13]" with a '
            'CUDA 13 driver; or use device="cpu".'
        ) from error
    return cupy


@dataclass(frozen=True)
class Moving:
    """An integer that moves with recorded steps: offset + per_step * (number of steps so far).

    The number of steps lies on the device, in `counter` of shape (1,), where a kernel reads it.
    `overall` is the same, if known, counted from the beginning of the training.
    """

    offset: int
    per_step: int
    counter: Any
    overall: Moving | None = None

    def __add__(self, other: int) -> Moving:
        return Moving(self.offset + other, self.per_step, self.counter)

    def __mul__(self, other: int) -> Moving:
        return Moving(self.offset * other, self.per_step * other, self.counter)

    def __floordiv__(self, other: int) -> Moving:
        if self.offset % other or self.per_step % other:
            raise ValueError(f"{self} is not always a multiple of {other}")
        return Moving(self.offset // other, self.per_step // other, self.counter)

    __radd__, __rmul__ = __add__, __mul__


@dataclass(frozen=True)
class _Launcher:
    """A compiled kernel that takes its arguments by name, in the types that its source declares."""

    kernel: Any
    parameters: tuple[tuple[str, bool, np.dtype], ...]
    block_size: int

    def __call__(self, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        given = _spread(arguments)
        if unknown := given.keys() - {parameter for parameter, _, _ in self.parameters}:
            raise TypeError(f"{self.kernel} has no parameters {sorted(unknown)}")
        values = [
            _array_argument(parameter, given[parameter], dtype)
            if is_array
            else dtype.type(given[parameter])
            for parameter, is_array, dtype in self.parameters
        ]
        self.kernel(grid, (self.block_size,), tuple(values))


def _spread(arguments: dict[str, Any]) -> dict[str, Any]:
    """Give each number that may move as offset and change per step; one counter serves all."""
    spread = dict(arguments)
    counter = None
    for name, value in arguments.items():
        if name in kernel_sources.MOVING:
            moves = isinstance(value, Moving)
            if moves:
                assert counter is None or counter is value.counter
                counter = value.counter
            spread[name] = value.offset if moves else value
            spread[name + "_per_step"] = value.per_step if moves else 0
            spread["counter"] = counter
    return spread


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
    module = cupy().RawModule(
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
        kernel.block_size,
    )


def launch(
    kernel: str, template: tuple[str, ...], n_threads: int, /, *, grid: Any = None, **arguments: Any
) -> None:
    """Run a kernel on about `n_threads` threads, or on a grid; its arguments go by name."""
    if n_threads > 0:
        launcher = _launcher(kernel, template)
        launcher(grid or (n_blocks(n_threads, launcher.block_size),), arguments)


def n_blocks(n_threads: int, block_size: int = BLOCK_SIZE) -> int:
    """Return the size of the grid; from the work alone, so that sums repeat on any device.

    No more blocks than a large device runs at once: what a thread reads first, it reads once.
    """
    return min(-(-n_threads // block_size), MOST_BLOCKS)


def tile_size(width: int) -> int:
    """Return how many threads share an item of that width: a power of two up to a warp."""
    return min(WARP_SIZE, 1 << max(width - 1, 0).bit_length())


# Memory.


class _OfThread(threading.local):
    """What calls of one thread share; the device runs them one after the other."""

    def __init__(self) -> None:
        self.kept: list[Any] | None = None
        self.sides: dict[int, Any] = {}
        self.waiting: set[int] = set()
        self.side = 0
        self.streams: dict[int, list[Any]] = {}


_of_thread = _OfThread()


def empty(shape: Any, dtype: Any) -> Any:
    """Return an uninitialised array."""
    array = cupy().empty(shape, dtype=dtype)
    if _of_thread.kept is not None:
        _of_thread.kept.append(array)
    return array


@contextmanager
def keeping(kept: list[Any]) -> Iterator[None]:
    """Let `empty` add its arrays to `kept`.

    Recorded launches go on using them, so their memory must not serve for anything else.
    """
    outer, _of_thread.kept = _of_thread.kept, kept
    try:
        yield
    finally:
        _of_thread.kept = outer


# Launches beside one another.


@contextmanager
def aside(side: int) -> Iterator[None]:
    """While a step is recorded, let what is launched here run beside what follows, until `join`.

    There are two such sides, 1 and 2; on each, launches run in their order.
    """
    if not _of_thread.sides:
        yield
        return
    stream = _of_thread.sides[side]
    stream.wait_event(cupy().cuda.get_current_stream().record())
    _of_thread.waiting.add(side)
    _of_thread.side = side
    try:
        with stream:
            yield
    finally:
        _of_thread.side = 0


def join() -> None:
    """Let what follows here, on a side too, wait for all that was launched aside."""
    others = _of_thread.waiting - {_of_thread.side}
    for side in sorted(others):
        cupy().cuda.get_current_stream().wait_event(_of_thread.sides[side].record())
    _of_thread.waiting -= others


def current_side() -> int:
    """Return which side is launched on; 0 for none."""
    return _of_thread.side


@contextmanager
def recording_stream() -> Iterator[Any]:
    """Give the stream on which this thread records launches, and those aside with them.

    CuPy keeps freed memory by streams, so these serve again and again.
    """
    device, new = cupy().cuda.runtime.getDevice(), cupy().cuda.Stream
    if device not in _of_thread.streams:
        _of_thread.streams[device] = [new(non_blocking=True) for _ in range(3)]
    stream, *sides = _of_thread.streams[device]
    _of_thread.sides = dict(enumerate(sides, start=1))
    try:
        with stream:
            yield stream
    finally:
        _of_thread.sides = {}
        _of_thread.waiting.clear()
