"""Networks on dense data: time per epoch against the bare matrix products and against peers.

Run ``python benchmarks/dense_mlp.py [--shapes 100/200 64/32 512,512/256 diamonds] [--peers ...]``.
Peers that are not installed are left out. Needs ``pip install torch skorch keras`` for all of them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import Any

import data
import numpy as np
from measure import seconds_per_epoch, table
from sklearn import neural_network as sklearn_nets
from sklearn.metrics import r2_score

from skoptim import MLPClassifier, MLPRegressor
from skoptim.optimizers import Adam

# scikit-learn divides its alpha by the size of the batch: the same objective for both.
ALPHA, RATE = 1e-4, 1e-3


def floor(split: data.Split, hidden: tuple[int, ...], batch: int) -> float:
    """Return the seconds of an epoch's matrix products alone, into buffers, on one batch."""
    rng = np.random.default_rng(0)
    n_outputs = split.n_classes if is_classification(split) else 1
    sizes = [split.X.shape[1], *hidden, n_outputs]
    coefs = [rng.standard_normal(shape).astype(np.float32) / 30 for shape in pairwise(sizes)]
    gradients = [np.empty_like(coef) for coef in coefs]
    outputs, deltas = (
        [rng.standard_normal((batch, size)).astype(np.float32) for size in sizes] for _ in range(2)
    )
    start = time.perf_counter()
    for _ in range(-(-len(split.X) // batch)):
        for i, coef in enumerate(coefs):
            np.matmul(outputs[i], coef, out=outputs[i + 1])
        for i in reversed(range(len(coefs))):
            np.matmul(outputs[i].T, deltas[i + 1], out=gradients[i])
            if i > 0:
                np.matmul(deltas[i + 1], coefs[i].T, out=deltas[i])
        for array in (*outputs[1:], *deltas[:-1]):
            array.flat[:1] = 1.0
    return time.perf_counter() - start


def is_classification(split: data.Split) -> bool:
    return split.y.dtype.kind == "i"


def our_fit(split: data.Split, hidden: tuple[int, ...], batch: int, epochs: int) -> Any:
    kind = MLPClassifier if is_classification(split) else MLPRegressor
    return kind(
        hidden_layer_sizes=hidden, batch_size=batch, alpha=ALPHA / batch, optimizer=Adam(RATE),
        max_iter=epochs, tol=None, random_state=0,
    ).fit(split.X, split.y)  # fmt: skip


def sklearn_fit(
    dtype: type, split: data.Split, hidden: tuple[int, ...], batch: int, epochs: int
) -> Any:
    classifier = is_classification(split)
    kind = sklearn_nets.MLPClassifier if classifier else sklearn_nets.MLPRegressor
    return kind(
        hidden_layer_sizes=hidden, batch_size=batch, alpha=ALPHA,
        learning_rate_init=RATE, max_iter=epochs, tol=0.0, n_iter_no_change=10**6, random_state=0,
    ).fit(split.X.astype(dtype), split.y)  # fmt: skip


class TorchLoop:
    """A loop written by hand: one gather, forward, backward and fused step per batch."""

    def __init__(self, split: data.Split, hidden: tuple[int, ...], batch: int, epochs: int):
        import torch

        torch.manual_seed(0)
        self.classifier = is_classification(split)
        self.net = torch_net(split, hidden)
        loss_of = torch.nn.CrossEntropyLoss() if self.classifier else torch.nn.MSELoss()
        optimizer = torch.optim.Adam(self.net.parameters(), RATE, fused=True)
        X, y = torch.from_numpy(split.X), torch.from_numpy(split.y)
        if not self.classifier:
            y = y[:, None]
        for _ in range(epochs):
            for rows in torch.randperm(len(X)).split(batch):
                optimizer.zero_grad()
                loss_of(self.net(X[rows]), y[rows]).backward()
                optimizer.step()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return classes or targets."""
        import torch

        with torch.no_grad():
            scores = self.net(torch.from_numpy(X)).numpy()
        return scores.argmax(axis=1) if self.classifier else scores[:, 0]


def torch_net(split: data.Split, hidden: tuple[int, ...]) -> Any:
    import torch

    n_outputs = split.n_classes if is_classification(split) else 1
    layers: list[Any] = []
    for fan_in, fan_out in pairwise([split.X.shape[1], *hidden]):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden[-1], n_outputs))


def skorch_fit(split: data.Split, hidden: tuple[int, ...], batch: int, epochs: int) -> Any:
    import skorch
    import torch

    torch.manual_seed(0)
    classifier = is_classification(split)
    kind = skorch.NeuralNetClassifier if classifier else skorch.NeuralNetRegressor
    net = kind(
        torch_net(split, hidden), max_epochs=epochs, lr=RATE, batch_size=batch, train_split=None,
        criterion=torch.nn.CrossEntropyLoss if classifier else torch.nn.MSELoss,
        optimizer=torch.optim.Adam, optimizer__fused=True, iterator_train__shuffle=True, verbose=0,
    )  # fmt: skip
    return net.fit(split.X, split.y if classifier else split.y[:, None])


class KerasFit:
    """Keras on its PyTorch backend."""

    def __init__(self, split: data.Split, hidden: tuple[int, ...], batch: int, epochs: int):
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        keras.utils.set_random_seed(0)
        self.classifier = is_classification(split)
        layers = [keras.layers.Dense(size, activation="relu") for size in hidden]
        last = keras.layers.Dense(split.n_classes if self.classifier else 1)
        self.net = keras.Sequential([keras.Input((split.X.shape[1],)), *layers, last])
        loss = (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            if self.classifier
            else "mse"
        )
        self.net.compile(keras.optimizers.Adam(RATE), loss)
        self.net.fit(split.X, split.y, batch_size=batch, epochs=epochs, verbose=0)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return classes or targets."""
        scores = self.net.predict(X, batch_size=1000, verbose=0)
        return scores.argmax(axis=1) if self.classifier else scores[:, 0]


PEERS: dict[str, tuple[str, Callable]] = {
    "torch loop, fused Adam": ("torch", TorchLoop),
    "scikit-learn, float32": ("sklearn", partial(sklearn_fit, np.float32)),
    "scikit-learn, float64": ("sklearn", partial(sklearn_fit, np.float64)),
    "skorch": ("skorch", skorch_fit),
    "Keras": ("keras", KerasFit),
}


def score(model: Any, split: data.Split) -> str:
    predicted = np.asarray(model.predict(split.X_test)).reshape(len(split.y_test))
    if is_classification(split):
        return f"{(predicted == split.y_test).mean():.4f}"
    return f"{r2_score(split.y_test, predicted):.4f}"


def measure(shape: str, peers: list[str], epochs: int, repeats: int) -> None:
    name, _, rest = shape.rpartition(":")
    split = data.load_diamonds() if name == "diamonds" else data.load_mnist()
    sizes, _, batch_text = rest.partition("/")
    hidden, batch = tuple(int(size) for size in sizes.split(",")), int(batch_text)
    print(f"\n### hidden {hidden}, batch {batch}. {split.describe()}\n")
    floors: list[float] = []

    fits: dict[str, Any] = {"skoptim": partial(our_fit, split, hidden, batch)}
    for label in peers:
        package, fit = PEERS[label]
        if find_spec(package):
            fits[label] = partial(fit, split, hidden, batch)
    measured: dict[str, list[tuple[float, Any]]] = {label: [] for label in fits}
    for _ in range(repeats):
        floors.append(floor(split, hidden, batch))
        for label, result in seconds_per_epoch(fits, epochs=epochs, repeats=1).items():
            measured[label].append(result)
    seconds = {label: median(s for s, _ in runs) for label, runs in measured.items()}
    bare, own = median(floors), seconds["skoptim"]
    quality = "accuracy" if is_classification(split) else "R2"
    rows = [{"": "matrix products", "s/epoch": f"{bare:.3f}", "ours / this": f"{own / bare:.2f}"}]
    for label, s in seconds.items():
        rows.append(
            {
                "": label,
                "s/epoch": f"{s:.3f}",
                "ours / this": f"{own / s:.2f}",
                f"{quality} after {epochs + 1} epochs": score(measured[label][-1][1], split),
            }
        )
    print(table(rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shapes", nargs="+", default=["100/200", "64/32", "512,512/256", "diamonds:100/200"]
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        measure(shape, arguments.peers, arguments.epochs, arguments.repeats)


if __name__ == "__main__":
    main()
