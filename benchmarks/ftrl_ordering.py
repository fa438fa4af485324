"""FTRL-Proximal against RDA and FOBOS, after table 2 of McMahan et al. (2013): loss and sparsity.

Run ``python benchmarks/ftrl_ordering.py``. All three have the per-coordinate rates of Adagrad, make
one pass, and are given the same strengths of L1; each has the rate at which it does best on a
held-out part. FOBOS is a gradient step and a soft threshold (Duchi and Singer 2009), RDA the
minimum over the sum of all gradients, regularised around zero (Xiao 2010).
"""

from __future__ import annotations

from typing import Any

import data
import numpy as np
from measure import held_out_loss, table
from sklearn.metrics import roc_auc_score

from skoptim import SGDClassifier
from skoptim.optimizers import FTRL, Adagrad, Optimizer

RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4)
BATCH_SIZE = 16


class RDA(Optimizer):
    """Regularised dual averaging: the proximal step of L1 has the metric of the whole past."""

    slots = ("gradient_sum", "square_sum")

    def __init__(self, learning_rate: float = 1.0, beta: float = 1.0):
        self.learning_rate = learning_rate
        self.beta = beta

    def update(self, xp: Any, w: Any, g: Any, slots: Any, scalars: Any) -> Any:
        """Leave the minimum without L1, and return the metric in which L1 gives that with it."""
        slots["gradient_sum"] += g
        slots["square_sum"] += g * g
        rate = scalars["learning_rate"] / (self.beta + xp.sqrt(slots["square_sum"]))
        w[...] = -rate * slots["gradient_sum"]
        return scalars["step"] * rate


METHODS = {
    "FTRL-Proximal": FTRL,
    "RDA": RDA,
    "FOBOS": lambda rate: Adagrad(rate, initial_accumulator_value=1.0),
}


def main() -> None:
    split = data.load("spam")
    print(f"{split.describe()}; one pass, batches of {BATCH_SIZE}\n")
    rows = []
    for strength in STRENGTHS:
        for name, make in METHODS.items():
            results = []
            for rate in RATES:
                model = SGDClassifier(
                    "log_loss",
                    penalty="l1",
                    alpha=strength,
                    optimizer=make(rate),
                    batch_size=BATCH_SIZE,
                    max_iter=1,
                    tol=None,
                    random_state=0,
                ).fit(split.X, split.y)
                auc = roc_auc_score(split.y_test, model.decision_function(split.X_test))
                non_zeros = np.count_nonzero(model.coef_)
                results.append((held_out_loss(model, split), non_zeros, auc, rate))
            loss, non_zeros, auc, rate = min(results)
            rows.append(
                {
                    "L1": strength,
                    "method": name,
                    "rate": rate,
                    "log-loss": f"{loss:.4f}",
                    "1 - AUC": f"{1 - auc:.5f}",
                    "non-zeros": f"{non_zeros:,}",
                }
            )
            print(name, strength, flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
