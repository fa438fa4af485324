"""Linear models on CSR data: long rests, units of the data, and training that goes on in its table.

Expected values come from the same training on dense arrays, on data in other units, or in one go.
"""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import scipy.sparse as sp
from optimizer_table import ELEMENTWISE
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from threadpoolctl import threadpool_limits

from skoptim import SGDClassifier, SGDRegressor
from skoptim._devices import cpu
from skoptim._training import Trainer
from skoptim.optimizers import FTRL, SGD, Adagrad, Adam, NormalizedFTRL, RMSprop
from skoptim.penalties import Box, GroupL1, NonNegative
from skoptim.schedules import Cosine, InverseScaling, Step, Warmup

# Long rests.

N_IDLE = 100_000


def long_rest():
    """Return a matrix whose first two columns are touched in the first and the last rows alone."""
    rng = np.random.default_rng(0)
    n = N_IDLE + 20
    X = np.zeros((n, 4))
    X[:10, :2], X[-10:, :2] = rng.standard_normal((2, 10, 2))
    X[:, 2] = rng.standard_normal(n) * (rng.random(n) < 0.5)
    X[::1000, 3] = 1.0
    y = X @ [1.0, -0.5, 2.0, 0.3] + 0.1 * rng.standard_normal(n)
    return X, y


LONG_X, LONG_Y = long_rest()
PENALTIES = {
    "none": {"penalty": None},
    "l1": {"penalty": "l1", "alpha": 1e-5},
    "l2": {"penalty": "l2", "alpha": 1e-3},
    "elasticnet": {"penalty": "elasticnet", "alpha": 1e-4},
    "average": {"penalty": "l2", "alpha": 1e-4, "average": 1000},
    "box": {"penalty": Box(-0.7, 0.7)},
}
SCHEDULED = {
    "sgd-inverse": SGD(InverseScaling(0.05)),
    "momentum-warmup": SGD(Warmup(0.002, 5000), momentum=0.9, nesterov=True),
    "adagrad-inverse": Adagrad(InverseScaling(0.3, power=0.1)),
    "adam-inverse": Adam(InverseScaling(0.01)),
    "rmsprop-momentum": RMSprop(0.002, momentum=0.9),
    "ftrl-inverse": FTRL(InverseScaling(1.0, power=0.2)),
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("name", [*ELEMENTWISE, *SCHEDULED])
def test_columns_untouched_for_1e5_steps(name, penalty, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    optimizer = ELEMENTWISE[name] if name in ELEMENTWISE else SCHEDULED[name]
    model = SGDRegressor(optimizer=optimizer, shuffle=False, max_iter=1, tol=None, **penalty)
    dense, sparse = clone(model), clone(model)
    dense.fit(LONG_X, LONG_Y)
    sparse.fit(sp.csr_matrix(LONG_X), LONG_Y)
    # Rounding of 1e5 dense steps, each of about 1e-16.
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(sparse.intercept_, dense.intercept_, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(sparse.coef_ == 0, dense.coef_ == 0)


# Units of the data.


def sparse_problem(n_classes=2):
    X, y = make_classification(
        400, 12, n_informative=8, n_classes=n_classes, random_state=0, shift=None, scale=None
    )
    X[np.abs(X) < 0.7] = 0
    return X, y


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("average", [False, True], ids=["", "averaged"])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1),
        SGD(0.05, momentum=0.8),
        NormalizedFTRL(),
        FTRL(0.5),
        Adagrad(0.1),
        Adam(0.01),
        Adam(0.01, clip_norm=0.3),
    ],
    ids=["sgd", "momentum", "normalized_ftrl", "ftrl", "adagrad", "adam", "clipped"],
)
def test_every_number_of_outputs_is_trained_like_dense_data(
    optimizer, average, batch_size, monkeypatch
):
    """Runs of three to seven are unrolled, each by code of its own; longer ones fill vectors."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X, _ = sparse_problem()
    X /= np.abs(X).max()  # Weights stay of a size at which steps do not magnify roundings.
    rng = np.random.default_rng(0)
    scores = X @ rng.standard_normal((12, 10)) + rng.standard_normal((400, 10))
    for n_outputs in (1, *range(3, 11)):  # Two classes take one output.
        for penalty, dtype, tolerance in (
            ("l1", np.float64, 1e-9),
            ("l2", np.float64, 1e-9),
            ("elasticnet", np.float32, 1e-4),
        ):
            options = {"penalty": penalty, "average": average, "batch_size": batch_size}
            model = SGDClassifier("log_loss", optimizer=optimizer, **options, alpha=1e-3)
            model.set_params(max_iter=2, tol=None, random_state=0)
            y = scores[:, 0] > 0 if n_outputs == 1 else scores[:, :n_outputs].argmax(axis=1)
            dense = clone(model).fit(X.astype(dtype), y)
            sparse = clone(model).fit(sp.csr_matrix(X.astype(dtype)), y)
            assert dense.coef_.shape == (n_outputs, 12)
            largest = np.abs(dense.coef_).max()
            for name in ("coef_", "intercept_"):
                expected = getattr(dense, name)
                np.testing.assert_allclose(
                    getattr(sparse, name), expected, rtol=0, atol=tolerance * largest
                )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_rows_of_every_length_are_trained_like_dense_data(name, penalty, dtype, monkeypatch):
    """Columns come out of the table by whole vectors, and what is left over one by one."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 60)) / 4
    lengths = rng.permutation(np.arange(150) % 50)
    X[np.argsort(rng.random(X.shape), axis=1) >= lengths[:, None]] = 0
    X = X.astype(dtype)
    assert set(np.count_nonzero(X, axis=1)) == set(range(50))
    y = X @ rng.standard_normal(60) + rng.standard_normal(150) / 4 > 0
    model = SGDClassifier("log_loss", penalty=penalty, optimizer=ELEMENTWISE[name], alpha=1e-3)
    model.set_params(max_iter=3, tol=None, random_state=0)
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    atol = tolerance * np.abs(dense.coef_).max()
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=atol)
    np.testing.assert_allclose(sparse.intercept_, dense.intercept_, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("penalty", ["l1", "l2", "elasticnet"])
@pytest.mark.parametrize("rate", [0.3, InverseScaling(0.3, power=0.1)], ids=["", "scheduled"])
def test_debts_of_adagrad_that_differ_by_orders_of_magnitude(rate, penalty, dtype, monkeypatch):
    """Small ones are paid by a short series, and the largest step by step, in the same vectors."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-4, 0, 60)
    X = (rng.standard_normal((300, 60)) * (rng.random((300, 60)) < 0.3) * scales).astype(dtype)
    y = X / scales @ rng.standard_normal(60) > 0
    options = {"penalty": penalty, "alpha": 1e-3, "max_iter": 3, "tol": None, "random_state": 0}
    model = SGDClassifier("log_loss", optimizer=Adagrad(rate), **options)
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    pulls = 1e-3 * 0.3 / np.sqrt(dense.optimizer_state_.slots["accumulator"])
    assert (pulls < 2.0**-10).any()
    assert (pulls > 2.0**-6).any()
    atol = (1e-9 if dtype == "float64" else 1e-4) * np.abs(dense.coef_).max()
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=atol)


RESTING_AT_THE_END = {
    "adagrad": Adagrad(Cosine(0.5, 1000), weight_decay=0.01),
    # Factors of the first steps are negative: no scaled weights.
    "sgd": SGD(Cosine(2.0, 1000), weight_decay=0.6),
    "momentum": SGD(Cosine(0.3, 1000), momentum=0.5, weight_decay=0.1),
    "adam": Adam(Cosine(0.1, 1000), weight_decay=0.1),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("name", RESTING_AT_THE_END)
def test_debts_are_paid_though_the_last_steps_rest(name, n_classes, dtype, monkeypatch):
    """Where the rate comes to zero nothing more is owed, but what was owed before still is."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((400, 300)) * (rng.random((400, 300)) < 0.02)).astype(dtype)
    y = (X @ rng.standard_normal((300, n_classes))).argmax(axis=1)
    model = SGDClassifier("log_loss", penalty=None, optimizer=RESTING_AT_THE_END[name])
    model.set_params(max_iter=3, tol=None, random_state=0)
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    atol = (1e-9 if dtype == "float64" else 1e-4) * np.abs(dense.coef_).max()
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=atol)


CHEAPLY_OWED = {"sgd": SGD(0.1), "ftrl": FTRL(0.1), "normalized_ftrl": NormalizedFTRL()}
# Those that go over a row of one output vector by vector.
FILLING_VECTORS = CHEAPLY_OWED | {"adagrad": Adagrad(0.1)}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("penalty", [None, "l1", "l2", "elasticnet", Box(-0.05, 0.1)])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("name", CHEAPLY_OWED)
def test_any_number_of_outputs_is_trained_like_dense_data(name, batch_size, penalty, dtype):
    """Outputs go by parts that fill vectors, of which the last may share some with another."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 300)) * (rng.random((90, 300)) < 0.05)
    X = X.astype(dtype)
    wide = sp.csr_matrix(X)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    model = SGDClassifier("log_loss", penalty=penalty, optimizer=CHEAPLY_OWED[name], alpha=1e-3)
    model.set_params(max_iter=2, tol=None, random_state=0, batch_size=batch_size)
    for n_classes in range(3, 41):
        y = np.arange(90) % n_classes
        dense = clone(model).fit(X, y)
        sparse = clone(model).fit(wide if n_classes % 2 else sp.csr_matrix(X), y)
        atol = (1e-9 if dtype == "float64" else 1e-4) * np.abs(dense.coef_).max()
        np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=atol)
        np.testing.assert_allclose(sparse.intercept_, dense.intercept_, rtol=0, atol=atol)


@pytest.mark.parametrize("n_classes", [2, 9])
def test_scaled_weights_are_brought_back_to_size_between_rows(n_classes):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 450)) * (rng.random((400, 450)) < 0.85) / 20
    y = np.arange(400) % n_classes
    model = SGDClassifier("log_loss", penalty="elasticnet", alpha=30.0, l1_ratio=1e-6)
    model.set_params(optimizer=SGD(0.1), max_iter=2, tol=None, random_state=0)
    factor = 1 / (1 + 0.1 * 30)
    assert factor**400 < 1e-150, "the product of all factors leaves its range"
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    assert sparse.coef_.any()
    atol = 1e-9 * np.abs(dense.coef_).max()
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FILLING_VECTORS)
def test_nothing_behind_the_last_row_is_read(name, dtype, monkeypatch):
    """A row's last vector goes on behind the row, unless there is nothing of the matrix left."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(0)
    model = SGDClassifier("log_loss", penalty="l1", optimizer=FILLING_VECTORS[name], alpha=1e-3)
    model.set_params(max_iter=2, tol=None, random_state=0)
    for n_last in range(40):
        lengths = np.array([3, 0, 7, n_last, 0][: 5 if n_last % 2 else 4])
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns = [np.sort(rng.choice(50, n, replace=False)) for n in lengths]
        data = np.full(indptr[-1] + 64, np.nan, dtype)
        data[: indptr[-1]] = rng.standard_normal(indptr[-1])
        indices = np.full(indptr[-1] + 64, 2**30, np.int32)
        indices[: indptr[-1]] = np.concatenate(columns)
        X = sp.csr_matrix((len(lengths), 50), dtype=dtype)
        X.data, X.indices, X.indptr = data[: indptr[-1]], indices[: indptr[-1]], indptr
        y = np.arange(len(lengths)) % 2
        dense, sparse = clone(model).fit(X.toarray(), y), clone(model).fit(X, y)
        atol = (1e-9 if dtype == "float64" else 1e-4) * np.abs(dense.coef_).max()
        np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=atol)


@pytest.mark.parametrize("n_classes", [2, 10])
def test_what_l1_takes_is_exact_after_many_epochs(n_classes, monkeypatch):
    """Sums over all steps, of which a debt is a difference, must not grow without end."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X = sp.random(150, 300, 0.05, "csr", random_state=0)
    y = np.arange(150) % n_classes
    model = SGDClassifier(
        "log_loss", penalty="l1", alpha=0.01, optimizer=SGD(0.1), max_iter=2000, tol=None
    )
    model.set_params(random_state=0)
    actual, expected = (clone(model).fit(data, y).coef_ for data in (X, X.toarray()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_normalized_ftrl_is_ftrl_in_units_of_the_data(sparse):
    X, y = sparse_problem()
    largest = np.abs(X).max(axis=0)
    norm = 1 + (np.square(X / largest).sum(axis=1)[:: 2 if len(y) > 256 else 1]).mean()
    given, scaled = (sp.csr_matrix(A) if sparse else A for A in (X, X / largest))
    options = {"loss": "log_loss", "penalty": None, "max_iter": 3, "tol": None, "random_state": 0}
    normalised = SGDClassifier(optimizer=NormalizedFTRL(0.7, beta=0.3), **options).fit(given, y)
    plain = SGDClassifier(optimizer=FTRL(0.7 / norm**0.5, beta=0.3), **options).fit(scaled, y)
    np.testing.assert_allclose(normalised.coef_ * largest, plain.coef_, rtol=1e-10)
    np.testing.assert_allclose(normalised.intercept_, plain.intercept_, rtol=1e-10)
    np.testing.assert_allclose(normalised.optimizer_state_.slots["unit"], 1 / largest)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
def test_units_of_features_and_targets_do_not_matter(unit, sparse):
    X, y = make_regression(200, 6, noise=1.0, random_state=0)
    scales = unit ** np.array([1, 0, -1, 1, 0, 1])
    A, B = (sp.csr_matrix(Z) if sparse else Z for Z in (X, X * scales))
    model = SGDRegressor(penalty=None, max_iter=4, tol=None, random_state=0)
    first = clone(model).fit(A, y)
    other = clone(model).fit(B, y * 2.0**15)
    # Powers of two, so that nothing is rounded.
    np.testing.assert_array_equal(other.coef_ * scales, first.coef_ * 2.0**15)
    np.testing.assert_array_equal(other.intercept_, first.intercept_ * 2.0**15)


@pytest.mark.parametrize("n_classes", [2, 12], ids=["one-output", "wide"])
def test_units_that_grow_in_partial_fit_are_the_same_for_dense_and_csr(n_classes):
    X, y = sparse_problem(4)
    y = y if n_classes == 12 else y % 2
    classes = np.arange(n_classes)
    X[200:] *= 8  # A new largest value in the second block, and it changes units.
    models = []
    for convert in (np.asarray, sp.csr_matrix):
        model = SGDClassifier("log_loss", alpha=1e-3, penalty="elasticnet", random_state=0)
        for part in (slice(0, 200), slice(200, 400)):
            model.partial_fit(convert(X[part]), y[part], classes=classes)
        models.append(model)
    np.testing.assert_allclose(models[1].coef_, models[0].coef_, rtol=1e-9, atol=1e-12)
    unit = models[1].optimizer_state_.slots["unit"]
    np.testing.assert_allclose(unit, 1 / np.abs(X).max(axis=0), rtol=1e-12)


@pytest.mark.parametrize("average", [False, 30])
@pytest.mark.parametrize("power", [-0.5, -0.7])
@pytest.mark.parametrize("n_classes", [2, 12])
def test_many_units_that_change_at_once(n_classes, power, average, monkeypatch):
    """More than are taken out of the table together, some in many rows of a block."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(1)
    X = sp.random_array((120, 1300), density=0.1, format="csr", rng=rng)
    X = X * np.geomspace(1, 30, 120)[:, None] * np.geomspace(1e-3, 1e3, 1300)
    y = rng.integers(0, n_classes, 120)
    optimizer = NormalizedFTRL(learning_rate_power=power)
    models = []
    for convert in (lambda part: part.toarray(), sp.csr_array):
        model = SGDClassifier("log_loss", optimizer=optimizer, average=average, random_state=0)
        for part in (slice(0, 40), slice(40, 80), slice(80, 120)):
            model.partial_fit(convert(X[part]), y[part], classes=np.arange(n_classes))
        models.append(model)
    dense, sparse = models
    scale = np.abs(dense.coef_).max(axis=0)
    assert (scale > 0).sum() > 1200
    np.testing.assert_allclose(sparse.coef_ / scale, dense.coef_ / scale, rtol=1e-9, atol=1e-9)
    unit = sparse.optimizer_state_.slots["unit"]
    np.testing.assert_allclose(unit, 1 / np.abs(X.toarray()).max(axis=0), rtol=1e-12)


def test_units_that_a_failed_block_has_changed_are_as_before(monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X, y = sparse_problem()
    X = sp.csr_matrix(X)
    models = [SGDClassifier("log_loss", random_state=0) for _ in range(2)]
    for first in (0, 100):
        for model in models:
            model.partial_fit(X[first : first + 100], y[first : first + 100], classes=[0, 1])
    with monkeypatch.context() as patch:
        patch.setattr("skoptim._training._EXPLOSION", -1.0)
        with pytest.raises(ValueError, match="diverged"):
            models[0].partial_fit(100 * X[200:], y[200:])
    for model in models:
        assert "_live" in vars(model)  # It goes on in its table, which nobody has looked at.
        model.partial_fit(3 * X[200:], y[200:])
    np.testing.assert_array_equal(models[0].coef_, models[1].coef_)
    units = [model.optimizer_state_.slots["unit"] for model in models]
    np.testing.assert_array_equal(*units)


def test_a_new_unit_leaves_the_weights_as_they_are():
    X, y = sparse_problem()
    model = SGDClassifier("log_loss", penalty="l1", alpha=1e-3, random_state=0)
    model.partial_fit(sp.csr_matrix(X), y, classes=[0, 1])
    before = model.coef_.copy()
    # A sample that weighs next to nothing, with large values.
    model.partial_fit(sp.csr_matrix(np.full((1, 12), 100.0)), [1], sample_weight=[1e-300])
    np.testing.assert_allclose(model.coef_, before, rtol=1e-2)
    np.testing.assert_array_equal(model.coef_ == 0, before == 0)


# FTRL and L1.


@pytest.mark.parametrize("kind", ["strength", "penalty"])
def test_non_zeros_of_ftrl_fall_as_l1_grows(kind):
    rng = np.random.default_rng(0)
    X = sp.random_array((2000, 500), density=0.02, format="csr", rng=rng)
    y = X @ (rng.standard_normal(500) * (rng.random(500) < 0.2)) > 0
    counts, losses = [], []
    for strength in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 1000.0):
        model = SGDClassifier("log_loss", penalty="l1", alpha=0.0, random_state=0, max_iter=3)
        if kind == "strength":
            model.set_params(optimizer=FTRL(1.0, l1=strength))
        else:
            model.set_params(optimizer=FTRL(1.0), alpha=strength / 6000)
        model.set_params(tol=None).fit(X, y)
        counts.append(np.count_nonzero(model.coef_))
        losses.append(model.history_["loss"][-1])
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 450
    assert counts[-1] == 0
    assert len(set(counts)) == len(counts)


# Training that goes on where it lies.

LIVE = {
    "normalized_ftrl": NormalizedFTRL(),
    "ftrl": FTRL(0.5),
    "sgd": SGD(0.1),
    "adagrad": Adagrad(0.1),
    "adam": Adam(0.01),
}


def blocks(n_classes=3):
    X, y = sparse_problem(n_classes)
    return [(sp.csr_matrix(X[i : i + 50]), y[i : i + 50]) for i in range(0, 400, 50)]


def streamed(model, parts, look=None):
    for X, y in parts:
        model.partial_fit(X, y, classes=[0, 1, 2])
        if look is not None:
            look(model)
    return model


LOOKS = {
    "coef_": lambda model: model.coef_,
    "state": lambda model: model.optimizer_state_,
    "prediction": lambda model: model.predict(np.zeros((1, 12))),
    "pickle": pickle.dumps,
    "hasattr": lambda model: hasattr(model, "coef_"),
    "vars of a clone": clone,
}


@pytest.mark.parametrize("average", [False, 100])
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_looking_at_a_stream_does_not_change_it(optimizer, look, average, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    model = SGDClassifier(
        "log_loss", penalty="l1", alpha=1e-3, optimizer=optimizer, random_state=0, average=average
    )
    alone, watched = streamed(clone(model), blocks()), streamed(clone(model), blocks(), look)
    np.testing.assert_allclose(watched.coef_, alone.coef_, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(watched.intercept_, alone.intercept_, rtol=1e-10, atol=1e-14)
    assert watched.t_ == alone.t_ == 400


@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_a_failed_block_leaves_the_stream_as_it_was(optimizer, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    model = SGDClassifier("log_loss", penalty="l1", alpha=1e-3, optimizer=optimizer)
    model.set_params(random_state=0)
    parts = blocks()
    alone = streamed(clone(model), parts)
    disturbed = streamed(clone(model), parts[:4])
    X, y = parts[4]
    with monkeypatch.context() as patch:
        # The block is trained on, and any loss is then taken for a divergence.
        patch.setattr("skoptim._training._EXPLOSION", -1.0)
        with pytest.raises(ValueError, match="diverged"):
            disturbed.partial_fit(X, y)
    assert disturbed.t_ == 200
    streamed(disturbed, parts[4:])
    np.testing.assert_allclose(disturbed.coef_, alone.coef_, rtol=1e-12, atol=1e-15)
    assert len(disturbed.history_["loss"]) == len(alone.history_["loss"])


def test_a_stream_survives_its_pickle():
    alone = streamed(SGDClassifier("log_loss", random_state=0), blocks())
    moved = pickle.loads(
        pickle.dumps(streamed(SGDClassifier("log_loss", random_state=0), blocks()[:3]))
    )
    np.testing.assert_allclose(streamed(moved, blocks()[3:]).coef_, alone.coef_, rtol=1e-10)


def test_threads_may_read_a_stream_at_once():
    expected = streamed(SGDClassifier("log_loss", random_state=0), blocks()).coef_
    model = streamed(SGDClassifier("log_loss", random_state=0), blocks())
    with ThreadPoolExecutor(8) as pool:
        for coef in pool.map(lambda _: model.coef_, range(32)):
            np.testing.assert_array_equal(coef, expected)


def test_what_a_model_has_not_got_is_an_attribute_error():
    model = streamed(SGDClassifier("log_loss", random_state=0), blocks()[:1])
    with pytest.raises(AttributeError, match="nonsense"):
        model.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="coef_"):
        SGDClassifier().coef_  # noqa: B018


@pytest.mark.parametrize("look", [lambda model: model.coef_, lambda model: model.optimizer_state_])
def test_after_a_failed_block_the_weights_are_those_before_it(look, monkeypatch):
    model = streamed(SGDClassifier("log_loss", random_state=0), blocks()[:2])
    expected = streamed(SGDClassifier("log_loss", random_state=0), blocks()[:2]).coef_
    with monkeypatch.context() as patch:
        patch.setattr("skoptim._training._EXPLOSION", -1.0)
        with pytest.raises(ValueError, match="diverged"):
            model.partial_fit(*blocks()[2])
    look(model)
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-12)


FAILING = {
    "single rows": {},
    "batches": {"batch_size": 7},
    "threads": {"asynchronous": True, "n_jobs": 2},
    "another penalty": {"penalty": "elasticnet", "alpha": 0.1},
    "a box": {"penalty": Box(-0.1, 0.1)},
    "averages": {},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_a_failed_block_is_undone_to_the_last_bit(optimizer, n_classes, case, dtype, monkeypatch):
    """Whatever part of the columns it has touched, and whatever it did to their units."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(0)
    X = sp.random_array((200, 150), density=0.05, format="csr", rng=rng).astype(dtype)
    y = rng.integers(0, n_classes, 200)
    model = SGDClassifier("log_loss", penalty="l2", alpha=1e-3, optimizer=optimizer)
    model.set_params(random_state=0, average=60 if case == "averages" else False)
    for rows in (slice(0, 60), slice(60, 120)):
        model.partial_fit(X[rows], y[rows], classes=np.arange(n_classes))
    untouched = deepcopy(model)
    block = 10 * X[120:].tolil()
    block[:, ::3] = 0
    model.set_params(**FAILING[case])
    with monkeypatch.context() as patch:
        patch.setattr("skoptim._training._EXPLOSION", -1.0)
        with pytest.raises(ValueError, match="diverged"):
            model.partial_fit(block.tocsr(), y[120:])
    np.testing.assert_array_equal(model.coef_, untouched.coef_)
    np.testing.assert_array_equal(model.intercept_, untouched.intercept_)
    for name, slot in untouched.optimizer_state_.slots.items():
        np.testing.assert_array_equal(model.optimizer_state_.slots[name], slot, err_msg=name)
    # Nor is anything left of it in what follows.
    model.set_params(**untouched.get_params(deep=False))
    for stream in (model, untouched):
        stream.partial_fit(X[120:], y[120:])
    tolerance = (
        {"rtol": 1e-12, "atol": 1e-15} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-6}
    )
    np.testing.assert_allclose(model.coef_, untouched.coef_, **tolerance)


@pytest.mark.parametrize("penalty", ["l1", "l2", "elasticnet"])
@pytest.mark.parametrize("n_classes", [2, 12])
@pytest.mark.parametrize(
    ("optimizer", "alpha"),
    [(Adagrad(1.0), 5.0), (Adagrad(Step(0.3, 70, 0.5)), 1e-3), (Adagrad(0.3), 1e-3)],
    ids=["a pull above the denominator", "rates that change", "one rate"],
)
def test_debts_of_adagrad_in_streams(optimizer, alpha, n_classes, penalty, monkeypatch):
    """Its closed form, and what is replayed where that does not hold, against dense steps."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    rng = np.random.default_rng(0)
    X = sp.random_array((300, 40), density=0.03, format="csr", rng=rng)
    y = rng.integers(0, n_classes, 300)
    models = []
    for convert in (sp.csr_matrix, lambda part: part.toarray()):
        model = SGDClassifier(
            "log_loss", penalty=penalty, alpha=alpha, optimizer=optimizer, random_state=0
        )
        for begin in range(0, 300, 100):
            part = slice(begin, begin + 100)
            model.partial_fit(convert(X[part]), y[part], classes=np.arange(n_classes))
        models.append(model)
    assert alpha > 1 or np.abs(models[0].coef_).max() > 1e-3
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, rtol=1e-9, atol=1e-13)


OTHER_BLOCKS = {
    "dense": lambda model, X: (model, X.toarray()),
    "large batch": lambda model, X: (model.set_params(batch_size=50), X),
    "other rule": lambda model, X: (model.set_params(optimizer=Adam(0.01)), X),
    "average": lambda model, X: (model.set_params(average=True), X),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("change", OTHER_BLOCKS.values(), ids=OTHER_BLOCKS)
def test_a_stream_goes_on_with_blocks_of_another_kind(change, fails, monkeypatch):
    models = []
    for looked_at in (False, True):
        model = streamed(SGDClassifier("log_loss", random_state=0), blocks()[:3])
        if looked_at:
            model.optimizer_state_  # noqa: B018
        before = deepcopy(model).coef_
        X, y = blocks()[3]
        model, X = change(model, X)
        if fails:
            with monkeypatch.context() as patch:
                patch.setattr("skoptim._training._EXPLOSION", -1.0)
                with pytest.raises(ValueError, match="diverged"):
                    model.partial_fit(X, y)
            np.testing.assert_allclose(model.coef_, before, rtol=1e-12)
        model.partial_fit(X, y)
        models.append(model)
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_debts_are_paid_under_the_settings_under_which_they_were_made(optimizer, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X, y = sparse_problem(3)
    X[50:, :4] = 0  # Owe from the first block on.
    models = []
    for convert in (np.asarray, sp.csr_matrix):
        model = SGDClassifier("log_loss", penalty="l2", optimizer=optimizer, random_state=0)
        for i, alpha in enumerate((0.0, 0.1, 0.0, 0.03)):
            part = slice(100 * i, 100 * (i + 1))
            model.set_params(alpha=alpha, penalty="l1" if i == 3 else "l2")
            model.partial_fit(convert(X[part]), y[part], classes=[0, 1, 2])
        models.append(model)
    np.testing.assert_allclose(models[1].coef_, models[0].coef_, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("then", [pickle.dumps, lambda model: model.optimizer_state_])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_weights_that_a_user_has_changed_stay_changed(optimizer, average, then, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X, y = sparse_problem()
    X = sp.csr_matrix(X)
    model = SGDClassifier("log_loss", optimizer=optimizer, average=average, random_state=0)
    model.set_params(max_iter=5, tol=None).fit(X, y)
    model.coef_[:, :3] = 0
    changed = model.coef_.copy()
    then(model)
    np.testing.assert_array_equal(model.coef_, changed)
    # Training goes on from there.
    expected = clone(model).fit(X, y)
    expected.coef_ = changed.copy()
    np.testing.assert_array_equal(model.partial_fit(X, y).coef_, expected.partial_fit(X, y).coef_)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_weights_set_in_a_stream_are_where_a_warm_start_begins(optimizer, average, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X, y = sparse_problem(2)
    model = SGDClassifier("log_loss", optimizer=optimizer, average=average, random_state=0)
    model.set_params(warm_start=True, max_iter=1, tol=None)
    results = []
    for convert in (np.asarray, sp.csr_matrix):
        fitted = clone(model).partial_fit(convert(X), y, classes=[0, 1])
        fitted.coef_ = np.full((1, X.shape[1]), 5.0)
        results.append(fitted.fit(convert(X), y).coef_)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)


@pytest.mark.parametrize("optimizer", LIVE.values(), ids=LIVE)
def test_weights_of_another_dtype_may_be_set(optimizer):
    X, y = sparse_problem(2)
    for convert in (np.asarray, sp.csr_matrix):
        block = convert(X.astype(np.float32))
        model = SGDClassifier("log_loss", optimizer=optimizer, random_state=0)
        model.partial_fit(block, y, classes=[0, 1])
        model.coef_ = np.zeros((1, X.shape[1]))
        model.partial_fit(block, y)
        assert model.coef_.any()
        assert model.coef_.dtype == model.optimizer_state_.slots.get("z", model.coef_).dtype


def test_a_model_put_together_by_hand_predicts():
    model = SGDClassifier("log_loss")
    model.coef_, model.intercept_, model.classes_ = np.ones((1, 12)), np.zeros(1), np.arange(2)
    X, _ = sparse_problem(2)
    np.testing.assert_array_equal(model.predict(sp.csr_matrix(X)), model.predict(X))


def test_one_attribute_may_be_set_before_the_others_are_read():
    expected = streamed(SGDClassifier("log_loss", random_state=0), blocks()).coef_
    model = streamed(SGDClassifier("log_loss", random_state=0), blocks())
    model.intercept_ = np.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(model.coef_, expected)
    np.testing.assert_array_equal(model.intercept_, [1.0, 2.0, 3.0])


def test_whether_a_table_pays_is_asked_again_where_the_answer_may_differ(monkeypatch):
    asked = []
    weigh = cpu.owing_pays
    monkeypatch.setattr(cpu, "owing_pays", lambda *a, **k: asked.append(a) or weigh(*a, **k))
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 50)

    def n_asked(model, density):
        before = len(asked)
        X = sp.random_array((50, 3000), density=density, format="csr", rng=rng)
        model.partial_fit(X, y, classes=[0, 1])
        assert "_live" in vars(model)  # It is trained in a table.
        return len(asked) - before

    model = SGDClassifier("log_loss", optimizer=Adagrad(0.1), random_state=0)
    n_asked(model, 0.01)
    assert [n_asked(model, density) for density in (0.01, 0.01, 0.005)] == [1, 0, 0]
    assert n_asked(model, 0.02) == 1
    assert [n_asked(model.set_params(alpha=0.1), 0.01) for _ in range(2)] == [1, 0]
    model.set_params(optimizer=Adagrad(Step(0.1, 70, 0.5)))
    assert [n_asked(model, 0.01) for _ in range(3)] == [1, 1, 1]


def test_optimizers_of_a_stream_are_validated():
    model = streamed(SGDClassifier("log_loss", optimizer=SGD(0.1), random_state=0), blocks()[:1])
    with pytest.raises(ValueError, match="momentum"):
        model.set_params(optimizer__momentum=1.5).partial_fit(*blocks()[1])


def test_a_stream_does_not_begin_with_samples_that_weigh_nothing():
    X, y = blocks()[0]
    with pytest.raises(ValueError, match="sample_weight is zero"):
        SGDClassifier().partial_fit(X, y, classes=[0, 1, 2], sample_weight=np.zeros(len(y)))


@pytest.mark.parametrize("penalty", [Box(-0.05, 0.05), NonNegative()], ids=repr)
def test_units_that_grow_under_constraints(penalty):
    X, y = sparse_problem()
    X[200:] *= 8
    models = []
    for convert in (np.asarray, sp.csr_matrix):
        model = SGDClassifier("log_loss", penalty=penalty, random_state=0)
        for part in (slice(0, 200), slice(200, 400)):
            model.partial_fit(convert(X[part]), y[part], classes=[0, 1])
        models.append(model)
    np.testing.assert_allclose(models[1].coef_, models[0].coef_, rtol=1e-9, atol=1e-13)


# Wide columns: paid in vectors.

EDGES = {
    "rho=0": RMSprop(0.01, rho=0.0),
    "beta=0": Adam(0.01, beta_1=0.0, beta_2=0.0),
    "zero rates": RMSprop(lambda t: 0.01 * (t % 17 != 1), weight_decay=0.1),
    "decay after a pause": RMSprop(lambda t: 0.01 * (t > 40), weight_decay=0.1),
    "momentum after a pause": SGD(lambda t: 0.1 * (t > 20), momentum=0.9),
}


@pytest.mark.parametrize("penalty", [None, "l2", GroupL1()], ids=["none", "l2", "group"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("optimizer", EDGES.values(), ids=EDGES)
def test_wide_columns_at_the_edges_of_what_is_allowed(optimizer, batch_size, penalty, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    if isinstance(penalty, GroupL1) and not isinstance(optimizer, SGD):
        return
    X, y = sparse_problem(4)
    X[np.random.default_rng(0).random(X.shape) < 0.8] = 0
    y = (y * 3 + np.arange(400)) % 12
    model = SGDClassifier(
        "multinomial", optimizer=optimizer, penalty=penalty, alpha=0.01, shuffle=False
    )
    model.set_params(max_iter=2, tol=None, batch_size=batch_size)
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    # RMSprop's steps enlarge rounding: an X changed by 4e-16 of itself moves the weights by 2e-10.
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=0, atol=2e-9)


# Threads that train at once.


def private_features(n_samples=300, n_each=2, n_classes=3):
    """Return samples of which no two share a feature: threads cannot meet."""
    rng = np.random.default_rng(0)
    columns = rng.permutation(n_samples * n_each)
    X = sp.csr_matrix(
        (
            rng.uniform(0.5, 2, len(columns)),
            columns.astype(np.int32),
            np.arange(0, len(columns) + 1, n_each, dtype=np.int32),
        ),
        shape=(n_samples, len(columns)),
    )
    X.sort_indices()
    return X, rng.integers(0, n_classes, n_samples)


@pytest.mark.parametrize("penalty", [None, "l1", "l2"])
@pytest.mark.parametrize(("n_classes", "batch_size"), [(2, 1), (3, 1), (3, 4), (10, 1), (10, 4)])
@pytest.mark.parametrize("optimizer", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_asynchronous_training_without_meetings_is_the_sequential_one(
    optimizer, n_classes, batch_size, penalty, monkeypatch
):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)
    X, y = private_features(n_classes=n_classes)
    model = SGDClassifier(
        "log_loss",
        optimizer=optimizer,
        penalty=penalty,
        alpha=1e-3,
        fit_intercept=False,
        batch_size=batch_size,
        max_iter=4,
        tol=None,
        random_state=0,
    )
    together = clone(model).set_params(asynchronous=True, n_jobs=3).fit(X, y)
    alone = model.fit(X, y)
    np.testing.assert_allclose(together.coef_, alone.coef_, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(together.loss_curve_, alone.loss_curve_, rtol=1e-12)
    for name, slot in alone.optimizer_state_.slots.items():
        np.testing.assert_allclose(
            together.optimizer_state_.slots[name], slot, rtol=1e-12, atol=1e-300, err_msg=name
        )


@pytest.mark.parametrize("alpha", [3.0, 300.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_asynchronous_training_under_a_penalty_that_scales_weights_away(alpha, dtype):
    X, y = private_features()
    model = SGDClassifier(
        "log_loss", optimizer=SGD(0.1), alpha=alpha, max_iter=3, tol=None, random_state=0
    )
    model.set_params(fit_intercept=False)
    alone = clone(model).fit(X.astype(dtype), y)
    together = model.set_params(asynchronous=True, n_jobs=2).fit(X.astype(dtype), y)
    rtol = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(together.coef_, alone.coef_, rtol=rtol, atol=1e-30)


def test_threads_wait_for_each_other_where_l2_halves_weights():
    """One that is behind would read weights stored over decays far from its own."""
    rng = np.random.default_rng(0)
    X = sp.random(20_000, 300, 0.02, "csr", rng=rng)
    y = (X @ rng.standard_normal(300) > 0).astype(int)
    model = SGDClassifier("log_loss", optimizer=SGD(0.3), alpha=0.03, max_iter=2, tol=None)
    alone = clone(model).set_params(random_state=0).fit(X, y)
    together = model.set_params(random_state=0, asynchronous=True, n_jobs=2).fit(X, y)
    np.testing.assert_allclose(together.coef_, alone.coef_, rtol=1e-9)


@pytest.mark.parametrize("optimizer", [SGD(0.1), FTRL(), Adagrad(0.1), NormalizedFTRL()])
def test_asynchronous_training_learns_as_well(optimizer):
    rng = np.random.default_rng(0)
    X = sp.random(4000, 3000, 0.01, "csr", rng=rng)
    scores = X @ rng.standard_normal(3000)
    y = (scores > np.median(scores)).astype(int)
    model = SGDClassifier(
        "log_loss", optimizer=optimizer, alpha=1e-5, max_iter=20, tol=None, random_state=0
    )
    alone = clone(model).fit(X, y)
    together = clone(model).set_params(asynchronous=True, n_jobs=2).fit(X, y)
    # Updates that were lost or late, of few; losses of two seeds differ by a percent.
    assert together.loss_ == pytest.approx(alone.loss_, rel=0.1)
    assert together.score(X, y) >= alone.score(X, y) - 0.02
    stream = clone(together)
    for part in range(4):
        stream.partial_fit(X[part::4], y[part::4], classes=[0, 1])
    assert stream.score(X, y) > 0.7


def test_asynchronous_has_no_effect_on_dense_data_and_averages():
    X, y = private_features(60)
    for options, data in (({}, X.toarray()), ({"average": True}, X)):
        model = SGDClassifier("log_loss", max_iter=3, tol=None, random_state=0, **options)
        alone = clone(model).fit(data, y)
        together = clone(model).set_params(asynchronous=True, n_jobs=2).fit(data, y)
        np.testing.assert_array_equal(together.coef_, alone.coef_)


def test_units_of_features_when_threads_share_these():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 40)) * 10.0 ** rng.integers(-3, 4, 40)
    y = rng.integers(0, 12, 2000)
    model = SGDClassifier("multinomial", batch_size=1000, max_iter=3, tol=None, random_state=0)
    fits = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            fits.append(clone(model).fit(X, y).coef_)
    # Products by BLAS in other parts.
    np.testing.assert_allclose(*fits, rtol=1e-9, atol=1e-12 * abs(fits[0]).max())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_an_intercept_that_is_not_fitted_is_averaged_too(sparse):
    X, y = sparse_problem()
    model = SGDRegressor(fit_intercept=False, average=True, max_iter=2, tol=None)
    model.fit(sp.csr_matrix(X) if sparse else X, y, intercept_init=[5.0])
    np.testing.assert_allclose(model.intercept_, 5.0, rtol=1e-14)


CHANGES = {
    "beta": [FTRL(0.1), FTRL(0.1, beta=2.0)],
    "beta of NormalizedFTRL": [NormalizedFTRL(), NormalizedFTRL(beta=1.0)],
    "units": [FTRL(0.1), NormalizedFTRL()],
    "no units": [NormalizedFTRL(), FTRL(0.1)],
}
BOUNDS = {
    "bounded": [None, Box(-0.05, 0.1)],
    "not bounded any more": [NonNegative(), None],
    "from bounds to l1": [Box(-0.05, 0.1), "l1"],
}


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize(
    ("optimizers", "penalties"),
    [(optimizers, [None, None]) for optimizers in CHANGES.values()]
    + [
        ([optimizer] * 2, penalties)
        for penalties in BOUNDS.values()
        for optimizer in (FTRL(0.1), NormalizedFTRL())
    ],
)
def test_settings_that_change_in_a_stream(optimizers, penalties, look):
    """Weights have the settings of the step that made them, read meanwhile or not."""
    rng = np.random.default_rng(0)
    X = sp.random_array((60, 1500), density=0.005, format="csr", rng=rng)
    y = rng.standard_normal(60)
    models = []
    for data in (X, X.toarray()):
        model = SGDRegressor(random_state=0, alpha=1e-3)
        for optimizer, penalty in zip(optimizers, penalties, strict=True):
            model.set_params(optimizer=optimizer, penalty=penalty).partial_fit(data, y)
            if look:
                model.coef_  # noqa: B018
        models.append(model)
    scale = abs(models[1].coef_).max()
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("sparse", [True, False])
def test_targets_that_overflow_are_a_divergence(sparse):
    X = sp.random_array((40, 300), density=0.05, format="csr", rng=np.random.default_rng(0))
    X = X if sparse else X.toarray()
    model = SGDRegressor(random_state=0).partial_fit(X, np.linspace(0, 1, 40))
    before = model.predict(X)
    for call in (model.partial_fit, clone(model).fit):
        with pytest.raises(ValueError, match="diverged"):
            call(X, np.full(40, 1e300) * np.linspace(0, 1, 40))
    np.testing.assert_array_equal(model.predict(X), before)
