"""HDF5: a 2-dimensional dataset of a file, named as `file.hdf5::train` (ann-benchmarks)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from qinco_core.errors import QincoError, UsageError, VectorFileError
from qinco_core.hdf5 import HDF5Writer, create_hdf5
from qinco_core.vectors.base import Append, Array, Layout, Outline, Rows, check_dtype, check_shape
from qinco_core.vectors.mapped import MappedRows

VECTORS = "train"
# what datasets of one and of two dimensions are, alone and together
_KINDS = {
    1: ("ids", "datasets of integers", "1-dimensional and of integers"),
    2: ("vectors", "tables", "2-dimensional"),
}


def open_rows(name: str, files: Sequence[Path], key: str | None) -> tuple[Rows, str | None]:
    """The rows of dataset `key`, or of the only 2-dimensional one, and the dataset's name.

    A contiguous dataset is memory-mapped; a chunked or compressed one is read by whole chunks.

    Raises:
        VectorFileError: no HDF5 file, or the dataset is no table of vectors.
        UsageError: there is no such dataset, or no `key` and not exactly one candidate.
    """
    path = files[0]
    with _damage(name):
        file = h5py.File(path, "r")
        dataset = _choose(file, path, key, dimensions=2)
        label = f"{path}::{dataset.name.lstrip('/')}"
        layout = _layout(dataset, label)
        rows = _contiguous(path, dataset, layout, label) or _ChunkedRows(file, dataset, layout, label)
        return rows, str(dataset.name)


def read_ids(name: str, files: Sequence[Path], key: str | None) -> Array:
    """The ids in dataset `key`, or in the only 1-dimensional one of integers.

    Raises:
        VectorFileError: no HDF5 file.
        UsageError: no such dataset, several to choose from, or one that holds no integers.
    """
    with _damage(name), h5py.File(files[0], "r") as file:
        dataset = _choose(file, files[0], key, dimensions=1)
        if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
            raise UsageError(
                f"{name}::{dataset.name.lstrip('/')} holds {dataset.dtype} of shape {dataset.shape}; "
                "ids are integers in one dimension"
            )
        return np.asarray(dataset[()])


def tables(path: Path) -> list[str]:
    """The names of the 2-dimensional datasets of a file.

    Raises:
        VectorFileError: no HDF5 file.
    """
    with _damage(str(path)), h5py.File(path, "r") as file:
        return [dataset.name.lstrip("/") for dataset in _datasets(file, 2)]


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn what h5py raises on a damaged or foreign file, nearly anything, into a `VectorFileError`."""
    try:
        yield
    except QincoError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise VectorFileError(
            f"{name} cannot be read as HDF5 ({error}); it is damaged, in use, or of another format: "
            "name it with --format"
        ) from error


class _ChunkedRows:
    """`Rows` of a dataset that only the HDF5 library can read."""

    def __init__(self, file: Any, dataset: Any, layout: Layout, name: str) -> None:
        self.layout = layout
        self._file = file  # the dataset is valid as long as the file is open
        self._dataset = dataset
        self._name = name
        self._chunk = dataset.chunks[0] if dataset.chunks else 1024

    def fetch(self, start: int, stop: int) -> Array:
        with _damage(f"{self._name}: rows {start}..{stop}"):
            return np.asarray(self._dataset[start:stop], dtype=self.layout.native)

    def place(self, row: int) -> tuple[str, int]:
        return self._name, row

    def gather(self, rows: Array) -> Array:
        # HDF5 unpacks whole chunks anyway, and its own fancy indexing is slow
        order = np.argsort(rows, kind="stable")
        chunk_of = rows[order] // self._chunk
        cuts = np.flatnonzero(np.diff(chunk_of)) + 1
        out = np.empty((len(rows), self.layout.D), self.layout.native)
        for places in np.split(order, cuts):
            start, stop = int(rows[places[0]]), int(rows[places[-1]]) + 1
            out[places] = self.fetch(start, stop)[rows[places] - start]
        return out


def _datasets(file: Any, dimensions: int) -> list[Any]:
    found: list[Any] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == dimensions and (dimensions > 1 or item.dtype.kind in "iu"):
            found.append(item)

    file.visititems(visit)
    return found


def _choose(file: Any, path: Path, key: str | None, *, dimensions: int) -> Any:
    what, several, shape = _KINDS[dimensions]
    if key is not None:
        dataset = _find(file, key)
        if isinstance(dataset, h5py.Dataset):
            return dataset
    fitting = _datasets(file, dimensions)
    if key is None and len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{path}::{t.name.lstrip('/')} {t.shape} {t.dtype}" for t in fitting)
    if not fitting:
        raise VectorFileError(f"{path} is an HDF5 file without {what}: no dataset in it is {shape}")
    if key is None:
        raise UsageError(f"{path} holds several {several}; name one: {listed}")
    raise UsageError(f"{path} has no dataset {key!r}; there are {listed}")


def _find(file: Any, key: str) -> Any:
    try:
        return file.get(key)
    except (KeyError, OSError, ValueError):  # broken links, empty names
        return None


def _layout(dataset: Any, name: str) -> Layout:
    if dataset.ndim != 2:
        raise VectorFileError(f"{name} has shape {dataset.shape}; vectors are a 2-dimensional dataset (N, D)")
    check_dtype(name, dataset.dtype)
    count, D = dataset.shape
    check_shape(name, D, count)
    return Layout(dataset.dtype, D, count)


def _contiguous(path: Path, dataset: Any, layout: Layout, name: str) -> MappedRows | None:
    offset = dataset.id.get_offset()
    if offset is None or layout.count is None:
        return None
    placed = Layout(layout.dtype, layout.D, layout.count, offset=offset)
    with path.open("rb") as handle:
        return MappedRows(handle, placed, name)


@contextlib.contextmanager
def write_rows(handle: BinaryIO, outline: Outline) -> Iterator[Append]:
    """Write a file with one contiguous dataset.

    Raises:
        UsageError: the key cannot name a dataset.
    """
    key = outline.key or VECTORS
    if not key.strip("/.") or "//" in key or "\0" in key:
        raise UsageError(f"{outline.name}: {key!r} cannot name a dataset; use a name like {VECTORS}")
    with create_hdf5(handle, HDF5Writer) as out:
        yield append_to(out, key, outline)


def append_to(out: HDF5Writer, key: str, outline: Outline) -> Append:
    """Lay out a dataset of the outline's shape, and give what writes its rows."""
    dataset, row = out.dataset(key, (outline.count or 0, outline.D), outline.dtype), 0

    def append(block: Array, ids: Array | None) -> None:
        nonlocal row
        out.write(dataset, outline.layout.encode(block), row)
        row += len(block)

    return append
