"""Grid searches over optimizers on the digits: ten of ours, scikit-learn's solvers, skorch.

Run ``python benchmarks/grid_search.py [--epochs N] [--jobs 1 2] [--repeats N]``. skorch needs
``pip install torch skorch``.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from measure import table, timed
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier as SklearnMLP

from skoptim import MLPClassifier
from skoptim.optimizers import (
    FTRL,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    Nadam,
    ProximalGradient,
    RMSprop,
)  # fmt: skip

HIDDEN, FOLDS = (100,), 5


def our_search(epochs: int) -> GridSearchCV:
    """Ten optimizers, three settings each."""
    rates: list[Any] = [
        *(SGD(rate, momentum=0.9) for rate in (0.01, 0.03, 0.1)),
        *(Adagrad(rate) for rate in (0.01, 0.03, 0.1)),
        *(RMSprop(rate) for rate in (0.001, 0.003, 0.01)),
        *(Adadelta(rate) for rate in (0.3, 1.0, 3.0)),
        *(Adam(rate) for rate in (0.001, 0.003, 0.01)),
        *(Adamax(rate) for rate in (0.001, 0.003, 0.01)),
        *(Nadam(rate) for rate in (0.001, 0.003, 0.01)),
        *(FTRL(rate) for rate in (0.03, 0.1, 0.3)),
        *(LBFGS(history_size=size) for size in (5, 10, 20)),
        *(ProximalGradient(rate) for rate in (0.03, 0.1, 0.3)),
    ]
    model = MLPClassifier(HIDDEN, max_iter=epochs, tol=None, random_state=0)
    return GridSearchCV(model, {"optimizer": rates}, cv=FOLDS)


def sklearn_search(epochs: int) -> GridSearchCV:
    """Its three solvers, three settings each."""
    model = SklearnMLP(HIDDEN, max_iter=epochs, tol=0.0, n_iter_no_change=10**6, random_state=0)
    grid = [
        {"solver": ["sgd"], "learning_rate_init": [0.01, 0.03, 0.1]},
        {"solver": ["adam"], "learning_rate_init": [0.001, 0.003, 0.01]},
        {"solver": ["lbfgs"], "alpha": [1e-5, 1e-4, 1e-3]},
    ]
    return GridSearchCV(model, grid, cv=FOLDS)


def skorch_search(epochs: int) -> GridSearchCV:
    """Torch's Adam and SGD, three rates each."""
    import skorch
    import torch

    class Net(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                torch.nn.Linear(64, HIDDEN[0]), torch.nn.ReLU(), torch.nn.Linear(HIDDEN[0], 10)
            )

    model = skorch.NeuralNetClassifier(
        Net, max_epochs=epochs, batch_size=200, train_split=None, verbose=0,
        criterion=torch.nn.CrossEntropyLoss, iterator_train__shuffle=True,
    )  # fmt: skip
    grid = [
        {"optimizer": [torch.optim.SGD], "optimizer__momentum": [0.9], "lr": [0.01, 0.03, 0.1]},
        {"optimizer": [torch.optim.Adam], "lr": [0.001, 0.003, 0.01]},
    ]
    return GridSearchCV(model, grid, cv=FOLDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    searches = {"skoptim": our_search, "scikit-learn": sklearn_search}
    if find_spec("skorch"):
        searches["skorch"] = skorch_search
    rows = []
    for n_jobs in arguments.jobs:
        seconds: dict[str, list[float]] = {name: [] for name in searches}
        fitted = {}
        for _ in range(arguments.repeats):
            for name, make in searches.items():
                # Classes made inside a function cannot be sent to another process.
                if name == "skorch" and n_jobs > 1:
                    continue
                search = clone(make(arguments.epochs)).set_params(n_jobs=n_jobs)
                used, fitted[name] = timed(lambda search=search: search.fit(X, y))
                seconds[name].append(used)
        per_fit = {
            name: median(seconds[name]) / (len(search.cv_results_["params"]) * FOLDS)
            for name, search in fitted.items()
        }
        for name, search in fitted.items():
            rows.append(
                {
                    "search": name,
                    "n_jobs": n_jobs,
                    "candidates": len(search.cv_results_["params"]),
                    "seconds": f"{median(seconds[name]):.2f}",
                    "ms/fit": f"{1e3 * per_fit[name]:.1f}",
                    "ours / this, per fit": f"{per_fit['skoptim'] / per_fit[name]:.2f}",
                    "best accuracy": f"{search.best_score_:.4f}",
                }
            )
    print(f"digits, {FOLDS} folds, {arguments.epochs} epochs, hidden {HIDDEN}, float32\n")
    print(table(rows))


if __name__ == "__main__":
    main()
