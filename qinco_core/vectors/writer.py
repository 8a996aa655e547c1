"""Files of vectors, written in blocks; they appear whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qinco_core.errors import DimensionError, UsageError, VectorFileError
from qinco_core.files import atomic_output, storage_errors
from qinco_core.vectors.base import DTYPES, MAX_D, Array, DType, Layout, check_dtype, check_finite
from qinco_core.vectors.formats import FORMATS, Format, detect_format

_BLOCK_ROWS = 65_536


class VectorWriter:
    """Takes blocks of vectors in order; `written` counts them. Made by `open_writer`."""

    def __init__(self, handle: BinaryIO, name: str, format: Format, layout: Layout) -> None:
        self.name = name
        self.written = 0
        self._handle = handle
        self._format = format
        self._layout = layout
        self._write_header(layout)

    def append(self, block: Array) -> None:
        """Write a [n, D] block after the ones before, converted to the file's dtype.

        uint8 and int8 files round and clip; int32 files round and refuse what does not fit.

        Raises:
            DimensionError: the block is not [n, D].
            VectorFileError: NaN or infinity, integers that do not fit, or more rows than were announced.
        """
        block = np.asarray(block)
        D, count = self._layout.D, self._layout.count
        if block.ndim != 2 or block.shape[1] != D:
            raise DimensionError(f"{self.name}: a block of shape {block.shape} was given; rows have {D} dimensions")
        if count is not None and self.written + len(block) > count:
            raise VectorFileError(f"{self.name}: {count} vectors were announced, more were given")
        rows = range(self.written, self.written + len(block))
        self._write(self._layout.encode(_convert(block, self._layout.native, rows, self.name)))
        self.written += len(block)

    def finish(self) -> None:
        """Check the number of vectors and put it into the header; `open_writer` calls this.

        Raises:
            VectorFileError: none were written, or another number than was announced.
        """
        count = self._layout.count
        if self.written == 0 or count not in (None, self.written):
            announced = "" if count is None else f" of {count} announced"
            raise VectorFileError(f"{self.name}: {self.written}{announced} vectors were written; nothing is kept")
        if count is None and not self._format.prefixed:
            self._handle.seek(0)
            self._write_header(dataclasses.replace(self._layout, count=self.written))
        self._handle.flush()

    def _write_header(self, layout: Layout) -> None:
        if self._format.write_header is not None:
            self._write(np.frombuffer(self._format.write_header(layout), np.uint8))

    def _write(self, data: Array) -> None:
        left = data.reshape(-1).view(np.uint8).data
        while left:  # an unbuffered stdout may take less than it is given
            left = left[self._handle.write(left) :]


@contextlib.contextmanager
def open_writer(
    target: str | Path | BinaryIO,
    *,
    D: int,
    dtype: npt.DTypeLike,
    format: str | None = None,
    count: int | None = None,
    force: bool = False,
) -> Iterator[VectorWriter]:
    """Write vectors of dimension D to a path or an open binary stream; a context manager.

    A path gets its file when the block ends well, and keeps what it had when it does not. `dtype` is
    the type of an npy file; the other formats have their own, see `VectorWriter.append`. A stream needs
    a `format`, and a `count` where the header holds one.

    Raises:
        UsageError: an unknown or unwritable format, or D, dtype or count that cannot be.
        OutputExistsError: the path exists and `force` is false.
        StorageError: the disk is full or read-only.
        VectorFileError: at the end, when no vectors were written or another number than `count`.
    """
    stream = not isinstance(target, (str, Path))
    name = "<stdout>" if stream else str(target)
    chosen = _writable(name, format, stream=stream)
    layout = _layout(chosen, D, np.dtype(dtype), count)
    if stream and count is None and not chosen.prefixed:
        raise UsageError(f"{chosen.name} begins with the number of vectors, unknown here; write fvecs to a pipe")
    with contextlib.ExitStack() as stack:
        if isinstance(target, (str, Path)):
            temporary = stack.enter_context(atomic_output(target, force=force))
            handle: BinaryIO = stack.enter_context(temporary.open("wb"))
        else:
            stack.enter_context(storage_errors(name))
            handle = target
        writer = VectorWriter(handle, name, chosen, layout)
        yield writer
        writer.finish()


def write_vectors(
    target: str | Path | BinaryIO, array: Array, *, format: str | None = None, force: bool = False
) -> None:
    """Write a whole [N, D] array; the same as `open_writer` and one `append`.

    Raises:
        DimensionError: the array is not [N, D].
        QincoError: as `open_writer` and `VectorWriter.append`.
    """
    array = np.asarray(array)
    if array.ndim != 2:
        raise DimensionError(f"an array of shape {array.shape} was given; vectors are [N, D]")
    N, D = array.shape
    with open_writer(target, D=D, dtype=array.dtype, format=format, count=N, force=force) as writer:
        for at in range(0, N, _BLOCK_ROWS):
            writer.append(array[at : at + _BLOCK_ROWS])


def _writable(name: str, format: str | None, *, stream: bool) -> Format:
    usable = ", ".join(f.name for f in FORMATS.values() if f.writable)
    if stream and format is None:
        raise UsageError(f"a pipe has no extension; name the format with --format: {usable}")
    chosen = FORMATS[detect_format(name, format)]
    if not chosen.writable:
        raise UsageError(f"{name}: {chosen.name} is only read, not written; write one of {usable}")
    return chosen


def _layout(format: Format, D: int, dtype: DType, count: int | None) -> Layout:
    if not 1 <= D <= MAX_D:
        raise UsageError(f"D = {D}; vectors have 1 to {MAX_D} dimensions")
    if count is not None and count < 1:
        raise UsageError(f"count = {count}; write at least 1 vector")
    if format.dtype is None and dtype.newbyteorder("=") not in DTYPES:
        raise UsageError(f"{format.name} files of {dtype} are not written; use one of {', '.join(map(str, DTYPES))}")
    return Layout((format.dtype or dtype).newbyteorder("<"), D, count, prefixed=format.prefixed)


def _convert(block: Array, dtype: DType, rows: range, name: str) -> Array:
    """The block as `dtype`: integers are rounded, bytes clipped too, and what cannot be is refused."""
    check_dtype(name, block.dtype)
    check_finite(block, rows, name)
    if block.dtype == dtype:
        return block
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            converted = block.astype(dtype)
        check_finite(converted, rows, name)
        return converted
    block = np.rint(block) if block.dtype.kind == "f" else block.astype(np.int64)
    limits = np.iinfo(dtype)
    if dtype.itemsize == 1:
        block = np.clip(block, limits.min, limits.max)
    # max + 1 is a power of two and exact in every float type, max is not
    elif block.size and not (block.min() >= limits.min and block.max() < limits.max + 1):
        raise VectorFileError(f"{name}: values from {block.min()} to {block.max()} do not fit {dtype}; use npy")
    return block.astype(dtype)
