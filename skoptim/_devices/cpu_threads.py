"""How many threads to use: as many as BLAS may, whose limits users, and joblib, know to set."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
# The limits of the libraries before the first of those that are inside `alone` came.
_before: list[int] = []
_n_inside = 0
_n_fits = 0


def limit() -> int:
    """Return how many threads to use at most."""
    with _lock:
        return min(_limits(), default=1)


@contextmanager
def taking_part() -> Iterator[None]:
    """Count a fit, for as long as it lasts, among those that share what the limit allows."""
    global _n_fits
    with _lock:
        _n_fits += 1
    try:
        yield
    finally:
        with _lock:
            _n_fits -= 1


@contextmanager
def alone() -> Iterator[int]:
    """Let BLAS use the calling threads alone; gives how many of these there should be.

    Fits in several Python threads share what the limit allows, also while one of them is between
    two calls: threads that have to wait for a processor would hold up all others of their fit.
    """
    global _n_inside
    with _lock:
        limits = _limits() if _is_controlled() else []
        if _n_inside == 0:
            _before[:] = limits
            _set_limits([1] * len(limits))
        _n_inside += 1
        n_threads = max(1, min(limits, default=1) // max(_n_fits, _n_inside))
    try:
        yield n_threads
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                _set_limits(_before)


def _limits() -> list[int]:
    return list(_before) if _n_inside else [library.num_threads for library in _libraries()]


def _set_limits(limits: list[int]) -> None:
    for library, n in zip(_libraries() if limits else [], limits, strict=True):
        # threadpoolctl lets one thread at a time set the limits, the first that does.
        clear = getattr(library, "clear_controlling_thread", lambda **_: None)
        clear(force=True)
        library.set_num_threads(n)
        clear()


def _is_controlled() -> bool:
    """Whether limits hold for all threads: those of OpenMP are each thread's own.

    Where they do not, BLAS goes on to use threads of its own, and we one.
    """
    return all(getattr(library, "threading_layer", "") != "openmp" for library in _libraries())


@cache
def _libraries() -> list[Any]:
    """Return the BLAS libraries in use; found once, because looking for them takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _forget_other_threads() -> None:
    """Start anew in a forked process, which has none of the threads that were inside."""
    global _lock, _n_inside, _n_fits
    _lock = threading.Lock()
    if _n_inside:
        _set_limits(_before)
    _n_inside = _n_fits = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
