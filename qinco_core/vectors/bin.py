"""fbin, u8bin, i8bin, ibin: N and D as little-endian uint32, then the rows (big-ann-benchmarks)."""

from __future__ import annotations

import struct
from typing import BinaryIO

from qinco_core.errors import UsageError
from qinco_core.vectors.base import DType, Layout, check_shape, read_header_bytes, refuse_signature

HEADER_BYTES = 8
MAX_COUNT = (1 << 32) - 1


def read_header(handle: BinaryIO, name: str, format: str, dtype: DType) -> Layout:
    """The layout that the header tells; the header is consumed.

    Raises:
        VectorFileError: empty, cut inside the header, or an impossible shape.
    """
    head = read_header_bytes(handle, HEADER_BYTES, name)
    refuse_signature(head, format, name)
    count, D = struct.unpack("<II", head)
    check_shape(name, D, count)
    return Layout(dtype, D, count, offset=HEADER_BYTES)


def write_header(layout: Layout) -> bytes:
    """The 8 bytes that stand before the first row; N = 0 while the count is unknown.

    Raises:
        UsageError: more rows than 32 bits can count.
    """
    count = layout.count or 0
    if count > MAX_COUNT:
        raise UsageError(f"{count} vectors do not fit the 32-bit count of this format; write fvecs or npy")
    return struct.pack("<II", count, layout.D)
