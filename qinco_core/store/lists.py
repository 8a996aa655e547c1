"""List numbers to bits and back: one stream of ceil(log2 ivf_K) bits each, the first in the lowest bits.

n list numbers, ivf_K lists. A single list takes one bit too, so that a row is never nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import DimensionError, UsageError

Lists = NDArray[np.int32]

_MOST = 1 << 31


def list_bits(ivf_K: int) -> int:
    """Bits of one list number: 0 without lists, else ceil(log2 ivf_K) and at least 1.

    Raises:
        UsageError: `ivf_K` is not from 0 to 2^31.
    """
    if not 0 <= ivf_K <= _MOST:
        raise UsageError(f"ivf_K = {ivf_K}; there can be 0 to 2^31 lists")
    return max(1, (ivf_K - 1).bit_length()) if ivf_K else 0


def list_bytes(count: int, ivf_K: int) -> int:
    """Bytes of the stream of `count` list numbers."""
    return (count * list_bits(ivf_K) + 7) // 8


def check_lists(lists: NDArray[Any], count: int, ivf_K: int) -> Lists:
    """The list numbers as int32 [count].

    Raises:
        DimensionError: there are not `count` of them.
        UsageError: they are not integers from 0 to ivf_K - 1.
    """
    lists = np.asarray(lists)
    if lists.shape != (count,):
        raise DimensionError(f"{count} codes have list numbers of shape {lists.shape}; give one each")
    if lists.dtype.kind not in "iu":
        raise UsageError(f"list numbers are integers, not {lists.dtype}")
    if count and not (lists.min() >= 0 and lists.max() < ivf_K):
        raise UsageError(f"list numbers from {lists.min()} to {lists.max()} do not fit {ivf_K} lists")
    return lists.astype("<i4", copy=False)


def pack_lists(lists: NDArray[Any], ivf_K: int) -> NDArray[np.uint8]:
    """Pack list numbers of any integer dtype [n] into bytes uint8 [ceil(n·bits / 8)]; pad bits are zero.

    Raises:
        DimensionError: there is not one axis.
        UsageError: a list number is not from 0 to ivf_K - 1.
    """
    numbers = check_lists(lists, np.size(lists), ivf_K)
    octets = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, 4)
    spread = np.unpackbits(octets, axis=1, count=list_bits(ivf_K), bitorder="little")
    return np.packbits(spread, bitorder="little")


def unpack_lists(packed: NDArray[np.uint8], count: int, ivf_K: int) -> Lists:
    """Unpack `count` list numbers, int32, from bytes uint8 [ceil(count·bits / 8)].

    Raises:
        DimensionError: the bytes are not as many as that.
        UsageError: a list number is ivf_K or more.
    """
    bits = list_bits(ivf_K)
    if packed.shape != (list_bytes(count, ivf_K),):
        raise DimensionError(f"{count} numbers of {bits} bits are not packed in {packed.shape} bytes")
    spread = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    octets = np.zeros((count, 4), np.uint8)
    narrow = np.packbits(spread, axis=1, bitorder="little")
    octets[:, : narrow.shape[1]] = narrow
    return check_lists(octets.view("<u4")[:, 0], count, ivf_K)
