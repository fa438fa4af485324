"""The training loop: batches, steps, epochs, validation, early stopping, history.

Stochastic and full-batch optimizers run in the same loop; for the latter an epoch is one outer
iteration.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skoptim._devices import cpu_threads, cpu_training
from skoptim._network import Batch, Dataset, FirstLayer, Network, Views
from skoptim._table import LinearTable
from skoptim._working_set import WorkingSet
from skoptim.optimizers import Optimizer, OptimizerState
from skoptim.optimizers._base import COMMON, Scalars, bind_updater, effective_unit
from skoptim.penalties import PenaltyTerms

# The scalars prepared at once, in numbers: 8 MB.
_BLOCK_NUMBERS = 2**20
# A loss that has grown by this factor since the first epoch is on its way to infinity.
_EXPLOSION = 1e6
# Rows with a usual entry of a column that its curvature counts besides those there are: without
# them rare columns take steps so long that they swing, with many more all are alike. (With 0, 0.03
# and 1, a path under L1 took 425, 320 and 550 iterations on one text, 501, 511 and 954 on another.)
_UNSEEN_SHARE = 0.03
# From `run` up to who called `fit`, over the estimator's own calls and scikit-learn's decorators.
_TO_THE_CALLER = 7
# Steps of a block that several threads train at once.
_ASYNCHRONOUS_STEPS = 2**14
# Multiplications in one native call, some tenths of a second: between calls an interrupt is heeded.
_BLOCK_MULTIPLICATIONS = 2**33


@dataclass
class Options:
    """How to train; the estimators' parameters of the same names."""

    max_iter: int
    incremental: bool
    batch_size: int
    shuffle: bool
    tol: float | None
    n_iter_no_change: int | float
    early_stopping: bool
    average: int
    verbose: int
    n_workers: int = 1


class _OneByOne:
    """Takes the steps of a block as they come; a recording of the device replays them."""

    n_taken = 0

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def run(self, take: Callable[[int, int], Any], n_samples: int, n_before: int) -> None:
        """Take the steps of a block of `n_samples`, and add up their losses."""
        self.n_taken, self.loss = 0, 0.0
        for first in range(0, n_samples, self._batch_size):
            self.loss += take(self.n_taken, min(self._batch_size, n_samples - first))
            self.n_taken += 1


@dataclass
class Validation:
    """Held-out samples and how to score raw scores on them (higher is better)."""

    data: Dataset
    score: Callable[[Any], float]


class Trainer:
    """Trains a network; the state of the optimizer is changed in place.

    Parameters
    ----------
    network : Network
        Its parameters are the starting point, and the result.
    optimizer : Optimizer
    state : OptimizerState
        Besides the optimizer's own: carries "seed" and "epoch", and the averaged model.
    terms : PenaltyTerms
        The penalty, `alpha` included.
    data : Dataset
        What to train on.
    options : Options
    validation : Validation or None
    on_epoch : callable or None
        Called with the trainer after each epoch; a true answer stops the training.
    table : LinearTable or None
        Where a linear model lies that was trained before and is to be trained on.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        state: OptimizerState,
        terms: PenaltyTerms,
        data: Dataset,
        options: Options,
        *,
        history: dict[str, list[float]],
        validation: Validation | None = None,
        on_epoch: Callable[[Trainer], bool] | None = None,
        table: LinearTable | None = None,
    ):
        self.network, self.optimizer, self.state = network, optimizer, state
        self.terms, self.data, self.options = network.locate(terms), data, options
        self.validation, self.on_epoch = validation, on_epoch
        self.history = history
        self.device = network.device
        self.table = table
        #: Debts in a table are paid under the settings under which they were made.
        self.settings = type(optimizer), _settings_of(optimizer), terms
        self.n_samples = data.n_samples
        self.n_iter = 0
        self.best_score, self.best_loss = -np.inf, np.inf
        self._best_weights: Any = None
        self._epochs_without_improvement = 0
        self._optimality, self._is_stuck = 0.0, False
        self._next_order: Any = None
        self._buffers: dict[str, Any] = {}

    def run(self) -> None:
        """Train until convergence, early stopping, a callback's word, or `max_iter` epochs.

        Raises
        ------
        ValueError
            If the loss or a parameter is no longer finite.

        Warns
        -----
        ConvergenceWarning
            If `tol` was not met: `max_iter` was reached, or a full-batch optimizer finds no step.
        """
        finished, self._next_order = False, None
        if self.optimizer.is_full_batch:
            self._measure_curvature()
            self._working_set = WorkingSet(
                self.network, self.optimizer, self.state, self.terms, self.data
            )
        else:
            self._prepare()
        # A divergence is found, and told, by _check_finite.
        with np.errstate(all="ignore"), cpu_threads.taking_part():
            try:
                for _ in range(self.options.max_iter):
                    if finished := self._epoch():
                        break
            except KeyboardInterrupt:
                if self.n_iter == 0:
                    raise  # There is no epoch to publish.
                warnings.warn("Training interrupted by user.", stacklevel=_TO_THE_CALLER)
                finished = True
        if self.options.early_stopping and self._best_weights is not None:
            self._restore_best()
        if self._is_stuck and self.options.tol is not None:
            why, remedy = (
                (f"that may be below what {self.network.dtype} allows", "scale the features")
                if self.network.loss.is_smooth
                else ("the loss is not smooth", "use a stochastic optimizer")
            )
            warnings.warn(
                f"{type(self.optimizer).__name__} finds no step any more that improves the "
                f"objective, at an optimality of {self._optimality:.1e} where "
                f"tol={self.options.tol} asks for {self._enough():.1e}: {why}. Raise tol, or "
                f"{remedy}.",
                ConvergenceWarning,
                stacklevel=_TO_THE_CALLER,
            )
        if not finished and self.options.tol is not None:
            warnings.warn(
                f"{type(self.optimizer).__name__} reached max_iter={self.options.max_iter} epochs "
                f"before tol={self.options.tol} was met; raise max_iter or tol, or change the "
                "optimizer's settings.",
                ConvergenceWarning,
                stacklevel=_TO_THE_CALLER,
            )

    @property
    def weights(self) -> Any:
        """The flat parameters of the model as it stands: averaged ones once averaging began."""
        if self.table is not None:
            self.table.write_weights()
        count = self.state.carries.get("averaged_steps", 0.0)
        if not count:
            return self.network.parameters
        averaged = (self.state.slots["average_sum"] / count).astype(self.network.dtype)
        if self.terms.is_constrained:
            # The mean of many copies of a bound may lie beyond it by rounding.
            coefs = averaged[: self.network.n_coefficients]
            self.device.xp.clip(coefs, self.terms.lower, self.terms.upper, out=coefs)
        return averaged

    def leave_table(self, *, with_parameters: bool = True) -> None:
        """Let parameters, unless they are known already, and state lie in plain arrays again."""
        if self.table is not None:
            self.table.release(with_parameters=with_parameters)
            self.table = None

    def without_data(self) -> Trainer:
        """Let go of everything but the model and its state; return self."""
        self.data = Dataset(None)
        self.validation = self.on_epoch = self._best_weights = None
        self._buffers.clear()
        return self

    # Before the first epoch.

    def _prepare(self) -> None:
        """Choose how sparse steps are taken, measure the units of the data, start averages."""
        state = self.state
        in_table = self.trains_in_table
        if self.table is None:
            self._add_slots()
        if in_table and state.step:
            self._enter_table()
        if self.optimizer.has_units:
            self._measure_units()
        if in_table:
            self._enter_table()

    @cached_property
    def _lazy(self) -> bool:
        """Whether a step is taken of the columns that a batch touches alone."""
        is_sparse = self.data.X.is_sparse and self.optimizer.rule is not None
        return is_sparse and self._owing_pays()

    @property
    def trains_in_table(self) -> bool:
        """Whether the data and the optimizer are such that a table serves."""
        return self._lazy and self._runs_natively()

    def _add_slots(self) -> None:
        """Make the arrays that the loop itself keeps in the state."""
        network, slots, zeros = self.network, self.state.slots, self.device.xp.zeros
        if self.options.average and "average_sum" not in slots:
            # In float64: a float32 sum over many steps would lose the later ones.
            slots["average_sum"] = zeros(network.parameters.shape, dtype=np.float64)
        if self.optimizer.has_units and "unit" not in slots:
            slots["unit"] = zeros(network.layer_sizes[0], dtype=network.dtype)

    def _enter_table(self) -> None:
        if self.table is None:
            batch_size = self.options.batch_size
            self.table = LinearTable(
                self.network, self.optimizer, self.state, self.terms, batch_size
            )

    def _owing_pays(self) -> bool:
        """Whether to update the columns that a batch touches only, and owe the rest their steps."""
        X, batch_size, table = self.data.X, self.options.batch_size, self.table
        n_columns, width = self.network.layer_sizes[:2]
        # If all columns were alike. (Of a text, whose rows share many, a batch touches fewer.)
        density = X.n_stored / max(X.shape[0] * X.shape[1], 1)
        # As long as the rate stays what it is, the answer does.
        case = None if callable(self.optimizer._learning_rate) else (*self.settings, batch_size)
        if table is not None and case and case == table.pays_for and density <= table.pays_up_to:
            return True
        touched = n_columns * (1.0 - (1.0 - density) ** batch_size)
        scalars = self.optimizer.prepare(
            self.state,
            2 if self.options.average else 1,  # Averages differ where rates do.
            self.terms,
            batch_size=batch_size,
            average=float(bool(self.options.average)),
        )
        pays = self.device.owing_pays(
            self.optimizer.rule,
            scalars.rows(),
            touched,
            n_columns,
            width,
            in_table=self.network.n_layers == 1 and self._runs_compiled,
        )
        if pays and table is not None:
            table.pays_for, table.pays_up_to = case, density
        return pays

    @property
    def _runs_compiled(self) -> bool:
        """Whether nothing in a step is the user's, and it runs on the CPU."""
        return self.optimizer.rule is not None and self.network.is_native

    def _runs_natively(self) -> bool:
        """Whether a block of steps is one native call."""
        return self._runs_compiled and not (self._lazy and self.network.n_layers > 1)

    def _measure_units(self) -> None:
        """Let the units of features, and of the target, know the data; no weight moves."""
        network, state, data = self.network, self.state, self.data
        batch_size = self.options.batch_size
        if self.table is not None:
            squared_norm = self.table.observe(data)
        else:
            unit = state.slots["unit"]
            old = unit.copy()
            squared_norm = self.device.observe(data.X, data.rows, data.n_samples, unit)
            if state.step:
                weights = network.parameters
                self.optimizer.change_units(weights, state, old, self.terms, batch_size)
        if network.n_layers == 1:
            self.optimizer.set_rate_unit(
                state,
                squared_norm,
                data.n_samples,
                data.target_moments,
                network.loss.typical_derivative,
            )
        if state.step == 0:
            self.optimizer.adopt(network.parameters, state, self.terms, batch_size)

    def _measure_curvature(self) -> None:
        """Tell a full-batch optimizer about the diagonal of a linear model's Hessian."""
        network, data = self.network, self.data
        if network.n_layers > 1:
            return  # That of the layers above depends on the weights.
        xp, of_loss = self.device.xp, network.loss.curvature
        mean, typical = self.device.column_squares(data.X, data.rows, data.n_samples, data.weights)
        squares = of_loss * (mean + _UNSEEN_SHARE * typical)
        curvature = xp.empty_like(network.parameters)
        views = network.views(curvature)
        views.coefs[0][...] = xp.minimum(squares, np.finfo(network.dtype).max)[:, None]
        views.intercepts[0][...] = of_loss
        self.optimizer.precondition(self.state, curvature, self.terms)

    # One epoch.

    def _epoch(self) -> bool:
        """Run one epoch; return whether training is over."""
        start = time.perf_counter()
        if self.optimizer.is_full_batch:
            loss, converged = self._full_batch_epoch()
        else:
            loss, converged = self._stochastic_epoch(), False
            # The device is given more to do before the host waits for it.
            self._shuffle_ahead()
        penalty, is_finite = self._look_at_parameters()
        loss = self.device.read_scalar(loss)
        self.n_iter += 1
        self.state.carries["epoch"] = self.state.carries.get("epoch", 0.0) + 1
        if not (self.optimizer.is_full_batch or self.options.incremental):
            # A block of a stream may be smaller than the model: there the penalty is left out.
            loss += penalty
        self._check_finite(loss, is_finite)
        self._record(loss, time.perf_counter() - start)
        no_improvement = self._follow_progress(loss)
        stop = self.on_epoch is not None and self.on_epoch(self)
        return converged or no_improvement or stop

    def _full_batch_epoch(self) -> tuple[float, bool]:
        iteration = self._working_set.iterate(self._enough)
        self._optimality = iteration.optimality
        is_over = self.options.tol is not None and iteration.optimality <= self._enough()
        self._is_stuck = not (is_over or iteration.progressed)
        return iteration.value, is_over or self._is_stuck

    def _enough(self) -> float:
        """Return the optimality at which full-batch training may end."""
        # Where gradients are small from the start, a small one does not mean a minimum. A warm
        # start goes on with the scale of the first fit.
        first = self.state.carries["first_optimality"]
        return (self.options.tol or 0.0) * min(1.0, first)

    def _stochastic_epoch(self) -> Any:
        """Return the mean loss, on the device that has it."""
        order = self._order()
        batch_size = self.options.batch_size
        n_steps = -(-self.data.n_samples // batch_size)
        block = self._block_steps()
        total: Any = 0.0
        for first_step in range(0, n_steps, block):
            stop = min(n_steps, first_step + block)
            part = slice(first_step * batch_size, stop * batch_size)
            total = total + self._block(order, part, stop - first_step)
        return total / self.data.n_samples

    def _block_steps(self) -> int:
        """Return how many steps a block has at most."""
        network, X, n_workers = self.network, self.data.X, self.options.n_workers
        # Asynchronous workers can bring weights back to their size between blocks only.
        longest = _BLOCK_NUMBERS // (len(COMMON) + 8) if n_workers == 1 else _ASYNCHRONOUS_STEPS
        if self.table is None and not self._runs_natively():
            return longest
        inputs = X.n_stored / max(X.shape[0], 1) if X.is_sparse else network.layer_sizes[0]
        rest = network.n_coefficients - network.first_layer_size
        a_step = 3 * self.options.batch_size * (inputs * network.layer_sizes[1] + rest)
        return max(1, min(longest, int(_BLOCK_MULTIPLICATIONS / max(a_step, 1.0))))

    def _order(self) -> Any:
        """Return the order of the rows in this epoch; None as they come."""
        rows = self.data.rows
        if not self.options.shuffle:
            return rows
        order, self._next_order = self._next_order, None
        if order is None:
            order = self._shuffled(0)
        return order if rows is None else rows[order]

    def _shuffled(self, later: int) -> Any:
        """Return a shuffle for this epoch, or a later one."""
        seed, epoch = (int(self.state.carries.get(name, 0)) for name in ("seed", "epoch"))
        return self.device.shuffled(self.data.n_samples, seed, epoch + later)

    def _shuffle_ahead(self) -> None:
        """Let a device that works beside the host shuffle for the next epoch, if it may come."""
        if self._is_recorded and self.options.shuffle and self.n_iter + 1 < self.options.max_iter:
            self._next_order = self._shuffled(1)

    def _block(self, order: Any, part: slice, n_steps: int) -> Any:
        """Take the steps of one block of prepared scalars; return the sum of the losses."""
        batch_size = self.options.batch_size
        scalars = self.optimizer.prepare(
            self.state,
            n_steps,
            self.terms,
            batch_size=batch_size,
            average=self._averaging(n_steps),
        )
        if self.table is None and not self._runs_natively():
            return self._steps(scalars, order, part)
        order = self._listed(order)[part]
        updater: Any = self._bind(scalars.first(1).rows()) if self.table is None else None
        first_step = self.state.step
        # Counted first: an interrupt is raised right after the call, which takes all of the steps.
        self._advance(scalars)
        if self.table is not None:
            n_workers = self.options.n_workers
            return self.table.train(self._task, order, scalars, batch_size, n_workers)
        native = cpu_training.native_scalars(scalars, self.network.dtype)
        return cpu_training.train(updater, self._task, order, native, batch_size, first_step)

    def _bind(self, rows: np.ndarray) -> Any:
        """Return an updater of the parameters for the steps with these rows of scalars."""
        network, state = self.network, self.state
        return bind_updater(
            self.optimizer,
            self.device,
            network.parameters,
            {name: state.slots[name] for name in self.optimizer.slot_names},
            state.slots["average_sum"] if self.options.average else None,
            rows,
            terms=self.terms,
            first_step=state.step,
            n_penalised=network.n_coefficients,
            n_columns=network.layer_sizes[0],
            width=network.layer_sizes[1],
            sparse=self._lazy,
            unit=effective_unit(state),
        )

    @property
    def _task(self) -> Any:
        """What native steps read, apart from scalars and order."""
        clip_norm = self.optimizer.clip_norm
        return self._buffer(
            "task",
            lambda: cpu_training.make_task(
                self.network,
                self.data,
                np.inf if clip_norm is None else clip_norm,
                int(self.state.carries["seed"]),
            ),
        )

    def _listed(self, order: Any) -> Any:
        """Return the order as a list of rows."""
        if order is not None:
            return order
        return self._buffer("as_they_come", lambda: np.arange(self.data.n_samples))

    def _steps(self, scalars: Scalars, order: Any, part: slice) -> Any:
        """Take the steps one by one; after an interrupt all debts are paid."""
        first, size = part.start, self.options.batch_size
        n_samples = min(part.stop, self.data.n_samples) - first
        if order is not None:
            order, first = self._lying_still(order[part]), 0
        X, width = self.data.X, self.network.layer_sizes[1]
        if X.is_sparse and X.plan(order, first, n_samples, size, width):
            self._forget_recordings()
        updater = self._updater(scalars.rows())
        steps = self._recording(first)
        take_step = self._sparse_step if self._lazy else self._dense_step

        def take(step: Any, n: int) -> Any:
            return take_step(updater, Batch(n, order, first + step * size), step)

        try:
            steps.run(take, n_samples, self.state.step)
        except KeyboardInterrupt:
            if self._lazy:
                updater.settle(steps.n_taken)
            self._advance(scalars.first(steps.n_taken))
            raise
        if self._lazy:
            updater.settle(scalars.n_steps)
        # Before the host waits for its device in `_epoch`, where an interrupt will find it.
        self._advance(scalars)
        return steps.loss

    # What a recording reads must lie where it lay when it was made.

    def _lying_still(self, order: Any) -> Any:
        if not self._is_recorded:
            return order
        kept = self._buffer("order", order.copy)[: len(order)]
        kept[...] = order
        return kept

    def _updater(self, rows: np.ndarray) -> Any:
        if not self._is_recorded:
            return self._bind(rows)
        if "updater" not in self._buffers:
            return self._buffer("updater", lambda: self._bind(rows))
        updater = self._buffers["updater"]
        owed = updater.owes
        updater.restart(rows)
        if updater.owes != owed:
            self._forget_recordings()  # Other kernels take the steps.
        return updater

    def _recording(self, first: int) -> Any:
        """Return what takes the steps of a block whose samples begin at `first`."""
        size = self.options.batch_size
        if not self._is_recorded:
            return _OneByOne(size)
        return self._buffer(f"recording from {first}", lambda: self.device.Recording(size))

    def _forget_recordings(self) -> None:
        for name in [name for name in self._buffers if name.startswith("recording")]:
            del self._buffers[name]

    @property
    def _is_recorded(self) -> bool:
        """Whether the device records a step and replays it: if nothing in it is the user's."""
        is_compiled = self.optimizer.rule is not None and self.network.is_compiled
        return is_compiled and hasattr(self.device, "Recording")

    def _averaging(self, n_steps: int) -> Any:
        """Return the weight of each of the next steps in the averaged model."""
        if not self.options.average:
            return 0.0
        seen = (self.state.step + 1 + np.arange(n_steps)) * self.options.batch_size
        return (seen >= self.options.average).astype(np.float64)

    def _advance(self, scalars: Scalars) -> None:
        """Count steps as taken."""
        self.optimizer.advance(self.state, scalars, self.terms)
        if self.options.average:
            carries = self.state.carries
            averaged = carries.get("averaged_steps", 0.0) + scalars.total("average")
            carries["averaged_steps"] = averaged

    # One step.

    def _dense_step(self, updater: Any, batch: Batch, step: Any) -> Any:
        network = self.network
        flat = self._buffer("gradient", lambda: network.device.xp.zeros_like(network.parameters))
        if self.data.X.is_sparse:
            flat[: network.first_layer_size].fill(0)
        views = self._buffer("views", lambda: network.views(network.parameters))
        gradient = self._buffer("gradient_views", lambda: network.views(flat))
        loss = network.loss_and_gradient(
            self.data, batch, views, gradient, 1 / batch.n, dropout_key=self._dropout_key(step)
        )
        factor = self._clipping_factor(updater, flat)
        if factor != 1:
            flat *= factor
        updater.apply(flat, step)
        return loss

    def _sparse_step(self, updater: Any, batch: Batch, step: Any) -> Any:
        """Read and update only the first-layer rows of the columns that the batch touches."""
        network, device = self.network, self.device
        touched = self._buffer("touched", lambda: device.Touched(self.data.X))
        rest = self._buffer(
            "rest",
            lambda: device.empty(len(network.parameters) - network.first_layer_size, network.dtype),
        )
        views = self._buffer("views", lambda: network.views(network.parameters))
        touched.sort(batch.rows, batch.first, batch.n)
        first_layer = FirstLayer(updater, touched, step)
        loss = network.loss_and_gradient(
            self.data,
            batch,
            views,
            self._rest_views(rest),
            1 / batch.n,
            first_layer=first_layer,
            dropout_key=self._dropout_key(step),
        )
        factor = self._clipping_factor(updater, rest, touched, first_layer.delta)
        if factor != 1:
            rest *= factor
        with device.aside(2):
            device.join()
            updater.apply_rest(rest, step)
        first_layer.apply(factor)
        device.join()
        return loss

    def _rest_views(self, rest: Any) -> Views:
        """Return the layers above the first, and all intercepts, of a buffer without the first."""

        def make() -> Views:
            coefs, start = [None], 0
            for fan_in, fan_out in self.network.shapes[1:]:
                coefs.append(rest[start : start + fan_in * fan_out].reshape(fan_in, fan_out))
                start += fan_in * fan_out
            intercepts = []
            for size in self.network.layer_sizes[1:]:
                intercepts.append(rest[start : start + size])
                start += size
            return Views(coefs, intercepts)

        return self._buffer("rest_views", make)

    def _buffer(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a buffer that is made on first use and kept for the whole training."""
        if name not in self._buffers:
            self._buffers[name] = make()
        return self._buffers[name]

    def _dropout_key(self, step: Any) -> tuple[int, Any] | None:
        if not self.network.dropout:
            return None
        overall = self.state.step + step if isinstance(step, int) else step.overall
        return int(self.state.carries["seed"]), overall

    def _clipping_factor(self, updater: Any, *gradient: Any) -> float:
        """Return what is to be done yet to bound the norm of the gradient to `clip_norm`."""
        bound = self.optimizer.clip_norm
        if bound is None:
            return 1.0
        self.device.join()
        return self.device.clipping_factor(updater, bound, *gradient)

    # After the epoch.

    def _look_at_parameters(self) -> tuple[float, bool]:
        """Return the penalty, and whether all parameters are finite."""
        if self.table is None:
            parameters = self.network.parameters
            is_finite = bool(self.device.xp.isfinite(parameters).all())
            # Full-batch optimizers know the objective.
            return 0.0 if self.optimizer.is_full_batch else self.terms.value(parameters), is_finite
        if self.options.incremental:
            return 0.0, self.table.is_finite
        return self.table.penalty(self.terms)

    def _check_finite(self, loss: float, is_finite: bool) -> None:
        finite = math.isfinite(loss) and is_finite
        first = self.history["loss"][0] if self.history else loss
        if not finite or loss > _EXPLOSION * max(first, 1.0):
            what = "" if is_finite else ", and weights or the optimizer's state are not finite,"
            raise ValueError(
                f"Training diverged in epoch {self.n_iter}: the loss is {loss}{what} with "
                f"optimizer={self.optimizer!r}. Lower its learning rate, or scale the features "
                "(StandardScaler) and, in regression, the target."
            )

    def _record(self, loss: float, seconds: float) -> None:
        epoch = {"loss": loss, "seconds": seconds}
        if self.optimizer.is_full_batch:
            epoch["optimality"] = self._optimality
        else:
            last = np.array([max(self.state.step, 1)])
            scale = self.state.carries.get("learning_rate_scale", 1.0)
            epoch["learning_rate"] = float(self.optimizer.learning_rates(last)[0]) * scale
        if self.validation is not None:
            # With buffers of its own: those of a recorded training must stay what they are.
            scorer = self._buffer("scorer", self.network.twin)
            scores = scorer.scores(self.validation.data, self.network.views(self.weights))
            epoch["validation_loss"] = self.network.mean_loss(self.validation.data, scores)
            epoch["validation_score"] = float(self.validation.score(scores))
        for name, value in epoch.items():
            self.history.setdefault(name, []).append(value)
        if self.options.verbose:
            text = ", ".join(f"{name} = {value:.6g}" for name, value in epoch.items())
            print(f"Epoch {self.n_iter}: {text}")

    def _follow_progress(self, loss: float) -> bool:
        """Remember the best epoch; return whether progress has ended."""
        options = self.options
        if options.early_stopping:
            score, tol = self.history["validation_score"][-1], options.tol or 0.0
            improved = score >= self.best_score + tol and score > self.best_score
            improved = improved or options.tol is None
            if score > self.best_score:
                self.best_score = score
                self._best_weights = self.weights.copy()
        else:
            improved = options.tol is None or loss <= self.best_loss - options.tol
        self.best_loss = min(self.best_loss, loss)
        if self.optimizer.is_full_batch and not options.early_stopping:
            return False
        self._epochs_without_improvement = 0 if improved else self._epochs_without_improvement + 1
        if self._divide_rate():
            # A lower rate starts afresh, or one freak low loss would end the training.
            self._epochs_without_improvement, self.best_loss = 0, loss
        return self._epochs_without_improvement >= options.n_iter_no_change

    def _divide_rate(self) -> bool:
        """Let an adaptive schedule look at the losses; return whether it lowered the rate."""
        if self.optimizer.is_full_batch or not hasattr(
            self.optimizer._learning_rate, "update_scale"
        ):
            return False
        schedule = self.optimizer._learning_rate
        old = self.state.carries.get("learning_rate_scale", 1.0)
        new = schedule.update_scale(old, self.history["loss"], self.options.tol)
        self.state.carries["learning_rate_scale"] = new
        return new < old

    def _restore_best(self) -> None:
        self.leave_table()
        self.network.parameters[...] = self._best_weights
        batch_size = self.options.batch_size
        self.optimizer.adopt(self.network.parameters, self.state, self.terms, batch_size)
        # The best weights may be averaged ones; averaging starts anew from them.
        if self.state.carries.pop("averaged_steps", None) is not None:
            self.state.slots.pop("average_sum")


def _settings_of(optimizer: Optimizer) -> tuple:
    """Return the hyper-parameters, in the order in which optimizers of a type have them.

    Of those that can be changed where they are, as schedules, it is a copy.
    """
    values = vars(optimizer).values()
    return tuple(v if v is None or isinstance(v, int | float) else repr(v) for v in values)
