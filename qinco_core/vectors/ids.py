"""Ids of vectors, from a file of their own or from beside the vectors: `ids.npy`, `file.parquet::id`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from qinco_core.errors import UsageError, VectorFileError
from qinco_core.files import existing_file
from qinco_core.vectors.base import Array
from qinco_core.vectors.formats import FORMATS, split_key
from qinco_core.vectors.reader import locate

Ids = npt.NDArray[np.int64]
_READERS = {name: format.read_ids for name, format in FORMATS.items() if format.read_ids}


def read_ids(source: str | Path) -> Ids:
    """The ids of a file, int64 [N], each 0 or more.

    `source` is an npy file, mapped into memory where it holds int64, or a column, array or dataset of a
    Parquet, Arrow, npz or HDF5 file, 8 bytes of memory an id: `file.parquet::id`. Without a name it is
    the column called id, or whatever alone can be ids.

    Raises:
        InputNotFoundError: nothing is there.
        UsageError: no integers in one dimension, no such column, several to choose from, or ids that cannot be.
        VectorFileError: damaged, or an id is null.
    """
    path, _ = split_key(source)
    ids = _from_npy(path) if _is_npy(source) else _from_column(source)
    name = str(source)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UsageError(f"{name} holds {ids.dtype} of shape {ids.shape}; ids are integers in one dimension")
    if ids.dtype.kind == "u" and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise UsageError(f"{name} holds the id {ids.max()}; ids are signed 64-bit integers")
    if ids.size and int(ids.min()) < 0:
        raise UsageError(f"{name} holds the id {ids.min()}; ids are 0 or more, for -1 means a missing result")
    return ids.astype(np.int64, copy=False)


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


def _from_column(source: str | Path) -> Array:
    found = locate(source)
    return _READERS[found.format.name](found.name, found.files, found.key)
