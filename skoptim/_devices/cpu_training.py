"""Whole passes and blocks of steps in one native call: on the CPU alone, see `cpu` for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import cython_blas

from skoptim._devices import cpu_threads as threads
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
    return kind(scalars.n_steps, row, np.array(scalars.varying, dtype=np.int64), values)


def make_architecture(network: Any, seed: int = 0) -> Any:
    """Return the layers of a network as native passes read them; `seed` is that of dropout."""
    kind = getattr(core, "Architecture" + SUFFIX[network.dtype])
    activation = None if network.activation is None else network.activation.name
    gemm = _GEMM[network.dtype]
    return kind(network.layer_sizes, activation, network.dropout, seed, gemm)


def make_task(network: Any, data: Any, clip_norm: float = np.inf, seed: int = 0) -> Any:
    """Return what is trained on what, as native passes and steps read it.

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
    return kind(
        data.X.native,
        data.targets,
        data.weights,
        network.loss.name,
        network.loss.parameter,
        network.fit_intercept,
        clip_norm,
        make_architecture(network, seed),
    )


def train(
    updater: Any, task: Any, order: Any, scalars: Any, batch_size: int, first_step: int
) -> float:
    """Take a block of steps; return the sum of the losses.

    Parameters
    ----------
    updater : updater of the device
    task : Task
    order : ndarray of int64
        The samples, in the order in which to visit them.
    scalars : native scalars
        Of all the steps.
    batch_size : int
    first_step : int
        Number of the first step in the whole training, of which dropout masks depend.
    """
    with threads.alone() as n_threads:
        return updater.train(task, order, scalars, batch_size, first_step, n_threads)


def scores(network: Any, data: Any, views: Any, out: Any) -> None:
    """Write the raw scores of all samples to `out`, shape (n_samples, n_outputs)."""
    architecture = make_architecture(network)
    with threads.alone() as n_threads:
        architecture.scores(data.X.native, data.rows, views.coefs, views.intercepts, n_threads, out)


def full_gradient(task: Any, data: Any, parameters: Any, out: Any) -> float:
    """Return the sum of the losses of all samples; write the gradient of their mean to `out`."""
    with threads.alone() as n_threads:
        return task.full_gradient(data.rows, parameters, n_threads, out)
