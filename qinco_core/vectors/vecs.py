"""fvecs, bvecs, ivecs: before each row its dimension, as a little-endian int32."""

from __future__ import annotations

import struct
from typing import BinaryIO

from qinco_core.vectors.base import DType, Layout, check_shape, read_header_bytes, refuse_signature

HEADER_BYTES = 4


def read_header(handle: BinaryIO, name: str, format: str, dtype: DType) -> Layout:
    """The layout that the first row's header tells; 4 bytes of that row are consumed.

    Raises:
        VectorFileError: empty, cut inside the header, or an impossible dimension.
    """
    head = read_header_bytes(handle, HEADER_BYTES, name)
    refuse_signature(head, format, name)
    (D,) = struct.unpack("<i", head)
    check_shape(name, D)
    return Layout(dtype, D, count=None, prefixed=True)


def write_header(layout: Layout) -> bytes:
    """What stands before the first row: nothing."""
    return b""
