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
from qinco_core.vectors.base import DTYPES, MAX_D, Append, Array, DType, Outline, check_dtype, check_finite
from qinco_core.vectors.formats import FORMATS, Format, detect_format, split_key
from qinco_core.vectors.pipe import Outlet
from qinco_core.vectors.remote import is_address, shown

_BLOCK_ROWS = 65_536


class VectorWriter:
    """Takes blocks of vectors in order; made by `open_writer`.

    Attributes:
        name: of the file, for messages.
        dtype: of the vectors in the file.
        written: vectors so far.
        changed: numbers so far that are not in the file as they were given, for it cannot hold them.
    """

    def __init__(self, outline: Outline, append: Append) -> None:
        self.name = outline.name
        self.dtype = outline.dtype.newbyteorder("=")
        self.written = 0
        self.changed = 0
        self._outline = outline
        self._append = append

    def append(self, block: Array, ids: Array | None = None) -> None:
        """Write a [n, D] block after the ones before, converted to the file's dtype.

        uint8 and int8 files round and clip; other integers round and refuse what does not fit. `ids` are
        the integers [n] of a file that was opened for them.

        Raises:
            DimensionError: the block is not [n, D], or the ids are not [n].
            VectorFileError: NaN or infinity, integers that do not fit, or more rows than were announced.
            UsageError: ids that the file has no place for, or none where it has.
        """
        block = np.asarray(block)
        D, count = self._outline.D, self._outline.count
        if block.ndim != 2 or block.shape[1] != D:
            raise DimensionError(f"{self.name}: a block of shape {block.shape} was given; rows have {D} dimensions")
        if count is not None and self.written + len(block) > count:
            raise VectorFileError(f"{self.name}: {count} vectors were announced, more were given")
        rows = range(self.written, self.written + len(block))
        converted = _convert(block, self.dtype, rows, self.name)
        if not _exact(block.dtype, self.dtype):
            with np.errstate(invalid="ignore"):
                self.changed += int(np.count_nonzero(converted.astype(block.dtype) != block))
        self._append(converted, self._ids(ids, len(block)))
        self.written += len(block)

    def check(self) -> None:
        """Check the number of vectors at the end; `open_writer` calls this.

        Raises:
            VectorFileError: none were written, or another number than was announced.
        """
        count = self._outline.count
        if self.written == 0 or count not in (None, self.written):
            announced = "" if count is None else f" of {count} announced"
            raise VectorFileError(f"{self.name}: {self.written}{announced} vectors were written; nothing is kept")

    def _ids(self, ids: Array | None, n: int) -> Array | None:
        if (ids is not None) != self._outline.with_ids:
            raise UsageError(f"{self.name} was opened {'for' if ids is None else 'without'} ids; give all or none")
        if ids is None:
            return None
        if ids.shape != (n,):
            raise DimensionError(f"{self.name}: ids of shape {ids.shape} for {n} vectors; give one id a vector")
        return np.ascontiguousarray(ids, np.int64)


@contextlib.contextmanager
def open_writer(
    target: str | Path | BinaryIO,
    *,
    D: int,
    dtype: npt.DTypeLike,
    format: str | None = None,
    count: int | None = None,
    with_ids: bool = False,
    force: bool = False,
) -> Iterator[VectorWriter]:
    """Write vectors of dimension D to a path or an open binary stream; a context manager.

    A path gets its file when the block ends well, and keeps what it had when it does not; after `::` it may
    name the dataset, array or column. `dtype` is the type of formats that hold several; the others have
    their own, see `VectorWriter.append`. A stream needs a `format`, and a `count` where that begins with it.

    Raises:
        UsageError: an unknown or unwritable format, or D, dtype or count that cannot be.
        OutputExistsError: the path exists and `force` is false.
        StorageError: the disk is full or read-only.
        VectorFileError: at the end, when no vectors were written or another number than `count`.
    """
    piped = not isinstance(target, (str, Path))
    if piped and format is None:
        raise UsageError(f"a pipe has no extension; name the format with --format: {', '.join(pipeable())}")
    name = "<stdout>" if piped else str(target)
    chosen = FORMATS[detect_format(name, format)]
    path, key = (Path(name), None) if piped else _split(name, chosen)
    outline = _outline(chosen, Outline(name, np.dtype(dtype), D, count, key, with_ids, piped))
    with contextlib.ExitStack() as stack:
        if isinstance(target, (str, Path)):
            temporary = stack.enter_context(atomic_output(path, force=force))
            handle: BinaryIO = stack.enter_context(temporary.open("wb"))
        else:
            stack.enter_context(storage_errors(name))
            handle = Outlet(target)
        writer = VectorWriter(outline, stack.enter_context(chosen.write(handle, outline)))
        yield writer
        writer.check()
    if not isinstance(target, (str, Path)):
        with storage_errors(name):
            target.flush()


def output_path(target: str | Path, format: str | None = None) -> Path:
    """The file that `open_writer` writes for a target: what may stand after `::` is no part of it.

    Raises:
        UsageError: an unknown format, or an address.
    """
    return _split(target, FORMATS[detect_format(target, format)])[0]


def _split(target: str | Path, format: Format) -> tuple[Path, str | None]:
    if is_address(target):
        raise UsageError(f"{shown(str(target))}: only files are written; name one, and upload it")
    return split_key(target) if format.key else (Path(target), None)


def pipeable() -> list[str]:
    """The names of the formats that can be written to a pipe."""
    return [f.name for f in FORMATS.values() if not f.seeks]


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


def _outline(format: Format, asked: Outline) -> Outline:
    """The outline of a file of that format, or the refusal of what it cannot hold."""
    D, count, dtype = asked.D, asked.count, asked.dtype
    if not 1 <= D <= MAX_D:
        raise UsageError(f"D = {D}; vectors have 1 to {MAX_D} dimensions")
    if count is not None and count < 1:
        raise UsageError(f"count = {count}; write at least 1 vector")
    if len(format.holds) > 1 and dtype.newbyteorder("=") not in DTYPES:
        raise UsageError(f"{format.name} files of {dtype} are not written; use one of {', '.join(map(str, DTYPES))}")
    if asked.with_ids and not format.with_ids:
        able = ", ".join(f.name for f in FORMATS.values() if f.with_ids)
        raise UsageError(f"{asked.name}: {format.name} has no place for ids; write {able}, or leave the ids out")
    if asked.piped and format.seeks:
        raise UsageError(f"{format.name} cannot be written to a pipe; use a file, or one of {', '.join(pipeable())}")
    if asked.piped and format.counted and count is None:
        raise UsageError(f"{format.name} begins with the number of vectors, unknown here; write fvecs to a pipe")
    return dataclasses.replace(asked, dtype=format.stored(dtype).newbyteorder("<"))


def _exact(given: DType, kept: DType) -> bool:
    """Whether every number of one type is one of the other; int64 in float64, which numpy calls safe, is not."""
    return np.can_cast(given, kept) and not (given.kind == "i" and given.itemsize == 8 and kept.kind == "f")


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
    # in float64, for the limits below are infinite in float16
    block = np.rint(block.astype(np.float64)) if block.dtype.kind == "f" else block.astype(np.int64)
    limits = np.iinfo(dtype)
    if dtype.itemsize == 1:
        block = np.clip(block, limits.min, limits.max)
    # max + 1 is a power of two and exact in every float type, max is not
    elif block.size and not (block.min() >= limits.min and block.max() < limits.max + 1):
        raise VectorFileError(f"{name}: values from {block.min()} to {block.max()} do not fit {dtype}; use npy")
    return block.astype(dtype)
