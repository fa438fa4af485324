"""Averaged linear models on CSR data: a column that is not touched costs nothing.

Expected values come from the same training on dense arrays, which add up every weight every time.
"""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sparse_data import words

from skoptim import SGDClassifier, SGDRegressor
from skoptim._training import Trainer
from skoptim.optimizers import FTRL, SGD, Adagrad, NormalizedFTRL
from skoptim.penalties import Box, ElasticNet
from skoptim.schedules import InverseScaling, Optimal, Step


@pytest.fixture(autouse=True)
def always_owe(monkeypatch):
    """Train in tables even where stepping all columns is cheaper."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)


X, Y = words(800, 600)
BINARY = (Y > 0).astype(int)
# Features of which the largest entries lie six orders of magnitude apart.
UNITS = sp.diags(10.0 ** np.random.default_rng(1).uniform(-3, 3, X.shape[1]))


def late(steps):
    """Return a rate that is zero at first, and in nine steps of ten."""
    return np.where(steps % 10 == 0, 0.3, 0.0)


OPTIMIZERS = {
    "sgd": SGD(0.1),
    "sgd-inverse": SGD(InverseScaling(0.5)),
    "sgd-optimal": SGD(Optimal(1e-3)),
    "sgd-late": SGD(late),
    "sgd-decay": SGD(0.1, weight_decay=1e-3),
    "ftrl": FTRL(),
    "ftrl-fixed": FTRL(1.0, l1=0.5, l2=0.1),
    "ftrl-inverse": FTRL(InverseScaling(0.5)),
    "ftrl-power": FTRL(learning_rate_power=-0.4),
    "ftrl-no-beta": FTRL(beta=0.0, initial_accumulator_value=0.1),
    "normalized_ftrl": NormalizedFTRL(),
    "adagrad": Adagrad(0.1),
    "adagrad-step": Adagrad(Step(0.1, step_size=500, gamma=0.5)),
}
PENALTIES = {
    "none": {"penalty": None},
    "l2-1e-6": {"penalty": "l2", "alpha": 1e-6},
    "l2-1e-2": {"penalty": "l2", "alpha": 1e-2},
    # Weights that shrink by a tenth in a step: the account is begun anew time and again.
    "l2-1": {"penalty": "l2", "alpha": 1.0},
    "l1-1e-6": {"penalty": "l1", "alpha": 1e-6},
    "l1-1e-4": {"penalty": "l1", "alpha": 1e-4},
    "l1-2e-3": {"penalty": "l1", "alpha": 2e-3},
    "elasticnet-1e-4": {"penalty": ElasticNet(0.4), "alpha": 1e-4},
    "elasticnet-1e-1": {"penalty": ElasticNet(0.4), "alpha": 1e-1},
}
# Of the largest coefficient. In float32 the dense training rounds in each of thousands of steps.
TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}


def assert_same(sparse, dense, dtype):
    for name in ("coef_", "intercept_"):
        scale = abs(dense.coef_).max()
        np.testing.assert_allclose(
            getattr(sparse, name) / scale,
            getattr(dense, name) / scale,
            rtol=0,
            atol=TOLERANCE[dtype],
        )
    for name, slot in dense.optimizer_state_.slots.items():
        scale = abs(slot).max() or 1.0
        np.testing.assert_allclose(
            sparse.optimizer_state_.slots[name] / scale, slot / scale, rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("task", ["binary", "three classes", "batches", "late"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_averages_are_those_of_dense_training(optimizer, penalty, task, dtype):
    estimator = SGDClassifier(
        "log_loss",
        optimizer=optimizer,
        **penalty,
        average=1000 if task == "late" else True,
        batch_size=16 if task == "batches" else 1,
        max_iter=2,
        tol=None,
        random_state=0,
    )
    y = Y if task == "three classes" else BINARY
    data = X.astype(dtype)
    assert_same(clone(estimator).fit(data, y), clone(estimator).fit(data.toarray(), y), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("optimizer", [NormalizedFTRL(), FTRL(), SGD(0.1)])
def test_streams_in_which_units_grow(optimizer, penalty, n_classes, dtype):
    y = Y if n_classes == 3 else BINARY
    data = (X @ UNITS if isinstance(optimizer, NormalizedFTRL) else X).tocsr().astype(dtype)
    models = [
        SGDClassifier("log_loss", optimizer=optimizer, **penalty, average=150, random_state=0)
        for _ in range(2)
    ]
    for i, rows in enumerate(np.split(np.arange(800), 8)):
        # The entries of later blocks are larger: the units of nearly all features change.
        block = data[rows] * data.dtype.type(1 + 0.1 * i)
        models[0].partial_fit(block, y[rows], classes=np.arange(n_classes))
        models[1].partial_fit(block.toarray(), y[rows], classes=np.arange(n_classes))
        if i == 4:
            models[0].coef_, models[0].optimizer_state_
    assert_same(*models, dtype)


@pytest.mark.parametrize("optimizer", [SGD(0.1), FTRL(), NormalizedFTRL()])
def test_a_penalty_that_comes_and_goes_in_a_stream(optimizer):
    penalties = [None, "l2", "l1", "elasticnet", None, "l1", "l2", None]
    models = [
        SGDClassifier("log_loss", alpha=1e-3, optimizer=optimizer, average=True, random_state=0)
        for _ in range(2)
    ]
    for rows, penalty in zip(np.split(np.arange(800), 8), penalties, strict=True):
        for model, data in zip(models, (X, X.toarray()), strict=True):
            model.set_params(penalty=penalty)
            model.partial_fit(data[rows], BINARY[rows], classes=[0, 1])
    assert_same(*models, np.float64)


@pytest.mark.parametrize("alpha", [1e-6, 1e-4])
def test_a_new_feature_in_a_much_smaller_unit(alpha):
    # The account of averages was begun for larger entries: it has to be begun anew.
    rng = np.random.default_rng(0)
    data = rng.standard_normal((3000, 4))
    y = (data @ [1.0, -1.0, 0.5, 1.0] > 0).astype(int)
    data[:, 3] *= 1e-3
    data[:20, 3] = 0
    models = [SGDClassifier("log_loss", alpha=alpha, average=True, shuffle=False) for _ in range(2)]
    for rows in (slice(0, 20), slice(20, 3000)):
        models[0].partial_fit(sp.csr_matrix(data[rows]), y[rows], classes=[0, 1])
        models[1].partial_fit(data[rows], y[rows], classes=[0, 1])
    assert_same(*models, np.float64)


@pytest.mark.parametrize("penalty", [Box(-1.0, 1.0), "l1", None])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_strengths_that_fall_in_small_blocks(beta, penalty):
    # FTRL's l1 is divided by the batch size: a weight at zero does not stay there for good.
    models = [
        SGDClassifier(
            "log_loss",
            penalty=penalty,
            optimizer=FTRL(0.5, beta=beta, l1=1.0, initial_accumulator_value=0.1),
            batch_size=7,
            average=True,
            random_state=0,
        )
        for _ in range(2)
    ]
    for rows in np.split(np.arange(60), [14, 16, 18, 20]):
        models[0].partial_fit(X[rows], BINARY[rows], classes=[0, 1])
        models[1].partial_fit(X[rows].toarray(), BINARY[rows], classes=[0, 1])
    assert_same(*models, np.float64)


def test_a_rate_that_shrinks_all_weights_at_once():
    optimizer = SGD(lambda steps: np.where(steps % 100 == 0, 1e12, 1e-4))
    model = SGDClassifier("hinge", alpha=0.1, optimizer=optimizer, average=True, random_state=0)
    model.set_params(max_iter=1, tol=None)
    assert_same(clone(model).fit(X, BINARY), clone(model).fit(X.toarray(), BINARY), np.float64)


# In the wide one a block touches few of the columns: these are copied one by one, not the table.
@pytest.mark.parametrize("n_columns", [600, 50_000])
@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize(
    "optimizer", [SGD(0.01), SGD(lambda steps: np.where(steps < 50, 0.01, 0.0)), FTRL()]
)
def test_averages_after_a_failed_block(optimizer, look, n_columns):
    data = sp.csr_matrix((X.data, X.indices, X.indptr), shape=(X.shape[0], n_columns))
    y = X @ np.random.default_rng(2).standard_normal(X.shape[1])
    settings = {"optimizer": optimizer, "average": True, "random_state": 0, "alpha": 1e-3}
    models = [SGDRegressor(penalty="l1", **settings) for _ in range(2)]
    for model in models:
        model.partial_fit(data[:100], y[:100])
        model.set_params(penalty=None).partial_fit(data[100:200], y[100:200])
    with pytest.raises(ValueError, match="diverged"):
        models[0].set_params(penalty="l1").partial_fit(data[200:300], 1e200 * y[200:300])
    if look:
        np.testing.assert_allclose(models[0].coef_, models[1].coef_, rtol=0, atol=1e-14)
    for model in models:
        model.set_params(penalty="l2").partial_fit(data[300:400], y[300:400])
    assert_same(*models, np.float64)
