"""Pipes as libraries want them: they may be closed, and all bytes go in or come out at once."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from qinco_core.files import write_all
from qinco_core.vectors.base import read_up_to

_TAIL_BYTES = 8


class Outlet(io.RawIOBase, BinaryIO):
    """A sink that others may close, and that takes all bytes, over one that stays open."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Write all of it; gives its number of bytes."""
        write_all(self._handle, data)
        return memoryview(data).nbytes


class Inlet(io.RawIOBase):
    """A source that gives as many bytes as were asked for, `head` first, and remembers the last 8."""

    def __init__(self, handle: BinaryIO, head: bytes = b"") -> None:
        self._handle = handle
        self._head = head
        self.tail = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, which has to be given, or fewer where the source ends before."""
        head, self._head = self._head[:size], self._head[size:]
        data = head + bytes(read_up_to(self._handle, size - len(head)))
        self.tail = (self.tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        return data
