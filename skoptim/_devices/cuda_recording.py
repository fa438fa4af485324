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

from skoptim._devices.cuda_launch import Moving, cupy, keeping, launch, recorded_on

Take = Callable[[Any, int], Any]


class Recording:
    """The steps of a training, of which the first is taken one launch at a time, others replayed.

    A step is a function of its number and the number of samples that returns the batch's loss (a
    float64 scalar on the device). It must always use the same memory: what it allocates through
    `cuda_launch.empty` is kept, and nothing else may be allocated.
    """

    def __init__(self) -> None:
        xp = cupy()
        #: Steps so far: in the block, and overall.
        self._counters = xp.zeros(2, dtype=np.int64)
        self._sum = xp.zeros(1, dtype=np.float64)
        self._graph: Any = None
        self._batch_size: int | None = None

    def start(self, n_before: int) -> None:
        """Begin a block of steps, before which there were `n_before`."""
        self._sum.fill(0)
        self._n_before = n_before
        self._next: int | None = None

    def take(self, take: Take, step: int, n: int) -> None:
        """Take step number `step`, of `n` samples, and add up its loss."""
        if n != self._batch_size:
            # The first step, which compiles the kernels it needs, or the rest of an epoch.
            self._sum += take(step, n)
            self._batch_size = self._batch_size or n
            return
        if self._graph is None:
            self._record(take, n)
        if self._next != step:
            self._counters[...] = cupy().asarray([step, self._n_before + step])
        self._graph.launch(cupy().cuda.get_current_stream())
        self._next = step + 1

    @property
    def loss(self) -> Any:
        """The sum of the losses of the block, on the device."""
        return self._sum[0]

    def _record(self, take: Take, n: int) -> None:
        stream = cupy().cuda.Stream(non_blocking=True)
        overall = Moving(0, 1, self._counters[1:])
        step = Moving(0, 1, self._counters[:1], overall)
        with recorded_on(stream), keeping() as self._kept:
            stream.begin_capture()
            try:
                loss = take(step, n)
                launch("advance", (), 1, loss=loss, sum=self._sum, counters=self._counters)
            except BaseException:
                with suppress(Exception):
                    stream.end_capture()
                raise
            self._graph = stream.end_capture()
