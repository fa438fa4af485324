"""L-BFGS and predictions on dense data, against scikit-learn's at equal quality.

Run ``python benchmarks/logistic.py [lbfgs] [wide] [predict] [--repeats N]`` (all parts by default).
Under L2 both minimise the same objective until the largest entry of its gradient is below a bound;
the table shows what was reached, measured apart. ``wide`` has many more features than samples, and
L1; it takes skglm, too, if that is installed.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from statistics import median

import data
import numpy as np
from measure import table, timed
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier as SklearnMLP

from skoptim import MLPClassifier, SGDClassifier
from skoptim.optimizers import LBFGS, Adam, ProximalGradient

try:
    import skglm
except ImportError:
    skglm = None

ALPHA = 1e-4


def problems() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return MNIST, and the census' dense half."""
    mnist, census = data.load_mnist(), data.load("census")
    frequent = np.argsort(-census.X.getnnz(axis=0))[:200]
    return {
        "mnist": (mnist.X, mnist.y),
        "census, 200 columns": (census.X[:, frequent].toarray().astype(np.float32), census.y),
    }


def gradient_norm(coef: np.ndarray, intercept: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    """Return the largest entry of the gradient of the mean loss + ALPHA / 2 |w|^2, in float64."""
    coef, intercept = (np.asarray(a, dtype=np.float64) for a in (coef, intercept))
    if len(coef) == 1:
        p = 1 / (1 + np.exp(-(X @ coef[0] + intercept[0])))
        delta = (p - y)[:, None]
    else:
        z = X @ coef.T + intercept
        delta = np.exp(z - logsumexp(z, axis=1, keepdims=True))
        delta[np.arange(len(y)), y] -= 1
    g = delta.T @ X / len(X) + ALPHA * coef
    return max(np.abs(g).max(), np.abs(delta.mean(axis=0)).max())


def lbfgs_part(repeats: int) -> None:
    for name, (X, y) in problems().items():
        n_classes = int(y.max()) + 1
        loss = "multinomial" if n_classes > 2 else "log_loss"
        for dtype in (np.float32, np.float64):
            A = X.astype(dtype)
            print(f"\n### L-BFGS. {name}: {A.shape[0]:,} x {A.shape[1]}, {np.dtype(dtype)}\n")
            rows = []
            shape = (1 if n_classes == 2 else n_classes, A.shape[1])
            first = gradient_norm(np.zeros(shape), np.zeros(shape[0]), A, y)
            for tol in (1e-3, 1e-4):
                contenders = {
                    "skoptim": SGDClassifier(
                        # Ours is relative to the first gradient, if that is below one.
                        loss,
                        optimizer=LBFGS(),
                        alpha=ALPHA,
                        tol=tol / min(1, first),
                        max_iter=1000,
                    ),
                    "scikit-learn": LogisticRegression(
                        C=1 / (ALPHA * len(A)), tol=tol, max_iter=1000
                    ),
                }
                fits = {label: partial(model.fit, A, y) for label, model in contenders.items()}
                seconds: dict[str, list[float]] = {label: [] for label in fits}
                models = {}
                for _ in range(repeats):
                    for label, fit in fits.items():
                        used, models[label] = timed(fit)
                        seconds[label].append(used)
                for label, model in models.items():
                    own = median(seconds["skoptim"]) / median(seconds[label])
                    reached = gradient_norm(model.coef_, model.intercept_, A, y)
                    rows.append(
                        {
                            "tol": tol,
                            "": label,
                            "s": f"{median(seconds[label]):.2f}",
                            "ours / this": f"{own:.2f}",
                            "iterations": int(np.max(model.n_iter_)),
                            "gradient, largest entry": f"{reached:.1e}",
                        }
                    )
            print(table(rows), flush=True)


def wide_problem() -> tuple[np.ndarray, np.ndarray]:
    """Return 500 samples of 50,000 features, of which 20 decide."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 50_000))
    scores = X[:, :20] @ (2 * rng.standard_normal(20))
    return X, (scores + rng.logistic(size=len(X)) > 0).astype(int)


def skglm_logistic(alpha: float, X: np.ndarray, y: np.ndarray) -> object:
    from skglm.datafits import Logistic
    from skglm.estimators import GeneralizedLinearEstimator
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton

    solver = ProxNewton(tol=1e-5, fit_intercept=True)
    model = GeneralizedLinearEstimator(Logistic(), L1(alpha), solver)
    return model.fit(np.asfortranarray(X), 2.0 * y - 1)


def wide_part(repeats: int) -> None:
    X, y = wide_problem()
    print(f"\n### Logistic regression under L1. {X.shape[0]:,} x {X.shape[1]:,}, {X.dtype}\n")
    rows = []
    for alpha in (0.1, 0.05, 0.02):
        shared = {"loss": "log_loss", "penalty": "l1", "alpha": alpha, "tol": 1e-5}
        fista = ProximalGradient(full_batch=True)
        fits = {
            "skoptim, LBFGS": SGDClassifier(optimizer=LBFGS(), max_iter=2000, **shared).fit,
            "skoptim, FISTA": SGDClassifier(optimizer=fista, max_iter=2000, **shared).fit,
            "scikit-learn, liblinear": LogisticRegression(
                solver="liblinear",
                l1_ratio=1.0,
                C=1 / (alpha * len(y)),
                intercept_scaling=100.0,  # It penalises its intercept.
                random_state=0,
            ).fit,
        }
        if skglm is not None:
            fits["skglm"] = partial(skglm_logistic, alpha)
            fits["skglm"](X[:50, :50], y[:50])  # Compiles.
        seconds: dict[str, list[float]] = {label: [] for label in fits}
        models = {}
        for _ in range(repeats):
            for label, fit in fits.items():
                used, models[label] = timed(lambda fit=fit: fit(X, y))
                seconds[label].append(used)
        for label, model in models.items():
            coef, intercept = np.ravel(model.coef_), np.ravel(model.intercept_)[0]
            losses = np.logaddexp(0, -(2 * y - 1) * (X @ coef + intercept))
            own = median(seconds["skoptim, LBFGS"]) / median(seconds[label])
            rows.append(
                {
                    "alpha": alpha,
                    "": label,
                    "s": f"{median(seconds[label]):.2f}",
                    "LBFGS / this": f"{own:.2f}",
                    "objective": f"{losses.mean() + alpha * np.abs(coef).sum():.6f}",
                    "non-zeros": np.count_nonzero(coef),
                }
            )
    print(table(rows), flush=True)


def predict_part(repeats: int) -> None:
    mnist = data.load_mnist()
    print("\n### predict_proba of 60,000 images, float32\n")
    rows = []
    for hidden in ((100,), (512, 512)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = MLPClassifier(hidden, optimizer=Adam(), max_iter=1).fit(mnist.X, mnist.y)
            theirs = SklearnMLP(hidden, max_iter=1).fit(mnist.X, mnist.y)
        seconds: dict[str, list[float]] = {"skoptim": [], "scikit-learn": []}
        for _ in range(3 * repeats):
            for label, model in (("skoptim", ours), ("scikit-learn", theirs)):
                seconds[label].append(timed(lambda model=model: model.predict_proba(mnist.X))[0])
        for label, used in seconds.items():
            rows.append(
                {
                    "hidden": hidden,
                    "": label,
                    "s": f"{median(used):.3f}",
                    "ours / this": f"{median(seconds['skoptim']) / median(used):.2f}",
                }
            )
    print(table(rows), flush=True)


PARTS = {"lbfgs": lbfgs_part, "wide": wide_part, "predict": predict_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for part in arguments.parts:
        PARTS[part](arguments.repeats)


if __name__ == "__main__":
    main()
