"""How many threads to use: as many as BLAS may, whose limits users, and joblib, know to set."""

from __future__ import annotations

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


def limit() -> int:
    """Return how many threads to use at most."""
    with _lock:
        return min(_limits(), default=1)


@contextmanager
def alone() -> Iterator[int]:
    """Let BLAS use the calling threads alone; gives how many of these there should be.

    Where several Python threads are inside at once, they share what the limit allows.
    """
    global _n_inside
    with _lock:
        limits = _limits()
        if _n_inside == 0:
            _before[:] = limits
            for library in _libraries():
                library.set_num_threads(1)
        _n_inside += 1
        n_threads = max(1, min(limits, default=1) // _n_inside)
    try:
        yield n_threads
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                for library, n in zip(_libraries(), _before, strict=True):
                    library.set_num_threads(n)


def _limits() -> list[int]:
    return list(_before) if _n_inside else [library.num_threads for library in _libraries()]


@cache
def _libraries() -> list[Any]:
    """Return the BLAS libraries in use; found once, because looking for them takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers
