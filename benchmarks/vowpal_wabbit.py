"""Vowpal Wabbit as a contender: trained from its own binary cache, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from data import CACHE, Split

try:
    from vowpalwabbit import Workspace
except ImportError:
    Workspace = None


class VowpalWabbit:
    """A logistic model of Vowpal Wabbit.

    Parameters
    ----------
    split : Split
        Written as text once, and read by Vowpal Wabbit from its cache of that text.
    options : str
        Of the command line, as ``--ftrl``.
    passes : int
    """

    def __init__(self, split: Split, options: str, passes: int):
        self.split, self.options, self.passes = split, options, passes
        n_classes = split.n_classes
        bits = max(
            18, int(np.ceil(np.log2(split.X.shape[1] * (n_classes if n_classes > 2 else 1))))
        )
        kind = "--link logistic" if n_classes == 2 else f"--oaa {n_classes} --probabilities"
        self._base = f"--loss_function logistic {kind} -b {bits} --holdout_off --quiet"
        self._text = _written(split.name, "train", split.X, split.y, n_classes)
        self._test = _written(split.name, "test", split.X_test, split.y_test, n_classes)
        self._cache = CACHE / f"vw_{split.name}.cache"
        self._model = CACHE / "vw_model"
        if not self._cache.exists():
            self._run(f"{self._base} -d {self._text} --cache_file {self._cache} --passes 1")

    def _run(self, arguments: str) -> None:
        Workspace(arguments).finish()

    def fit(self) -> VowpalWabbit:
        """Train; reading the cache is part of it."""
        self._run(
            f"{self._base} {self.options} -d {self._text} --cache_file {self._cache} "
            f"--passes {self.passes} -f {self._model}"
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the held-out part, which X is."""
        file = CACHE / "vw_predictions"
        file.unlink(missing_ok=True)
        more = "" if self.split.n_classes == 2 else "--probabilities"
        self._run(f"-t -i {self._model} -d {self._test} -p {file} --quiet {more}")
        if self.split.n_classes == 2:
            p = np.loadtxt(file)
            return np.column_stack([1 - p, p])
        lines = file.read_text().splitlines()
        return np.array([[float(pair.split(":")[1]) for pair in line.split()] for line in lines])


def _written(name: str, part: str, X: Any, y: np.ndarray, n_classes: int) -> Path:
    file = CACHE / f"vw_{name}_{part}.txt"
    if file.exists():
        return file
    labels = np.where(y > 0, 1, -1) if n_classes == 2 else y + 1
    with file.open("w") as out:
        for i, label in enumerate(labels):
            row = slice(X.indptr[i], X.indptr[i + 1])
            entries = zip(X.indices[row], X.data[row], strict=True)
            out.write(f"{label} | " + " ".join(f"{j}:{v:.8g}" for j, v in entries) + "\n")
    return file
