"""The GPU: networks, sparse and full-batch linear models, against peers, floors and our own CPU.

Run ``python benchmarks/gpu.py [--parts mlp sparse batch logistic crossover] [--shapes 100/200 ...]
[--repeats N] [--no-compile]``. It needs a CUDA device and CuPy; without torch peers and the floor
of the networks are left out. All data is synthetic and float32; TensorFloat-32 is off everywhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
import traceback
from collections.abc import Callable
from datetime import date
from itertools import pairwise, product
from statistics import median
from typing import Any

import data
import numpy as np
import scipy.sparse as sp
from dense_mlp import torch_net
from measure import quality, table, timed
from scipy.special import logsumexp, softmax

from skoptim import MLPClassifier, SGDClassifier
from skoptim._devices import cuda
from skoptim.optimizers import FTRL, LBFGS, Adam

try:
    import torch
except ImportError:
    torch = None
else:
    torch.backends.cuda.matmul.allow_tf32 = False

SHAPES = ("100/200", "64/32", "512,512/256", "2048,2048/4096")
RATE = 1e-3
EPOCHS = 3  # The first is not timed.
SPARSE_BATCH = 8192
SECTOR = 32  # Bytes; the least that the device reads or writes.


def wait(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cpu":
        return
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    cuda.xp.cuda.runtime.deviceSynchronize()


def has_torch(device: str) -> bool:
    return torch is not None and (device == "cpu" or torch.cuda.is_available())


def after_first(model: Any) -> list[float]:
    """Return the seconds of the epochs after the first; neither transfer nor compilation counts."""
    return model.history_["seconds"][1:]


# Data.


def dense(n_rows: int = 60_000, n_held_out: int = 10_000, n_columns: int = 784) -> data.Split:
    """Return normal columns of falling scale, with 10 classes by a noisy random network."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows + n_held_out, n_columns), dtype=np.float32)
    X *= np.geomspace(1, 0.1, n_columns, dtype=np.float32)
    inner = rng.standard_normal((n_columns, 16), dtype=np.float32) / 8
    outer = rng.standard_normal((16, 10), dtype=np.float32)
    scores = np.tanh(X @ inner) @ outer
    scores += 0.5 * rng.standard_normal(scores.shape, dtype=np.float32)
    y = scores.argmax(axis=1)
    return data.Split("synthetic", X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:])


def zipf(n_rows: int, n_columns: int, n_held_out: int, exponent: float = 1.1) -> data.Split:
    """Return rows of norm one, columns drawn by Zipf's law; two classes by a sparse noisy model.

    A column counts once a row, which leaves some 60 of those drawn.
    """
    rng = np.random.default_rng(0)
    shape = n_rows + n_held_out, 75
    # The continuous law of density x ** -exponent, cut into columns, in a random order.
    power = 1 - exponent
    drawn = rng.random(shape)
    drawn *= n_columns**power - 1
    drawn += 1
    drawn **= 1 / power
    order = rng.permutation(n_columns).astype(np.int32)
    columns = order[np.minimum(drawn.astype(np.int32), n_columns) - 1]
    columns.sort(axis=1)
    is_new = np.ones(shape, dtype=bool)
    is_new[:, 1:] = columns[:, 1:] != columns[:, :-1]
    values = (1 + rng.random(shape, dtype=np.float32)) * is_new
    values /= np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
    indptr = np.concatenate([[0], np.cumsum(is_new.sum(axis=1))]).astype(np.int32)
    X = sp.csr_matrix((values[is_new], columns[is_new], indptr), shape=(shape[0], n_columns))
    weights = rng.standard_normal(n_columns, dtype=np.float32)
    weights[rng.random(n_columns) < 0.5] = 0
    y = (X @ weights * 4 + rng.logistic(size=shape[0]) * 0.5 > 0).astype(np.int64)
    return data.Split("zipf", X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:])


# Networks.


class Eager:
    """A loop written by hand: data and order on the device, a gather, and fused Adam per batch."""

    label = "torch, eager"
    options: dict[str, Any] = {}

    def __init__(self, split: data.Split, hidden: tuple[int, ...], batch: int, device: str):
        torch.manual_seed(0)
        self.device, self.batch = device, batch
        self.X, self.y = (torch.from_numpy(a).to(device) for a in (split.X, split.y))
        self.net = torch_net(split, hidden).to(device)
        for layer in self.net:
            if isinstance(layer, torch.nn.Linear):
                start_as_ours(layer)
        self.loss_of = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.net.parameters(), RATE, fused=True, **self.options)
        self.initial = [w.detach().clone() for w in self.net.parameters()]
        self.prepare()
        wait(device)

    @property
    def n_rows(self) -> int:
        """Number of rows that an epoch takes."""
        return len(self.X)

    def prepare(self) -> None:
        """Take a few steps, so that nothing is left to compile or to record."""
        for rows in torch.randperm(len(self.X), device=self.device).split(self.batch)[:5]:
            self.step(rows)

    def loss(self, X: Any, y: Any) -> Any:
        """Return the mean loss of a batch."""
        return self.loss_of(self.net(X), y)

    def step(self, rows: Any) -> None:
        """Train on the rows."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.X[rows], self.y[rows]).backward()
        self.optimizer.step()

    def fit(self, epochs: int) -> list[float]:
        """Train from the start; return the seconds of the epochs after the first."""
        with torch.no_grad():
            for w, initial in zip(self.net.parameters(), self.initial, strict=True):
                w.copy_(initial)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        seconds = []
        for _ in range(epochs):
            wait(self.device)
            start = time.perf_counter()
            for rows in torch.randperm(len(self.X), device=self.device).split(self.batch):
                self.step(rows)
            wait(self.device)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return classes."""
        with torch.no_grad():
            scores = self.net(torch.from_numpy(X).to(self.device))
        return scores.argmax(dim=1).cpu().numpy()


class Compiled(Eager):
    """Forward, loss and backward by torch.compile; an incomplete batch goes through eagerly."""

    label = "torch.compile"

    def prepare(self) -> None:
        """Compile."""
        torch.compiler.reset()
        self.compiled = torch.compile(self.loss, mode="reduce-overhead", dynamic=False)
        super().prepare()

    def step(self, rows: Any) -> None:
        """Train on the rows."""
        if len(rows) < self.batch:
            super().step(rows)
            return
        self.optimizer.zero_grad(set_to_none=True)
        self.compiled(self.X[rows], self.y[rows]).backward()
        self.optimizer.step()


class Graphed(Eager):
    """A whole step, the gather too, in a CUDA graph; an incomplete batch is dropped."""

    label = "torch, CUDA graph"
    options = {"capturable": True}

    @property
    def n_rows(self) -> int:
        """Number of rows that an epoch takes."""
        return len(self.X) - len(self.X) % self.batch

    def prepare(self) -> None:
        """Capture."""
        self.rows = torch.arange(self.batch, device=self.device)
        eager_step = super().step
        self.graph = captured(lambda: eager_step(self.rows), before=self.optimizer.zero_grad)

    def step(self, rows: Any) -> None:
        """Train on the rows."""
        if len(rows) == self.batch:
            self.rows.copy_(rows)
            self.graph.replay()


def start_as_ours(layer: Any) -> None:
    """Draw a layer as ours does, so that qualities can be compared."""
    bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
    for w in layer.parameters():
        torch.nn.init.uniform_(w, -bound, bound)


def captured(work: Callable[[], None], before: Callable[[], None] | None = None) -> Any:
    """Return a CUDA graph of some work, which runs a few times before, on the stream that captures.

    `before` is called right before the capture: gradients that are None then come to lie in the
    memory of the graph, and each replay overwrites them.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    if before is not None:
        before()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph


class BareProducts:
    """The matrix products of a step alone, into buffers: 8 steps in a CUDA graph."""

    n_steps = 8

    def __init__(self, sizes: list[int], batch: int, device: str):
        self.device = device
        self.coefs = [torch.randn(shape, device=device) / 30 for shape in pairwise(sizes)]
        self.gradients = [torch.empty_like(coef) for coef in self.coefs]
        self.outputs, self.deltas = (
            [torch.randn((batch, size), device=device) for size in sizes] for _ in range(2)
        )
        self.run = captured(self.multiply).replay if device == "cuda" else self.multiply

    def multiply(self) -> None:
        """Multiply: forward, then the gradients of each layer's weights and, but once, inputs."""
        outputs, deltas = self.outputs, self.deltas
        for _ in range(self.n_steps):
            for i, coef in enumerate(self.coefs):
                torch.mm(outputs[i], coef, out=outputs[i + 1])
            for i in reversed(range(len(self.coefs))):
                torch.mm(outputs[i].T, deltas[i + 1], out=self.gradients[i])
                if i > 0:
                    torch.mm(deltas[i + 1], self.coefs[i].T, out=deltas[i])

    def seconds(self) -> float:
        """Return the seconds of a step, once so many are run that the clocks are up."""
        n_runs, seconds = 1, 0.0
        while seconds < 0.05:
            n_runs *= 4
            wait(self.device)
            start = time.perf_counter()
            for _ in range(n_runs):
                self.run()
            wait(self.device)
            seconds = time.perf_counter() - start
        return seconds / (n_runs * self.n_steps)


def built(label: str, make: Callable[[], Any]) -> Any:
    """Return a peer, or None, with a line that says why, if it does not run here."""
    try:
        return timed(make)[1]
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        print(f"{label} is left out. {type(error).__name__}: {reason}\n", flush=True)
        return None


def mlp_part(
    split: data.Split, shape: str, repeats: int, compiles: bool, device: str = "cuda"
) -> None:
    sizes_text, _, batch_text = shape.partition("/")
    hidden, batch = tuple(int(size) for size in sizes_text.split(",")), int(batch_text)
    print(f"\n### Networks: hidden {hidden}, batch {batch}. {split.describe()}\n", flush=True)
    peers: list[Any] = []
    bare = None
    if has_torch(device):
        # torch.compile first: it lets go of workspaces that graphs captured before would still use.
        for kind in (*([Compiled] if compiles else []), Eager, *([Graphed] * (device != "cpu"))):
            peers.append(built(kind.label, lambda kind=kind: kind(split, hidden, batch, device)))
        sizes = [split.X.shape[1], *hidden, split.n_classes]
        bare = built("The floor", lambda: BareProducts(sizes, batch, device))
    peers = [peer for peer in peers if peer is not None]
    ours = MLPClassifier(
        hidden, batch_size=batch, alpha=0.0, optimizer=Adam(RATE), max_iter=EPOCHS, tol=None,
        random_state=0, device=device,
    )  # fmt: skip
    floors, own, theirs = [], [], [[] for _ in peers]
    for _ in range(repeats):
        if bare is not None:
            floors.append(bare.seconds())
        timed(lambda: ours.fit(split.X, split.y))
        own += after_first(ours)
        for peer, seconds in zip(peers, theirs, strict=True):
            seconds += peer.fit(EPOCHS)

    n_steps = len(split.X) / batch
    own_step = median(own) / n_steps

    def row(label: str, step: float, epoch: float, model: Any = None) -> dict[str, str]:
        right = (
            "" if model is None else f"{(model.predict(split.X_test) == split.y_test).mean():.4f}"
        )
        return {
            "": label,
            "s/epoch": f"{epoch:.4f}",
            "us/step": f"{1e6 * step:.1f}",
            "ours / this": f"{own_step / step:.2f}",
            f"accuracy after {EPOCHS} epochs": right,
        }

    rows = [row("skoptim", own_step, median(own), ours)]
    for peer, seconds in zip(peers, theirs, strict=True):
        step = median(seconds) * batch / peer.n_rows
        dropped = "" if peer.n_rows == len(split.X) else ", last batch dropped"
        rows.append(row(peer.label + dropped, step, median(seconds), peer))
    if floors:
        rows.append(row("floor: products alone", median(floors), median(floors) * n_steps))
    print(f"A step is {batch} rows, of which an epoch has {n_steps:.1f}; ratios are per step.\n")
    print(table(rows), flush=True)


# Sparse linear models.


def copy_bandwidth(device: str, n_bytes: int = 2**30) -> float:
    """Return the bytes, read and written, that a copy on the device moves in a second."""
    xp = np if device == "cpu" else cuda.xp
    source, target = xp.ones(n_bytes // 4, dtype=np.float32), xp.empty(n_bytes // 4, np.float32)
    best = 0.0
    for _ in range(4):
        wait(device)
        start = time.perf_counter()
        for _ in range(5):
            xp.copyto(target, source)
        wait(device)
        best = max(best, 5 * 2 * n_bytes / (time.perf_counter() - start))
    return best


def touched(X: sp.csr_matrix, batch: int, n_batches: int = 3) -> tuple[float, float]:
    """Return the mean numbers of columns, and of sectors of these, that random batches touch."""
    order = np.random.default_rng(0).permutation(X.shape[0])
    counts = []
    for first in range(0, n_batches * batch, batch):
        columns = np.unique(X[order[first : first + batch]].indices)
        sectors = np.unique(columns // (SECTOR // X.dtype.itemsize))
        counts.append((len(columns), len(sectors)))
    n_columns, n_sectors = np.mean(counts, axis=0)
    return float(n_columns), float(n_sectors)


def linear(batch: int | str, epochs: int, device: str) -> SGDClassifier:
    return SGDClassifier(
        "log_loss", penalty="l1", alpha=1e-6, optimizer=FTRL(0.1), batch_size=batch,
        max_iter=epochs, tol=None, random_state=0, device=device,
    )  # fmt: skip


def sparse_part(
    split: data.Split, repeats: int, batch: int = SPARSE_BATCH, device: str = "cuda"
) -> None:
    print(f"\n### FTRL on CSR. {split.describe()}\n", flush=True)
    X = split.X
    models = {
        f"skoptim, GPU, batch {batch}": linear(batch, EPOCHS, device),
        f"skoptim, CPU, batch {batch}": linear(batch, EPOCHS, "cpu"),
        "skoptim, CPU, batch 1": linear(1, EPOCHS, "cpu"),
    }
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(repeats):
        for label, model in models.items():
            timed(lambda model=model: model.fit(X, split.y))
            seconds[label] += after_first(model)

    bandwidth = copy_bandwidth(device)
    n_columns, n_sectors = touched(X, batch)
    entry = X.data.itemsize + X.indices.itemsize
    step = 2 * entry * X.nnz / X.shape[0] * batch + 2 * 3 * SECTOR * n_sectors
    floor = step * X.shape[0] / batch / bandwidth
    own = median(seconds[next(iter(models))])

    def row(label: str, used: float) -> dict[str, str]:
        return {
            "": label,
            "s/epoch": f"{used:.4f}",
            "ns/entry": f"{1e9 * used / X.nnz:.3f}",
            "GPU / this": f"{own / used:.3f}",
        }

    rows = [
        {**row(label, median(seconds[label])), **quality(model, split)}
        for label, model in models.items()
    ]
    rows.append(row("floor: bytes / bandwidth", floor))
    print(
        f"The floor: a step reads its {X.nnz / X.shape[0] * batch:,.0f} entries, {entry} bytes, "
        f"twice (by rows, by columns), and reads and writes the {SECTOR}-byte sectors of w and two "
        f"arrays of state that hold the {n_columns:,.0f} columns of the batch: {n_sectors:,.0f} of "
        f"each (counted). That is {step / 1e6:.1f} MB a step, at {bandwidth / 1e12:.2f} TB/s "
        "(measured: a copy of 1 GiB, bytes read and written).\n"
    )
    print(table(rows), flush=True)


def batch_part(
    n_rows: int = 2**17,
    n_columns: int = 2**18,
    batches: tuple[int, ...] = (64, 256, 1024, 4096, 16384),
    device: str = "cuda",
) -> None:
    """Print what the batch of a linear model costs and teaches, with the default optimizer."""
    split = zipf(n_rows, n_columns, 2**14)
    print(f"\n### The batch of linear models, five epochs. {split.describe()}\n", flush=True)

    def model(batch: int, place: str) -> SGDClassifier:
        return SGDClassifier(
            "log_loss", alpha=1e-6, batch_size=batch, max_iter=5, tol=None, random_state=0,
            device=place,
        )  # fmt: skip

    rows = []
    for place, batch in [("cpu", 1), *((device, batch) for batch in batches)]:
        fitted = model(batch, place).fit(split.X, split.y)
        seconds = median(after_first(fitted))
        rows.append(
            {
                "device": place,
                "batch": batch,
                "s/epoch": f"{seconds:.4f}",
                "us/step": f"{1e6 * seconds * batch / n_rows:.1f}",
                **quality(fitted, split),
            }
        )
    print(table(rows), flush=True)


# Full-batch linear models.

ALPHA, TOL, MOST_ITERATIONS = 1e-3, 1e-4, 200

#: Seconds in all, seconds of the iterations alone, their number, coef and intercept.
Solution = tuple[float, float, int, np.ndarray, np.ndarray]


def our_lbfgs(split: data.Split, max_iter: int, device: str) -> Solution:
    model = SGDClassifier(
        "multinomial", penalty="l2", alpha=ALPHA, optimizer=LBFGS(), tol=TOL, max_iter=max_iter,
        random_state=0, device=device,
    )  # fmt: skip
    seconds, _ = timed(lambda: model.fit(split.X, split.y))
    inside = sum(model.history_["seconds"])
    return seconds, inside, int(model.n_iter_), model.coef_, model.intercept_


def torch_lbfgs(split: data.Split, max_iter: int, device: str) -> Solution:
    wait(device)
    start = time.perf_counter()
    X, y = (torch.from_numpy(a).to(device) for a in (split.X, split.y))
    net = torch.nn.Linear(X.shape[1], split.n_classes, device=device)
    loss_of = torch.nn.CrossEntropyLoss()

    def objective() -> Any:
        net.zero_grad()
        value = loss_of(net(X), y) + ALPHA / 2 * net.weight.square().sum()
        value.backward()
        return value

    with torch.no_grad():
        for w in net.parameters():
            w.zero_()
    objective()
    # Ours is relative to the first gradient, if that is below one.
    first = max(float(w.grad.abs().max()) for w in net.parameters())
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=max_iter, max_eval=20 * max_iter, history_size=10,
        tolerance_grad=TOL * min(1.0, first), tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    begin = time.perf_counter()
    optimizer.step(objective)
    wait(device)
    end = time.perf_counter()
    coef, intercept = (w.detach().cpu().numpy() for w in (net.weight, net.bias))
    n_iter = optimizer.state[net.weight]["n_iter"]
    return end - start, end - begin, n_iter, coef, intercept


def reached(coef: np.ndarray, intercept: np.ndarray, split: data.Split) -> tuple[float, float]:
    """Return the objective, and the largest entry of its gradient, in float64."""
    X, y, rows = split.X.astype(np.float64), split.y, np.arange(len(split.y))
    coef = coef.astype(np.float64)
    z = X @ coef.T + intercept
    loss = (logsumexp(z, axis=1) - z[rows, y]).mean()
    delta = softmax(z, axis=1)
    delta[rows, y] -= 1
    gradient = delta.T @ X / len(X) + ALPHA * coef
    largest = max(np.abs(gradient).max(), np.abs(delta.mean(axis=0)).max())
    return loss + ALPHA / 2 * (coef**2).sum(), largest


def logistic_part(split: data.Split, repeats: int, device: str = "cuda") -> None:
    print(f"\n### L-BFGS, alpha={ALPHA}, tol={TOL}. {split.describe()}\n", flush=True)
    solvers: dict[str, Callable[[int], Solution]] = {
        "skoptim, GPU": lambda n: our_lbfgs(split, n, device),
        "skoptim, CPU": lambda n: our_lbfgs(split, n, "cpu"),
    }
    if has_torch(device):
        solvers["torch.optim.LBFGS, GPU"] = lambda n: torch_lbfgs(split, n, device)
    found: dict[str, list[Solution]] = {label: [] for label in solvers}
    for solve in solvers.values():
        solve(2)
    for _ in range(repeats):
        for label, solve in solvers.items():
            found[label].append(solve(MOST_ITERATIONS))
    rows = []
    own = median(solution[1] for solution in found["skoptim, GPU"])
    for label, solutions in found.items():
        inside = median(solution[1] for solution in solutions)
        n_iter, coef, intercept = solutions[-1][2:]
        value, gradient = reached(coef, intercept, split)
        rows.append(
            {
                "": label,
                "s in all": f"{median(solution[0] for solution in solutions):.3f}",
                "s iterating": f"{inside:.3f}",
                "iterations": n_iter,
                "ms/iteration": f"{1e3 * inside / n_iter:.2f}",
                "GPU / this": f"{own / inside:.2f}",
                "objective": f"{value:.6f}",
                "gradient, largest entry": f"{gradient:.1e}",
            }
        )
    print("In all: checks and the transfer too. The ratio is of the iterations.\n")
    print(table(rows), flush=True)


# Where the GPU overtakes the CPU.


def versus(
    make: Callable[[str], Any], split: data.Split, device: str, **labels: Any
) -> dict[str, Any]:
    """Return a row on one estimator on both devices; `make` takes the name of one."""
    seconds = []
    for place in ("cpu", device):
        model = make(place)
        timed(lambda model=model: model.fit(split.X, split.y))
        seconds.append(median(after_first(model)))
    return {
        **labels,
        "CPU, s/epoch": f"{seconds[0]:.4f}",
        "GPU, s/epoch": f"{seconds[1]:.4f}",
        "CPU / GPU": f"{seconds[0] / seconds[1]:.2f}",
    }


def crossover_part(
    n_dense: int = 20_000,
    n_sparse: int = 50_000,
    sizes: tuple[int, ...] = (16, 64, 256, 1024),
    widths: tuple[int, ...] = (2**14, 2**18, 2**22),
    device: str = "cuda",
) -> None:
    print(f"\n### Where the GPU overtakes the CPU: networks, batch 200, {n_dense:,} rows\n")
    rows = []
    for n_features, hidden in product(sizes, sizes):
        split = dense(n_dense, 0, n_features)

        def network(place: str, hidden: int = hidden) -> MLPClassifier:
            return MLPClassifier(
                (hidden,), batch_size=200, alpha=0.0, optimizer=Adam(RATE), max_iter=EPOCHS,
                tol=None, random_state=0, device=place,
            )  # fmt: skip

        rows.append(versus(network, split, device, features=n_features, hidden=hidden))
    print(table(rows), flush=True)

    print(f"\n### Where the GPU overtakes the CPU: FTRL on CSR, {n_sparse:,} rows\n")
    rows = []
    for n_features in widths:
        split = zipf(n_sparse, n_features, 0)
        for batch in ("auto", SPARSE_BATCH):
            rows.append(
                versus(
                    lambda place, batch=batch: linear(batch, EPOCHS, place),
                    split,
                    device,
                    features=f"{n_features:,}",
                    stored=f"{split.X.nnz:,}",
                    batch=f"1 and {cuda.LINEAR_BATCH_SIZE}" if batch == "auto" else batch,
                )
            )
    print(table(rows), flush=True)


# The machine.


def describe_machine() -> str:
    """Return the device, the driver, the versions and the date in a few lines."""
    cupy, smi = cuda.xp, "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    runtime = cupy.cuda.runtime
    try:
        driver = subprocess.run(smi.split(), capture_output=True, text=True, check=True).stdout
        driver = driver.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    peer = "no torch" if torch is None else f"torch {torch.__version__}"
    if torch is not None and not torch.cuda.is_available():
        peer += " (without CUDA)"
    on_device, on_host = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    return (
        f"{runtime.getDeviceProperties(0)['name'].decode()}, driver {driver} "
        f"(CUDA {cuda_version(on_device)}), {len(os.sched_getaffinity(0))} CPU cores\n"
        f"CuPy {cupy.__version__} (CUDA {cuda_version(on_host)}), {peer}, NumPy {np.__version__}\n"
        f"{date.today()}"
    )


def cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


PARTS = ("mlp", "sparse", "batch", "logistic", "crossover")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="hidden sizes/batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    try:
        cuda.require_device()
    except (ImportError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    print(describe_machine(), flush=True)
    repeats, compiles = arguments.repeats, not arguments.no_compile
    runs: list[Callable[[], None]] = []
    split = dense() if {"mlp", "logistic"} & set(arguments.parts) else None
    for part in arguments.parts:
        if part == "mlp":
            runs += [
                lambda shape=shape: mlp_part(split, shape, repeats, compiles)
                for shape in arguments.shapes
            ]
        elif part == "sparse":
            runs.append(lambda: sparse_part(zipf(2**19, 2**22, 2**15), repeats))
        elif part == "batch":
            runs.append(batch_part)
        elif part == "logistic":
            runs.append(lambda: logistic_part(split, repeats))
        else:
            runs.append(crossover_part)
    failed = False
    for run in runs:
        try:
            start = time.perf_counter()
            run()
            print(f"\n({time.perf_counter() - start:.0f} s)")
        except Exception:  # What follows may still be worth its time.
            failed = True
            traceback.print_exc()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
