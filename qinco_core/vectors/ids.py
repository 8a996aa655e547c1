"""Ids of vectors, from a file of their own or from beside the vectors: `ids.npy`, `file.parquet::id`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qinco_core.errors import UsageError, VectorFileError
from qinco_core.files import existing_file, write_all
from qinco_core.vectors.base import Array
from qinco_core.vectors.formats import FORMATS, detect_format, split_key
from qinco_core.vectors.reader import locate
from qinco_core.vectors.remote import is_address, shown

Ids = npt.NDArray[np.int64]
_READERS = {name: format.read_ids for name, format in FORMATS.items() if format.read_ids}


def read_ids(source: str | Path, format: str | None = None) -> Ids:
    """The ids of a file, int64 [N], each 0 or more.

    `source` is an npy file, mapped into memory where it holds int64, or a column, array or dataset of a
    Parquet, Arrow, npz or HDF5 file, 8 bytes of memory an id: `file.parquet::id`. Without a name it is
    the column called id, or whatever alone can be ids. `format` is that of a file whose extension does not tell.

    Raises:
        InputNotFoundError: nothing is there.
        UsageError: no integers in one dimension, no such column, several to choose from, ids that cannot be, or a
            format that has none.
        VectorFileError: damaged, or an id is null.
    """
    if is_address(source):
        raise UsageError(f"{shown(str(source))}: ids are read from files only; fetch the file first")
    path, _ = split_key(source)
    is_npy = _is_npy(source) if format is None else detect_format(source, format) == "npy"
    ids = _from_npy(path) if is_npy else _from_column(source, format)
    name = str(source)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UsageError(f"{name} holds {ids.dtype} of shape {ids.shape}; ids are integers in one dimension")
    if ids.dtype.kind == "u" and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise UsageError(f"{name} holds the id {ids.max()}; ids are signed 64-bit integers")
    if ids.size and int(ids.min()) < 0:
        raise UsageError(f"{name} holds the id {ids.min()}; ids are 0 or more, for -1 means a missing result")
    return ids.astype(np.int64, copy=False)


def write_ids(handle: BinaryIO, ids: Ids) -> None:
    """Write ids, int64 [N], as an npy file to an open handle; unlike numpy.save, a full disk is told as such."""
    np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(ids))
    if ids.size:
        write_all(handle, ids)


def _is_npy(source: str | Path) -> bool:
    """Whether nothing says that it is another format: any name may be an npy file's."""
    path, key = split_key(source)
    readable = {extension for name in _READERS for extension in FORMATS[name].extensions}
    return key is None and not path.is_dir() and path.suffix.lower() not in readable


def _from_npy(path: Path) -> Array:
    try:
        return np.lib.format.open_memmap(existing_file(path), mode="r")
    except (ValueError, OverflowError) as error:
        raise VectorFileError(f"{path} is no .npy file of ids ({error}); write it with numpy.save") from error


def _from_column(source: str | Path, format: str | None) -> Array:
    found = locate(source, format)
    if found.format.name not in _READERS:
        able = ", ".join(["npy", *_READERS])
        raise UsageError(f"{source}: {found.format.name} files hold no ids; name a file of {able}")
    return _READERS[found.format.name](found.name, found.files, found.key)
