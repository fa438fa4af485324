"""The entries of CSR rows batch by batch, column by column: what the GPU reads, on NumPy here."""

import numpy as np
import pytest
import scipy.sparse as sp

from skoptim._devices.batches import SEGMENT_LENGTH, Batches, ByColumns


def matrix(density=0.05, n_columns=60, every_row=True):
    """Return 400 rows; column 3 stands in all of them."""
    X = sp.random_array((400, n_columns), density=density, format="lil", rng=0)
    if every_row:
        X[:, 3] = 1.5
    X[10] = 0  # A row without entries.
    return sp.csr_matrix(X)


def by_columns(X):
    return ByColumns.of(np, X.data, X.indices, X.indptr)


def gradient(batches, number, delta, n_columns):
    """Return X.T @ delta of a batch, summed as the kernels do."""
    g = np.zeros(n_columns)
    for j in range(*batches.batch_columns[number : number + 2]):
        for s in range(*batches.column_segments[j : j + 2]):
            entries = slice(*batches.segment_starts[s : s + 2])
            assert 0 < entries.stop - entries.start <= SEGMENT_LENGTH
            g[batches.columns[j]] += batches.values[entries] @ delta[batches.places[entries]]
    return g


def check(X, batches, rows):
    rng = np.random.default_rng(1)
    size = batches.batch_size
    assert len(batches.batch_columns) == -(-len(rows) // size) + 1
    for number, first in enumerate(range(0, len(rows), size)):
        taken = rows[first : first + size]
        delta = rng.standard_normal(len(taken))
        actual = gradient(batches, number, delta, X.shape[1])
        np.testing.assert_allclose(actual, X[taken].T @ delta, atol=1e-12)
        columns = batches.columns[slice(*batches.batch_columns[number : number + 2])]
        np.testing.assert_array_equal(columns, np.unique(X[taken].indices))
        segments = np.diff(batches.batch_segments[number : number + 2])
        assert len(columns) <= batches.most_columns
        assert segments <= batches.most_segments


def test_entries_by_columns():
    X = matrix()
    found, expected = by_columns(X), sp.coo_array(X.tocsc())
    np.testing.assert_array_equal(found.values, expected.data)
    np.testing.assert_array_equal(found.rows, expected.coords[0])
    np.testing.assert_array_equal(found.columns, expected.coords[1])


@pytest.mark.parametrize("batch_size", [1, 7, 100, 390, 1000])
@pytest.mark.parametrize(("first", "n"), [(0, 390), (90, 200)])
def test_batches_of_listed_rows(batch_size, first, n):
    X, rows = matrix(), np.random.default_rng(0).permutation(400)[:390]
    batches = Batches.of(np, by_columns(X), rows, first, n, batch_size)
    check(X, batches, rows[first : first + n])


@pytest.mark.parametrize(("first", "n"), [(0, 400), (11, 64), (10, 1)])
def test_batches_of_consecutive_rows(first, n):
    X = matrix()
    check(X, Batches.of(np, by_columns(X), None, first, n, 64), np.arange(first, first + n))


def test_a_matrix_without_entries():
    X = sp.csr_matrix((5, 4))
    batches = Batches.of(np, by_columns(X), None, 0, 5, 2)
    assert batches.most_columns == batches.most_segments == 0
    np.testing.assert_array_equal(batches.batch_columns, [0, 0, 0, 0])


def test_lists_of_the_next_shuffle_lie_where_the_last_ones_lay():
    X = matrix()
    rng, entries = np.random.default_rng(0), by_columns(X)
    batches, moved = Batches.of(np, entries, None, 0, 400, 50).moved_to(np, None)
    assert moved
    for _ in range(3):
        rows = rng.permutation(400)
        following, moved = Batches.of(np, entries, rows, 0, 400, 50).moved_to(np, batches)
        assert not moved
        assert np.shares_memory(following.columns, batches.columns)
        check(X, following, rows)
        batches = following
    larger = by_columns(matrix(density=0.5))
    batches, moved = Batches.of(np, larger, rows, 0, 400, 50).moved_to(np, batches)
    assert moved
    check(matrix(density=0.5), batches, rows)


def test_which_batches_there_are():
    batches = Batches.of(np, by_columns(matrix()), None, 10, 95, 20)
    assert batches.has(10, 20)
    assert batches.has(90, 15)
    assert not batches.has(0, 20)
    assert not batches.has(15, 20)
    assert not batches.has(90, 20)
