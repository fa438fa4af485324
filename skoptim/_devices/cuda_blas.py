"""Matrix products by the cuBLAS that CuPy has loaded, also while launches are recorded.

CuPy refuses its own cuBLAS calls while a stream records (cupy#6290), because cuBLAS would then
allocate memory. With a workspace that it is given it does not.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from typing import Any

import numpy as np

from skoptim._devices.cuda_launch import cupy, current_side

# What cuBLAS recommends for Hopper; earlier devices want less.
_WORKSPACE_BYTES = 32 * 2**20
_TF32 = 3  # CUBLAS_TF32_TENSOR_OP_MATH
_ALLOC_FAILED = 3  # CUBLAS_STATUS_ALLOC_FAILED


class _Workspaces(threading.local):
    def __init__(self) -> None:
        self.found: dict[tuple[int, int], Any] = {}


_workspaces = _Workspaces()


@cache
def _library() -> ctypes.CDLL:
    major = cupy().cuda.runtime.runtimeGetVersion() // 1000
    cupy().cuda.device.get_cublas_handle()  # Loads the library, wherever CuPy found it.
    windows = sys.platform == "win32"
    name = f"cublas64_{major}.dll" if windows else f"libcublas.so.{major}"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(
            f'device="cuda" needs {name}: pip install "cupy-cuda{major}x[ctk]", or install the '
            "CUDA toolkit."
        ) from error


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_library(), function)(*arguments)
    if status == _ALLOC_FAILED:
        raise MemoryError(
            f"The GPU has too little memory for {function} (CUBLAS_STATUS_ALLOC_FAILED): lower "
            'batch_size, or use device="cpu".'
        )
    if status:
        raise RuntimeError(f"{function} failed with status {status}")


def _handle() -> ctypes.c_void_p:
    """Return this thread's handle, on the current stream, with our workspace."""
    # Products that may run beside one another need workspaces of their own.
    key = cupy().cuda.runtime.getDevice(), current_side()
    handle = ctypes.c_void_p(cupy().cuda.device.get_cublas_handle())
    workspace = _workspaces.found.get(key)
    if workspace is None:
        workspace = cupy().empty(_WORKSPACE_BYTES, dtype=np.uint8)
        _workspaces.found[key] = workspace
        if os.environ.get("CUPY_TF32") == "1":
            _call("cublasSetMathMode", handle, _TF32)
    # In this order: a new stream brings the default workspace back.
    _call("cublasSetStream_v2", handle, ctypes.c_void_p(cupy().cuda.get_current_stream().ptr))
    pointer, size = ctypes.c_void_p(workspace.data.ptr), ctypes.c_size_t(_WORKSPACE_BYTES)
    _call("cublasSetWorkspace_v2", handle, pointer, size)
    return handle


def gemm(a: Any, b: Any, out: Any) -> None:
    """Write a @ b to `out` (contiguous); `a` and `b` are contiguous or transposed views of such."""
    (m, k), n = a.shape, b.shape[1]
    if out.size == 0:
        return
    if k == 0:
        out.fill(0)
        return
    single = out.dtype == np.float32
    number = ctypes.c_float if single else ctypes.c_double
    one, zero = number(1), number(0)
    # cuBLAS counts columns first: it computes out.T = b.T @ a.T, and sees each array transposed.
    _call(
        "cublasSgemm_v2" if single else "cublasDgemm_v2",
        _handle(),
        *(_transposed(b), _transposed(a)),
        *(n, m, k),
        ctypes.byref(one),
        *_matrix(b),
        *_matrix(a),
        ctypes.byref(zero),
        *_matrix(out),
    )


def _transposed(array: Any) -> int:
    return int(not array.flags.c_contiguous)


def _matrix(array: Any) -> tuple[ctypes.c_void_p, int]:
    """Return the address and the length of a row as it lies in memory."""
    length = array.shape[0] if _transposed(array) else array.shape[1]
    return ctypes.c_void_p(array.data.ptr), length
