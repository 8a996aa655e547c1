"""The formats that can be read and written, and how a file's format is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco_core.errors import UsageError
from qinco_core.vectors import bin, npy, vecs
from qinco_core.vectors.base import DType, Layout


@dataclass(frozen=True)
class Format:
    """A format: its name and extensions, the one dtype it holds (None: any), and its headers.

    Without `read_header` it cannot be streamed, without `write_header` not be written.
    """

    name: str
    extensions: tuple[str, ...]
    about: str
    dtype: DType | None = None
    read_header: Callable[[BinaryIO, str], Layout] | None = None
    write_header: Callable[[Layout], bytes] | None = None
    prefixed: bool = False

    @property
    def readable(self) -> bool:
        """Whether files of it can be read: all can."""
        return True

    @property
    def writable(self) -> bool:
        """Whether files of it can be written."""
        return self.write_header is not None

    @property
    def streamable(self) -> bool:
        """Whether it can come from a pipe."""
        return self.read_header is not None


def _vecs(name: str, dtype: str) -> Format:
    holds = np.dtype(dtype).newbyteorder("<")
    read = partial(vecs.read_header, format=name, dtype=holds)
    return Format(name, (f".{name}",), f"{dtype}, D before each row", holds, read, vecs.write_header, True)


def _bin(name: str, dtype: str) -> Format:
    holds = np.dtype(dtype).newbyteorder("<")
    read = partial(bin.read_header, format=name, dtype=holds)
    return Format(name, (f".{name}",), f"{dtype}, N and D, then rows", holds, read, bin.write_header)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _vecs("fvecs", "float32"),
        _vecs("bvecs", "uint8"),
        _vecs("ivecs", "int32"),
        Format("npy", (".npy",), "a numpy array (N, D)", None, npy.read_header, npy.write_header),
        _bin("fbin", "float32"),
        _bin("u8bin", "uint8"),
        _bin("i8bin", "int8"),
        _bin("ibin", "int32"),
        Format("hdf5", (".hdf5", ".h5"), "a dataset of an HDF5 file: file.hdf5::train"),
    )
}

_BY_EXTENSION = {extension: f.name for f in FORMATS.values() for extension in f.extensions}


def detect_format(path: str | Path, format: str | None = None) -> str:
    """The name of the format: `format` if given, else what the path's extension tells.

    Raises:
        UsageError: neither is known; the message lists the formats.
    """
    known = ", ".join(FORMATS)
    if format is not None:
        if format not in FORMATS:
            raise UsageError(f"no format {format!r}; there are {known}")
        return format
    extension = Path(path).suffix.lower()
    if extension not in _BY_EXTENSION:
        said = f"the extension {extension!r} is of no known format" if extension else "there is no extension"
        raise UsageError(f"{path}: {said}; name the format with --format: {known}")
    return _BY_EXTENSION[extension]
