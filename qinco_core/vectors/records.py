"""Rows one after another behind a header, or with a header each: reading, piping and writing them.

The formats differ in their headers alone, which `vecs`, `bin` and `npy` know.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco_core.errors import VectorFileError
from qinco_core.files import write_all
from qinco_core.vectors.base import Append, Array, Layout, Outline, Rows, read_up_to
from qinco_core.vectors.joined import JoinedRows
from qinco_core.vectors.mapped import MappedRows
from qinco_core.vectors.remote import RangedRows, RemoteFile

ReadHeader = Callable[[BinaryIO, str], Layout]
WriteHeader = Callable[[Layout], bytes]


def open_rows(
    name: str, files: Sequence[Path], key: str | None, *, read_header: ReadHeader, format: str
) -> tuple[Rows, str | None]:
    """The rows of a file, or of files one after the other; their sizes must agree with their headers.

    Raises:
        VectorFileError: empty, truncated, malformed, or not of that format; or files that are not alike.
    """
    if len(files) == 1:
        return _open_file(files[0], read_header, format), key
    return JoinedRows(files, lambda path: _open_file(path, read_header, format)), key


def _open_file(path: Path, read_header: ReadHeader, format: str) -> MappedRows:
    name = str(path)
    with path.open("rb") as handle:
        layout = _fit(read_header(handle, name), path.stat().st_size, format, name)
        rows = MappedRows(handle, layout, name)
    if layout.prefixed and layout.count:
        rows.fetch(layout.count - 1, layout.count)  # tells a wrong format before any work starts
    return rows


def _fit(layout: Layout, size: int, format: str, name: str) -> Layout:
    """The layout with its count, which the file's size must agree with."""
    count = size // layout.row_bytes if layout.count is None else layout.count
    expected = layout.offset + count * layout.row_bytes
    if count == 0 or size != expected:
        if layout.prefixed:
            what = f"{size} bytes are no whole number of rows of {layout.row_bytes} bytes (D = {layout.D})"
        else:
            what = f"the header says {count} x {layout.D} {layout.native}, {expected} bytes; there are {size}"
        raise VectorFileError(
            f"{name}: {what}. It is truncated or not {format}: make it again, or name the format: --format"
        )
    return dataclasses.replace(layout, count=count)


def open_remote(file: RemoteFile, key: str | None, *, read_header: ReadHeader, format: str) -> tuple[Rows, str | None]:
    """The rows of a file at an address, whose size must agree with its header.

    Raises:
        VectorFileError: truncated, malformed, not of that format, or in Fortran order.
        StorageError: the server refuses, or cannot be reached.
    """
    name = file.address
    layout = _fit(read_header(file.head(), name), file.size, format, name)
    rows = RangedRows(file, layout, name)
    if layout.prefixed and layout.count:
        rows.gather(np.array([layout.count - 1]))
    return rows, key


class RecordFeed:
    """A `Feed` of the rows that follow a header; the header is read at once.

    The vecs formats have no count: a pipe of them that was cut between two rows looks complete.
    """

    def __init__(self, handle: BinaryIO, name: str, *, read_header: ReadHeader) -> None:
        self.layout = layout = read_header(handle, name)
        if layout.fortran:
            raise VectorFileError(f"{name} is an npy array in Fortran order, which has no rows to stream; use a file")
        self._handle = handle
        self._name = name
        # the vecs formats have no header: what was read of the first row is still to be given
        self._pending = layout.D.to_bytes(4, "little") if layout.prefixed else b""
        self._row = 0

    def take(self, n: int) -> Array:
        """The next n rows; fewer, or none, only at the end of a stream without a count.

        Raises:
            VectorFileError: the stream is cut, or a row says another D.
        """
        layout = self.layout
        data = bytearray(self._pending)
        data += read_up_to(self._handle, n * layout.row_bytes - len(data))
        self._pending = b""
        rows, rest = divmod(len(data), layout.row_bytes)
        if rest or (rows < n and layout.count is not None):
            promised = "" if layout.count is None else f" of {layout.count}"
            raise VectorFileError(f"{self._name} was cut after {self._row + rows}{promised} vectors; check the sender")
        records = np.ndarray((rows,), layout.record, buffer=data)
        self._row += rows
        return layout.decode(records, range(self._row - rows, self._row), self._name)

    def finish(self) -> None:
        """Refuse a stream that is longer than its header says."""
        if self._row == self.layout.count and self._handle.read(1):
            raise VectorFileError(f"{self._name} goes on after the {self._row} vectors of its header; check the sender")


@contextlib.contextmanager
def write_rows(handle: BinaryIO, outline: Outline, *, write_header: WriteHeader, prefixed: bool) -> Iterator[Append]:
    """Write a header and rows; a count that was not known is put into the header at the end."""
    layout = dataclasses.replace(outline.layout, dtype=outline.dtype.newbyteorder("<"), prefixed=prefixed)
    write_all(handle, write_header(layout))
    written = 0

    def append(block: Array, ids: Array | None) -> None:
        nonlocal written
        write_all(handle, layout.encode(block).reshape(-1).view(np.uint8))
        written += len(block)

    yield append
    if layout.count is None and not prefixed:
        handle.seek(0)
        write_all(handle, write_header(dataclasses.replace(layout, count=written)))
