"""What the benchmarks share: interleaved timing, peak memory, quality on held-out data, tables."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

Fit = Callable[[int], Any]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call took, and its result; no warnings, no garbage before it."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        result = run()
        return time.perf_counter() - start, result


def seconds_per_epoch(
    fits: dict[str, Fit], epochs: int = 4, repeats: int = 5
) -> dict[str, tuple[float, Any]]:
    """Return the median seconds of an epoch after the first, and the last model, of each contender.

    Contenders take turns. An epoch is what `epochs` + 1 of them take longer than one does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    models = {}
    for _ in range(repeats):
        for name, fit in fits.items():
            once, _ = timed(lambda fit=fit: fit(1))
            all_of_them, models[name] = timed(lambda fit=fit: fit(epochs + 1))
            seconds[name].append((all_of_them - once) / epochs)
    return {name: (median(seconds[name]), models[name]) for name in fits}


def seconds_of_the_first(fits: dict[str, Fit], repeats: int = 5) -> dict[str, float]:
    """Return the median seconds of one epoch from the call on, checks and all; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    for _ in range(repeats):
        for name, fit in fits.items():
            seconds[name].append(timed(lambda fit=fit: fit(1))[0])
    return {name: median(times) for name, times in seconds.items()}


def quality(model: Any, split: Any) -> dict[str, Any]:
    """Return log-loss, AUC (two classes) and accuracy on the held-out part, and the non-zeros."""
    p = np.clip(model.predict_proba(split.X_test).astype(np.float64), 1e-12, 1)
    p /= p.sum(axis=1, keepdims=True)
    coef = getattr(model, "coef_", None)
    return {
        "log-loss": f"{log_loss(split.y_test, p):.4f}",
        "AUC": f"{roc_auc_score(split.y_test, p[:, 1]):.4f}" if split.n_classes == 2 else "",
        "accuracy": f"{(p.argmax(axis=1) == split.y_test).mean():.4f}",
        "non-zeros": "" if coef is None else f"{np.count_nonzero(coef):,}",
    }


def held_out_loss(model: Any, split: Any) -> float:
    """Return the log-loss on the held-out part."""
    p = np.clip(model.predict_proba(split.X_test).astype(np.float64), 1e-12, 1)
    return float(log_loss(split.y_test, p / p.sum(axis=1, keepdims=True)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of one set of columns as an aligned table in Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def extra_megabytes(fit: Callable[[Any], Any], prepare: Callable[[], Any]) -> float:
    """Return the peak memory of ``fit(prepare())`` beyond what was there before `fit`, in MB.

    In a new process; Linux only. Both functions are those of a module.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, fit, prepare).result()


def _peak(fit: Callable[[Any], Any], prepare: Callable[[], Any]) -> float:
    data = prepare()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew from here.
    before = _status("VmRSS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(data)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
