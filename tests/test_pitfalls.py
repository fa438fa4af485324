"""What users of other libraries ran into, each made sure of here.

Issue numbers are those of scikit-learn (sk) unless another tracker is named.
"""

import multiprocessing
import pickle
import tracemalloc
import warnings

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from optimizer_table import ELEMENTWISE, OPTIMIZERS
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier, BaggingRegressor
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim import losses as losses_module
from skoptim import optimizers as optimizers_module
from skoptim import penalties as penalties_module
from skoptim import schedules as schedules_module
from skoptim._validation import hold_out
from skoptim.optimizers import FTRL, LBFGS, SGD, Adam, ProximalGradient
from skoptim.penalties import NonNegative
from skoptim.schedules import Adaptive, Cosine

# Whether these short fits converged is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ESTIMATORS = {
    "SGDClassifier": SGDClassifier("log_loss", random_state=0),
    "SGDRegressor": SGDRegressor("huber", random_state=0),
    "MLPClassifier": MLPClassifier((5,), batch_size=16, random_state=0),
    "MLPRegressor": MLPRegressor("huber", (5,), batch_size=16, random_state=0),
}
EACH = pytest.mark.parametrize("name", ESTIMATORS)


def parametrize(table):
    return pytest.mark.parametrize("optimizer", table.values(), ids=table.keys())


def make_data(name="SGDClassifier", n_samples=60, n_features=8, n_classes=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features)).astype(dtype)
    score = X @ rng.standard_normal((n_features, n_classes)) + rng.standard_normal(
        (n_samples, n_classes)
    )
    return X, score[:, 0] if name.endswith("Regressor") else score.argmax(axis=1)


def parameters(model):
    if hasattr(model, "coefs_"):
        return np.concatenate([a.ravel() for a in (*model.coefs_, *model.intercepts_)])
    return np.append(model.coef_, model.intercept_)


def assert_same_model(actual, expected, *, rounded=False):
    """Assert that two models are equal to the last bit, the state of the optimizer included.

    If they are `rounded`, compare the parameters alone, up to rounding.
    """
    state, other = actual.optimizer_state_, expected.optimizer_state_
    assert state.step == other.step
    if rounded or state.carries.get("target_n", 0) != other.carries.get("target_n", 0):
        # Targets were measured block by block, and their deviation is rounded otherwise.
        np.testing.assert_allclose(parameters(actual), parameters(expected), rtol=1e-9, atol=1e-12)
        return
    np.testing.assert_array_equal(parameters(actual), parameters(expected))
    # Each call of partial_fit measures the units of its block; a fit measures once.
    counts = {"samples_seen"}
    assert {k: v for k, v in state.carries.items() if k not in counts} == {
        k: v for k, v in other.carries.items() if k not in counts
    }
    assert state.slots.keys() == other.slots.keys()
    for name, slot in state.slots.items():
        for a, b in zip(slot, other.slots[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def first_classes(name, y):
    return {"classes": np.unique(y)} if name.endswith("Classifier") else {}


# --- 1 to 6: state and cloning --------------------------------------------------------------------


@EACH
@parametrize(OPTIMIZERS)
def test_1_one_optimizer_in_two_estimators(optimizer, name):
    """States are independent, and the user's object is unchanged."""
    X, y = make_data(name)
    before = pickle.dumps(optimizer)
    attributes = set(vars(optimizer))
    first, second, alone = (
        clone(ESTIMATORS[name]).set_params(optimizer=optimizer, max_iter=3, tol=None)
        for _ in range(3)
    )
    # clone makes copies: the object itself is given to two estimators.
    first.optimizer = second.optimizer = optimizer
    first.fit(X, y)
    kept = pickle.dumps((first.optimizer_state_.slots, first.optimizer_state_.step))
    second.fit(X[::-1] * 2, y[::-1])
    assert pickle.dumps((first.optimizer_state_.slots, first.optimizer_state_.step)) == kept
    assert pickle.dumps(optimizer) == before
    assert set(vars(optimizer)) == attributes
    assert first.optimizer is optimizer
    assert first.optimizer_ is not optimizer
    assert_same_model(first, alone.fit(X, y))
    if not optimizer.is_full_batch:
        second.partial_fit(X, y)
        assert pickle.dumps((first.optimizer_state_.slots, first.optimizer_state_.step)) == kept


def public_objects():
    """Return an instance of every public class with hyper-parameters."""
    needed = {
        "Constant": (0.1,),
        "InverseScaling": (0.1,),
        "Exponential": (0.1, 0.9),
        "Step": (0.1, 10),
        "Cosine": (0.1, 100),
        "OneCycle": (0.1, 100),
        "Warmup": (Cosine(0.1, 100), 5),
        "Adaptive": (0.1,),
    }
    abstract = {"Optimizer", "OptimizerState", "Loss", "Penalty", "PenaltyTerms", "Schedule"}
    for module in (optimizers_module, schedules_module, losses_module, penalties_module):
        for name in module.__all__:
            cls = getattr(module, name)
            if isinstance(cls, type) and name not in abstract:
                yield cls(*needed.get(name, ()))
    yield from ESTIMATORS.values()


@pytest.mark.parametrize("thing", list(public_objects()), ids=lambda thing: type(thing).__name__)
def test_2_clone_pickle_and_constructors(thing):
    """No constructor mutates or copies its arguments (scikeras#70, sk#29157)."""
    params = thing.get_params(deep=False)
    again = type(thing)(**params)
    for key, value in params.items():
        assert getattr(again, key) is value
    assert repr(clone(thing)) == repr(thing)
    assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)
    # An attribute of this name confuses GridSearchCV's result table.
    assert not hasattr(thing, "dtype")


def test_2_grid_search_over_optimizers():
    """All kinds of optimizers in one grid, in parallel (scikeras#70, sk#29157)."""
    X, y = make_data(n_samples=90)
    candidates = [SGD(), Adam(), FTRL(), LBFGS(), ProximalGradient(1.0, full_batch=True), "adagrad"]
    reprs = [repr(candidate) for candidate in candidates]
    search = GridSearchCV(
        SGDClassifier("log_loss", max_iter=5, tol=None, random_state=0),
        {"optimizer": candidates, "alpha": [1e-4, 1e-2]},
        cv=2,
        n_jobs=2,
        error_score="raise",
    ).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert [repr(candidate) for candidate in candidates] == reprs
    assert {repr(o) for o in search.cv_results_["param_optimizer"]} == {*map(repr, candidates)}
    nested = GridSearchCV(
        MLPClassifier((4,), optimizer=SGD(momentum=0.9), max_iter=3, tol=None, random_state=0),
        {"optimizer__learning_rate": [0.01, Cosine(0.1, 20)], "optimizer__nesterov": [True, False]},
        cv=2,
        n_jobs=2,
        error_score="raise",
    ).fit(X, y)
    assert nested.best_estimator_.optimizer_.momentum == 0.9
    assert nested.estimator.optimizer.learning_rate == SGD().learning_rate


@EACH
@parametrize(ELEMENTWISE)
def test_3_a_pickled_model_goes_on_as_the_unpickled_one(optimizer, name):
    """Slots and counters travel with the model (scikeras#126)."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, penalty="l1", alpha=1e-3)
    model.partial_fit(X[:30], y[:30], **first_classes(name, y))
    copy = pickle.loads(pickle.dumps(model))
    for part in (slice(30, 60), slice(0, 45)):
        model.partial_fit(X[part], y[part])
        copy.partial_fit(X[part], y[part])
    assert_same_model(copy, model)
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("shuffle", [False, True])
@EACH
@parametrize(ELEMENTWISE)
def test_4_partial_fits_equal_one_fit(optimizer, name, shuffle, sparse):
    """N calls on the same X are fit(max_iter=n); warm_start resets nothing (sk#6091)."""
    X, y = make_data(name)
    X = sp.csr_matrix(X) if sparse else X
    estimator = clone(ESTIMATORS[name]).set_params(
        optimizer=optimizer, shuffle=shuffle, tol=None, penalty="l1", alpha=1e-3
    )
    at_once = clone(estimator).set_params(max_iter=5).fit(X, y)
    model = clone(estimator)
    for _ in range(5):
        model.partial_fit(X, y, **first_classes(name, y))
    assert_same_model(model, at_once)
    # What is met along a stream is the loss alone.
    layers = getattr(model, "coefs_", None) or [model.coef_]
    penalty = 1e-3 * sum(np.abs(layer).sum() for layer in layers)
    np.testing.assert_allclose(model.loss_ + penalty, at_once.loss_, rtol=1e-12)
    assert (model.n_iter_, model.t_) == (at_once.n_iter_, at_once.t_) == (5, 300)
    warm = clone(estimator).set_params(max_iter=2, warm_start=True).fit(X, y)
    # Weights that are stored over the product of all decays are brought back to their size at the
    # end of `fit`.
    scaled = sparse and name.startswith("SGD") and optimizer.rule == "sgd"
    assert_same_model(warm.set_params(max_iter=3).fit(X, y), at_once, rounded=scaled)


@pytest.mark.parametrize("average", [True, 70])
def test_4_with_averaging(average):
    X, y = make_data()
    estimator = SGDClassifier(
        "log_loss", average=average, tol=None, random_state=0, optimizer=SGD(0.1)
    )
    at_once = clone(estimator).set_params(max_iter=4).fit(X, y)
    model = clone(estimator)
    for _ in range(4):
        model.partial_fit(X, y, classes=[0, 1, 2])
    np.testing.assert_array_equal(model.coef_, at_once.coef_)
    warm = clone(estimator).set_params(max_iter=2, warm_start=True).fit(X, y).fit(X, y)
    np.testing.assert_array_equal(warm.coef_, at_once.coef_)
    # Training went on from the last weights, not from their average.
    plain = clone(estimator).set_params(average=False, max_iter=4).fit(X, y)
    np.testing.assert_array_equal(model.optimizer_state_.slots["parameters"][:3], plain.coef_[:, 0])
    # Without averaging the next call publishes the weights themselves.
    model.set_params(average=False).partial_fit(X, y)
    np.testing.assert_array_equal(model.coef_, plain.partial_fit(X, y).coef_)


@EACH
@parametrize(OPTIMIZERS)
def test_5_warm_start_reuses_the_weights(optimizer, name):
    """n_iter_ is bounded by max_iter and the loss starts where it ended (sk#8713, sk#24764)."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=optimizer, max_iter=15, tol=None, warm_start=True, penalty=None
    )
    model.fit(X, y)
    cold, end = model.loss_curve_[0], model.loss_curve_[-1]
    assert model.n_iter_ == len(model.loss_curve_) <= 15
    model.set_params(max_iter=4).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) <= 4
    # The first epoch is not met with the start's loss again (or with that of the end, where weight
    # decay lets losses rise); 5 % are the noise of constant rates.
    assert model.loss_curve_[0] != cold
    assert model.loss_curve_[0] < max(cold, end) + 0.05 * abs(cold)
    assert abs(model.loss_curve_[0] - end) < max(0.5 * abs(cold - end), 0.05 * abs(cold))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@parametrize(OPTIMIZERS)
def test_5_coef_init_is_used(optimizer, sparse):
    """Started at a solution, in numbers that leave no rounding, nothing is left to be done."""
    X, _ = make_data("SGDRegressor", n_features=4)
    X = np.round(8 * X) / 8
    coef, intercept = np.array([30.0, -20.0, 10.0, 5.0]), np.array([-7.0])
    data = sp.csr_matrix(X) if sparse else X
    model = SGDRegressor(optimizer=optimizer, penalty=None, max_iter=1, tol=None, random_state=0)
    model.fit(data, X @ coef + intercept, coef_init=coef, intercept_init=intercept)
    if any(getattr(optimizer, name, 0) for name in ("l1", "l2", "weight_decay")):
        # These shrink the weights all the same.
        assert np.corrcoef(model.coef_, coef)[0, 1] > 0.9
        return
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-10)
    assert model.loss_ < 1e-18


@EACH
def test_6_early_stopping_then_partial_fit(name):
    """One clear error, and with early_stopping=False it works (sk#25693)."""
    X, y = make_data(name)
    model = (
        clone(ESTIMATORS[name])
        .set_params(early_stopping=True, max_iter=5, optimizer="adam")
        .fit(X, y)
    )
    with pytest.raises(ValueError, match="early_stopping=False"):
        model.partial_fit(X, y)
    steps = model.optimizer_state_.step
    model.set_params(early_stopping=False).partial_fit(X, y)
    assert model.optimizer_state_.step > steps


@pytest.mark.parametrize(
    "optimizer", [FTRL(0.5), FTRL(Cosine(0.5, 100, final=0.01)), FTRL(Adaptive(0.5)), SGD(0.1)]
)
@EACH
def test_6_training_goes_on_from_the_best_weights(name, optimizer):
    """The restored weights are the state's, too, where that holds them (FTRL's z)."""
    X, y = make_data(name, n_samples=200)
    model = clone(ESTIMATORS[name]).set_params(
        early_stopping=True, n_iter_no_change=6, tol=1e-3, optimizer=optimizer, penalty=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
    restored = parameters(model)
    # One step of next to no weight: nothing may jump.
    model.set_params(early_stopping=False, batch_size=10)
    model.partial_fit(X[:10], y[:10], sample_weight=np.full(10, 1e-12))
    np.testing.assert_allclose(parameters(model), restored, rtol=0, atol=1e-8)


# --- 7 to 20: numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(1e3),
        SGD(1e3, momentum=0.9),
        SGD(1e3, nesterov=True, momentum=0.5),
        ProximalGradient(1e3),
    ],
)
@pytest.mark.parametrize("name", ["SGDRegressor", "MLPRegressor"])
def test_7_divergence_is_told_with_the_learning_rate(
    name, optimizer, early_stopping, sparse, dtype
):
    """Unscaled targets and a rate of 1000: never "Input contains NaN" (sk#29504, sk#29773)."""
    X, y = make_data(name)
    X = 1e3 * X.astype(dtype)
    model = clone(ESTIMATORS[name]).set_params(
        loss="squared_error",
        optimizer=optimizer,
        early_stopping=early_stopping,
        max_iter=50,
        penalty=None,
    )
    if name == "MLPRegressor":
        model.set_params(activation="identity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"Training diverged.*learning rate") as error:
            model.fit(sp.csr_matrix(X) if sparse else X, 1e6 * y)
    assert repr(optimizer) in str(error.value)
    assert "Input contains" not in str(error.value)


@pytest.mark.parametrize("batch_size", [1, 60])
@pytest.mark.parametrize("rate", [1e3, 1e10, 1e20, 1e38])
@pytest.mark.parametrize("name", ["SGDRegressor", "MLPRegressor"])
def test_7_overflow_of_the_validation_scores(name, rate, batch_size):
    """Finite float32 weights may give infinite scores on the held-out samples."""
    X, y = make_data(name, dtype=np.float32)
    model = clone(ESTIMATORS[name]).set_params(
        loss="squared_error",
        optimizer=SGD(rate),
        early_stopping=True,
        max_iter=20,
        batch_size=batch_size,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"Training diverged.*learning rate"):
            model.fit(X, 100 * y)


@EACH
def test_8_all_held_out_rows_are_used(name):
    """A mask of small integers picked rows 0 and 1 only (sk#23255)."""
    X, y = make_data(name, n_samples=200)
    model = clone(ESTIMATORS[name]).set_params(
        early_stopping=True,
        validation_fraction=0.23,
        max_iter=1,
        tol=None,
        random_state=7,
        optimizer="adam",
    )
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))
    model.fit(X, y, sample_weight=weights)
    labels = y if name.endswith("Classifier") else None
    train, held = hold_out(200, 0.23, labels, np.random.RandomState(7))
    assert len(held) == 46
    np.testing.assert_array_equal(np.sort(np.append(train, held)), np.arange(200))
    expected = model.score(X[held], y[held], weights[held])
    assert model.validation_scores_ == [pytest.approx(expected, rel=1e-12)]
    assert model.t_ == 154
    # No held-out sample took part in the training: other values there change nothing.
    other, rng = X.copy(), np.random.default_rng(2)
    other[held] = rng.standard_normal((46, X.shape[1]))
    np.testing.assert_array_equal(
        parameters(clone(model).fit(other, y, sample_weight=weights)), parameters(model)
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
def test_8_the_loss_is_the_mean_over_the_training_rows(name, weighted):
    """Not over all rows, the held-out ones included (sk#23798)."""
    X, y = make_data(name, n_classes=2)
    model = clone(ESTIMATORS[name]).set_params(
        early_stopping=True,
        validation_fraction=0.4,
        max_iter=1,
        tol=None,
        optimizer=SGD(1e-12),
        penalty=None,
    )
    weights = np.random.default_rng(1).uniform(0, 2, len(y)) if weighted else None
    model.fit(X, y, sample_weight=weights)
    train, held = hold_out(len(y), 0.4, y, np.random.RandomState(0))
    for rows, found in ((train, model.loss_), (held, model.history_["validation_loss"][0])):
        expected = log_loss(
            y[rows],
            model.predict_proba(X[rows]),
            sample_weight=None if weights is None else weights[rows],
        )
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("early_stopping", [False, True])
@EACH
def test_9_bagging_with_early_stopping(name, early_stopping):
    """Bootstrap weights are often zero (sk#17229)."""
    X, y = make_data(name, n_samples=80, n_classes=2)
    bagging = BaggingClassifier if name.endswith("Classifier") else BaggingRegressor
    base = clone(ESTIMATORS[name]).set_params(early_stopping=early_stopping, max_iter=3, tol=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bagging(base, n_estimators=5, max_samples=0.3, random_state=0).fit(X, y)
    assert np.isfinite(model.predict(X).astype(float)).all()


@pytest.mark.parametrize("seed", range(10))
@EACH
def test_9_early_stopping_when_most_weights_are_zero(name, seed):
    """Samples that weigh nothing are no use to validate on (sk#17229)."""
    X, y = make_data(name, n_samples=100, n_classes=2)
    weights = np.zeros(100)
    weights[np.random.default_rng(seed).permutation(100)[:20]] = 2.0
    model = clone(ESTIMATORS[name]).set_params(
        early_stopping=True, max_iter=3, tol=None, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y, sample_weight=weights)
    assert np.isfinite(model.validation_scores_).all()
    assert np.isfinite(model.history_["validation_loss"]).all()
    assert np.isfinite(parameters(model)).all()
    # What weighs nothing has no influence.
    again = clone(model).fit(X + np.where(weights == 0, 1, 0)[:, None], y, sample_weight=weights)
    np.testing.assert_array_equal(parameters(again), parameters(model))
    assert again.validation_scores_ == model.validation_scores_


@EACH
@parametrize(ELEMENTWISE)
def test_9_a_partial_fit_of_no_weight_changes_nothing(optimizer, name):
    """The step counter included (sk#33436)."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, penalty="l1")
    model.partial_fit(X, y, **first_classes(name, y))
    before = {key: pickle.dumps(value) for key, value in vars(model).items()}
    model.partial_fit(X, y, sample_weight=np.zeros(len(y)))
    assert {key: pickle.dumps(value) for key, value in vars(model).items()} == before


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
def test_9_class_weights_of_zero(name):
    """A partial_fit of one class that weighs nothing changes nothing either (sk#33436)."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(class_weight={0: 1.0, 1: 0.0, 2: 2.0})
    model.partial_fit(X, y, classes=[0, 1, 2])
    before = parameters(model)
    model.partial_fit(X[y == 1], y[y == 1])
    np.testing.assert_array_equal(parameters(model), before)


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
def test_10_early_stopping_with_a_class_of_one_member(name):
    """The message says what is wrong and what to do (sk#13164)."""
    X, y = make_data(name)
    y = np.where(np.arange(len(y)) == 5, 9, y)
    model = clone(ESTIMATORS[name]).set_params(early_stopping=True, max_iter=2, tol=None)
    with pytest.raises(ValueError, match=r"early_stopping=True.*one member.*X_val and y_val"):
        model.fit(X, y)
    model.fit(X, y, X_val=X[:20], y_val=y[:20])
    assert 9 in model.classes_


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_11_partial_fit_with_classes_missing(name, sparse):
    """A batch need not hold every class (sk#6994); an unseen label raises (sk#6203)."""
    X, y = make_data(name, n_samples=300)
    y = np.array(["ant", "bee", "cat"])[y]
    data = sp.csr_matrix(X) if sparse else X
    model = clone(ESTIMATORS[name]).set_params(optimizer="adagrad")
    for label in ("ant", "bee", "cat") * 4:
        model.partial_fit(data[y == label], y[y == label], classes=["ant", "bee", "cat"])
    assert model.predict_proba(data).shape == (300, 3)
    assert set(model.predict(data)) <= {"ant", "bee", "cat"}
    before = parameters(model)
    with pytest.raises(ValueError, match=r"labels that are not in classes.*dog"):
        model.partial_fit(data[:2], ["ant", "dog"])
    np.testing.assert_array_equal(parameters(model), before)
    assert model.partial_fit(data[:1], y[:1]) is model


def test_11_multilabel_partial_fit():
    """With an indicator matrix no classes need be named (sk#12505)."""
    X, _ = make_data(n_samples=200)
    Y = (X[:, :3] + X[:, 3:6] > 0).astype(int)
    model = MLPClassifier((16,), optimizer=Adam(0.01), random_state=0)
    for _ in range(60):
        model.partial_fit(X, Y)
    assert model.predict(X).shape == Y.shape
    assert accuracy_score(Y.ravel(), model.predict(X).ravel()) > 0.95
    again = MLPClassifier((16,), optimizer=Adam(0.01), random_state=0, max_iter=60, tol=None).fit(
        X, Y
    )
    assert_same_model(model, again)
    # A batch in which one label never occurs, and a sparse indicator.
    model.partial_fit(X[Y[:, 0] == 0], Y[Y[:, 0] == 0])
    model.partial_fit(X, sp.csr_matrix(Y))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("loss", ["log_loss", "multinomial", "modified_huber"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_12_probabilities_of_extreme_scores(loss, n_classes, dtype):
    """Finite, and rows sum to one (sk#17978)."""
    X, y = make_data(n_classes=n_classes, dtype=dtype)
    model = SGDClassifier(loss, max_iter=2, tol=None, random_state=0).fit(X, y)
    model.coef_[...] = 0
    model.coef_[0, 0], model.coef_[-1, 1] = 1000, -1000
    if n_classes == 3:
        model.coef_[1, 2] = 1000
    assert_probabilities(
        model, np.vstack([np.eye(8), -np.eye(8), np.zeros((1, 8))]).astype(dtype), dtype
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_12_probabilities_of_a_net_with_extreme_scores(n_classes, dtype):
    X, y = make_data(n_classes=n_classes, dtype=dtype)
    model = MLPClassifier((5,), "identity", max_iter=1, tol=None, random_state=0).fit(X, y)
    model.coefs_[0] *= 1e4
    assert abs(model.decision_function(X)).max() > 1000
    assert_probabilities(model, X, dtype)


def assert_probabilities(model, X, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities, logs = model.predict_proba(X), model.predict_log_proba(X)
    assert probabilities.dtype == logs.dtype == dtype
    assert np.isfinite(probabilities).all()
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(
        probabilities.sum(axis=1), 1, atol=1e-6 if dtype == np.float32 else 1e-12
    )
    assert not np.isnan(logs).any()
    assert np.isfinite(log_loss(np.resize(model.classes_, len(X)), probabilities))


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
def test_12_the_log_loss_of_hopeless_float32_scores_is_finite(name):
    """And exact: it is the score itself, not a clipped logarithm (sk#16117)."""
    X = np.array([[1000.0], [-1000.0]] * 10, dtype=np.float32)
    y = np.array([0, 1] * 10)
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=SGD(1e-6), max_iter=1, tol=None, penalty=None
    )
    if name == "SGDClassifier":
        model.fit(X, y, coef_init=[[1.0]])
        assert model.loss_ == pytest.approx(1000, rel=0.01)
    else:
        model.fit(1e4 * X, y)
        assert np.isfinite(model.loss_)


def test_12_multilabel_is_not_softmax():
    """Each label has its own probability (sk#5718)."""
    X, _ = make_data(n_samples=200)
    Y = np.ones((200, 3), dtype=int)
    Y[:, 2] = X[:, 0] > 0
    model = MLPClassifier((8,), optimizer=Adam(0.02), max_iter=80, tol=None, random_state=0).fit(
        X, Y
    )
    probabilities = model.predict_proba(X)
    assert (probabilities[:, :2] > 0.9).all()
    assert model.out_activation_ == "logistic"
    assert model.predict(X)[:, :2].all()


@EACH
@parametrize(OPTIMIZERS)
def test_13_no_penalty(optimizer, name):
    """alpha=0 and penalty=None are one thing, and alpha has no effect then (sk#5329)."""
    X, y = make_data(name)
    estimator = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, max_iter=3, tol=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [
            clone(estimator).set_params(penalty=penalty, alpha=alpha).fit(X, y)
            for penalty, alpha in (
                (None, 0),
                (None, 7.0),
                ("l2", 0),
                ("l1", 0.0),
                ("elasticnet", 0),
            )
        ]
    assert np.isfinite(parameters(models[0])).all()
    for model in models[1:]:
        assert_same_model(model, models[0])


@EACH
@parametrize(OPTIMIZERS)
def test_14_csr_that_holds_dense_data(optimizer, name):
    """The storage is no property of the data (sk#11178)."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, max_iter=5, tol=None)
    dense, sparse = clone(model).fit(X, y), clone(model).fit(sp.csr_matrix(X), y)
    scale = abs(parameters(dense)).max()
    np.testing.assert_allclose(parameters(sparse), parameters(dense), rtol=0, atol=1e-9 * scale)
    assert sparse.n_iter_ == dense.n_iter_


def fit_and_return(model, X, y):
    return parameters(clone(model).fit(X, y))


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EACH
def test_15_parallel_fits_on_read_only_memory(name, sparse, backend, tmp_path):
    """Same coefficients, no crash, in each kind of worker (sk#12518, sk#13757)."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(max_iter=3, tol=None, optimizer="adam")
    expected = fit_and_return(model, sp.csr_matrix(X) if sparse else X, y)
    if sparse:
        X = sp.csr_matrix(X)
        mapped = [joblib.load(joblib.dump(a, tmp_path / n)[0], mmap_mode="r") for n, a in
                  (("data", X.data), ("indices", X.indices), ("indptr", X.indptr))]  # fmt: skip
        X = sp.csr_matrix(X.shape)
        X.data, X.indices, X.indptr = mapped
    else:
        X = joblib.load(joblib.dump(X, tmp_path / "X")[0], mmap_mode="r")
    y = joblib.load(joblib.dump(y, tmp_path / "y")[0], mmap_mode="r")
    found = joblib.Parallel(n_jobs=2, backend=backend)(
        joblib.delayed(fit_and_return)(model, X, y) for _ in range(3)
    )
    for parameters_found in found:
        np.testing.assert_array_equal(parameters_found, expected)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_15_other_ways_to_start_a_process(method):
    X, y = make_data()
    model = SGDClassifier("log_loss", max_iter=3, tol=None, random_state=0)
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply(fit_and_return, (model, X, y))
    np.testing.assert_array_equal(found, fit_and_return(model, X, y))


@EACH
@parametrize(OPTIMIZERS)
def test_15_fit_writes_nothing_of_the_callers(optimizer, name):
    """Arrays are neither shuffled, scaled, nor sorted in place, and may be read-only."""
    X, y = make_data(name)
    weights = np.random.default_rng(0).uniform(0, 2, len(y))
    sparse = sp.csr_matrix(X)
    held = [a.copy() for a in (X, y, weights, sparse.data, sparse.indices, sparse.indptr)]
    given = (X, y, weights, sparse.data, sparse.indices, sparse.indptr)
    for array in given:
        array.flags.writeable = False
    model = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, max_iter=2, tol=None)
    for data in (X, sparse):
        model.fit(data, y, weights, X_val=data, y_val=y, sample_weight_val=weights)
        model.predict(data)
        if not optimizer.is_full_batch:
            model.partial_fit(data, y, sample_weight=weights)
    for array, copy in zip(given, held, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@EACH
def test_16_index_types_and_forms_of_csr(name, index_dtype):
    """Accepted, never a crash; the model is the canonical one's (sk#2969, sk#11355)."""
    X, y = make_data(name)
    X[np.random.default_rng(0).random(X.shape) < 0.5] = 0
    X[4], X[:, 2] = 0, 0
    model = clone(ESTIMATORS[name]).set_params(max_iter=3, tol=None)
    expected = parameters(clone(model).fit(X, y))
    odd = sp.csr_matrix(X)
    # Each entry twice, in falling order of the columns, with zeros stored besides.
    data, indices, indptr = [], [], [0]
    for row in X:
        columns = np.flatnonzero(row)[::-1]
        data += [*np.repeat(row[columns] / 2, 2), 0.0]
        indices += [*np.repeat(columns, 2), 2]
        indptr.append(len(data))
    odd = sp.csr_matrix((data, np.array(indices), np.array(indptr)), shape=X.shape)
    odd.indices, odd.indptr = odd.indices.astype(index_dtype), odd.indptr.astype(index_dtype)
    fitted = clone(model).fit(odd, y)
    np.testing.assert_allclose(
        parameters(fitted), expected, rtol=0, atol=1e-9 * abs(expected).max()
    )
    assert odd.indices.dtype == index_dtype
    assert odd.nnz == len(data)
    predictions = fitted.predict(odd).astype(float), fitted.predict(odd.toarray()).astype(float)
    np.testing.assert_allclose(*predictions, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EACH
def test_17_X_is_never_copied(name, sparse, early_stopping):
    """Neither by shuffling nor by holding samples out (sk#14075)."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4000, 300))
    y = X[:, 0] if name.endswith("Regressor") else (X[:, 0] > 0).astype(int)
    size = X.nbytes
    if sparse:
        X[:, 30:] = 0
        X = sp.csr_matrix(X)
        size = X.data.nbytes + X.indices.nbytes
    model = clone(ESTIMATORS[name]).set_params(
        early_stopping=early_stopping, shuffle=True, batch_size=16, max_iter=2, tol=None
    )
    clone(model).fit(X[:100], y[:100])  # What is imported or cached on first use.
    tracemalloc.start()
    try:
        model.fit(X, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Some arrays as long as y, of the size of one or two columns of X each; never half of X.
    assert peak < max(0.25 * size, 400_000)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_17_shuffle_false_is_honoured(sparse):
    """Rows are visited as they come, by hand and by fit (sk#12582)."""
    X, y = make_data("SGDRegressor")
    coef, intercept = np.zeros(8), 0.0
    for _ in range(2):
        for x, target in zip(X, y, strict=True):
            error = x @ coef + intercept - target
            coef, intercept = coef - 0.01 * error * x, intercept - 0.01 * error
    settings = {
        "penalty": None,
        "optimizer": SGD(0.01),
        "max_iter": 2,
        "tol": None,
        "random_state": 0,
    }
    data = sp.csr_matrix(X) if sparse else X
    model = SGDRegressor("squared_error", shuffle=False, **settings).fit(data, y)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-10)
    shuffled = SGDRegressor("squared_error", shuffle=True, **settings).fit(data, y)
    assert abs(shuffled.coef_ - coef).max() > 1e-6


def test_17_each_epoch_has_an_order_of_its_own():
    X, y = make_data("SGDRegressor")
    settings = {"penalty": None, "optimizer": SGD(1e-9), "tol": None, "random_state": 0}
    model = SGDRegressor(max_iter=1, batch_size=7, warm_start=True, **settings)
    steps = []
    for _ in range(4):
        before = model.coef_.copy() if hasattr(model, "coef_") else 0
        steps.append(model.fit(X, y).coef_ - before)
    # At a standstill an epoch's movement depends on the order through its last, smaller batch.
    assert len({tuple(np.round(step * 1e12, 3)) for step in steps}) == 4


def test_18_an_adaptive_rate_survives_a_freak_low_loss():
    """One division at most, though no later loss comes near the freak (sk#15596)."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    y = X @ [3.0, -2.0, 1.0]
    model = SGDRegressor(
        optimizer=SGD(Adaptive(1e-4, factor=5.0, patience=3)), penalty=None, shuffle=False, tol=1e-8
    )
    # A stream whose first chunk has almost no loss; then the loss falls, from far above.
    model.partial_fit(1e-6 * X, 1e-6 * y)
    for _ in range(60):
        model.partial_fit(X, y)
    losses = model.history_["loss"]
    assert losses[0] < 1e-10 < min(losses[1:])
    assert (np.diff(losses[1:]) < 0).all()
    rates = np.array(model.history_["learning_rate"])
    assert np.sum(rates[1:] < rates[:-1]) <= 1
    assert rates[-1] >= 1e-4 / 5


def test_18_and_is_still_divided_when_the_loss_stops_falling():
    X, y = make_data("SGDRegressor")
    model = SGDRegressor(
        optimizer=SGD(Adaptive(0.05, factor=4.0, patience=2)),
        max_iter=100,
        tol=1e-4,
        random_state=0,
    ).fit(X, y)
    rates = np.array(model.history_["learning_rate"])
    falls = rates[1:] < rates[:-1]
    assert falls.sum() >= 2
    np.testing.assert_allclose(rates[:-1][falls] / rates[1:][falls], 4.0)


@parametrize(ELEMENTWISE)
def test_18_a_division_of_the_rate_moves_no_weight(optimizer):
    """Without a gradient, momentum or decay, a lower rate changes nothing; FTRL's state follows."""
    rate = "alpha" if isinstance(optimizer, FTRL) else "learning_rate"
    optimizer = clone(optimizer).set_params(**{rate: Adaptive(0.1)})
    if any(getattr(optimizer, name, 0) for name in ("l1", "l2", "weight_decay")):
        return  # These move the weights at any rate.
    w = np.array([0.5, -1.0, 0.0])
    state = optimizer.init(w)
    for g in np.random.default_rng(0).standard_normal((10, 3)):
        optimizer.step(w, g, state)
    for name in ("first_moment", "momentum_buffer"):
        if name in state.slots:
            state.slots[name][...] = 0
    before = w.copy()
    state.carries["learning_rate_scale"] = 0.2
    for _ in range(3):
        optimizer.step(w, np.zeros(3), state)
    np.testing.assert_allclose(w, before, rtol=1e-12)
    if not isinstance(optimizer, FTRL):
        return
    # And from there on it goes as with the lower rate: w - 0.02 g / (beta + root).
    optimizer.step(w, np.ones(3), state)
    denominator = optimizer.beta + state.slots["root"]
    np.testing.assert_allclose(w, before - 0.02 / denominator, rtol=1e-10)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EACH
def test_18_ftrl_with_an_adaptive_rate_keeps_what_it_learned(name, sparse):
    """A division in the middle of training does not throw the weights back."""
    X, y = make_data(name, n_samples=200)
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=FTRL(Adaptive(0.5, factor=10.0, patience=1)),
        penalty=None,
        max_iter=40,
        tol=1e-4,
        n_iter_no_change=40,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(sp.csr_matrix(X) if sparse else X, y)
    rates = np.array(model.history_["learning_rate"])
    assert (rates[1:] < rates[:-1]).any()
    # The loss never rises by more than the noise of an epoch.
    assert np.diff(model.loss_curve_).max() < 0.1 * model.loss_curve_[0]


def arrays_of(thing):
    """Return every array within a fitted attribute."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        return [a for value in thing.values() for a in arrays_of(value)]
    if isinstance(thing, list | tuple):
        return [a for value in thing for a in arrays_of(value)]
    return arrays_of(thing.slots) if hasattr(thing, "slots") else []


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@EACH
@parametrize(OPTIMIZERS)
def test_19_float32_throughout(optimizer, name, sparse):
    """State and predictions included (sk#5776, sk#17700)."""
    X, y = make_data(name, dtype=np.float32)
    data = sp.csr_matrix(X) if sparse else X
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=optimizer, max_iter=2, tol=None, penalty="l1"
    )
    if name.startswith("SGD") and not optimizer.is_full_batch:
        model.set_params(average=True)
    model.fit(data, y, sample_weight=np.ones(len(y)))
    if not optimizer.is_full_batch:
        model.partial_fit(data, y)
    # The sum behind an average is float64: a float32 sum would lose the later steps.
    total = model.optimizer_state_.slots.pop("average_sum", None)
    assert total is None or total.dtype == np.float64
    arrays = arrays_of([v for k, v in vars(model).items() if k not in ("classes_", "optimizer_")])
    assert arrays
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    if name.endswith("Classifier"):
        outputs = (model.decision_function, model.predict_proba, model.predict_log_proba)
    else:
        outputs = (model.predict,)
    for output in outputs:
        assert output(data).dtype == np.float32
    # Float64 data given to a float32 model is read as float32.
    assert outputs[0](X.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize("loss", ["squared_error", "poisson", "quantile", "epsilon_insensitive"])
@pytest.mark.parametrize("name", ["SGDRegressor", "MLPRegressor"])
def test_19_float32_predictions_of_every_link(name, loss):
    X, y = make_data(name, dtype=np.float32)
    model = clone(ESTIMATORS[name]).set_params(loss=loss, max_iter=2, tol=None).fit(X, abs(y))
    assert model.predict(X).dtype == np.float32


@EACH
@parametrize(OPTIMIZERS)
def test_20_results_repeat(optimizer, name):
    """To the last bit for one random_state, and whatever the global generator did."""
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(
        optimizer=optimizer, max_iter=4, tol=None, early_stopping=True
    )
    if name.startswith("MLP") and not optimizer.is_full_batch:
        model.set_params(dropout=0.3)
    first = clone(model).fit(X, y)
    np.random.seed(123)  # noqa: NPY002
    assert_same_model(clone(model).fit(X, y), first)
    assert_same_model(first.fit(X, y), clone(model).fit(X, y))
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert (parameters(other) != parameters(first)).any()


@EACH
def test_20_results_do_not_depend_on_the_number_of_threads(name):
    """The products of a net are BLAS's, which may sum in another order: up to rounding there."""
    X, y = make_data(name, n_samples=600, n_features=60)
    model = clone(ESTIMATORS[name]).set_params(max_iter=3, tol=None, batch_size=200)
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.append(parameters(clone(model).fit(X, y)))
    for other in found[1:]:
        if name.startswith("SGD"):
            np.testing.assert_array_equal(other, found[0])
        else:
            np.testing.assert_allclose(other, found[0], rtol=1e-9, atol=1e-11)


def test_20_a_random_state_is_used_up():
    """An instance of RandomState gives other results in the second fit, the same in sum."""
    X, y = make_data("MLPClassifier")
    found = []
    for _ in range(2):
        state = np.random.RandomState(5)
        model = MLPClassifier((5,), max_iter=2, tol=None, random_state=state)
        found.append([parameters(model.fit(X, y)) for _ in range(2)])
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][0] != found[0][1]).any()


# --- Asked for most -------------------------------------------------------------------------------


def test_small_sparse_final_models():
    """A pickled model with few non-zero weights is small after sparsify (sk#13034)."""
    rng = np.random.default_rng(0)
    X = sp.random(300, 20_000, density=1e-3, random_state=0).tolil()
    X[:, :5] = rng.standard_normal((300, 5))
    X = X.tocsr()
    y = (X[:, :5].sum(axis=1).A1 > 0).astype(int)
    model = SGDClassifier("log_loss", penalty="l1", alpha=5e-3, max_iter=10, tol=None)
    model.fit(X, y)
    assert model.coef_[0, :5].all()
    assert np.mean(model.coef_ != 0) < 0.01
    expected = model.decision_function(X)
    model.sparsify()
    np.testing.assert_allclose(model.decision_function(X), expected, rtol=1e-12, atol=1e-15)
    assert len(pickle.dumps(model.coef_)) < 20_000
    model.densify()
    np.testing.assert_array_equal(model.decision_function(X), expected)
    model.sparsify().partial_fit(X, y)


def test_non_negative_coefficients():
    """sk#10746."""
    X, y = make_data("SGDRegressor")
    model = SGDRegressor(penalty=NonNegative(), random_state=0).fit(X, y)
    assert model.coef_.min() >= 0
    assert model.coef_.max() > 0


def test_validation_data_of_ones_own():
    """sk#18748, sk#18507: given samples, scored after every epoch."""
    X, y = make_data(n_samples=200)
    for model in (ESTIMATORS["SGDClassifier"], ESTIMATORS["MLPClassifier"]):
        model = clone(model).set_params(max_iter=6, tol=None)
        model.fit(X[:150], y[:150], X_val=X[150:], y_val=y[150:])
        assert (
            len(model.history_["validation_score"]) == len(model.history_["validation_loss"]) == 6
        )
        assert model.validation_scores_[-1] == pytest.approx(model.score(X[150:], y[150:]))
        expected = log_loss(y[150:], model.predict_proba(X[150:]))
        if isinstance(model, MLPClassifier):
            assert model.history_["validation_loss"][-1] == pytest.approx(expected, rel=1e-10)
        # All of the 150 rows are trained on, with early stopping as well.
        assert model.t_ == 900
        model.set_params(early_stopping=True).fit(X[:150], y[:150], X_val=X[150:], y_val=y[150:])
        assert model.t_ == 150 * model.n_iter_
        assert model.best_validation_score_ == pytest.approx(model.score(X[150:], y[150:]))


@parametrize(OPTIMIZERS)
@EACH
def test_09_a_sample_of_weight_zero_is_as_good_as_removed(optimizer, name):
    X, y = make_data(name)
    kept = np.random.default_rng(3).random(len(y)) < 0.7
    model = clone(ESTIMATORS[name]).set_params(optimizer=optimizer, max_iter=3, tol=None)
    weighted = clone(model).fit(X, y, sample_weight=kept.astype(float))
    removed = clone(model).fit(X[kept], y[kept])
    # The sums of a full batch run over other rows: equal up to rounding.
    np.testing.assert_allclose(parameters(weighted), parameters(removed), rtol=1e-6, atol=1e-9)


def test_05_a_warm_start_at_the_minimum_stays_there():
    X, y = make_data("SGDClassifier")
    for optimizer in (LBFGS(), ProximalGradient(full_batch=True)):
        model = SGDClassifier(
            "log_loss", alpha=0.1, optimizer=optimizer, tol=1e-6, max_iter=500, warm_start=True
        ).fit(X, y)
        first = model.coef_.copy()
        # FISTA looks for its step size anew.
        assert model.fit(X, y).n_iter_ <= 5
        np.testing.assert_allclose(model.coef_, first, rtol=1e-4)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@parametrize(ELEMENTWISE)
def test_edited_weights_are_trained_on(optimizer, sparse, in_place, average):
    X, y = make_data()
    X = sp.csr_matrix(X) if sparse else X
    model = SGDClassifier("log_loss", optimizer=optimizer, average=average, random_state=0)
    model.partial_fit(X, y, classes=[0, 1, 2])
    model.coef_  # noqa: B018  Looking must not matter, nor may streams that go on before.
    model.partial_fit(X, y)
    edited = np.full((3, 8), 50.0)
    if in_place:
        model.coef_[...] = edited
    else:
        model.coef_ = edited
    # One step moves no weight far.
    model.partial_fit(X[:1], y[:1])
    np.testing.assert_allclose(model.coef_, edited, rtol=0, atol=5)
    expected = model.coef_.copy()
    model.partial_fit(X[:1], y[:1])
    np.testing.assert_allclose(model.coef_, expected, rtol=0, atol=5)


@pytest.mark.parametrize("average", [False, True])
@parametrize(ELEMENTWISE)
def test_weights_that_are_only_looked_at_are_not_edited(optimizer, average):
    X, y = make_data()
    model = SGDClassifier("log_loss", optimizer=optimizer, average=average, random_state=0)
    watched = clone(model)
    for _ in range(3):
        model.partial_fit(X, y, classes=[0, 1, 2])
        watched.partial_fit(X, y, classes=[0, 1, 2])
        watched.coef_ = watched.coef_.copy()
    np.testing.assert_array_equal(watched.coef_, model.coef_)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("optimizer", ["normalized_ftrl", "sgd"])
@pytest.mark.parametrize("name", ["SGDClassifier", "SGDRegressor"])
def test_sparse_coefficients_are_not_edited(name, optimizer, average):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(penalty="l1", alpha=0.02, average=average)
    model.set_params(optimizer=optimizer)
    watched = clone(model)
    first_call = {"classes": [0, 1, 2]} if name == "SGDClassifier" else {}
    for _ in range(3):
        model.partial_fit(X, y, **first_call)
        watched.partial_fit(X, y, **first_call).sparsify()
    np.testing.assert_array_equal(watched.densify().coef_, model.coef_)


@pytest.mark.parametrize("optimizer", ["normalized_ftrl", "sgd"])
@pytest.mark.parametrize("sparse", [False, True])
def test_parameters_may_be_set_to_plain_numbers(sparse, optimizer):
    X, y = make_data()
    X = sp.csr_matrix(X) if sparse else X
    model = SGDClassifier("log_loss", optimizer=optimizer, random_state=0).fit(X, y)
    expected = model.decision_function(X) - model.intercept_
    for intercept in (np.zeros(1), 0.0, np.zeros((1, 3)), np.zeros(3, dtype=int)):
        model.intercept_ = intercept
        np.testing.assert_allclose(model.decision_function(X), expected, atol=1e-12)
    for intercept in (np.zeros(3), [0.0, 0.0, 0.0]):
        model.intercept_ = intercept
        model.partial_fit(X[:1], y[:1])
    model.coef_ = np.arange(24).reshape(3, 8)
    found = model.decision_function(X)
    model.coef_ = model.coef_.astype(float)
    np.testing.assert_array_equal(found, model.decision_function(X))
    regressor = SGDRegressor(optimizer=optimizer, random_state=0).fit(X, y)
    regressor.intercept_ = 0.0
    assert regressor.partial_fit(X, y).intercept_.shape == (1,)


def test_edited_weights_of_a_net_are_trained_on():
    X, y = make_data()
    model = MLPClassifier((4,), optimizer="ftrl", random_state=0).partial_fit(
        X, y, classes=[0, 1, 2]
    )
    model.coefs_[0][...] = 0.5
    model.partial_fit(X[:1], y[:1])
    np.testing.assert_allclose(model.coefs_[0], 0.5, atol=0.2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_early_stopping_without_tol_makes_all_epochs(name):
    X, y = make_data(name)
    model = clone(ESTIMATORS[name]).set_params(tol=None, early_stopping=True, max_iter=40)
    model.set_params(n_iter_no_change=2).fit(X, y)
    assert model.n_iter_ == len(model.validation_scores_) == 40


@pytest.mark.parametrize(
    "loss",
    ["squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive", "quantile"],
)
@pytest.mark.parametrize("unit", [2.0**-10, 2.0**10, 2.0**17])
def test_units_of_target_and_epsilon_are_those_of_the_weights(loss, unit):
    X, y = make_data("SGDRegressor")
    model = SGDRegressor(loss, penalty=None, epsilon=0.5, max_iter=20, tol=None, random_state=0)
    expected = model.fit(X, y).coef_
    found = model.set_params(epsilon=0.5 * unit).fit(X, unit * y).coef_
    np.testing.assert_allclose(found, unit * expected, rtol=1e-12)
