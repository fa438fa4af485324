"""Linear models trained by any optimizer, on dense or sparse data."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.sparse as sp
from joblib import effective_n_jobs
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted

from skoptim._arrays import Place, host, moved, native
from skoptim._devices import cpu, device_of, is_cuda_array
from skoptim._estimator import (
    BaseTrainedEstimator,
    ClassifierTargets,
    RegressorTargets,
    available_when,
    log_of,
    require_classes,
    works_on_batches,
)
from skoptim._network import Dataset, Network, Views
from skoptim.losses import LogLoss, Loss, resolve_loss

__all__ = ["SGDClassifier", "SGDRegressor"]


class _Linear(BaseTrainedEstimator):
    """What the linear estimators share: one layer, published as `coef_` and `intercept_`."""

    _published = frozenset({"coef_", "intercept_"})
    coef_: Any

    _parameter_constraints = {
        **BaseTrainedEstimator._parameter_constraints,
        "fit_intercept": ["boolean"],
        "epsilon": [Interval(Real, 0, None, closed="left")],
        "n_jobs": [None, Integral],
        "average": [Interval(Integral, 0, None, closed="left"), "boolean"],
        "asynchronous": ["boolean"],
    }

    @property
    def _n_workers(self) -> int:
        return effective_n_jobs(self.n_jobs) if self.asynchronous else 1

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
        coef_init: Any = None,
        intercept_init: Any = None,
    ) -> Any:
        """Fit the model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            float32 stays float32, all else becomes float64. CSR with 32- or 64-bit indices is used
            as it is.
            CuPy arrays and cupyx CSR matrices are trained on where they lie, and under
            ``sklearn.set_config(array_api_dispatch=True)`` arrays of other libraries are taken too.
        y : array-like of shape (n_samples,)
            Labels, or in regression targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights, at least 0; only their ratios matter.
        X_val, y_val, sample_weight_val : like X, y and sample_weight, or None
            Samples to score after each epoch; with ``early_stopping=True`` nothing is held out of
            `X` then.
        coef_init : array-like of the shape of `coef_`, or None
            Coefficients to start from.
        intercept_init : array-like of shape (n_outputs,), or None
            Intercepts to start from.

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError
            If a parameter or an input is invalid, or if training diverged.
        """
        return self._train(
            X,
            y,
            sample_weight,
            X_val=X_val,
            y_val=y_val,
            sample_weight_val=sample_weight_val,
            initial=_initial(coef_init, intercept_init),
        )

    def _make_network(
        self, n_features: int, n_outputs: int, loss: Loss, device: Any, dtype: Any
    ) -> Network:
        return Network(
            (n_features, n_outputs),
            None,
            loss,
            device=device,
            dtype=dtype,
            fit_intercept=self.fit_intercept,
        )

    def _initialise(self, network: Network, random_state: np.random.RandomState) -> None:
        pass  # Linear models start from zero.

    def _default_batch_size(self, n_samples: int, device: Any) -> int:
        return min(device.LINEAR_BATCH_SIZE, n_samples)

    @property
    def _first_coef(self) -> Any:
        coef = self.coef_
        return coef.data if is_cuda_array(coef) and hasattr(coef, "tocsr") else coef

    def _load(self, network: Network) -> None:
        coef = host(self.coef_)
        coef = coef.toarray() if sp.issparse(coef) else coef
        self._set_initial(network, {"coef": coef, "intercept": self.intercept_})

    def _set_initial(self, network: Network, initial: dict[str, Any]) -> None:
        views = network.views(network.parameters)
        for name, target in (("coef", views.coefs[0].T), ("intercept", views.intercepts[0])):
            if initial[name] is None:
                continue
            value = np.asarray(host(initial[name]), dtype=network.dtype)
            if value.size != target.size or value.shape[-1:] not in ((), target.shape[-1:]):
                raise ValueError(f"{name}_init has shape {value.shape}; expected {target.shape}.")
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{name}_init contains NaN or infinity; start from finite numbers."
                )
            target[...] = network.device.asarray(value.reshape(target.shape))

    def _parameter_arrays(self, attributes: Mapping[str, Any]) -> list[Any]:
        coef, intercept = (native(attributes[name]) for name in ("coef_", "intercept_"))
        coef = coef.toarray() if hasattr(coef, "toarray") else coef
        # Transposed: coefficients of several outputs lie column by column.
        return [coef.T, intercept]

    def _attributes(self, network: Network, flat: Any, place: Place) -> dict[str, Any]:
        views = network.views(place.native(flat))
        return {
            "coef_": place.give(self._shaped(views.coefs[0].T)),
            "intercept_": place.give(views.intercepts[0].copy()),
        }

    def _shaped(self, coef: Any) -> Any:
        """Return the (n_outputs, n_features) coefficients in the shape of `coef_`."""
        return coef

    def _raw_scores(self, X: Any, device: Any) -> Any:
        coef, intercept = moved(self.coef_, device), moved(self.intercept_, device)
        coef = coef if coef.ndim == 2 else coef.reshape(1, -1)
        if device is cpu and not sp.issparse(X):
            return safe_sparse_dot(X, coef.T, dense_output=True) + intercept
        data = Dataset(device.Matrix(X))  # Its indices are checked here: SciPy follows any.
        if sp.issparse(coef):
            return safe_sparse_dot(X, coef.T, dense_output=True) + intercept
        network = Network(
            coef.shape[::-1], None, self._resolve_loss(), device=device, dtype=X.dtype
        )
        intercept = device.xp.broadcast_to(device.asarray(intercept).reshape(-1), len(coef))
        views = Views(
            [device.asarray(coef.T, dtype=X.dtype)], [device.asarray(intercept, dtype=X.dtype)]
        )
        return network.scores(data, views)

    def densify(self) -> Any:
        """Turn `coef_` into a dense array, the form it has after `fit`.

        Returns
        -------
        self : estimator
        """
        check_is_fitted(self)
        if hasattr(self.coef_, "toarray"):
            self.coef_ = self._shaped(self.coef_.toarray())
        return self

    def sparsify(self) -> Any:
        """Turn `coef_` into a CSR matrix: smaller and faster once most coefficients are zero.

        Returns
        -------
        self : estimator

        Raises
        ------
        TypeError
            If `coef_` is of an array library without sparse matrices.
        """
        check_is_fitted(self)
        if Place.of(self.coef_).namespace is not None:
            raise TypeError(
                f"coef_ is a {type(self.coef_).__name__}, and sparsify knows NumPy and CuPy; move "
                "the estimator there with sklearn.utils._array_api.move_estimator_to."
            )
        coef = host(self.coef_)
        coef = sp.csr_matrix(coef.reshape(1, -1) if coef.ndim == 1 else coef)
        self.coef_ = Place.of(self.coef_).native(coef)
        return self


def _has_probabilities(estimator: Any) -> None:
    loss = getattr(estimator.loss, "name", estimator.loss)
    if loss not in ("log_loss", "modified_huber", "multinomial"):
        raise AttributeError(
            f"predict_proba needs loss='log_loss', 'multinomial' or 'modified_huber', not {loss!r}."
        )


class SGDClassifier(ClassifierTargets, ClassifierMixin, _Linear):
    r"""Linear classifier trained by any optimizer.

    It minimises the weighted mean of the loss over the samples plus `alpha` times the penalty,

    .. math:: \frac{1}{\sum_i s_i} \sum_i s_i \, L(y_i, w^\top x_i + b) + \alpha R(w),

    one and the same objective for every optimizer, batch size, and dense or sparse `X`. With
    several classes, binary losses are taken one class against the rest; ``"multinomial"`` is the
    cross-entropy of the softmax.

    Parameters
    ----------
    loss : str or Loss, default="hinge"
        "hinge", "squared_hinge", "log_loss", "modified_huber", "perceptron", "multinomial", or an
        object of `skoptim.losses`.
    penalty : {"l2", "l1", "elasticnet", None} or Penalty, default="l2"
        Or an object of `skoptim.penalties`. Never applied to the intercept. L1 gives exact zeros
        with every optimizer.
    alpha : float, default=0.0001
        Strength of the penalty.
    l1_ratio : float or None, default=0.15
        Share of L1 in "elasticnet".
    fit_intercept : bool, default=True
        Whether to learn an intercept. It is never scaled down for sparse data.
    max_iter : int, default=1000
        Most epochs (outer iterations of a full-batch optimizer).
    tol : float or None, default=1e-3
        Stop when the loss has not fallen by `tol` for `n_iter_no_change` epochs in a row. With a
        full-batch optimizer: stop when the largest entry of the gradient (of the gradient mapping,
        under a non-smooth penalty) is at most `tol` times the first one, or `tol` if that is above
        1. None: make `max_iter` epochs.
    shuffle : bool, default=True
        Whether to visit the samples in a new order in each epoch. `X` is never copied.
    verbose : int, default=0
        Above 0, print a line per epoch.
    epsilon : float, default=0.1
        Unused by the classification losses; kept so that the signature is scikit-learn's.
    n_jobs : int or None, default=None
        Threads of asynchronous training; None means 1, -1 all processors.
    random_state : int, RandomState or None, default=None
        Seed of the order of the samples and of the validation split.
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the samples (of each class alike), stop when the accuracy
        on them has not risen by `tol` for `n_iter_no_change` epochs, and return the best weights.
    validation_fraction : float, default=0.1
        Share held out, in (0, 1).
    n_iter_no_change : int, default=5
        Epochs without improvement to wait for.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied into the sample weights.
    warm_start : bool, default=False
        Let `fit` go on from the last one, optimizer state included.
    average : bool or int, default=False
        Publish the average of the weights over all steps, from the `average`-th sample on.
    optimizer : str or Optimizer, default="normalized_ftrl"
        A name or an object of `skoptim.optimizers`. The object is cloned, never changed. The
        default needs no rate, and no scaling of the features.
    batch_size : int or "auto", default="auto"
        Samples a step; a step follows the mean gradient of its batch. "auto" is 1 on the CPU.
    device : {"cpu", "cuda"} or None, default=None
        Where to train; None is where `X` is. Results are given back where `X` is in any case: CuPy
        arrays for CuPy's, and for ``device="cuda"`` with NumPy or SciPy data NumPy arrays. Parallel
        fits, as by ``GridSearchCV(n_jobs=2)``, can share a GPU in processes of joblib's default
        backend "loky", each with a CUDA context and a copy of `X` of its own; a process forked
        after CUDA was used cannot use it.
    asynchronous : bool, default=False
        Let `n_jobs` threads train the same weights at once, without locks (Hogwild: Niu, Recht, Ré
        and Wright, 2011, https://arxiv.org/abs/1106.5730): faster on large CSR data of which most
        samples share few features. No seed can repeat the result. Elsewhere, and with `average`,
        it has no effect.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Coefficients; a CSR matrix after `sparsify`.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts.
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
    optimizer_ : Optimizer
        The optimizer used.
    optimizer_state_ : OptimizerState
        Its state, from which `partial_fit` and warm starts go on.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, when `X` had names that are all strings.

    See Also
    --------
    skoptim.neural_network.MLPClassifier : The same with hidden layers.

    Notes
    -----
    Unlike scikit-learn's `SGDClassifier`, the weights are trained as an (n_features, n_classes)
    matrix in one pass over the data, sample weights are relative to their mean, and `class_weight`
    weighs a sample by its own class in every one of the one-vs-rest problems.

    References
    ----------
    Bottou (2012), "Stochastic gradient descent tricks". McMahan et al. (2013), "Ad click
    prediction: a view from the trenches".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skoptim.linear_model import SGDClassifier
    >>> from skoptim.optimizers import FTRL
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(
    ...     StandardScaler(), SGDClassifier(loss="log_loss", optimizer=FTRL(0.5), random_state=0)
    ... )
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True
    """

    _parameter_constraints = {
        **_Linear._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        loss: Any = "hinge",
        *,
        penalty: Any = "l2",
        alpha: float = 0.0001,
        l1_ratio: float | None = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        verbose: int = 0,
        epsilon: float = 0.1,
        n_jobs: int | None = None,
        random_state: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        class_weight: Any = None,
        warm_start: bool = False,
        average: bool | int = False,
        optimizer: Any = "normalized_ftrl",
        batch_size: Any = "auto",
        device: str | None = None,
        asynchronous: bool = False,
    ):
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.verbose = verbose
        self.epsilon = epsilon
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.average = average
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.device = device
        self.asynchronous = asynchronous

    @available_when(works_on_batches)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> SGDClassifier:
        """Make one pass over `X`, going on from the last call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,)
            Labels; not every class need occur.
        classes : array-like of shape (n_classes,) or None, default=None
            All labels that will ever occur; needed in the first call.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights, taken as they are: the mean weight of a stream is not known.

        Returns
        -------
        self : SGDClassifier

        Raises
        ------
        ValueError
            As `fit`; also without `classes` in the first call, with labels that are not among
            them, or with `early_stopping`.
        AttributeError
            With a full-batch optimizer.
        """
        require_classes(self, classes)
        return self._train(X, y, sample_weight, incremental=True, classes=classes)

    def _resolve_loss(self) -> Loss:
        return resolve_loss(self.loss, regression=False)

    def _make_network(
        self, n_features: int, n_outputs: int, loss: Loss, device: Any, dtype: Any
    ) -> Network:
        # The softmax of two classes is the logistic function of one score.
        if loss.kind == "multinomial" and n_outputs == 1:
            loss = LogLoss()
        return super()._make_network(n_features, n_outputs, loss, device, dtype)

    def decision_function(self, X: Any) -> Any:
        """Return the raw scores.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            Above 0 means the second class, or "this class".
        """
        scores, place = self._scores(X, "decision_function")
        return place.give(scores.ravel() if scores.shape[1] == 1 else scores)

    def predict(self, X: Any) -> Any:
        """Return the predicted labels, shape (n_samples,).

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        scores, place = self._scores(X, "predict")
        return place.give(self._labels_of(scores, multilabel=False))

    @available_when(_has_probabilities)
    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes; for probabilistic losses only.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            One-vs-rest probabilities are divided by their sum.
        """
        scores, place = self._scores(X, "predict_proba")
        return place.give(self._probabilities(scores))

    @available_when(_has_probabilities)
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
        loss, xp = self._resolve_loss(), device_of(scores).xp
        if scores.shape[1] == 1:
            positive = (LogLoss() if loss.kind == "multinomial" else loss).predict(scores[:, 0])
            return xp.stack([1 - positive, positive], axis=1)
        probabilities = loss.predict(scores)
        if loss.kind == "multinomial":
            return probabilities
        total = probabilities.sum(axis=1, keepdims=True)
        # No class claims the sample: all are equally likely.
        nobody = total == 0
        probabilities = xp.where(nobody, 1 / scores.shape[1], probabilities)
        return (probabilities / xp.where(nobody, 1, total)).astype(scores.dtype, copy=False)


class SGDRegressor(RegressorTargets, RegressorMixin, _Linear):
    r"""Linear regression trained by any optimizer.

    It minimises the weighted mean of the loss over the samples plus `alpha` times the penalty, one
    and the same objective for every optimizer, batch size, and dense or sparse `X`.

    Parameters
    ----------
    loss : str or Loss, default="squared_error"
        "squared_error" (half the square), "huber", "epsilon_insensitive",
        "squared_epsilon_insensitive", "poisson", "quantile", or an object of `skoptim.losses`, as
        ``Quantile(0.9)``.
    penalty : {"l2", "l1", "elasticnet", None} or Penalty, default="l2"
        Or an object of `skoptim.penalties`, as ``NonNegative()``. Never applied to the intercept.
    alpha : float, default=0.0001
        Strength of the penalty.
    l1_ratio : float or None, default=0.15
        Share of L1 in "elasticnet".
    fit_intercept : bool, default=True
        Whether to learn an intercept.
    max_iter : int, default=1000
        Most epochs (outer iterations of a full-batch optimizer).
    tol : float or None, default=1e-3
        As in `SGDClassifier`.
    shuffle : bool, default=True
        Whether to visit the samples in a new order in each epoch.
    verbose : int, default=0
        Above 0, print a line per epoch.
    epsilon : float, default=0.1
        Width of the "huber" and the insensitive losses, in units of the target.
    n_jobs : int or None, default=None
        Threads of asynchronous training; None means 1, -1 all processors.
    random_state : int, RandomState or None, default=None
        Seed of the order of the samples and of the validation split.
    early_stopping : bool, default=False
        As in `SGDClassifier`, with the coefficient of determination.
    validation_fraction : float, default=0.1
        Share held out, in (0, 1).
    n_iter_no_change : int, default=5
        Epochs without improvement to wait for.
    warm_start : bool, default=False
        Let `fit` go on from the last one, optimizer state included.
    average : bool or int, default=False
        Publish the average of the weights over all steps, from the `average`-th sample on.
    optimizer : str or Optimizer, default="normalized_ftrl"
        A name or an object of `skoptim.optimizers`. The object is cloned, never changed. The
        default needs no rate, and no scaling of the features.
    batch_size : int or "auto", default="auto"
        Samples a step. "auto" is 1 on the CPU.
    device : {"cpu", "cuda"} or None, default=None
        Where to train; None is where `X` is. As in `SGDClassifier`.
    asynchronous : bool, default=False
        Let `n_jobs` threads train the same weights at once, without locks (Hogwild: Niu, Recht, Ré
        and Wright, 2011, https://arxiv.org/abs/1106.5730): faster on large CSR data of which most
        samples share few features. No seed can repeat the result. Elsewhere, and with `average`,
        it has no effect.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,)
        Coefficients.
    intercept_ : ndarray of shape (1,)
        Intercept.
    n_iter_, t_, loss_, loss_curve_, history_, best_loss_
        As in `SGDClassifier`.
    validation_scores_, best_validation_score_, optimizer_, optimizer_state_, n_features_in_
        As in `SGDClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.linear_model import SGDRegressor
    >>> from skoptim.optimizers import LBFGS
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([1.0, 3.0, 5.0, 7.0])
    >>> model = SGDRegressor(alpha=0.0, optimizer=LBFGS(), tol=1e-8).fit(X, y)
    >>> model.coef_.round(4), model.intercept_.round(4)
    (array([2.]), array([1.]))
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        *,
        penalty: Any = "l2",
        alpha: float = 0.0001,
        l1_ratio: float | None = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        verbose: int = 0,
        epsilon: float = 0.1,
        n_jobs: int | None = None,
        random_state: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
        average: bool | int = False,
        optimizer: Any = "normalized_ftrl",
        batch_size: Any = "auto",
        device: str | None = None,
        asynchronous: bool = False,
    ):
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.verbose = verbose
        self.epsilon = epsilon
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.average = average
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.device = device
        self.asynchronous = asynchronous

    @available_when(works_on_batches)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDRegressor:
        """Make one pass over `X`, going on from the last call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights, taken as they are.

        Returns
        -------
        self : SGDRegressor
        """
        return self._train(X, y, sample_weight, incremental=True)

    def _resolve_loss(self) -> Loss:
        return resolve_loss(self.loss, regression=True, epsilon=self.epsilon)

    def _shaped(self, coef: Any) -> Any:
        return coef.ravel()

    def predict(self, X: Any) -> Any:
        """Return the predictions, through the loss's link ("poisson": expected counts).

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        predictions : ndarray of shape (n_samples,)
        """
        scores, place = self._scores(X, "predict")
        return place.give(self._resolve_loss().predict(scores[:, 0]))


def _initial(coef: Any, intercept: Any) -> dict[str, Any] | None:
    if coef is None and intercept is None:
        return None
    return {"coef": coef, "intercept": intercept}
