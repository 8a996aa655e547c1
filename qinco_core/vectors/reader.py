"""Files of vectors, read by batches and never whole."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from qinco_core.errors import StorageError, UsageError, VectorFileError
from qinco_core.files import existing_file
from qinco_core.vectors import hdf5
from qinco_core.vectors.base import (
    Array,
    DType,
    Layout,
    Rows,
    check_batch,
    check_finite,
    check_range,
    window,
)
from qinco_core.vectors.formats import FORMATS, detect_format
from qinco_core.vectors.mapped import MappedRows


class VectorFile:
    """A range of rows of a file of vectors; every row is checked when it is read.

    Attributes:
        name: the path, with the dataset's key, for messages.
        format: a key of `FORMATS`.
        dtype: of the rows, in native byte order.
        shape: (N, D) after skip and limit.
    """

    def __init__(self, rows: Rows, *, name: str, format: str, identity: str, start: int, stop: int) -> None:
        self.name = name
        self.format = format
        self.dtype: DType = rows.layout.native
        self.shape = (stop - start, rows.layout.D)
        self._rows: Rows | None = rows
        self._identity = identity
        self._start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        """D, the dimension of every vector."""
        return self.shape[1]

    @property
    def count(self) -> int:
        """N, the number of vectors after skip and limit."""
        return self.shape[0]

    @property
    def stamp(self) -> str:
        """What identifies these rows whatever the file is called: its size, time, type and range."""
        return f"{self._identity} {self.dtype} {self.dim} rows {self._start}-{self._start + len(self)}"

    def close(self) -> None:
        """Let the file go; sections of it stay readable."""
        self._rows = None

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array of the file's dtype.

        Raises:
            UsageError: the range is not inside the file, or the file is closed.
            VectorFileError: a row is damaged or holds NaN or infinity; names its number in the file.
        """
        check_range(start, stop, len(self), self.name)
        start, stop = self._start + start, self._start + stop
        block = self._open_rows().fetch(start, stop)
        check_finite(block, range(start, stop), self.name)
        return block

    def take(self, rows: Array) -> Array:
        """The rows of those numbers (integers [n], any order, repeats allowed) as a fresh [n, D] array.

        Raises:
            UsageError: a number is not inside the file, or the file is closed.
            VectorFileError: as in `read`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size == 0:
            return self.read(0, 0)
        check_range(int(rows.min()), int(rows.max()) + 1, len(self), self.name)
        rows = rows + self._start
        block = self._open_rows().gather(rows)
        check_finite(block, rows, self.name)
        return block

    def batches(self, size: int) -> Iterator[Array]:
        """All vectors in order, [n, D] at a time with n = `size` but for the last.

        Raises:
            UsageError: size is below 1.
            VectorFileError: as in `read`.
        """
        check_batch(size)
        return (self.read(at, min(at + size, len(self))) for at in range(0, len(self), size))

    def section(self, start: int, stop: int) -> VectorFile:
        """Rows start..stop-1 as a `VectorFile` of their own, on the same open file.

        Raises:
            UsageError: the range is not inside the file, or the file is closed.
        """
        check_range(start, stop, len(self), self.name)
        return VectorFile(
            self._open_rows(),
            name=self.name,
            format=self.format,
            identity=self._identity,
            start=self._start + start,
            stop=self._start + stop,
        )

    def _open_rows(self) -> Rows:
        if self._rows is None:
            raise UsageError(f"{self.name} is closed; read it inside its with-block")
        return self._rows


def open_vectors(
    source: str | Path, *, format: str | None = None, skip: int = 0, limit: int | None = None
) -> VectorFile:
    """Open `limit` vectors of a file after the first `skip`; the format is told by extension or `format`.

    `source` may be `file.hdf5::key`. The file's size is checked against its header; nothing else is
    read yet. A limit beyond the end is clipped.

    Raises:
        InputNotFoundError: nothing is there.
        UsageError: unknown format, no such dataset, or a skip or limit that leaves nothing.
        VectorFileError: empty, truncated, malformed, or not of that format.
        StorageError: it may not be read.
    """
    path, key = _split(source)
    format = detect_format(path, format)
    if key is not None and format != "hdf5":
        raise UsageError(f"{source}: only HDF5 files have datasets to name with ::, this is {format}")
    existing_file(path)
    rows: Rows
    with _open_regular(path) as handle:
        facts = os.fstat(handle.fileno())
        identity = f"{facts.st_size} bytes at {facts.st_mtime_ns}"
        name = str(path)
        if format == "hdf5":
            rows, key = hdf5.open_rows(path, key)
            name, identity = f"{path}::{key.lstrip('/')}", f"{identity} {key}"
        else:
            rows = _mapped_rows(handle, facts.st_size, format, name)
    start, stop = window(skip, limit, rows.layout.count or 0, name)
    return VectorFile(rows, name=name, format=format, identity=identity, start=start, stop=stop)


def _split(source: str | Path) -> tuple[Path, str | None]:
    path, separator, key = str(source).rpartition("::")
    if not separator or Path(source).exists():
        return Path(source), None
    return Path(path), key


def _open_regular(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"{path} is not a regular file; pipe it in as - with --format instead")
    try:
        handle = path.open("rb")
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if os.fstat(handle.fileno()).st_size == 0:
        handle.close()
        raise VectorFileError(f"{path} is empty; make it again")
    return handle


def _mapped_rows(handle: BinaryIO, size: int, format: str, name: str) -> MappedRows:
    read_header = FORMATS[format].read_header
    if read_header is None:
        raise UsageError(f"{name}: {format} has no header to read")
    layout = _fit(read_header(handle, name), size, format, name)
    rows = MappedRows(handle, layout, layout.count or 0, name)
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
