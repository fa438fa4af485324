"""Linear models on CSR data: time per epoch, batches, streams, race to a loss, L1 path, memory.

Run ``python benchmarks/sparse_linear.py [epochs] [optimizers] [batches] [stream] [race] [path]
[memory]`` (all parts by default); it takes scikit-learn, and if they are installed skglm and
vowpalwabbit.
``--data spam,zipf2`` chooses the data sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import data
import numpy as np
from measure import (
    extra_megabytes,
    held_out_loss,
    quality,
    seconds_of_the_first,
    seconds_per_epoch,
    table,
    timed,
)
from sklearn import linear_model as sk
from vowpal_wabbit import VowpalWabbit, Workspace

from skoptim import SGDClassifier
from skoptim.optimizers import (
    FTRL,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    Lion,
    Nadam,
    NormalizedFTRL,
    ProximalGradient,
    RMSprop,
)
from skoptim.schedules import Optimal

try:
    import skglm
except ImportError:
    skglm = None

DATA = ("spam", "tweets", "census", "zipf2", "zipf20")
OURS = {
    "NormalizedFTRL": NormalizedFTRL(),
    "FTRL": FTRL(1.0),
    "Adagrad": Adagrad(0.3),
    "SGD": SGD(0.3),
    # The rates that scikit-learn takes by default: the same algorithm.
    "SGD, optimal": SGD(Optimal(1e-5)),
}


# Time per epoch.


def sklearn_sgd(
    split: data.Split, penalty: str | None, alpha: float, epochs: int, *, average: bool = False
) -> Any:
    return sk.SGDClassifier(
        "log_loss",
        penalty=penalty,
        alpha=alpha,
        max_iter=epochs,
        tol=None,
        random_state=0,
        average=average,
    ).fit(split.X, split.y)


def ours(
    split: data.Split,
    optimizer: Any,
    penalty: str | None,
    alpha: float,
    epochs: int,
    *,
    loss: str = "log_loss",
    average: bool = False,
    batch_size: int = 1,
) -> Any:
    return SGDClassifier(
        loss,
        penalty=penalty,
        alpha=alpha,
        optimizer=optimizer,
        max_iter=epochs,
        tol=None,
        random_state=0,
        average=average,
        batch_size=batch_size,
    ).fit(split.X, split.y)


def pass_seconds(X: Any) -> float:
    """Return the seconds that one pass over the stored entries takes: a product with a vector."""
    w = np.ones(X.shape[1], dtype=X.dtype)
    return min(timed(lambda: X @ w)[0] for _ in range(5))


def epochs_part(name: str) -> None:
    for dtype in (np.float64, np.float32):
        split = data.load(name).astype(dtype)
        print(f"\n### Time per epoch. {split.describe()}\n")
        per_pass = 1e9 * pass_seconds(split.X) / split.X.nnz
        print(f"X @ w takes {per_pass:.1f} ns per stored entry.\n")
        rows = []
        for penalty, alpha in (("l1", 1e-5), ("l2", 1e-5)):
            fits = {"scikit-learn": partial(sklearn_sgd, split, penalty, alpha)}
            fits |= {
                label: partial(ours, split, optimizer, penalty, alpha)
                for label, optimizer in OURS.items()
            }
            measured = seconds_per_epoch(fits, repeats=3 if split.n_classes > 2 else 5)
            peer = measured["scikit-learn"][0]
            for label, (seconds, model) in measured.items():
                rows.append(
                    {
                        "model": label,
                        "penalty": penalty,
                        "s/epoch": f"{seconds:.4f}",
                        "ns/entry": f"{1e9 * seconds / split.X.nnz:.1f}",
                        "ratio": f"{seconds / peer:.2f}",
                        **quality(model, split),
                    }
                )
        print(table(rows), flush=True)


# Every optimizer, one sample a step: what those cost that move weights without a gradient.

EVERY = {
    "SGD": SGD(0.1),
    "SGD, momentum": SGD(0.01, momentum=0.9),
    "NormalizedFTRL": NormalizedFTRL(),
    "FTRL": FTRL(1.0),
    "Adagrad": Adagrad(0.1),
    "Adam": Adam(0.001),
    "Adamax": Adamax(0.001),
    "Nadam": Nadam(0.001),
    "RMSprop": RMSprop(0.001),
    "Adadelta": Adadelta(1.0),
    "Lion": Lion(1e-4),
}


def optimizers_part(name: str, alpha: float = 1e-5) -> None:
    split = data.load(name).astype(np.float64)
    print(f"\n### Every optimizer, ns per stored entry (log-loss). {split.describe()}\n")
    measured: dict[str, dict[str, tuple[float, Any]]] = {}
    for penalty, average in (
        (None, False),
        ("l1", False),
        ("l2", False),
        ("l1", True),
        ("l2", True),
    ):
        fits = {"scikit-learn": partial(sklearn_sgd, split, penalty, alpha, average=average)}
        fits |= {
            label: partial(ours, split, optimizer, penalty, alpha, average=average)
            for label, optimizer in EVERY.items()
        }
        name = (penalty or "no penalty") + (", averaged" if average else "")
        measured[name] = seconds_per_epoch(fits, repeats=3)
    rows = []
    for label in EVERY | {"scikit-learn": None}:
        row = {"model": label}
        for name, results in measured.items():
            seconds, model = results[label]
            loss = held_out_loss(model, split)
            row[name] = f"{1e9 * seconds / split.X.nnz:.1f} ({loss:.3f})"
        rows.append(row)
    print(table(rows), flush=True)


# Rows of a mini-batch.


def batches_part(name: str, penalty: str = "l2", alpha: float = 1e-5) -> None:
    split = data.load(name).astype(np.float64)
    print(f"\n### Mini-batches, ns per stored entry (log-loss). {split.describe()}\n")
    sizes, labels = (1, 8, 32, 256, 2048), ("SGD", "NormalizedFTRL", "FTRL", "Adagrad", "Adam")
    fits = {"scikit-learn": partial(sklearn_sgd, split, penalty, alpha)}
    fits |= {
        f"{label}, {size}": partial(ours, split, EVERY[label], penalty, alpha, batch_size=size)
        for label in labels
        for size in sizes
    }
    measured = seconds_per_epoch(fits, repeats=3)

    def told(key: str) -> str:
        seconds, model = measured[key]
        return f"{1e9 * seconds / split.X.nnz:.1f} ({held_out_loss(model, split):.3f})"

    print(f"scikit-learn, one row a step: {told('scikit-learn')}\n")
    rows = [
        {"rows of a step": label} | {f"{n:,}": told(f"{label}, {n}") for n in sizes}
        for label in labels
    ]
    print(table(rows), flush=True)


# Blocks of a stream.


def streamed(model: Any, split: data.Split, blocks: list[Any], passes: int) -> Any:
    """Return the model after some passes over the blocks."""
    classes = np.arange(split.n_classes)
    for _ in range(passes):
        for X, y in blocks:
            model.partial_fit(X, y, classes=classes)
    return model


def stream_part(name: str, penalty: str = "l2", alpha: float = 1e-5) -> None:
    split = data.load(name).astype(np.float64)
    print(f"\n### partial_fit, block by block. {split.describe()}\n")
    rows = []
    for size in (500, 2000, 8000):
        blocks = [
            (split.X[i : i + size], split.y[i : i + size]) for i in range(0, len(split.y), size)
        ]
        settings = {"penalty": penalty, "alpha": alpha, "random_state": 0}
        fits: dict[str, Callable[[int], Any]] = {
            "scikit-learn, partial_fit": lambda n, blocks=blocks, settings=settings: streamed(
                sk.SGDClassifier("log_loss", **settings), split, blocks, n
            )
        }
        for label in ("NormalizedFTRL", "FTRL"):
            optimizer = OURS[label]
            fits[f"{label}, partial_fit"] = (
                lambda n, optimizer=optimizer, blocks=blocks, settings=settings: streamed(
                    SGDClassifier("log_loss", optimizer=optimizer, **settings), split, blocks, n
                )
            )
            fits[f"{label}, fit"] = partial(ours, split, optimizer, penalty, alpha)
        first = seconds_of_the_first(fits)
        later = seconds_per_epoch(fits, epochs=2, repeats=3)
        peer = "scikit-learn, partial_fit"
        rows += [
            {
                "rows of a block": size,
                "": label,
                "first pass, ns/entry": f"{1e9 * first[label] / split.X.nnz:.1f}",
                "ratio": f"{first[label] / first[peer]:.2f}",
                "later, ns/entry": f"{1e9 * seconds / split.X.nnz:.1f}",
                "later, ratio": f"{seconds / later[peer][0]:.2f}",
                "later, ms/block": f"{1e3 * seconds / len(blocks):.2f}",
                **quality(model, split),
            }
            for label, (seconds, model) in later.items()
        ]
    print(table(rows), flush=True)


# Race to the best peer's loss on held-out data.


def contenders(split: data.Split) -> dict[str, Callable[[int], Any]]:
    """Return peers and ours by name: functions of an effort, a number of epochs or passes."""
    found: dict[str, Callable[[int], Any]] = {}
    for alpha in (1e-5, 1e-6, 1e-7):
        found[f"scikit-learn SGD, alpha={alpha:g}"] = partial(sklearn_sgd, split, "l2", alpha)
    for solver, strengths in (("liblinear", (1, 10, 100)), ("lbfgs", (10,)), ("saga", (10,))):
        if solver == "liblinear" and split.n_classes > 2:
            continue
        for C in strengths:
            found[f"scikit-learn {solver}, C={C}"] = partial(logistic, split, solver, C)
    if Workspace is not None:
        for options in ("", "--ftrl"):
            VowpalWabbit(split, options, 1)  # Writes the cache.
            found[f"VW {options}".strip()] = partial(
                lambda options, passes: VowpalWabbit(split, options, passes), options
            )
    # What is compared is the loss of the softmax, which lbfgs and saga minimise too.
    loss = "multinomial" if split.n_classes > 2 else "log_loss"
    # The third strength is that of C=10.
    for alpha in sorted((1e-6, 1e-5, 0.1 / len(split.y))):
        for optimizer in (NormalizedFTRL(), NormalizedFTRL(2.0), FTRL(0.5), FTRL(1.0), FTRL(10.0)):
            found[f"ours, {optimizer}, alpha={alpha:g}"] = partial(
                ours, split, optimizer, "l2", alpha, loss=loss
            )
    # At their minimum models are less regularised than after some epochs.
    for alpha in (1e-6, 2e-6, 1e-5):
        found[f"ours, LBFGS(), alpha={alpha:g}"] = lambda iterations, alpha=alpha: ours(
            split, LBFGS(), "l2", alpha, 4 * iterations, loss=loss
        )
    return found


def logistic(split: data.Split, solver: str, C: float, iterations: int) -> Any:
    return sk.LogisticRegression(
        solver=solver, C=C, max_iter=4 * iterations, tol=1e-8, random_state=0
    ).fit(split.X, split.y)


#: Of solvers that take single rows, and of those that take all at once.
EFFORTS = ((1, 2, 3, 4, 6, 8, 12, 20, 30, 50, 80), (2, 8, 25, 60))


def race_part(name: str, most_seconds: float = 1.0) -> None:
    split = data.load(name).astype(np.float64)
    print(f"\n### Race to the best peer's log-loss. {split.describe()}\n")
    curves: dict[str, list[tuple[float, float, int]]] = {}
    for label, fit in contenders(split).items():
        curves[label] = []
        batch_solver = "C=" in label or "LBFGS" in label
        for effort in EFFORTS[batch_solver]:
            _, model = timed(partial(fit, effort))
            run = model.fit if label.startswith("VW") else partial(fit, effort)
            seconds = min(timed(run)[0] for _ in range(1 if batch_solver else 3))
            curves[label].append((seconds, held_out_loss(model, split), effort))
            if seconds > most_seconds:
                break
    peers = {label: curve for label, curve in curves.items() if not label.startswith("ours")}
    target = min(loss for curve in peers.values() for _, loss, _ in curve)
    rows = []
    for label, curve in curves.items():
        best = min(curve, key=lambda point: point[1])
        reached = [point for point in curve if point[1] <= target + 5e-5]
        rows.append(
            {
                "model": label,
                "best log-loss": f"{best[1]:.4f}",
                "after s": f"{best[0]:.3f}",
                "epochs": best[2],
                f"s to {target:.4f}": f"{min(reached)[0]:.3f}" if reached else "",
            }
        )
    print(table(rows), flush=True)


# L1 path.


def objective(split: data.Split, coef: np.ndarray, intercept: float, alpha: float) -> float:
    margins = (2 * split.y - 1) * (split.X @ coef + intercept)
    return float(np.logaddexp(0, -margins).mean() + alpha * np.abs(coef).sum())


def path_alphas(split: data.Split) -> np.ndarray:
    """Return ten strengths from a tenth of the one that leaves nothing to a thousandth."""
    residual = split.y - split.y.mean()
    largest = np.abs(split.X.T @ residual).max() / len(split.y)
    return largest * np.geomspace(0.1, 0.001, 10)


Path = list[tuple[np.ndarray, float]]


def our_path(optimizer: Any, tol: float, split: data.Split, alphas: np.ndarray) -> Path:
    model = SGDClassifier(
        "log_loss", penalty="l1", optimizer=optimizer, max_iter=2000, tol=tol, warm_start=True
    )
    found: Path = []
    for alpha in alphas:
        model.set_params(alpha=alpha).fit(split.X, split.y)
        found.append((model.coef_.ravel().copy(), float(model.intercept_[0])))
    return found


def liblinear_path(tol: float, split: data.Split, alphas: np.ndarray) -> Path:
    found: Path = []
    for alpha in alphas:  # It cannot be warm started; it penalises its intercept, scaled here.
        model = sk.LogisticRegression(
            solver="liblinear",
            l1_ratio=1.0,
            C=1 / (alpha * len(split.y)),
            tol=tol,
            max_iter=1000,
            intercept_scaling=100.0,
            random_state=0,
        ).fit(split.X, split.y)
        found.append((model.coef_.ravel(), float(model.intercept_[0])))
    return found


def skglm_path(tol: float, split: data.Split, alphas: np.ndarray) -> Path:
    from skglm.datafits import Logistic
    from skglm.estimators import GeneralizedLinearEstimator
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton

    X, y = split.X.tocsc(), 2.0 * split.y - 1
    solver = ProxNewton(tol=tol, fit_intercept=True, warm_start=True, max_iter=200)
    model = GeneralizedLinearEstimator(Logistic(), L1(1.0), solver)
    found: Path = []
    for alpha in alphas:
        model.penalty = L1(alpha)
        model.fit(X, y)
        found.append((model.coef_.ravel().copy(), float(np.ravel(model.intercept_)[0])))
    return found


def path_part(name: str) -> None:
    split = data.load(name).astype(np.float64)
    if split.n_classes > 2:
        split.y, split.y_test = (y == split.n_classes - 1 for y in (split.y, split.y_test))
        split.y, split.y_test = split.y.astype(int), split.y_test.astype(int)
    print(f"\n### L1 path, ten strengths, warm started. {split.describe()}\n")
    alphas = path_alphas(split)
    solvers: dict[str, Callable[..., Path]] = {
        "OWL-QN": partial(our_path, LBFGS()),
        "FISTA": partial(our_path, ProximalGradient(full_batch=True)),
        "liblinear": liblinear_path,
    }
    if skglm is not None:
        solvers["skglm"] = skglm_path
        skglm_path(1e-2, split, alphas[:1])  # Compiles.
    found: dict[tuple[str, float], tuple[float, np.ndarray, int]] = {}
    for label, solve in solvers.items():
        for tol in (1e-3, 1e-4, 1e-5, 1e-6):
            seconds, path = timed(lambda solve=solve, tol=tol: solve(tol, split, alphas))
            values = np.array([objective(split, *p, a) for p, a in zip(path, alphas, strict=True)])
            found[label, tol] = seconds, values, np.count_nonzero(path[-1][0])
            if seconds > 25:
                break
    best = np.min([values for _, values, _ in found.values()], axis=0)
    rows = []
    for label in solvers:
        good = [
            (seconds, tol, (values / best - 1).max(), nonzeros)
            for (other, tol), (seconds, values, nonzeros) in found.items()
            if other == label and (values / best - 1).max() <= 1e-4
        ]
        if not good:  # The nearest instead.
            good = [
                min(
                    ((values / best - 1).max(), seconds, tol, nonzeros)
                    for (other, tol), (seconds, values, nonzeros) in found.items()
                    if other == label
                )
            ]
            good = [(seconds, tol, gap, nonzeros) for gap, seconds, tol, nonzeros in good]
        seconds, tol, gap, nonzeros = min(good)
        rows.append(
            {
                "solver": label,
                "tol": tol,
                "s for the path": f"{seconds:.2f}",
                "worst gap": f"{gap:.0e}",
                "reached": "yes" if gap <= 1e-4 else "no",
                "non-zeros of the last": f"{nonzeros:,}",
            }
        )
    print("The fastest within 1e-4 of the best objective at every strength; else the nearest:\n")
    print(table(rows), flush=True)


# Peak memory.


def memory_fit(optimizer: Any, average: bool, split: data.Split) -> None:
    SGDClassifier(
        "log_loss", optimizer=optimizer, max_iter=2, tol=None, random_state=0, average=average
    ).fit(split.X, split.y)


def memory_part(name: str) -> None:
    split = data.load(name)
    n_outputs = 1 if split.n_classes == 2 else split.n_classes
    print(f"\n### Peak memory beyond X and y, MB. {split.describe()}\n")
    rows = []
    for label, optimizer in OURS.items():
        slots = len(optimizer.slot_names)
        size = 8 * (split.X.shape[1] + 1) * n_outputs * (1 + slots) / 2**20
        rows.append(
            {
                "model": label,
                "peak": f"{extra_megabytes(partial(memory_fit, optimizer, False), partial(data.load, name)):.0f}",  # noqa: E501
                "parameters and slots": f"{size:.0f}",
                "bound": f"{size + 64:.0f}",
            }
        )
    print(table(rows), flush=True)


PARTS = {
    "epochs": epochs_part,
    "optimizers": optimizers_part,
    "batches": batches_part,
    "stream": stream_part,
    "race": race_part,
    "path": path_part,
    "memory": memory_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--data", default=",".join(DATA), help="names, separated by commas")
    arguments = parser.parse_args()
    for part in arguments.parts:
        for name in arguments.data.split(","):
            PARTS[part](name)


if __name__ == "__main__":
    main()
