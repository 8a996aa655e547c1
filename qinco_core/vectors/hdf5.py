"""HDF5: one 2-dimensional dataset of a file, named as `file.hdf5::train` (ann-benchmarks)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qinco_core.errors import QincoError, UsageError, VectorFileError
from qinco_core.vectors.base import Array, Layout, Rows, check_dtype, check_shape
from qinco_core.vectors.mapped import MappedRows


def open_rows(path: Path, key: str | None) -> tuple[Rows, str]:
    """The rows of dataset `key`, or of the only 2-dimensional one, and the dataset's name.

    A contiguous dataset is memory-mapped; a chunked or compressed one is read by whole chunks.

    Raises:
        VectorFileError: no HDF5 file, or the dataset is no table of vectors.
        UsageError: there is no such dataset, or no `key` and not exactly one candidate.
    """
    with _damage(str(path)):
        file = h5py.File(path, "r")
        dataset = _choose(file, path, key)
        name = f"{path}::{dataset.name.lstrip('/')}"
        layout = _layout(dataset, name)
        rows = _contiguous(path, dataset, layout, name) or _ChunkedRows(file, dataset, layout, name)
        return rows, str(dataset.name)


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


def _choose(file: Any, path: Path, key: str | None) -> Any:
    tables: list[Any] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 2:
            tables.append(item)

    if key is not None:
        found = _find(file, key)
        if isinstance(found, h5py.Dataset):
            return found
    file.visititems(visit)
    if key is None and len(tables) == 1:
        return tables[0]
    listed = ", ".join(f"{path}::{t.name.lstrip('/')} {t.shape} {t.dtype}" for t in tables)
    if not tables:
        raise VectorFileError(f"{path} is an HDF5 file without vectors: no dataset in it is 2-dimensional")
    if key is None:
        raise UsageError(f"{path} holds several tables; name one: {listed}")
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
        return MappedRows(handle, placed, layout.count, name)
