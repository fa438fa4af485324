"""What it costs to be there at all: the import, and an epoch of a tiny problem.

Run ``python benchmarks/overhead.py [--repeats N]``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import data
from measure import table, timed
from sklearn.datasets import load_iris
from threadpoolctl import threadpool_limits

from skoptim import MLPClassifier, SGDClassifier
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

OPTIMIZERS = (
    SGD(0.1), Adagrad(), RMSprop(), Adadelta(), Adam(), Adamax(), Nadam(), FTRL(), LBFGS(),
    ProximalGradient(), ProximalGradient(full_batch=True),
)  # fmt: skip


def seconds_of(*statements: str) -> list[float]:
    """Return the seconds that each of some statements takes, one after the other in a new process.

    With compiled modules kept.
    """
    code = "import time; times = [time.perf_counter()]\n" + "\n".join(
        f"{statement}; times.append(time.perf_counter())" for statement in statements
    )
    code += "\nprint(*(b - a for a, b in zip(times, times[1:])))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    return [float(seconds) for seconds in done.stdout.split()]


def import_part(repeats: int) -> None:
    statements = ("import sklearn.linear_model, sklearn.neural_network", "import skoptim")
    seconds_of(*statements)  # Compiles the modules.
    runs = [seconds_of(*statements) for _ in range(repeats)]
    rows = [
        {"one after the other": statement, "ms": f"{1e3 * median(seconds):.0f}"}
        for statement, seconds in zip(statements, zip(*runs, strict=True), strict=True)
    ]
    print(f"\n### Import\n\n{table(rows)}", flush=True)


def iris_part(repeats: int) -> None:
    """Print what an epoch more costs, in which hardly anything is to be computed."""
    X, y = load_iris(return_X_y=True)
    rows = []
    for optimizer in OPTIMIZERS:
        row = {"optimizer": repr(optimizer)}
        for name, model in (
            ("linear", SGDClassifier("multinomial", optimizer=optimizer, tol=None)),
            ("network (20,)", MLPClassifier((20,), optimizer=optimizer, tol=None)),
        ):
            costs = []
            for _ in range(repeats):
                few, many = (
                    timed(partial(model.set_params(max_iter=n, random_state=0).fit, X, y))[0]
                    for n in (10, 60)
                )
                costs.append((many - few) / 50)
            row[f"{name}, ms/epoch"] = f"{1e3 * median(costs):.3f}"
        rows.append(row)
    print(f"\n### Iris, an epoch\n\n{table(rows)}", flush=True)


def threads_part(repeats: int) -> None:
    """Print how much faster two Python threads fit two networks than one after the other."""
    mnist = data.load_mnist()
    X, y = mnist.X[:20_000], mnist.y[:20_000]

    def fit(seed: int) -> None:
        MLPClassifier((100,), max_iter=3, tol=None, random_state=seed).fit(X, y)

    rows = []
    for limit in (1, 2):
        one, both = [], []
        with threadpool_limits(limit), ThreadPoolExecutor(2) as pool:
            for _ in range(repeats):
                start = time.perf_counter()
                fit(0), fit(1)
                one.append(time.perf_counter() - start)
                both.append(timed(lambda pool=pool: list(pool.map(fit, (0, 1))))[0])
        rows.append(
            {
                "threads of BLAS": limit,
                "one after the other, s": f"{median(one):.2f}",
                "in two Python threads, s": f"{median(both):.2f}",
            }
        )
    print(f"\n### Two fits at once\n\n{table(rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    import_part(arguments.repeats)
    iris_part(arguments.repeats)
    threads_part(arguments.repeats)


if __name__ == "__main__":
    main()
