"""Sparse matrices that several test files train on."""

import numpy as np
import scipy.sparse as sp


def words(n_samples, n_columns, seed=0):
    """Return a matrix whose columns are met as often as words are, and labels of three classes.

    Debts last from one step to the whole epoch.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, n_columns + 1)
    rows = np.repeat(np.arange(n_samples), 20)
    columns = rng.choice(n_columns, size=rows.size, p=frequency / frequency.sum())
    values = 0.3 * rng.standard_normal(rows.size)
    X = sp.csr_matrix((values, (rows, columns)), shape=(n_samples, n_columns))
    return X, np.digitize(X @ rng.standard_normal(n_columns), [-0.5, 0.5])
