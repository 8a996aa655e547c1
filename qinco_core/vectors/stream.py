"""Vectors from a pipe, in bounded memory, with truncation noticed wherever the format lets it be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from qinco_core.errors import UsageError, VectorFileError
from qinco_core.vectors.base import (
    Array,
    DType,
    Layout,
    check_batch,
    check_finite,
    check_window,
    read_up_to,
    window,
)
from qinco_core.vectors.formats import FORMATS, detect_format


class VectorStream:
    """Vectors that arrive in order, once.

    Attributes:
        name: "<stdin>", for messages.
        dtype: of the rows, in native byte order.
        dim: D, the dimension of every vector.
        count: N after skip and limit where the header says it, else None (the vecs formats).
    """

    def __init__(self, handle: BinaryIO, layout: Layout, name: str, skip: int, limit: int | None) -> None:
        self.name = name
        self.dtype: DType = layout.native
        self.dim = layout.D
        self.count: int | None = None
        self._handle = handle
        self._layout = layout
        self._skip = skip
        self._stop = None if limit is None else skip + limit
        if layout.count is not None:
            _, self._stop = window(skip, limit, layout.count, name)
            self.count = self._stop - skip
        # the vecs formats have no header: what was read of the first row is still to be given
        self._pending = layout.D.to_bytes(4, "little") if layout.prefixed else b""
        self._row = 0
        self._started = False

    @property
    def D(self) -> int:
        """The dimension of every vector."""
        return self.dim

    def batches(self, size: int) -> Iterator[Array]:
        """All vectors in order, [n, D] at a time with n = `size` but for the last.

        Rows are numbered in messages as they came, skipped ones included. The vecs formats have no
        count: a stream of them that was cut between two rows looks complete.

        Raises:
            UsageError: size is below 1, the stream was read before, or `skip` leaves nothing.
            VectorFileError: the stream is cut, longer than its header says, damaged, or holds NaN.
        """
        check_batch(size)
        if self._started:
            raise UsageError(f"{self.name} can be read only once; write it to a file to read it again")
        self._started = True
        return self._batches(size)

    def _batches(self, size: int) -> Iterator[Array]:
        while self._row < self._skip and len(self._next(min(size, self._skip - self._row))):
            pass
        first = self._row
        while n := size if self._stop is None else min(size, self._stop - self._row):
            row = self._row
            block = self._next(n)
            if not len(block):
                break
            check_finite(block, range(row, self._row), self.name)
            yield block
        if self._row == first:
            raise UsageError(f"{self.name} has {self._row} vectors; skipping {self._skip} leaves none")
        if self._row == self._layout.count and self._handle.read(1):
            raise VectorFileError(f"{self.name} goes on after the {self._row} vectors of its header; check the sender")

    def _next(self, n: int) -> Array:
        """The next n rows; fewer, or none, only at the end of a stream without a count."""
        layout = self._layout
        data = bytearray(self._pending)
        data += read_up_to(self._handle, n * layout.row_bytes - len(data))
        self._pending = b""
        rows, rest = divmod(len(data), layout.row_bytes)
        if rest or (rows < n and layout.count is not None):
            promised = "" if layout.count is None else f" of {layout.count}"
            raise VectorFileError(f"{self.name} was cut after {self._row + rows}{promised} vectors; check the sender")
        records = np.ndarray((rows,), layout.record, buffer=data)
        self._row += rows
        return layout.decode(records, range(self._row - rows, self._row), self.name)


def read_stream(handle: BinaryIO, format: str, *, skip: int = 0, limit: int | None = None) -> VectorStream:
    """Vectors of an open binary stream such as `sys.stdin.buffer`; its header is read at once.

    Raises:
        UsageError: a format that cannot be streamed, or a skip or limit that leaves nothing.
        VectorFileError: the header is missing, cut, or cannot be.
    """
    name = "<stdin>"
    check_window(skip, limit)
    read_header = FORMATS[detect_format(name, format)].read_header
    if read_header is None:
        usable = ", ".join(f.name for f in FORMATS.values() if f.streamable)
        raise UsageError(f"{format} cannot be read from a pipe; use a file, or one of {usable}")
    layout = read_header(handle, name)
    if layout.fortran:
        raise VectorFileError(f"{name} is an npy array in Fortran order, which has no rows to stream; use a file")
    return VectorStream(handle, layout, name, skip, limit)
