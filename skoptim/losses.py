"""Losses on raw scores: value and gradient, and what a score predicts.

Classification losses take targets of -1 and +1 (`Multinomial`: class indices).
"""

from __future__ import annotations

from functools import cache
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval

from skoptim._devices import cpu, device_of

__all__ = [
    "EpsilonInsensitive",
    "Hinge",
    "Huber",
    "LogLoss",
    "Loss",
    "ModifiedHuber",
    "Multinomial",
    "Perceptron",
    "Poisson",
    "Quantile",
    "SquaredEpsilonInsensitive",
    "SquaredError",
    "SquaredHinge",
]


class Loss(BaseEstimator):
    """Base of the losses: names a compiled loss and its constant.

    Attributes
    ----------
    name : str
        Name of the compiled loss.
    kind : {"regression", "binary", "multinomial"}
        What its targets are.
    parameter : float
        The constant of the loss, where it has one.
    in_target_units : bool
        Whether scores are in the units of the target.
    curvature : float
        What the second derivative by a score is at most; 1 where it has no bound (Poisson) or is
        zero nearly everywhere (hinge, quantile).
    is_smooth : bool
        Whether it has a derivative everywhere.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "regression"
    in_target_units: ClassVar[bool] = True
    curvature: ClassVar[float] = 1.0
    is_smooth: ClassVar[bool] = True
    _parameter_constraints: dict = {}

    @property
    def parameter(self) -> float:
        """The constant of the loss; 0 where it has none."""
        return 0.0

    def typical_derivative(self, residual: float) -> float:
        """Return the size of the derivative by a score that is so far from the target."""
        return residual

    def value(self, y: Any, scores: Any) -> float:
        """Return the mean over samples of the loss, summed over outputs.

        Parameters
        ----------
        y : array of shape (n_samples,) or (n_samples, n_outputs)
            Targets; class indices of shape (n_samples,) for `Multinomial`.
        scores : array of shape (n_samples,) or (n_samples, n_outputs)
            Raw scores.

        Returns
        -------
        value : float
        """
        return self._evaluate(y, scores)[0]

    def gradient(self, y: Any, scores: Any) -> np.ndarray:
        """Return the derivatives of each sample's loss by its scores, in the shape of `scores`."""
        return self._evaluate(y, scores)[1]

    def predict(self, scores: Any) -> Any:
        """Return the prediction that a score stands for (the inverse link)."""
        return scores

    def _evaluate(self, y: Any, scores: Any) -> tuple[float, np.ndarray]:
        self._validate_params()
        scores = np.asarray(scores)
        scores = scores.astype(np.result_type(scores.dtype, np.float32), copy=False)
        z = np.ascontiguousarray(scores.reshape(len(scores), -1))
        kind = {"labels": y} if self.kind == "multinomial" else {"values": np.reshape(y, z.shape)}
        targets = cpu.make_targets(**kind, n_outputs=z.shape[1], dtype=z.dtype)
        d = np.empty_like(z)
        total = cpu.loss_gradient(self.name, z, targets, None, 0, None, self.parameter, 1.0, d)
        return total / max(len(z), 1), d.reshape(scores.shape)


class SquaredError(Loss):
    r"""Half the squared error, :math:`\tfrac12 (z - y)^2`."""

    name = "squared_error"


class _EpsilonLoss(Loss):
    _parameter_constraints = {"epsilon": [Interval(Real, 0, None, closed="left")]}

    def __init__(self, epsilon: float = 0.1):
        self.epsilon = epsilon

    @property
    def parameter(self) -> float:
        """The width `epsilon`."""
        return self.epsilon


class Huber(_EpsilonLoss):
    """Squared up to an error of `epsilon`, linear beyond.

    Parameters
    ----------
    epsilon : float, default=0.1
        Where the loss turns linear, in units of the target.
    """

    name = "huber"

    def typical_derivative(self, residual: float) -> float:
        """Return the size of the derivative by a score that is so far from the target."""
        return min(residual, self.parameter) or 1.0


class EpsilonInsensitive(_EpsilonLoss):
    r"""Absolute error beyond a tolerance, :math:`\max(0, |z - y| - \epsilon)`.

    Parameters
    ----------
    epsilon : float, default=0.1
        Errors up to it cost nothing, in units of the target.
    """

    name = "epsilon_insensitive"
    is_smooth = False

    def typical_derivative(self, residual: float) -> float:
        """Return 1: the derivative has one size."""
        return 1.0


class SquaredEpsilonInsensitive(_EpsilonLoss):
    r"""Square of the error beyond a tolerance, :math:`\max(0, |z - y| - \epsilon)^2`.

    Parameters
    ----------
    epsilon : float, default=0.1
        Errors up to it cost nothing, in units of the target.
    """

    name = "squared_epsilon_insensitive"
    curvature = 2.0


class Poisson(Loss):
    r"""Half the Poisson deviance with the log link, for counts: predicts :math:`e^z`."""

    name = "poisson"
    in_target_units = False

    def predict(self, scores: Any) -> Any:
        """Return the expected count, the exponential of the score."""
        return device_of(scores).xp.exp(scores)


class Quantile(Loss):
    """Pinball loss: predicts a quantile of the target.

    Parameters
    ----------
    quantile : float, default=0.5
        The level, in (0, 1); 0.5 is the median.
    """

    name = "quantile"
    is_smooth = False
    _parameter_constraints = {"quantile": [Interval(Real, 0, 1, closed="neither")]}

    def __init__(self, quantile: float = 0.5):
        self.quantile = quantile

    @property
    def parameter(self) -> float:
        """The level of the quantile."""
        return self.quantile

    def typical_derivative(self, residual: float) -> float:
        """Return 1, about the size of all derivatives."""
        return 1.0


class _BinaryLoss(Loss):
    kind = "binary"
    in_target_units = False


class Hinge(_BinaryLoss):
    r"""Hinge, :math:`\max(0, 1 - yz)`: a linear support vector machine."""

    name = "hinge"
    is_smooth = False


class SquaredHinge(_BinaryLoss):
    r"""Squared hinge, :math:`\max(0, 1 - yz)^2`."""

    name = "squared_hinge"
    curvature = 2.0


class LogLoss(_BinaryLoss):
    r"""Logistic loss, :math:`\log(1 + e^{-yz})`; several classes are taken one against the rest."""

    name = "log_loss"
    curvature = 0.25

    def predict(self, scores: Any) -> Any:
        """Return the probability of the positive class."""
        device = device_of(scores)
        return expit(scores) if device is cpu else 1 / (1 + device.xp.exp(-scores))


class ModifiedHuber(_BinaryLoss):
    """Smoothed hinge that tolerates outliers and gives probabilities (Zhang 2004)."""

    name = "modified_huber"
    curvature = 2.0

    def predict(self, scores: Any) -> Any:
        """Return the probability of the positive class."""
        return (device_of(scores).xp.clip(scores, -1, 1) + 1) / 2


class Perceptron(_BinaryLoss):
    r"""Perceptron criterion, :math:`\max(0, -yz)`."""

    name = "perceptron"
    is_smooth = False


class Multinomial(Loss):
    """Cross-entropy of the softmax over all classes."""

    name = "multinomial"
    kind = "multinomial"
    in_target_units = False
    curvature = 0.25

    def predict(self, scores: Any) -> Any:
        """Return the probabilities of the classes."""
        xp = device_of(scores).xp
        scores = xp.asarray(scores)
        odds = xp.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


_BY_NAME: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (
        SquaredError,
        Huber,
        EpsilonInsensitive,
        SquaredEpsilonInsensitive,
        Poisson,
        Quantile,
        Hinge,
        SquaredHinge,
        LogLoss,
        ModifiedHuber,
        Perceptron,
        Multinomial,
    )
}


@cache
def _names(regression: bool) -> tuple[str, ...]:
    found = (n for n, cls in _BY_NAME.items() if (cls.kind == "regression") == regression)
    return tuple(sorted(found))


def resolve_loss(loss: Any, *, regression: bool, epsilon: float | None = None) -> Loss:
    """Return the loss object of an estimator's `loss`, with its `epsilon` where that applies."""
    names = _names(regression)
    if isinstance(loss, str) and loss in names:
        cls = _BY_NAME[loss]
        loss = cls(epsilon) if epsilon is not None and issubclass(cls, _EpsilonLoss) else cls()
    if not isinstance(loss, Loss) or loss.name not in names:
        task = "regression" if regression else "classification"
        if isinstance(loss, tuple | list | int):
            raise ValueError(
                f"loss={loss!r} is not a {task} loss; sizes of layers go by name, as "
                f"hidden_layer_sizes={loss!r}."
            )
        raise ValueError(
            f"loss={loss!r} is not a {task} loss: use one of {list(names)}, or an instance of such "
            "a class of skoptim.losses."
        )
    loss._validate_params()
    return loss
