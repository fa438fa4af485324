"""scikit-learn estimators with pluggable optimizers, for dense and sparse data, on CPU and GPU."""

from skoptim.linear_model import SGDClassifier, SGDRegressor
from skoptim.neural_network import MLPClassifier, MLPRegressor

__version__ = "0.1.0"

__all__ = ["MLPClassifier", "MLPRegressor", "SGDClassifier", "SGDRegressor"]
