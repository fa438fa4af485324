"""An optimizer of your own, AdaBelief, in all four estimators, on dense and sparse data.

Run it from the root of the repository: python examples/custom_optimizer.py

It is one class with one method. `update` is written in array code, changes `w` and the slots in
place, and returns the step size that each weight's gradient was given, which is where a penalty
like L1 finds its threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from report import print_table
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from skoptim import MLPClassifier, MLPRegressor, SGDClassifier, SGDRegressor
from skoptim.optimizers import Adam, Optimizer
from skoptim.schedules import Cosine


class AdaBelief(Optimizer):
    """Adam that trusts a gradient the more, the closer it is to what was expected.

    Zhuang et al. (2020), "AdaBelief optimizer: adapting stepsizes by the belief in observed
    gradients", algorithm 2.
    """

    slots = ("first_moment", "surprise")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def scalars(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Return the bias corrections of many steps at once."""
        return {"correction_1": 1 - self.beta_1**steps, "correction_2": 1 - self.beta_2**steps}

    def update(self, xp: Any, w: Any, g: Any, slots: Any, scalars: Any) -> Any:
        m, s = slots["first_moment"], slots["surprise"]
        m += (1 - self.beta_1) * (g - m)
        s += (1 - self.beta_2) * ((g - m) ** 2 - s) + self.epsilon
        step_size = scalars["learning_rate"] / scalars["correction_1"]
        step_size = step_size / (xp.sqrt(s / scalars["correction_2"]) + self.epsilon)
        w -= step_size * m
        return step_size


def make_sparse(X: np.ndarray) -> sp.csr_matrix:
    """Return the features that are well above their mean, as CSR: about a sixth of them."""
    return sp.csr_matrix(np.where(X > 1, X, 0))


def score_estimators() -> list[list[Any]]:
    """Return a row for each estimator: scores and largest difference, dense and CSR."""
    classification = load_breast_cancer(return_X_y=True)
    diabetes = load_diabetes(return_X_y=True)
    regression = diabetes[0], scale(diabetes[1])
    shared = {"optimizer": AdaBelief(0.01), "max_iter": 50, "tol": None, "random_state": 0}
    rows = []
    for estimator, (X, y) in (
        (SGDClassifier(loss="log_loss", penalty="l1", alpha=0.01, **shared), classification),
        (SGDRegressor(penalty="elasticnet", alpha=0.01, **shared), regression),
        (MLPClassifier(16, **shared), classification),
        (MLPRegressor("squared_error", 16, **shared), regression),
    ):
        X = make_sparse(scale(X))
        sparse_scores = predict(estimator.fit(X, y), X)
        score = estimator.score(X, y)
        dense_scores = predict(estimator.fit(X.toarray(), y), X)
        difference = np.abs(dense_scores - sparse_scores).max()
        rows.append([type(estimator).__name__, score, f"{difference:.0e}"])
    return rows


def predict(estimator: Any, X: Any) -> np.ndarray:
    """Return raw scores of a classifier, predictions of a regressor."""
    return getattr(estimator, "decision_function", estimator.predict)(X)


def search() -> GridSearchCV:
    """Return a grid search, in a pipeline, over rates of AdaBelief and of Adam."""
    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(
        StandardScaler(),
        SGDClassifier(loss="log_loss", batch_size=16, max_iter=20, tol=None, random_state=0),
    )
    optimizers = [
        AdaBelief(0.003),
        AdaBelief(0.03),
        AdaBelief(Cosine(0.03, total_steps=600)),
        Adam(0.003),
        Adam(0.03),
    ]
    grid = GridSearchCV(pipeline, {"sgdclassifier__optimizer": optimizers}, n_jobs=2)
    return grid.fit(X, y)


def main() -> None:
    print("AdaBelief in the four estimators; dense and CSR copies of the same data:\n")
    print_table(["estimator", "training score", "largest difference"], score_estimators())

    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(16, optimizer=AdaBelief(0.01)))
    scores = cross_val_score(pipeline.set_params(mlpclassifier__random_state=0), X, y)
    print(f"\nIn a pipeline: accuracy {scores.mean():.3f} in five-fold cross-validation.")

    print("\nIn a grid search, with a schedule for the rate, beside Adam:\n")
    results = search().cv_results_
    print_table(
        ["optimizer", "accuracy", "seconds"],
        [
            [repr(optimizer), score, f"{seconds:.2f}"]
            for optimizer, score, seconds in zip(
                results["param_sgdclassifier__optimizer"],
                results["mean_test_score"],
                results["mean_fit_time"],
                strict=True,
            )
        ],
    )


if __name__ == "__main__":
    main()
