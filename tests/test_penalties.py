"""Penalties: values, proxes, exact zeros, constraints, one objective for every optimizer."""

import re
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from optimizer_table import ELEMENTWISE, FULL_BATCH, OPTIMIZERS
from scipy.optimize import minimize_scalar
from sklearn.base import clone

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim.optimizers import (
    FTRL,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Nadam,
    NormalizedFTRL,
    ProximalGradient,
    RMSprop,
)
from skoptim.penalties import L1, L2, Box, ElasticNet, GroupL1, NonNegative, PenaltyTerms
from skoptim.schedules import Cosine

# Whether these short fits converged is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def parametrize(table, name="optimizer"):
    return pytest.mark.parametrize(name, table.values(), ids=table.keys())


# --- Values and proxes ----------------------------------------------------------------------------

PENALTIES = {
    "l1": (L1(), lambda u: abs(u), (-np.inf, np.inf)),
    "l2": (L2(), lambda u: u**2 / 2, (-np.inf, np.inf)),
    "elasticnet": (ElasticNet(0.3), lambda u: 0.3 * abs(u) + 0.35 * u**2, (-np.inf, np.inf)),
    "non_negative": (NonNegative(), lambda u: 0 * u, (0.0, np.inf)),
    "box": (Box(-0.5, 2.0), lambda u: 0 * u, (-0.5, 2.0)),
    "half-box": (Box(0.25, np.inf), lambda u: 0 * u, (0.25, np.inf)),
}
W = np.concatenate([np.linspace(-4, 4, 33), [-1e-9, 1e-9, 100.0]])


def brute_force_prox(w, step, value, bounds):
    """Return argmin over u of |u - w|^2 / 2 + step * value(u), for each entry."""
    result = []
    for x in w:
        low, high = max(bounds[0], -abs(x) - 1), min(bounds[1], abs(x) + 1)

        def objective(u, x=x):
            return (u - x) ** 2 / 2 + step * value(u)

        found = minimize_scalar(
            objective, bounds=(low, high), options={"xatol": 1e-12}, method="bounded"
        ).x
        corners = [u for u in (0.0, *bounds) if low <= u <= high]
        result.append(min((found, *corners), key=objective))
    return np.array(result)


@pytest.mark.parametrize("step", [0.0, 0.01, 0.7, 3.0])
@parametrize(PENALTIES, "case")
def test_prox_equals_brute_force(case, step):
    penalty, value, bounds = case
    # Brute force finds a minimum to the square root of eps.
    expected = brute_force_prox(W, step, value, bounds)
    for w in (W, W.reshape(9, -1)):
        actual = penalty.prox(w, step)
        assert actual.shape == w.shape
        assert actual is not w
        np.testing.assert_allclose(actual.ravel(), expected, rtol=1e-7, atol=5e-8)
        assert (actual >= bounds[0]).all()
        assert (actual <= bounds[1]).all()
    assert penalty.prox(W.astype(np.float32), step).dtype == np.float32


@parametrize(PENALTIES, "case")
def test_value_equals_the_formula(case):
    penalty, value, _ = case
    assert penalty.value(W) == pytest.approx(value(W).sum(), rel=1e-14)
    assert penalty.value(W.reshape(9, -1)) == pytest.approx(value(W).sum(), rel=1e-14)


def test_l1_prox_gives_exact_zeros():
    w = np.array([0.5, -0.5, 0.3, -0.0, 0.5000001])
    np.testing.assert_array_equal(L1().prox(w, 0.5)[:4], 0)
    assert L1().prox(w, 0.5)[4] > 0


@pytest.mark.parametrize("shape", [(6,), (6, 1), (5, 3), (1, 4)])
@pytest.mark.parametrize("step", [0.0, 0.3, 2.0, 50.0])
def test_group_prox_meets_its_optimality_condition(shape, step):
    """U is the prox at w exactly if (w - u) / step is a subgradient of the norm at u."""
    rng = np.random.default_rng(0)
    w = 3 * rng.standard_normal(shape)
    w[0] = 0
    u = GroupL1().prox(w, step)
    assert u.shape == shape
    kept = 0
    for row, moved in zip(w.reshape(shape[0], -1), u.reshape(shape[0], -1), strict=True):
        if moved.any():
            kept += 1
            np.testing.assert_allclose(
                row - moved, step * moved / np.linalg.norm(moved), atol=1e-13
            )
        else:
            assert np.linalg.norm(row) <= step
    assert kept == (shape[0] - 1 if step == 0 else kept)


def test_groups_are_the_rows():
    w = np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]])
    assert GroupL1().value(w) == pytest.approx(6.0)
    np.testing.assert_allclose(GroupL1().prox(w, 1.0), [[2.4, 3.2], [0, 0], [0, 0]], atol=1e-15)
    # A group of one coefficient is L1.
    np.testing.assert_allclose(GroupL1().prox(W, 0.5), L1().prox(W, 0.5), atol=1e-15)
    assert GroupL1().value(W) == pytest.approx(L1().value(W))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_terms_leave_intercepts_alone(dtype):
    w = np.array([2.0, -1.0, 0.3, -0.2, 5.0, -6.0], dtype=dtype)
    terms = PenaltyTerms(l1=0.5, l2=0.25, lower=-0.3, upper=1.1, n_penalised=4)
    steps = np.array([1.0, 2.0, 0.5, 4.0])

    def value(u):
        return 0.5 * abs(u) + 0.125 * u**2

    moved = w.copy()
    terms.prox(moved, steps)
    for i in range(4):
        expected = brute_force_prox(w[i : i + 1].astype(float), steps[i], value, (-0.3, 1.1))[0]
        assert moved[i] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(moved[4:], w[4:])
    assert terms.value(w) == pytest.approx(value(w[:4].astype(float)).sum(), rel=1e-6)
    grad = np.ones_like(w)
    smooth = terms.smooth_value_and_grad(w, grad)
    assert smooth == pytest.approx(0.125 * float((w[:4].astype(float) ** 2).sum()), rel=1e-6)
    np.testing.assert_allclose(grad, np.append(1 + 0.25 * w[:4], [1, 1]), rtol=1e-6)


def test_alpha_scales_strengths_and_not_constraints():
    terms = ElasticNet(0.4).terms().scaled(3.0)
    assert (terms.l1, terms.l2) == pytest.approx((1.2, 1.8))
    assert Box(-1, 2).terms().scaled(0.0) == Box(-1, 2).terms()


# --- Constraints hold exactly ---------------------------------------------------------------------


def make_data(n_samples=90, n_features=12, seed=0, dtype=np.float64):
    """Return data with coefficients of both signs, well beyond the bounds used here."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) * (rng.random((n_samples, n_features)) < 0.5)
    coef = np.linspace(-2, 2, n_features)
    score = X @ np.column_stack([coef, -coef[::-1], rng.permutation(coef)])
    return X.astype(dtype), score + 0.3 * rng.standard_normal(score.shape)


CONSTRAINTS = {
    "non_negative": (NonNegative(), 0.0, np.inf),
    "box": (Box(-0.3, 0.1), -0.3, 0.1),
    "box-above-0": (Box(0.1, 0.7), 0.1, 0.7),
}
TAKES_CONSTRAINTS = {name: o for name, o in OPTIMIZERS.items() if not isinstance(o, LBFGS)}


def assert_feasible(coefs, lower, upper):
    for coef in coefs:
        assert coef.min() >= coef.dtype.type(lower)
        assert coef.max() <= coef.dtype.type(upper)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(CONSTRAINTS, "constraint")
@parametrize(TAKES_CONSTRAINTS)
def test_constraints_hold_exactly_in_linear_models(optimizer, constraint, sparse, dtype):
    penalty, lower, upper = constraint
    X, scores = make_data(dtype=dtype)
    X = sp.csr_matrix(X) if sparse else X
    settings = {"optimizer": optimizer, "penalty": penalty, "tol": None, "random_state": 3}
    # (A seed with which, after four epochs, some coefficient lies on a bound in each case.)
    regressor = SGDRegressor(max_iter=4, **settings)
    model = clone(regressor).fit(X, scores[:, 0])
    assert_feasible([model.coef_], lower, upper)
    # The constraint is active, or the test says nothing.
    bounds = [b for b in (lower, upper) if np.isfinite(b)]
    assert np.isin(model.coef_, np.array(bounds, dtype=dtype)).any()
    # A start outside is brought inside.
    start = np.linspace(-5, 5, X.shape[1])
    model = clone(regressor).set_params(max_iter=1).fit(X, scores[:, 0], coef_init=start)
    assert_feasible([model.coef_], lower, upper)
    classifier = SGDClassifier("multinomial", batch_size=7, max_iter=3, **settings)
    y = scores.argmax(axis=1)
    model = clone(classifier).fit(X, y)
    assert_feasible([model.coef_], lower, upper)
    stopped = clone(classifier).set_params(early_stopping=True, tol=1e-3, max_iter=8)
    assert_feasible([stopped.fit(X, y).coef_], lower, upper)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(CONSTRAINTS, "constraint")
@parametrize(TAKES_CONSTRAINTS)
def test_constraints_hold_exactly_in_nets(optimizer, constraint, sparse):
    penalty, lower, upper = constraint
    X, scores = make_data()
    # An empty column is never touched; its initial weights have to be moved all the same.
    X[:, 2] = 0
    X = sp.csr_matrix(X) if sparse else X
    model = MLPRegressor(
        "squared_error",
        (6, 5),
        optimizer=optimizer,
        penalty=penalty,
        max_iter=2,
        tol=None,
        random_state=0,
    ).fit(X, scores - 5)
    assert_feasible(model.coefs_, lower, upper)
    # Intercepts are free: the targets are far below zero.
    assert min(b.min() for b in model.intercepts_) < 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(CONSTRAINTS, "constraint")
@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adagrad", "adam", "ftrl", "lion"])
def test_an_average_of_feasible_weights_is_feasible(name, constraint, sparse, dtype):
    """The mean of thousands of copies of a bound must not lie beyond it by rounding."""
    penalty, lower, upper = constraint
    X, scores = make_data(n_samples=3000, dtype=dtype)
    X = sp.csr_matrix(X) if sparse else X
    model = SGDRegressor(
        optimizer=ELEMENTWISE[name],
        penalty=penalty,
        average=True,
        max_iter=2,
        tol=None,
        random_state=0,
    ).fit(X, scores[:, 0])
    assert_feasible([model.coef_], lower, upper)


# --- Exact zeros ----------------------------------------------------------------------------------


def make_sparse_problem(n_samples=200, n_features=40, n_informative=6, seed=1):
    """Return standardised features of which a few decide the class, and the rest say nothing."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features))
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    coef = np.zeros(n_features)
    coef[:n_informative] = [2.0, -1.5, 1.2, -1.0, 0.8, -0.6]
    y = (X @ coef + rng.logistic(size=n_samples) > 0).astype(int)
    return X, y


ALPHAS = (0.0, 0.003, 0.01, 0.03, 0.1, 1.0)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(OPTIMIZERS)
def test_l1_zeros_grow_with_alpha(optimizer, sparse):
    """From one alpha to the next a count may fall, by noise, by one of the 40 features."""
    X, y = make_sparse_problem()
    X = sp.csr_matrix(X) if sparse else X
    zeros, informative = [], []
    for alpha in ALPHAS:
        model = SGDClassifier(
            "log_loss",
            penalty="l1",
            alpha=alpha,
            optimizer=optimizer,
            batch_size=20,
            max_iter=60,
            tol=None,
            random_state=0,
        ).fit(X, y)
        zeros.append(int(np.sum(model.coef_ == 0)))
        informative.append(int(np.sum(model.coef_[0, :6] != 0)))
    own_l1 = getattr(optimizer, "l1", 0)
    assert zeros[0] == 0 or own_l1
    assert all(later >= earlier - 1 for earlier, later in pairwise(zeros)), zeros
    assert zeros[-1] == 40, zeros  # alpha = 1 is above every |gradient| at zero.
    assert zeros[4] >= 20, zeros
    # The strong features are the last to go.
    assert informative[3] >= 3, informative


@parametrize(OPTIMIZERS)
def test_l1_zeros_in_a_net(optimizer):
    """The whole net is penalised: under a strong L1 every weight becomes exactly zero."""
    X, y = make_sparse_problem()
    zeros = []
    for alpha in (0.0, 0.01, 5.0):
        model = MLPClassifier(
            (8,),
            activation="tanh",
            penalty="l1",
            alpha=alpha,
            optimizer=optimizer,
            batch_size=20,
            max_iter=60,
            tol=None,
            random_state=0,
        ).fit(X, y)
        zeros.append(sum(int(np.sum(coef == 0)) for coef in model.coefs_))
    assert zeros[0] == 0 or getattr(optimizer, "l1", 0)
    assert zeros[0] <= zeros[1] <= zeros[2], zeros
    assert zeros[1] > 20, zeros
    assert zeros[2] == 40 * 8 + 8, zeros


# --- One objective for every optimizer ------------------------------------------------------------


def objective(model, X, y, l1, l2):
    """Return the mean log-loss plus the penalty, in NumPy."""
    scores = np.where(y == 1, 1, -1) * (X @ model.coef_[0] + model.intercept_[0])
    penalty = l1 * abs(model.coef_).sum() + l2 / 2 * (model.coef_**2).sum()
    return np.logaddexp(0, -scores).mean() + penalty


def best_objective(X, y, penalty, l1, l2):
    model = SGDClassifier(
        "log_loss",
        penalty=penalty,
        alpha=0.02,
        l1_ratio=0.5,
        optimizer=ProximalGradient(1.0, full_batch=True),
        max_iter=10_000,
        tol=1e-10,
    ).fit(X, y)
    assert model.n_iter_ < 10_000
    return model, objective(model, X, y, l1, l2)


def decaying(rate, n_steps=6000):
    return Cosine(rate, total_steps=n_steps, final=1e-4 * rate)


# Every rule with a rate that decays over the 6000 steps made.
DECAYING = {
    "sgd": SGD(decaying(0.3)),
    "sgd-momentum": SGD(decaying(0.03), momentum=0.9),
    "sgd-nesterov": SGD(decaying(0.03), momentum=0.9, nesterov=True),
    "proximal_gradient": ProximalGradient(decaying(0.3)),
    "adagrad": Adagrad(decaying(0.3)),
    "rmsprop": RMSprop(decaying(0.02)),
    "rmsprop-centered": RMSprop(decaying(0.02), centered=True, rho=0.9),
    "rmsprop-momentum": RMSprop(decaying(0.005), momentum=0.8),
    "adadelta": Adadelta(decaying(3.0)),
    "adam": Adam(decaying(0.02)),
    "adam-amsgrad": Adam(decaying(0.02), amsgrad=True),
    "adamw": AdamW(decaying(0.02), weight_decay=0.0),
    "adamax": Adamax(decaying(0.02)),
    "nadam": Nadam(decaying(0.02)),
    "ftrl": FTRL(0.3),
    "ftrl-power": FTRL(0.3, learning_rate_power=-0.7),
    "normalized_ftrl": NormalizedFTRL(),
    "lion": Lion(decaying(0.005)),
}
STRENGTHS = {"l1": (0.02, 0.0), "l2": (0.0, 0.02), "elasticnet": (0.01, 0.01)}


def test_every_elementwise_optimizer_has_a_decaying_rate_here():
    assert {type(o) for o in DECAYING.values()} == {type(o) for o in ELEMENTWISE.values()}


@pytest.mark.parametrize("batch_size", [10, 120])
@parametrize(STRENGTHS, "strengths")
@parametrize(DECAYING)
def test_every_rule_comes_near_the_optimum(optimizer, strengths, batch_size):
    """Within 1e-3 of FISTA's optimum at 1e-10; the loss at zero lies 0.2 above it."""
    X, y = make_sparse_problem(n_samples=120, n_features=15)
    penalty = next(name for name, value in STRENGTHS.items() if value == strengths)
    best, optimum = best_objective(X, y, penalty, *strengths)
    is_exact = batch_size == 120
    model = SGDClassifier(
        "log_loss",
        penalty=penalty,
        alpha=0.02,
        l1_ratio=0.5,
        optimizer=optimizer,
        batch_size=batch_size,
        max_iter=500,
        shuffle=not is_exact,
        tol=None,
        random_state=0,
    )
    # Batches of all samples are twelve to an epoch, too, whose costs would be most of the time.
    model.fit(*((np.tile(X, (12, 1)), np.tile(y, 12)) if is_exact else (X, y)))
    assert model.optimizer_state_.step == 6000
    gap = objective(model, X, y, *strengths) - optimum
    assert -1e-9 < gap < 1e-3
    if strengths[0] and is_exact:
        # With exact gradients the support is found, too, save for what is zero by a hair.
        assert np.sum((model.coef_ == 0) != (best.coef_ == 0)) <= 1


@parametrize(FULL_BATCH)
@parametrize(STRENGTHS, "strengths")
def test_full_batch_optimizers_reach_the_optimum(optimizer, strengths):
    X, y = make_sparse_problem(n_samples=120, n_features=15)
    penalty = next(name for name, value in STRENGTHS.items() if value == strengths)
    best, optimum = best_objective(X, y, penalty, *strengths)
    model = SGDClassifier(
        "log_loss",
        penalty=penalty,
        alpha=0.02,
        l1_ratio=0.5,
        optimizer=optimizer,
        max_iter=10_000,
        tol=1e-8,
    ).fit(X, y)
    assert objective(model, X, y, *strengths) == pytest.approx(optimum, rel=1e-10)
    np.testing.assert_array_equal(model.coef_ == 0, best.coef_ == 0)


@parametrize(OPTIMIZERS)
def test_the_loss_curve_of_a_standstill_is_the_objective(optimizer):
    """With rates too small to move anything, loss_ is the objective at the start."""
    if isinstance(optimizer, LBFGS):
        return  # It has no rate.
    X, y = make_sparse_problem(n_features=7)
    rate = "alpha" if isinstance(optimizer, FTRL) else "learning_rate"
    optimizer = clone(optimizer).set_params(**{rate: 1e-14})
    start, intercept = np.linspace(-1, 2, 7), 0.5
    model = SGDClassifier(
        "log_loss",
        penalty="elasticnet",
        alpha=0.3,
        l1_ratio=0.6,
        optimizer=optimizer,
        max_iter=1,
        tol=None,
    )
    if optimizer.is_full_batch:
        return  # A poor rate is made good by the line search.
    model.fit(X, y, coef_init=start[None], intercept_init=[intercept])
    # FTRL's closed form has its penalty's whole sum in the weights, whatever the rate.
    moved = 1e-9 if not isinstance(optimizer, FTRL) else 1e-6
    assert model.loss_ == pytest.approx(objective(model, X, y, 0.18, 0.12), rel=moved)


# --- Intercepts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(OPTIMIZERS)
def test_the_intercept_is_never_penalised(optimizer, sparse):
    """Under an overwhelming L1 the intercept goes as if there were no features, and no decay."""
    X, y = make_sparse_problem(n_features=7)
    y = y | (X[:, 0] > -0.5)
    X = X.copy()
    estimator = SGDClassifier(
        "log_loss", penalty="l1", alpha=1e4, batch_size=10, max_iter=20, tol=None, random_state=0
    )
    optimizer = clone(optimizer)
    if not optimizer.is_full_batch:
        optimizer.set_params(clip_norm=None)  # The norm of a gradient is that of all its entries.
    model = (
        clone(estimator).set_params(optimizer=optimizer).fit(sp.csr_matrix(X) if sparse else X, y)
    )
    assert not model.coef_.any()
    bare = {
        name: 0.0
        for name in ("l1", "l2", "weight_decay")
        if name in optimizer.get_params() and not optimizer.is_full_batch
    }
    if optimizer.has_units:
        # Its rate is in units of the samples' norm, of which the features are part.
        bare["alpha"] = optimizer.alpha * model.optimizer_state_.carries["rate_unit"]
    alone = clone(estimator).set_params(optimizer=clone(optimizer).set_params(**bare), penalty=None)
    expected = alone.fit(np.zeros_like(X), y).intercept_
    assert abs(expected[0]) > 0.05
    np.testing.assert_allclose(model.intercept_, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["sgd-nesterov", "adam-amsgrad", "adamw", "ftrl-l1", "lion-decay", "fista"]
)
def test_intercepts_of_a_net_are_never_penalised(name):
    """Zero weights leave the output's intercept alone to be learned: the mean of the targets."""
    X, _ = make_sparse_problem(n_features=7)
    y = 2.0 + 0.1 * np.arange(len(X)) % 3
    model = MLPRegressor(
        "squared_error",
        (4,),
        penalty="l1",
        alpha=1e3,
        optimizer=OPTIMIZERS[name],
        max_iter=1500,
        tol=None,
        random_state=0,
    ).fit(X, y)
    assert not any(coef.any() for coef in model.coefs_)
    # Rates are constant: within one step of Lion (0.02), far nearer for the rest.
    assert model.intercepts_[-1][0] == pytest.approx(y.mean(), abs=0.03)
    # With no way to the output these had no gradient once the weights were zero.
    assert model.intercepts_[0].any()


# --- FTRL: what lambda means ----------------------------------------------------------------------


def constant_gradients(n_samples=60):
    """Return hinge data whose gradient is -c_j for feature j, as long as margins are below 1."""
    c = np.linspace(0.05, 1.0, 20)
    y = np.where(np.arange(n_samples) % 2, 1, -1)
    return np.outer(y, c), y, c


@pytest.mark.parametrize("batch_size", [1, 2, 5, 20, 60])
def test_ftrl_l1_is_against_the_sum_over_samples_for_every_batch_size(batch_size):
    """SEMANTICS trap 4: z is zeroed exactly where |sum of gradients| <= l1."""
    X, y, c = constant_gradients()
    model = SGDClassifier(
        "hinge",
        penalty=None,
        optimizer=FTRL(1e-6, l1=60 * 0.46),
        fit_intercept=False,
        batch_size=batch_size,
        max_iter=1,
        tol=None,
    ).fit(X, y)
    np.testing.assert_array_equal(model.coef_[0] == 0, c <= 0.46)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 20, 60])
def test_alpha_is_against_the_mean_over_samples_for_every_batch_size(batch_size):
    X, y, c = constant_gradients()
    model = SGDClassifier(
        "hinge",
        penalty="l1",
        alpha=0.46,
        optimizer=FTRL(1e-6),
        fit_intercept=False,
        batch_size=batch_size,
        max_iter=3,
        tol=None,
    ).fit(X, y)
    np.testing.assert_array_equal(model.coef_[0] == 0, c <= 0.46)


def test_ftrl_l1_by_partial_fit_keeps_its_meaning():
    X, y, c = constant_gradients()
    model = SGDClassifier(
        "hinge", penalty=None, optimizer=FTRL(1e-6, l1=60 * 0.46), fit_intercept=False, batch_size=5
    )
    for start in range(0, 60, 15):
        model.partial_fit(X[start : start + 15], y[start : start + 15], classes=[-1, 1])
    np.testing.assert_array_equal(model.coef_[0] == 0, c <= 0.46)


# --- Groups select features -----------------------------------------------------------------------


def takes_groups(optimizer):
    try:
        optimizer.check_penalty(GroupL1().terms())
    except ValueError:
        return False
    return True


TAKES_GROUPS = {name: o for name, o in OPTIMIZERS.items() if takes_groups(o)}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(TAKES_GROUPS)
def test_groups_drop_whole_features(optimizer, sparse):
    """A feature goes for all classes at once; those that say nothing go first."""
    X, _ = make_sparse_problem(n_features=20)
    rng = np.random.default_rng(0)
    y = (X[:, :6] @ (3 * rng.standard_normal((6, 3))) + rng.logistic(size=(200, 3))).argmax(axis=1)
    dropped = []
    for alpha in (0.02, 0.1, 2.0):
        model = SGDClassifier(
            "multinomial",
            penalty=GroupL1(),
            alpha=alpha,
            optimizer=optimizer,
            batch_size=200,
            max_iter=600,
            tol=None,
            random_state=0,
        ).fit(sp.csr_matrix(X) if sparse else X, y)
        gone = ~model.coef_.any(axis=0)
        assert (model.coef_[:, ~gone] != 0).all()
        dropped.append(gone)
    assert not dropped[0][:6].all()
    assert dropped[1][6:].sum() >= 10
    assert dropped[1][:6].sum() <= 3
    assert dropped[2].all()


@parametrize(TAKES_GROUPS)
def test_groups_of_a_net_are_the_rows_of_its_first_layer(optimizer):
    X, y = make_sparse_problem(n_features=20)
    estimator = MLPClassifier(
        (6,),
        activation="tanh",
        penalty=GroupL1(),
        alpha=1.0,
        optimizer=optimizer,
        batch_size=20,
        max_iter=50,
        tol=None,
        random_state=0,
    )
    model = clone(estimator).fit(X, y)
    kept = model.coefs_[0].any(axis=1)
    assert kept.sum() <= 10
    assert (model.coefs_[0][kept] != 0).all()
    # The layers above are not penalised.
    assert (model.coefs_[1] != 0).all()


@parametrize(TAKES_GROUPS)
def test_one_step_with_groups_is_the_prox_of_the_step_without(optimizer):
    if optimizer.is_full_batch:
        return  # tests/test_full_batch.py
    X, scores = make_data()
    y, start = scores.argmax(axis=1), np.random.default_rng(0).standard_normal((3, 12))
    settings = {"batch_size": 90, "max_iter": 1, "tol": None, "shuffle": False}

    def coef(penalty, optimizer):
        model = SGDClassifier(
            "multinomial", penalty=penalty, alpha=0.4, optimizer=optimizer, **settings
        )
        return model.fit(X, y, coef_init=start).coef_.T

    plain = coef(None, optimizer)
    rate = optimizer.learning_rates(np.array([1]))[0]
    gain = optimizer.scalars(np.array([1])).get("stationary_gain", 1.0)
    np.testing.assert_allclose(
        coef(GroupL1(), optimizer), GroupL1().prox(plain, 0.4 * rate * gain), rtol=1e-12, atol=1e-15
    )


# --- Refusals -------------------------------------------------------------------------------------

NO_GROUPS = {name: o for name, o in OPTIMIZERS.items() if name not in TAKES_GROUPS}


@parametrize(NO_GROUPS)
def test_a_refused_group_penalty_is_named_with_its_remedy(optimizer):
    X, y = make_sparse_problem(n_features=6)
    for estimator in (SGDClassifier(), MLPClassifier((2,))):
        estimator.set_params(optimizer=optimizer, penalty=GroupL1())
        with pytest.raises(ValueError, match=r"penalty=GroupL1\(\).*use optimizer=") as error:
            estimator.fit(X, y)
        assert type(optimizer).__name__ in str(error.value)
        assert "ProximalGradient(" in str(error.value)
        assert not hasattr(estimator, "optimizer_state_")


@pytest.mark.parametrize("penalty", [NonNegative(), Box(), Box(0, np.inf)])
def test_lbfgs_refuses_constraints(penalty):
    X, y = make_sparse_problem(n_features=6)
    for estimator in (SGDRegressor(), MLPRegressor(hidden_layer_sizes=(2,))):
        estimator.set_params(optimizer=LBFGS(), penalty=penalty)
        with pytest.raises(
            ValueError, match=re.escape("ProximalGradient(full_batch=True)")
        ) as error:
            estimator.fit(X, y)
        assert "penalty=" in str(error.value)
        assert "LBFGS" in str(error.value)


# --- Weights that have had no gradient ------------------------------------------------------------


@parametrize(ELEMENTWISE)
def test_a_penalty_spares_weights_without_gradients_so_far(optimizer):
    """With no gradient seen, rate / denominator is huge: L2 must not wipe given weights out."""
    rng = np.random.default_rng(0)
    X = sp.random_array((300, 100), density=0.02, format="csr", rng=rng)
    X.data[:] = 1.0
    coef = rng.standard_normal((1, 100))
    y = (X @ coef[0] > 0).astype(int)
    model = SGDClassifier("log_loss", optimizer=optimizer, max_iter=1, tol=None, random_state=0)
    model.set_params(alpha=1e-4, batch_size=150)
    model.fit(X, y, coef_init=coef)
    # Two steps of at most twice the rate, and what the gradients do.
    assert np.linalg.norm(model.coef_) > 0.6 * np.linalg.norm(coef)
