"""Graphs of launches put together by the driver, for which CuPy has no calls."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache
from typing import Any

from skoptim._devices.cuda_launch import cupy


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_driver(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} failed with status {status}")


class Repeated:
    """A recorded graph, some times one after the other, as one that is launched at once.

    Parameters
    ----------
    graph : cupy.cuda.Graph
        Copied.
    n : int
    """

    _ready: int | None = None

    def __init__(self, graph: Any, n: int) -> None:
        runtime, whole = cupy().cuda.runtime, ctypes.c_void_p()
        _call("cuGraphCreate", ctypes.byref(whole), 0)
        try:
            node = ctypes.c_void_p()
            for i in range(n):
                before, n_before = ctypes.c_void_p(node.value), ctypes.c_size_t(min(i, 1))
                _call(
                    "cuGraphAddChildGraphNode",
                    ctypes.byref(node),
                    whole,
                    ctypes.byref(before),
                    n_before,
                    ctypes.c_void_p(graph.graph),
                )
            self._ready = runtime.graphInstantiate(whole.value)
        finally:
            runtime.graphDestroy(whole.value)

    def launch(self, stream: Any) -> None:
        """Launch all of them on a stream."""
        cupy().cuda.runtime.graphLaunch(self._ready, stream.ptr)

    def __del__(self) -> None:
        # When the interpreter ends, CuPy may be gone.
        if self._ready is not None:
            with suppress(Exception):
                cupy().cuda.runtime.graphExecDestroy(self._ready)
