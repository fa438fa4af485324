"""Bad input: one clear error that names the parameter and says what to write instead.

Each case also leaves a model that was fitted before as it was, to the last bit.
"""

import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from optimizer_table import ELEMENTWISE
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim.losses import Huber, LogLoss, Poisson, SquaredError
from skoptim.optimizers import FTRL, LBFGS, SGD, Adadelta, Adagrad, Adam, Lion, ProximalGradient
from skoptim.penalties import Box, ElasticNet, GroupL1, NonNegative
from skoptim.schedules import Cosine, Exponential, Warmup

ESTIMATORS = {
    "SGDClassifier": SGDClassifier(max_iter=3, tol=None, random_state=0),
    "SGDRegressor": SGDRegressor(max_iter=3, tol=None, random_state=0),
    "MLPClassifier": MLPClassifier((4,), max_iter=3, tol=None, random_state=0),
    "MLPRegressor": MLPRegressor("squared_error", (4,), max_iter=3, tol=None, random_state=0),
}
EACH = pytest.mark.parametrize("name", ESTIMATORS)
CLASSIFIERS = pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
REGRESSORS = pytest.mark.parametrize("name", ["SGDRegressor", "MLPRegressor"])


def make_data(name, n_samples=40, n_features=5):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features))
    y = X @ np.arange(n_features) + 1
    return X, (y > 1).astype(int) if name.endswith("Classifier") else y


def contents(model):
    """Return everything that the model remembers of its fit, as bytes."""
    return {
        key: pickle.dumps(value)
        for key, value in vars(model).items()
        if key not in model.get_params() and "callback" not in key
    }


def assert_refused(name, match, *, parameters=None, call=None, error=ValueError, method="fit"):
    """Assert that the call fails with this message, on a fresh and on a fitted model.

    `call` takes (X, y) and returns the arguments of `method`.
    """
    X, y = make_data(name)
    parameters = parameters or {}
    fresh = clone(ESTIMATORS[name]).set_params(**parameters)
    args, kwargs = call(X, y) if call else ((X, y), {})
    with pytest.raises(error, match=match):
        getattr(fresh, method)(*args, **kwargs)
    assert contents(fresh) == {}, "a failed first fit left something behind"

    fitted = clone(ESTIMATORS[name]).fit(X, y)
    predictions, before = fitted.predict(X), contents(fitted)
    kept = {key: fitted.get_params()[key] for key in parameters}
    fitted.set_params(**parameters)
    with pytest.raises(error, match=match):
        getattr(fitted, method)(*args, **kwargs)
    fitted.set_params(**kept)
    assert contents(fitted) == before, "a failed fit changed what had been fitted"
    np.testing.assert_array_equal(fitted.predict(X), predictions)


# --- Parameters of the estimators -----------------------------------------------------------------

PARAMETERS = {
    "optimizer-unknown": ({"optimizer": "adamm"}, r"optimizer='adamm'.*use one of.*'adam'"),
    "optimizer-upper_case": ({"optimizer": "Adam"}, r"optimizer='Adam'.*use one of.*'adam'"),
    "optimizer-class": ({"optimizer": Adam}, r"optimizer.*class Adam.*write optimizer=Adam\(\)"),
    "optimizer-none": ({"optimizer": None}, r"optimizer=None.*use one of"),
    "optimizer-number": ({"optimizer": 0.1}, r"optimizer=0\.1.*use one of"),
    "optimizer-solver": ({"optimizer": "liblinear"}, r"optimizer='liblinear'.*use one of.*lbfgs"),
    "loss-unknown": ({"loss": "log"}, r"loss='log'.*use one of"),
    "loss-none": ({"loss": None}, r"loss=None.*use one of"),
    "penalty-unknown": ({"penalty": "l3"}, r"penalty='l3'.*use 'l2', 'l1', 'elasticnet', None"),
    "penalty-none_string": ({"penalty": "none"}, r"penalty='none'.*None"),
    "penalty-class": (
        {"penalty": NonNegative},
        r"penalty.*class NonNegative.*penalty=NonNegative\(\)",
    ),
    "penalty-number": ({"penalty": 0.5}, r"penalty=0\.5.*use 'l2'"),
    "penalty-box": ({"penalty": Box(1.0, -1.0)}, r"Box: lower=1\.0.*upper=-1\.0"),
    "penalty-box_nan": ({"penalty": Box(np.nan, 1.0)}, r"'lower' parameter of Box"),
    "penalty-elasticnet": ({"penalty": ElasticNet(1.5)}, r"'l1_ratio' parameter of ElasticNet"),
    "alpha-negative": ({"alpha": -0.1}, r"'alpha' parameter"),
    "alpha-string": ({"alpha": "0.1"}, r"'alpha' parameter"),
    "alpha-nan": ({"alpha": np.nan}, r"'alpha' parameter"),
    "l1_ratio": ({"l1_ratio": 1.5}, r"'l1_ratio' parameter"),
    "l1_ratio-none": ({"l1_ratio": None, "penalty": "elasticnet"}, r"l1_ratio must be a number"),
    "max_iter-zero": ({"max_iter": 0}, r"'max_iter' parameter"),
    "max_iter-float": ({"max_iter": 2.5}, r"'max_iter' parameter"),
    "tol-negative": ({"tol": -1e-3}, r"'tol' parameter"),
    "tol-string": ({"tol": "auto"}, r"'tol' parameter"),
    "shuffle": ({"shuffle": "yes"}, r"'shuffle' parameter"),
    "batch_size-zero": ({"batch_size": 0}, r"'batch_size' parameter"),
    "batch_size-string": ({"batch_size": "full"}, r"'batch_size' parameter.*'auto'"),
    "batch_size-float": ({"batch_size": 0.5}, r"'batch_size' parameter"),
    "random_state": ({"random_state": -1}, r"'random_state' parameter"),
    "validation_fraction": ({"validation_fraction": 1.0}, r"'validation_fraction' parameter"),
    "n_iter_no_change": ({"n_iter_no_change": 0}, r"'n_iter_no_change' parameter"),
    "early_stopping": ({"early_stopping": "yes"}, r"'early_stopping' parameter"),
    "warm_start": ({"warm_start": "no"}, r"'warm_start' parameter"),
    "device": ({"device": "tpu"}, r"'device' parameter.*'cpu'"),
    "verbose": ({"verbose": -1}, r"'verbose' parameter"),
}


def takes(name, parameters):
    return set(parameters) <= set(ESTIMATORS[name].get_params())


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{key}")
        for name in ESTIMATORS
        for key, case in PARAMETERS.items()
        if takes(name, case[0])
    ],
)
def test_bad_parameter(name, case):
    parameters, match = case
    assert_refused(name, match, parameters=parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "match"),
    [
        (
            "SGDClassifier",
            {"loss": "squared_error"},
            r"loss='squared_error'.*classification.*'hinge'",
        ),
        ("SGDClassifier", {"loss": Huber()}, r"loss=Huber\(\).*classification"),
        ("SGDClassifier", {"loss": LogLoss}, r"loss=.*LogLoss.*instance"),
        ("SGDRegressor", {"loss": "hinge"}, r"loss='hinge'.*regression.*'huber'"),
        ("SGDRegressor", {"loss": LogLoss()}, r"loss=LogLoss\(\).*regression"),
        ("MLPRegressor", {"loss": "log_loss"}, r"loss='log_loss'.*regression"),
        ("SGDRegressor", {"loss": Huber(-1)}, r"'epsilon' parameter of Huber"),
        ("SGDRegressor", {"epsilon": -0.1}, r"'epsilon' parameter"),
        ("SGDClassifier", {"average": -1}, r"'average' parameter"),
        ("SGDClassifier", {"class_weight": "even"}, r"'class_weight' parameter.*'balanced'"),
        ("MLPClassifier", {"class_weight": "even"}, r"'class_weight' parameter.*'balanced'"),
        ("SGDClassifier", {"fit_intercept": "yes"}, r"'fit_intercept' parameter"),
        ("MLPClassifier", {"activation": "swish"}, r"activation='swish'.*use one of.*'silu'"),
        ("MLPRegressor", {"activation": np.tanh}, r"activation=.*pair of callables"),
        ("MLPRegressor", {"activation": None}, r"activation=None.*use one of"),
        ("MLPClassifier", {"dropout": 1.0}, r"'dropout' parameter"),
        ("MLPClassifier", {"dropout": -0.1}, r"'dropout' parameter"),
        ("MLPClassifier", {"hidden_layer_sizes": 0}, r"hidden_layer_sizes"),
        ("MLPClassifier", {"hidden_layer_sizes": (5, -1)}, r"hidden_layer_sizes"),
        ("MLPClassifier", {"hidden_layer_sizes": (5, 2.5)}, r"hidden_layer_sizes"),
        ("MLPClassifier", {"hidden_layer_sizes": "100"}, r"hidden_layer_sizes"),
        ("MLPRegressor", {"hidden_layer_sizes": None}, r"hidden_layer_sizes"),
    ],
)
def test_bad_parameter_of_one_estimator(name, parameters, match):
    assert_refused(name, match, parameters=parameters)


# --- Optimizers and schedules ---------------------------------------------------------------------


def from_zero(steps):
    return 0.1 * (steps - 1)


def negative(steps):
    return -0.1 * np.ones(len(steps))


def not_a_number(steps):
    return np.full(len(steps), np.nan)


def of_the_wrong_length(steps):
    return np.ones(3)


OPTIMIZERS = {
    "negative": (SGD(-0.1), r"'learning_rate' parameter of SGD"),
    "zero": (Adam(0.0), r"'learning_rate' parameter of Adam"),
    "nan": (Adagrad(np.nan), r"'learning_rate' parameter of Adagrad"),
    "string": (SGD("adaptive"), r"'learning_rate' parameter of SGD"),
    "none": (SGD(None), r"'learning_rate' parameter of SGD"),
    "schedule-class": (SGD(Cosine), r"learning_rate.*class Cosine.*Cosine\("),
    "schedule-parameter": (SGD(Exponential(0.1, -2.0)), r"'decay' parameter of Exponential"),
    "schedule-nested": (SGD(Warmup(-0.1, 5)), r"'schedule' parameter of Warmup"),
    "schedule-negative": (SGD(negative), r"learning_rate=.*negative.*SGD.*negative or not finite"),
    "schedule-nan": (Adam(not_a_number), r"learning_rate=.*Adam.*negative or not finite"),
    "schedule-length": (SGD(of_the_wrong_length), r"learning_rate=.*of_the_wrong_length"),
    "ftrl-alpha": (FTRL(0.0), r"'alpha' parameter of FTRL"),
    "ftrl-alpha-negative": (FTRL(-1.0), r"'alpha' parameter of FTRL"),
    "ftrl-schedule-zero": (FTRL(from_zero), r"alpha of FTRL must be positive at the first step"),
    "ftrl-schedule-negative": (FTRL(negative), r"alpha.*FTRL.*negative"),
    "ftrl-l1": (FTRL(l1=-1.0), r"'l1' parameter of FTRL"),
    "ftrl-power": (FTRL(learning_rate_power=0.5), r"'learning_rate_power' parameter of FTRL"),
    "beta": (Adam(beta_1=1.0), r"'beta_1' parameter of Adam"),
    "beta-negative": (Lion(beta_2=-0.1), r"'beta_2' parameter of Lion"),
    "momentum": (SGD(momentum=1.5), r"'momentum' parameter of SGD"),
    "nesterov": (SGD(nesterov=True), r"nesterov=True of SGD needs momentum > 0"),
    "rho": (Adadelta(rho=1.0), r"'rho' parameter of Adadelta"),
    "epsilon": (Adam(epsilon=-1e-8), r"'epsilon' parameter of Adam"),
    "weight_decay": (Adam(weight_decay=-1.0), r"'weight_decay' parameter of Adam"),
    "clip_norm": (Adam(clip_norm=0.0), r"'clip_norm' parameter of Adam"),
    "clip_value": (Adam(clip_value=-1.0), r"'clip_value' parameter of Adam"),
    "l2": (Adam(l2=-1.0), r"'l2' parameter of Adam"),
    "history_size": (LBFGS(history_size=0), r"'history_size' parameter of LBFGS"),
    "max_line_search": (LBFGS(max_line_search=0), r"'max_line_search' parameter of LBFGS"),
    "full_batch-rate": (
        ProximalGradient(Cosine(0.1, total_steps=5), full_batch=True),
        r"learning_rate=Cosine.*must be a number when full_batch=True",
    ),
    "full_batch-clip": (
        ProximalGradient(clip_norm=1.0, full_batch=True),
        r"clip_norm=1\.0.*full_batch=False",
    ),
}


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPRegressor"])
@pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_bad_optimizer(name, case):
    optimizer, match = case
    assert_refused(name, match, parameters={"optimizer": optimizer}, error=(ValueError, TypeError))


def test_epsilon_that_is_zero_in_float32():
    X, y = make_data("SGDClassifier")
    with pytest.raises(
        ValueError, match=r"epsilon=1e-40 of Adam counts as zero in float32.*larger epsilon"
    ):
        SGDClassifier(optimizer=Adam(epsilon=1e-40)).fit(X.astype(np.float32), y)
    SGDClassifier(optimizer=Adam(epsilon=1e-40), max_iter=1, tol=None).fit(X, y)


# --- Combinations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lbfgs", LBFGS(), ProximalGradient(1.0, full_batch=True)])
@EACH
def test_partial_fit_with_a_full_batch_optimizer(name, optimizer):
    assert_refused(
        name,
        r"partial_fit needs an optimizer that works on batches; optimizer=.*Use fit.*Adam\(\)",
        parameters={"optimizer": optimizer},
        error=(AttributeError, ValueError),
        method="partial_fit",
    )
    estimator = clone(ESTIMATORS[name]).set_params(optimizer=optimizer)
    assert not hasattr(estimator, "partial_fit")


@EACH
def test_partial_fit_with_early_stopping(name):
    classifier = name.endswith("Classifier")
    assert_refused(
        name,
        r"partial_fit.*early_stopping=False",
        parameters={"early_stopping": True},
        call=lambda X, y: ((X, y), {"classes": [0, 1]} if classifier else {}),
        method="partial_fit",
    )


@pytest.mark.parametrize("name", ["SGDClassifier", "SGDRegressor"])
def test_average_with_a_full_batch_optimizer(name):
    assert_refused(
        name,
        r"average needs an optimizer that works on batches, not LBFGS",
        parameters={"optimizer": LBFGS(), "average": True},
    )


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_dropout_with_a_full_batch_optimizer(name):
    assert_refused(
        name,
        r"dropout.*LBFGS.*set dropout=0",
        parameters={"optimizer": LBFGS(), "dropout": 0.5},
    )


@EACH
@pytest.mark.parametrize(
    ("optimizer", "penalty", "match"),
    [
        (Adam(), GroupL1(), r"penalty=GroupL1\(\).*Adam.*use optimizer=SGD\(\)"),
        (FTRL(), GroupL1(), r"penalty=GroupL1\(\).*FTRL.*use optimizer=SGD\(\)"),
        (LBFGS(), GroupL1(), r"penalty=GroupL1\(\).*LBFGS.*ProximalGradient\(full_batch=True\)"),
        (
            LBFGS(),
            NonNegative(),
            r"penalty=NonNegative.*LBFGS.*ProximalGradient\(full_batch=True\)",
        ),
        (LBFGS(), Box(), r"penalty=.*Box.*LBFGS.*ProximalGradient\(full_batch=True\)"),
    ],
)
def test_penalty_that_the_optimizer_cannot_honour(name, optimizer, penalty, match):
    assert_refused(name, match, parameters={"optimizer": optimizer, "penalty": penalty})


# --- X --------------------------------------------------------------------------------------------


def broken_csr(**arrays):
    """Return a CSR matrix whose index arrays were changed after it was checked."""
    X = sp.csr_matrix(make_data("SGDRegressor")[0])
    for key, change in arrays.items():
        change(getattr(X, key))
    return X


def wide_csr(index):
    """Return a CSR matrix with 64-bit indices, one of them given."""
    X = broken_csr()
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    X.indices[3] = index
    return X


def set_entry(place, value):
    def change(array):
        array[place] = value

    return change


BAD_X = {
    "one_dimension": (lambda X: X[:, 0], r"2D array.*1D array"),
    "three_dimensions": (lambda X: X[None], r"dim 3"),
    "nan": (lambda X: np.where(np.eye(*X.shape), np.nan, X), r"X contains NaN"),
    "infinity": (lambda X: np.where(np.eye(*X.shape), np.inf, X), r"X contains infinity"),
    "csr-nan": (lambda X: sp.csr_matrix(np.where(np.eye(*X.shape), np.nan, X)), r"X contains NaN"),
    "strings": (lambda X: X.astype(str).astype(object) + "a", r"could not convert string"),
    "complex": (lambda X: X + 1j, r"Complex data not supported"),
    "no_samples": (lambda X: X[:0], r"0 sample"),
    "no_features": (lambda X: X[:, :0], r"0 feature"),
    "csr-index_too_large": (lambda X: broken_csr(indices=set_entry(3, 99)), r"X.*column ind"),
    "csr-index_negative": (lambda X: broken_csr(indices=set_entry(3, -7)), r"X.*column ind"),
    # Cut to 32 bits, the second would be column 3.
    "csr-index_beyond_2**31": (lambda X: wide_csr(2**31 + 3), r"X.*column ind"),
    "csr-index_2**32+3": (lambda X: wide_csr(2**32 + 3), r"X.*column ind"),
    "csr-indptr_falls": (lambda X: broken_csr(indptr=set_entry(2, 150)), r"X.*indptr"),
    "csr-indptr_ends_beyond": (lambda X: broken_csr(indptr=set_entry(-1, 10**6)), r"X|indptr"),
    "csr-indptr_starts_late": (lambda X: broken_csr(indptr=set_entry(0, 2)), r"X|indptr"),
}


@pytest.mark.parametrize("case", BAD_X.values(), ids=BAD_X.keys())
@EACH
def test_bad_X(name, case):
    make, match = case
    assert_refused(
        name,
        match,
        call=lambda X, y: ((make(X), y[: len(make(X)) if "0 s" in match else None]), {}),
    )


@pytest.mark.parametrize("case", [key for key in BAD_X if key.startswith("csr")])
@EACH
def test_bad_csr_is_not_predicted_from(name, case):
    make, match = BAD_X[case]
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).fit(X, y)
    for sparse_coef in (False, True) if name.startswith("SGD") else (False,):
        if sparse_coef:
            model.sparsify()
        with pytest.raises(ValueError, match=match):
            model.predict(make(X))


BAD_BLOCKS = {key: case for key, case in BAD_X.items() if key.startswith("csr")} | {
    "too few features": (lambda X: sp.csr_matrix(X[:, :3]), r"3 features.*expecting 5"),
    "no samples": (lambda X: sp.csr_matrix(X[:0]), r"0 sample"),
    "a sample less": (lambda X: sp.csr_matrix(X[1:]), r"inconsistent numbers of samples"),
    "complex": (lambda X: sp.csr_matrix(X + 1j), r"Complex data not supported"),
}


@pytest.mark.parametrize("case", BAD_BLOCKS.values(), ids=BAD_BLOCKS)
@EACH
def test_bad_block_of_a_stream(name, case):
    """Less is checked of what is known to be as the last block was."""
    make, match = case
    X, y = make_data(name)
    classes = {"classes": [0, 1]} if name.endswith("Classifier") else {}
    model, other = (
        clone(ESTIMATORS[name]).partial_fit(sp.csr_matrix(X), y, **classes) for _ in range(2)
    )
    with pytest.raises(ValueError, match=match):
        model.partial_fit(make(X), y if "sample" not in match or "inc" in match else y[:0])
    assert_same_stream(model, other, X, y)


def assert_same_stream(model, other, X, y):
    """Assert that two models are the same after another block."""
    for each in (model, other):
        each.partial_fit(sp.csr_matrix(X), y)
    assert model.t_ == other.t_
    np.testing.assert_array_equal(model.predict(X), other.predict(X))
    for name in ("coef_", "coefs_"):
        if hasattr(model, name):
            for a, b in zip(getattr(model, name), getattr(other, name), strict=True):
                np.testing.assert_array_equal(a, b)


@REGRESSORS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_target_in_a_stream(name, bad):
    X, y = make_data(name)
    model, other = (clone(ESTIMATORS[name]).partial_fit(sp.csr_matrix(X), y) for _ in range(2))
    with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
        model.partial_fit(sp.csr_matrix(X), np.where(np.arange(len(y)) == 3, bad, y))
    assert_same_stream(model, other, X, y)


@EACH
def test_other_number_of_features(name):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).fit(X, y)
    before = contents(model)
    match = r"X has 3 features, but .* is expecting 5 features"
    with pytest.raises(ValueError, match=match):
        model.predict(X[:, :3])
    with pytest.raises(ValueError, match=match):
        model.partial_fit(X[:, :3], y)
    with pytest.raises(ValueError, match=match):
        model.set_params(warm_start=True).fit(X[:, :3], y)
    assert contents(model) == before


@EACH
def test_not_fitted(name):
    X, _ = make_data(name)
    with pytest.raises(ValueError, match="not fitted yet"):
        clone(ESTIMATORS[name]).predict(X)


# --- y --------------------------------------------------------------------------------------------


@EACH
def test_other_number_of_targets(name):
    assert_refused(name, r"inconsistent numbers of samples", call=lambda X, y: ((X, y[:-1]), {}))


@REGRESSORS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_targets_that_are_not_finite(name, bad):
    assert_refused(
        name,
        r"Input y contains (NaN|infinity)",
        call=lambda X, y: ((X, np.where(np.arange(len(y)) == 3, bad, y)), {}),
    )


@CLASSIFIERS
def test_one_class(name):
    assert_refused(name, r"classes.*greater than one.*1 class", call=lambda X, y: ((X, 0 * y), {}))


@CLASSIFIERS
def test_continuous_labels(name):
    assert_refused(name, r"Unknown label type.*continuous", call=lambda X, y: ((X, y + 0.5), {}))


def test_outputs_where_one_is_wanted():
    two = lambda X, y: ((X, np.column_stack([y, y])), {})  # noqa: E731
    assert_refused("SGDRegressor", r"y should be a 1d array", call=two)
    assert_refused("SGDClassifier", r"y.*multilabel-indicator.*not supported", call=two)


@CLASSIFIERS
def test_unknown_label_in_partial_fit(name):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).partial_fit(X, y, classes=[0, 1])
    before = contents(model)
    with pytest.raises(
        ValueError, match=r"y contains labels that are not in classes=.*7.*partial_fit"
    ):
        model.partial_fit(X, np.where(y, 7, 0))
    with pytest.raises(ValueError, match=r"classes=.*differ from those of the first call"):
        model.partial_fit(X, y, classes=[0, 1, 2])
    assert contents(model) == before
    fresh = clone(ESTIMATORS[name])
    with pytest.raises(
        ValueError, match=r"classes must be passed on the first call to partial_fit"
    ):
        fresh.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y contains labels that are not in classes"):
        fresh.partial_fit(X, y, classes=[0, 2])
    assert contents(fresh) == {}


@CLASSIFIERS
def test_labels_of_another_type_in_partial_fit(name):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).partial_fit(
        X, np.array(["no", "yes"])[y], classes=["no", "yes"]
    )
    before = contents(model)
    with pytest.raises(ValueError, match=r"y contains labels that are not in classes"):
        model.partial_fit(X, y)
    assert contents(model) == before


@REGRESSORS
def test_negative_counts(name):
    assert_refused(name, r"loss='poisson'.*y of at least 0", parameters={"loss": "poisson"})
    assert_refused(name, r"loss='poisson'.*y of at least 0", parameters={"loss": Poisson()})


def test_other_number_of_outputs_when_going_on():
    X, y = make_data("MLPRegressor")
    model = clone(ESTIMATORS["MLPRegressor"]).fit(X, np.column_stack([y, y]))
    before = contents(model)
    with pytest.raises(ValueError, match=r"y has 3 outputs.*2"):
        model.partial_fit(X, np.column_stack([y, y, y]))
    with pytest.raises(ValueError, match=r"y has 1 outputs.*2"):
        model.partial_fit(X, y)
    assert contents(model) == before


def test_a_net_does_not_change_between_labels_and_indicators():
    X, y = make_data("MLPClassifier")
    indicators = np.column_stack([y, 1 - y])
    for first, second in ((y, indicators), (indicators, y)):
        for warm_start in (False, True):
            model = clone(ESTIMATORS["MLPClassifier"]).set_params(warm_start=warm_start)
            before = contents(model.fit(X, first))
            go_on = model.fit if warm_start else model.partial_fit
            with pytest.raises(ValueError, match="indicator matrix"):
                go_on(X, second)
            with pytest.raises(ValueError, match=r"y_val.*indicator matrix"):
                clone(model).fit(X, first, X_val=X, y_val=second)
            assert contents(model) == before


def test_a_failed_fit_on_multilabel_targets_leaves_a_binary_net_as_it_was():
    X, y = make_data("MLPClassifier")
    labels = np.column_stack([y, 1 - y, y])
    for first, second in ((y, labels), (labels, y)):
        model = clone(ESTIMATORS["MLPClassifier"]).fit(X, first)
        expected, before = model.predict(X), contents(model)
        with pytest.raises(ValueError, match="sample_weight"):
            model.fit(X, second, sample_weight=np.full(len(y), -1.0))
        assert contents(model) == before
        np.testing.assert_array_equal(model.predict(X), expected)


# --- Weights --------------------------------------------------------------------------------------

BAD_WEIGHTS = {
    "length": (lambda y: np.ones(len(y) - 1), r"sample_weight"),
    "two_dimensions": (lambda y: np.ones((len(y), 2)), r"[Ss]ample.weight"),
    "nan": (lambda y: np.where(y, np.nan, 1.0), r"sample_weight.*NaN"),
    "infinity": (lambda y: np.where(y, np.inf, 1.0), r"sample_weight.*infinity"),
    "negative": (lambda y: np.where(y, -1.0, 1.0), r"sample_weight must not be negative"),
    "all_zero": (lambda y: np.zeros(len(y)), r"(?i)sample.weight.*(zero|count)"),
    "strings": (lambda y: np.full(len(y), "a"), r"could not convert string"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
@EACH
def test_bad_sample_weight(name, case):
    make, match = case
    assert_refused(name, match, call=lambda X, y: ((X, y), {"sample_weight": make(y)}))


@CLASSIFIERS
def test_class_weight_for_unknown_classes(name):
    assert_refused(name, r"class_weight|classes", parameters={"class_weight": {5: 2.0, 6: 1.0}})


@CLASSIFIERS
@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_class_weights_that_make_no_sense(name, weight):
    assert_refused(name, r"class_weight=.*not negative", parameters={"class_weight": {0: weight}})


# --- Validation data ------------------------------------------------------------------------------

BAD_VALIDATION = {
    "X_alone": (lambda X, y: {"X_val": X}, r"X_val and y_val go together"),
    "y_alone": (lambda X, y: {"y_val": y}, r"X_val and y_val go together"),
    "features": (lambda X, y: {"X_val": X[:, :3], "y_val": y}, r"X has 3 features.*expecting 5"),
    "length": (lambda X, y: {"X_val": X, "y_val": y[:-1]}, r"inconsistent numbers of samples"),
    "nan": (lambda X, y: {"X_val": np.full_like(X, np.nan), "y_val": y}, r"contains NaN"),
    "weights": (
        lambda X, y: {"X_val": X, "y_val": y, "sample_weight_val": np.full(len(y), -1.0)},
        r"sample_weight.*must not be negative",
    ),
    "weights-zero": (
        lambda X, y: {"X_val": X, "y_val": y, "sample_weight_val": np.zeros(len(y))},
        r"(?i)sample.weight.*(zero|count)",
    ),
}


@pytest.mark.parametrize("case", BAD_VALIDATION.values(), ids=BAD_VALIDATION.keys())
@EACH
def test_bad_validation_data(name, case):
    make, match = case
    assert_refused(name, match, call=lambda X, y: ((X, y), make(X, y)))


@CLASSIFIERS
def test_unknown_label_in_validation_data(name):
    assert_refused(
        name,
        r"labels that are not in classes",
        call=lambda X, y: ((X, y), {"X_val": X, "y_val": y + 1}),
    )


@CLASSIFIERS
def test_fewer_samples_to_hold_out_than_classes(name):
    assert_refused(
        name,
        r"early_stopping=True cannot hold out validation_fraction=0\.05.*X_val and y_val",
        parameters={"early_stopping": True, "validation_fraction": 0.05},
        call=lambda X, y: ((X[:20], np.arange(20) % 2), {}),
    )


@CLASSIFIERS
def test_early_stopping_with_a_class_of_one(name):
    assert_refused(
        name,
        r"early_stopping=True.*a class of y has only one member.*X_val and y_val",
        parameters={"early_stopping": True},
        call=lambda X, y: ((X, (np.arange(len(y)) == 3).astype(int)), {}),
    )


@REGRESSORS
def test_a_single_sample_has_no_score_in_regression(name):
    X, y = make_data(name)
    estimator = clone(ESTIMATORS[name]).set_params(early_stopping=True)
    with pytest.raises(ValueError, match=r"two held-out samples.*validation_fraction"):
        estimator.fit(X[:10], y[:10])
    with pytest.raises(ValueError, match=r"X_val.*two held-out samples"):
        estimator.fit(X, y, X_val=X[:1], y_val=y[:1])
    estimator.set_params(validation_fraction=0.2).fit(X[:10], y[:10])


@EACH
def test_one_sample_cannot_be_split(name):
    X, y = make_data(name)
    estimator = clone(ESTIMATORS[name]).set_params(early_stopping=True)
    with pytest.raises(ValueError, match=r"early_stopping=True|greater than one"):
        estimator.fit(X[:1], y[:1])


# --- Starting points ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coef_init", np.ones(4)),
        ("coef_init", np.ones((2, 5))),
        ("coef_init", np.ones((5, 1))),
        ("intercept_init", np.ones(2)),
    ],
)
@pytest.mark.parametrize("name", ["SGDClassifier", "SGDRegressor"])
def test_starting_point_of_the_wrong_shape(name, key, value):
    assert_refused(name, rf"{key} has shape.*expected", call=lambda X, y: ((X, y), {key: value}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["coef_init", "intercept_init"])
@pytest.mark.parametrize("name", ["SGDClassifier", "SGDRegressor"])
def test_starting_point_that_is_not_finite(name, key, bad):
    """The cause is named, not a divergence with advice on the learning rate."""
    value = np.full(5 if key == "coef_init" else 1, bad)
    assert_refused(name, key, call=lambda X, y: ((X, y), {key: value}))


def test_other_layers_when_going_on():
    X, y = make_data("MLPClassifier")
    model = clone(ESTIMATORS["MLPClassifier"]).fit(X, y)
    before = contents(model)
    model.set_params(hidden_layer_sizes=(6,), warm_start=True)
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=r"hidden_layer_sizes=.*warm_start=False"):
            getattr(model, method)(X, y)
    assert contents(model) == before


# --- Training that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fit", "warm_start", "partial_fit"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@REGRESSORS
def test_divergence_changes_nothing(name, sparse, how):
    X, y = make_data(name)
    X = sp.csr_matrix(X) if sparse else X
    model = clone(ESTIMATORS[name]).set_params(optimizer="adam")
    if name == "MLPRegressor":
        model.set_params(activation="identity")
    model.fit(X, y)
    model.set_params(optimizer=SGD(1e3), max_iter=50, warm_start=how == "warm_start")
    for _ in range(50):
        before = contents(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                getattr(model, "partial_fit" if how == "partial_fit" else "fit")(X, y)
        except ValueError as error:
            message = str(error)
            break
    assert "diverged" in message
    assert "learning rate" in message
    assert contents(model) == before


class Unhappy(Exception):
    """An error of a user's own code."""


def unhappy_derivative(z):
    raise Unhappy


@pytest.mark.parametrize("optimizer", [*ELEMENTWISE.values()][::4])
def test_an_error_in_a_users_code_changes_nothing(optimizer):
    X, y = make_data("MLPClassifier")
    estimator = clone(ESTIMATORS["MLPClassifier"]).set_params(optimizer=optimizer)
    model = clone(estimator).fit(X, y)
    before = contents(model)
    model.set_params(activation=(np.tanh, unhappy_derivative), warm_start=True)
    for method in ("fit", "partial_fit"):
        with pytest.raises(Unhappy):
            getattr(model, method)(X, y)
        assert contents(model) == before
    model.set_params(activation="relu")
    np.testing.assert_array_equal(
        model.partial_fit(X, y).coefs_[0], clone(estimator).fit(X, y).partial_fit(X, y).coefs_[0]
    )


class Complaining:
    """A callback of scikit-learn's protocol that fails at the end of the first epoch."""

    def setup(self, estimator, context):
        """Begin."""

    def teardown(self, estimator, context):
        """End."""

    def on_fit_task_begin(self, estimator, context, **received):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context, **received):
        """Fail."""
        raise Unhappy


@EACH
def test_an_error_in_a_callback_changes_nothing(name):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(warm_start=True).fit(X, y)
    model.set_callbacks(Complaining())
    for method in ("fit", "partial_fit"):
        before = contents(model)
        with pytest.raises(Unhappy):
            getattr(model, method)(X, y)
        assert contents(model) == before


class Interrupted:
    """The derivative of tanh, which the user interrupts at the n-th call."""

    def __init__(self, n):
        self.left = n

    def __call__(self, z):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return 1 - np.tanh(z) ** 2


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("n_calls", [1, 3, 4, 11])
def test_an_interrupted_fit_leaves_a_model_or_nothing(n_calls, sparse):
    """Four batches an epoch: what was interrupted in its first epoch is as if never begun."""
    X, y = make_data("MLPClassifier")
    X = sp.csr_matrix(X) if sparse else X
    model = MLPClassifier(
        (4,),
        activation=(np.tanh, Interrupted(n_calls)),
        batch_size=10,
        max_iter=50,
        optimizer=SGD(0.1, momentum=0.9),
        random_state=0,
    )
    if n_calls <= 4:
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y)
        assert contents(model) == {}
        return
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(X, y)
    # Two whole epochs, and the steps of the third up to the interrupt with all that CSR owes.
    assert model.n_iter_ == len(model.loss_curve_) == 2
    assert all(np.isfinite(coef).all() for coef in model.coefs_)
    assert model.predict(X).shape == y.shape


def test_an_interrupted_fit_on_csr_has_paid_its_debts():
    """It stands where the interrupted fit on the dense copy does."""
    X, y = make_data("MLPClassifier", n_features=30)
    X[np.random.default_rng(1).random(X.shape) < 0.95] = 0
    found = []
    for data in (X, sp.csr_matrix(X)):
        model = MLPClassifier(
            (4,),
            activation=(np.tanh, Interrupted(30)),
            batch_size=2,
            max_iter=50,
            optimizer=SGD(0.1, momentum=0.9),
            penalty="l1",
            alpha=0.01,
            random_state=0,
        )
        with pytest.warns(UserWarning, match="interrupted"):
            model.fit(data, y)
        found.append(np.concatenate([coef.ravel() for coef in model.coefs_]))
        # 20 steps in the whole epoch, 9 in the second up to the interrupt.
        assert model.optimizer_state_.step == 29
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-9 * abs(found[0]).max())


def test_every_message_ends_as_a_sentence():
    """Messages of our own end with a full stop; the ones of scikit-learn's checks are its own."""
    X, y = make_data("SGDClassifier")
    for parameters in (
        {"optimizer": "adamm"},
        {"loss": "log"},
        {"penalty": "l3"},
        {"penalty": Box},
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            SGDClassifier(**parameters).fit(X, y)
        assert re.search(r"[.)]$", str(error.value))


def test_the_losses_check_their_own_parameters():
    with pytest.raises(ValueError, match="'epsilon' parameter of Huber"):
        Huber(-1.0).value([1.0], [2.0])
    assert SquaredError().value([1.0], [2.0]) == 0.5


@pytest.mark.parametrize("y", ["hello", 3.0])
@pytest.mark.parametrize("estimator", [SGDClassifier(), MLPRegressor()])
def test_one_value_for_all_samples_is_refused(estimator, y):
    with pytest.raises(ValueError, match=f"y={y!r} is one value"):
        estimator.fit(np.eye(3), y)


def test_errors_of_validation_data_say_so():
    X, y = np.eye(4), np.array([0, 1, 0, 1])
    for X_val, y_val in ((X[:, :2], y), (X, y[:3]), (X, y + 5), (X * np.nan, y)):
        with pytest.raises(ValueError, match=r"^In X_val, y_val or sample_weight_val: "):
            SGDClassifier().fit(X, y, X_val=X_val, y_val=y_val)


def test_layer_sizes_in_the_place_of_the_loss():
    with pytest.raises(ValueError, match=r"hidden_layer_sizes=\(10,\)"):
        MLPRegressor((10,)).fit(np.eye(3), [1.0, 2.0, 3.0])


def test_states_of_other_optimizers_are_refused():
    w = np.zeros(3)
    for state in (None, {}, Adam().init(w)):
        with pytest.raises(TypeError, match="what its init"):
            SGD(0.1, momentum=0.9).step(w, w, state)


def test_minimize_by_steps_is_refused():
    with pytest.raises(ValueError, match="full_batch=True"):
        ProximalGradient(0.1).minimize(lambda w, out: 0.0, np.zeros(2))


@pytest.mark.parametrize("estimator", [SGDClassifier(), MLPClassifier(optimizer="sgd")])
def test_parameters_of_an_optimizer_given_by_name(estimator):
    name = "alpha" if isinstance(estimator, SGDClassifier) else "learning_rate"
    changed = clone(estimator).set_params(**{f"optimizer__{name}": 0.25})
    assert getattr(changed.optimizer, name) == 0.25
    assert isinstance(estimator.optimizer, str)
    both = clone(estimator).set_params(optimizer="adam", optimizer__learning_rate=0.5)
    assert both.optimizer.learning_rate == 0.5


def test_warnings_point_at_the_line_that_fits():
    with pytest.warns(ConvergenceWarning) as caught:
        MLPClassifier((2,), max_iter=1).fit(np.eye(4), [0, 1, 0, 1])
    assert caught[0].filename == __file__
