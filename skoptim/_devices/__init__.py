"""The narrow waist: the same few primitives over NumPy arrays (cpu) and CuPy arrays (cuda)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp

from skoptim._devices import cpu, cuda_errors

__all__ = ["cpu", "cuda_device", "device_of", "is_cuda_array", "select_device", "to_host"]


def is_cuda_array(array: Any) -> bool:
    """Whether `array` is a CuPy array or a cupyx sparse matrix; imports nothing."""
    kind = type(array)
    return kind is not np.ndarray and kind.__module__.partition(".")[0] in ("cupy", "cupyx")


def cuda_device() -> ModuleType:
    """Return the CUDA primitives, or say in one line what is missing."""
    from skoptim._devices import cuda

    cuda_errors.refuse_after_fork()
    with cuda_errors.fork_explained():
        cuda.require_device()
    cuda_errors.remember_process()
    return cuda


def device_of(array: Any) -> ModuleType:
    """Return the primitives of the device that holds `array`."""
    return cuda_device() if is_cuda_array(array) else cpu


def select_device(X: Any, device: str | None) -> ModuleType:
    """Return the primitives for a fit on `X`: where X is, unless `device` says otherwise."""
    if device == "cuda" or (device is None and is_cuda_array(X)):
        return cuda_device()
    return cpu


def to_host(array: Any) -> Any:
    """Return `array` as NumPy or SciPy, copying only what is on another device."""
    if isinstance(array, np.ndarray | np.generic) or sp.issparse(array):
        return array
    return array.get() if is_cuda_array(array) else np.asarray(array)
