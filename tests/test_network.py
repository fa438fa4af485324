"""The network and its losses: values against other people's code, gradients by finite differences.

The reference is written out below in plain NumPy and SciPy; nothing of it is shared with the
compiled passes.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp
from optimizer_table import ELEMENTWISE
from scipy.special import expit, logsumexp
from scipy.stats import norm
from sklearn import linear_model
from sklearn._loss.loss import (
    HalfMultinomialLoss,
    HalfPoissonLoss,
    HalfSquaredError,
    HuberLoss,
    PinballLoss,
)
from sklearn.base import clone
from sklearn.metrics import hinge_loss, log_loss, mean_pinball_loss, mean_poisson_deviance
from threadpoolctl import threadpool_limits

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor, losses
from skoptim._devices import cpu
from skoptim._network import Batch, Dataset, FirstLayer, Network
from skoptim._training import Trainer
from skoptim.activations import ACTIVATIONS, get_activation
from skoptim.losses import (
    EpsilonInsensitive,
    Hinge,
    Huber,
    LogLoss,
    ModifiedHuber,
    Multinomial,
    Perceptron,
    Poisson,
    Quantile,
    SquaredEpsilonInsensitive,
    SquaredError,
    SquaredHinge,
)
from skoptim.optimizers import SGD, OptimizerState, ProximalGradient
from skoptim.optimizers._base import bind_updater
from skoptim.penalties import GroupL1, PenaltyTerms

# --- The reference --------------------------------------------------------------------------------

REFERENCE_ACTIVATIONS = {
    "identity": lambda z: z,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "gelu": lambda z: z * norm.cdf(z),
    "silu": lambda z: z * expit(z),
    "callables": np.arctan,
}


def arctan_derivative(z):
    return 1 / (1 + z**2)


def make_activation(name):
    return get_activation((np.arctan, arctan_derivative) if name == "callables" else name)


def reference_losses(loss, targets, z):
    """Return the loss of each entry of z (multinomial: of each row, in one column)."""
    if isinstance(loss, Multinomial):
        return (logsumexp(z, axis=1) - z[np.arange(len(z)), targets])[:, None]
    r, margin = z - targets, z * targets
    with np.errstate(divide="ignore", invalid="ignore"):
        y_log_y = np.where(targets > 0, targets * np.log(targets), 0)
    formulas = {
        SquaredError: lambda: r**2 / 2,
        Huber: lambda: np.where(
            abs(r) <= loss.parameter, r**2 / 2, loss.parameter * (abs(r) - loss.parameter / 2)
        ),
        EpsilonInsensitive: lambda: np.maximum(abs(r) - loss.parameter, 0),
        SquaredEpsilonInsensitive: lambda: np.maximum(abs(r) - loss.parameter, 0) ** 2,
        Poisson: lambda: np.exp(z) - targets * z + y_log_y - targets,
        Quantile: lambda: np.maximum(-loss.parameter * r, (1 - loss.parameter) * r),
        Hinge: lambda: np.maximum(1 - margin, 0),
        SquaredHinge: lambda: np.maximum(1 - margin, 0) ** 2,
        LogLoss: lambda: np.logaddexp(0, -margin),
        ModifiedHuber: lambda: np.where(margin < -1, -4 * margin, np.maximum(1 - margin, 0) ** 2),
        Perceptron: lambda: np.maximum(-margin, 0),
    }
    return formulas[type(loss)]()


class Problem:
    """A small network with data, its compiled form, and the same in NumPy."""

    n_samples, n_features = 11, 4

    def __init__(self, case, activation, *, sparse=False, weighted=False, hidden=(5, 3), **options):
        self.loss, self.kind, n_outputs = LOSSES[case]
        rng = np.random.default_rng(0)
        self.X = rng.standard_normal((self.n_samples, self.n_features))
        self.X[rng.random(self.X.shape) < 0.4] = 0
        self.weights = rng.uniform(0, 2, self.n_samples) if weighted else None
        if weighted:
            self.weights[2] = 0
        labels = rng.integers(max(2, n_outputs), size=self.n_samples).astype(np.int32)
        shape = (self.n_samples, n_outputs)
        if self.kind == "labels":
            given = {"labels": labels}
            self.targets = np.where(
                labels[:, None] == (1 if n_outputs == 1 else range(n_outputs)), 1, -1
            )
        elif self.kind == "classes":
            given, self.targets = {"labels": labels}, labels
        else:
            values = {
                "signs": rng.choice([-1.0, 1.0], shape),
                "counts": rng.poisson(1.0, shape).astype(float),
                "reals": rng.standard_normal(shape),
            }[self.kind]
            given, self.targets = {"values": values}, values
        matrix = cpu.Matrix(sp.csr_matrix(self.X) if sparse else self.X)
        targets = cpu.make_targets(**given, n_outputs=n_outputs, dtype=np.float64)
        self.data = Dataset(matrix, targets, self.weights)
        self.sizes = (self.n_features, *hidden, n_outputs)
        self.network = Network(
            self.sizes,
            make_activation(activation) if hidden else None,
            self.loss,
            device=cpu,
            dtype=np.float64,
            **options,
        )
        self.f = REFERENCE_ACTIVATIONS[activation]
        self.flat = rng.uniform(-1, 1, len(self.network.parameters))

    def value(self, flat, rows=slice(None), masks=None):
        """Return the sum of the weighted losses of the rows, in NumPy."""
        coefs, start = [], 0
        for fan_in, fan_out in zip(self.sizes, self.sizes[1:], strict=False):
            coefs.append(flat[start : start + fan_in * fan_out].reshape(fan_in, fan_out))
            start += fan_in * fan_out
        a = self.X[rows]
        for i, coef in enumerate(coefs):
            z = a @ coef + flat[start : start + coef.shape[1]]
            start += coef.shape[1]
            a = self.f(z) if masks is None or i == len(coefs) - 1 else self.f(z) * masks[i]
        losses = reference_losses(self.loss, self.targets[rows], z).sum(axis=1)
        return losses @ (np.ones(len(losses)) if self.weights is None else self.weights[rows])

    def compiled(self, batch, **options):
        """Return the value and the gradient of `loss_and_gradient`, flat."""
        gradient = np.zeros_like(self.flat)
        views = self.network.views
        loss = self.network.loss_and_gradient(
            self.data, batch, views(self.flat), views(gradient), 1 / batch.n, **options
        )
        return loss, gradient


# name -> loss, kind of targets, number of outputs
LOSSES = {
    "squared_error": (SquaredError(), "reals", 1),
    "squared_error-3": (SquaredError(), "reals", 3),
    "huber": (Huber(0.7), "reals", 1),
    "huber-3": (Huber(0.7), "reals", 3),
    "epsilon_insensitive": (EpsilonInsensitive(0.3), "reals", 1),
    "epsilon_insensitive-3": (EpsilonInsensitive(0.3), "reals", 3),
    "squared_epsilon_insensitive": (SquaredEpsilonInsensitive(0.3), "reals", 1),
    "squared_epsilon_insensitive-3": (SquaredEpsilonInsensitive(0.3), "reals", 3),
    "poisson": (Poisson(), "counts", 1),
    "poisson-3": (Poisson(), "counts", 3),
    "quantile": (Quantile(0.8), "reals", 1),
    "quantile-3": (Quantile(0.8), "reals", 3),
    "multinomial-2": (Multinomial(), "classes", 2),
    "multinomial-4": (Multinomial(), "classes", 4),
} | {
    f"{loss.name}-{name}": (loss, kind, n_outputs)
    for loss in (Hinge(), SquaredHinge(), LogLoss(), ModifiedHuber(), Perceptron())
    for name, kind, n_outputs in (
        ("binary", "labels", 1),
        ("one_vs_rest", "labels", 3),
        ("multilabel", "signs", 3),
    )
}


def finite_differences(function, x, h=1e-6):
    """Return the gradient of `function` at x by central differences."""
    steps = np.eye(len(x)) * h
    return np.array([(function(x + step) - function(x - step)) / (2 * h) for step in steps])


def assert_gradient(actual, expected):
    # Central differences with h = 1e-6 err by about eps / h + h^2 = 1e-10 times the value.
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8 * max(1, abs(expected).max()))


def test_every_loss_and_activation_is_here():
    public = {name for name in losses.__all__ if name != "Loss"}
    assert {type(loss).__name__ for loss, _, _ in LOSSES.values()} == public
    assert set(REFERENCE_ACTIVATIONS) == {*ACTIVATIONS, "callables"}


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("activation", REFERENCE_ACTIVATIONS)
@pytest.mark.parametrize("case", LOSSES)
def test_gradient_equals_finite_differences(case, activation, sparse, weighted):
    problem = Problem(case, activation, sparse=sparse, weighted=weighted)
    expected = finite_differences(problem.value, problem.flat)

    n = problem.n_samples
    gradient = np.full_like(problem.flat, np.nan)
    loss = problem.network.full_gradient(problem.data, problem.flat, gradient)
    np.testing.assert_allclose(loss, problem.value(problem.flat) / n, rtol=1e-13)
    assert_gradient(gradient, expected / n)

    rows = np.array([7, 2, 2, 0, 10])
    loss, gradient = problem.compiled(Batch(len(rows), rows))
    np.testing.assert_allclose(loss, problem.value(problem.flat, rows), rtol=1e-13)
    expected = finite_differences(lambda flat: problem.value(flat, rows), problem.flat)
    assert_gradient(gradient, expected / len(rows))


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("case", LOSSES)
def test_gradient_of_a_linear_model(case, sparse, weighted):
    problem = Problem(case, "identity", sparse=sparse, weighted=weighted, hidden=())
    gradient = np.empty_like(problem.flat)
    loss = problem.network.full_gradient(problem.data, problem.flat, gradient)
    np.testing.assert_allclose(loss, problem.value(problem.flat) / problem.n_samples, rtol=1e-13)
    expected = finite_differences(problem.value, problem.flat) / problem.n_samples
    assert_gradient(gradient, expected)


@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_without_intercept_only_the_intercepts_get_no_gradient(sparse, hidden):
    free = Problem("multinomial-4", "tanh", sparse=sparse, hidden=hidden)
    bound = Problem("multinomial-4", "tanh", sparse=sparse, hidden=hidden, fit_intercept=False)
    batch = Batch(free.n_samples, None, 0)
    loss, gradient = free.compiled(batch)
    bound_loss, bound_gradient = bound.compiled(batch)
    n_coefficients = free.network.n_coefficients
    assert bound_loss == loss
    np.testing.assert_array_equal(bound_gradient[:n_coefficients], gradient[:n_coefficients])
    assert not bound_gradient[n_coefficients:].any()


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("hidden", [(), (5, 3)])
def test_csr_equals_dense_with_either_index_type(hidden, index_dtype):
    dense = Problem("multinomial-4", "gelu", weighted=True, hidden=hidden)
    X = sp.csr_matrix(dense.X)
    X.indices, X.indptr = X.indices.astype(index_dtype), X.indptr.astype(index_dtype)
    assert X.indices.dtype == X.indptr.dtype == index_dtype
    for batch in (Batch(5, np.array([9, 3, 3, 0, 7])), Batch(6, None, 4)):
        expected_loss, expected = dense.compiled(batch)
        sparse = Problem("multinomial-4", "gelu", weighted=True, hidden=hidden)
        sparse.data = Dataset(cpu.Matrix(X), dense.data.targets, dense.weights)
        loss, gradient = sparse.compiled(batch)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hidden", [(), (5, 3)])
def test_gradient_of_touched_columns_is_the_rest_of_a_zero_gradient(hidden):
    problem = Problem("multinomial-4", "silu", sparse=True, hidden=hidden)
    rows = np.array([4, 1])
    batch = Batch(2, rows)
    expected_loss, expected = problem.compiled(batch)
    network, X = problem.network, problem.data.X
    touched = cpu.Touched(X)
    touched.sort(rows, 0, 2)
    coefs = problem.flat.copy()
    rates = SGD(1.0).prepare(OptimizerState(), 1, PenaltyTerms()).rows()
    updater = bind_updater(
        SGD(1.0),
        cpu,
        coefs,
        {},
        None,
        rows=rates,
        n_penalised=network.n_coefficients,
        n_columns=network.layer_sizes[0],
        width=network.layer_sizes[1],
        sparse=True,
    )
    first_layer = FirstLayer(updater, touched, 0)
    flat = np.zeros_like(problem.flat)
    gradient = network.views(flat)
    loss = network.loss_and_gradient(
        problem.data, batch, network.views(coefs), gradient, 0.5, first_layer=first_layer
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-14)
    of_first_layer = expected[: network.first_layer_size]
    np.testing.assert_allclose(
        touched.squared_norm(first_layer.delta), of_first_layer @ of_first_layer
    )
    np.testing.assert_allclose(
        flat[network.first_layer_size :], expected[network.first_layer_size :], rtol=1e-13
    )
    assert not flat[: network.first_layer_size].any()
    # A step of SGD with the rate 1 shows the gradient.
    first_layer.apply(0.5)
    steps = problem.flat - coefs
    np.testing.assert_allclose(
        steps[: network.first_layer_size], 0.5 * of_first_layer, rtol=1e-9, atol=1e-15
    )
    untouched = np.setdiff1d(np.arange(problem.n_features), problem.X[rows].any(axis=0).nonzero())
    first = slice(network.first_layer_size)
    assert not steps[first].reshape(network.shapes[0])[untouched].any()


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("rows", [None, np.array([9, 3, 0, 7, 1, 10, 4])], ids=["all", "some"])
def test_chunks_add_up_to_the_whole(sparse, weighted, rows, monkeypatch):
    problem = Problem("multinomial-4", "elu", sparse=sparse, weighted=weighted)
    problem.data.rows = rows
    network, views = problem.network, problem.network.views(problem.flat)
    expected = np.empty_like(problem.flat)
    expected_loss = network.full_gradient(problem.data, problem.flat, expected)
    expected_scores = network.scores(problem.data, views)
    assert len(network.chunks(problem.data)) == 1
    # Devices without whole passes in native code.
    monkeypatch.setattr(Network, "is_native", False)
    monkeypatch.setattr(Network, "_chunk_rows", 3)
    assert len(network.chunks(problem.data)) == (4 if rows is None else 3)
    gradient = np.full_like(problem.flat, np.nan)
    loss = network.full_gradient(problem.data, problem.flat, gradient)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)
    scores = network.scores(problem.data, views)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-13)
    np.testing.assert_allclose(network.mean_loss(problem.data, scores), loss, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("listed", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_native_passes_over_many_samples(sparse, listed, dtype, monkeypatch):
    """More samples than pass through together, for more threads than one."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_001, 40)).astype(dtype)
    X[rng.random(X.shape) < 0.5] = 0
    labels = rng.integers(0, 5, len(X))
    network = Network((40, 30, 5), get_activation("gelu"), Multinomial(), device=cpu, dtype=dtype)
    network.initialise(np.random.RandomState(0))
    data = Dataset(
        cpu.Matrix(sp.csr_matrix(X) if sparse else X),
        cpu.make_targets(labels=labels, n_outputs=5, dtype=dtype),
        rng.uniform(0, 2, len(X)).astype(dtype),
        rng.permutation(len(X))[:15_000] if listed else None,
    )
    views, results = network.views(network.parameters), []
    for is_native in (True, False):
        monkeypatch.setattr(Network, "is_native", is_native)
        gradient = np.full_like(network.parameters, np.nan)
        loss = network.full_gradient(data, network.parameters, gradient)
        results.append((network.scores(data, views), loss, gradient))
    # Sums over 20,000 samples, in another order.
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    for native, generic in zip(*results, strict=True):
        np.testing.assert_allclose(native, generic, rtol=tolerance, atol=tolerance)


def test_limits_of_blas_are_those_of_before():
    before = [library.num_threads for library in cpu.threads._libraries()]
    with cpu.threads.alone() as outer:
        assert outer == min(before)
        with cpu.threads.alone() as inner:
            assert inner == max(1, outer // 2)
            assert cpu.threads.limit() == min(before)
        assert {library.num_threads for library in cpu.threads._libraries()} == {1}
    assert [library.num_threads for library in cpu.threads._libraries()] == before
    with cpu.threads.taking_part(), cpu.threads.taking_part(), cpu.threads.alone() as n_threads:
        assert n_threads == max(1, min(before) // 2)
    with threadpool_limits(1), cpu.threads.alone() as n_threads:
        assert n_threads == 1


# --- Dropout --------------------------------------------------------------------------------------


def dropout_masks(problem, key, n, rate):
    """Return the masks of a step, read off a constant."""
    seed, step = key
    masks = []
    for layer, size in enumerate(problem.sizes[1:-1]):
        mask = np.ones((n, size))
        cpu.dropout(mask, seed, step * (len(problem.sizes) - 1) + layer, rate, mask)
        masks.append(mask)
    return masks


@pytest.mark.parametrize("activation", REFERENCE_ACTIVATIONS)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_gradient_with_dropout_is_that_of_the_dropped_network(sparse, activation, rate):
    problem = Problem(
        "multinomial-4", activation, sparse=sparse, weighted=True, hidden=(8, 6), dropout=rate
    )
    key, n = (12, 5), problem.n_samples
    masks = dropout_masks(problem, key, n, rate)
    assert all(0 < np.mean(mask == 0) < 1 for mask in masks)
    loss, gradient = problem.compiled(Batch(n), dropout_key=key)

    def value(flat):
        return problem.value(flat, masks=masks)

    np.testing.assert_allclose(loss, value(problem.flat), rtol=1e-13)
    assert_gradient(gradient, finite_differences(value, problem.flat) / n)
    again = problem.compiled(Batch(n), dropout_key=key)
    assert again[0] == loss
    np.testing.assert_array_equal(again[1], gradient)
    assert problem.compiled(Batch(n), dropout_key=(12, 6))[0] != loss
    assert problem.compiled(Batch(n), dropout_key=(13, 5))[0] != loss


def test_dropout_keeps_the_mean_and_is_off_in_prediction():
    a = np.ones((2000, 50), dtype=np.float32)
    out = np.empty_like(a)
    cpu.dropout(a, 3, 7, 0.3, out)
    assert set(np.unique(out)) == {np.float32(0), np.float32(1 / 0.7)}
    # 100,000 independent units: the share dropped lies within 5 standard deviations, 0.007.
    assert abs(np.mean(out == 0) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / a.size)
    assert abs(np.corrcoef(out[:, 0], out[:, 1])[0, 1]) < 5 / np.sqrt(len(a))
    problem = Problem("squared_error", "tanh", dropout=0.5)
    undropped = Problem("squared_error", "tanh")
    views = problem.network.views(problem.flat)
    np.testing.assert_array_equal(
        problem.network.scores(problem.data, views), undropped.network.scores(problem.data, views)
    )
    gradient, expected = np.empty_like(problem.flat), np.empty_like(problem.flat)
    loss = problem.network.full_gradient(problem.data, problem.flat, gradient)
    assert loss == undropped.network.full_gradient(problem.data, problem.flat, expected)
    np.testing.assert_array_equal(gradient, expected)


# --- Losses ---------------------------------------------------------------------------------------

GRID = np.concatenate([np.linspace(-4, 4, 81), [-1000.0, -37.5, 37.5, 1000.0]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", LOSSES)
def test_value_and_gradient_of_a_loss(case, dtype):
    loss, kind, n_outputs = LOSSES[case]
    rng = np.random.default_rng(1)
    scores = rng.uniform(-3, 3, (200, n_outputs))
    targets = {
        "labels": rng.choice([-1.0, 1.0], scores.shape),
        "signs": rng.choice([-1.0, 1.0], scores.shape),
        "classes": rng.integers(n_outputs, size=200),
        "counts": rng.poisson(2.0, scores.shape).astype(float),
        "reals": rng.standard_normal(scores.shape),
    }[kind]
    # Both sides see the rounded numbers.
    scores = scores.astype(dtype)
    targets = targets if kind == "classes" else targets.astype(dtype)
    wide, wide_targets = (
        scores.astype(float),
        np.asarray(targets, dtype=targets.dtype if kind == "classes" else float),
    )
    expected = reference_losses(loss, wide_targets, wide)
    rtol = 1e-13 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(loss.value(targets, scores), expected.sum() / 200, rtol=rtol)
    gradient = loss.gradient(targets, scores)
    assert gradient.dtype == dtype
    assert gradient.shape == scores.shape
    h = 1e-6
    for k in range(n_outputs):
        step = h * (np.arange(n_outputs) == k)
        difference = reference_losses(loss, wide_targets, wide + step) - reference_losses(
            loss, wide_targets, wide - step
        )
        np.testing.assert_allclose(
            gradient[:, k],
            difference.sum(axis=1) / (2 * h),
            atol=1e-6 if dtype == np.float64 else 1e-4,
        )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_losses_equal_scikit_learns(dtype):
    rng = np.random.default_rng(2)
    y, z = rng.standard_normal((2, 50)).astype(dtype)
    counts, signs = rng.poisson(1.5, 50), rng.choice([-1, 1], 50)
    labels, Z = rng.integers(4, size=50), rng.standard_normal((50, 4)).astype(dtype)
    rtol = 1e-12 if dtype == np.float64 else 2e-6

    def close(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=rtol)

    for ours, theirs, target in (
        (SquaredError(), HalfSquaredError(), y),
        (Huber(0.6), HuberLoss(delta=0.6), y),
        (Quantile(0.8), PinballLoss(quantile=0.8), y),
    ):
        value, gradient = theirs.loss_gradient(target.astype(float), z.astype(float))
        close(ours.value(target, z), value.mean())
        np.testing.assert_allclose(ours.gradient(target, z), gradient, rtol=rtol, atol=rtol)
    close(Quantile(0.8).value(y, z), mean_pinball_loss(y.astype(float), z.astype(float), alpha=0.8))
    close(Poisson().value(counts, z), mean_poisson_deviance(counts, np.exp(z.astype(float))) / 2)
    _, gradient = HalfPoissonLoss().loss_gradient(counts.astype(float), z.astype(float))
    np.testing.assert_allclose(Poisson().gradient(counts, z), gradient, rtol=rtol, atol=rtol)
    value, gradient = HalfMultinomialLoss(n_classes=4).loss_gradient(
        labels.astype(float), np.ascontiguousarray(Z, dtype=float)
    )
    close(Multinomial().value(labels, Z), value.mean())
    np.testing.assert_allclose(Multinomial().gradient(labels, Z), gradient, rtol=rtol, atol=rtol)
    close(Hinge().value(signs, z), hinge_loss(signs, z))
    close(LogLoss().value(signs, z), log_loss(signs, expit(z.astype(float))))


@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (Hinge(), linear_model.SGDClassifier(loss="hinge")),
        (SquaredHinge(), linear_model.SGDClassifier(loss="squared_hinge")),
        (LogLoss(), linear_model.SGDClassifier(loss="log_loss")),
        (ModifiedHuber(), linear_model.SGDClassifier(loss="modified_huber")),
        (Perceptron(), linear_model.SGDClassifier(loss="perceptron")),
        (EpsilonInsensitive(0.3), linear_model.SGDRegressor("epsilon_insensitive", epsilon=0.3)),
        (
            SquaredEpsilonInsensitive(0.3),
            linear_model.SGDRegressor("squared_epsilon_insensitive", epsilon=0.3),
        ),
    ],
    ids=lambda argument: getattr(argument, "name", ""),
)
@pytest.mark.parametrize("z", [-2.3, -0.7, -0.1, 0.2, 0.8, 1.6, 3.1])
def test_derivatives_equal_those_of_scikit_learns_sgd(loss, theirs, z):
    """One step of scikit-learn's SGD at x = 1, rate 1, started at z, moves by the derivative."""
    y, start = (1, -1), {"coef_init": np.array([[z]]), "intercept_init": np.array([0.0])}
    theirs.set_params(
        penalty=None, learning_rate="constant", eta0=1.0, max_iter=1, tol=None, fit_intercept=False
    )
    if loss.kind == "regression":
        start["coef_init"] = start["coef_init"].ravel()
        theirs.fit([[1.0]], [y[0]], **start)
        moved = theirs.coef_[0]
    else:
        # Both classes must occur: the second sample is all zero and moves nothing.
        theirs.set_params(shuffle=False).fit([[1.0], [0.0]], y, **start)
        moved = theirs.coef_[0, 0]
    assert loss.gradient(np.array([1.0]), np.array([z]))[0] == pytest.approx(z - moved, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_extreme_scores_have_finite_losses(dtype):
    z = GRID.astype(dtype)
    for loss in (Hinge(), SquaredHinge(), LogLoss(), ModifiedHuber(), Perceptron()):
        for sign in (-1.0, 1.0):
            y = np.full_like(z, sign)
            assert np.isfinite(loss.value(y, z)), loss
            assert np.isfinite(loss.gradient(y, z)).all(), loss
    assert LogLoss().value([-1.0], np.array([1000.0], dtype=dtype)) == 1000
    Z = np.column_stack([z, -z, np.zeros_like(z)])
    assert np.isfinite(Multinomial().value(np.zeros(len(z), dtype=int), Z))
    gradient = Multinomial().gradient(np.zeros(len(z), dtype=int), Z)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-6)


def test_nan_scores_give_nan_losses():
    for loss in {type(loss): loss for loss, _, _ in LOSSES.values()}.values():
        y, z = (
            (np.array([0]), np.array([[np.nan, 0.0]]))
            if loss.kind == "multinomial"
            else (np.array([1.0]), np.array([np.nan]))
        )
        assert np.isnan(loss.value(y, z)), loss
        assert np.isnan(loss.gradient(y, z)).any(), loss


# --- One native call per epoch = step by step -----------------------------------------------------

TASKS = {
    "log_loss": SGDClassifier("log_loss"),
    "hinge-one_vs_rest": SGDClassifier("hinge"),
    "multinomial": SGDClassifier("multinomial", fit_intercept=False),
    "squared_error": SGDRegressor("squared_error"),
    "huber": SGDRegressor("huber", epsilon=0.4, fit_intercept=False),
}


def make_data(task, n_samples=53, n_features=9):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n_samples, n_features))
    X[rng.random(X.shape) < 0.6] = 0
    score = X @ rng.standard_normal((n_features, 3)) + rng.standard_normal((n_samples, 3))
    if isinstance(TASKS[task], SGDRegressor):
        return X, score[:, 0]
    return X, score.argmax(axis=1) if task != "log_loss" else (score[:, 0] > 0).astype(int)


def fit_both_ways(estimator, X, y, monkeypatch, **fit):
    """Return a fit by native epochs and one by the generic path."""
    native = clone(estimator).fit(X, y, **fit)
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_runs_natively", lambda self, *_: calls.append(1))
        generic = clone(estimator).fit(X, y, **fit)
    assert calls
    return native, generic


def flat_parameters(model):
    if hasattr(model, "coef_"):
        return np.append(model.coef_, model.intercept_)
    return np.concatenate([np.ravel(array) for array in (*model.coefs_, *model.intercepts_)])


def assert_same_fit(actual, expected):
    """Assert equality up to rounding: the two sum in different orders."""

    def close(a, b, what):
        scale = abs(b).max() if np.size(b) else 0
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10 * scale, err_msg=what)

    coefficients = flat_parameters(expected)
    close(flat_parameters(actual), coefficients, "coefficients")
    close(np.array(actual.loss_curve_), np.array(expected.loss_curve_), "loss_curve_")
    assert actual.optimizer_state_.step == expected.optimizer_state_.step
    assert actual.optimizer_state_.slots.keys() == expected.optimizer_state_.slots.keys()
    # The state of an intercept that is not fitted has no meaning.
    fits_intercept = getattr(expected, "fit_intercept", True)
    n = len(coefficients) if fits_intercept else expected.coef_.size
    for name, slot in expected.optimizer_state_.slots.items():
        close(actual.optimizer_state_.slots[name][:n], slot[:n], name)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("optimizer", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_native_epoch_equals_the_generic_path(optimizer, task, sparse, batch_size, monkeypatch):
    X, y = make_data(task)
    estimator = TASKS[task].set_params(
        optimizer=optimizer, batch_size=batch_size, max_iter=2, tol=None, random_state=3
    )
    weights = np.random.default_rng(0).uniform(0, 2, len(y))
    X = sp.csr_matrix(X) if sparse else X
    assert_same_fit(*fit_both_ways(estimator, X, y, monkeypatch, sample_weight=weights))


NETS = {
    # The first product has 5,760 multiplications, so BLAS takes it, and plain loops the others.
    "relu": MLPClassifier((64,), batch_size=10),
    "needs-input": MLPClassifier((5, 4), activation="gelu", batch_size=7),
    "dropout": MLPClassifier((40, 30), activation="silu", dropout=0.4, batch_size=25),
    "per-sample": MLPClassifier((6,), activation="tanh", batch_size=1),
    "in-order": MLPClassifier((9,), activation="logistic", shuffle=False, batch_size=20),
    "group": MLPRegressor(hidden_layer_sizes=8, penalty=GroupL1(), alpha=0.01, batch_size=10),
    "two-targets": MLPRegressor(
        hidden_layer_sizes=(33, 21), activation="elu", penalty="elasticnet", batch_size=60
    ),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(
    ("optimizer", "net"),
    [
        pytest.param(optimizer, net, id=f"{name}-{net}")
        for name, optimizer in ELEMENTWISE.items()
        for net in NETS
        # Other optimizers refuse groups, which is tested elsewhere.
        if net != "group" or isinstance(optimizer, SGD | ProximalGradient)
    ],
)
def test_native_epoch_of_networks(optimizer, net, sparse, monkeypatch):
    monkeypatch.setattr(Trainer, "_owing_pays", lambda *_: False)
    X, y = make_data("squared_error" if isinstance(NETS[net], MLPRegressor) else "multinomial")
    if net == "two-targets":
        y = np.stack([y, X[:, 0]], axis=1)
    estimator = clone(NETS[net]).set_params(
        optimizer=optimizer, max_iter=2, tol=None, random_state=3
    )
    weights = np.random.default_rng(0).uniform(0, 2, len(y))
    X = sp.csr_matrix(X) if sparse else X
    assert_same_fit(*fit_both_ways(estimator, X, y, monkeypatch, sample_weight=weights))


@pytest.mark.parametrize("penalty", ["l1", "elasticnet", None])
@pytest.mark.parametrize("average", [False, True, 20])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam", "ftrl", "proximal_gradient"])
def test_native_epoch_with_penalty_and_averaging(optimizer, sparse, average, penalty, monkeypatch):
    X, y = make_data("log_loss")
    estimator = SGDClassifier(
        "log_loss",
        optimizer=ELEMENTWISE[optimizer],
        penalty=penalty,
        alpha=0.02,
        average=average,
        batch_size=4,
        max_iter=3,
        tol=None,
        random_state=3,
        shuffle=False,
    )
    X = sp.csr_matrix(X) if sparse else X
    assert_same_fit(*fit_both_ways(estimator, X, y, monkeypatch))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("optimizer", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_native_epoch_from_a_given_intercept_that_is_not_fitted(optimizer, sparse, monkeypatch):
    """The intercept given is part of the scores on either path, and is left as it is."""
    X, y = make_data("squared_error")
    estimator = SGDRegressor(
        fit_intercept=False, optimizer=optimizer, max_iter=3, tol=None, random_state=3
    )
    X = sp.csr_matrix(X) if sparse else X
    native, generic = fit_both_ways(estimator, X, y, monkeypatch, intercept_init=[1.5])
    assert native.intercept_[0] == 1.5
    # FTRL makes the weight anew from its state in each step.
    assert generic.intercept_[0] == pytest.approx(1.5, rel=1e-15)
    assert_same_fit(native, generic)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("optimizer", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_an_epoch_in_blocks_of_scalars_equals_one_block(optimizer, sparse, monkeypatch):
    X, y = make_data("log_loss")
    X = sp.csr_matrix(X) if sparse else X

    def fit():
        model = SGDClassifier(
            "log_loss",
            optimizer=optimizer,
            penalty="l1",
            alpha=0.01,
            average=True,
            max_iter=2,
            tol=None,
            random_state=3,
        )
        return model.fit(X, y)

    expected = fit()
    monkeypatch.setattr("skoptim._training._BLOCK_NUMBERS", 100)  # Some five steps a block.
    assert_same_fit(fit(), expected)


def test_fits_in_threads_share_the_processors_and_restore_the_limits():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((3000, 64)), rng.integers(0, 3, 3000)
    before = [library.num_threads for library in cpu.threads._libraries()]
    model = MLPClassifier((50,), max_iter=5, tol=None, random_state=0)
    with ThreadPoolExecutor(3) as pool:
        fits = list(pool.map(lambda _: clone(model).fit(X, y), range(6)))
    assert [library.num_threads for library in cpu.threads._libraries()] == before
    assert cpu.threads._n_fits == cpu.threads._n_inside == 0
    # The number of threads may show in the last digits.
    for fit in fits[1:]:
        np.testing.assert_allclose(fit.coefs_[0], fits[0].coefs_[0], rtol=1e-7, atol=1e-9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_a_process_that_forks_during_a_fit_can_fit():
    before = [library.num_threads for library in cpu.threads._libraries()]
    with cpu.threads.taking_part(), cpu.threads.alone(), cpu.threads._lock:
        child = os.fork()
        if child == 0:
            same = [library.num_threads for library in cpu.threads._libraries()] == before
            with cpu.threads.alone() as n_threads:
                os._exit(0 if same and n_threads == min(before) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
