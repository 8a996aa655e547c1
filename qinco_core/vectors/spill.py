"""Rows unpacked into an anonymous temporary file, for formats that cannot be read in any order.

The file lies in $TMPDIR and has no name: it is gone with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import weakref
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from qinco_core.files import storage_errors, write_all
from qinco_core.vectors.base import Append, Array, Layout, Outline, WriteRows
from qinco_core.vectors.mapped import MappedRows

_BLOCK_BYTES = 8 << 20


class Spill:
    """Rows of one layout, written anywhere and in any order, read once they are written."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout = Layout(layout.native, layout.D, None)
        self._name = name
        self._where = f"the unpacked rows of {name} in {tempfile.gettempdir()} ($TMPDIR)"
        with storage_errors(self._where):
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        weakref.finalize(self, self._file.close)

    def write(self, row: int, block: Array) -> None:
        """Put a [n, D] block at row `row`.

        Raises:
            StorageError: no room is left in $TMPDIR.
        """
        raw = np.ascontiguousarray(block, self._layout.dtype).reshape(-1).view(np.uint8)
        with storage_errors(self._where):
            self._file.seek(row * self._layout.row_bytes)
            write_all(self._file, raw)

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self._file.fileno()

    def rows(self, count: int) -> MappedRows:
        """The first `count` rows."""
        return self.place(dataclasses.replace(self._layout, count=count))

    def place(self, layout: Layout) -> MappedRows:
        """What was written, as rows of a layout with a count."""
        return MappedRows(self._file, layout, self._name)


def with_count(write: WriteRows) -> WriteRows:
    """A writer that has to know the number of rows beforehand, made one that need not: rows wait for it here."""

    @contextlib.contextmanager
    def waiting(handle: BinaryIO, outline: Outline) -> Iterator[Append]:
        if outline.count is not None:
            with write(handle, outline) as append:
                yield append
            return
        spill, written = Spill(outline.layout, outline.name), 0

        def keep(block: Array, ids: Array | None) -> None:
            nonlocal written
            spill.write(written, block)
            written += len(block)

        yield keep
        rows = spill.rows(written)
        step = max(1, _BLOCK_BYTES // rows.layout.row_bytes)
        with write(handle, dataclasses.replace(outline, count=written)) as append:
            for at in range(0, written, step):
                append(rows.fetch(at, min(at + step, written)), None)

    return waiting
