"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np

from skoptim.optimizers._base import DECAY, Optimizer


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum and Nesterov's look-ahead.

    .. math::
        b_t &= \mu b_{t-1} + (1 - \tau) g_t, \qquad b_1 = g_1 \\
        w_t &= w_{t-1} - \eta_t b_t
            \qquad (\text{Nesterov: } w_{t-1} - \eta_t (g_t + \mu b_t))

    Parameters
    ----------
    learning_rate : float or schedule, default=0.01
        The rate :math:`\eta_t`.
    momentum : float, default=0.0
        The decay :math:`\mu` of the running gradient, in [0, 1).
    nesterov : bool, default=False
        Step along the look-ahead; needs momentum and no dampening.
    dampening : float, default=0.0
        The share :math:`\tau` by which later gradients are held back, in [0, 1).
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The form is torch's. Keras and scikit-learn's MLP fold the rate into the buffer,
    :math:`m = \mu m - \eta g`; the two agree for a constant rate and no dampening.

    Use it on large data with simple models; it wants scaled features, a tuned rate, and momentum in
    ravines.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton (2013), "On the importance of initialization and momentum in
    deep learning", equations 1 to 4.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import SGD
    >>> optimizer, w = SGD(learning_rate=0.5), np.array([1.0, 2.0])
    >>> optimizer.step(w, np.array([1.0, -1.0]), optimizer.init(w))
    >>> w
    array([0.5, 2.5])
    """

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "momentum": [DECAY],
        "nesterov": ["boolean"],
        "dampening": [DECAY],
    }

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.dampening = dampening
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "sgd_momentum" if self.momentum else "sgd"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the momentum terms; the first step takes its gradient whole."""
        gradient_weight: Any = 1.0
        if self.dampening:
            gradient_weight = np.where(steps == 1, 1.0, 1.0 - self.dampening)
        return {
            "momentum": self.momentum,
            "gradient_weight": gradient_weight,
            "look_gradient": float(self.nesterov),
            "look_buffer": self.momentum if self.nesterov else 1.0,
            "stationary_gain": (1.0 - self.dampening) / (1.0 - self.momentum),
        }

    def _validate(self, dtype: Any) -> None:
        super()._validate(dtype)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov=True of SGD needs momentum > 0 and dampening=0; "
                f"got momentum={self.momentum}, dampening={self.dampening}."
            )

    @property
    def _rests_without_gradient(self) -> bool:
        return self.momentum == 0 and self.l2 == 0 and self.weight_decay == 0
