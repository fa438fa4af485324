"""Read handwritten digits: one small network, every optimizer, two sets of images.

Run it from the root of the repository: python examples/digits_and_mnist.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from warnings import catch_warnings, simplefilter

from datasets import load_digits, load_mnist_5k
from report import plot_loss_curves, print_table
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier as ScikitLearnMLP
from threadpoolctl import threadpool_limits

from skoptim import MLPClassifier
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

OPTIMIZERS = [
    SGD(0.1, momentum=0.9, nesterov=True),
    Adagrad(0.1),
    RMSprop(0.001),
    Adadelta(3.0),
    Adam(0.003),
    AdamW(0.003),
    Adamax(0.01),
    Nadam(0.003),
    FTRL(0.3),
    NormalizedFTRL(0.3),
    Lion(0.0003),
    ProximalGradient(0.3),
    LBFGS(),
]

#: Epochs of the stochastic optimizers, and iterations of L-BFGS, which takes one step in each.
EPOCHS, ITERATIONS = 25, 100


def train(X: Any, y: Any, hidden: int) -> tuple[list[list[Any]], dict[str, Any]]:
    """Train with every optimizer; return the rows of the table, and the models by name."""
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)
    models: dict[str, Any] = {
        type(optimizer).__name__: MLPClassifier(
            hidden,
            optimizer=optimizer,
            batch_size=32,
            max_iter=ITERATIONS if optimizer.is_full_batch else EPOCHS,
            tol=None,  # No stopping rule: everyone makes all of the epochs.
            random_state=0,
        )
        for optimizer in OPTIMIZERS
    }
    peer = ScikitLearnMLP(
        hidden, batch_size=32, learning_rate_init=0.003, max_iter=EPOCHS, tol=0, random_state=0
    )
    rows = []
    for name, model in (models | {"scikit-learn MLPClassifier (Adam)": peer}).items():
        start = time.perf_counter()
        with threadpool_limits(1), catch_warnings():  # A fair clock: one core for everyone.
            simplefilter("ignore", ConvergenceWarning)  # scikit-learn's: all epochs were made.
            model.fit(X, y)
        seconds = time.perf_counter() - start
        scores = [model.score(X_test, y_test), log_loss(y_test, model.predict_proba(X_test))]
        label = repr(model.optimizer) if name in models else name
        rows.append([label, *scores, model.n_iter_, f"{seconds:.2f}"])
    return rows, models


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a quarter of the MNIST sample")
    options = parser.parse_args(arguments)

    X, y = load_mnist_5k()
    if options.small:
        X, y = X[::4], y[::4]
    for title, (images, labels), hidden in (
        ("Digits, 8 x 8 pixels", load_digits(), 64),
        ("MNIST, 28 x 28 pixels", (X, y), 100),
    ):
        print(f"{title}: {len(images):,} images, {hidden} hidden units.\n")
        rows, models = train(images, labels, hidden)
        print_table(["optimizer", "accuracy", "log-loss", "epochs", "seconds"], rows)
        name = title.split(",")[0].lower()
        file = plot_loss_curves(models, f"{title}: training objective", f"{name}.png")
        print(f"\nLoss curves: {file}\n")


if __name__ == "__main__":
    main()
