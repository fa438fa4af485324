"""What a momentum, Adam and its kin owe columns that a batch does not touch.

Expected values come from the same training on dense arrays, which steps every weight every time.
"""

import numpy as np
import pytest
from sklearn.base import clone
from sparse_data import words

from skoptim import MLPClassifier, SGDClassifier
from skoptim._training import Trainer
from skoptim.optimizers import SGD, Adam, Adamax, Nadam, RMSprop
from skoptim.penalties import ElasticNet
from skoptim.schedules import InverseScaling, OneCycle, Step, Warmup


@pytest.fixture(autouse=True)
def always_owe(monkeypatch):
    """Owe idle steps even where stepping all columns is cheaper."""
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: True)


X, Y = words(1500, 1000)
BINARY = (Y > 0).astype(int)

OPTIMIZERS = {
    "momentum": SGD(0.02, momentum=0.9),
    "nesterov": SGD(0.02, momentum=0.9, nesterov=True),
    "momentum-short": SGD(0.2, momentum=0.5),
    # Under L2 = 0.01 its weights shrink faster than the momentum fades.
    "momentum-long": SGD(0.02, momentum=0.99),
    "momentum-decay": SGD(0.02, momentum=0.9, weight_decay=1e-2),
    "momentum-cycle": SGD(OneCycle(0.05, total_steps=4000), momentum=0.95),
    "adam": Adam(1e-3),
    "adam-fast": Adam(1e-2),
    "adam-long-memory": Adam(1e-2, beta_1=0.99, beta_2=0.99),
    # The second moments fade within the epoch: the sums of a record begin anew.
    "adam-short-memory": Adam(1e-2, beta_1=0.0, beta_2=0.9),
    # Second moments fade faster than the first.
    "adam-steep": Adam(1e-2, beta_1=0.85, beta_2=0.9),
    "adamax-steep": Adamax(1e-2, beta_1=0.85, beta_2=0.95, epsilon=1e-6),
    "adam-decay": Adam(1e-2, weight_decay=1e-3),
    "adam-epsilon": Adam(1e-2, epsilon=1e-3),
    "adam-epsilon-small": Adam(1e-2, epsilon=1e-5),
    "amsgrad": Adam(1e-2, amsgrad=True),
    "adam-warmup": Adam(Warmup(1e-2, 500)),
    "adam-steps": Adam(Step(1e-2, step_size=400, gamma=0.1)),
    "adamax": Adamax(1e-2),
    "nadam": Nadam(1e-3),
    "nadam-inverse": Nadam(InverseScaling(1e-2)),
    "rmsprop": RMSprop(1e-3, rho=0.999),
    "rmsprop-short-memory": RMSprop(1e-2, rho=0.9),
}
PENALTIES = {
    "none": {"penalty": None},
    "l2-1e-6": {"penalty": "l2", "alpha": 1e-6},
    "l2-1e-4": {"penalty": "l2", "alpha": 1e-4},
    "l2-1e-2": {"penalty": "l2", "alpha": 1e-2},
    "l1-1e-6": {"penalty": "l1", "alpha": 1e-6},
    "l1-1e-4": {"penalty": "l1", "alpha": 1e-4},
    "l1-2e-3": {"penalty": "l1", "alpha": 2e-3},
    "elasticnet": {"penalty": ElasticNet(0.5), "alpha": 1e-4},
}
# Of the largest coefficient. In float32 the dense training rounds in each of thousands of steps.
TOLERANCE = {np.float64: 1e-9, np.float32: 1e-4}


def assert_same(sparse, dense, dtype):
    bound = TOLERANCE[dtype] * np.abs(dense).max()
    np.testing.assert_allclose(sparse, dense, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_debts_of_linear_models(optimizer, penalty, dtype):
    for y, batch_size in ((BINARY, 1), (Y, 1), (BINARY, 16)):
        model = SGDClassifier(
            "log_loss",
            optimizer=optimizer,
            batch_size=batch_size,
            max_iter=2,
            tol=None,
            random_state=0,
            **penalty,
        )
        sparse = clone(model).fit(X.astype(dtype), y)
        dense = clone(model).fit(X.toarray().astype(dtype), y)
        assert_same(sparse.coef_, dense.coef_, dtype)
        for name in dense.optimizer_state_.slots:
            slots = [m.optimizer_state_.slots[name] for m in (sparse, dense)]
            assert_same(*slots, dtype)
        if dtype is np.float64 and penalty["penalty"] == "l1":
            np.testing.assert_array_equal(sparse.coef_ == 0, dense.coef_ == 0)


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if "short" not in name and "steep" not in name]
)
def test_debts_of_networks(name, penalty):
    # With units that are not switched off: a rounding error that switches one would show. And
    # without the short memories, which divide gradients of 1e-12 by roots as small: there rounding
    # errors grow (replaying step by step parts from dense training by as much).
    model = MLPClassifier(
        (37,),
        activation="tanh",
        optimizer=OPTIMIZERS[name],
        batch_size=4,
        max_iter=3,
        tol=None,
        random_state=0,
        **penalty,
    )
    sparse = clone(model).fit(X, BINARY)
    dense = clone(model).fit(X.toarray(), BINARY)
    assert_same(sparse.coefs_[0], dense.coefs_[0], np.float64)


@pytest.mark.parametrize("alpha", [1e-4, 1e-2])
def test_a_penalty_that_is_bounded_between_two_looks(alpha):
    # Rectified units leave coefficients with hardly any second moment: there the step of L2 is
    # bounded while a moment is moving the weight, and no longer where the replay looks again.
    X, y = words(1500, 4000)
    model = MLPClassifier(
        (40,),
        alpha=alpha,
        optimizer=Adam(1e-3),
        batch_size=4,
        max_iter=3,
        tol=None,
        random_state=0,
    )
    labels = (y > 0).astype(int)
    sparse = clone(model).fit(X, labels).coefs_[0]
    assert_same(sparse, clone(model).fit(X.toarray(), labels).coefs_[0], np.float64)


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize(
    "name", ["momentum-long", "adam", "adam-short-memory", "amsgrad", "adamax", "nadam"]
)
def test_debts_over_blocks_of_a_stream(name, penalty):
    model = SGDClassifier(
        "log_loss", optimizer=OPTIMIZERS[name], random_state=0, shuffle=False, **penalty
    )
    sparse, dense = clone(model), clone(model)
    for first in range(0, 1500, 125):
        block = slice(first, first + 125)
        sparse.partial_fit(X[block], BINARY[block], classes=[0, 1])
        dense.partial_fit(X[block].toarray(), BINARY[block], classes=[0, 1])
    assert_same(sparse.coef_, dense.coef_, np.float64)


@pytest.mark.parametrize("penalty", ["l2", "elasticnet"])
def test_a_momentum_under_a_penalty_that_shrinks_weights_to_nothing(penalty):
    # The product of the factors of 4,000 steps is 1e-350: no number.
    model = SGDClassifier(
        "log_loss",
        penalty=penalty,
        alpha=0.2,
        optimizer=SGD(0.1, momentum=0.9),
        max_iter=3,
        tol=None,
        random_state=0,
    )
    sparse, dense = clone(model).fit(X, BINARY), clone(model).fit(X.toarray(), BINARY)
    assert_same(sparse.coef_, dense.coef_, np.float64)
