"""Training steps recorded once and replayed: one launch in place of a dozen a step.

From Python a launch takes longer than a small network's kernel runs. A CUDA graph of a whole step
takes one call, and one of several steps leaves no gap between them. What changes from step to step
lies on the device: a counter of the steps, from which kernels find the batch, the scalars and the
dropout mask.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from skoptim._devices.cuda_graphs import Repeated
from skoptim._devices.cuda_launch import (
    Moving,
    cupy,
    join,
    keeping,
    launch,
    recording_stream,
)

Take = Callable[[Any, int], Any]

_STEPS_AT_ONCE = 8
#: Putting them together takes a millisecond; steps of a few small kernels are then shorter.
_STEPS_BEFORE = 256


class Recording:
    """The steps of a training: the first is taken launch by launch, others are replayed.

    A step is a function of its number and the number of samples that returns the batch's loss (a
    float64 scalar on the device). It must always use the same memory: what it allocates through
    `cuda_launch.empty` while it is recorded is kept, and nothing else may be allocated.

    Parameters
    ----------
    batch_size : int
        The number of samples of the steps to replay; others are taken launch by launch.

    Attributes
    ----------
    n_taken : int
        Steps of the block so far.
    """

    n_taken = 0

    def __init__(self, batch_size: int) -> None:
        xp = cupy()
        self._batch_size = batch_size
        #: Steps so far: in the block, and overall.
        self._counters = xp.zeros(2, dtype=np.int64)
        self._sum = xp.zeros(1, dtype=np.float64)
        self._is_warm = False
        self._n_replayed = 0
        self._graphs: dict[int, Any] = {}
        self._kept: list[Any] = []

    def run(self, take: Take, n_samples: int, n_before: int) -> None:
        """Take the steps of a block of `n_samples`, before which there were `n_before` steps."""
        self._sum.fill(0)
        self.n_taken, counted = 0, None
        size = self._batch_size
        n_full, n_steps = n_samples // size, -(-n_samples // size)
        while self.n_taken < n_steps:
            step = self.n_taken
            if step < n_full and self._is_warm:
                many = self._n_replayed >= _STEPS_BEFORE and step + _STEPS_AT_ONCE <= n_full
                n_steps_now = _STEPS_AT_ONCE if many else 1
                graph = self._graph(take, n_steps_now)
                if counted != step:
                    self._counters[...] = cupy().asarray([step, n_before + step])
                # Counted first: an interrupt is raised right after the launch.
                self.n_taken = counted = step + n_steps_now
                graph.launch(cupy().cuda.get_current_stream())
                self._n_replayed += n_steps_now
            else:
                # The first step compiles the kernels, and allocates what later ones use.
                self._sum += take(step, min(size, n_samples - step * size))
                self._is_warm = self._is_warm or step < n_full
                self.n_taken = step + 1

    @property
    def loss(self) -> Any:
        """The sum of the losses of the block, on the device."""
        return self._sum[0]

    def _graph(self, take: Take, n_steps: int) -> Any:
        """Return the recording of so many steps, made when it is first asked for."""
        if n_steps not in self._graphs:
            one = self._recorded(take) if n_steps == 1 else Repeated(self._graphs[1], n_steps)
            self._graphs[n_steps] = one
        return self._graphs[n_steps]

    def _recorded(self, take: Take) -> Any:
        with recording_stream() as stream, keeping(self._kept):
            stream.begin_capture()
            try:
                in_block, overall = (Moving(0, 1, self._counters[i : i + 1]) for i in (0, 1))
                loss = take(replace(in_block, overall=overall), self._batch_size)
                join()
                launch("end_step", (), 1, loss=loss, sum=self._sum, counters=self._counters)
            except BaseException:
                with suppress(Exception):
                    stream.end_capture()
                raise
            return stream.end_capture()
