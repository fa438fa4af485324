"""A feed-forward network over one flat parameter buffer; a linear model has no hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from skoptim._devices import cpu_training
from skoptim.activations import Activation
from skoptim.losses import Loss
from skoptim.penalties import PenaltyTerms


@dataclass
class Dataset:
    """Samples on the device: some or all rows of a `Matrix`, their targets and weights.

    `weights` (or None) have mean one over the rows taken; `rows` None takes all. `target_moments`
    are those of the targets taken, where scores are in their units.
    """

    X: Any
    targets: Any = None
    weights: Any = None
    rows: Any = None
    target_moments: Any = None

    @property
    def n_samples(self) -> int:
        """Number of rows taken."""
        return self.X.shape[0] if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class Batch:
    """Which rows of a dataset: rows[first:first + n], or `n` from `first` on (`rows` is None).

    `first` moves with the steps while these are recorded, see `_devices.cuda_launch.Moving`.
    """

    n: int
    rows: Any = None
    first: Any = 0


@dataclass
class Views:
    """A flat parameter (or gradient) buffer seen layer by layer."""

    coefs: list[Any]
    intercepts: list[Any]


class FirstLayer:
    """The first layer on CSR data, of which a step reads and changes the touched columns alone.

    Parameters
    ----------
    updater : updater of the device
    touched : Touched of the device
        The batch.
    step : int
        Number of the step in the updater's block.

    Attributes
    ----------
    delta : array of shape (n, n_units)
        The derivatives of the loss with respect to what the layer gives.
    """

    delta: Any

    def __init__(self, updater: Any, touched: Any, step: int):
        self.updater, self.touched, self.step = updater, touched, step

    def multiply(self, z: Any) -> None:
        """Pay the columns their owed steps; write the batch times the coefficients to z."""
        self.updater.multiply_touched(self.touched.native, self.step, z)

    def apply(self, factor: float) -> None:
        """Take a step with `factor` times the gradient."""
        self.updater.apply_touched(self.touched.native, self.delta, factor, self.step)


class Network:
    """Forward and backward passes into buffers that are allocated once.

    Parameters
    ----------
    layer_sizes : sequence of int
        Inputs, hidden units of each layer, outputs.
    activation : Activation or None
        Of the hidden layers; None without any.
    loss : Loss
        On the raw scores of the last layer.
    device : module
        The primitives, `_devices.cpu` or `_devices.cuda`.
    dtype : dtype
        float32 or float64.
    fit_intercept : bool, default=True
        Whether intercepts get a gradient; else they stay where they are.
    dropout : float, default=0.0
        Share of the hidden units silenced in each training step.

    Attributes
    ----------
    parameters : array of shape (n_parameters,)
        Coefficients of all layers, each (fan_in, fan_out) row by row, then all intercepts.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: Activation | None,
        loss: Loss,
        *,
        device: Any,
        dtype: Any,
        fit_intercept: bool = True,
        dropout: float = 0.0,
    ):
        self.layer_sizes = list(layer_sizes)
        self.activation, self.loss = activation, loss
        self.device, self.dtype = device, np.dtype(dtype)
        self.fit_intercept, self.dropout = fit_intercept, dropout
        self.shapes = list(pairwise(self.layer_sizes))
        self.n_coefficients = sum(a * b for a, b in self.shapes)
        self._capacity = 0
        self._task: Any = None
        self._planned: Any = None

    @cached_property
    def parameters(self) -> Any:
        """The flat parameters, zero at first; a network that only predicts never makes them."""
        size = self.n_coefficients + sum(self.layer_sizes[1:])
        return self.device.xp.zeros(size, dtype=self.dtype)

    def twin(self) -> Network:
        """Return a network of the same layers with buffers of its own."""
        twin = copy(self)
        twin._capacity = 0
        return twin

    @property
    def is_compiled(self) -> bool:
        """Whether all of it is compiled code, no function of the user's."""
        return self.activation is None or self.activation.name is not None

    @property
    def is_native(self) -> bool:
        """Whether native code can pass over many samples in one call."""
        return self.is_compiled and self.device.name == "cpu"

    @property
    def n_layers(self) -> int:
        """Number of layers of weights."""
        return len(self.shapes)

    @property
    def first_layer_size(self) -> int:
        """Number of coefficients of the first layer, which lead the flat buffer."""
        return self.layer_sizes[0] * self.layer_sizes[1]

    def views(self, flat: Any) -> Views:
        """Return the layers of a flat buffer, without copying."""
        coefs, intercepts, start = [], [], 0
        for shape in self.shapes:
            stop = start + shape[0] * shape[1]
            coefs.append(flat[start:stop].reshape(shape))
            start = stop
        for size in self.layer_sizes[1:]:
            intercepts.append(flat[start : start + size])
            start += size
        return Views(coefs, intercepts)

    def initialise(self, random_state: np.random.RandomState, gain: float = 6.0) -> None:
        """Draw the weights uniformly within Glorot's bounds; drawn on the host on any device."""
        flat = np.empty(self.parameters.shape, dtype=np.float64)
        views = self.views(flat)
        for (fan_in, fan_out), coef, intercept in zip(
            self.shapes, views.coefs, views.intercepts, strict=True
        ):
            bound = np.sqrt(gain / (fan_in + fan_out))
            coef[...] = random_state.uniform(-bound, bound, coef.shape)
            intercept[...] = random_state.uniform(-bound, bound, intercept.shape)
        self.parameters[...] = self.device.asarray(flat, dtype=self.dtype)

    def locate(self, terms: PenaltyTerms) -> PenaltyTerms:
        """Return the penalty with the places of coefficients and groups filled in."""
        return replace(
            terms,
            n_penalised=self.n_coefficients,
            n_groups=self.layer_sizes[0],
            group_size=self.layer_sizes[1],
        )

    # Buffers.

    def reserve(self, n: int) -> None:
        """Make room for batches of up to `n` rows."""
        if n <= self._capacity:
            return
        empty, dtype, sizes = self.device.empty, self.dtype, self.layer_sizes[1:]
        self._capacity = n
        self._scores = [empty((n, size), dtype) for size in sizes]
        hidden = sizes[:-1]
        keep_input = self.activation is not None and self.activation.needs_input
        self._outputs = (
            [empty((n, size), dtype) for size in hidden] if keep_input else self._scores[:-1]
        )
        self._dropped = [empty((n, size), dtype) for size in hidden] if self.dropout else []
        self._deltas = [empty((n, size), dtype) for size in sizes]
        self._inputs: Any = None

    def _gather(self, data: Dataset, batch: Batch) -> Any:
        """Return the dense rows of a batch; consecutive ones that stand still are a view."""
        if batch.rows is None and isinstance(batch.first, int):
            return data.X.array[batch.first : batch.first + batch.n]
        if self._inputs is None:
            # Not by `device.empty`: it outlives the recording in which it may first be needed.
            shape = self._capacity, self.layer_sizes[0]
            self._inputs = self.device.xp.empty(shape, dtype=self.dtype)
        out = self._inputs[: batch.n]
        self.device.gather_rows(data.X.array, batch.rows, batch.first, out)
        return out

    # Passes.

    def forward(
        self,
        data: Dataset,
        batch: Batch,
        views: Views,
        inputs: Any,
        dropout_key: Any = None,
        first_layer: FirstLayer | None = None,
    ) -> Any:
        """Return the raw scores of a batch, (n, n_outputs), but for the last intercepts.

        They lie in a buffer. `inputs` are the gathered dense rows, None for CSR. `dropout_key` is
        (seed, step) while training with dropout.
        """
        device, n = self.device, batch.n
        previous = inputs
        for i, (coef, intercept) in enumerate(zip(views.coefs, views.intercepts, strict=True)):
            z = self._scores[i][:n]
            if i == 0 and first_layer is not None:
                first_layer.multiply(z)
            elif i == 0 and data.X.is_sparse:
                device.csr_matmul(data.X, batch.rows, batch.first, coef, z)
            else:
                device.matmul(previous, coef, z)
            if i == self.n_layers - 1:
                return z
            assert self.activation is not None
            previous = self._outputs[i][:n]
            self.activation.forward(device, z, intercept, previous)
            if dropout_key is not None and self.dropout:
                dropped = self._dropped[i][:n]
                device.dropout(previous, *self._stream(dropout_key, i), self.dropout, dropped)
                previous = dropped
        raise AssertionError("a network has at least one layer")

    def _stream(self, dropout_key: tuple[int, int], layer: int) -> tuple[int, int]:
        seed, step = dropout_key
        return seed, step * self.n_layers + layer

    def loss_and_gradient(
        self,
        data: Dataset,
        batch: Batch,
        views: Views,
        gradient: Views,
        scale: float,
        *,
        first_layer: FirstLayer | None = None,
        dropout_key: Any = None,
    ) -> float:
        """Return the weighted sum of a batch's losses; leave `scale` times its gradient.

        Parameters
        ----------
        data, batch
            What to read.
        views : Views
            The parameters.
        gradient : Views
            Where the gradient goes. The first layer of CSR data is added to, so it starts at zero.
        scale : float
            Factor on the gradient, as 1 / n for a mean.
        first_layer : FirstLayer or None
            Multiplies by the first layer, and keeps what its gradient is made of. The rest of the
            gradient is then there after `device.join()`.
        dropout_key : tuple of int or None
            (seed, step).
        """
        device, n = self.device, batch.n
        self.reserve(n)
        inputs = None if data.X.is_sparse else self._gather(data, batch)
        scores = self.forward(data, batch, views, inputs, dropout_key, first_layer)
        delta = self._deltas[-1][:n]
        loss = device.loss_gradient(
            self.loss.name,
            scores,
            data.targets,
            batch.rows,
            batch.first,
            data.weights,
            self.loss.parameter,
            scale,
            delta,
            views.intercepts[-1],
        )
        with device.aside(1):
            device.column_sums(delta, gradient.intercepts[-1])
        for i in reversed(range(self.n_layers)):
            if i == 0 and first_layer is not None:
                first_layer.delta = delta
            elif i == 0 and data.X.is_sparse:
                device.csr_gradient(data.X, batch.rows, batch.first, delta, gradient.coefs[0])
            else:
                with device.aside(2):
                    below = self._layer_input(i, inputs, n, dropout_key)
                    device.matmul(below.T, delta, gradient.coefs[i])
            if i > 0:
                delta = self._back(i, delta, views, n, dropout_key, gradient.intercepts[i - 1])
        if first_layer is None or not self.fit_intercept:
            device.join()
        if not self.fit_intercept:
            for sums in gradient.intercepts:
                sums.fill(0)
        return loss

    def _layer_input(self, i: int, inputs: Any, n: int, dropout_key: Any) -> Any:
        if i == 0:
            return inputs
        dropped = dropout_key is not None and self.dropout
        return (self._dropped if dropped else self._outputs)[i - 1][:n]

    def _back(self, i: int, delta: Any, views: Views, n: int, dropout_key: Any, sums: Any) -> Any:
        """Take the derivatives from the inputs of layer i to the scores of the layer below.

        Their sums over the batch go to `sums`.
        """
        below = self._deltas[i - 1][:n]
        self.device.matmul(delta, views.coefs[i].T, below)
        if dropout_key is not None and self.dropout:
            self.device.dropout(below, *self._stream(dropout_key, i - 1), self.dropout, below)
        assert self.activation is not None
        z, a = self._scores[i - 1][:n], self._outputs[i - 1][:n]
        self.activation.backward(self.device, z, a, below, sums)
        return below

    # Whole datasets, in chunks.

    @property
    def _chunk_rows(self) -> int:
        return max(256, 2**21 // max(self.layer_sizes[1:]))

    def chunks(self, data: Dataset) -> list[Batch]:
        """Return batches that cover all samples in order, in bounded memory."""
        size, n_samples, rows = self._chunk_rows, data.n_samples, data.rows
        return [
            Batch(min(size, n_samples - first), rows, first) for first in range(0, n_samples, size)
        ]

    def scores(self, data: Dataset, views: Views) -> Any:
        """Return the raw scores of all samples, shape (n_samples, n_outputs)."""
        out = self.device.empty((data.n_samples, self.layer_sizes[-1]), self.dtype)
        if self.is_native:
            cpu_training.scores(self, data, views, out)
            return out
        for batch in self.chunks(data):
            self.reserve(batch.n)
            inputs = None if data.X.is_sparse else self._gather(data, batch)
            stop = batch.first + batch.n
            out[batch.first : stop] = self.forward(data, batch, views, inputs)
            out[batch.first : stop] += views.intercepts[-1]
        return out

    def mean_loss(self, data: Dataset, scores: Any) -> float:
        """Return the mean loss of given scores."""
        name, parameter = self.loss.name, self.loss.parameter
        total = self.device.loss_gradient(
            name, scores, data.targets, data.rows, 0, data.weights, parameter, 1.0, None
        )
        return self.device.read_scalar(total) / data.n_samples

    def full_gradient(self, data: Dataset, flat: Any, out: Any) -> float:
        """Return the mean loss over all samples at `flat`; write its gradient to `out`."""
        if self.is_native:
            if self._task is None or self._task[0] is not data:
                self._task = data, cpu_training.make_task(self, data)
            return cpu_training.full_gradient(self._task[1], data, flat, out) / data.n_samples
        if data.X.is_sparse and self._planned is not data:
            data.X.plan(data.rows, 0, data.n_samples, self._chunk_rows, self.layer_sizes[1])
            self._planned = data
        out.fill(0)
        views, total, batches = self.views(flat), 0.0, self.chunks(data)
        part = out if len(batches) == 1 else self.device.xp.zeros_like(out)
        for batch in batches:
            part.fill(0)
            total += self.device.read_scalar(
                self.loss_and_gradient(data, batch, views, self.views(part), 1 / data.n_samples)
            )
            if part is not out:
                out += part
        return total / data.n_samples
