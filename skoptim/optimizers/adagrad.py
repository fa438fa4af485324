"""Adagrad."""

from __future__ import annotations

from typing import Any

import numpy as np

from skoptim._devices import device_of
from skoptim.optimizers._base import NOT_NEGATIVE, POSITIVE, Optimizer


class Adagrad(Optimizer):
    r"""Adagrad: each coefficient's rate falls with its own squared gradients.

    .. math::
        n_t &= n_{t-1} + g_t^2 \\
        w_t &= w_{t-1} - \eta_t \, g_t / (\sqrt{n_t} + \epsilon)

    Parameters
    ----------
    learning_rate : float or schedule, default=0.01
        The rate :math:`\eta_t`.
    epsilon : float, default=1e-10
        Added to the root.
    initial_accumulator_value : float, default=0.0
        The value of :math:`n_0`.
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    The form is torch's. Keras puts :math:`\epsilon` (1e-7) inside the root and starts at 0.1.

    Use it for sparse data with rare features: they keep a large rate. The step only ever shrinks.

    References
    ----------
    Duchi, Hazan and Singer (2011), "Adaptive subgradient methods for online learning and stochastic
    optimization", figure 1 (diagonal version).

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Adagrad
    >>> optimizer, w = Adagrad(learning_rate=0.5), np.array([1.0, 2.0])
    >>> optimizer.step(w, np.array([100.0, -0.01]), optimizer.init(w))
    >>> w.round(6)
    array([0.5, 2.5])
    """

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "epsilon": [POSITIVE],
        "initial_accumulator_value": [NOT_NEGATIVE],
    }

    def __init__(
        self,
        learning_rate: Any = 0.01,
        epsilon: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self.initial_accumulator_value = initial_accumulator_value
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "adagrad"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the constant of the denominator."""
        return {"epsilon": self.epsilon}

    def _init_slots(
        self, w: Any, batch_size: int = 1, n_penalised: int | None = None
    ) -> dict[str, Any]:
        full = device_of(w).xp.full(w.shape, self.initial_accumulator_value, dtype=w.dtype)
        return {"accumulator": full}

    @property
    def _rests_without_gradient(self) -> bool:
        return self.l2 == 0 and self.weight_decay == 0
