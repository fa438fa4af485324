"""Blocks of steps in one native call: on the CPU alone, see `cpu` for what devices share."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import cython_blas

from skoptim._devices.cpu import SUFFIX
from skoptim._native import core

_GEMM = {
    np.dtype(np.float32): cython_blas.__pyx_capi__["sgemm"],
    np.dtype(np.float64): cython_blas.__pyx_capi__["dgemm"],
}


def make_table(
    rule: str, n_columns: int, width: int, dtype: Any, *, has_units: bool, averaging: bool
) -> Any:
    """Return the table of a linear model that is trained on CSR data, still empty."""
    kind = getattr(core, "LinearTable" + SUFFIX[np.dtype(dtype)])
    return kind(rule, n_columns, width, has_units, averaging)


def native_scalars(scalars: Any, dtype: Any) -> Any:
    """Return the prepared scalars of a block of steps as native steps read them."""
    kind = getattr(core, "Scalars" + SUFFIX[np.dtype(dtype)])
    row, values = scalars.row.astype(dtype), np.ascontiguousarray(scalars.values, dtype=dtype)
    return kind(scalars.n_steps, row, scalars.varying, values)


def make_task(network: Any, data: Any, clip_norm: float, seed: int) -> Any:
    """Return what native steps read, apart from the scalars and the order of samples.

    Parameters
    ----------
    network : Network
    data : Dataset
    clip_norm : float
        Bound on the norm of the gradient; infinity for none.
    seed : int
        Of dropout.
    """
    kind = getattr(core, "Task" + SUFFIX[network.dtype])
    activation = None if network.activation is None else network.activation.name
    return kind(
        data.X.native,
        data.targets,
        data.weights,
        network.loss.name,
        network.loss.parameter,
        network.fit_intercept,
        clip_norm,
        network.layer_sizes,
        activation,
        network.dropout,
        seed,
        _GEMM[network.dtype],
    )
