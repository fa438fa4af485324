"""L-BFGS's memory: its product with a vector, and the curvatures that it begins with."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import nnls
from sklearn.linear_model import Lasso, LogisticRegression, MultiTaskLasso

from skoptim import MLPClassifier, SGDClassifier, SGDRegressor, losses
from skoptim._devices import cpu
from skoptim.optimizers import LBFGS, ProximalGradient
from skoptim.penalties import GroupL1, NonNegative, PenaltyTerms

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def pairs_of(n, n_pairs, dtype, seed=0):
    """Return steps, and changes of the gradient of a quadratic of curvatures 0.1 to 10."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((n_pairs, n))
    return steps.astype(dtype), (steps * np.geomspace(0.1, 10, n)).astype(dtype)


def written_out(steps, changes, scale):
    """Return the matrix of BFGS's updates (Nocedal and Wright, equation 6.17), the latest last."""
    factor = 1.0
    if len(steps):
        factor = steps[-1] @ changes[-1] / (changes[-1] @ (scale * changes[-1]))
    H, identity = np.diag(factor * scale), np.eye(steps.shape[1])
    for s, y in zip(steps, changes, strict=True):
        rho = 1 / (s @ y)
        H = (identity - rho * np.outer(s, y)) @ H @ (identity - rho * np.outer(y, s))
        H += rho * np.outer(s, s)
    return H


@DTYPES
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("first", "n_pairs"), [(0, 0), (0, 1), (0, 3), (0, 5), (2, 5), (4, 5), (4, 2)]
)
def test_the_product_is_that_of_the_matrix(first, n_pairs, scaled, dtype):
    steps, changes = pairs_of(23, 5, dtype)
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(23).astype(dtype)
    scale = rng.uniform(0.5, 2, 23).astype(dtype)
    order = (first + np.arange(n_pairs)) % 5
    wide = [array[order].astype(float) for array in (steps, changes)]
    expected = written_out(*wide, scale.astype(float) if scaled else np.ones(23)) @ vector
    product = vector.copy()
    cpu.inverse_hessian_product(steps, changes, first, n_pairs, scale if scaled else None, product)
    # Differences of numbers some ten times as large, rounded some ten times.
    tolerance = (1e-12 if dtype == np.float64 else 5e-4) * np.abs(expected).max()
    np.testing.assert_allclose(product, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan])
def test_pairs_without_curvature_are_left_out(factor, place):
    steps, changes = pairs_of(23, 5, np.float64)
    changes[place] *= factor
    kept = np.delete(np.arange(5), place)
    vector = np.random.default_rng(1).standard_normal(23)
    expected, product = vector.copy(), vector.copy()
    cpu.inverse_hessian_product(
        np.ascontiguousarray(steps[kept]), np.ascontiguousarray(changes[kept]), 0, 4, None, expected
    )
    cpu.inverse_hessian_product(steps, changes, 0, 5, None, product)
    np.testing.assert_array_equal(product, expected)


def test_arrays_that_do_not_fit_are_refused():
    steps, changes = pairs_of(23, 5, np.float64)
    with pytest.raises(ValueError, match="rows like the vector"):
        cpu.inverse_hessian_product(steps, changes, 0, 5, None, np.ones(22))
    with pytest.raises(ValueError, match="n_pairs"):
        cpu.inverse_hessian_product(steps, changes, 0, 6, None, np.ones(23))
    with pytest.raises(ValueError, match="scale"):
        cpu.inverse_hessian_product(steps, changes, 0, 5, np.ones(22), np.ones(23))


# Curvatures.


def data_of(dtype=np.float64):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8)) * (rng.random((60, 8)) < 0.4) * np.geomspace(1e-3, 1e3, 8)
    X[:, 3] = 0
    return X.astype(dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["dense", "int32", "int64"])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_squares_of_columns(weighted, listed, kind, dtype):
    X = data_of(dtype)
    rng = np.random.default_rng(1)
    rows = rng.permutation(60)[:40] if listed else None
    weights = rng.uniform(0, 2, 60).astype(dtype) if weighted else None
    given = X
    if kind != "dense":
        given = sp.csr_matrix(X)
        given.indices, given.indptr = given.indices.astype(kind), given.indptr.astype(kind)
    n = 40 if listed else 60
    mean, typical = cpu.column_squares(cpu.Matrix(given), rows, n, weights)
    taken = slice(None) if rows is None else rows
    squares = X[taken].astype(float) ** 2
    factors = np.ones(60) if weights is None else weights.astype(float)
    np.testing.assert_allclose(mean, (squares * factors[taken][:, None]).mean(axis=0), rtol=1e-13)
    counts = ((squares > 0) * factors[taken][:, None]).sum(axis=0)
    np.testing.assert_allclose(typical * counts / n, mean, rtol=1e-13)
    assert typical[3] == 0


SMOOTH = [
    losses.SquaredError(),
    losses.Huber(0.5),
    losses.SquaredEpsilonInsensitive(),
    losses.LogLoss(),
    losses.SquaredHinge(),
    losses.ModifiedHuber(),
]


@pytest.mark.parametrize("loss", SMOOTH, ids=lambda loss: loss.name)
def test_the_curvature_of_a_loss_is_its_largest_second_derivative(loss):
    scores = np.linspace(-4, 4, 4001)
    slopes = loss.gradient(np.ones_like(scores), scores)
    found = np.diff(slopes) / np.diff(scores)
    assert found.max() == pytest.approx(loss.curvature, rel=1e-5)


def test_the_curvature_of_the_multinomial_loss_bounds_the_diagonal():
    scores = np.random.default_rng(0).standard_normal((200, 4)) * 3
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert 0.24 < (p * (1 - p)).max() <= losses.Multinomial().curvature


def iterations(X, y, units, sparse, **parameters):
    X = X * units
    model = SGDClassifier(optimizer=LBFGS(), random_state=0, tol=None, max_iter=12, **parameters)
    return model.fit(sp.csr_matrix(X) if sparse else X, y)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_units_of_features_do_not_matter(n_classes, sparse):
    """Units that are powers of two change no rounding: losses are the same to the last bit."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 6)) * (rng.random((300, 6)) < 0.5)
    y = (X[:, 0] + X[:, 1] + rng.logistic(size=300) > 0).astype(int) + (X[:, 2] > 1) * (
        n_classes - 2
    )
    loss = {"loss": "log_loss" if n_classes == 2 else "multinomial", "penalty": None}
    units = 2.0 ** np.array([-20, 13, 0, 5, -7, 20])
    plain, scaled = (iterations(X, y, u, sparse, **loss) for u in (np.ones(6), units))
    assert scaled.loss_curve_ == plain.loss_curve_
    np.testing.assert_array_equal(scaled.coef_ * units, plain.coef_)


def test_features_of_unlike_units_take_no_more_iterations_than_scaled_ones():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 10))
    y = (X @ rng.standard_normal(10) + rng.logistic(size=500) > 0).astype(int)
    wild = X * np.geomspace(1e-4, 1e4, 10)
    fitted = SGDClassifier("log_loss", penalty=None, optimizer=LBFGS(), tol=1e-6).fit(wild, y)
    assert fitted.n_iter_ <= 15
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(X, y)
    np.testing.assert_allclose(
        fitted.coef_ * np.geomspace(1e-4, 1e4, 10), reference.coef_, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore:LBFGS finds no step")  # At 1e30 tol is out of reach.
@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("size", [0.0, 1e-170, 1e-60, 1e30])
def test_features_of_any_size_do_no_harm(size, penalty):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 3))
    X[:, 1] *= size
    y = (X[:, 0] > 0).astype(int)
    model = SGDClassifier("log_loss", penalty=penalty, alpha=1e-3, optimizer=LBFGS(), tol=1e-4)
    assert model.fit(X, y).score(X, y) > 0.95


def test_weights_and_penalties_enter_the_curvature():
    X = data_of()
    y = np.arange(60) % 2
    state = {}

    class Watching(LBFGS):
        def precondition(self, state_, curvature, terms):
            super().precondition(state_, curvature, terms)
            state["curvature"] = 1 / state_.slots["scale"]

    weights = np.random.default_rng(2).uniform(0, 2, 60)
    model = SGDClassifier("log_loss", alpha=0.3, optimizer=Watching(), max_iter=1, tol=None)
    model.fit(X, y, sample_weight=weights)
    own = (weights / weights.mean())[:, None]
    squares, shares = (own * X**2).mean(axis=0), (own * (X != 0)).mean(axis=0)
    expected = 0.25 * squares * (1 + 0.03 / np.maximum(shares, 1e-9)) + 0.3
    np.testing.assert_allclose(state["curvature"][:-1], expected, rtol=1e-12)
    assert state["curvature"][-1] == 0.25
    # A feature without a value: nothing but the penalty curves it.
    assert state["curvature"][3] == pytest.approx(0.3)


def wild(n_outputs):
    """Return features whose units differ by eight digits, and targets."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 12))
    Y = X @ (rng.standard_normal((12, n_outputs)) * (np.arange(12) < 5)[:, None])
    return X * np.geomspace(1e-4, 1e4, 12), Y + 0.1 * rng.standard_normal(Y.shape)


def regressor(penalty, alpha, optimizer):
    return SGDRegressor(
        penalty=penalty, alpha=alpha, optimizer=optimizer, fit_intercept=False, tol=1e-10,
        max_iter=20_000,
    )  # fmt: skip


PROXIMAL = pytest.mark.parametrize(
    "optimizer",
    [
        ProximalGradient(full_batch=True),
        ProximalGradient(full_batch=True, acceleration=False),
        LBFGS(),
    ],
    ids=["FISTA", "ISTA", "LBFGS"],
)


@PROXIMAL
def test_l1_on_features_of_unlike_units_equals_the_lasso(optimizer):
    X, Y = wild(1)
    # Coordinate descent does not mind the units.
    theirs = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(X, Y[:, 0])
    ours = regressor("l1", 0.1, optimizer).fit(X, Y[:, 0])
    size = np.abs(X).max(axis=0)
    np.testing.assert_allclose(ours.coef_ * size, theirs.coef_ * size, atol=1e-6)
    np.testing.assert_array_equal(ours.coef_ == 0, theirs.coef_ == 0)


@pytest.mark.parametrize("acceleration", [True, False])
def test_groups_of_unlike_units_equal_the_multi_task_lasso(acceleration):
    X, Y = wild(3)
    # Strong enough that no group is at the edge of zero.
    theirs = MultiTaskLasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(X, Y)
    optimizer = ProximalGradient(full_batch=True, acceleration=acceleration)
    terms = PenaltyTerms(group_l1=0.1, n_penalised=36, n_groups=12, group_size=3)
    w = np.zeros(36)

    def value_and_grad(w, gradient):
        residual = X @ w.reshape(12, 3) - Y
        gradient[:] = (X.T @ residual / len(X)).ravel()
        return 0.5 * np.sum(residual**2) / len(X)

    state = optimizer.init(w)
    optimizer.precondition(state, np.repeat((X**2).mean(axis=0), 3), terms)
    size = np.abs(X).max(axis=0)
    for _ in range(2000):
        iteration = optimizer.iterate(w, value_and_grad, state, terms)
        if not iteration.progressed:
            break
    np.testing.assert_allclose(w.reshape(12, 3).T * size, theirs.coef_ * size, atol=1e-6)
    np.testing.assert_array_equal(w.reshape(12, 3).T == 0, theirs.coef_ == 0)


@pytest.mark.parametrize("acceleration", [True, False])
def test_non_negative_weights_of_unlike_units_equal_nnls(acceleration):
    X, Y = wild(1)
    theirs, _ = nnls(X, Y[:, 0])
    optimizer = ProximalGradient(full_batch=True, acceleration=acceleration)
    ours = regressor(NonNegative(), 1.0, optimizer).fit(X, Y[:, 0])
    size = np.abs(X).max(axis=0)
    np.testing.assert_allclose(ours.coef_ * size, theirs * size, atol=1e-6)


def test_networks_begin_from_the_steepest_descent():
    X, y = data_of(), np.arange(60) % 2
    model = MLPClassifier((3,), optimizer=LBFGS(), max_iter=3, tol=None, random_state=0).fit(X, y)
    assert "scale" not in model.optimizer_state_.slots


def test_a_warm_start_with_another_history_size_begins_a_new_history():
    X, y = data_of(), data_of()[:, 0]
    model = SGDRegressor(optimizer=LBFGS(4), max_iter=6, tol=None, warm_start=True).fit(X, y)
    assert model.optimizer_state_.slots["steps"].shape == (4, 9)
    model.set_params(optimizer=LBFGS(7)).fit(X, y)
    assert model.optimizer_state_.slots["steps"].shape == (7, 9)


def test_iterations_by_hand_go_on_after_the_history_size_changed():
    X, y = data_of(), data_of()[:, 0]

    def value_and_grad(w, gradient):
        residual = X @ w - y
        gradient[:] = X.T @ residual
        return 0.5 * residual @ residual

    w, optimizer = np.zeros(8), LBFGS(3)
    state, values = optimizer.init(w), []
    for size in (3, 3, 3, 3, 5, 5, 2, 2):
        optimizer.set_params(history_size=size)
        values.append(optimizer.iterate(w, value_and_grad, state, PenaltyTerms()).value)
    assert (np.diff(values) < 0).all()


@pytest.mark.parametrize("units", [1e3, 1e5])
def test_pairs_are_trusted_in_float32_whatever_the_units(units):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 10)).astype(np.float32)
    y = (X @ rng.standard_normal(10) + rng.logistic(size=500) > 0).astype(int)
    X *= np.geomspace(1 / units, units, 10, dtype=np.float32)
    model = SGDClassifier("log_loss", penalty=None, optimizer=LBFGS(), tol=None, max_iter=10)
    assert model.fit(X, y).optimizer_state_.carries["n_pairs"] >= 8


@pytest.mark.parametrize("optimizer", [LBFGS(), ProximalGradient(full_batch=True)])
def test_one_row_of_huge_entries_is_no_obstacle(optimizer):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5000, 20))
    y = (X @ rng.standard_normal(20) + rng.logistic(size=5000) > 0).astype(int)
    X[0, :10] *= 1e3
    model = SGDClassifier("log_loss", optimizer=optimizer, tol=1e-4)
    assert model.fit(X, y).n_iter_ < 400


@pytest.mark.parametrize("optimizer", [LBFGS(), ProximalGradient(full_batch=True)])
def test_a_path_from_where_all_is_zero_stops_like_fits_of_their_own(optimizer):
    """`tol` times the distance from the very first minimum, zero, would never be reached."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 10))
    y = X[:, 0] + 0.5 * X[:, 1] + 0.1 * rng.standard_normal(200)
    strongest = np.abs(X.T @ y).max() / len(y)
    settings = {"penalty": "l1", "fit_intercept": False, "optimizer": optimizer, "tol": 1e-3}
    path = SGDRegressor(warm_start=True, **settings)
    for alpha in strongest * np.array([1.001, 0.9, 0.5, 0.1, 0.01]):
        path.set_params(alpha=alpha).fit(X, y)
        own = SGDRegressor(alpha=alpha, **settings).fit(X, y)
        assert path.n_iter_ <= own.n_iter_ + 10


def test_float32_squares_beyond_its_range_raise_no_warning():
    X, y = data_of(np.float32) * np.float32(1e18), np.arange(60) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SGDClassifier("log_loss", optimizer=LBFGS(), tol=None, max_iter=2).fit(X, y)


def test_groups_without_members_have_a_prox():
    found = ProximalGradient(full_batch=True).minimize(
        lambda w: (0.0, np.zeros_like(w)), np.ones((3, 0)), penalty=GroupL1()
    )
    assert found.x.shape == (3, 0)
