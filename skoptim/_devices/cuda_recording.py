"""Training steps recorded once and replayed: one launch a step in place of a dozen.

From Python a launch takes longer than a small network's kernel runs. A CUDA graph of a whole step
takes one call. What changes from step to step lies on the device: a counter of the steps, from
which kernels find the batch, the scalars and the dropout mask.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from skoptim._devices.cuda_launch import Moving, cupy, keeping, launch, recording_stream

Take = Callable[[Any, int], Any]


class Recording:
    """The steps of a training: the first is taken launch by launch, others are replayed.

    A step is a function of its number and the number of samples that returns the batch's loss (a
    float64 scalar on the device). It must always use the same memory: what it allocates through
    `cuda_launch.empty` while it is recorded is kept, and nothing else may be allocated.

    Parameters
    ----------
    batch_size : int
        The number of samples of the steps to replay; others are taken launch by launch.
    """

    def __init__(self, batch_size: int) -> None:
        xp = cupy()
        self._batch_size = batch_size
        #: Steps so far: in the block, and overall.
        self._counters = xp.zeros(2, dtype=np.int64)
        self._sum = xp.zeros(1, dtype=np.float64)
        self._is_warm = False
        self._graph: Any = None

    def start(self, n_before: int) -> None:
        """Begin a block of steps, before which there were `n_before`."""
        self._sum.fill(0)
        self._n_before = n_before
        self._counted: int | None = None
        self.n_taken = 0

    def take(self, take: Take, step: int, n: int) -> None:
        """Take step number `step`, of `n` samples, and add up its loss."""
        if n != self._batch_size or not self._is_warm:
            # The first step compiles the kernels, and allocates what later ones use.
            self._sum += take(step, n)
            self._is_warm = self._is_warm or n == self._batch_size
        else:
            if self._graph is None:
                self._record(take)
            if self._counted != step:
                self._counters[...] = cupy().asarray([step, self._n_before + step])
            self._graph.launch(cupy().cuda.get_current_stream())
            self._counted = step + 1
        self.n_taken = step + 1

    @property
    def loss(self) -> Any:
        """The sum of the losses of the block, on the device."""
        return self._sum[0]

    def _record(self, take: Take) -> None:
        overall = Moving(0, 1, self._counters[1:])
        step = Moving(0, 1, self._counters[:1], overall)
        with recording_stream() as stream, keeping() as self._kept:
            stream.begin_capture()
            try:
                loss = take(step, self._batch_size)
                launch("advance", (), 1, loss=loss, sum=self._sum, counters=self._counters)
            except BaseException:
                with suppress(Exception):
                    stream.end_capture()
                raise
            self._graph = stream.end_capture()
