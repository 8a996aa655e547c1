"""Files of records in a folder, one after the other as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from qinco_core.errors import VectorFileError
from qinco_core.vectors.base import Array, Layout, Rows
from qinco_core.vectors.parts import Parts, mark_of


class JoinedRows:
    """`Rows` of several files; the one that was read last stays open."""

    def __init__(self, files: Sequence[Path], open_file: Callable[[Path], Rows]) -> None:
        """Open each file once.

        Raises:
            VectorFileError: one is damaged, or of another type or dimension than the first.
        """
        marks = [mark_of(path) for path in files]
        layouts = [open_file(path).layout for path in files]
        first = layouts[0]
        for path, layout in zip(files, layouts, strict=True):
            if (layout.native, layout.D) != (first.native, first.D):
                raise VectorFileError(
                    f"{path} holds {layout.native} of dimension {layout.D}, but {files[0]} {first.native} of dimension "
                    f"{first.D}; the files of a folder have to be alike"
                )
        counts = [layout.count or 0 for layout in layouts]
        self.layout: Layout = dataclasses.replace(first, count=sum(counts))
        self._files, self._parts = files, Parts(files, marks, counts)
        self._open_file = open_file
        self._opened: tuple[int, Rows] | None = None

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array.

        Raises:
            VectorFileError: a row is damaged, or a file was replaced since they were opened.
        """
        pieces = [
            rows.fetch(max(0, start - first), min(stop, end) - first) for rows, first, end in self._at(start, stop)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, self.layout.D), self.layout.native)

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array.

        Raises:
            VectorFileError: as in `fetch`.
        """
        out = np.empty((len(rows), self.layout.D), self.layout.native)
        for part, first, end in self._at(int(rows.min()), int(rows.max()) + 1):
            inside = (rows >= first) & (rows < end)
            if inside.any():
                out[inside] = part.gather(rows[inside] - first)
        return out

    def place(self, row: int) -> tuple[str, int]:
        """The file that a row is in, and its number there."""
        return self._parts.place(row)

    def _at(self, start: int, stop: int) -> Iterator[tuple[Rows, int, int]]:
        """The files that have some of the rows, each with its first row and the row after its last."""
        starts = self._parts.starts
        for number in range(int(np.searchsorted(starts, start, "right")) - 1, int(np.searchsorted(starts, stop))):
            yield self._rows(number), int(starts[number]), int(starts[number + 1])

    def _rows(self, number: int) -> Rows:
        opened = self._opened
        if opened is None or opened[0] != number:
            self._parts.check(number)
            opened = self._opened = number, self._open_file(self._files[number])
        return opened[1]
