"""Rows of a file through memory maps that live no longer than one read.

A map of the whole file would let the resident memory grow to the file's size; a window does not.
Scattered rows are read as they lie: one by one, or those that follow one another at once.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import BinaryIO

import numpy as np

from qinco_core.errors import VectorFileError
from qinco_core.vectors.base import Array, DType, Layout

_READ_BYTES = 1 << 26  # at once, of rows that follow one another; systems read less than 2 GiB


class MappedRows:
    """`Rows` of an open file, of which its own descriptor is kept; `layout.count` must be known."""

    def __init__(self, handle: BinaryIO, layout: Layout, name: str) -> None:
        self.layout = layout
        self._count = layout.count or 0
        self._name = name
        self._descriptor = os.dup(handle.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array.

        Raises:
            VectorFileError: a row header differs from D, or the file has shrunk since it was opened.
        """
        if start == stop:
            return np.empty((0, self.layout.D), self.layout.native)
        return self.layout.decode(self._records(start, stop), range(start, stop), self._name)

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array.

        Raises:
            VectorFileError: as in `fetch`.
        """
        records = self._records(0, self._count)[rows] if self.layout.fortran else self._read_rows(rows)
        return self.layout.decode(records, rows, self._name)

    def place(self, row: int) -> tuple[str, int]:
        """The file's name, and the row's number as it is."""
        return self._name, row

    def _records(self, start: int, stop: int) -> Array:
        """A view of records start..stop-1 that keeps its map alive."""
        layout = self.layout
        if layout.fortran:
            columns = self._map(layout.offset, (layout.D, self._count), layout.dtype)
            return columns.T[start:stop]
        return self._map(layout.offset + start * layout.row_bytes, (stop - start,), layout.record)

    def _read_rows(self, rows: Array) -> Array:
        # touching a mapped row may map megabytes around it; reading it takes its bytes alone
        layout, size = self.layout, self.layout.row_bytes
        wanted, places = np.unique(rows, return_inverse=True)
        raw = np.empty((len(wanted), size), np.uint8)
        follow = np.diff(wanted, append=wanted[-1]) == 1
        most = max(1, _READ_BYTES // size)
        follow[most - 1 :: most] = False
        ends = np.flatnonzero(~follow) + 1  # of runs of rows that follow one another
        start = 0
        for end in ends.tolist():
            run = raw[start:end]
            if os.preadv(self._descriptor, [run.data], layout.offset + int(wanted[start]) * size) != run.nbytes:
                raise self._shrunk()
            start = end
        return np.ndarray((len(wanted),), layout.record, buffer=raw)[places]

    def _map(self, offset: int, shape: tuple[int, ...], dtype: DType) -> Array:
        margin = offset % mmap.ALLOCATIONGRANULARITY
        length = margin + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            memory = mmap.mmap(self._descriptor, length, access=mmap.ACCESS_READ, offset=offset - margin)
        except ValueError as error:
            raise self._shrunk() from error
        return np.ndarray(shape, dtype, buffer=memory, offset=margin)

    def _shrunk(self) -> VectorFileError:
        return VectorFileError(f"{self._name} became shorter while it was read; run again")
