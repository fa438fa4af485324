"""Multi-layer perceptrons trained by any optimizer, on dense or sparse data."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from skoptim._arrays import Place, moved, native
from skoptim._devices import device_of
from skoptim._estimator import (
    BaseTrainedEstimator,
    ClassifierTargets,
    RegressorTargets,
    Targets,
    available_when,
    log_of,
    require_classes,
    works_on_batches,
)
from skoptim._network import Dataset, Network, Views
from skoptim.activations import get_activation
from skoptim.losses import LogLoss, Loss, Multinomial, resolve_loss

__all__ = ["MLPClassifier", "MLPRegressor"]


class _MLP(BaseTrainedEstimator):
    """What the networks share: hidden layers, published as `coefs_` and `intercepts_`."""

    _published = frozenset({"coefs_", "intercepts_"})

    _parameter_constraints = {
        **BaseTrainedEstimator._parameter_constraints,
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": "no_validation",
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Any:
        """Fit the model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            float32 stays float32, all else becomes float64.
            CuPy arrays and cupyx CSR matrices are trained on where they lie, and under
            ``sklearn.set_config(array_api_dispatch=True)`` arrays of other libraries are taken too.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Labels, or a 0/1 indicator matrix (multilabel); in regression targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights, at least 0; only their ratios matter.
        X_val, y_val, sample_weight_val : like X, y and sample_weight, or None
            Samples to score after each epoch; with ``early_stopping=True`` nothing is held out of
            `X` then.

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError
            If a parameter or an input is invalid, or if training diverged.
        """
        return self._train(
            X, y, sample_weight, X_val=X_val, y_val=y_val, sample_weight_val=sample_weight_val
        )

    def _layer_sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        if any(not isinstance(size, Integral) or size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be integers > 0, got {sizes}.")
        return [int(size) for size in sizes]

    def _make_network(
        self, n_features: int, n_outputs: int, loss: Loss, device: Any, dtype: Any
    ) -> Network:
        return Network(
            (n_features, *self._layer_sizes(), n_outputs),
            get_activation(self.activation),
            loss,
            device=device,
            dtype=dtype,
            dropout=self.dropout,
        )

    def _initialise(self, network: Network, random_state: np.random.RandomState) -> None:
        network.initialise(random_state, gain=2.0 if self.activation == "logistic" else 6.0)

    def _default_batch_size(self, n_samples: int, device: Any) -> int:
        return min(200, n_samples)

    @property
    def _first_coef(self) -> Any:
        return self.coefs_[0]

    def _load(self, network: Network) -> None:
        views = network.views(network.parameters)
        found = [tuple(coef.shape) for coef in self.coefs_]
        if found != network.shapes:
            raise ValueError(
                f"hidden_layer_sizes={self.hidden_layer_sizes!r} wants layers of shapes "
                f"{network.shapes}, the fitted ones have {found}: set warm_start=False to start "
                "anew."
            )
        for target, value in zip(
            (*views.coefs, *views.intercepts), (*self.coefs_, *self.intercepts_), strict=True
        ):
            target[...] = moved(value, network.device)

    def _parameter_arrays(self, attributes: Mapping[str, Any]) -> list[Any]:
        return [native(array) for name in ("coefs_", "intercepts_") for array in attributes[name]]

    def _attributes(self, network: Network, flat: Any, place: Place) -> dict[str, Any]:
        views = network.views(place.native(flat))
        return {
            "coefs_": [place.give(coef) for coef in views.coefs],
            "intercepts_": [place.give(intercept) for intercept in views.intercepts],
            "n_layers_": network.n_layers + 1,
            "n_outputs_": network.layer_sizes[-1],
            "out_activation_": self._out_activation(network.loss),
        }

    def _out_activation(self, loss: Loss) -> str:
        return {"multinomial": "softmax", "log_loss": "logistic", "poisson": "exp"}.get(
            loss.name, "identity"
        )

    def _raw_scores(self, X: Any, device: Any) -> Any:
        coefs, intercepts = (
            [device.asarray(moved(array, device)) for array in arrays]
            for arrays in (self.coefs_, self.intercepts_)
        )
        network = Network(
            (X.shape[1], *(len(intercept) for intercept in intercepts)),
            get_activation(self.activation),
            self._resolve_loss(),
            device=device,
            dtype=X.dtype,
        )
        views = Views(coefs, intercepts)
        return network.scores(Dataset(device.Matrix(X)), views)


class MLPClassifier(ClassifierTargets, ClassifierMixin, _MLP):
    r"""Multi-layer perceptron classifier trained by any optimizer.

    It minimises the weighted mean of the cross-entropy over the samples plus `alpha` times the
    penalty of all weights (not the intercepts), one and the same objective for every optimizer and
    batch size.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Units of each hidden layer.
    activation : str or tuple of two callables, default="relu"
        Of the hidden layers: "identity", "logistic", "tanh", "relu", "leaky_relu", "elu", "gelu",
        "silu", or a pair (f, derivative) of array functions.
    optimizer : str or Optimizer, default="adam"
        A name or an object of `skoptim.optimizers`. The object is cloned, never changed.
    alpha : float, default=0.0001
        Strength of the penalty. It multiplies the penalty as it stands; scikit-learn divides its
        own by the number of samples in the batch.
    batch_size : int or "auto", default="auto"
        Samples a step; "auto" is ``min(200, n_samples)``.
    max_iter : int, default=200
        Most epochs (outer iterations of a full-batch optimizer).
    shuffle : bool, default=True
        Whether to visit the samples in a new order in each epoch. `X` is never copied.
    random_state : int, RandomState or None, default=None
        Seed of the initial weights, the order of the samples, dropout and the validation split.
    tol : float or None, default=1e-4
        Stop when the loss has not fallen by `tol` for `n_iter_no_change` epochs in a row. With a
        full-batch optimizer: stop when the largest entry of the gradient is at most `tol` times the
        first one, or `tol` if that is above 1.
    verbose : int, default=0
        Above 0, print a line per epoch.
    warm_start : bool, default=False
        Let `fit` go on from the last one, optimizer state included.
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the samples (of each class alike), stop when the accuracy
        on them has not risen by `tol` for `n_iter_no_change` epochs, and return the best weights.
    validation_fraction : float, default=0.1
        Share held out, in (0, 1).
    n_iter_no_change : int, default=10
        Epochs without improvement to wait for.
    penalty : {"l2", "l1", "elasticnet", None} or Penalty, default="l2"
        Or an object of `skoptim.penalties`; `GroupL1` acts on the rows of the first layer and so
        selects features.
    l1_ratio : float or None, default=0.15
        Share of L1 in "elasticnet".
    dropout : float, default=0.0
        Share of the hidden units silenced in each training step, in [0, 1).
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied into the sample weights.
    device : {"cpu", "cuda"} or None, default=None
        Where to train; None is where `X` is. Results are given back where `X` is in any case: CuPy
        arrays for CuPy's, and for ``device="cuda"`` with NumPy or SciPy data NumPy arrays. Parallel
        fits, as by ``GridSearchCV(n_jobs=2)``, can share a GPU in processes of joblib's default
        backend "loky", each with a CUDA context and a copy of `X` of its own; a process forked
        after CUDA was used cannot use it.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (fan_in, fan_out)
        Weights of each layer.
    intercepts_ : list of ndarray of shape (fan_out,)
        Intercepts of each layer.
    classes_ : ndarray of shape (n_classes,)
        Labels.
    n_iter_ : int
        Epochs made by the last `fit`, or by all calls of `partial_fit`.
    t_ : float
        Samples visited.
    loss_ : float
        The objective in the last epoch.
    loss_curve_ : list of float
        The objective of each epoch: mean loss met along the way, plus the penalty at its end.
    history_ : dict of str to list of float
        Per epoch: "loss", "seconds", "learning_rate" (full batch: "optimality", the gradient's
        largest entry), "validation_loss", "validation_score".
    best_loss_ : float or None
        Lowest of `loss_curve_`; None with early stopping.
    validation_scores_ : list of float or None
        Accuracy on the held-out samples.
    best_validation_score_ : float or None
        The highest, with early stopping.
    n_layers_ : int
        Number of layers, input and output included.
    n_outputs_ : int
        Number of outputs.
    out_activation_ : str
        "logistic" (two classes, multilabel) or "softmax".
    optimizer_ : Optimizer
        The optimizer used.
    optimizer_state_ : OptimizerState
        Its state, from which `partial_fit` and warm starts go on.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, when `X` had names that are all strings.

    References
    ----------
    Glorot and Bengio (2010), "Understanding the difficulty of training deep feedforward neural
    networks" (initial weights). Srivastava et al. (2014), "Dropout".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skoptim.neural_network import MLPClassifier
    >>> from skoptim.optimizers import Nadam
    >>> X, y = load_digits(return_X_y=True)
    >>> model = MLPClassifier((32,), optimizer=Nadam(0.01), max_iter=15, tol=None, random_state=0)
    >>> bool(model.fit(X / 16, y).score(X / 16, y) > 0.95)
    True
    """

    _multilabel = True
    _parameter_constraints = {
        **_MLP._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        optimizer: Any = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float | None = 1e-4,
        verbose: int = 0,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        penalty: Any = "l2",
        l1_ratio: float | None = 0.15,
        dropout: float = 0.0,
        class_weight: Any = None,
        device: str | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.penalty = penalty
        self.l1_ratio = l1_ratio
        self.dropout = dropout
        self.class_weight = class_weight
        self.device = device

    @available_when(works_on_batches)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> MLPClassifier:
        """Make one pass over `X`, going on from the last call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Labels, or a 0/1 indicator matrix.
        classes : array-like of shape (n_classes,) or None, default=None
            All labels that will ever occur; needed in the first call, except with an indicator
            matrix.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights, taken as they are: the mean weight of a stream is not known.

        Returns
        -------
        self : MLPClassifier
        """
        if np.ndim(y) != 2 or np.shape(y)[1] == 1:
            require_classes(self, classes)
        return self._train(X, y, sample_weight, incremental=True, classes=classes)

    def _resolve_loss(self) -> Loss:
        return LogLoss()

    def _make_network(
        self, n_features: int, n_outputs: int, loss: Loss, device: Any, dtype: Any
    ) -> Network:
        exclusive = n_outputs > 1 and not self._is_multilabel
        loss = Multinomial() if exclusive else loss
        return super()._make_network(n_features, n_outputs, loss, device, dtype)

    def _learned(self, y: np.ndarray, classes: Any, going_on: bool) -> dict[str, Any]:
        learned = super()._learned(y, classes, going_on)
        return learned if going_on else {**learned, "_is_multilabel": y.ndim == 2}

    def _encode(self, y: np.ndarray) -> Targets:
        if (y.ndim == 2) != self._is_multilabel:
            kinds = ("one label a sample", "an indicator matrix of labels")
            raise ValueError(
                f"y is {kinds[y.ndim == 2]}, where the model was given "
                f"{kinds[self._is_multilabel]}; give the same kind, or fit anew."
            )
        return super()._encode(y)

    def decision_function(self, X: Any) -> Any:
        """Return the raw scores, before the output activation.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        scores, place = self._scores(X, "decision_function")
        is_flat = scores.shape[1] == 1 and not self._is_multilabel
        return place.give(scores.ravel() if is_flat else scores)

    def predict(self, X: Any) -> Any:
        """Return the predicted labels.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        labels : ndarray of shape (n_samples,) or (n_samples, n_labels)
        """
        scores, place = self._scores(X, "predict")
        return place.give(self._labels_of(scores, self._is_multilabel))

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes, or of each label.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        scores, place = self._scores(X, "predict_proba")
        return place.give(self._probabilities(scores))

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        scores, place = self._scores(X, "predict_log_proba")
        return place.give(log_of(self._probabilities(scores)))

    def _probabilities(self, scores: Any) -> Any:
        if self._is_multilabel:
            return LogLoss().predict(scores)
        if scores.shape[1] == 1:
            positive = LogLoss().predict(scores[:, 0])
            return device_of(positive).xp.stack([1 - positive, positive], axis=1)
        return Multinomial().predict(scores)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorTargets, RegressorMixin, _MLP):
    r"""Multi-layer perceptron regression trained by any optimizer.

    It minimises the weighted mean of the loss over the samples (summed over outputs) plus `alpha`
    times the penalty of all weights.

    Parameters
    ----------
    loss : str or Loss, default="squared_error"
        "squared_error" (half the square), "huber", "epsilon_insensitive",
        "squared_epsilon_insensitive", "poisson", "quantile", or an object of `skoptim.losses`.
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Units of each hidden layer.
    activation, optimizer, alpha, batch_size, max_iter, shuffle, random_state, tol, verbose
        As in `MLPClassifier`.
    warm_start, validation_fraction, n_iter_no_change, penalty, l1_ratio, dropout, device
        As in `MLPClassifier`.
    early_stopping : bool, default=False
        As in `MLPClassifier`, with the coefficient of determination.

    Attributes
    ----------
    coefs_, intercepts_, n_iter_, t_, loss_, loss_curve_, history_, best_loss_
        As in `MLPClassifier`.
    validation_scores_, best_validation_score_, n_layers_, n_outputs_, optimizer_
        As in `MLPClassifier`.
    optimizer_state_, n_features_in_
        As in `MLPClassifier`.
    out_activation_ : str
        "identity", or "exp" with the Poisson loss.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.preprocessing import scale
    >>> from skoptim.neural_network import MLPRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MLPRegressor(
    ...     hidden_layer_sizes=20, optimizer="lbfgs", alpha=0.1, max_iter=50, tol=None
    ... ).set_params(random_state=0)
    >>> bool(model.fit(scale(X), scale(y)).score(scale(X), scale(y)) > 0.5)
    True
    """

    _multi_output = True

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        optimizer: Any = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float | None = 1e-4,
        verbose: int = 0,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        penalty: Any = "l2",
        l1_ratio: float | None = 0.15,
        dropout: float = 0.0,
        device: str | None = None,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.penalty = penalty
        self.l1_ratio = l1_ratio
        self.dropout = dropout
        self.device = device

    @available_when(works_on_batches)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Make one pass over `X`, going on from the last call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights, taken as they are.

        Returns
        -------
        self : MLPRegressor
        """
        return self._train(X, y, sample_weight, incremental=True)

    def _resolve_loss(self) -> Loss:
        return resolve_loss(self.loss, regression=True)

    def predict(self, X: Any) -> Any:
        """Return the predictions, through the loss's link.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        scores, place = self._scores(X, "predict")
        predictions = self._resolve_loss().predict(scores)
        return place.give(predictions.ravel() if predictions.shape[1] == 1 else predictions)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
