"""What all files of vectors share: their shape in bytes, their checks, and the source they look like.

N rows of D dimensions; a record is a row as it lies in the file, with its header where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from qinco_core.errors import UsageError, VectorFileError

Array = npt.NDArray[Any]
DType = np.dtype[Any]
# takes the next [n, D] rows of a file that is being written, and their ids, int64 [n] or None
Append = Callable[[Array, Array | None], None]

# int32 and int64 are what tables of neighbours are made of
DTYPES = tuple(np.dtype(t) for t in ("float16", "float32", "float64", "uint8", "int8", "int32", "int64"))
MAX_D = 1 << 20

_SIGNATURES = {b"\x93NUM": "npy", b"\x89HDF": "hdf5", b"PAR1": "parquet", b"ARRO": "arrow", b"PK\x03\x04": "npz"}
_READ_BYTES = 1 << 20


class VectorSource(Protocol):
    """Vectors to be read once and in order: a `VectorFile` or a `VectorStream`."""

    @property
    def name(self) -> str:
        """The source in messages."""

    @property
    def dim(self) -> int:
        """D, the dimension of every vector."""

    @property
    def dtype(self) -> DType:
        """The type of the vectors as they are stored, in native byte order."""

    @property
    def count(self) -> int | None:
        """N, the number of vectors; None where only the end of a stream will tell."""

    def batches(self, size: int) -> Iterator[Array]:
        """All vectors in order, [n, D] at a time with n = `size` but for the last."""


class Rows(Protocol):
    """Random access to the rows of a file or a folder of files; indices are checked by the caller."""

    @property
    def layout(self) -> Layout:
        """The dtype, D and count of the rows."""

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array."""

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array."""

    def place(self, row: int) -> tuple[str, int]:
        """The file that a row is in and its number there, for messages."""


class Feed(Protocol):
    """Rows that arrive through a pipe."""

    @property
    def layout(self) -> Layout:
        """The dtype, D and, where the pipe has told it, the count of the rows."""

    def take(self, n: int) -> Array:
        """The next n rows, fresh; fewer, or none, only at the end of a feed without a count."""

    def finish(self) -> None:
        """Called after the last row that is wanted: refuse what cannot come after it."""


@dataclass(frozen=True)
class Layout:
    """How rows lie in a file: dtype and D, N where known, the first row's byte, and what is around rows.

    `prefixed`: an int32 D stands before each row (the vecs formats). `fortran`: column after column.
    """

    dtype: DType
    D: int
    count: int | None
    offset: int = 0
    prefixed: bool = False
    fortran: bool = False

    @property
    def record(self) -> DType:
        """The numpy type of one row as it lies in the file."""
        if self.prefixed:
            return np.dtype([("D", "<i4"), ("x", self.dtype, (self.D,))])
        return np.dtype((self.dtype, (self.D,)))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, with its header."""
        return self.record.itemsize

    @property
    def native(self) -> DType:
        """The dtype in this machine's byte order."""
        return self.dtype.newbyteorder("=")

    def decode(self, records: Array, rows: Sequence[int] | Array, name: str) -> Array:
        """The vectors of `records`, a fresh [n, D] array of the native dtype.

        `rows` are the n row numbers for messages.

        Raises:
            VectorFileError: the header of a row differs from D.
        """
        if self.prefixed:
            wrong = np.flatnonzero(records["D"] != self.D)
            if wrong.size:
                found = int(records["D"][wrong[0]])
                raise VectorFileError(
                    f"{name}: row {rows[wrong[0]]} (counted from 0) says it has {found} dimensions where the "
                    f"first row has {self.D}; it is damaged, or of another format: name it with --format"
                )
            records = records["x"]
        return np.array(records, dtype=self.native, order="C")

    def encode(self, block: Array) -> Array:
        """The records of a [n, D] block that has the layout's dtype: the inverse of `decode`."""
        if not self.prefixed:
            return np.ascontiguousarray(block, dtype=self.dtype)
        records = np.empty(len(block), self.record)
        records["D"] = self.D
        records["x"] = block
        return records


@dataclass(frozen=True)
class Outline:
    """What a file that is to be written holds.

    `count` is None where only its end will tell, `key` names a dataset, column or array, `piped` says
    that there is no way back to what was written.
    """

    name: str
    dtype: DType
    D: int
    count: int | None
    key: str | None = None
    with_ids: bool = False
    piped: bool = False

    @property
    def layout(self) -> Layout:
        """The rows without anything around them."""
        return Layout(self.dtype, self.D, self.count)


# writes a file of the outline to an open handle: what is appended inside the block
WriteRows = Callable[[BinaryIO, Outline], AbstractContextManager[Append]]


def check_shape(name: str, D: int, count: int | None = None) -> None:
    """Refuse a header whose numbers cannot be.

    Raises:
        VectorFileError: there are no rows, no dimensions, or more than `MAX_D` of them.
    """
    if count == 0 or D == 0:
        shape = f"D = {D}" if count is None else f"N = {count}, D = {D}"
        raise VectorFileError(f"{name} holds no vectors ({shape}); nothing can be done with it")
    if not 0 < D <= MAX_D or (count is not None and count < 0):
        shape = f"D = {D}" if count is None else f"N = {count}, D = {D}"
        raise VectorFileError(
            f"{name}: the header says {shape}, which cannot be; it is damaged, or of another format: "
            "name it with --format"
        )


def check_dtype(name: str, dtype: DType) -> None:
    """Refuse types that are no vectors, among them pickled objects.

    Raises:
        VectorFileError: the dtype is not one of `DTYPES`, in either byte order.
    """
    if dtype.newbyteorder("=") not in DTYPES:
        wanted = ", ".join(map(str, DTYPES))
        raise VectorFileError(f"{name} holds {dtype}; convert it to one of {wanted}")


def first_broken(block: Array) -> int | None:
    """The first row of a [n, D] block that holds NaN or infinity."""
    if block.dtype.kind != "f":
        return None
    finite = np.isfinite(block)
    return None if finite.all() else int(np.flatnonzero(~finite.all(axis=1))[0])


def broken(name: str, row: int) -> VectorFileError:
    """The error for a row that `first_broken` found."""
    return VectorFileError(
        f"{name}: row {row} (counted from 0) holds NaN or infinity; remove or repair such rows first"
    )


def check_finite(block: Array, rows: Sequence[int] | Array, name: str) -> None:
    """Refuse NaN and infinity in a [n, D] block whose row numbers are `rows`.

    Raises:
        VectorFileError: names the first such row.
    """
    found = first_broken(block)
    if found is not None:
        raise broken(name, int(rows[found]))


def check_range(start: int, stop: int, count: int, name: str) -> None:
    """Refuse a row range that is not inside 0..count.

    Raises:
        UsageError: it is not.
    """
    if not 0 <= start <= stop <= count:
        raise UsageError(f"{name}: rows {start}..{stop} are not inside its {count} rows")


def check_window(skip: int, limit: int | None) -> None:
    """Refuse a skip or limit that cannot be.

    Raises:
        UsageError: skip is negative or limit below 1.
    """
    if skip < 0:
        raise UsageError(f"skip = {skip}; skip 0 or more vectors")
    if limit is not None and limit < 1:
        raise UsageError(f"limit = {limit}; take at least 1 vector")


def check_batch(size: int) -> None:
    """Refuse an empty batch.

    Raises:
        UsageError: size is below 1.
    """
    if size < 1:
        raise UsageError(f"batch size = {size}; read at least 1 vector at a time")


def window(skip: int, limit: int | None, count: int, name: str) -> tuple[int, int]:
    """The first row and the end of what `skip` and `limit` leave of `count` rows.

    Raises:
        UsageError: nothing is left.
    """
    check_window(skip, limit)
    if skip >= count:
        raise UsageError(f"{name} has {count} vectors; skipping {skip} leaves none")
    return skip, count if limit is None else min(count, skip + limit)


def read_up_to(handle: IO[bytes], length: int) -> bytearray:
    """`length` bytes, or fewer where the stream ends before; memory grows with what arrives."""
    data = bytearray()
    while len(data) < length and (piece := handle.read(min(length - len(data), _READ_BYTES))):
        data += piece
    return data


def read_header_bytes(handle: IO[bytes], length: int, name: str) -> bytes:
    """Exactly `length` bytes of a header.

    Raises:
        VectorFileError: the file ends before.
    """
    data = bytes(read_up_to(handle, length))
    if len(data) < length:
        raise VectorFileError(f"{name} is empty or truncated: it ends inside its header")
    return data


def refuse_signature(head: bytes, format: str, name: str) -> None:
    """Refuse a file whose first bytes are the signature of another format.

    Raises:
        VectorFileError: they are; the message names that format.
    """
    actual = _SIGNATURES.get(bytes(head[:4]), format)
    if actual != format:
        raise VectorFileError(f"{name} was opened as {format} but holds {actual}; read it with --format {actual}")
