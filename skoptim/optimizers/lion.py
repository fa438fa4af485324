"""Lion."""

from __future__ import annotations

from typing import Any

import numpy as np

from skoptim.optimizers._base import DECAY, Optimizer


class Lion(Optimizer):
    r"""Lion: the sign of a momentum, so every step has the same length.

    .. math::
        w_t &= w_{t-1} - \eta_t \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t) \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Parameters
    ----------
    learning_rate : float or schedule, default=0.0001
        The length :math:`\eta_t` of a step in each coordinate; 3 to 10 times smaller than Adam's.
    beta_1, beta_2 : float, default=0.9, 0.99
        Weight of the moment in the step, and its decay, in [0, 1).
    l2, weight_decay, clip_norm, clip_value : float or None
        See `Optimizer`.

    Notes
    -----
    As in Keras and the authors' code. Under L1 the threshold is :math:`\eta \min(2, l_1 / |d|)`, d
    the direction before the sign: the metric in which a step of this length is taken, bounded.

    Use it with large batches; with batches of one the sign throws most of the gradient away.

    References
    ----------
    Chen et al. (2023), "Symbolic discovery of optimization algorithms", algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skoptim.optimizers import Lion
    >>> optimizer, w = Lion(learning_rate=0.25), np.array([1.0, 1.0])
    >>> optimizer.step(w, np.array([100.0, -0.1]), optimizer.init(w))
    >>> w
    array([0.75, 1.25])
    """

    _parameter_constraints = {
        **Optimizer._parameter_constraints,
        "beta_1": [DECAY],
        "beta_2": [DECAY],
    }

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.l2 = l2
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @property
    def rule(self) -> str:
        """Name of the compiled rule."""
        return "lion"

    def scalars(self, steps: np.ndarray) -> dict[str, Any]:
        """Return the two decays."""
        return {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "one_minus_beta_1": 1.0 - self.beta_1,
            "one_minus_beta_2": 1.0 - self.beta_2,
        }
