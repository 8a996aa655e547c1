"""npz: a zip archive of npy arrays, named as `file.npz::key`; never a pickle.

A stored array is read where it lies in the archive; a compressed one is unpacked into a temporary file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco_core.errors import QincoError, UsageError, VectorFileError
from qinco_core.files import write_all
from qinco_core.vectors import npy
from qinco_core.vectors.base import Append, Array, Layout, Outline, Rows, read_up_to
from qinco_core.vectors.mapped import MappedRows
from qinco_core.vectors.spill import Spill

VECTORS = "vectors"
_SUFFIX = ".npy"
_BLOCK_BYTES = 8 << 20
_LOCAL_HEADER = 30
# what zipfile raises on damaged or foreign archives
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError),
    *(RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError),
)


def open_rows(name: str, files: Sequence[Path], key: str | None) -> tuple[Rows, str | None]:
    """The rows of array `key`, or of the only 2-dimensional one, and the array's name.

    Raises:
        UsageError: no such array, or several to choose from.
        VectorFileError: damaged, no npz file, or the array is no table of vectors.
        StorageError: no room is left in $TMPDIR to unpack a compressed array.
    """
    with _damage(name), zipfile.ZipFile(files[0]) as archive:
        found, header = _choose(archive, name, key, _is_table, "vectors (arrays of two dimensions)")
        label = f"{name}::{found}"
        layout = header.layout(label)
        member = _member(archive, found, header, (layout.count or 0) * layout.row_bytes, label)
        if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
            return _stored(files[0], member, layout, label), found
        return _unpacked(archive, member, layout, label), found


def read_ids(name: str, files: Sequence[Path], key: str | None) -> Array:
    """The ids in array `key`, or in the only 1-dimensional one of integers.

    Raises:
        UsageError: no such array, several to choose from, or one that holds no integers.
        VectorFileError: damaged, or no npz file.
    """
    with _damage(name), zipfile.ZipFile(files[0]) as archive:
        found, header = _choose(archive, name, key, _is_ids, "ids (integers of one dimension)")
        if not _is_ids(header):
            descr = header.fields["descr"]
            raise UsageError(
                f"{name}::{found} holds {descr} of shape {header.shape}; ids are integers in one dimension"
            )
        size = header.shape[0] * np.dtype(header.fields["descr"]).itemsize
        with archive.open(_member(archive, found, header, size, f"{name}::{found}")) as handle:
            return np.asarray(np.lib.format.read_array(handle, allow_pickle=False))


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn what zipfile raises on a damaged or foreign file into a `VectorFileError`."""
    try:
        yield
    except QincoError:
        raise
    except DAMAGE as error:
        raise VectorFileError(
            f"{name} cannot be read as npz ({error}); it is damaged, or of another format: name it with --format"
        ) from error


def _is_table(header: npy.Header) -> bool:
    return len(header.shape) == 2


def _is_ids(header: npy.Header) -> bool:
    return len(header.shape) == 1 and str(header.fields["descr"])[1:2] in ("i", "u")


def _choose(
    archive: zipfile.ZipFile, name: str, key: str | None, wanted: Callable[[npy.Header], bool], what: str
) -> tuple[str, npy.Header]:
    """The array of that name, or the only one that is wanted, and its header."""
    headers = {}
    for member in archive.namelist():
        if member.endswith(_SUFFIX):
            with archive.open(member) as handle:
                array = member.removesuffix(_SUFFIX)
                headers[array] = npy.parse_header(handle, f"{name}::{array}")
    if key in headers:
        return key, headers[key]
    listed = {array: f"{name}::{array} {h.shape} {h.fields['descr']}" for array, h in headers.items()}
    if key is not None:
        raise UsageError(f"{name} has no array {key!r}; there are {', '.join(listed.values()) or 'none'}")
    fitting = [array for array, header in headers.items() if wanted(header)]
    if len(fitting) == 1:
        return fitting[0], headers[fitting[0]]
    if not fitting:
        raise VectorFileError(f"{name} has no {what}; there are {', '.join(listed.values()) or 'no arrays'}")
    raise UsageError(f"{name} has several {what}; name one: {', '.join(listed[array] for array in fitting)}")


def _member(archive: zipfile.ZipFile, array: str, header: npy.Header, size: int, label: str) -> zipfile.ZipInfo:
    """Where the array lies, whose header says that it takes `size` bytes."""
    member = archive.getinfo(array + _SUFFIX)
    if member.file_size != header.size + size:
        raise VectorFileError(f"{label}: its header does not fit its {member.file_size} bytes; save it again")
    return member


def _stored(path: Path, member: zipfile.ZipInfo, layout: Layout, label: str) -> MappedRows:
    """The rows where they lie: after the member's own header, whose length only itself tells."""
    with path.open("rb") as handle:
        handle.seek(member.header_offset)
        head = read_up_to(handle, _LOCAL_HEADER)
        names = sum(int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
        offset = member.header_offset + _LOCAL_HEADER + names + layout.offset
        end = offset + (layout.count or 0) * layout.row_bytes
        if head[:4] != b"PK\x03\x04" or end > path.stat().st_size:
            raise VectorFileError(f"{label} is damaged: it goes on after the archive's end; save it again")
        return MappedRows(handle, dataclasses.replace(layout, offset=offset), label)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, layout: Layout, label: str) -> MappedRows:
    """The rows in a temporary file."""
    # number after number, for a column, which is contiguous in Fortran order, may be large
    numbers, size = (layout.count or 0) * layout.D, layout.dtype.itemsize
    step = _BLOCK_BYTES // size
    spill = Spill(Layout(layout.dtype, 1, None), label)
    with archive.open(member) as handle:
        handle.read(layout.offset)
        for at in range(0, numbers, step):
            n = min(step, numbers - at)
            spill.write(at, np.frombuffer(read_up_to(handle, n * size), layout.dtype).reshape(n, 1))
        handle.read(1)  # past the end: the checksum is compared
    return spill.place(dataclasses.replace(layout, dtype=layout.native, offset=0))


@contextlib.contextmanager
def write_rows(handle: BinaryIO, outline: Outline) -> Iterator[Append]:
    """Write an archive with one array, which is stored as it is."""
    layout = dataclasses.replace(outline.layout, dtype=outline.dtype.newbyteorder("<"))
    name = (outline.key or VECTORS) + _SUFFIX
    with zipfile.ZipFile(handle, "w") as archive, archive.open(name, "w", force_zip64=True) as member:
        write_all(member, npy.write_header(layout))

        def append(block: Array, ids: Array | None) -> None:
            write_all(member, layout.encode(block).reshape(-1).view(np.uint8))

        yield append
