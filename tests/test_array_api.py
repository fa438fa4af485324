"""Arrays of the array-API standard: in, out, attributes, mixtures, pickles.

conftest.py sets SCIPY_ARRAY_API=1, without which scikit-learn refuses dispatch. CuPy and tensors on
a GPU are in test_gpu_arrays.py.
"""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils._array_api import (
    device,
    get_namespace,
    get_namespace_and_device,
    move_estimator_to,
    move_to,
)

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim.optimizers import FTRL, LBFGS, Adam, NormalizedFTRL

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ESTIMATORS = {
    "SGDClassifier": SGDClassifier("log_loss", max_iter=5, random_state=0),
    "SGDRegressor": SGDRegressor(max_iter=5, random_state=0),
    "MLPClassifier": MLPClassifier((7,), max_iter=5, random_state=0),
    "MLPRegressor": MLPRegressor(hidden_layer_sizes=(7,), max_iter=5, random_state=0),
}
NAMES = pytest.mark.parametrize("name", ESTIMATORS)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def library(name):
    """Return a function that makes arrays of a library."""
    module = pytest.importorskip("torch") if name == "torch" else __import__(name)
    where = module.Device("device1") if name == "array_api_strict" else None
    return lambda array: module.asarray(array, device=where)


LIBRARIES = pytest.mark.parametrize("given", ["numpy", "array_api_strict", "torch"])


def data(name, dtype="float64", n_classes=3):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4)).astype(dtype)
    scores = X @ rng.standard_normal((4, 3))
    y = scores[:, :n_classes].argmax(axis=1) if name.endswith("Classifier") else scores[:, 0]
    return X, y


def methods_of(model):
    names = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    return [name for name in names if hasattr(model, name)]


def parameters_of(model):
    if hasattr(model, "coef_"):
        return [model.coef_, model.intercept_]
    return [*model.coefs_, *model.intercepts_]


def to_numpy(array):
    return move_to(array, xp=np, device="cpu")


def assert_lies_with(array, X):
    assert get_namespace(array)[0] is get_namespace(X)[0]
    assert device(array) == device(X)


def assert_equal(actual, expected):
    """Compare values and dtypes: NumPy computed both, so every bit is the same."""
    actual = to_numpy(actual)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@NAMES
@LIBRARIES
@DTYPES
@pytest.mark.parametrize("n_classes", [2, 3])
def test_everything_follows_X(name, given, dtype, n_classes):
    make = library(given)
    X, y = data(name, dtype, n_classes)
    weights = np.linspace(0.5, 2, len(y))
    expected = clone(ESTIMATORS[name]).fit(X, y, weights)
    arrays = make(X), make(y), make(weights)
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS[name]).fit(*arrays)
        for actual, wanted in zip(parameters_of(model), parameters_of(expected), strict=True):
            assert_lies_with(actual, arrays[0])
            assert_equal(actual, wanted)
        for method in methods_of(expected):
            result = getattr(model, method)(arrays[0])
            assert_lies_with(result, arrays[0])
            assert_equal(result, getattr(expected, method)(X))
        score = model.score(*arrays)
    assert isinstance(score, float)
    assert score == expected.score(X, y, weights)
    assert model.loss_curve_ == expected.loss_curve_


@NAMES
@LIBRARIES
def test_partial_fit_goes_on(name, given):
    make = library(given)
    X, y = data(name)
    kwargs = {"classes": np.arange(3)} if name.endswith("Classifier") else {}
    expected, model = clone(ESTIMATORS[name]), clone(ESTIMATORS[name])
    for part in (slice(30), slice(30, 60)):
        expected.partial_fit(X[part], y[part], **kwargs)
        given_kwargs = {key: make(value) for key, value in kwargs.items()}
        with config_context(array_api_dispatch=True):
            model.partial_fit(make(X[part]), make(y[part]), **given_kwargs)
    with config_context(array_api_dispatch=True):
        for actual, wanted in zip(parameters_of(model), parameters_of(expected), strict=True):
            assert_lies_with(actual, make(X))
            assert_equal(actual, wanted)


@LIBRARIES
def test_warm_start_and_averages(given):
    make = library(given)
    X, y = data("SGDRegressor")
    for parameters in ({"average": True, "optimizer": "sgd"}, {"optimizer": NormalizedFTRL()}):
        expected = clone(ESTIMATORS["SGDRegressor"]).set_params(warm_start=True, **parameters)
        model = clone(expected)
        for _ in range(2):
            expected.fit(X, y)
            with config_context(array_api_dispatch=True):
                model.fit(make(X), make(y))
        assert_equal(model.coef_, expected.coef_)


@NAMES
@LIBRARIES
def test_early_stopping_and_given_validation_samples(name, given):
    make = library(given)
    X, y = data(name)
    model = clone(ESTIMATORS[name]).set_params(early_stopping=True)
    expected = clone(model).fit(X, y, X_val=X[:20], y_val=y[:20], sample_weight_val=y[:20] ** 2 + 1)
    with config_context(array_api_dispatch=True):
        model.fit(
            make(X),
            make(y),
            X_val=make(X[:20]),
            y_val=make(y[:20]),
            sample_weight_val=make(y[:20] ** 2 + 1),
        )
    assert model.validation_scores_ == expected.validation_scores_
    assert all(isinstance(score, float) for score in model.history_["validation_score"])


@LIBRARIES
@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
def test_strings_are_predicted_as_numpy_arrays(name, given):
    make = library(given)
    X, y = data(name)
    names = np.array(["ash", "beech", "cedar"])[y]
    weights = np.linspace(0.5, 2, len(y))
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS[name]).set_params(class_weight="balanced")
        model.fit(make(X), names, make(weights))
        predicted = model.predict(make(X))
        score = model.score(make(X), names, make(weights))
        assert_lies_with(model.predict_proba(make(X)), make(X))
    assert isinstance(predicted, np.ndarray)
    assert predicted.dtype == names.dtype
    assert score > 0.3


@LIBRARIES
def test_labels_keep_their_type(given):
    make = library(given)
    X, y = data("SGDClassifier")
    for dtype in ("int32", "uint8", "bool", "float32"):
        labels = (y % 2).astype(dtype)
        with config_context(array_api_dispatch=True):
            predicted = clone(ESTIMATORS["SGDClassifier"]).fit(make(X), make(labels))
            predicted = predicted.predict(make(X))
            assert to_numpy(predicted).dtype == dtype


@LIBRARIES
def test_several_labels_and_outputs(given):
    make = library(given)
    X, _ = data("MLPRegressor")
    Y = X @ np.random.default_rng(1).standard_normal((4, 3))
    for estimator, targets in (
        (ESTIMATORS["MLPRegressor"], Y),
        (ESTIMATORS["MLPClassifier"], (Y > 0).astype(int)),
    ):
        expected = clone(estimator).fit(X, targets)
        with config_context(array_api_dispatch=True):
            model = clone(estimator).fit(make(X), make(targets))
            for method in methods_of(expected):
                assert_equal(getattr(model, method)(make(X)), getattr(expected, method)(X))
        model = clone(estimator)
        with config_context(array_api_dispatch=True):
            model.partial_fit(make(X), make(targets))
            assert model.predict(make(X)).shape == (60, 3)


@pytest.mark.parametrize("loss", ["hinge", "modified_huber", "multinomial"])
def test_the_other_losses_of_the_linear_classifier(loss):
    make = library("array_api_strict")
    X, y = data("SGDClassifier")
    for labels in (y, y % 2):
        expected = clone(ESTIMATORS["SGDClassifier"]).set_params(loss=loss).fit(X, labels)
        with config_context(array_api_dispatch=True):
            model = clone(expected).fit(make(X), make(labels))
            for method in methods_of(expected):
                assert_equal(getattr(model, method)(make(X)), getattr(expected, method)(X))


# Mixtures.


@NAMES
@LIBRARIES
def test_targets_and_weights_of_another_library(name, given):
    make = library(given)
    X, y = data(name)
    weights = np.linspace(0.5, 2, len(y))
    expected = clone(ESTIMATORS[name]).fit(X, y, weights)
    with config_context(array_api_dispatch=True):
        for arrays in ((make(X), y, weights.tolist()), (X, make(y), make(weights))):
            model = clone(ESTIMATORS[name]).fit(*arrays)
            assert_lies_with(parameters_of(model)[0], arrays[0])
            assert_equal(parameters_of(model)[0], parameters_of(expected)[0])
            assert model.score(*arrays) == expected.score(X, y, weights)


@NAMES
@pytest.mark.parametrize("given", ["array_api_strict", "torch"])
def test_a_model_refuses_samples_of_another_library(name, given):
    make = library(given)
    X, y = data(name)
    with config_context(array_api_dispatch=True):
        for at_fit, at_predict in ((make(X), X), (X, make(X))):
            model = clone(ESTIMATORS[name]).fit(at_fit, y)
            for method in methods_of(model):
                with pytest.raises(ValueError, match=rf"{name}\.{method}\(\) must use the same"):
                    getattr(model, method)(at_predict)
    # Without dispatch everything is NumPy's.
    assert isinstance(model.predict(X), np.ndarray)


@NAMES
def test_moving_an_estimator(name):
    make = library("array_api_strict")
    X, y = data(name)
    y = np.array(["ash", "beech", "cedar"])[y] if name.endswith("Classifier") else y
    sparse = sp.csr_matrix(X * (abs(X) > 1))
    model = clone(ESTIMATORS[name])
    # Parameters that lie in a table, after partial_fit, are moved too.
    classes = {"classes": np.unique(y)} if is_classifier(model) else {}
    model.partial_fit(sparse, y, **classes)
    with config_context(array_api_dispatch=True):
        namespace, _, where = get_namespace_and_device(make(X))
        there = move_estimator_to(model, namespace, where)
        predicted = there.predict(make(X))
        assert_lies_with(parameters_of(there)[0], make(X))
        there.partial_fit(make(X), y)
    np.testing.assert_array_equal(to_numpy(predicted), model.predict(X))


def test_sparse_samples_under_dispatch():
    X, y = data("SGDClassifier")
    X = sp.csr_array(X * (abs(X) > 1))
    for name in ESTIMATORS:
        targets = y if name.endswith("Classifier") else y * 0.5
        expected = clone(ESTIMATORS[name]).fit(X, targets)
        with config_context(array_api_dispatch=True):
            model = clone(ESTIMATORS[name]).fit(X, targets)
            np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    with config_context(array_api_dispatch=True):
        linear = clone(ESTIMATORS["SGDClassifier"]).fit(X, y).sparsify()
        np.testing.assert_array_equal(linear.predict(X), linear.densify().predict(X))


def test_coefficients_of_another_library_have_no_sparse_form():
    make = library("array_api_strict")
    X, y = data("SGDRegressor")
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS["SGDRegressor"]).fit(make(X), make(y))
        with pytest.raises(TypeError, match="sparsify knows NumPy and CuPy"):
            model.sparsify()
        model.densify()


@pytest.mark.parametrize("given", ["array_api_strict", "torch"])
def test_bad_samples_are_refused_in_scikit_learns_words(given):
    make = library(given)
    X, y = data("SGDClassifier")
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS["SGDClassifier"]).fit(make(X), make(y))
        with pytest.raises(ValueError, match="X has 3 features, but SGDClassifier is expecting 4"):
            model.predict(make(X[:, :3]))
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            model.fit(make(X), make(y[:-1]))
        with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
            model.fit(make(y * 1.0), make(y))
        X[3, 1] = np.nan
        with pytest.raises(ValueError, match="Input X contains NaN"):
            model.fit(make(X), make(y))


# Without dispatch.


@NAMES
def test_tensors_without_dispatch_count_as_numpy(name):
    torch = pytest.importorskip("torch")
    X, y = data(name, "float32")
    expected = clone(ESTIMATORS[name]).fit(X, y)
    tensor = torch.asarray(X).requires_grad_()
    model = clone(ESTIMATORS[name]).fit(tensor, torch.asarray(y))
    assert isinstance(parameters_of(model)[0], np.ndarray)
    predicted = model.predict(tensor)
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_array_equal(predicted, expected.predict(X))
    assert model.score(tensor, torch.asarray(y)) == expected.score(X, y)


@NAMES
def test_tensors_that_record_gradients_are_detached(name):
    torch = pytest.importorskip("torch")
    X, y = data(name)
    tensor = torch.asarray(X).requires_grad_()
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS[name]).fit(tensor, torch.asarray(y))
        predicted = model.predict(tensor)
    assert isinstance(predicted, torch.Tensor)
    assert not predicted.requires_grad
    assert not parameters_of(model)[0].requires_grad


def test_tensors_are_read_where_they_lie():
    torch = pytest.importorskip("torch")
    from skoptim._arrays import native

    X = torch.rand(5, 3)
    taken = native(X)
    assert isinstance(taken, np.ndarray)
    assert taken.ctypes.data == X.data_ptr()


def test_a_fit_under_dispatch_is_read_without_it():
    """Parameters of a table are copied out when they are read, whatever the settings then."""
    X, y = data("SGDClassifier")
    torch = pytest.importorskip("torch")
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS["SGDClassifier"])
        model.partial_fit(torch.asarray(X), torch.asarray(y), classes=np.arange(3))
    assert isinstance(model.coef_, torch.Tensor)
    assert isinstance(model.predict(X), np.ndarray)


# Around the estimators.


# (The scaler divides zero by zero in array-api-strict.)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@NAMES
@LIBRARIES
def test_in_a_pipeline(name, given):
    make = library(given)
    X, y = data(name)
    expected = make_pipeline(StandardScaler(), clone(ESTIMATORS[name])).fit(X, y)
    with config_context(array_api_dispatch=True):
        pipeline = make_pipeline(StandardScaler(), clone(ESTIMATORS[name]))
        assert get_tags(pipeline[-1]).array_api_support
        predicted = pipeline.fit(make(X), make(y)).predict(make(X))
        assert_lies_with(predicted, make(X))
        # The scaler's own mean is rounded differently in each library.
        np.testing.assert_allclose(to_numpy(predicted), expected.predict(X), rtol=1e-6)


def test_grid_search_and_cross_validation_over_tensors():
    torch = pytest.importorskip("torch")
    X, y = data("SGDClassifier")
    grid = {"optimizer": [Adam(0.01), FTRL(0.5), LBFGS()]}
    expected = GridSearchCV(clone(ESTIMATORS["SGDClassifier"]), grid, cv=3).fit(X, y)
    with config_context(array_api_dispatch=True):
        tensors = torch.asarray(X), torch.asarray(y)
        search = GridSearchCV(clone(ESTIMATORS["SGDClassifier"]), grid, cv=3).fit(*tensors)
        scores = cross_val_score(clone(ESTIMATORS["SGDRegressor"]), *tensors, cv=3)
        assert isinstance(search.predict(tensors[0]), torch.Tensor)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )
    assert np.isfinite(scores).all()


def test_callbacks_see_the_callers_arrays():
    torch = pytest.importorskip("torch")
    from sklearn.callback import ScoringMonitor

    X, y = data("SGDClassifier")
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS["SGDClassifier"])
        monitor = ScoringMonitor(scoring="accuracy")
        model.set_callbacks(monitor).fit(torch.asarray(X), torch.asarray(y))


# Pickles and copies.


@NAMES
def test_a_pickle_holds_numpy(name):
    torch = pytest.importorskip("torch")
    X, y = data(name)
    tensors = torch.asarray(X), torch.asarray(y)
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS[name]).fit(*tensors)
        copied = copy.deepcopy(model)
        assert_lies_with(parameters_of(copied)[0], tensors[0])
        assert isinstance(copied.predict(tensors[0]), torch.Tensor)
    pickled = pickle.dumps(model)
    assert b"torch" not in pickled
    assert isinstance(parameters_of(model)[0], torch.Tensor)  # The model is as it was.
    loaded = pickle.loads(pickled)
    np.testing.assert_array_equal(loaded.predict(X), to_numpy(model.predict(X)))
    loaded.partial_fit(X, y)
    model.partial_fit(X, y)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_a_model_of_the_gpu_predicts_where_there_is_none():
    X, y = data("MLPClassifier")
    for name in ("MLPClassifier", "SGDClassifier"):
        model = clone(ESTIMATORS[name]).fit(X, y)
        loaded = pickle.loads(pickle.dumps(model.set_params(device="cuda")))
        np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_nothing_is_imported_for_arrays_that_do_not_come():
    """Neither at import nor by fits of NumPy arrays; and dispatch needs no environment then."""
    code = (
        "import sys, numpy as np, skoptim\n"
        "X = np.random.default_rng(0).random((20, 3))\n"
        "skoptim.MLPClassifier(max_iter=2, tol=None).fit(X, X[:, 0] > 0.5).predict(X)\n"
        "found = {'torch', 'cupy', 'cupyx', 'array_api_strict'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "SCIPY_ARRAY_API"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_no_warning_is_raised():
    torch = pytest.importorskip("torch")
    X, y = data("MLPClassifier")
    with warnings.catch_warnings(), config_context(array_api_dispatch=True):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = clone(ESTIMATORS["MLPClassifier"]).fit(torch.asarray(X), torch.asarray(y))
        model.predict_log_proba(torch.asarray(X))
