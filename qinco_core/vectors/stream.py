"""Vectors from a pipe, in bounded memory, with truncation noticed wherever the format lets it be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from qinco_core.errors import UsageError
from qinco_core.vectors.base import Array, DType, Feed, check_batch, check_finite, check_window, window
from qinco_core.vectors.formats import FORMATS, detect_format


class VectorStream:
    """Vectors that arrive in order, once.

    Attributes:
        name: "<stdin>", for messages.
        dtype: of the rows, in native byte order.
        dim: D, the dimension of every vector.
        count: N after skip and limit where the header says it, else None (the vecs formats, Arrow).
    """

    def __init__(self, feed: Feed, name: str, skip: int, limit: int | None) -> None:
        self.name = name
        self.dtype: DType = feed.layout.native
        self.dim = feed.layout.D
        self.count: int | None = None
        self._feed = feed
        self._skip = skip
        self._stop = None if limit is None else skip + limit
        if feed.layout.count is not None:
            _, self._stop = window(skip, limit, feed.layout.count, name)
            self.count = self._stop - skip
        self._row = 0
        self._started = False

    def batches(self, size: int) -> Iterator[Array]:
        """All vectors in order, [n, D] at a time with n = `size` but for the last.

        Rows are numbered in messages as they came, skipped ones included.

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
        while self._row < self._skip and len(self._take(min(size, self._skip - self._row))):
            pass
        first = self._row
        while n := size if self._stop is None else min(size, self._stop - self._row):
            row = self._row
            block = self._take(n)
            if not len(block):
                break
            check_finite(block, range(row, self._row), self.name)
            yield block
        if self._row == first:
            raise UsageError(f"{self.name} has {self._row} vectors; skipping {self._skip} leaves none")
        self._feed.finish()

    def _take(self, n: int) -> Array:
        block = self._feed.take(n)
        self._row += len(block)
        return block


def read_stream(handle: BinaryIO, format: str, *, skip: int = 0, limit: int | None = None) -> VectorStream:
    """Vectors of an open binary stream such as `sys.stdin.buffer`; its header is read at once.

    Raises:
        UsageError: a format that cannot be streamed, or a skip or limit that leaves nothing.
        VectorFileError: the header is missing, cut, or cannot be.
    """
    name = "<stdin>"
    check_window(skip, limit)
    feed = FORMATS[detect_format(name, format)].feed
    if feed is None:
        usable = ", ".join(f.name for f in FORMATS.values() if f.streamable)
        raise UsageError(f"{format} cannot be read from a pipe; use a file, or one of {usable}")
    return VectorStream(feed(handle, name), name, skip, limit)
