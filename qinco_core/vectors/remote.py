"""Files at an address, such as s3://bucket/base.fbin, of which ranges of bytes are read (fsspec).

What lies together is asked for together. Who reads in order is given blocks of 16 MiB, the next of which
comes while the last one is worked on. A request that fails is made again a few times.
"""

from __future__ import annotations

import io
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from qinco_core.errors import (
    DependencyError,
    InputNotFoundError,
    QincoError,
    StorageError,
    UsageError,
    VectorFileError,
)
from qinco_core.optional import import_fsspec
from qinco_core.vectors.base import Array, Layout

# rows that lie no farther apart than the first come in one request, and no request is longer than the second
_GAP_BYTES, _REQUEST_BYTES = 1 << 16, 1 << 24
# more than any header
_HEAD_BYTES = 1 << 14
_AHEAD_BYTES = 1 << 22
# seconds before each new try of a request
_PAUSES = (0.2, 1.0, 4.0)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z0-9+.-]+)*://")
# what file systems call that which differs if the file does
_MARKS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "created")
# what will be the same when it is asked again: errors, and statuses of servers
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)
_NOT_FOUND, _NO_SUCH_RANGE, _REFUSED = (404, 410), 416, range(400, 500)


def is_address(source: object) -> bool:
    """Whether a source is an address and no path."""
    return _ADDRESS.match(str(source)) is not None


def split_address(source: str) -> tuple[str, str | None]:
    """The address and what stands after `::`; what is an address itself is none, for fsspec chains them so."""
    address, separator, key = source.rpartition("::")
    if not separator or is_address(key) or not is_address(address):
        return source, None
    return address, key


def address_name(address: str) -> str:
    """The last part of an address, without what a query adds: what would be the file's name."""
    first = next(part for part in address.split("::") if "://" in part)
    return posixpath.basename(first.partition("?")[0].partition("#")[0])


def shown(address: str) -> str:
    """An address without its query and its password, for messages: there may be secrets in them; a path as it is."""
    if not is_address(address):
        return address
    return re.sub(r"://[^/@]*@", "://", address.partition("?")[0])


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address.

    Attributes:
        address: as it is shown.
        path: what the file system of its protocol calls it.
        system: that file system.
        size: in bytes.
        mark: what differs if it is another file; empty where the server does not tell.
    """

    address: str
    path: str
    system: Any
    size: int
    mark: str

    def __str__(self) -> str:
        return self.address

    def head(self) -> BinaryIO:
        """The first bytes, as many as any header has."""
        return io.BytesIO(self.read([(0, min(self.size, _HEAD_BYTES))])[0])

    def open(self, _mode: str = "rb") -> BinaryIO:
        """The bytes as a file, of which 4 MiB are read ahead."""
        return io.BufferedReader(_Handle(self), _AHEAD_BYTES)

    def read(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """The bytes of these ranges, at least one, each from a first one to before a last.

        Raises:
            VectorFileError: the file is shorter than it was.
            StorageError: the server refuses, or cannot be reached.
        """
        starts, ends = (list(bounds) for bounds in zip(*ranges, strict=True))

        def ask() -> Any:
            if len(ranges) == 1:
                return [self.system.cat_file(self.path, starts[0], ends[0])]
            return self.system.cat_ranges([self.path] * len(ranges), starts, ends, on_error="raise")

        found: list[bytes] = _tried(self.address, ask)
        lengths = [(len(data), end - start) for data, (start, end) in zip(found, ranges, strict=True)]
        if any(length < wanted for length, wanted in lengths):
            raise VectorFileError(f"{self.address} became shorter while it was read; run again")
        if any(length > wanted for length, wanted in lengths):
            raise _no_ranges(self.address)
        return found


File = Path | RemoteFile


class _Handle(io.RawIOBase):
    """The bytes of a file at an address, to be read from any place."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._file.size, self._at + len(buffer))
        if end <= self._at:
            return 0
        (data,) = self._file.read([(self._at, end)])
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def remote_file(address: str) -> RemoteFile:
    """The file at an address, of which ranges can be read.

    Raises:
        InputNotFoundError: there is none.
        UsageError: the address has no protocol that is known, or it is a folder.
        VectorFileError: it is empty.
        StorageError: the server cannot be reached, refuses, tells no size, or gives no ranges.
        DependencyError: fsspec, or what it needs for the protocol, is not installed.
    """
    fsspec, name = import_fsspec(), shown(address)
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    except ImportError as error:
        raise DependencyError(f"{name}: {error}") from error
    except Exception as error:
        _refuse(name, error)
    facts = _tried(name, lambda: system.info(path))
    if facts.get("type") == "directory":
        raise UsageError(f"{name} is a folder; name a file in it")
    size = facts.get("size")
    if size is None:
        raise StorageError(f"{name}: the server does not tell the size; fetch the file first, and name it here")
    if size == 0:
        raise VectorFileError(f"{name} is empty; make it again")
    file = RemoteFile(name, path, system, int(size), " ".join(str(facts[key]) for key in _MARKS if facts.get(key)))
    _tried(name, lambda: _check_ranges(file))
    return file


def _check_ranges(file: RemoteFile) -> None:
    """Ask for the last byte, in a way that does not wait for the whole file where all of it is sent."""
    try:
        with file.system.open(file.path, "rb", cache_type="none", size=file.size) as handle:
            handle.seek(file.size - 1)
            handle.read(1)
    except ValueError as error:
        raise _no_ranges(file.address) from error


def _no_ranges(address: str) -> StorageError:
    return StorageError(f"{address}: the server does not give ranges of it; fetch the file first, and name it here")


def _tried(address: str, ask: Callable[[], Any]) -> Any:
    """What the request gives, made again a few times where that may help."""
    for pause in (*_PAUSES, None):
        try:
            return ask()
        except QincoError:
            raise
        except Exception as error:  # every file system has errors of its own
            if pause is None or not _passing(error):
                _refuse(address, error)
            time.sleep(pause)
    raise AssertionError


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _cause(error: BaseException) -> BaseException:
    """The error itself: fsspec calls every failure to learn of a file one that is not found."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _passing(error: BaseException) -> bool:
    cause = _cause(error)
    return not isinstance(cause, _LASTING) and _status(cause) not in _REFUSED


def _refuse(address: str, error: BaseException) -> NoReturn:
    cause = _cause(error)
    status = _status(cause)
    if isinstance(cause, FileNotFoundError) or status in _NOT_FOUND:
        raise InputNotFoundError(f"{address} does not exist; check the address") from error
    if status == _NO_SUCH_RANGE:
        raise VectorFileError(f"{address} became shorter while it was read; run again") from error
    # some texts have the whole address, which is not for everyone to see
    said = f"{status} {getattr(cause, 'message', '')}" if status else (str(cause).splitlines() or [""])[0]
    said = said.strip() or type(cause).__name__
    raise StorageError(f"{address} cannot be read ({said}); check address and access, and run again") from error


class RangedRows:
    """`Rows` of a file at an address."""

    def __init__(self, file: RemoteFile, layout: Layout, name: str) -> None:
        if layout.fortran:
            raise VectorFileError(f"{name} is an npy array in Fortran order: its rows lie apart; fetch the file first")
        self.layout = layout
        self._file = file
        self._name = name
        self._most = max(1, _REQUEST_BYTES // layout.row_bytes)
        self._lock = threading.Lock()
        # the last block that was read, its first row, and the one that is to come after it
        self._block, self._first = np.empty(0, layout.record), 0
        self._coming: Future[Array] | None = None
        self._reader = ThreadPoolExecutor(1, "qinco-remote")

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array.

        Raises:
            VectorFileError: a row header differs from D, or the file has shrunk since it was opened.
            StorageError: the server refuses, or cannot be reached.
        """
        out = np.empty(stop - start, self.layout.record)
        with self._lock:
            at = start
            while at < stop:
                self._turn_to(at, stop)
                piece = self._block[at - self._first : stop - self._first]
                out[at - start :][: len(piece)] = piece
                at += len(piece)
        return self.layout.decode(out, range(start, stop), self._name)

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array.

        Raises:
            VectorFileError, StorageError: as in `fetch`.
        """
        order = np.unique(rows)
        out = np.empty(len(order), self.layout.record)
        spans = _spans(order, max(1, _GAP_BYTES // self.layout.row_bytes), self._most)
        filled = 0
        for together in _groups(spans, self._most):
            for (start, stop), data in zip(together, self._bytes(together), strict=True):
                inside = order[filled : np.searchsorted(order, stop)] - start
                out[filled : filled + len(inside)] = np.frombuffer(data, self.layout.record)[inside]
                filled += len(inside)
        return self.layout.decode(out[np.searchsorted(order, rows)], rows, self._name)

    def place(self, row: int) -> tuple[str, int]:
        """The file's name, and the row's number as it is."""
        return self._name, row

    def _turn_to(self, row: int, stop: int) -> None:
        """Make the kept block one with that row: of the rows before `stop`, or a large one for who reads on."""
        end = self._first + len(self._block)
        if self._first <= row < end:
            return
        coming, self._coming = self._coming, None
        if row != end or not end:
            self._block = self._records(row, min(stop, row + self._most))
        else:
            self._block = coming.result() if coming else self._records(row, self._end(row))
            if (after := row + len(self._block)) < self._count:
                self._coming = self._reader.submit(self._records, after, self._end(after))
        self._first = row

    @property
    def _count(self) -> int:
        return self.layout.count or 0

    def _end(self, row: int) -> int:
        return min(self._count, row + self._most)

    def _records(self, start: int, stop: int) -> Array:
        return np.frombuffer(self._bytes([(start, stop)])[0], self.layout.record)

    def _bytes(self, spans: list[tuple[int, int]]) -> list[bytes]:
        size, offset = self.layout.row_bytes, self.layout.offset
        return self._file.read([(offset + start * size, offset + stop * size) for start, stop in spans])


def _spans(order: Array, gap: int, most: int) -> list[tuple[int, int]]:
    """Ranges of rows, each at most `most`, with all the rows of `order` and no gap longer than `gap` between two."""
    spans: list[tuple[int, int]] = []
    for run in np.split(order, np.flatnonzero(np.diff(order) > gap) + 1):
        while len(run):
            inside = int(np.searchsorted(run, run[0] + most))
            spans.append((int(run[0]), int(run[inside - 1]) + 1))
            run = run[inside:]
    return spans


def _groups(spans: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """The ranges, as many together as have no more rows than `most`, so that memory is bounded."""
    group: list[tuple[int, int]] = []
    rows = 0
    for start, stop in spans:
        if group and rows + stop - start > most:
            yield group
            group, rows = [], 0
        group.append((start, stop))
        rows += stop - start
    yield group
