"""Untuned: the default settings of each library on data as they come, scaled or not.

Run ``python benchmarks/defaults.py``. Classifiers: log-loss on held-out data; regressors: R².
"""

from __future__ import annotations

from typing import Any

import data
import numpy as np
from measure import held_out_loss, table, timed
from sklearn import linear_model as sk
from vowpal_wabbit import VowpalWabbit, Workspace

from skoptim import SGDClassifier, SGDRegressor
from skoptim.optimizers import FTRL, NormalizedFTRL

OPTIMIZERS = [NormalizedFTRL(), FTRL()]
LOSSES = ("log_loss", "hinge")


def score(model: Any, split: data.Split, loss: str) -> str:
    try:
        _, model = timed(lambda: model.fit(split.X, split.y))
    except ValueError:
        return "diverged"
    if split.name in data.REGRESSION:
        return f"{model.score(split.X_test, split.y_test):.3g}"
    if loss == "hinge":
        return f"{model.score(split.X_test, split.y_test):.4f}"
    return f"{held_out_loss(model, split):.4f}"


def main() -> None:
    for loss in LOSSES:
        rows = []
        for name in data.PROBLEMS:
            if name == "zipf20" or (loss == "hinge" and name in data.REGRESSION):
                continue
            split = data.load(name)
            row = {"data": name}
            if name in data.REGRESSION:
                peer, kind, options = sk.SGDRegressor(), SGDRegressor, {}
            else:
                peer, kind, options = sk.SGDClassifier(loss), SGDClassifier, {"loss": loss}
            row["scikit-learn SGD"] = score(peer.set_params(random_state=0), split, loss)
            if Workspace is not None and loss == "log_loss" and name not in data.REGRESSION:
                model = VowpalWabbit(split, "", 1).fit()
                row["VW, 1 pass"] = f"{held_out_loss(model, split):.4f}"
            for optimizer in OPTIMIZERS:
                model = kind(**options, optimizer=optimizer, random_state=0)
                row[type(optimizer).__name__] = score(model, split, loss)
            rows.append(row)
            print(name, flush=True)
        what = "log-loss, or R² of regressions" if loss == "log_loss" else "accuracy"
        print(f"\n### Defaults, loss {loss!r}: {what} on held-out data\n\n{table(rows)}\n")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
