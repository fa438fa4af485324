"""Sort news articles with a few thousand weights: FTRL under L1, then a grid over all optimizers.

Run it from the root of the repository: python examples/text_classification.py
"""

from __future__ import annotations

import argparse
import time
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import load_bbc, load_tweets
from report import plot_loss_curves, print_table
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import SGDClassifier as ScikitLearnSGD
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from skoptim import SGDClassifier
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

#: Strength of the L1 penalty, the same for every model here.
ALPHA = 5e-5
#: Epochs of the stochastic optimizers, and iterations of the full-batch ones, which are cheaper.
EPOCHS, ITERATIONS = 30, 100

STOCHASTIC = [
    SGD(3.0),
    SGD(1.0, momentum=0.9),
    Adagrad(0.3),
    Adagrad(1.0),
    RMSprop(0.003),
    RMSprop(0.01),
    Adadelta(10.0),
    Adadelta(20.0),
    Adam(0.01),
    Adam(0.03),
    AdamW(0.03),
    Adamax(0.03),
    Adamax(0.1),
    Nadam(0.01),
    Nadam(0.03),
    FTRL(10.0),
    FTRL(20.0),
    NormalizedFTRL(1.0),
    NormalizedFTRL(3.0),
    Lion(0.001),
    Lion(0.003),
    ProximalGradient(3.0),
]
FULL_BATCH = [LBFGS(), ProximalGradient(full_batch=True)]

GRID = [
    {"classify__optimizer": STOCHASTIC, "classify__max_iter": [EPOCHS]},
    {"classify__optimizer": FULL_BATCH, "classify__max_iter": [ITERATIONS]},
]


#: Data set -> its reader, its title and a batch size that makes about a hundred steps an epoch.
DATA = {"bbc": (load_bbc, "BBC news", 16), "tweets": (load_tweets, "Tweets", 256)}


def make_pipeline(
    optimizer: Any = "ftrl", batch_size: int = 16, memory: str | None = None
) -> Pipeline:
    """Return the pipeline from texts to classes; `memory` caches its first part."""
    return Pipeline(
        [
            ("tfidf", TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english")),
            (
                "classify",
                SGDClassifier(
                    loss="multinomial",
                    penalty="l1",
                    alpha=ALPHA,
                    optimizer=optimizer,
                    batch_size=batch_size,
                    max_iter=EPOCHS,
                    tol=None,  # No stopping rule: everyone makes all of the epochs.
                    random_state=0,
                ),
            ),
        ],
        memory=memory,
    )


def load(data: str = "bbc", small: bool = False) -> list[Any]:
    """Return texts to train on and to test on, and their classes: 80 % and 20 % of each class."""
    texts, labels = DATA[data][0]()
    if small:
        texts, _, labels, _ = train_test_split(
            texts, labels, train_size=800, stratify=labels, random_state=0
        )
    return train_test_split(texts, labels, test_size=0.2, stratify=labels, random_state=0)


def show_ftrl(split: list[Any], batch_size: int) -> None:
    """Fit the pipeline with FTRL, and print what it learned."""
    texts, test_texts, labels, test_labels = split
    start = time.perf_counter()
    pipeline = make_pipeline(FTRL(10.0), batch_size).fit(texts, labels)
    seconds = time.perf_counter() - start
    coef, words = pipeline[-1].coef_, pipeline[0].get_feature_names_out()
    print(
        f"FTRL with L1: accuracy {pipeline.score(test_texts, test_labels):.4f} on the test set, "
        f"{np.count_nonzero(coef):,} of {coef.size:,} weights are not zero, {seconds:.1f} s."
    )
    for label, row in zip(pipeline.classes_, coef, strict=True):
        print(f"  {label:14}{', '.join(words[np.argsort(row)[:-9:-1]])}")


def search(split: list[Any], batch_size: int = 16, folds: int = 3) -> GridSearchCV:
    """Return the grid search over all optimizers, by log-loss."""
    with TemporaryDirectory() as memory:
        grid = GridSearchCV(
            make_pipeline(batch_size=batch_size, memory=memory),
            GRID,
            scoring="neg_log_loss",
            cv=folds,
            n_jobs=2,
            refit=False,
        )
        return grid.fit(split[0], split[2])


def best_settings(grid: GridSearchCV) -> dict[str, dict[str, Any]]:
    """Return, for each optimizer of the grid, the settings with the lowest log-loss."""
    ranked = np.argsort(grid.cv_results_["rank_test_score"], kind="stable")
    best: dict[str, dict[str, Any]] = {}
    for params in np.array(grid.cv_results_["params"])[ranked]:
        best.setdefault(type(params["classify__optimizer"]).__name__, params)
    every = (*STOCHASTIC, *FULL_BATCH)
    return {name: best[name] for name in dict.fromkeys(type(o).__name__ for o in every)}


def compare(
    split: list[Any], settings: dict[str, dict[str, Any]], batch_size: int = 16
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Train with each of the settings; return the rows of the table, and the models by name."""
    texts, test_texts, labels, test_labels = split
    pipeline = make_pipeline(batch_size=batch_size)
    X, X_test = pipeline[0].fit_transform(texts), pipeline[0].transform(test_texts)
    models = {name: clone(pipeline).set_params(**params)[-1] for name, params in settings.items()}
    peers = {
        "scikit-learn SGDClassifier": ScikitLearnSGD(
            loss="log_loss", penalty="l1", alpha=ALPHA, random_state=0
        ),
        "scikit-learn LogisticRegression": LogisticRegression(
            solver="saga", l1_ratio=1, C=1 / (ALPHA * len(texts)), max_iter=1000, tol=1e-3
        ),
    }
    rows = []
    for name, model in (models | peers).items():
        start = time.perf_counter()
        with threadpool_limits(1):  # A fair clock: one core for everyone.
            model.fit(X, labels)
        seconds = time.perf_counter() - start
        rows.append(
            [
                repr(model.optimizer) if name in models else name,
                model.score(X_test, test_labels),
                log_loss(test_labels, model.predict_proba(X_test)),
                np.count_nonzero(model.coef_),
                f"{seconds:.2f}",
            ]
        )
    return rows, models


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="bbc")
    parser.add_argument("--small", action="store_true", help="a part of the data, two folds")
    options = parser.parse_args(arguments)
    start = time.perf_counter()

    _, title, batch_size = DATA[options.data]
    split = load(options.data, options.small)
    print(f"{len(split[0]):,} texts to train on, {len(split[1]):,} to test on.\n")
    show_ftrl(split, batch_size)

    grid_start = time.perf_counter()
    grid = search(split, batch_size, folds=2 if options.small else 3)
    print(
        f"\nGrid search over {len(grid.cv_results_['params'])} settings of all optimizers, "
        f"{grid.n_splits_} folds, 2 jobs: {time.perf_counter() - grid_start:.0f} s.\n"
        f"Lowest log-loss: {grid.best_params_['classify__optimizer']}"
    )

    print("\nThe best setting of each, trained on the whole training set, on the test set:\n")
    rows, models = compare(split, best_settings(grid), batch_size)
    print_table(["optimizer", "accuracy", "log-loss", "non-zero weights", "seconds"], rows)
    file = plot_loss_curves(
        models,
        f"{title}: log-loss + L1 on the training set",
        f"text_classification_{options.data}.png",
    )
    print(f"\nLoss curves: {file}\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
