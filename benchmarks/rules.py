"""Update rules: ns per parameter, against torch and against one pass over the same memory.

Run ``python benchmarks/rules.py [--sizes 10000 1000000 100000000] [--repeats N]``. Needs
``pip install torch``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import table
from threadpoolctl import threadpool_info

from skoptim.optimizers import (
    FTRL,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Nadam,
    RMSprop,
)  # fmt: skip

RATE = 1e-3
# Ours, and torch's counterpart: fused where there is one, else foreach.
RULES: dict[str, tuple[Any, Callable | None]] = {
    "SGD": (SGD(RATE), partial(torch.optim.SGD, lr=RATE, fused=True)),
    "SGD, momentum": (
        SGD(RATE, momentum=0.9), partial(torch.optim.SGD, lr=RATE, momentum=0.9, fused=True),
    ),
    "Adagrad": (Adagrad(RATE), partial(torch.optim.Adagrad, lr=RATE, fused=True)),
    "RMSprop": (RMSprop(RATE), partial(torch.optim.RMSprop, lr=RATE, foreach=True)),
    "Adadelta": (Adadelta(1.0), partial(torch.optim.Adadelta, lr=1.0, foreach=True)),
    "Adam": (Adam(RATE), partial(torch.optim.Adam, lr=RATE, fused=True)),
    "Adam, amsgrad": (
        Adam(RATE, amsgrad=True), partial(torch.optim.Adam, lr=RATE, amsgrad=True, fused=True),
    ),
    "AdamW": (AdamW(RATE), partial(torch.optim.AdamW, lr=RATE, fused=True)),
    "Adamax": (Adamax(RATE), partial(torch.optim.Adamax, lr=RATE, foreach=True)),
    "Nadam": (Nadam(RATE), partial(torch.optim.NAdam, lr=RATE, foreach=True)),
    "FTRL": (FTRL(), None),
    "Lion": (Lion(RATE), None),
}  # fmt: skip


def copier(n_bytes: int) -> Callable[[], None]:
    """Return a function that copies half as many bytes, by as many threads as BLAS uses."""
    n_threads = min(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
    size = n_bytes // 2
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    if size < 2**20 or n_threads == 1:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(n_threads)
    parts = list(
        zip(np.array_split(target, n_threads), np.array_split(source, n_threads), strict=True)
    )
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts)) and None


def measure(size: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    start, gradient = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    rows = []
    for name, (optimizer, make_peer) in RULES.items():
        w = start.copy()
        state = optimizer.init(w)
        numbers = 3 + 2 * len(state.slots)  # w and slots are read and written, g is read
        runs: dict[str, Callable] = {
            "ours": partial(optimizer.step, w, gradient, state),
            "memory": copier(4 * size * numbers),
        }
        if make_peer:
            parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
            parameter.grad = torch.from_numpy(gradient.copy())
            runs["torch"] = make_peer([parameter]).step
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        # Long enough that threads of the other side, which wait for work at first, do not count.
        calls = max(1, min(3000, 10**9 // (3 * size)))
        for repeat in range(repeats + 1):
            for label, run in runs.items():
                begin = time.perf_counter()
                for _ in range(calls):
                    run()
                if repeat:  # the first one makes the state
                    seconds[label].append((time.perf_counter() - begin) / calls)
        ns = {label: 1e9 * median(s) / size for label, s in seconds.items()}
        rows.append(
            {
                "rule": name,
                "ours": f"{ns['ours']:.3f}",
                "torch": f"{ns['torch']:.3f}" if "torch" in ns else "",
                "ours / torch": f"{ns['ours'] / ns['torch']:.2f}" if "torch" in ns else "",
                "memory pass": f"{ns['memory']:.3f}",
                "ours / memory": f"{ns['ours'] / ns['memory']:.2f}",
            }
        )
    print(f"\n### {size:,} parameters, float32: ns per parameter\n\n{table(rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10**4, 10**6, 10**8])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    for size in arguments.sizes:
        measure(size, arguments.repeats)


if __name__ == "__main__":
    main()
