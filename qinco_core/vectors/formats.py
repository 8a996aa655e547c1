"""The formats that can be read and written, and how a file's format is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco_core.errors import UsageError
from qinco_core.vectors import arrow, bin, hdf5, npy, npz, parquet, records, vecs
from qinco_core.vectors.base import DTYPES, Array, DType, Feed, Rows, WriteRows
from qinco_core.vectors.remote import RemoteFile, address_name, is_address, split_address
from qinco_core.vectors.spill import with_count

OpenRows = Callable[[str, Sequence[Path], str | None], tuple[Rows, str | None]]
OpenRemote = Callable[[RemoteFile, str | None], tuple[Rows, str | None]]
ReadIds = Callable[[str, Sequence[Path], str | None], Array]


@dataclass(frozen=True)
class Format:
    """A format: its reader, its writer, and what files of it can hold.

    Attributes:
        name, extensions, about: what it is called and how it is told.
        open: the rows of a source, its files and a key, and the name that the key came to.
        write: writes a file of it to an open handle.
        holds: the dtypes it can hold.
        key: what `::` names in a file of it; empty where there is nothing to name.
        remote: the rows of a file at an address and a key, where ranges of its bytes are enough.
        feed: the rows that come through a pipe, where it can be read from one.
        read_ids: the ids in a file of it, where it can have some.
        folders: whether a folder of its files is one source.
        with_ids: whether ids can be written beside the vectors.
        counted: whether it has to begin with the number of vectors.
        seeks: whether its writer has to go back, so that it cannot be written to a pipe.
    """

    name: str
    extensions: tuple[str, ...]
    about: str
    open: OpenRows
    write: WriteRows
    holds: tuple[DType, ...] = DTYPES
    key: str = ""
    remote: OpenRemote | None = None
    feed: Callable[[BinaryIO, str], Feed] | None = None
    read_ids: ReadIds | None = None
    folders: bool = False
    with_ids: bool = False
    counted: bool = False
    seeks: bool = False

    @property
    def dtype(self) -> DType | None:
        """The one dtype that it can hold; None where there are several."""
        return self.holds[0] if len(self.holds) == 1 else None

    @property
    def streamable(self) -> bool:
        """Whether it can come from a pipe."""
        return self.feed is not None

    def stored(self, dtype: DType) -> DType:
        """The dtype that vectors of `dtype` have in a file of it."""
        return dtype if dtype.newbyteorder("=") in self.holds else self.holds[0]


def _records(
    name: str,
    about: str,
    read_header: records.ReadHeader,
    write_header: records.WriteHeader,
    holds: tuple[DType, ...],
    *,
    prefixed: bool = False,
) -> Format:
    return Format(
        name,
        (f".{name}",),
        about,
        partial(records.open_rows, read_header=read_header, format=name),
        partial(records.write_rows, write_header=write_header, prefixed=prefixed),
        holds,
        remote=partial(records.open_remote, read_header=read_header, format=name),
        feed=partial(records.RecordFeed, read_header=read_header),
        folders=True,
        counted=not prefixed,
    )


def _vecs(name: str, dtype: str) -> Format:
    read = partial(vecs.read_header, format=name, dtype=np.dtype(dtype).newbyteorder("<"))
    return _records(name, f"{dtype}, D before each row", read, vecs.write_header, (np.dtype(dtype),), prefixed=True)


def _bin(name: str, dtype: str) -> Format:
    read = partial(bin.read_header, format=name, dtype=np.dtype(dtype).newbyteorder("<"))
    return _records(name, f"{dtype}, N and D, then rows", read, bin.write_header, (np.dtype(dtype),))


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _vecs("fvecs", "float32"),
        _vecs("bvecs", "uint8"),
        _vecs("ivecs", "int32"),
        _records("npy", "a numpy array (N, D)", npy.read_header, npy.write_header, DTYPES),
        _bin("fbin", "float32"),
        _bin("u8bin", "uint8"),
        _bin("i8bin", "int8"),
        _bin("ibin", "int32"),
        Format(
            "hdf5",
            (".hdf5", ".h5"),
            "a dataset of an HDF5 file: file.hdf5::train",
            hdf5.open_rows,
            with_count(hdf5.write_rows),
            key="dataset",
            read_ids=hdf5.read_ids,
            counted=True,
            seeks=True,
        ),
        Format(
            "npz",
            (".npz",),
            "an array of an npz file: file.npz::vectors",
            npz.open_rows,
            with_count(npz.write_rows),
            key="array",
            read_ids=npz.read_ids,
            counted=True,
        ),
        Format(
            "parquet",
            (".parquet", ".pq"),
            "a column of lists: file.parquet::embedding, or a folder of such files",
            parquet.open_rows,
            parquet.write_rows,
            key="column",
            remote=parquet.open_remote,
            read_ids=parquet.read_ids,
            folders=True,
            with_ids=True,
        ),
        Format(
            "arrow",
            (".arrow", ".feather"),
            "the same in Arrow IPC (Feather) files and streams: file.arrow::embedding, or a folder",
            arrow.open_rows,
            arrow.write_rows,
            key="column",
            feed=arrow.ArrowFeed,
            read_ids=arrow.read_ids,
            folders=True,
            with_ids=True,
        ),
    )
}

_BY_EXTENSION = {extension: f.name for f in FORMATS.values() for extension in f.extensions}


def detect_format(path: str | Path, format: str | None = None) -> str:
    """The name of the format: `format` if given, else what the extension tells, a key after it or not.

    Raises:
        UsageError: neither is known; the message lists the formats.
    """
    known = ", ".join(FORMATS)
    if format is not None:
        if format not in FORMATS:
            raise UsageError(f"no format {format!r}; there are {known}")
        return format
    if is_address(path):
        path = address_name(split_address(str(path))[0])
    extension = Path(path).suffix.lower()
    if extension not in _BY_EXTENSION:
        before, _, _ = str(path).rpartition("::")
        if before and Path(before).suffix.lower() in _BY_EXTENSION:
            return _BY_EXTENSION[Path(before).suffix.lower()]
        said = f"the extension {extension!r} is of no known format" if extension else "there is no extension"
        raise UsageError(f"{path}: {said}; name the format with --format: {known}")
    return _BY_EXTENSION[extension]


def source_stem(source: str) -> str:
    """The name of a path or an address without its extension, and without a key: what is made of it is called so."""
    if is_address(source):
        return Path(address_name(split_address(source)[0])).stem
    return Path(source.partition("::")[0]).stem


def split_key(source: str | Path) -> tuple[Path, str | None]:
    """The path and what stands after `::`; none where the whole is a path or looks like one."""
    whole = Path(source)
    path, separator, key = str(source).rpartition("::")
    if not separator or whole.exists() or (_known(whole) and not (_known(Path(path)) or Path(path).is_dir())):
        return whole, None
    return Path(path), key


def _known(path: Path) -> bool:
    return path.suffix.lower() in _BY_EXTENSION
