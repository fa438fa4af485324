"""Adadelta."""

from __future__ import annotations

from typing import Any

import numpy as np

from skoptim.optimizers._base import DECAY, POSITIVE, Optimizer


class Adadelta(Optimizer):
    r"""Adadelta: steps in the units of the parameters, with no rate to tune.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2 \\
        \Delta_t &= \sqrt{u_{t-1} + \epsilon} / \sqrt{v_t + \epsilon} \; g_t \\
        u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2 \\
        w_t &= w_{t-1} - \eta_t \Delta_t

    Parameters
    ----------
    learning_rate : float or schedule, default=1.0
        The factor :math:`\eta_t`; 1 in the paper.
    rho : float, default=0.95
        Decay of both averages, in [0, 1).
    epsilon : float, default=1e-6
        Under both roots; it sets the size of the first steps.
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The numerator is the root mean square of the steps *before* this one. torch has
    :math:`\rho = 0.9`; Keras has :math:`\eta = 0.001`, which is not the paper's method, and
    :math:`\epsilon` 1e-7.

    Use it when no rate can be tuned and there is time: the first steps are small.

    References
    ----------
    Zeiler (2012), "ADADELTA: an adaptive learning rate method", algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Adadelta
    >>> optimizer, w = Adadelta(rho=0.75, epsilon=1e-2), np.array([1.0])
    >>> optimizer.step(w, np.array([2.0]), optimizer.init(w))
    >>> w.round(4)
    array([0.801])
    """

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "rho": [DECAY],
        "epsilon": [POSITIVE],
    }

    def __init__(
        self,
        learning_rate: Any = 1.0,
        rho: float = 0.95,
        epsilon: float = 1e-6,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.rho = rho
        self.epsilon = epsilon
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "adadelta"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the constants of the rule."""
        return {"rho": self.rho, "epsilon": self.epsilon, "one_minus_rho": 1.0 - self.rho}
