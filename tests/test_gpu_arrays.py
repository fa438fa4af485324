"""CuPy arrays, cupyx matrices and CUDA tensors, in and out; and what goes wrong around a GPU.

Run with ``pytest -m gpu``. Tolerances: a fit of arrays on the device takes the steps of a fit with
``device="cuda"`` that moves them there, and differs from it by the rounding of products alone.
"""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import unittest
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from gpu_machine import need_device
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import _yield_array_api_checks

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim._devices import cuda
from skoptim.optimizers import FTRL, LBFGS, SGD, Adam, NormalizedFTRL

need_device()

cupy = cuda.xp
cupyx_sparse = pytest.importorskip("cupyx.scipy.sparse")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

ESTIMATORS = {
    "SGDClassifier": SGDClassifier("log_loss", max_iter=4, batch_size=16, random_state=0),
    "SGDRegressor": SGDRegressor(max_iter=4, batch_size=16, random_state=0),
    "MLPClassifier": MLPClassifier((7,), max_iter=4, batch_size=16, random_state=0),
    "MLPRegressor": MLPRegressor(
        hidden_layer_sizes=(7,), max_iter=4, batch_size=16, random_state=0
    ),
}
NAMES = pytest.mark.parametrize("name", ESTIMATORS)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
DISPATCH = pytest.mark.parametrize("dispatch", [False, True], ids=["plain", "dispatch"])
FORMS = pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])

ROUNDING = {"float32": 1e-4, "float64": 1e-9}


def data(name, dtype="float64", is_sparse=False):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((60, 6)) * (rng.random((60, 6)) < 0.5)).astype(dtype)
    scores = X @ rng.standard_normal((6, 3))
    y = scores.argmax(axis=1) if name.endswith("Classifier") else scores[:, 0]
    return (sp.csr_matrix(X) if is_sparse else X), y


def on_device(array):
    if sp.issparse(array):
        return cupyx_sparse.csr_matrix(array)
    return cupy.asarray(array)


def torch_cuda():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch


def methods_of(model):
    names = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    return [name for name in names if hasattr(model, name)]


def parameters_of(model):
    if hasattr(model, "coef_"):
        return [model.coef_, model.intercept_]
    return [*model.coefs_, *model.intercepts_]


def assert_near(actual, expected, dtype="float64"):
    actual, expected = (a.get() if isinstance(a, cupy.ndarray) else a for a in (actual, expected))
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def arrays_in(value):
    """Yield the leaves of what a model holds, except its parameters of construction."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from arrays_in(item)
    elif hasattr(value, "slots") and hasattr(value, "carries"):
        yield from arrays_in([value.slots, value.carries])
    else:
        yield value


# CuPy in, CuPy out.


@NAMES
@DTYPES
@FORMS
@DISPATCH
def test_cupy_in_cupy_out(name, dtype, is_sparse, dispatch):
    X, y = data(name, dtype, is_sparse)
    weights = np.linspace(0.5, 2, len(y))
    expected = clone(ESTIMATORS[name]).set_params(device="cuda").fit(X, y, weights)
    there = on_device(X)
    with config_context(array_api_dispatch=dispatch):
        model = clone(ESTIMATORS[name]).fit(there, cupy.asarray(y), cupy.asarray(weights))
        for actual, wanted in zip(parameters_of(model), parameters_of(expected), strict=True):
            assert isinstance(actual, cupy.ndarray)
            assert_near(actual, wanted, dtype)
        for method in methods_of(model):
            result = getattr(model, method)(there)
            assert isinstance(result, cupy.ndarray)
            assert_near(result, getattr(expected, method)(X), dtype)
        score = model.score(there, cupy.asarray(y), cupy.asarray(weights))
    assert isinstance(score, float)
    assert score == pytest.approx(expected.score(X, y, weights), rel=1e-3)
    assert all(isinstance(slot, cupy.ndarray) for slot in model.optimizer_state_.slots.values())


@NAMES
def test_targets_and_weights_on_the_host(name):
    X, y = data(name)
    weights = np.linspace(0.5, 2, len(y))
    expected = clone(ESTIMATORS[name]).fit(on_device(X), cupy.asarray(y), cupy.asarray(weights))
    model = clone(ESTIMATORS[name]).fit(on_device(X), y, weights)
    assert_near(parameters_of(model)[0], parameters_of(expected)[0])
    assert isinstance(model.score(on_device(X), y, weights), float)


@NAMES
@FORMS
def test_a_model_predicts_where_the_samples_are(name, is_sparse):
    """Without dispatch parameters follow the samples, whichever way."""
    X, y = data(name, is_sparse=is_sparse)
    there = on_device(X)
    for model in (clone(ESTIMATORS[name]).fit(X, y), clone(ESTIMATORS[name]).fit(there, y)):
        for method in methods_of(model):
            host, device = getattr(model, method)(X), getattr(model, method)(there)
            assert isinstance(host, np.ndarray)
            assert isinstance(device, cupy.ndarray)
            assert_near(device, host)


@NAMES
@FORMS
def test_device_cpu_fits_on_the_host_and_gives_back(name, is_sparse):
    X, y = data(name, is_sparse=is_sparse)
    expected = clone(ESTIMATORS[name]).fit(X, y)
    model = clone(ESTIMATORS[name]).set_params(device="cpu").fit(on_device(X), y)
    assert isinstance(parameters_of(model)[0], cupy.ndarray)
    np.testing.assert_array_equal(parameters_of(model)[0].get(), parameters_of(expected)[0])


@NAMES
@FORMS
def test_partial_fit_goes_on_wherever_the_next_samples_are(name, is_sparse):
    X, y = data(name, is_sparse=is_sparse)
    kwargs = {"classes": np.arange(3)} if name.endswith("Classifier") else {}
    expected, model = clone(ESTIMATORS[name]), clone(ESTIMATORS[name])
    for number in range(4):
        expected.partial_fit(X, y, **kwargs)
        samples = on_device(X) if number % 2 == 0 else X
        model.partial_fit(samples, y, **kwargs)
        kind = cupy.ndarray if number % 2 == 0 else np.ndarray
        assert isinstance(parameters_of(model)[0], kind)
        assert all(isinstance(slot, kind) for slot in model.optimizer_state_.slots.values())
    assert_near(parameters_of(model)[0], parameters_of(expected)[0])


def test_warm_starts_averages_and_first_coefficients():
    X, y = data("SGDRegressor")
    there = on_device(X)
    for parameters in ({"average": True, "optimizer": SGD(0.01)}, {"optimizer": NormalizedFTRL()}):
        expected = clone(ESTIMATORS["SGDRegressor"]).set_params(warm_start=True, **parameters)
        model = clone(expected)
        for _ in range(2):
            expected.fit(X, y, coef_init=np.ones(6))
            model.fit(there, y, coef_init=cupy.ones(6))
        assert_near(model.coef_, expected.coef_)


@NAMES
def test_early_stopping_and_given_validation_samples(name):
    X, y = data(name)
    model = clone(ESTIMATORS[name]).set_params(early_stopping=True)
    model.fit(on_device(X), y)
    for X_val in (X[:20], on_device(X[:20])):
        model.fit(on_device(X), y, X_val=X_val, y_val=cupy.asarray(y[:20]))
        assert all(type(score) is float for score in model.validation_scores_)


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
@DISPATCH
def test_strings_are_predicted_as_numpy_arrays(name, dispatch):
    X, y = data(name)
    names = np.array(["ash", "beech", "cedar"])[y]
    with config_context(array_api_dispatch=dispatch):
        model = clone(ESTIMATORS[name]).set_params(class_weight="balanced")
        model.fit(on_device(X), names)
        predicted = model.predict(on_device(X))
        assert isinstance(model.predict_proba(on_device(X)), cupy.ndarray)
        assert isinstance(model.score(on_device(X), names), float)
    assert isinstance(predicted, np.ndarray)
    assert predicted.dtype == names.dtype


def test_several_labels_and_outputs():
    X, _ = data("MLPRegressor")
    Y = X @ np.random.default_rng(1).standard_normal((6, 3))
    for name, targets in (("MLPRegressor", Y), ("MLPClassifier", (Y > 0).astype(int))):
        model = clone(ESTIMATORS[name]).fit(on_device(X), on_device(targets))
        expected = clone(ESTIMATORS[name]).set_params(device="cuda").fit(X, targets)
        for method in methods_of(model):
            assert_near(getattr(model, method)(on_device(X)), getattr(expected, method)(X))


@pytest.mark.parametrize("loss", ["hinge", "modified_huber", "multinomial"])
def test_the_other_losses_of_the_linear_classifier(loss):
    X, y = data("SGDClassifier")
    for labels in (y, y % 2):
        model = clone(ESTIMATORS["SGDClassifier"]).set_params(loss=loss).fit(on_device(X), labels)
        for method in methods_of(model):
            assert_near(getattr(model, method)(on_device(X)), getattr(model, method)(X))


def test_poisson_predicts_counts():
    X, y = data("SGDRegressor")
    for name in ("SGDRegressor", "MLPRegressor"):
        model = clone(ESTIMATORS[name]).set_params(loss="poisson").fit(on_device(X), abs(y))
        assert isinstance(model.predict(on_device(X)), cupy.ndarray)
        assert_near(model.predict(on_device(X)), model.predict(X))


def test_sparse_coefficients():
    X, y = data("SGDClassifier")
    for name, targets in (("SGDClassifier", y), ("SGDRegressor", y * 0.5)):
        model = clone(ESTIMATORS[name]).fit(on_device(X), targets)
        expected = model.predict(on_device(X))
        shape = model.coef_.shape
        model.sparsify()
        assert cupyx_sparse.issparse(model.coef_)
        for dispatch in (False, True):
            with config_context(array_api_dispatch=dispatch):
                assert_near(model.predict(on_device(X)), expected)
        loaded = pickle.loads(pickle.dumps(model))
        assert sp.issparse(loaded.coef_)
        assert_near(loaded.predict(X), expected)
        assert model.densify().coef_.shape == shape


def test_integers_become_float64_and_strides_do_not_matter():
    X, y = data("SGDRegressor")
    whole = np.round(4 * X).astype(np.int32)
    expected = clone(ESTIMATORS["SGDRegressor"]).set_params(device="cuda").fit(whole, y)
    for given in (cupy.asarray(whole), cupy.asfortranarray(cupy.asarray(whole, dtype="float64"))):
        model = clone(ESTIMATORS["SGDRegressor"]).fit(given, y)
        assert_near(model.coef_, expected.coef_)


def test_other_sparse_formats_and_matrices_out_of_order():
    X, y = data("SGDRegressor", is_sparse=True)
    expected = clone(ESTIMATORS["SGDRegressor"]).fit(on_device(X), y)
    csr = on_device(X)
    for given in (csr.tocsc(), csr.tocoo()):
        assert_near(clone(ESTIMATORS["SGDRegressor"]).fit(given, y).coef_, expected.coef_)
    reversed_rows = [np.arange(*ends)[::-1] for ends in pairwise(X.indptr)]
    order = np.concatenate(reversed_rows)
    parts = [cupy.asarray(a) for a in (X.data[order], X.indices[order], X.indptr)]
    unsorted = cupyx_sparse.csr_matrix(tuple(parts), shape=X.shape)
    assert_near(clone(ESTIMATORS["SGDRegressor"]).fit(unsorted, y).coef_, expected.coef_)


BAD = {
    "one dimension": lambda X: X[:, 0],
    "three dimensions": lambda X: X[:, :, None],
    "no samples": lambda X: X[:0],
    "no features": lambda X: X[:, :0],
    "NaN": lambda X: np.where(X.max() == X, np.nan, X),
    "infinity": lambda X: np.where(X.max() == X, np.inf, X),
    "complex": lambda X: X.astype(complex),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_samples_are_refused_in_scikit_learns_words(kind):
    X, y = data("SGDClassifier")
    bad = BAD[kind](X)
    messages = []
    for given in (bad, cupy.asarray(bad)):
        with pytest.raises(ValueError, match=r"\w") as error:
            clone(ESTIMATORS["SGDClassifier"]).fit(given, y)
        messages.append(str(error.value).split("\n")[0])
    assert messages[0] == messages[1]


def test_other_mistakes_are_refused_in_scikit_learns_words():
    X, y = data("SGDClassifier")
    for make in (on_device, lambda X: on_device(sp.csr_matrix(X))):
        model = clone(ESTIMATORS["SGDClassifier"]).fit(make(X), y)
        before = model.coef_.copy()
        with pytest.raises(ValueError, match="X has 3 features, but SGDClassifier is expecting 6"):
            model.predict(make(X[:, :3]))
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            model.fit(make(X), y[:-1])
        with pytest.raises(ValueError, match="requires y to be passed"):
            model.fit(make(X), None)
        assert model.n_features_in_ == 6
        assert_near(model.coef_, before)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.fit(make(np.where(X.max() == X, np.nan, X)), y)


# Under dispatch.


def test_scikit_learns_checks_pass_with_cupy_and_cuda_tensors():
    pytest.importorskip("array_api_strict")
    torch = pytest.importorskip("torch")
    needed = {("cupy", None)}
    if torch.cuda.is_available():
        needed |= {("torch", "cuda")}
    for name, estimator in ESTIMATORS.items():
        made = set()
        for check in _yield_array_api_checks(estimator):
            with suppress(unittest.SkipTest):
                check(name, clone(estimator))
                made.add(tuple(map(check.keywords.get, ("array_namespace", "device_name"))))
        assert needed <= made


@NAMES
@DTYPES
def test_tensors_on_the_device(name, dtype):
    torch = torch_cuda()
    X, y = data(name, dtype)
    expected = clone(ESTIMATORS[name]).fit(on_device(X), y)
    tensor = torch.asarray(X, device="cuda").requires_grad_()
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS[name]).fit(tensor, torch.asarray(y, device="cuda"))
        for actual, wanted in zip(parameters_of(model), parameters_of(expected), strict=True):
            assert isinstance(actual, torch.Tensor)
            assert actual.device == tensor.device
            assert_near(actual.cpu().numpy(), wanted, dtype)
        for method in methods_of(model):
            result = getattr(model, method)(tensor)
            assert isinstance(result, torch.Tensor)
            assert result.device == tensor.device
            assert_near(result.cpu().numpy(), getattr(expected, method)(on_device(X)), dtype)
        assert isinstance(model.score(tensor, y), float)
        model.partial_fit(tensor, y)
        with pytest.raises(ValueError, match=rf"{name}\.predict\(\) must use the same namespace"):
            model.predict(X)
    plain = clone(ESTIMATORS[name]).fit(tensor, y)  # without dispatch: CuPy's
    assert isinstance(plain.predict(tensor), cupy.ndarray)
    assert b"torch" not in pickle.dumps(model)


def test_tensors_are_read_where_they_lie():
    torch = torch_cuda()
    from skoptim._arrays import native

    X = torch.rand(5, 3, device="cuda")
    assert native(X).data.ptr == X.data_ptr()


def test_tensors_of_the_host_are_moved_by_device_cuda():
    torch = torch_cuda()
    X, y = data("MLPClassifier")
    expected = clone(ESTIMATORS["MLPClassifier"]).set_params(device="cuda").fit(X, y)
    with config_context(array_api_dispatch=True):
        model = clone(ESTIMATORS["MLPClassifier"]).set_params(device="cuda")
        model.fit(torch.asarray(X), torch.asarray(y, device="cuda"))
        assert model.coefs_[0].device.type == "cpu"
        assert_near(model.coefs_[0].numpy(), expected.coefs_[0])


# Around the estimators.


def test_in_a_pipeline_and_a_grid_search():
    X, y = data("SGDClassifier")
    there = on_device(X)
    with config_context(array_api_dispatch=True):
        pipeline = make_pipeline(StandardScaler(), clone(ESTIMATORS["SGDClassifier"]))
        assert isinstance(pipeline.fit(there, cupy.asarray(y)).predict(there), cupy.ndarray)
    search = GridSearchCV(
        clone(ESTIMATORS["SGDClassifier"]), {"optimizer": [Adam(0.01), FTRL(0.5), LBFGS()]}, cv=2
    )
    assert isinstance(search.fit(there, y).predict(there), cupy.ndarray)
    # A scaler of the host, then the GPU: no array of the device leaks into a step of the CPU.
    hosted = make_pipeline(
        StandardScaler(), clone(ESTIMATORS["SGDClassifier"]).set_params(device="cuda")
    )
    assert isinstance(hosted.fit(X, y).predict(X), np.ndarray)


def test_workers_of_a_grid_search_share_the_gpu():
    X, y = data("SGDClassifier", "float32")
    estimator = clone(ESTIMATORS["SGDClassifier"]).set_params(device="cuda")
    results = []
    for n_jobs in (None, 2):
        search = GridSearchCV(estimator, {"alpha": [1e-4, 1e-2]}, cv=2, n_jobs=n_jobs)
        results.append(search.fit(X, y).cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*results)


# Pickles.


@NAMES
@FORMS
def test_a_fit_with_device_cuda_leaves_nothing_on_the_device(name, is_sparse):
    X, y = data(name, is_sparse=is_sparse)
    for parameters in ({}, {"early_stopping": True}, {"optimizer": LBFGS()}, {"optimizer": Adam()}):
        model = clone(ESTIMATORS[name]).set_params(device="cuda", **parameters).fit(X, y)
        for attribute, value in vars(model).items():
            for leaf in arrays_in(value):
                assert not type(leaf).__module__.startswith("cupy"), attribute
        assert all(type(value) is float for value in arrays_in(model.history_))
        assert type(model.loss_) is float
        assert b"cupy" not in pickle.dumps(model)
        assert isinstance(model.predict(X), np.ndarray)


@NAMES
def test_a_pickle_holds_numpy(name):
    X, y = data(name)
    there = on_device(X)
    model = clone(ESTIMATORS[name]).set_params(optimizer=Adam(0.01)).fit(there, y)
    pickled = pickle.dumps(model)
    assert b"cupy" not in pickled
    assert isinstance(parameters_of(model)[0], cupy.ndarray)  # The model is as it was.
    assert isinstance(parameters_of(copy.deepcopy(model))[0], cupy.ndarray)
    loaded = pickle.loads(pickled)
    assert_near(loaded.predict(X), model.predict(there))
    loaded.partial_fit(there, y)
    model.partial_fit(there, y)
    assert_near(parameters_of(loaded)[0], parameters_of(model)[0])


def test_pickles_load_and_predict_without_a_gpu_and_without_cupy(tmp_path):
    cases = []
    for name, estimator in ESTIMATORS.items():
        X, y = data(name)
        for model in (
            clone(estimator).set_params(device="cuda").fit(X, y),
            clone(estimator).fit(on_device(X), y),
        ):
            cases.append((pickle.dumps(model), X, model.predict(X)))
    path = tmp_path / "cases.pickle"
    path.write_bytes(pickle.dumps(cases))
    code = (
        "import pickle, sys\n"
        "sys.modules['cupy'] = sys.modules['cupyx'] = None\n"
        "import numpy as np\n"
        "for pickled, X, expected in pickle.load(open(sys.argv[1], 'rb')):\n"
        "    predicted = pickle.loads(pickled).predict(X)\n"
        "    assert isinstance(predicted, np.ndarray)\n"
        "    np.testing.assert_allclose(predicted, expected, rtol=1e-12)\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)


# Errors.


@pytest.fixture
def little_memory():
    """Leave 64 MB to CuPy."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + 2**26)
    yield
    pool.set_limit(size=0)
    pool.free_all_blocks()


def test_too_little_memory_is_explained(little_memory):
    X, y = np.ones((2**18, 64)), np.arange(2**18) % 2
    for name in ("SGDClassifier", "MLPClassifier"):
        model = clone(ESTIMATORS[name]).set_params(device="cuda")
        with pytest.raises(MemoryError, match=r"too little memory.*134,217,728 bytes.*batch_size"):
            model.fit(X, y)
        assert not hasattr(model, "classes_")
        model.fit(X[:100], y[:100])


def fit_in_a_fork(queue):
    X, y = data("SGDClassifier")
    try:
        clone(ESTIMATORS["SGDClassifier"]).set_params(device="cuda").fit(X, y)
        queue.put("no error")
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_is_told_that_cuda_does_not_work_in_it():
    X, y = data("SGDClassifier")
    clone(ESTIMATORS["SGDClassifier"]).set_params(device="cuda").fit(X, y)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=fit_in_a_fork, args=(queue,))
    process.start()
    process.join(30)
    if process.is_alive():
        process.kill()
        pytest.fail("the fork hangs")
    assert not queue.empty(), "the fork failed in another way"
    message = queue.get()
    assert "forked" in message
    assert "loky" in message
