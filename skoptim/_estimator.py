"""What the four estimators share: validate, encode, call the training loop, publish."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import update_wrapper
from numbers import Integral, Real
from threading import RLock
from types import MethodType
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.callback import CallbackSupportMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._param_validation import Options as Choices
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skoptim._arrays import (
    Place,
    check_data,
    check_same_place,
    fingerprint,
    host,
    mapped,
    moved,
    native,
    on_host,
)
from skoptim._devices import cpu, cuda_errors, device_of, is_cuda_array, select_device, to_host
from skoptim._network import Dataset, Network
from skoptim._table import LinearTable
from skoptim._training import Options, Trainer, Validation
from skoptim._validation import (
    DTYPES,
    check_labels,
    check_weights,
    encode_labels,
    hold_out,
    normalise_weights,
)
from skoptim.losses import Loss
from skoptim.optimizers import Optimizer, OptimizerState, get_optimizer
from skoptim.optimizers.ftrl import Moments
from skoptim.penalties import PenaltyTerms, resolve_penalty


@dataclass
class Targets:
    """Encoded targets: class indices, or values of shape (n_samples, n_outputs)."""

    n_outputs: int
    labels: np.ndarray | None = None
    values: np.ndarray | None = None


# What a fresh state takes over from the last fit of a warm start.
KEPT = ("seed", "epoch", "first_optimality")


class Live:
    """A model whose training may go on where it lies; what is read of it is copied out then."""

    def __init__(self, trainer: Trainer, place: Place):
        self.trainer, self.place = trainer.without_data(), place
        self.lock = RLock()


class BaseTrainedEstimator(CallbackSupportMixin, BaseEstimator):
    """Base of the estimators; subclasses say what the network, the loss and the targets are."""

    _parameter_constraints: dict = {
        "optimizer": "no_validation",
        "loss": "no_validation",
        "penalty": "no_validation",
        "alpha": [Interval(Real, 0, None, closed="left")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "shuffle": ["boolean"],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Choices(Real, {np.inf}),
        ],
        "warm_start": ["boolean"],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "device": [StrOptions({"cpu", "cuda"}), None],
    }

    n_iter_: int
    t_: float
    history_: dict[str, list[float]]
    optimizer_state_: OptimizerState
    best_loss_: float | None
    best_validation_score_: float | None
    validation_scores_: list[float] | None

    # What subclasses provide.

    @abstractmethod
    def _resolve_loss(self) -> Loss:
        """Return the loss object of the `loss` parameter."""

    @abstractmethod
    def _make_network(
        self, n_features: int, n_outputs: int, loss: Loss, device: Any, dtype: Any
    ) -> Network:
        """Return an untrained network of the right shape."""

    @abstractmethod
    def _initialise(self, network: Network, random_state: np.random.RandomState) -> None:
        """Set the parameters that a fit starts from."""

    @abstractmethod
    def _load(self, network: Network) -> None:
        """Set the network's parameters from the fitted attributes."""

    @abstractmethod
    def _parameter_arrays(self, attributes: Mapping[str, Any]) -> list[Any]:
        """Return the fitted attributes that hold parameters as dense native arrays."""

    @property
    @abstractmethod
    def _first_coef(self) -> Any:
        """Fitted coefficients of the first layer, of the caller's library, dense or SciPy's."""

    @abstractmethod
    def _attributes(self, network: Network, flat: Any, place: Place) -> dict[str, Any]:
        """Return the fitted attributes that hold the parameters, in the caller's library."""

    @abstractmethod
    def _learn_targets(self, y: np.ndarray, classes: Any) -> dict[str, Any]:
        """Return the attributes learned from the targets, as `classes_`."""

    @abstractmethod
    def _encode(self, y: np.ndarray) -> Targets:
        """Encode targets with the attributes of `_learn_targets`."""

    @abstractmethod
    def _score_function(self, y: np.ndarray, weights: Any) -> Any:
        """Return a function of raw scores that says how good they are on held-out `y`."""

    @abstractmethod
    def _check_y(self, y: Any, *, known: bool = False) -> np.ndarray:
        """Check the targets' type and shape; `known` says that there were some before."""

    @abstractmethod
    def _default_batch_size(self, n_samples: int, device: Any) -> int:
        """Return what batch_size="auto" means."""

    def set_params(self, **params: Any) -> Any:
        """Set parameters; those of the optimizer by names as ``optimizer__learning_rate``.

        Where the optimizer is a name, as "adam", it becomes the object for that.

        Parameters
        ----------
        **params : dict
            Parameters of the estimator, and of its optimizer, loss and penalty.

        Returns
        -------
        self : estimator
        """
        optimizer = params.get("optimizer", self.optimizer)
        if isinstance(optimizer, str) and any(name.startswith("optimizer__") for name in params):
            params = {**params, "optimizer": get_optimizer(optimizer)}
        return super().set_params(**params)

    @property
    def _dtype(self) -> Any:
        """The dtype of the fitted parameters, NumPy's."""
        dtype = native(self._first_coef).dtype
        # Whole numbers may have been set from outside.
        return dtype if dtype.kind == "f" else np.dtype(np.float64)

    # Training.

    @cuda_errors.out_of_memory_explained()
    def _train(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        incremental: bool = False,
        classes: Any = None,
        initial: dict[str, Any] | None = None,
    ) -> Any:
        """Fit, or with `incremental` make one pass that continues the last one."""
        optimizer = self._own_optimizer()
        terms = resolve_penalty(self.penalty, self.alpha, self.l1_ratio)
        optimizer.check_penalty(terms)
        self._check_combination(optimizer, incremental, X_val, y_val, sample_weight_val)
        loss = self._resolve_loss()

        place = Place.of(X)
        X = native(X)
        device = select_device(X, self.device)
        if device is cpu:
            X = host(X)
        # Targets and weights are encoded on the host; the device gets the result.
        y, classes, sample_weight = host(y), host(classes), host(sample_weight)
        held_out = (X_val, host(y_val), host(sample_weight_val))

        fitted = "history_" in vars(self)
        going_on = fitted and (incremental or self.warm_start)
        live = self._take_live(optimizer) if incremental else None
        with self._undone_on_error(), nullcontext() if live is None else live.lock:
            dtype = self._dtype_of(live) if going_on else DTYPES
            X, y = check_data(self, X, y, dtype=dtype, reset=not going_on)
            y = self._check_y(y, known=going_on)
            for name, value in self._learned(y, classes, going_on).items():
                setattr(self, name, value)
            targets = self._encode(y)
            if targets.labels is None and getattr(self, "class_weight", None) is not None:
                raise ValueError(
                    "class_weight needs one label per sample, and y is multilabel: set "
                    "class_weight=None, or pass sample_weight."
                )
            class_info = (getattr(self, "classes_", None), getattr(self, "class_weight", None))
            weights = check_weights(sample_weight, y, targets.labels, *class_info)
            if incremental and weights is not None and not weights.any():
                if fitted:
                    return self  # Nothing counts, so nothing changes.
                raise ValueError(
                    "sample_weight is zero for all samples of the first call of partial_fit; it "
                    "needs samples that count."
                )
            # Where training goes on nothing is drawn, and making a generator takes its time.
            random_state = None if live is not None else check_random_state(self.random_state)
            data, validation = self._split(
                device, X, y, targets, weights, held_out, random_state, incremental
            )
            if optimizer.has_units and loss.in_target_units:
                values = targets.values
                assert values is not None
                taken = values if data.rows is None else values[to_host(data.rows)]
                data.target_moments = Moments.of(taken)
            network = self._make_network(X.shape[1], targets.n_outputs, loss, device, X.dtype)
            options = self._options(data.n_samples, device, incremental)

            def make_trainer(state: OptimizerState, table: LinearTable | None) -> Trainer:
                return Trainer(
                    network,
                    optimizer,
                    state,
                    terms,
                    data,
                    options,
                    history=self.history_ if incremental and fitted else {},
                    validation=validation,
                    table=table,
                )

            trainer = None
            if live is not None:
                trainer = make_trainer(live.trainer.state, live.trainer.table)
                if trainer.settings != live.trainer.settings:
                    optimizer._validate(network.dtype)
                # (Another thread may have read the model meanwhile, and emptied its table.)
                if trainer.table is None or not trainer.trains_in_table:
                    self._copy_out()
                    trainer = None
            shared = (X, y, weights, place)
            if trainer is None:
                if random_state is None:
                    random_state = check_random_state(self.random_state)
                state = self._start(
                    network, optimizer, terms, going_on, random_state, initial, options.batch_size
                )
                trainer = make_trainer(state, None)
                self._run_with_callbacks(trainer, *shared)
            else:
                assert live is not None
                assert trainer.table is not None
                if trainer.settings != live.trainer.settings:
                    trainer.table.settle()
                with trainer.table.lent_to(network):
                    self._run_with_callbacks(trainer, *shared)
        self._publish(trainer, optimizer, place, incremental, adding=incremental and fitted)
        return self

    def _own_optimizer(self) -> Optimizer:
        """Return a copy of the `optimizer` parameter: that of the last call, if it still is one."""
        given, live = get_optimizer(self.optimizer), vars(self).get("_live")
        if live is not None:
            last = live.trainer.optimizer
            numbers = all(isinstance(v, int | float | None) for v in vars(given).values())
            if numbers and type(given) is type(last) and vars(given) == vars(last):
                return last
        return clone(given)

    def _take_live(self, optimizer: Optimizer) -> Live | None:
        """Return the last training, to go on with, if nothing has been read of it since."""
        live = vars(self).get("_live")
        if live is None:
            return None
        averaging = bool(getattr(self, "average", False))
        if self._published & vars(self).keys() or not live.trainer.table.suits(
            optimizer, averaging
        ):
            self._copy_out()
            return None
        return live

    def _dtype_of(self, live: Live | None) -> Any:
        """Return the dtype of the parameters, without copying these out."""
        return self._dtype if live is None else live.trainer.network.dtype

    #: The attributes that hold parameters and state, copied out when they are first read.
    _published: ClassVar[frozenset[str]] = frozenset()

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer_state_" or name in type(self)._published:
            self._copy_out()
        return self.__getattribute__(name)  # It is there now, or what is missing is said.

    def _copy_out(self) -> None:
        """Set the attributes that hold parameters and state, where these still lie in a table."""
        while "_live" in vars(self):
            live: Live = self._live
            with live.lock:
                if vars(self).get("_live") is not live:
                    continue  # Another thread was faster, or has trained on.
                has_parameters = self._published <= vars(self).keys()
                self._set_parameters(live.trainer, live.place)
                self._set_state(live.trainer, live.place, with_parameters=not has_parameters)
                del self._live

    def __getstate__(self) -> Any:
        # Without CuPy, or another library, in it a pickle can be loaded anywhere.
        self._copy_out()
        return on_host(super().__getstate__(), {*self._published, "optimizer_state_"})

    def __deepcopy__(self, memo: dict) -> Any:
        # Unlike a pickle, a copy stays where the model is.
        self._copy_out()
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(vars(self), memo))
        return copied

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Any:
        """Return a copy with converted parameters, for scikit-learn's `move_estimator_to`."""
        self._copy_out()
        converted = clone(self)
        converted.__dict__.update(vars(self))
        for name in self._published & vars(self).keys():
            setattr(converted, name, mapped(converter, getattr(self, name)))
        return converted

    def _options(self, n_samples: int, device: Any, incremental: bool) -> Options:
        if isinstance(self.batch_size, str):
            batch_size = self._default_batch_size(n_samples, device)
        else:
            batch_size = min(self.batch_size, n_samples)
        return Options(
            max_iter=1 if incremental else self.max_iter,
            incremental=incremental,
            batch_size=batch_size,
            shuffle=self.shuffle,
            tol=None if incremental else self.tol,
            n_iter_no_change=self.n_iter_no_change,
            early_stopping=self.early_stopping,
            average=int(getattr(self, "average", False)),
            verbose=self.verbose,
            n_workers=self._n_workers,
        )

    @property
    def _n_workers(self) -> int:
        """Threads that train at once, asynchronously if there are several."""
        return 1

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Put back what a fit learns before it trains, should it fail: nothing half-written."""
        names = (
            "classes_",
            "n_outputs_",
            "n_features_in_",
            "feature_names_in_",
            "_is_multilabel",
        )
        # partial_fit goes on writing into the history; what it added is taken back.
        history = getattr(self, "history_", {})
        lengths = {name: len(values) for name, values in history.items()}
        before = {name: vars(self)[name] for name in names if name in vars(self)}
        try:
            yield
        except BaseException:
            for name in names:
                if name in before:
                    setattr(self, name, before[name])
                elif name in vars(self):
                    delattr(self, name)
            for name in list(history):
                if name in lengths:
                    del history[name][lengths[name] :]
                else:
                    del history[name]
            raise

    def _check_combination(
        self,
        optimizer: Optimizer,
        incremental: bool,
        X_val: Any,
        y_val: Any,
        sample_weight_val: Any,
    ) -> None:
        name = type(optimizer).__name__
        if incremental and self.early_stopping:
            raise ValueError(
                "partial_fit does not hold out samples: set early_stopping=False, or use fit."
            )
        if incremental and getattr(self, "class_weight", None) == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all samples, which partial_fit does not see: pass "
                "a dictionary, as of sklearn.utils.compute_class_weight over a sample of the data."
            )
        if optimizer.is_full_batch and getattr(self, "average", False):
            raise ValueError(f"average needs an optimizer that works on batches, not {name}.")
        if optimizer.is_full_batch and getattr(self, "dropout", False):
            raise ValueError(
                f"dropout makes the loss random, which {name} cannot minimise: set dropout=0, or "
                "use a stochastic optimizer, as Adam()."
            )
        if sample_weight_val is not None and X_val is None:
            raise ValueError("sample_weight_val goes with X_val and y_val: give all, or none.")
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together: give both, or neither.")

    def _learned(self, y: np.ndarray, classes: Any, going_on: bool) -> dict[str, Any]:
        """Return the attributes learned from y; a fit that goes on must find the same ones."""
        if not going_on:
            return self._learn_targets(y, classes)
        known = classes is None or np.array_equal(classes, self.classes_)  # (As they mostly are.)
        if not known and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"classes={classes!r} differ from those of the first call, {self.classes_!r}."
            )
        return {}

    def _split(
        self,
        device: Any,
        X: Any,
        y: np.ndarray,
        targets: Targets,
        weights: Any,
        held_out: tuple,
        random_state: np.random.RandomState | None,
        incremental: bool,
    ) -> tuple[Dataset, Validation | None]:
        """Return the training and validation sets; rows held out of X stay where they are."""
        train = held = None
        counted = np.arange(len(y)) if weights is None else np.flatnonzero(weights)
        if len(counted) < len(y):
            # A sample that weighs nothing is as good as removed: it takes no step.
            train = counted
        if self.early_stopping and held_out[0] is None:
            labels = None if targets.labels is None else targets.labels[counted]
            train, held = hold_out(len(counted), self.validation_fraction, labels, random_state)
            self._check_can_score(len(held))
            train, held = counted[train], counted[held]
        matrix = device.Matrix(X)
        native_targets = self._native_targets(device, targets, X.dtype)
        if incremental:
            # A stream's mean weight is not known: weights of partial_fit are taken as they are.
            scaled = None if weights is None else np.ascontiguousarray(weights, dtype=X.dtype)
        else:
            scaled = _scale_weights(weights, train, X.dtype)
        data = Dataset(matrix, native_targets, _move(device, scaled), _move(device, train))
        if held is not None:
            score = self._score_function(y[held], None if weights is None else weights[held])
            scaled = _scale_weights(weights, held, X.dtype)
            rows = _move(device, held)
            return data, Validation(
                Dataset(matrix, native_targets, _move(device, scaled), rows), score
            )
        if held_out[0] is None:
            return data, None
        return data, self._given_validation(device, X.dtype, *held_out)

    def _check_can_score(self, n_held_out: int) -> None:
        """Raise ValueError if early stopping would wait for the R^2 of a single sample."""
        if self.early_stopping and is_regressor(self) and n_held_out < 2:
            raise ValueError(
                "early_stopping=True needs at least two held-out samples in regression, whose "
                "score has no meaning for one: raise validation_fraction, or pass X_val and y_val."
            )

    def _given_validation(
        self, device: Any, dtype: Any, X_val: Any, y_val: Any, sample_weight_val: Any
    ) -> Validation:
        X_val = host(X_val) if device is cpu else native(X_val)
        try:
            X_val, y_val = check_data(self, X_val, y_val, dtype=dtype, reset=False)
            y_val = self._check_y(y_val)
            targets = self._encode(y_val)
            weights = check_weights(sample_weight_val, y_val, None, None, None)
            scaled = normalise_weights(weights, dtype)
            self._check_can_score(len(y_val))
        except ValueError as error:
            raise ValueError(f"In X_val, y_val or sample_weight_val: {error}") from error
        data = Dataset(
            device.Matrix(X_val),
            self._native_targets(device, targets, dtype),
            _move(device, scaled),
        )
        return Validation(data, self._score_function(y_val, weights))

    def _native_targets(self, device: Any, targets: Targets, dtype: Any) -> Any:
        return device.make_targets(
            labels=targets.labels,
            values=targets.values,
            n_outputs=targets.n_outputs,
            dtype=dtype,
        )

    def _start(
        self,
        network: Network,
        optimizer: Optimizer,
        terms: PenaltyTerms,
        going_on: bool,
        random_state: np.random.RandomState,
        initial: dict[str, Any] | None,
        batch_size: int,
    ) -> OptimizerState:
        """Set the first parameters and return the state to start from, a copy of the last one."""
        if going_on:
            self._copy_out()
        edited = going_on and self._is_edited(network.dtype)
        if not going_on:
            self._initialise(network, random_state)
        elif "parameters" in self.optimizer_state_.slots and not edited:
            # Those published are averages.
            last = moved(self.optimizer_state_.slots["parameters"], network.device)
            network.parameters[...] = last
        else:
            self._load(network)
        if initial:
            self._set_initial(network, initial)
        seed = float(random_state.randint(np.iinfo(np.int32).max))
        old = self.optimizer_state_ if going_on else OptimizerState(carries={"seed": seed})
        # What a full-batch optimizer remembers belongs to the data it saw.
        keep = not initial and not optimizer.is_full_batch and old.step > 0
        if optimizer.slot_names:
            # Nor does a state in units of the data mean anything without them.
            keep = keep and ("unit" in old.slots) == optimizer.has_units
        if keep and all(name in old.slots for name in optimizer.slot_names):
            optimizer._validate(network.dtype)
            state = mapped(lambda slot: moved(slot, network.device).copy(), old)
            for slot in state.slots.keys() - {"average_sum"}:
                # Weights of another dtype may have been set from outside.
                state.slots[slot] = state.slots[slot].astype(network.dtype, copy=False)
            if edited or not getattr(self, "average", False):
                # Averaging, if there was any, ends here, or begins anew.
                for name in ("parameters", "average_sum"):
                    state.slots.pop(name, None)
                state.carries.pop("averaged_steps", None)
            if edited:
                optimizer.adopt(network.parameters, state, network.locate(terms), batch_size)
            return state
        state = optimizer.init(
            network.parameters, batch_size=batch_size, n_penalised=network.n_coefficients
        )
        state.carries.update({k: v for k, v in old.carries.items() if k in KEPT})
        return state

    def _set_initial(self, network: Network, initial: dict[str, Any]) -> None:
        """Set the parameters that the caller gave to start from."""
        raise NotImplementedError

    def _run_with_callbacks(
        self, trainer: Trainer, X: Any, y: Any, weights: Any, place: Place
    ) -> None:
        """Run the training, telling scikit-learn's callbacks of its beginning, epochs and end."""
        if not getattr(self, "_skl_callbacks", None):
            trainer.run()
            return
        # A callback may score the model on them, which must lie where its parameters do.
        X, y, weights = (None if a is None else place.give(a) for a in (X, y, weights))
        context = self._init_callback_context(max_subtasks=trainer.options.max_iter)
        metadata = None if weights is None else {"sample_weight": weights}
        shared = {"estimator": self, "X": X, "y": y, "metadata": metadata}
        context.call_on_fit_task_begin(**shared)

        def attributes() -> dict[str, Any]:
            # A copy, because training goes on.
            return self._attributes(trainer.network, trainer.weights.copy(), place)

        def on_epoch(_: Trainer) -> bool:
            epoch = context.subcontext(task_name="epoch")
            epoch.call_on_fit_task_begin(**shared)
            return epoch.call_on_fit_task_end(**shared, reconstruction_attributes=attributes)

        trainer.on_epoch = on_epoch
        try:
            trainer.run()
        finally:
            trainer.on_epoch = None  # It refers to the trainer, whose memory should not wait.
        context.call_on_fit_task_end(**shared, reconstruction_attributes=attributes)

    def _publish(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        place: Place,
        incremental: bool,
        adding: bool,
    ) -> None:
        """Set the fitted attributes; what would be copied out of a table only when it is read."""
        last = {*self._published, "optimizer_state_", "_live", "_as_trained"}
        for name in last & vars(self).keys():
            delattr(self, name)
        if not (incremental and trainer.table is not None):
            self._set_parameters(trainer, place)
        if trainer.table is None:
            self._set_state(trainer, place)
        else:
            self._live = Live(trainer, place)
        history = trainer.history
        self.optimizer_, self.history_ = optimizer, history
        self.n_iter_ = trainer.n_iter + (self.n_iter_ if adding else 0)
        seen = trainer.n_iter * trainer.n_samples
        self.t_ = float(seen + (self.t_ if adding else 0))
        self.loss_ = history["loss"][-1]
        self.loss_curve_ = history["loss"]
        if self.early_stopping:
            self.best_loss_ = None
            self.validation_scores_ = history["validation_score"]
            self.best_validation_score_ = max(history["validation_score"])
        else:
            known = [self.best_loss_] if adding and self.best_loss_ is not None else []
            self.best_loss_ = min(*known, *history["loss"][-trainer.n_iter :], np.inf)
            self.validation_scores_ = history.get("validation_score")
            self.best_validation_score_ = None

    def _set_parameters(self, trainer: Trainer, place: Place) -> None:
        """Set the attributes that hold parameters, those that are not there."""
        tells_edits = trainer.options.average or trainer.optimizer.stores_weights_in_state
        is_known = hasattr(self, "_as_trained") or not tells_edits
        if self._published <= vars(self).keys() and is_known:
            return  # To ask for the weights would undo what the user has changed in them.
        attributes = self._attributes(trainer.network, trainer.weights, place)
        for name, value in attributes.items():
            if name not in vars(self):
                setattr(self, name, value)
        arrays = self._parameter_arrays(attributes) if tells_edits else []
        self._as_trained = [fingerprint(array) for array in arrays]

    def _is_edited(self, dtype: Any) -> bool:
        """Whether parameters were set by the caller since the state, which has them too, was."""
        known = getattr(self, "_as_trained", [])
        if not known:
            return False  # Training goes on from the parameters that there are.
        found = self._parameter_arrays(vars(self))
        # An intercept may be set to a plain number.
        arrays = [array if hasattr(array, "dtype") else np.asarray(array) for array in found]
        return known != [fingerprint(array.astype(dtype, copy=False)) for array in arrays]

    def _set_state(self, trainer: Trainer, place: Place, *, with_parameters: bool = True) -> None:
        # Parameters that were published are the user's: they are not written to again.
        trainer.leave_table(with_parameters=with_parameters or bool(trainer.options.average))
        if trainer.options.average:
            # The published weights are averages; training goes on from these.
            trainer.state.slots["parameters"] = trainer.network.parameters
        # The device may be another than that of the data, which everything follows.
        self.optimizer_state_ = mapped(place.native, trainer.state)

    # Prediction.

    @cuda_errors.out_of_memory_explained()
    def _scores(self, X: Any, method: str) -> tuple[Any, Place]:
        """Return the raw scores, native, and where what is made of them is to be given back."""
        check_is_fitted(self)
        check_same_place(X, self, attribute="_first_coef", method=method)
        place = Place.of(X)
        X = check_data(self, native(X), dtype=self._dtype, reset=False)
        return self._raw_scores(X, device_of(X)), place

    @abstractmethod
    def _raw_scores(self, X: Any, device: Any) -> Any:
        """Return the raw scores of checked X on its device, shape (n_samples, n_outputs)."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags


class ClassifierTargets:
    """Targets of the classifiers: labels, or indicator matrices where `_multilabel` allows."""

    _multilabel = False

    def _check_y(self, y: Any, *, known: bool = False) -> np.ndarray:
        return check_labels(y, multilabel=self._multilabel, known=known)

    def _learn_targets(self, y: np.ndarray, classes: Any) -> dict[str, Any]:
        if y.ndim == 2:
            return {"classes_": np.arange(y.shape[1])}
        found = np.unique(y if classes is None else classes)
        if len(found) < 2:
            raise ValueError(
                f"The number of classes in y has to be greater than one; got 1 class, {found[0]!r}."
            )
        return {"classes_": found}

    def _encode(self, y: np.ndarray) -> Targets:
        n_classes = len(self.classes_)  # type: ignore[attr-defined]
        if y.ndim == 2:
            if y.shape[1] != n_classes:
                raise ValueError(
                    f"y has {y.shape[1]} labels, the model was fitted with {n_classes}."
                )
            return Targets(n_classes, values=2.0 * (y != 0) - 1.0)
        labels = encode_labels(y, self.classes_)  # type: ignore[attr-defined]
        return Targets(1 if n_classes == 2 else n_classes, labels=labels)

    def _score_function(self, y: np.ndarray, weights: Any) -> Any:
        return lambda scores: accuracy_score(
            y, self._labels_of(to_host(scores), y.ndim == 2), sample_weight=weights
        )

    def _labels_of(self, scores: Any, multilabel: bool) -> Any:
        """Return the predicted labels (or the indicator matrix) of native raw scores."""
        if multilabel:
            return (scores > 0).astype(int)
        binary = scores.shape[1] == 1
        index = (scores[:, 0] > 0).astype(int) if binary else scores.argmax(axis=1)
        classes = self.classes_  # type: ignore[attr-defined]
        if is_cuda_array(index):
            if classes.dtype.kind not in "biuf":
                return classes[index.get()]  # CuPy has no strings.
            classes = device_of(index).asarray(classes)
        return classes[index]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy on the given samples.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            True labels.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights.

        Returns
        -------
        score : float
            Share of the samples of which all labels are right.
        """
        predicted = host(self.predict(X))  # type: ignore[attr-defined]
        return accuracy_score(host(y), predicted, sample_weight=host(sample_weight))


class RegressorTargets:
    """Targets of the regressors."""

    _multi_output = False

    def _check_y(self, y: Any, *, known: bool = False) -> np.ndarray:
        y = np.asarray(y)
        if not self._multi_output or (y.ndim == 2 and y.shape[1] == 1):
            y = column_or_1d(y, warn=True)
        if y.dtype.kind not in "fiub":
            y = y.astype(np.float64)
        loss = self._resolve_loss()  # type: ignore[attr-defined]
        if loss.name == "poisson" and (y < 0).any():
            raise ValueError("loss='poisson' needs targets y of at least 0.")
        return y

    def _learn_targets(self, y: np.ndarray, classes: Any) -> dict[str, Any]:
        return {"n_outputs_": 1 if y.ndim == 1 else y.shape[1]}

    def _encode(self, y: np.ndarray) -> Targets:
        n_outputs = self.n_outputs_  # type: ignore[attr-defined]
        values = y.reshape(len(y), -1)
        if values.shape[1] != n_outputs:
            raise ValueError(
                f"y has {values.shape[1]} outputs, the model was fitted with {n_outputs}."
            )
        return Targets(n_outputs, values=values)

    def _score_function(self, y: np.ndarray, weights: Any) -> Any:
        loss = self._resolve_loss()  # type: ignore[attr-defined]
        return lambda scores: r2_score(
            y.reshape(len(y), -1), loss.predict(to_host(scores)), sample_weight=weights
        )

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination of the predictions.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights.

        Returns
        -------
        score : float
            At most 1; the mean over outputs.
        """
        predicted = host(self.predict(X))  # type: ignore[attr-defined]
        return r2_score(host(y), predicted, sample_weight=host(sample_weight))


class available_when:
    """Method that exists only when `check` does not raise AttributeError.

    Like scikit-learn's `available_if`, but the reason is the message of the error itself.
    """

    def __init__(self, check: Callable[[Any], None]):
        self.check = check

    def __call__(self, method: Callable) -> Any:
        self.method = method
        update_wrapper(self, method)
        return self

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self.method
        self.check(instance)
        return MethodType(self.method, instance)


def works_on_batches(estimator: Any) -> None:
    """Raise AttributeError if the optimizer needs all samples at once."""
    try:
        optimizer = get_optimizer(estimator.optimizer)
    except ValueError:
        return  # Reported when the method is called.
    if optimizer.is_full_batch:
        raise AttributeError(
            f"partial_fit needs an optimizer that works on batches; optimizer={optimizer!r} needs "
            "all samples at once. Use fit, or another optimizer, as Adam() or FTRL()."
        )


def require_classes(estimator: Any, classes: Any) -> None:
    """Raise ValueError if the first partial_fit does not name the classes."""
    if classes is None and not hasattr(estimator, "classes_"):
        raise ValueError("classes must be passed on the first call to partial_fit.")


def _scale_weights(weights: Any, rows: Any, dtype: Any) -> np.ndarray | None:
    """Scale weights to a mean of one over `rows`."""
    if weights is None:
        return None
    taken = weights if rows is None else weights[rows]
    scale = normalise_weights(taken, np.float64)
    if rows is None or scale is None:
        return None if scale is None else scale.astype(dtype)
    scaled = np.zeros(len(weights), dtype=dtype)
    scaled[rows] = scale
    return scaled


def log_of(probabilities: Any) -> Any:
    """Return the logarithms, minus infinity of zero."""
    with np.errstate(divide="ignore"):
        return device_of(probabilities).xp.log(probabilities)


def _move(device: Any, array: Any) -> Any:
    return None if array is None else device.asarray(array)
