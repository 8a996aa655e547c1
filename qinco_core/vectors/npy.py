"""npy: numpy's format, versions 1 to 3, in C or Fortran order and either byte order; never a pickle."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np

from qinco_core.errors import VectorFileError
from qinco_core.vectors.base import (
    DTYPES,
    DType,
    Layout,
    check_shape,
    read_header_bytes,
    refuse_signature,
)

MAGIC = b"\x93NUMPY"
HEADER_BYTES = 128
_MAX_HEADER = 10_000
_CODES = {dtype.str[1:] for dtype in DTYPES}


@dataclass(frozen=True)
class Header:
    """What an npy header says: any array's, not only that of vectors. `size` counts the header's own bytes."""

    fields: dict[str, Any]
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as it stands there."""
        return tuple(self.fields["shape"]) if isinstance(self.fields["shape"], tuple) else ()

    def layout(self, name: str) -> Layout:
        """The layout of an array of vectors.

        Raises:
            VectorFileError: another shape or dtype, among them pickled objects.
        """
        count, D = _shape(self.fields, name)
        fortran = bool(self.fields["fortran_order"])
        return Layout(_dtype(self.fields, name), D, count, self.size, fortran=fortran)


def read_header(handle: BinaryIO, name: str) -> Layout:
    """The layout that the header tells; the header is consumed.

    Raises:
        VectorFileError: no npy file, cut inside the header, or an array that is no table of vectors.
    """
    return parse_header(handle, name).layout(name)


def parse_header(handle: IO[bytes], name: str) -> Header:
    """The header of any array; it is consumed.

    Raises:
        VectorFileError: no npy file, or cut inside the header.
    """
    head = read_header_bytes(handle, 8, name)
    refuse_signature(head, "npy", name)
    if head[:6] != MAGIC or head[6] not in (1, 2, 3):
        raise VectorFileError(f"{name} is not an npy file; name its real format with --format")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(read_header_bytes(handle, width, name), "little")
    if length > _MAX_HEADER:
        raise VectorFileError(f"{name}: its npy header of {length} bytes is damaged; save it again with numpy.save")
    return Header(_parse(read_header_bytes(handle, length, name), name), 8 + width + length)


def write_header(layout: Layout) -> bytes:
    """128 bytes that stand before the first row; N = 0 while the count is unknown."""
    shape = (layout.count or 0, layout.D)
    text = repr({"descr": layout.dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape})
    length = HEADER_BYTES - len(MAGIC) - 4
    padded = text.encode().ljust(length - 1) + b"\n"
    return MAGIC + b"\x01\x00" + length.to_bytes(2, "little") + padded


def _parse(text: bytes, name: str) -> dict[str, Any]:
    try:
        fields = ast.literal_eval(text.decode("latin1").strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise VectorFileError(f"{name}: its npy header is damaged; save it again with numpy.save")
    return fields


def _dtype(fields: dict[str, Any], name: str) -> DType:
    descr = fields["descr"]
    if not isinstance(descr, str) or descr[:1] not in tuple("<>|=") or descr[1:] not in _CODES:
        wanted = ", ".join(map(str, DTYPES))
        raise VectorFileError(f"{name} holds an array of dtype {descr!r}; convert it to one of {wanted}")
    return np.dtype(descr)


def _shape(fields: dict[str, Any], name: str) -> tuple[int, int]:
    shape = fields["shape"]
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int for n in shape):
        raise VectorFileError(
            f"{name} holds an array of shape {shape}; vectors are a 2-dimensional array (N, D): reshape it"
        )
    count, D = shape
    check_shape(name, D, count)
    return count, D
