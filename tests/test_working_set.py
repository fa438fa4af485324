"""Full-batch training under L1 of the columns in play alone: the same minimum in shorter passes."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression

from skoptim import SGDClassifier, SGDRegressor, _working_set
from skoptim._devices import cpu
from skoptim._native import core
from skoptim._network import Network
from skoptim.optimizers import LBFGS, ProximalGradient
from skoptim.penalties import GroupL1

OPTIMIZERS = pytest.mark.parametrize(
    "optimizer", [LBFGS(), ProximalGradient(full_batch=True)], ids=["LBFGS", "ProximalGradient"]
)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
KINDS = pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
N, M = 400, 150


@pytest.fixture
def chosen(monkeypatch):
    """Let any data be worth choosing columns of; return the columns of each pass, as they come."""
    monkeypatch.setattr(_working_set, "_WORTH_CHOOSING", 0)
    columns, gradient = [], Network.full_gradient

    def noted(network, *args):
        columns.append(network.layer_sizes[0])
        return gradient(network, *args)

    monkeypatch.setattr(Network, "full_gradient", noted)
    return columns


def texts(n=N, m=M, seed=0, dtype=np.float64):
    """Return counts of words, frequent and rare ones, and scores of which a few words decide."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(3 / (1 + np.arange(m)) ** 0.7, (n, m)).astype(dtype)
    scores = X[:, [0, 3, 9, 11]] @ [1.0, -1.5, 2.0, 2.0] - 1
    return X, scores + rng.logistic(size=n)


def l1_logistic(X, y, model, alpha):
    margins = np.where(y == model.classes_[1], 1, -1) * model.decision_function(X)
    return np.logaddexp(0, -margins).mean() + alpha * np.abs(model.coef_).sum()


@OPTIMIZERS
@KINDS
@DTYPES
def test_lasso_is_that_of_scikit_learn(optimizer, kind, dtype, chosen):
    X, y = texts(dtype=dtype)
    expected = Lasso(alpha=0.05, tol=1e-12, max_iter=10**5).fit(X.astype(float), y).coef_
    model = SGDRegressor(penalty="l1", alpha=0.05, optimizer=optimizer, max_iter=3000, tol=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # In float32 the tolerance may be out of reach.
        model.fit(kind(X), y.astype(dtype))
    assert min(chosen) < M / 2
    np.testing.assert_allclose(model.coef_, expected, atol=1e-5 if dtype == np.float64 else 2e-3)
    if dtype == np.float64:
        np.testing.assert_array_equal(model.coef_ != 0, expected != 0)


@OPTIMIZERS
@KINDS
def test_logistic_regression_is_that_of_scikit_learn(optimizer, kind, chosen):
    X, scores = texts()
    y = scores > 0
    model = SGDClassifier(
        "log_loss", penalty="l1", alpha=0.01, optimizer=optimizer, max_iter=3000, tol=1e-8
    ).fit(kind(X), y)
    peer = LogisticRegression(
        l1_ratio=1.0, solver="saga", C=1 / (0.01 * N), tol=1e-10, max_iter=10**5
    ).fit(X, y)
    assert min(chosen) < M / 2
    np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-4)
    assert l1_logistic(X, y, model, 0.01) <= l1_logistic(X, y, peer, 0.01) + 1e-12


@OPTIMIZERS
def test_elastic_net_is_that_of_scikit_learn(optimizer, chosen):
    X, y = texts()
    peer = ElasticNet(alpha=0.1, l1_ratio=0.6, tol=1e-12, max_iter=10**5).fit(X, y)
    model = SGDRegressor(
        penalty="elasticnet", alpha=0.1, l1_ratio=0.6, optimizer=optimizer, max_iter=3000, tol=1e-9
    ).fit(sp.csr_matrix(X), y)
    assert min(chosen) < M / 2
    np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-6)


@KINDS
def test_groups_come_into_play_as_a_whole(kind, chosen):
    X, scores = texts()
    y = np.digitize(scores, [-1, 1])
    alpha = 0.05
    model = SGDClassifier(
        "multinomial",
        penalty=GroupL1(),
        alpha=alpha,
        optimizer=ProximalGradient(full_batch=True),
        max_iter=5000,
        tol=1e-9,
    ).fit(kind(X), y)
    assert min(chosen) < M / 2
    # The conditions of the minimum (Yuan and Lin 2006, equations 2.3 and 2.4).
    gradient = (model.predict_proba(X) - np.eye(3)[y]).T @ X / N
    norms = np.linalg.norm(model.coef_, axis=0)
    alive = norms > 0
    assert 3 < alive.sum() < M / 2
    assert np.linalg.norm(gradient[:, ~alive], axis=0).max() <= alpha + 1e-8
    pull = alpha * model.coef_[:, alive] / norms[alive]
    np.testing.assert_allclose(gradient[:, alive], -pull, atol=1e-7)


@OPTIMIZERS
@pytest.mark.parametrize(
    ("loss", "alpha"), [("log_loss", 0.02), ("multinomial", 0.02), ("squared_hinge", 0.1)]
)
def test_several_classes_reach_the_minimum_of_passes_over_all(
    optimizer, loss, alpha, chosen, monkeypatch
):
    X, scores = texts()
    y = np.digitize(scores, [-1, 1])
    weights = np.random.default_rng(5).uniform(0.5, 2, N)
    model = SGDClassifier(
        loss, penalty="l1", alpha=alpha, optimizer=optimizer, max_iter=5000, tol=1e-8
    )
    few = model.fit(sp.csr_matrix(X), y, weights).coef_
    assert min(chosen) < M / 2
    monkeypatch.setattr(_working_set, "_WORTH_CHOOSING", np.inf)
    chosen.clear()
    every = model.fit(sp.csr_matrix(X), y, weights).coef_
    assert set(chosen) == {M}
    np.testing.assert_allclose(few, every, atol=1e-5)


@OPTIMIZERS
def test_most_passes_along_a_path_are_over_few_columns(optimizer, chosen):
    X, scores = texts(m=600)
    y = scores > 0
    model = SGDClassifier(
        "log_loss", penalty="l1", optimizer=optimizer, max_iter=3000, tol=1e-6, warm_start=True
    )
    for alpha in np.geomspace(0.05, 0.01, 5):
        model.set_params(alpha=alpha).fit(sp.csr_matrix(X), y)
    assert np.median(chosen) < 60
    # A round makes the optimality a tenth; a million is six rounds, or some more with new columns.
    assert chosen.count(600) <= 5 * 10


@OPTIMIZERS
def test_each_iteration_publishes_the_model_of_all_columns(optimizer, chosen):
    X, scores = texts()
    y = scores > 0
    for n_iterations in range(1, 12):
        model = SGDClassifier(
            "log_loss",
            penalty="l1",
            alpha=0.02,
            optimizer=optimizer,
            max_iter=n_iterations,
            tol=None,
        ).fit(sp.csr_matrix(X), y)
        assert model.n_iter_ == len(model.history_["loss"]) == n_iterations
        expected = l1_logistic(X, y, model, 0.02)
        np.testing.assert_allclose(model.history_["loss"][-1], expected, rtol=1e-12)
    if isinstance(optimizer, LBFGS):
        losses = model.history_["loss"]
        assert losses == sorted(losses, reverse=True)


@OPTIMIZERS
def test_the_last_optimality_is_that_of_all_columns(optimizer, chosen):
    X, y = texts()
    model = SGDRegressor(penalty="l1", alpha=0.05, optimizer=optimizer, max_iter=3000, tol=1e-6)
    model.fit(sp.csr_matrix(X), y)
    gradient = X.T @ (model.predict(X) - y) / N
    at_zero = np.maximum(np.abs(gradient) - 0.05, 0)
    beyond = np.where(model.coef_ == 0, at_zero, gradient + 0.05 * np.sign(model.coef_))
    assert model.history_["optimality"][-1] <= 1e-6
    np.testing.assert_array_less(np.abs(beyond), 1e-6)


@OPTIMIZERS
def test_nothing_in_play(optimizer, chosen):
    X, scores = texts()
    y = scores > 0
    model = SGDClassifier("log_loss", penalty="l1", alpha=10.0, optimizer=optimizer, tol=1e-9)
    model.fit(X, y)
    assert not model.coef_.any()
    np.testing.assert_allclose(model.intercept_, np.log(y.mean() / (1 - y.mean())), rtol=1e-6)
    model.set_params(fit_intercept=False).fit(X, y)
    assert not model.coef_.any()
    assert not model.intercept_.any()


@OPTIMIZERS
def test_training_without_end_ends_at_rest(optimizer, chosen):
    X, y = texts(n=60, m=20)
    model = SGDRegressor(penalty="l1", alpha=0.3, optimizer=optimizer, max_iter=10**5, tol=None)
    model.fit(X, y)
    assert model.n_iter_ < 10**4
    expected = Lasso(alpha=0.3, tol=1e-15, max_iter=10**6).fit(X, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-9)


@OPTIMIZERS
def test_a_path_upwards_gives_the_models_of_a_path_downwards(optimizer, chosen):
    X, y = texts()
    alphas = [0.02, 0.1, 0.5, 2.5]

    def path(alphas):
        model = SGDRegressor(
            penalty="l1", optimizer=optimizer, max_iter=5000, tol=1e-9, warm_start=True
        )
        fits = [model.set_params(alpha=a).fit(sp.csr_matrix(X), y).coef_.copy() for a in alphas]
        return np.array(fits)

    np.testing.assert_allclose(path(alphas)[::-1], path(alphas[::-1]), atol=1e-6)


def test_columns_that_hold_much_are_not_copied(chosen):
    X, y = texts(m=12)
    SGDRegressor(penalty="l1", alpha=1e-3, optimizer=LBFGS(), max_iter=200).fit(X, y)
    assert set(chosen) == {12}
    X, y = texts()
    chosen.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_working_set, "_MOST_BYTES", 100)
        SGDRegressor(penalty="l1", alpha=0.05, optimizer=LBFGS(), max_iter=200).fit(X, y)
    assert set(chosen) == {M}


@OPTIMIZERS
def test_rows_without_weight_are_not_trained_on(optimizer, chosen):
    X, scores = texts()
    y, weights = scores > 0, np.ones(N)
    weights[::4] = 0
    counted = weights > 0
    model = SGDClassifier(
        "log_loss", penalty="l1", alpha=0.02, optimizer=optimizer, max_iter=3000, tol=1e-9
    )
    expected = model.fit(sp.csr_matrix(X[counted]), y[counted]).coef_
    X[~counted], y[~counted] = 100.0, ~y[~counted]
    found = model.fit(sp.csr_matrix(X), y, weights).coef_
    assert min(chosen) < M / 2
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_early_stopping_goes_through_rounds(chosen):
    X, scores = texts()
    model = SGDClassifier(
        "log_loss", penalty="l1", alpha=0.02, optimizer=LBFGS(), early_stopping=True, random_state=0
    ).fit(sp.csr_matrix(X), scores > 0)
    assert min(chosen) < M / 2
    assert model.score(X, scores > 0) > 0.75


@pytest.mark.parametrize("change", ["wide", "unsorted", "duplicates", "read-only"])
def test_any_csr_will_do(change, chosen):
    X, y = texts()
    X = sp.csr_matrix(X)
    model = SGDRegressor(penalty="l1", alpha=0.05, optimizer=LBFGS(), max_iter=3000, tol=1e-9)
    expected = model.fit(X.copy(), y).coef_
    if change == "wide":
        X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    elif change == "unsorted":
        for i in range(N):
            row = slice(X.indptr[i], X.indptr[i + 1])
            X.data[row], X.indices[row] = X.data[row][::-1], X.indices[row][::-1]
        X.has_sorted_indices = False
    elif change == "duplicates":
        X = sp.csr_matrix(
            (np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), 2 * X.indptr), shape=X.shape
        )
    else:
        for array in (X.data, X.indices, X.indptr):
            array.flags.writeable = False
    np.testing.assert_allclose(model.fit(X, y).coef_, expected, atol=1e-7)


@given(
    n=st.integers(1, 40),
    m=st.integers(1, 30),
    density=st.floats(0, 1),
    seed=st.integers(0, 9),
    wide=st.booleans(),
)
def test_columns_are_those_of_scipy(n, m, density, seed, wide):
    rng = np.random.default_rng(seed)
    X = sp.random(n, m, density, format="csr", random_state=seed, dtype=np.float32)
    if wide:
        X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    chosen = np.flatnonzero(rng.random(m) < 0.4)
    for matrix in (X, X.toarray()):
        part = cpu.Matrix(matrix).columns(chosen, np.inf)
        expected = matrix[:, chosen]
        assert part.shape == (n, len(chosen))
        found = part.array
        np.testing.assert_array_equal(
            found.toarray() if sp.issparse(found) else found,
            expected.toarray() if sp.issparse(expected) else expected,
        )


def test_columns_by_several_threads():
    X = sp.random(3000, 500, 0.3, format="csr", random_state=0)
    chosen = np.arange(0, 500, 3)
    part = cpu.Matrix(X).columns(chosen, np.inf).array
    assert (part != X[:, chosen]).nnz == 0
    assert cpu.Matrix(X).columns(chosen, 1000) is None


def test_columns_are_checked():
    X = sp.random(20, 10, 0.5, format="csr", random_state=0)
    native = cpu.Matrix(X).native
    places, starts = np.zeros(10, np.int32), np.zeros(21, np.int32)
    data, numbers = np.empty(3), np.empty(3, np.int32)
    with pytest.raises(ValueError, match="one for each column"):
        core.count_chosen(native, places[1:], 1, starts[1:])
    with pytest.raises(ValueError, match="one for each row"):
        core.count_chosen(native, places, 1, starts)
    with pytest.raises(ValueError, match="CSR"):
        core.count_chosen(cpu.Matrix(X.toarray()).native, places, 1, starts[1:])
    with pytest.raises(ValueError, match="an end"):
        core.copy_chosen(native, places, 1, starts[1:], data, numbers)
    with pytest.raises(ValueError, match="must not fall"):
        core.copy_chosen(native, places, 1, starts - np.arange(21, dtype=np.int32), data, numbers)
    with pytest.raises(ValueError, match="too short"):
        core.copy_chosen(
            native, places, 1, starts + 2 * (np.arange(21) > 3).astype(np.int32) + 2, data, numbers
        )


@pytest.mark.parametrize("loss", ["hinge", "perceptron"])
def test_losses_that_are_not_smooth_are_trained_on_all_columns(loss, chosen):
    X, scores = texts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SGDClassifier(loss, penalty="l1", alpha=0.1, optimizer=LBFGS()).fit(X, scores > 0)
    assert set(chosen) == {M}
