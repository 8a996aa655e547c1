"""HDF5 files, written without HDF5 writing to the disk.

On a full disk HDF5 cannot close its file, complains on stderr and may crash the process. So it lays
out the file in memory, without the data (`_Skeleton`), and ordinary writes, whose errors are
exceptions, put layout and data on the disk.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from qinco_core.files import write_all

# the metadata of this generation carries checksums and has no flag that a crash leaves set
_LIBVER = ("v108", "v108")


class HDF5Writer:
    """Lays out an HDF5 file and writes its data; made by `create_hdf5`.

    Attributes:
        layout: the file in memory, for groups and attributes.
    """

    def __init__(self, handle: BinaryIO, layout: h5py.File) -> None:
        self.layout = layout
        self._handle = handle

    def dataset(self, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
        """Reserve contiguous space for a dataset."""
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)  # the same content gives the same file
        folders = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        folders.set_create_intermediate_group(True)
        stored = h5py.h5t.py_create(np.dtype(dtype), logical=True)
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        # h5py's create_dataset ignores these properties for scalars
        made = h5py.h5d.create(self.layout.id, name.encode(), stored, space, properties, folders)
        return h5py.Dataset(made)

    def write(self, dataset: h5py.Dataset, data: NDArray[Any], row: int = 0) -> None:
        """Write `data`, C order and of the dataset's dtype, from its row `row` on."""
        if data.size:
            row_bytes = data.nbytes // len(data) if data.ndim else 0
            self._handle.seek(dataset.id.get_offset() + row * row_bytes)
            write_all(self._handle, data.reshape(-1).view(np.uint8))


Writer = TypeVar("Writer", bound=HDF5Writer)


@contextlib.contextmanager
def create_hdf5(handle: BinaryIO, writer: type[Writer]) -> Iterator[Writer]:
    """Write an HDF5 file to an open, seekable file; it is complete when the block ends well."""
    skeleton = _Skeleton()
    with h5py.File(skeleton, "w", libver=_LIBVER) as layout:
        yield writer(handle, layout)
    skeleton.write_to(handle)


class _Skeleton(io.RawIOBase):
    """A file in memory that keeps only what is written to it: a few kilobytes, however long the file."""

    def __init__(self) -> None:
        self._writes: list[tuple[int, bytes]] = []
        self._position = self._size = 0

    def write_to(self, handle: BinaryIO) -> None:
        """Write all blocks at their places in another file, of the same length."""
        for offset, data in self._writes:
            handle.seek(offset)
            write_all(handle, data)
        handle.truncate(self._size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._writes.append((self._position, raw))
        self._position += len(raw)
        self._size = max(self._size, self._position)
        return len(raw)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        begin, count = self._position, max(0, min(len(view), self._size - self._position))
        view[:count] = bytes(count)
        for offset, data in self._writes:
            low, high = max(begin, offset), min(begin + count, offset + len(data))
            if low < high:
                view[low - begin : high - begin] = data[low - offset : high - offset]
        self._position += count
        return count

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        return self._size
