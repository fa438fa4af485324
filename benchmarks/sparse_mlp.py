"""Networks on CSR data against scikit-learn's: time per epoch, quality, memory, idle features.

Run ``python benchmarks/sparse_mlp.py [epochs] [features] [memory]``, all parts by default.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from statistics import median
from typing import Any

import data
import numpy as np
import scipy.sparse as sp
from measure import extra_megabytes, quality, seconds_per_epoch, table
from sklearn.neural_network import MLPClassifier as SklearnMLP

from skoptim import MLPClassifier
from skoptim.optimizers import SGD, Adagrad, Adam

HIDDEN, BATCH = (100,), 200


@cache
def zipf(n_columns: int = 100_000) -> data.Split:
    """Return a two-class Zipf problem of 20,000 rows."""
    X, y, X_test, y_test = data.zipf(2, n_rows=20_000, n_columns=n_columns)
    return data.Split(f"zipf {n_columns:,}", X, y, X_test, y_test)


def problem(name: str) -> data.Split:
    return zipf() if name == "zipf" else data.load(name)


def sklearn_fit(split: data.Split, alpha: float, epochs: int) -> Any:
    return SklearnMLP(
        HIDDEN, batch_size=BATCH, alpha=alpha * BATCH, max_iter=epochs, tol=0.0,
        n_iter_no_change=10**6, random_state=0,
    ).fit(split.X, split.y)  # fmt: skip


def our_fit(split: data.Split, alpha: float, optimizer: Any, epochs: int) -> Any:
    return MLPClassifier(
        HIDDEN, batch_size=BATCH, alpha=alpha, optimizer=optimizer, max_iter=epochs, tol=None,
        random_state=0,
    ).fit(split.X, split.y)  # fmt: skip


def epochs_part() -> None:
    for name in ("zipf", "spam", "tweets"):
        for dtype in (np.float32, np.float64):
            split = problem(name).astype(dtype)
            print(f"\n### Time per epoch, hidden {HIDDEN}, batch {BATCH}. {split.describe()}\n")
            n_steps = -(-split.X.shape[0] // BATCH)
            rows = []
            for alpha in (1e-4, 0.0):
                # scikit-learn divides its alpha by the size of the batch.
                fits = {
                    "scikit-learn Adam": partial(sklearn_fit, split, alpha),
                    "Adam": partial(our_fit, split, alpha, Adam()),
                    "Adagrad": partial(our_fit, split, alpha, Adagrad(0.03)),
                    "SGD, momentum": partial(our_fit, split, alpha, SGD(0.1, momentum=0.9)),
                }
                measured = seconds_per_epoch(fits, epochs=2, repeats=3)
                peer = measured["scikit-learn Adam"][0]
                for label, (seconds, model) in measured.items():
                    rows.append(
                        {
                            "optimizer": label,
                            "alpha": alpha,
                            "s/epoch": f"{seconds:.3f}",
                            "ms/step": f"{1e3 * seconds / n_steps:.1f}",
                            "peer / ours": f"{peer / seconds:.1f}",
                            **quality(model, split),
                        }
                    )
            for row in rows:
                del row["non-zeros"]
            print(table(rows), flush=True)


def features_part() -> None:
    """Train on the same entries among more and more features, the rest of which no row has."""
    print("\n### Time per step when features are added that no sample has, float32\n")
    rows = []
    split = zipf(50_000).astype(np.float32)
    for n_columns in (50_000, 100_000, 200_000, 400_000):
        X, X_test = (
            sp.csr_matrix((A.data, A.indices, A.indptr), shape=(A.shape[0], n_columns))
            for A in (split.X, split.X_test)
        )
        wider = data.Split(split.name, X, split.y, X_test, split.y_test)
        for label, optimizer, alpha in (
            ("Adam", Adam(), 1e-4),
            ("Adam", Adam(), 0.0),
            ("SGD", SGD(0.1), 1e-4),
            ("Adagrad", Adagrad(0.03), 0.0),
        ):
            model = our_fit(wider, alpha, optimizer, 4)
            seconds = median(model.history_["seconds"][1:])
            rows.append(
                {
                    "features": f"{n_columns:,}",
                    "optimizer": label,
                    "alpha": alpha,
                    "ms/step": f"{1e3 * seconds / (X.shape[0] / BATCH):.2f}",
                }
            )
    print(table(rows), flush=True)


def memory_part() -> None:
    split = problem("zipf")
    n_parameters = split.X.shape[1] * HIDDEN[0]
    bound = 8 * n_parameters * 3 / 2**20 + 64
    print(f"\n### Peak memory beyond X and y, MB. {split.describe()}\n")
    fits = {
        "scikit-learn Adam": partial(_memory_fit, sklearn_fit, ()),
        "Adam": partial(_memory_fit, our_fit, (Adam(),)),
    }
    rows = [
        {
            "optimizer": label,
            "peak": f"{extra_megabytes(fit, zipf):.0f}",
            "parameters and slots + 64": f"{bound:.0f}",
        }
        for label, fit in fits.items()
    ]
    print(table(rows), flush=True)


def _memory_fit(fit: Any, more: tuple, split: data.Split) -> None:
    fit(split, 1e-4, *more, 1)


PARTS = {"epochs": epochs_part, "features": features_part, "memory": memory_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
