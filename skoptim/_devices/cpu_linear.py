"""A linear model's steps in one native call: on the CPU alone, see `cpu` for what devices share."""

from __future__ import annotations

from typing import Any

import numpy as np

from skoptim._devices.cpu import SUFFIX, Matrix
from skoptim._native import core


def make_table(
    rule: str, n_columns: int, width: int, dtype: Any, *, has_units: bool, averaging: bool
) -> Any:
    """Return the table of a linear model that is trained on CSR data, still empty."""
    kind = getattr(core, "LinearTable" + SUFFIX[np.dtype(dtype)])
    return kind(rule, n_columns, width, has_units, averaging)


def native_scalars(scalars: Any, dtype: Any) -> Any:
    """Return the prepared scalars of a block of steps as the one-call steps read them."""
    kind = getattr(core, "Scalars" + SUFFIX[np.dtype(dtype)])
    row, values = scalars.row.astype(dtype), np.ascontiguousarray(scalars.values, dtype=dtype)
    return kind(scalars.n_steps, row, scalars.varying, values)


def linear_data(
    X: Matrix, targets: Any, weights: Any, loss: Any, fit_intercept: bool, clip_norm: float
) -> Any:
    """Return what the one-call steps read, apart from the scalars and the order of samples."""
    kind = getattr(core, "LinearData" + SUFFIX[X.dtype])
    return kind(X.native, targets, weights, loss.name, loss.parameter, fit_intercept, clip_norm)
