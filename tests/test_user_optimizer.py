"""An optimizer written by a user, as the documentation says, works like the built-in ones."""

import pickle
import re

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim.optimizers import SGD, Adam, Optimizer, ProximalGradient
from skoptim.penalties import L1, Box, GroupL1, NonNegative, Penalty, PenaltyTerms
from skoptim.schedules import Adaptive, Cosine, Warmup


class AdaBelief(Optimizer):
    """AdaBelief: Adam whose second moment is that of the surprise, g - m.

    Zhuang et al. (2020), "AdaBelief optimizer: adapting stepsizes by the belief in observed
    gradients", algorithm 2.
    """

    slots = ("mean", "surprise")

    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def update(self, xp, w, g, slots, scalars):
        """Take one step in place."""
        mean, surprise, t = slots["mean"], slots["surprise"], scalars["step"]
        mean += (1 - self.beta_1) * (g - mean)
        surprise += (1 - self.beta_2) * ((g - mean) ** 2 - surprise) + self.epsilon
        step_size = scalars["learning_rate"] / (1 - self.beta_1**t)
        step_size = step_size / (xp.sqrt(surprise / (1 - self.beta_2**t)) + self.epsilon)
        w -= step_size * mean
        return step_size


class Tuned(Optimizer):
    """All that the base offers: own scalars, coupled L2, decay, clipping; one size for all."""

    slots = ("velocity",)
    uniform = True

    def __init__(
        self,
        learning_rate=0.01,
        half_life=10.0,
        l2=0.0,
        weight_decay=0.0,
        clip_norm=None,
        clip_value=None,
    ):
        self.learning_rate = learning_rate
        self.half_life = half_life
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    def scalars(self, steps):
        """Return the momentum, which grows to that of the half-life."""
        full = 0.5 ** (1 / self.half_life)
        return {"momentum": np.minimum(full, steps / (steps + 2.0)), "constant": 1.0}

    def update(self, xp, w, g, slots, scalars):
        """Take one step in place."""
        velocity = slots["velocity"]
        velocity *= scalars["momentum"]
        velocity += scalars["constant"] * g
        w -= scalars["learning_rate"] * velocity
        # A constant gradient moves w by this much of it: the metric of L1.
        return scalars["learning_rate"] / (1 - scalars["momentum"])


class PlainSGD(Optimizer):
    """The least that is needed."""

    def __init__(self, learning_rate=0.01):
        self.learning_rate = learning_rate

    def update(self, xp, w, g, slots, scalars):
        """Take one step in place."""
        w -= scalars["learning_rate"] * g


class WithoutUpdate(Optimizer):
    """A class whose author forgot the rule."""

    def __init__(self, learning_rate=0.01):
        self.learning_rate = learning_rate


ESTIMATORS = {
    "SGDClassifier": SGDClassifier("log_loss", batch_size=8, random_state=0),
    "SGDRegressor": SGDRegressor("squared_error", batch_size=8, random_state=0),
    "MLPClassifier": MLPClassifier((16,), batch_size=16, random_state=0),
    "MLPRegressor": MLPRegressor("squared_error", (16,), batch_size=16, random_state=0),
}
EACH = pytest.mark.parametrize("name", ESTIMATORS)
OPTIMIZERS = {
    "adabelief": AdaBelief(0.02),
    "tuned": Tuned(0.01, l2=0.01, weight_decay=0.05, clip_norm=2.0, clip_value=0.5),
    "plain": PlainSGD(0.05),
}
EVERY = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def make_data(name, n_samples=200, n_features=10, dtype=np.float64):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features)) * (rng.random((n_samples, n_features)) < 0.6)
    score = X @ np.append(np.linspace(-3, 3, n_features - 1), 0)
    y = score if name.endswith("Regressor") else np.digitize(score, [-2, 2])
    return X.astype(dtype), y


def parameters(model):
    if hasattr(model, "coefs_"):
        return np.concatenate([a.ravel() for a in (*model.coefs_, *model.intercepts_)])
    return np.append(model.coef_, model.intercept_)


# --- By hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_by_hand_it_equals_the_formula_summed_up(dtype):
    """The moments in closed form, as weighted sums over all gradients, in exact order."""
    rng = np.random.default_rng(0)
    gradients = (rng.standard_normal((30, 5)) * 10.0 ** rng.uniform(-3, 3, (30, 5))).astype(dtype)
    optimizer = AdaBelief(0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-6)
    w = np.ones(5, dtype=dtype)
    state = optimizer.init(w)
    assert set(state.slots) == {"mean", "surprise"}
    expected = np.ones(5)
    exact = gradients.astype(np.float64)
    for t in range(1, 31):
        optimizer.step(w, gradients[t - 1], state)
        means = [
            0.2 * sum(0.8 ** (s - r) * exact[r - 1] for r in range(1, s + 1))
            for s in range(1, t + 1)
        ]
        surprise = sum(
            0.95 ** (t - s) * (0.05 * (exact[s - 1] - means[s - 1]) ** 2 + 1e-6)
            for s in range(1, t + 1)
        )
        step_size = 0.1 / (1 - 0.8**t) / (np.sqrt(surprise / (1 - 0.95**t)) + 1e-6)
        expected = expected - step_size * means[-1]
        rtol = 1e-10 if dtype == np.float64 else 1e-4
        for actual, value in (
            (state.slots["mean"], means[-1]),
            (state.slots["surprise"], surprise),
        ):
            np.testing.assert_allclose(
                actual, value, rtol=rtol, atol=rtol * abs(value).max() * 1e-3
            )
        np.testing.assert_allclose(w, expected, rtol=rtol, atol=rtol)
    assert state.step == 30
    assert w.dtype == state.slots["mean"].dtype == dtype


def test_by_hand_with_all_that_the_base_offers():
    optimizer = Tuned(0.1, half_life=4.0, l2=0.5, weight_decay=0.3, clip_norm=3.0, clip_value=1.5)
    rng = np.random.default_rng(1)
    w = rng.standard_normal(6)
    expected, velocity = w.copy(), np.zeros(6)
    state = optimizer.init(w)
    for t in range(1, 8):
        g = 2 * rng.standard_normal(6)
        kept = g.copy()
        optimizer.step(w, g, state)
        np.testing.assert_array_equal(g, kept, err_msg="the caller's gradient was changed")
        clipped = np.clip(g * min(1, 3.0 / np.linalg.norm(g)), -1.5, 1.5) + 0.5 * expected
        velocity = min(0.5**0.25, t / (t + 2)) * velocity + clipped
        expected = expected * (1 - 0.1 * 0.3) - 0.1 * velocity
        np.testing.assert_allclose(w, expected, rtol=1e-13)
        np.testing.assert_allclose(state.slots["velocity"], velocity, rtol=1e-13)


@pytest.mark.parametrize("settings", [{}, {"l2": 0.5}, {"clip_norm": 100.0}, {"clip_value": 1.0}])
def test_by_hand_the_callers_gradient_is_not_changed(settings):
    optimizer, w, g = Tuned(0.1, **settings), np.ones(4), np.linspace(-2, 2, 4)
    kept = g.copy()
    optimizer.step(w, g, optimizer.init(w))
    np.testing.assert_array_equal(g, kept)


@EVERY
def test_lists_of_arrays_and_shapes(optimizer):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((3, 2)), rng.standard_normal(4)]
    flat = np.concatenate([a.ravel() for a in arrays])
    state, flat_state = optimizer.init(arrays), optimizer.init(flat)
    for _ in range(5):
        gradients = [rng.standard_normal(a.shape) for a in arrays]
        optimizer.step(arrays, gradients, state)
        optimizer.step(flat, np.concatenate([g.ravel() for g in gradients]), flat_state)
    np.testing.assert_allclose(np.concatenate([a.ravel() for a in arrays]), flat, rtol=1e-14)


def test_the_same_rule_as_a_built_in_one_gives_the_same_model():
    """A user's Adam in array code follows the compiled Adam."""

    class MyAdam(Optimizer):
        slots = ("m", "v")

        def __init__(self, learning_rate=1e-3):
            self.learning_rate = learning_rate

        def update(self, xp, w, g, slots, scalars):
            m, v, t = slots["m"], slots["v"], scalars["step"]
            m *= 0.9
            m += (1 - 0.9) * g
            v *= 0.999
            v += (1 - 0.999) * g**2
            denominator = xp.sqrt(v) / np.sqrt(1 - 0.999**t) + 1e-8
            step_size = scalars["learning_rate"] / (1 - 0.9**t) / denominator
            w -= step_size * m
            return step_size

    for theirs, ours in ((MyAdam(0.02), Adam(0.02)), (PlainSGD(0.05), SGD(0.05))):
        for name, estimator in ESTIMATORS.items():
            X, y = make_data(name)
            # The compiled Adam bounds what L1 and L2 do to weights without gradients so far.
            smooth = (None, NonNegative(), Box(-0.2, 0.3))
            penalties = smooth if theirs.slots else (*smooth, "l2", "l1", "elasticnet")
            for penalty in penalties:
                for average in (False, True) if name.startswith("SGD") else (False,):
                    model = clone(estimator).set_params(
                        max_iter=4, tol=None, penalty=penalty, alpha=0.01
                    )
                    if average:
                        model.set_params(average=True)
                    # A class within a function cannot be cloned by pickling, but it is copied.
                    actual = parameters(clone(model).set_params(optimizer=theirs).fit(X, y))
                    expected = parameters(clone(model).set_params(optimizer=ours).fit(X, y))
                    np.testing.assert_allclose(
                        actual, expected, rtol=0, atol=1e-9 * abs(expected).max(), err_msg=name
                    )
                    np.testing.assert_array_equal(actual == 0, expected == 0)


# --- In the estimators ----------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EACH
@EVERY
def test_it_trains_every_estimator(optimizer, name, sparse):
    X, y = make_data(name)
    data = sp.csr_matrix(X) if sparse else X
    before = pickle.dumps(optimizer)
    model = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, max_iter=80, tol=None)
    model.fit(data, y)
    assert model.loss_curve_[-1] < 0.6 * model.loss_curve_[0]
    assert model.score(data, y) > 0.85
    assert type(model.optimizer_) is type(optimizer)
    assert set(model.optimizer_state_.slots) == set(type(optimizer).slots)
    assert model.optimizer_state_.step == 80 * -(-200 // model.batch_size)
    assert pickle.dumps(optimizer) == before


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("penalty", [None, "l1", "l2", "elasticnet", NonNegative(), Box(-0.1, 0.2)])
@EACH
@EVERY
def test_csr_equals_dense(optimizer, name, penalty, dtype):
    X, y = make_data(name, n_samples=60, dtype=dtype)
    X[:, 4], X[7] = 0, 0
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=optimizer, penalty=penalty, alpha=0.01, max_iter=4, tol=None
    )
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    expected = parameters(dense)
    assert expected.dtype == parameters(sparse).dtype == dtype
    tolerance = 1e-9 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(
        parameters(sparse), expected, rtol=0, atol=tolerance * abs(expected).max()
    )
    for slot in sparse.optimizer_state_.slots.values():
        assert slot.dtype == dtype


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EACH
def test_partial_fit_pickle_and_warm_start(name, sparse):
    X, y = make_data(name)
    data = sp.csr_matrix(X) if sparse else X
    model = clone(ESTIMATORS[name]).set_params(optimizer=AdaBelief(0.02), tol=None)
    at_once = clone(model).set_params(max_iter=4).fit(data, y)
    first = {"classes": np.unique(y)} if name.endswith("Classifier") else {}
    model.partial_fit(data, y, **first).partial_fit(data, y)
    model = pickle.loads(pickle.dumps(model))
    model.partial_fit(data, y).partial_fit(data, y)
    np.testing.assert_array_equal(parameters(model), parameters(at_once))
    for slot in AdaBelief.slots:
        np.testing.assert_array_equal(
            model.optimizer_state_.slots[slot], at_once.optimizer_state_.slots[slot]
        )
    warm = clone(model).set_params(max_iter=2, warm_start=True).fit(data, y).fit(data, y)
    np.testing.assert_array_equal(parameters(warm), parameters(at_once))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EVERY
def test_l1_gives_exact_zeros_that_grow_with_alpha(optimizer, sparse):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((150, 30))
    y = (X[:, 0] - X[:, 1] + 0.3 * rng.standard_normal(150) > 0).astype(int)
    data = sp.csr_matrix(X) if sparse else X
    zeros = []
    for alpha in (0.0, 0.02, 0.1, 2.0):
        model = SGDClassifier(
            "log_loss",
            penalty="l1",
            alpha=alpha,
            optimizer=optimizer,
            batch_size=150,
            max_iter=500,
            tol=None,
            random_state=0,
        ).fit(data, y)
        zeros.append(int(np.sum(model.coef_ == 0)))
        assert alpha > 0.02 or model.coef_[0, :2].all()
    assert zeros[0] == 0
    assert zeros == sorted(zeros)
    assert zeros[1] >= 10
    assert zeros[-1] == 30


def test_l1_in_its_own_metric_reaches_the_optimum():
    """The step size that `update` returns makes the fixed point that of the objective."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((100, 8)) * np.logspace(-1, 1, 8)
    y = X @ (np.linspace(-2, 2, 8) / np.logspace(-1, 1, 8)) + 0.1 * rng.standard_normal(100)
    settings = {"loss": "squared_error", "penalty": "l1", "alpha": 0.3, "tol": None}
    best = SGDRegressor(
        optimizer=ProximalGradient(0.01, full_batch=True),
        **settings | {"max_iter": 5000, "tol": 1e-10},
    ).fit(X, y)
    model = SGDRegressor(
        optimizer=AdaBelief(Cosine(0.02, 4000, final=1e-6)),
        batch_size=100,
        max_iter=4000,
        **settings,
    ).fit(X, y)
    # 4000 steps with a rate that falls to nothing.
    np.testing.assert_allclose(model.coef_, best.coef_, rtol=0, atol=1e-3 * abs(best.coef_).max())
    np.testing.assert_array_equal(model.coef_ == 0, best.coef_ == 0)


@EVERY
def test_constraints_hold_exactly(optimizer):
    X, y = make_data("SGDRegressor")
    for penalty, lower, upper in ((NonNegative(), 0, np.inf), (Box(-0.1, 0.2), -0.1, 0.2)):
        for name in ("SGDRegressor", "MLPRegressor"):
            model = clone(ESTIMATORS[name]).set_params(
                optimizer=optimizer, penalty=penalty, max_iter=3, tol=None
            )
            model.fit(sp.csr_matrix(X), y)
            coefs = model.coefs_ if name == "MLPRegressor" else [model.coef_]
            assert min(coef.min() for coef in coefs) >= lower
            assert max(coef.max() for coef in coefs) <= upper


def test_groups_need_one_step_size_for_all():
    X, y = make_data("SGDClassifier")
    model = SGDClassifier(
        "multinomial", penalty=GroupL1(), alpha=0.05, batch_size=200, max_iter=300, tol=None
    )
    with pytest.raises(ValueError, match=r"penalty=GroupL1\(\).*AdaBelief.*use optimizer=SGD\(\)"):
        clone(model).set_params(optimizer=AdaBelief()).fit(X, y)
    tuned = clone(model).set_params(optimizer=Tuned(0.05, half_life=1.0)).fit(X, y)
    gone = ~tuned.coef_.any(axis=0)
    assert gone[-1]
    assert 0 < gone.sum() < 10
    assert (tuned.coef_[:, ~gone] != 0).all()


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(0.05, total_steps=60, final=1e-3),
        Warmup(0.03, 20),
        lambda steps: 0.3 / np.sqrt(steps),
    ],
    ids=["cosine", "warmup", "callable"],
)
@EACH
def test_a_schedule_works_with_it(name, schedule):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=AdaBelief(schedule), max_iter=20, tol=None, shuffle=False
    )
    model.fit(X, y)
    per_epoch = -(-200 // model.batch_size)
    steps = np.arange(1, 21) * per_epoch
    np.testing.assert_allclose(model.history_["learning_rate"], schedule(steps), rtol=1e-12)
    assert model.loss_ < model.loss_curve_[0]
    # By hand, batch by batch, the same comes out.
    if name == "SGDRegressor":
        optimizer, w = AdaBelief(schedule), np.zeros(11)
        state = optimizer.init(w)
        for start in list(range(0, 200, 8)) * 20:
            part = np.column_stack([X[start : start + 8], np.ones(8)])
            gradient = part.T @ (part @ w - y[start : start + 8]) / 8
            optimizer.step(w, gradient, state)
        plain = clone(model).set_params(penalty=None).fit(X, y)
        np.testing.assert_allclose(parameters(plain), w, rtol=1e-8)


def test_an_adaptive_schedule_works_with_it():
    X, y = make_data("SGDRegressor")
    model = SGDRegressor(
        optimizer=AdaBelief(Adaptive(0.5, factor=4.0, patience=2)),
        max_iter=200,
        tol=1e-4,
        random_state=0,
    ).fit(X, y)
    rates = np.unique(model.history_["learning_rate"])
    assert len(rates) >= 3
    np.testing.assert_allclose(rates[1:] / rates[:-1], 4.0)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_averaging_and_early_stopping(sparse):
    X, y = make_data("SGDClassifier")
    data = sp.csr_matrix(X) if sparse else X
    model = SGDClassifier(
        "multinomial", optimizer=AdaBelief(0.05), average=True, early_stopping=True, random_state=0
    ).fit(data, y)
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.score(data, y) > 0.85


# --- In scikit-learn's tools ----------------------------------------------------------------------

TEXTS = [
    "the cat sat on the mat", "a dog and a cat", "cats like milk", "the dog barks at the cat",
    "stocks fell sharply", "the market rose", "shares and stocks", "a bank raised its rates",
] * 6  # fmt: skip
LABELS = ["pets", "pets", "pets", "pets", "money", "money", "money", "money"] * 6


def test_in_a_pipeline_on_text():
    pipeline = make_pipeline(
        TfidfVectorizer(),
        SGDClassifier("log_loss", penalty="l1", optimizer=AdaBelief(0.05), max_iter=30, tol=None),
    ).fit(TEXTS, LABELS)
    assert pipeline.score(TEXTS, LABELS) == 1.0
    assert list(pipeline.predict(["a cat on the mat", "stocks rose"])) == ["pets", "money"]
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), pipeline.predict_proba(TEXTS))


@EACH
def test_in_a_grid_search(name):
    """With nested parameters, beside built-in optimizers, in parallel."""
    X, y = make_data(name)
    pipeline = make_pipeline(
        StandardScaler(), clone(ESTIMATORS[name]).set_params(max_iter=10, tol=None)
    )
    step = name.lower()
    search = GridSearchCV(
        pipeline,
        [
            {f"{step}__optimizer": [AdaBelief(0.01), Adam(0.01), SGD(0.01)]},
            {
                f"{step}__optimizer": [AdaBelief()],
                f"{step}__optimizer__learning_rate": [1e-4, 0.03],
                f"{step}__optimizer__beta_1": [0.8, 0.9],
            },
        ],
        cv=3,
        n_jobs=2,
        error_score="raise",
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 7
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(X, y) > 0.5


def test_in_a_random_search():
    X, y = make_data("SGDClassifier")
    search = RandomizedSearchCV(
        SGDClassifier("log_loss", optimizer=AdaBelief(), max_iter=5, tol=None),
        {"optimizer__learning_rate": [1e-3, 1e-2, 0.1], "alpha": [1e-5, 1e-3]},
        n_iter=4,
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert isinstance(search.best_estimator_.optimizer_, AdaBelief)


@EVERY
def test_it_is_a_scikit_learn_object(optimizer):
    assert repr(clone(optimizer)) == repr(optimizer)
    copy = clone(optimizer).set_params(learning_rate=0.5)
    assert copy.learning_rate == 0.5
    assert optimizer.learning_rate != 0.5
    assert repr(AdaBelief(learning_rate=0.01)) == "AdaBelief(learning_rate=0.01)"


# --- Mistakes -------------------------------------------------------------------------------------


@EACH
def test_a_missing_update_is_told(name):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(optimizer=WithoutUpdate())
    match = r"WithoutUpdate must define update\(self, xp, w, g, slots, scalars\)"
    with pytest.raises(NotImplementedError, match=match):
        model.fit(X, y)
    assert not hasattr(model, "optimizer_state_")
    assert not hasattr(model, "n_features_in_")
    optimizer, w = WithoutUpdate(), np.ones(2)
    with pytest.raises(NotImplementedError, match=match):
        optimizer.step(w, w.copy(), optimizer.init(w))


@EACH
def test_a_class_instead_of_an_instance_is_told(name):
    X, y = make_data(name)
    with pytest.raises(ValueError, match=r"class AdaBelief; write optimizer=AdaBelief\(\)"):
        clone(ESTIMATORS[name]).set_params(optimizer=AdaBelief).fit(X, y)


@EACH
def test_a_bad_rate_is_told(name):
    X, y = make_data(name)
    for rate in (-0.1, 0.0, np.nan, "fast", None):
        with pytest.raises(ValueError, match=r"'learning_rate' parameter of AdaBelief"):
            clone(ESTIMATORS[name]).set_params(optimizer=AdaBelief(rate)).fit(X, y)


@EACH
def test_divergence_is_told(name):
    X, y = make_data(name)

    class Exploding(Optimizer):
        def __init__(self, learning_rate=1.0):
            self.learning_rate = learning_rate

        def update(self, xp, w, g, slots, scalars):
            w += 1e300 * (1 + abs(g))
            w *= 1e300

    with pytest.raises(ValueError, match=r"diverged.*Exploding.*learning rate"):
        clone(ESTIMATORS[name]).set_params(optimizer=Exploding()).fit(X, y)


def test_no_attribute_is_called_dtype():
    """It confuses the result table of a grid search."""
    assert not hasattr(AdaBelief(), "dtype")


class InterruptedSGD(Optimizer):
    """Plain steps, until Ctrl-C in step 25."""

    def __init__(self, learning_rate=0.1):
        self.learning_rate = learning_rate

    def update(self, xp, w, g, slots, scalars):
        if scalars["step"] == 25:
            raise KeyboardInterrupt
        w -= scalars["learning_rate"] * g


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_an_average_counts_the_steps_that_an_interrupt_let_it_take(sparse):
    X = np.ones((10, 1))
    model = SGDRegressor(
        optimizer=InterruptedSGD(), penalty=None, average=True, max_iter=5, tol=None
    )
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(sp.csr_matrix(X) if sparse else X, np.full(10, 3.0))
    state = model.optimizer_state_
    assert state.step == state.carries["averaged_steps"] == 24
    # From 0 on, coefficient and intercept have moved together to a half of 3.
    steps = np.arange(1, 25)
    expected = np.mean(1.5 * (1 - 0.8**steps))
    np.testing.assert_allclose(model.coef_, [expected], rtol=1e-12)


class Rebinding(Optimizer):
    """Puts a new array where its slot was."""

    slots = ("average",)

    def __init__(self, learning_rate=0.1):
        self.learning_rate = learning_rate

    def update(self, xp, w, g, slots, scalars):
        slots["average"] = 0.9 * slots["average"] + g
        w -= scalars["learning_rate"] * slots["average"]


def test_rebound_slots_are_refused():
    message = re.escape("write slots['average'][...] = value")
    w = np.zeros(3)
    optimizer = Rebinding()
    with pytest.raises(ValueError, match=message):
        optimizer.step(w, np.ones(3), optimizer.init(w))
    with pytest.raises(ValueError, match=message):
        SGDClassifier(optimizer=Rebinding()).fit(np.eye(4), [0, 1, 0, 1])


def test_one_string_is_no_tuple_of_slots():
    class Forgotten(Rebinding):
        slots = "average"

    with pytest.raises(ValueError, match=re.escape("slots = ('average',)")):
        Forgotten().init(np.zeros(2))


def test_an_update_that_a_compiled_rule_hides_is_told():
    class Hidden(Adam):
        def update(self, xp, w, g, slots, scalars):
            raise AssertionError("never called")

    with pytest.raises(ValueError, match=r"Hidden defines update.*'adam'.*subclass Optimizer"):
        SGDClassifier(optimizer=Hidden()).fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="Hidden defines update"):
        Hidden().init(np.ones(2))


def test_a_missing_learning_rate_is_told():
    class Fixed(Optimizer):
        def update(self, xp, w, g, slots, scalars):
            w -= 0.1 * g

    with pytest.raises(ValueError, match="Fixed needs an attribute learning_rate"):
        MLPClassifier((2,), optimizer=Fixed()).fit(np.eye(4), [0, 1, 0, 1])


def test_a_penalty_of_ones_own_is_made_of_terms():
    class Empty(Penalty):
        pass

    class Hidden(L1):
        def prox(self, w, step):
            raise AssertionError("never called")

    class Half(Penalty):
        def terms(self):
            return PenaltyTerms(l1=0.5)

    X, y = np.eye(4), [0, 1, 0, 1]
    with pytest.raises(NotImplementedError, match="Empty must define terms"):
        SGDClassifier(penalty=Empty()).fit(X, y)
    with pytest.raises(ValueError, match=r"Hidden.*define terms"):
        SGDClassifier(penalty=Hidden()).fit(X, y)
    shared = dict(optimizer="lbfgs", tol=1e-9, max_iter=1000)
    half = SGDClassifier("log_loss", penalty=Half(), alpha=0.02, **shared).fit(X, y)
    whole = SGDClassifier("log_loss", penalty=L1(), alpha=0.01, **shared).fit(X, y)
    np.testing.assert_array_equal(half.coef_, whole.coef_)
