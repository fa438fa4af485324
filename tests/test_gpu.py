"""The GPU against the CPU: every kernel, every slot, whole fits. Run with ``pytest -m gpu``.

Both devices compile the same formulas, without fused multiply-adds, and division and square root
are correctly rounded on both. So a result is expected bit for bit unless a tolerance is given, and
each tolerance says why. (CuPy compiles with ``-ftz=true``: float32 subnormals are zero on the
device. The data below stay clear of them.)
"""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from gpu_machine import need_device
from optimizer_table import ELEMENTWISE, FULL_BATCH, OPTIMIZERS
from oracle import touched_alone
from sklearn.base import clone

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim._devices import cpu, cuda, cuda_recording, kernel_sources
from skoptim._training import Trainer
from skoptim.optimizers import FTRL, SGD, Adagrad, Adam, NormalizedFTRL, Optimizer
from skoptim.optimizers._base import bind_updater
from skoptim.penalties import Box, PenaltyTerms
from skoptim.schedules import Exponential

need_device()

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
WIDTHS = pytest.mark.parametrize("width", [1, 3, 40])

# pow, exp, log and the like are each device's own library: a few units in the last place apart.
LIBRARY = {"float32": 1e-5, "float64": 1e-13}
# Sums run in another order; relative to the sum of magnitudes.
ORDER = {"float32": 1e-5, "float64": 1e-13}

TERMS = {
    "none": PenaltyTerms(),
    "l1": PenaltyTerms(l1=0.01),
    "l2": PenaltyTerms(l2=0.02),
    "elastic": PenaltyTerms(l1=0.01, l2=0.02),
    "box": PenaltyTerms(lower=-0.1, upper=0.2),
    "group": PenaltyTerms(group_l1=0.03, l1=0.01),
}


def random(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def on_device(array):
    """Return a copy on the device; None of None."""
    return None if array is None else cuda.asarray(array).copy()


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual.get(), expected)


def assert_near(actual, expected, tolerance):
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual.get(), expected, rtol=0, atol=tolerance * scale)


class Pair:
    """The same parameters, state and updater on both devices."""

    def __init__(self, optimizer, terms, width, dtype, *, average, sparse, n_columns=23, n_steps=9):
        self.n_columns, self.width, self.n_steps, self.dtype = n_columns, width, n_steps, dtype
        n_penalised = n_columns * width
        w = random(n_penalised + width, dtype=dtype)
        w[::4] = 0
        state = optimizer.init(w, n_penalised=n_penalised)
        rows = optimizer.prepare(state, n_steps, terms, average=1.0 if average else 0.0).rows()
        self.host, self.device = (
            {
                "w": copy(w),
                "average": copy(np.zeros(len(w))) if average else None,
                **{name: copy(state.slots[name]) for name in optimizer.slot_names},
            }
            for copy in (np.array, on_device)
        )
        self.cpu, self.cuda = (
            bind_updater(
                optimizer,
                device,
                arrays["w"],
                {name: arrays[name] for name in optimizer.slot_names},
                arrays["average"],
                rows,
                n_penalised=n_penalised,
                n_columns=n_columns,
                width=width,
                sparse=sparse,
            )
            for device, arrays in ((cpu, self.host), (cuda, self.device))
        )

    def each(self, method, *arguments):
        """Call a method of both updaters."""
        getattr(self.cpu, method)(*arguments)
        moved = (on_device(a) if isinstance(a, np.ndarray) else a for a in arguments)
        getattr(self.cuda, method)(*moved)

    def sparse_step(self, columns, delta, factor, step):
        """Let both multiply by some columns, compare, and step these."""
        batch = touched_alone(cpu, columns, self.n_columns, self.dtype)
        device_batch = touched_alone(cuda, columns, self.n_columns, self.dtype)
        expected, actual = np.empty_like(delta), cuda.empty(delta.shape, self.dtype)
        self.cpu.multiply_touched(batch.native, step, expected)
        self.cuda.multiply_touched(device_batch.native, step, actual)
        assert_near(actual, expected, LIBRARY[self.dtype])
        self.cpu.apply_touched(batch.native, delta, factor, step)
        self.cuda.apply_touched(device_batch.native, on_device(delta), factor, step)

    def compare(self, tolerance=0.0):
        """Compare the parameters, every slot, and the average."""
        for name, expected in self.host.items():
            if expected is not None:
                assert_near(self.device[name], expected, tolerance)


def suits(optimizer, terms):
    return not terms.group_l1 or isinstance(optimizer, SGD)


RULES = pytest.mark.parametrize(
    ("optimizer", "terms"),
    [
        pytest.param(optimizer, terms, id=f"{name}-{kind}")
        for name, optimizer in ELEMENTWISE.items()
        for kind, terms in TERMS.items()
        if suits(optimizer, terms)
    ],
)


@DTYPES
@WIDTHS
@RULES
@pytest.mark.parametrize("average", [False, True])
def test_dense_steps(optimizer, terms, width, dtype, average):
    pair = Pair(optimizer, terms, width, dtype, average=average, sparse=False)
    for step in range(pair.n_steps):
        pair.each("apply", random(len(pair.host["w"]), dtype=dtype, seed=step), step)
    pair.compare(LIBRARY[dtype] if optimizer.rule == "ftrl_power" else 0.0)


@DTYPES
@WIDTHS
@RULES
@pytest.mark.parametrize("average", [False, True])
def test_sparse_steps(optimizer, terms, width, dtype, average):
    pair = Pair(optimizer, terms, width, dtype, average=average, sparse=True)
    rng = np.random.default_rng(1)
    for step in range(pair.n_steps):
        columns = rng.choice(pair.n_columns, 4, replace=False)
        delta = random(4, width, dtype=dtype, seed=step)
        pair.sparse_step(columns, delta, 0.5 if step % 2 else 1.0, step)
        pair.each("apply_rest", random(width, dtype=dtype, seed=step), step)
    pair.each("settle", pair.n_steps)
    # Debts are paid through pow, log1p and expm1.
    pair.compare(LIBRARY[dtype])


@DTYPES
@pytest.mark.parametrize("bound", [0.1, 1e6])
def test_clipping_by_norm(dtype, bound):
    pair = Pair(Adam(), PenaltyTerms(), 3, dtype, average=False, sparse=False)
    g = random(len(pair.host["w"]), dtype=dtype)
    norm = np.sqrt((g.astype(float) ** 2).sum())
    pair.cpu.apply(g * np.dtype(dtype).type(min(1.0, bound / norm)), 0)
    device_g = on_device(g)
    assert cuda.clipping_factor(pair.cuda, bound, device_g) == 1.0
    pair.cuda.apply(device_g, 0)
    pair.compare(ORDER[dtype])


@DTYPES
def test_norm_of_the_touched_gradient(dtype):
    delta = random(64, 3, dtype=dtype)
    X = sparse_matrix(dtype)
    rows, device_rows, first = batch_of(listed=True)
    norms = []
    for device, copy, taken in ((cpu, np.array, rows), (cuda, on_device, device_rows)):
        touched = device.Touched(device.Matrix(X))
        touched.sort(taken, first, 64)
        norms.append(touched.squared_norm(copy(delta)))
    np.testing.assert_allclose(*norms, rtol=1e-5 if dtype == "float32" else 1e-12)


# Passes of the network.


@DTYPES
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("n_outputs", [1, 4])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("loss", kernel_sources.choices()["Loss"])
def test_losses(loss, n_outputs, labelled, listed, dtype):
    check_loss(loss, n_outputs, labelled, listed, dtype)


@DTYPES
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("n_outputs", [2, 10])
def test_multinomial_loss(n_outputs, listed, dtype):
    check_loss("multinomial", n_outputs, True, listed, dtype)


def check_loss(loss, n_outputs, labelled, listed, dtype, n=3000):
    rng = np.random.default_rng(0)
    z = 2 * random(n, n_outputs, dtype=dtype)
    if labelled:
        given = {"labels": rng.integers(0, max(2, n_outputs), n + 5)}
    else:
        given = {"values": np.abs(random(n + 5, n_outputs, dtype=dtype, seed=1))}
    weights, bias = rng.random(n + 5).astype(dtype), random(n_outputs, dtype=dtype, seed=2)
    rows, first = (rng.permutation(n + 5)[:n], 0) if listed else (None, 3)
    results = []
    for device, copy in ((cpu, np.array), (cuda, on_device)):
        targets = device.make_targets(**given, n_outputs=n_outputs, dtype=dtype)
        d = copy(np.zeros_like(z))
        batch = None if rows is None else copy(rows)
        total = device.loss_gradient(
            loss, copy(z), targets, batch, first, copy(weights), 0.3, 0.25, d, copy(bias)
        )
        results.append((device.read_scalar(total), d))
    (total, d), (device_total, device_d) = results
    assert_near(device_d, d, LIBRARY[dtype])
    # Single losses are rounded in `dtype`, their sum is taken in float64.
    assert device_total == pytest.approx(total, rel=LIBRARY[dtype])


@DTYPES
@pytest.mark.parametrize("name", kernel_sources.choices()["Activation"])
def test_activations(name, dtype):
    z, bias = random(300, 17, dtype=dtype), random(17, dtype=dtype, seed=1)
    delta, a = random(300, 17, dtype=dtype, seed=2), np.empty((300, 17), dtype)
    arrays = [on_device(x) for x in (z, bias, a, delta)]
    cpu.activation_forward(name, z, bias, a)
    cuda.activation_forward(name, *arrays[:3])
    assert_same(arrays[0], z)
    assert_near(arrays[2], a, LIBRARY[dtype])
    sums, device_sums = np.empty(17, dtype), cuda.empty(17, dtype)
    cpu.activation_backward(name, z, a, delta, sums)
    cuda.activation_backward(name, arrays[0], on_device(a), arrays[3], device_sums)
    assert_near(arrays[3], delta, LIBRARY[dtype])
    bound = 2 * ORDER[dtype] * np.abs(delta).sum(axis=0, dtype=np.float64)
    assert (np.abs(device_sums.get() - sums) <= bound).all()


@pytest.mark.parametrize("n", [0, 1, 2, 5, 70_001])
def test_shuffles_are_those_of_the_cpu(n):
    assert_same(cuda.shuffled(n, 12345678901, 7), cpu.shuffled(n, 12345678901, 7))


@DTYPES
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_dropout_silences_the_same_units(rate, dtype):
    a = random(301, 7, dtype=dtype)
    expected, actual = np.empty_like(a), cuda.empty(a.shape, dtype)
    cpu.dropout(a, 12345678901, 7, rate, expected)
    cuda.dropout(on_device(a), 12345678901, 7, rate, actual)
    assert_same(actual, expected)


@DTYPES
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (100_001, 1), (9000, 5), (50, 70)])
def test_sums(shape, dtype):
    a = random(*shape, dtype=dtype)
    expected, actual = np.empty(shape[1], dtype), cuda.empty(shape[1], dtype)
    cpu.column_sums(a, expected)
    cuda.column_sums(on_device(a), actual)
    bound = ORDER[dtype] * np.abs(a).sum(axis=0, dtype=np.float64)
    assert (np.abs(actual.get() - expected) <= bound).all()
    assert cuda.squared_norm(on_device(a)) == pytest.approx(cpu.squared_norm(a), rel=1e-13)
    assert cuda.dot(on_device(a), on_device(a)) == pytest.approx(cpu.dot(a, a), rel=1e-13)
    b = random(*shape, dtype=dtype, seed=1)
    found = cuda.dots(*((on_device(x), on_device(y)) for x, y in ((a, a), (a, b), (b, b))))
    expected = cpu.dots((a, a), (a, b), (b, b))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13 * max(expected))


@DTYPES
@pytest.mark.parametrize("n", [1, 23, 100_001])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("first", "n_pairs"), [(0, 0), (0, 1), (0, 5), (3, 5), (4, 2)])
def test_inverse_hessian_products(first, n_pairs, scaled, n, dtype):
    steps = random(5, n, dtype=dtype)
    changes = (steps * np.geomspace(0.1, 10, n)).astype(dtype)
    changes[1] *= -1  # Left out.
    scale = np.abs(random(n, dtype=dtype, seed=1)) + 1 if scaled else None
    expected = random(n, dtype=dtype, seed=2)
    arrays = [None if a is None else on_device(a) for a in (steps, changes, scale, expected)]
    cpu.inverse_hessian_product(steps, changes, first, n_pairs, scale, expected)
    cuda.inverse_hessian_product(*arrays[:2], first, n_pairs, *arrays[2:])
    # Differences of numbers some ten times as large, rounded some ten times.
    assert_near(arrays[3], expected, 100 * ORDER[dtype])


@DTYPES
def test_gather_and_products(dtype):
    x, rows = random(50, 7, dtype=dtype), np.random.default_rng(0).integers(0, 50, 33)
    gathered = cuda.empty((33, 7), dtype)
    cuda.gather_rows(on_device(x), on_device(rows), 0, gathered)
    assert_same(gathered, x[rows])
    cuda.gather_rows(on_device(x), None, 17, gathered)
    assert_same(gathered, x[17:])
    b = random(7, 9, dtype=dtype)
    out = cuda.empty((50, 9), dtype)
    cuda.matmul(on_device(x), on_device(b), out)
    assert_near(out, x @ b, ORDER[dtype])
    transposed = cuda.empty((7, 9), dtype)
    cuda.matmul(on_device(x).T, out, transposed)
    assert_near(transposed, x.T @ (x @ b), ORDER[dtype])


@DTYPES
def test_prox(dtype):
    w = random(60, dtype=dtype)
    for steps in (np.array([0.3], dtype), np.abs(random(60, dtype=dtype, seed=1))):
        expected, actual = w.copy(), on_device(w)
        cpu.prox(expected, steps, 0.5, 0.2, -1.0, 0.8)
        cuda.prox(actual, on_device(steps), 0.5, 0.2, -1.0, 0.8)
        assert_same(actual, expected)
    for thresholds in (np.array([1.5], dtype), np.linspace(0, 3, 20).astype(dtype)):
        expected, actual = w.copy(), on_device(w)
        cpu.prox_groups(expected, 20, 3, thresholds)
        cuda.prox_groups(actual, 20, 3, on_device(thresholds))
        assert_same(actual, expected)


# Sparse matrices.


def sparse_matrix(dtype, index=np.int32, density=0.1):
    X = sp.random_array((400, 150), density=density, format="csr", rng=0, dtype=np.float64)
    X = sp.csr_matrix(X.astype(dtype))
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    return X


BATCHES = pytest.mark.parametrize("listed", [True, False])


def batch_of(listed):
    rows = np.random.default_rng(2).permutation(400)[:64]
    return (rows, on_device(rows), 0) if listed else (None, None, 11)


@DTYPES
@WIDTHS
@BATCHES
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_sparse_products(index, listed, width, dtype):
    X = sparse_matrix(dtype, index)
    host, device = cpu.Matrix(X), cuda.Matrix(X)
    rows, device_rows, first = batch_of(listed)
    w, delta = random(150, width, dtype=dtype), random(64, width, dtype=dtype, seed=1)
    expected, actual = np.empty((64, width), dtype), cuda.empty((64, width), dtype)
    cpu.csr_matmul(host, rows, first, w, expected)
    cuda.csr_matmul(device, device_rows, first, on_device(w), actual)
    assert_near(actual, expected, ORDER[dtype])
    expected = np.zeros((150, width), dtype)
    cpu.csr_gradient(host, rows, first, delta, expected)
    runs = []
    for _ in range(2):
        actual = on_device(np.zeros_like(expected))
        cuda.csr_gradient(device, device_rows, first, on_device(delta), actual)
        assert_near(actual, expected, ORDER[dtype])
        runs.append(actual.get())
    np.testing.assert_array_equal(*runs)


@DTYPES
@BATCHES
@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("weighted", [False, True])
def test_squares_of_columns(weighted, kind, listed, dtype):
    X = sparse_matrix(dtype)
    X.data *= np.geomspace(1e-3, 1e3, 150, dtype=dtype)[X.indices]
    X.data[::7] = 0  # Stored, but nothing.
    X = X.toarray() if kind == "dense" else X
    rows, device_rows, _ = batch_of(listed)
    n = 64 if listed else 400
    weights = np.abs(random(400, dtype=dtype)) if weighted else None
    of_device = None if weights is None else on_device(weights)
    expected = cpu.column_squares(cpu.Matrix(X), rows, n, weights)
    runs = [cuda.column_squares(cuda.Matrix(X), device_rows, n, of_device) for _ in range(2)]
    for host, device, again in zip(expected, *runs, strict=True):
        np.testing.assert_allclose(device.get(), host, rtol=ORDER[dtype])
        np.testing.assert_array_equal(device.get(), again.get())


@DTYPES
@pytest.mark.parametrize("width", [1, 4, 5])
def test_sparse_gradients_of_columns_of_unlike_sizes(width, dtype):
    # Terms that are added as whole numbers have a unit for each column then.
    X = sparse_matrix("float64")
    X = sp.csr_matrix(X @ sp.diags_array(10.0 ** np.linspace(-4, 6, 150)), dtype=dtype)
    delta = random(400, width, dtype=dtype)
    delta[::7] *= 1e-3
    expected = X.astype(float).T @ delta.astype(float)
    actual = on_device(np.zeros((150, width), dtype))
    cuda.csr_gradient(cuda.Matrix(X), None, 0, on_device(delta), actual)
    magnitudes = abs(X.astype(float)).T @ abs(delta.astype(float))
    assert (np.abs(actual.get() - expected) <= ORDER[dtype] * magnitudes).all()


def skewed_matrix(kind, dtype):
    """Return a matrix whose frequent columns are none, or more than there is room for."""
    n_rows, n_columns, density = {
        "rare": (4000, 60_000, 0.003),  # Blocks meet more new columns than they collect.
        "frequent": (200, 3000, 0.05),
        "empty": (50, 40, 0.0),
    }[kind]
    X = sp.random_array((n_rows, n_columns), density=density, format="csr", rng=0)
    return sp.csr_matrix(X.astype(dtype))


SKEWED = pytest.mark.parametrize("kind", ["rare", "frequent", "empty"])


@DTYPES
@SKEWED
@pytest.mark.parametrize("width", [1, 4])
def test_sparse_gradients_of_columns_however_frequent(width, kind, dtype):
    X = skewed_matrix(kind, dtype)
    n_frequent = len(cuda.Matrix(X).frequent)
    assert n_frequent == {"rare": 0, "frequent": cuda._MOST_FREQUENT, "empty": 0}[kind]
    delta = random(X.shape[0], width, dtype=dtype)
    actual = on_device(np.zeros((X.shape[1], width), dtype=dtype))
    cuda.csr_gradient(cuda.Matrix(X), None, 0, on_device(delta), actual)
    expected = X.astype(float).T @ delta.astype(float)
    magnitudes = abs(X.astype(float)).T @ abs(delta.astype(float))
    # A term is rounded to 2^-60 of the largest that its column might have, times their number.
    largest = abs(X).max(axis=0).toarray().T.astype(float) * np.abs(delta).max() * X.shape[0]
    rounded = 2.0**-60 * largest * np.diff(X.tocsc().indptr)[:, None]
    assert (np.abs(actual.get() - expected) <= ORDER[dtype] * magnitudes + rounded).all()


@SKEWED
@pytest.mark.parametrize("optimizer", [FTRL(0.5), Adam(0.01), SGD(0.1)])
def test_fits_on_columns_however_frequent(optimizer, kind):
    X = skewed_matrix(kind, "float64")
    y = np.random.default_rng(0).integers(0, 2, X.shape[0])
    model = SGDClassifier(
        "log_loss", penalty="l2", alpha=1e-4, optimizer=optimizer, batch_size=X.shape[0] // 3,
        max_iter=2, tol=None, random_state=0,
    )  # fmt: skip
    of_cpu = clone(model).fit(X, y)
    of_cuda = model.set_params(device="cuda").fit(X, y)
    np.testing.assert_allclose(of_cuda.coef_, of_cpu.coef_, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(of_cuda.loss_curve_, of_cpu.loss_curve_, rtol=1e-10)


def test_unordered_and_repeated_entries_count_as_on_the_cpu():
    data, indices = np.arange(1.0, 7.0), np.array([4, 0, 4, 2, 1, 2])
    X = sp.csr_matrix((data, indices, np.array([0, 3, 3, 6])), shape=(3, 5))
    w, out = random(5, 2, dtype="float64"), cuda.empty((3, 2), "float64")
    cuda.csr_matmul(cuda.Matrix(X), None, 0, on_device(w), out)
    assert_near(out, X.toarray() @ w, ORDER["float64"])


def test_malformed_matrices_on_the_device_are_refused():
    from cupyx.scipy.sparse import csr_matrix

    good = sparse_matrix("float64")
    for name, place, value in (("indices", 0, 150), ("indices", 3, -1), ("indptr", 2, 10**6)):
        X = csr_matrix(good)
        getattr(X, name)[place] = value
        with pytest.raises(ValueError, match="CSR matrix"):
            cuda.Matrix(X)


# Whole fits.


class SignDescent(Optimizer):
    """An optimizer in array code with one slot."""

    slots = ("direction",)

    def __init__(self, learning_rate=0.01):
        self.learning_rate = learning_rate

    def update(self, xp, w, g, slots, scalars):
        slots["direction"][...] = 0.9 * slots["direction"] + 0.1 * xp.sign(g)
        w -= scalars["learning_rate"] * slots["direction"]


ESTIMATORS = {
    "SGDClassifier": SGDClassifier("log_loss", alpha=1e-3, batch_size=32),
    "SGDRegressor": SGDRegressor(alpha=1e-3, batch_size=32),
    "MLPClassifier": MLPClassifier((12, 5), activation="tanh", alpha=1e-3, batch_size=32),
    "MLPRegressor": MLPRegressor(hidden_layer_sizes=(9,), activation="silu", batch_size=32),
}

# Losses of an epoch, relative: what the project promises over the first ten epochs.
LOSSES = {"float32": 1e-5, "float64": 1e-10}


def training_data(dtype, is_sparse, classifier):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((160, 20)) * (rng.random((160, 20)) < 0.3)
    score = X @ rng.standard_normal((20, 3)) + 0.1 * rng.standard_normal((160, 3))
    y = score.argmax(axis=1) if classifier else score[:, 0]
    X = X.astype(dtype)
    return (sp.csr_matrix(X) if is_sparse else X), y


def fitted(estimator, device, X, y, **parameters):
    model = clone(estimator).set_params(device=device, random_state=0, tol=None, **parameters)
    with np.errstate(all="ignore"):
        return model.fit(X, y)


@DTYPES
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "custom"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_fits_follow_the_cpu(name, optimizer, is_sparse, dtype):
    estimator = ESTIMATORS[name]
    rule = SignDescent() if optimizer == "custom" else OPTIMIZERS[optimizer]
    X, y = training_data(dtype, is_sparse, name.endswith("Classifier"))
    host, device = (
        fitted(estimator, where, X, y, optimizer=rule, max_iter=10) for where in ("cpu", "cuda")
    )
    # Lion steps by the sign of a sum; near a minimum that is a sign of rounding, and runs part, as
    # do those of the CPU on dense and CSR data.
    compared = slice(5) if optimizer.startswith("lion") else slice(None)
    np.testing.assert_allclose(
        device.loss_curve_[compared], host.loss_curve_[compared], rtol=LOSSES[dtype]
    )
    assert isinstance(device.predict(X), np.ndarray)


def assert_models_agree(device, host):
    """Compare losses, validation scores and parameters of two fits in float64."""
    np.testing.assert_allclose(device.loss_curve_, host.loss_curve_, rtol=LOSSES["float64"])
    if host.validation_scores_ is not None:
        np.testing.assert_allclose(device.validation_scores_, host.validation_scores_, rtol=1e-12)
    for actual, expected in zip(parameters_of(device), parameters_of(host), strict=True):
        # Rules that divide by the size of the gradient enlarge the rounding of one that cancels.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def parameters_of(model):
    if isinstance(model, MLPClassifier | MLPRegressor):
        return [*model.coefs_, *model.intercepts_]
    return [model.coef_, model.intercept_]


@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])
def test_dropout_and_averaging_follow_the_cpu(is_sparse):
    X, y = training_data("float64", is_sparse, True)
    for estimator, parameters in (
        (ESTIMATORS["MLPClassifier"], {"dropout": 0.3}),
        (ESTIMATORS["SGDClassifier"], {"average": True, "optimizer": SGD(0.05)}),
        (ESTIMATORS["SGDClassifier"], {"early_stopping": True}),
    ):
        host, device = (
            fitted(estimator, where, X, y, max_iter=6, **parameters) for where in ("cpu", "cuda")
        )
        assert_models_agree(device, host)


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])
def test_validation_on_more_samples_than_a_batch_leaves_the_training_alone(name, is_sparse):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 12)) * (rng.random((2000, 12)) < 0.5)
    y = (X @ rng.standard_normal((12, 3))).argmax(axis=1)
    X = sp.csr_matrix(X) if is_sparse else X
    parameters = {"early_stopping": True, "validation_fraction": 0.3, "max_iter": 8}
    host, device = (
        fitted(ESTIMATORS[name], where, X, y, optimizer=Adam(0.01), **parameters)
        for where in ("cpu", "cuda")
    )
    assert_models_agree(device, host)


def owing_data(n_classes):
    """Return 300 rows of 2,000 columns, of which a batch touches few; column 3 stands in all."""
    rng = np.random.default_rng(0)
    columns = np.array([rng.choice(2000, 7, replace=False) for _ in range(300)])
    columns[:, 0] = 3
    values = rng.standard_normal(columns.shape)
    X = sp.csr_matrix(
        (values.ravel(), (np.repeat(np.arange(300), 7), columns.ravel())), (300, 2000)
    )
    X.sum_duplicates()
    scores = X @ rng.standard_normal((2000, n_classes))
    return X, scores.argmax(axis=1)


# A name, the classes (with two one output, with eight the first layer is wide), the estimator.
OWING = {
    "narrow": (2, SGDClassifier("log_loss", batch_size=21)),
    "wide": (8, SGDClassifier("log_loss", batch_size=21)),
    "network": (3, MLPClassifier((8,), activation="tanh", batch_size=21)),
    "narrow network": (3, MLPClassifier((3,), activation="tanh", batch_size=21)),
}


def slow_start(step):
    return 0.05 * np.clip((step - 12) / 20, 0.0, 1.0)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", OWING)
@pytest.mark.parametrize(
    ("optimizer", "parameters"),
    [
        (Adam(), {"alpha": 1e-3}),
        (Adam(clip_norm=0.02), {}),
        (FTRL(l1=0.01), {}),
        (SGD(0.05, momentum=0.9), {"penalty": "l1", "alpha": 1e-4}),
        (NormalizedFTRL(), {}),
        (FTRL(Exponential(0.1, 0.9)), {"penalty": "l1", "alpha": 1e-4}),
        (FTRL(l1=0.01, clip_norm=0.02), {"penalty": Box(-0.01, 0.02)}),
        (Adagrad(0.1), {"penalty": None}),
        (SGD(0.05, clip_norm=0.02), {"penalty": None}),
        # In the first steps the rate is zero, and nothing decays: only later ones are owed.
        (SGD(slow_start, weight_decay=0.5), {"penalty": None}),
    ],
    ids=[
        *("adam", "clipped", "ftrl", "momentum-l1", "normalized"),
        *("ftrl-schedule", "ftrl-box", "resting", "resting-clipped", "resting-at-first"),
    ],
)
def test_owed_steps_in_a_fit_follow_the_cpu(optimizer, parameters, kind, shuffle, monkeypatch):
    # 300 samples in batches of 21: fourteen whole ones and a rest; in blocks of five steps, two of
    # which are recorded together.
    monkeypatch.setattr(Trainer, "_block_steps", lambda self: 5)
    monkeypatch.setattr(cuda_recording, "_STEPS_AT_ONCE", 2)
    monkeypatch.setattr(cuda_recording, "_STEPS_BEFORE", 1)
    n_classes, estimator = OWING[kind]
    X, y = owing_data(n_classes)
    parameters = {**parameters, "shuffle": shuffle, "max_iter": 5, "optimizer": optimizer}
    host, device = (fitted(estimator, where, X, y, **parameters) for where in ("cpu", "cuda"))
    assert_models_agree(device, host)


@pytest.mark.parametrize("kind", ["narrow", "wide"])
def test_averages_of_owed_steps_follow_the_cpu(kind):
    n_classes, estimator = OWING[kind]
    X, y = owing_data(n_classes)
    parameters = {"average": True, "max_iter": 4, "optimizer": SGD(0.05)}
    host, device = (fitted(estimator, where, X, y, **parameters) for where in ("cpu", "cuda"))
    assert_models_agree(device, host)


@DTYPES
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("width", [1, 5])
def test_derivatives_that_are_not_finite_are_seen(width, value, dtype):
    X = sparse_matrix(dtype)
    delta = random(400, width, dtype=dtype)
    delta[7, 0] = value
    actual = on_device(np.zeros((150, width), dtype))
    cuda.csr_gradient(cuda.Matrix(X), None, 0, on_device(delta), actual)
    assert not np.isfinite(actual.get()[X[[7]].indices, 0]).any()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
@pytest.mark.parametrize("block", [3, 8])
def test_recorded_steps_follow_the_cpu(block, name, is_sparse, shuffle, monkeypatch):
    # 160 samples in batches of 21: seven whole ones and a rest; in blocks of three steps, or of all
    # with three recorded together.
    monkeypatch.setattr(Trainer, "_block_steps", lambda self: block)
    monkeypatch.setattr(cuda_recording, "_STEPS_AT_ONCE", 3)
    monkeypatch.setattr(cuda_recording, "_STEPS_BEFORE", 2)
    X, y = training_data("float64", is_sparse, True)
    parameters = {"batch_size": 21, "shuffle": shuffle, "max_iter": 5}
    if name == "MLPClassifier":
        parameters["dropout"] = 0.2
    for optimizer in (Adam(clip_norm=0.05), FTRL(l1=0.01), SGD(0.05, momentum=0.9)):
        host, device = (
            fitted(ESTIMATORS[name], where, X, y, optimizer=optimizer, **parameters)
            for where in ("cpu", "cuda")
        )
        assert_models_agree(device, host)


def cube(z):
    return z**3


def cube_derivative(z):
    return 3 * z**2


def test_activations_of_the_user_are_not_recorded_and_follow_the_cpu():
    X, y = training_data("float64", False, True)
    host, device = (
        fitted(
            ESTIMATORS["MLPClassifier"], where, X, y, max_iter=4, activation=(cube, cube_derivative)
        )
        for where in ("cpu", "cuda")
    )
    np.testing.assert_allclose(device.loss_curve_, host.loss_curve_, rtol=LOSSES["float64"])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_models_are_published_on_the_host(name):
    X, y = training_data("float32", False, name.endswith("Classifier"))
    model = fitted(ESTIMATORS[name], "cuda", X, y, optimizer=FTRL(), max_iter=2)
    assert b"cupy" not in pickle.dumps(model)


@pytest.mark.parametrize("optimizer", ["adam", "ftrl", *FULL_BATCH])
def test_results_repeat(optimizer):
    X, y = training_data("float32", True, True)
    curves = [
        fitted(
            ESTIMATORS["SGDClassifier"], "cuda", X, y, optimizer=OPTIMIZERS[optimizer], max_iter=5
        ).loss_curve_
        for _ in range(2)
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier"])
def test_memory_does_not_grow(name):
    X, y = training_data("float32", True, True)
    pool, used, held = cuda.xp.get_default_memory_pool(), [], []
    for _ in range(100):
        fitted(ESTIMATORS[name], "cuda", X, y, max_iter=2)
        used.append(pool.used_bytes())
        held.append(pool.total_bytes())
    assert used[-1] <= used[5]
    assert held[-1] <= held[5]
