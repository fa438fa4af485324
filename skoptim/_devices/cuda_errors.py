"""What goes wrong around a GPU, said in one line with the remedy; works without CuPy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: The process in which CUDA was first used.
_process: int | None = None

_AFTER_FORK = (
    'device="cuda": CUDA was in use when this process was forked, and does not work in the fork; '
    'start workers with joblib\'s "loky" backend (its default) or multiprocessing\'s "spawn" '
    'method, or use device="cpu".'
)

# How CUDA's libraries name it, where CuPy's allocator has no part in it.
_OUT_OF_MEMORY = ("cudaErrorMemoryAllocation", "OUT_OF_MEMORY", "ALLOC_FAILED")


def refuse_after_fork() -> None:
    """Raise RuntimeError in a process that was forked from one that had used CUDA.

    CUDA itself would fail there with an error that names no cause, or hang.
    """
    if _process is not None and _process != os.getpid():
        raise RuntimeError(_AFTER_FORK)


def remember_process() -> None:
    """Note that CUDA is in use in this process."""
    global _process
    _process = os.getpid()


@contextmanager
def fork_explained() -> Iterator[None]:
    """Explain the error of a fork whose parent had used CUDA through another library."""
    try:
        yield
    except RuntimeError as error:
        if "cudaErrorInitializationError" in str(error):
            raise RuntimeError(f"{_AFTER_FORK} ({error})") from error
        raise


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Say what to lower when the memory of the device does not suffice.

    Raises
    ------
    MemoryError
        With the number of bytes that CuPy asked for.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"The GPU has too little memory: {error} Lower batch_size, pass X as float32, pass "
            'fewer rows at once, or use device="cpu".'
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CuPy, or a library under it, found no memory on the device."""
    if not type(error).__module__.startswith("cupy"):
        return False
    return isinstance(error, MemoryError) or any(name in str(error) for name in _OUT_OF_MEMORY)
