"""Files of vectors, read by batches and never whole."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from qinco_core.errors import StorageError, UsageError, VectorFileError
from qinco_core.files import existing_file
from qinco_core.vectors.base import Array, DType, Rows, broken, check_batch, check_range, first_broken, window
from qinco_core.vectors.formats import FORMATS, Format, detect_format, split_key
from qinco_core.vectors.parts import find_parts
from qinco_core.vectors.remote import RemoteFile, is_address, remote_file, shown, split_address


@dataclass(frozen=True)
class Place:
    """Where rows of a file are, for another process or machine to open them.

    Attributes:
        name, format: as of the file, its path from the root, or the whole address.
        identity: what tells the file from another one.
        start, stop: rows start..stop-1 are meant.
    """

    name: str
    format: str
    identity: str
    start: int
    stop: int

    def open(self) -> VectorFile:
        """The rows; the file that was opened last stays open.

        Raises:
            VectorFileError: it is another file here; or as of `open_vectors`.
        """
        return _whole(self.name, self.format, self.identity).section(self.start, self.stop)


@functools.lru_cache(maxsize=1)
def _whole(name: str, format: str, identity: str) -> VectorFile:
    file = open_vectors(name, format=format)
    if file.place.identity != identity:
        raise VectorFileError(
            f"{name} on {platform.node()} is not the file of the job: it was replaced, or this machine has another of "
            "that name, size or time; put it where all machines see it"
        )
    return file


class VectorFile:
    """A range of rows of a file of vectors; every row is checked when it is read.

    Attributes:
        name: the path, with the dataset's key, for messages.
        format: a key of `FORMATS`.
        dtype: of the rows, in native byte order.
        shape: (N, D) after skip and limit.
    """

    def __init__(
        self, rows: Rows, *, name: str, format: str, identity: str, start: int, stop: int, address: str | None = None
    ) -> None:
        self.name = name
        self._address = address
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

    @property
    def place(self) -> Place:
        """Where the rows are, for another process."""
        name = self._address or str(Path(self.name).absolute())
        return Place(name, self.format, self._identity, self._start, self._start + len(self))

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
        opened = self._open_rows()
        return _checked(opened, opened.fetch(start, stop), range(start, stop))

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
        opened = self._open_rows()
        return _checked(opened, opened.gather(rows), rows)

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
            address=self._address,
        )

    def _open_rows(self) -> Rows:
        if self._rows is None:
            raise UsageError(f"{self.name} is closed; read it inside its with-block")
        return self._rows


def _checked(opened: Rows, block: Array, rows: Sequence[int] | Array) -> Array:
    """The block, whose rows have those numbers, without NaN and infinity."""
    found = first_broken(block)
    if found is not None:
        raise broken(*opened.place(int(rows[found])))
    return block


def open_vectors(
    source: str | Path, *, format: str | None = None, skip: int = 0, limit: int | None = None
) -> VectorFile:
    """Open `limit` vectors of a file after the first `skip`; the format is told by extension or `format`.

    `source` may be `file.hdf5::dataset`, `file.npz::array`, `file.parquet::column`, a folder of files of one format,
    HDF5 and npz apart, which are taken in the order of their names, and an address that fsspec knows,
    `s3://bucket/base.fbin`, of a file of records or of Parquet: of it no more is fetched than what is read. Sizes are
    checked against headers; of the vectors nothing else is read yet. A limit beyond the end is clipped.

    Raises:
        InputNotFoundError: nothing is there.
        UsageError: unknown format, no such dataset, or a skip or limit that leaves nothing.
        VectorFileError: empty, truncated, malformed, or not of that format.
        StorageError: it may not be read, a server refuses or gives no ranges, or no room is left in $TMPDIR to
            unpack what is compressed.
        DependencyError: an address wants a package that is not installed.
    """
    found = locate(source, format)
    rows, key = found.open()
    name, identity = found.name, found.identity
    if key is not None:
        name, identity = f"{name}::{key.lstrip('/')}", f"{identity} {key}"
    start, stop = window(skip, limit, rows.layout.count or 0, name)
    place: dict[str, Any] = {"start": start, "stop": stop, "address": str(source) if found.remote else None}
    return VectorFile(rows, name=name, format=found.format.name, identity=identity, **place)


@dataclass(frozen=True)
class Found:
    """A source that is there: its name, format, files, the key after `::`, and what identifies the files.

    What lies at an address has no files, but is `remote`.
    """

    name: str
    format: Format
    files: list[Path]
    key: str | None
    identity: str
    remote: RemoteFile | None = None

    def open(self) -> tuple[Rows, str | None]:
        """The rows, and the name that the key came to."""
        if self.remote is None:
            return self.format.open(self.name, self.files, self.key)
        assert self.format.remote is not None
        return self.format.remote(self.remote, self.key)


def locate(source: str | Path, format: str | None = None) -> Found:
    """Find the files of a source and check that they can be read.

    Raises:
        InputNotFoundError: nothing is there.
        UsageError: unknown format, a key where there is nothing to name, or an address of a format that cannot be
            read by ranges.
        VectorFileError: a file is empty.
        StorageError: a file may not be read.
        DependencyError: an address wants a package that is not installed.
    """
    if is_address(source):
        return _locate_remote(str(source), format)
    path, key = split_key(source)
    if path.is_dir() and (format is None or FORMATS[detect_format(path, format)].folders):
        format, files = find_parts(
            path, {f.name: f.extensions for f in FORMATS.values() if f.folders and format in (None, f.name)}
        )
    else:
        format, files = detect_format(path, format), [path]
        existing_file(path)
    chosen = FORMATS[format]
    _check_key(chosen, key, str(source), str(path))
    facts = [_facts(file) for file in files]
    identity = f"{facts[0][0]} bytes at {facts[0][1]}"
    if path.is_dir():
        mark = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
        identity = f"{sum(size for size, _ in facts)} bytes in {len(files)} files {mark}"
    return Found(str(path), chosen, files, key, identity)


def _locate_remote(source: str, format: str | None) -> Found:
    address, key = split_address(source)
    chosen, name = FORMATS[detect_format(address, format)], shown(address)
    _check_key(chosen, key, source, name)
    if chosen.remote is None:
        ranged = ", ".join(f.name for f in FORMATS.values() if f.remote)
        raise UsageError(
            f"{name}: {chosen.name} cannot be read from an address, only {ranged} can: fetch the file first"
        )
    file = remote_file(address)
    return Found(name, chosen, [], key, f"{file.size} bytes at {file.mark or address}", file)


def _check_key(format: Format, key: str | None, source: str, path: str) -> None:
    if key is not None and not format.key:
        keyed = ", ".join(f.name for f in FORMATS.values() if f.key)
        raise UsageError(f"{source}: {format.name} has nothing to name with ::, only {keyed} have: write {path}")


def _facts(path: Path) -> tuple[int, int]:
    """The size and time of a file that can be read and holds something."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"{path} is not a regular file; pipe it in as - with --format instead")
    try:
        with path.open("rb") as handle:
            facts = os.fstat(handle.fileno())
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if facts.st_size == 0:
        raise VectorFileError(f"{path} is empty; make it again")
    return facts.st_size, facts.st_mtime_ns
