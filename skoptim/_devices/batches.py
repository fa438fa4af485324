"""The stored entries of CSR rows batch by batch, each batch column by column.

A sparse gradient sums over columns, CSR lists rows. Rather than sorting every batch, the entries of
the matrix are put in the order of their columns once; then a stable sort by the number of the batch
alone, for all batches of an epoch at once, leaves each batch in the order of its columns. The code
runs on NumPy as on CuPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: The most entries of a column that are summed by one thread.
SEGMENT_LENGTH = 64


@dataclass(frozen=True)
class ByColumns:
    """The stored entries of a CSR matrix, column by column; rows ascend within a column.

    `values`, `rows` and `columns` have shape (n_stored,).
    """

    values: Any
    rows: Any
    columns: Any
    n_rows: int

    @classmethod
    def of(cls, xp: Any, data: Any, indices: Any, indptr: Any) -> ByColumns:
        """Sort the entries of a matrix.

        Raises
        ------
        ValueError
            If there are 2**31 of them or more.
        """
        n_rows, n_stored = len(indptr) - 1, len(data)
        if n_stored > np.iinfo(np.int32).max:
            raise ValueError(
                f"X has {n_stored} stored entries; training on the GPU takes up to 2**31 - 1. Use "
                'device="cpu", or partial_fit on parts of the data.'
            )
        order = xp.argsort(indices, kind="stable")
        row_of = xp.searchsorted(indptr, xp.arange(n_stored), side="right") - 1
        return cls(data[order], row_of.astype(np.int32)[order], indices[order], n_rows)


@dataclass(frozen=True)
class Batches:
    """Entries of consecutive batches; the columns that a batch touches, and segments of those.

    Attributes
    ----------
    rows : array of shape (n,) or None
        The rows in their order; None for consecutive ones.
    first, n, batch_size : int
        The batches take rows[first:first + n] (or first, first + 1, ...), `batch_size` at a time.
    values, places : arrays of shape (n_entries,)
        Stored values, and which sample of its batch each belongs to.
    segment_starts : array of shape (n_segments + 1,)
        Where each segment begins in `values`.
    columns : array of shape (n_columns,)
        The columns that batches touch, ascending within a batch.
    column_segments : array of shape (n_columns + 1,)
        Where each column's segments begin.
    batch_columns, batch_segments : arrays of shape (n_batches + 1,)
        Where each batch begins in the lists of columns and of segments.
    most_columns, most_segments : int
        No batch has more of them.
    """

    rows: Any
    first: int
    n: int
    batch_size: int
    values: Any
    places: Any
    segment_starts: Any
    columns: Any
    column_segments: Any
    batch_columns: Any
    batch_segments: Any
    most_columns: int
    most_segments: int

    @classmethod
    def of(
        cls, xp: Any, entries: ByColumns, rows: Any, first: int, n: int, batch_size: int
    ) -> Batches:
        """List the entries of rows[first:first + n] (all distinct) in batches."""
        n_batches = -(-n // batch_size)
        # The fewer bits a number of a batch has, the fewer passes its sort takes.
        dtype = next(t for t in (np.uint8, np.uint16, np.uint32) if n_batches < np.iinfo(t).max)
        taken = slice(first, first + n) if rows is None else rows[first : first + n]
        positions = xp.arange(n, dtype=np.int32)
        batch_of = xp.full(entries.n_rows, n_batches, dtype=dtype)
        place_of = xp.zeros(entries.n_rows, dtype=np.int32)
        batch_of[taken] = (positions // batch_size).astype(dtype)
        place_of[taken] = positions % batch_size

        of_entry = batch_of[entries.rows]
        order = xp.argsort(of_entry, kind="stable")
        of_entry = of_entry[order]
        n_entries = int(xp.searchsorted(of_entry, xp.asarray([n_batches], dtype=dtype))[0])
        order, of_entry = order[:n_entries], of_entry[:n_entries]
        column = entries.columns[order]
        begins = xp.ones(n_entries, dtype=bool)
        begins[1:] = (column[1:] != column[:-1]) | (of_entry[1:] != of_entry[:-1])
        starts = xp.flatnonzero(begins)
        begins[::SEGMENT_LENGTH] = True
        segment_starts = xp.flatnonzero(begins)

        numbers = xp.arange(n_batches + 1, dtype=dtype)
        batch_columns = xp.searchsorted(of_entry[starts], numbers)
        column_segments = xp.searchsorted(segment_starts, _ending(xp, starts, n_entries))
        batch_segments = column_segments[batch_columns]
        most = [int(xp.diff(a).max()) for a in (batch_columns, batch_segments)]
        as_int = [
            a.astype(np.int32)
            for a in (
                _ending(xp, segment_starts, n_entries),
                column[starts],
                column_segments,
                batch_columns,
                batch_segments,
            )
        ]
        values, places = entries.values[order], place_of[entries.rows[order]]
        return cls(rows, first, n, batch_size, values, places, *as_int, *most)

    def has(self, first: Any, n: int) -> bool:
        """Whether rows[first:first + n] is one of the batches; one that moves is taken to be."""
        if not isinstance(first, int):
            return n == self.batch_size
        begins_one = first >= self.first and (first - self.first) % self.batch_size == 0
        return begins_one and n == min(self.batch_size, self.first + self.n - first)

    def moved_to(self, xp: Any, other: Batches | None) -> tuple[Batches, bool]:
        """Return the same lists in the memory of others, and whether it had to be other memory.

        What is new is made a tenth longer than needed, for lists of the next shuffle.
        """
        lists = {name: getattr(self, name) for name in _LISTS}
        most = {name: getattr(self, name) for name in ("most_columns", "most_segments")}
        fits = (
            other is not None
            and all(len(getattr(other, name).base) >= len(new) for name, new in lists.items())
            and all(getattr(other, name) >= number for name, number in most.items())
        )
        if fits:
            most = {name: getattr(other, name) for name in most}
        else:
            most = {name: number + number // 10 for name, number in most.items()}
        for name, new in lists.items():
            room = getattr(other, name).base if fits else xp.empty(_roomy(len(new)), new.dtype)
            lists[name] = room[: len(new)]
            lists[name][...] = new
        return replace(self, **lists, **most), not fits


_LISTS = (
    *("values", "places", "segment_starts", "columns", "column_segments"),
    *("batch_columns", "batch_segments"),
)


def _roomy(n: int) -> int:
    return n + n // 10 + 1


def _ending(xp: Any, starts: Any, end: int) -> Any:
    """Return where runs begin, and where the last one ends."""
    return xp.concatenate([starts, xp.asarray([end], dtype=starts.dtype)])
