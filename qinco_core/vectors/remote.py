"""Files at an address, such as s3://bucket/base.fbin, of which ranges of bytes are read (fsspec)."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from qinco_core.errors import InputNotFoundError, StorageError, UsageError, VectorFileError
from qinco_core.optional import import_fsspec
from qinco_core.vectors.base import Array, Layout

# rows asked for one by one that lie no farther apart than this come in one request, which is no longer than that
_GAP_BYTES, _REQUEST_BYTES = 1 << 16, 1 << 24


def is_address(source: object) -> bool:
    """Whether a source is an address and no path."""
    return "://" in str(source)


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address.

    Attributes:
        address: as it was given.
        path: what the file system of its protocol calls it.
        system: that file system.
        size: in bytes.
        mark: what would differ if it were another file.
    """

    address: str
    path: str
    system: Any
    size: int
    mark: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address, without what a query adds."""
        return posixpath.basename(self.path.partition("?")[0])

    @contextlib.contextmanager
    def open(self, _mode: str = "rb") -> Iterator[BinaryIO]:
        """The file, to be read from any place."""
        with _refusals(self.address), self.system.open(self.path, "rb") as handle:
            yield handle

    def read(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """The bytes of these ranges, each from a first one to before a last.

        Raises:
            VectorFileError: the file is shorter than it was.
        """
        with _refusals(self.address):
            if len(ranges) == 1:
                found = [self.system.cat_file(self.path, *ranges[0])]
            else:
                starts, ends = zip(*ranges, strict=True)
                found = self.system.cat_ranges([self.path] * len(ranges), list(starts), list(ends))
        if any(len(data) != end - start for data, (start, end) in zip(found, ranges, strict=True)):
            raise VectorFileError(f"{self.address} became shorter while it was read; run again")
        return found


def remote_file(address: str) -> RemoteFile:
    """The file at an address.

    Raises:
        InputNotFoundError: there is none.
        UsageError: the address has no protocol that is known, or the server tells no size.
        StorageError: the server cannot be reached, or refuses.
        DependencyError: fsspec, or what it needs for the protocol, is not installed.
    """
    fsspec = import_fsspec()
    with _refusals(address):
        try:
            system, path = fsspec.core.url_to_fs(address)
        except ValueError as error:
            raise UsageError(f"{address}: {error}") from error
        facts = system.info(path)
    if facts.get("type") == "directory":
        raise UsageError(f"{address} is a folder; name a file in it")
    size = facts.get("size")
    if size is None:
        raise UsageError(f"{address}: the server does not tell the size; fetch the file first")
    told = [facts[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if facts.get(key)]
    return RemoteFile(address, path, system, int(size), " ".join(map(str, told)))


@contextlib.contextmanager
def _refusals(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFoundError(f"{address} does not exist; check the address") from error
    except (OSError, NotImplementedError, TimeoutError) as error:
        raise StorageError(
            f"{address} cannot be read ({error or type(error).__name__}); check address and access"
        ) from error


class RangedRows:
    """`Rows` of a file at an address: what lies together is asked for together."""

    def __init__(self, file: RemoteFile, layout: Layout, name: str) -> None:
        if layout.fortran:
            raise VectorFileError(f"{name} is an npy array in Fortran order: its rows lie apart; fetch the file first")
        self.layout = layout
        self._file = file
        self._name = name

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array.

        Raises:
            VectorFileError: a row header differs from D, or the file has shrunk since it was opened.
            StorageError: the server refuses.
        """
        size = max(1, _REQUEST_BYTES // self.layout.row_bytes)
        pieces = [self._bytes([(at, min(at + size, stop))])[0] for at in range(start, stop, size)]
        records = np.frombuffer(b"".join(pieces), self.layout.record)
        return self.layout.decode(records, range(start, stop), self._name)

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array.

        Raises:
            VectorFileError, StorageError: as in `fetch`.
        """
        order = np.unique(rows)
        apart = np.diff(order) * self.layout.row_bytes > _GAP_BYTES
        spans = [(int(run[0]), int(run[-1]) + 1) for run in np.split(order, np.flatnonzero(apart) + 1)]
        out = np.empty(len(rows), self.layout.record)
        for (start, stop), data in zip(spans, self._bytes(spans), strict=True):
            inside = (rows >= start) & (rows < stop)
            out[inside] = np.frombuffer(data, self.layout.record)[rows[inside] - start]
        return self.layout.decode(out, rows, self._name)

    def place(self, row: int) -> tuple[str, int]:
        """The file's name, and the row's number as it is."""
        return self._name, row

    def _bytes(self, spans: list[tuple[int, int]]) -> list[bytes]:
        size, offset = self.layout.row_bytes, self.layout.offset
        return self._file.read([(offset + start * size, offset + stop * size) for start, stop in spans])
