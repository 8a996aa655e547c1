"""Symbols to bytes and back: M symbols of log2 K bits a code, the first in the lowest bits.

n codes, M symbols of a code, K values of a symbol; `packed` is uint8 [n, ceil(M log2 K / 8)].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import DimensionError, UsageError


def symbol_dtype(K: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that holds symbols 0 to K - 1."""
    return np.dtype(np.uint8 if K <= 256 else "<u2")


def _bits(K: int) -> int:
    if not 2 <= K <= 65536 or K & (K - 1):
        raise UsageError(f"K = {K} is not a power of two from 2 to 65536")
    return K.bit_length() - 1


def pack(codes_NM: NDArray[Any], K: int) -> NDArray[np.uint8]:
    """Pack symbols of any integer dtype [n, M] into bytes uint8 [n, ceil(M log2 K / 8)]; pad bits are zero.

    Raises:
        DimensionError: there are not two axes.
        UsageError: a symbol is not an integer from 0 to K - 1, or K is no power of two.
    """
    bits = _bits(K)
    codes_NM = np.asarray(codes_NM)
    if codes_NM.ndim != 2:
        raise DimensionError(f"symbols have shape {codes_NM.shape}; they need (n, M)")
    if codes_NM.dtype.kind not in "iu":
        raise UsageError(f"symbols are integers, not {codes_NM.dtype}")
    if codes_NM.size and not (codes_NM.min() >= 0 and codes_NM.max() < K):
        raise UsageError(f"symbols from {codes_NM.min()} to {codes_NM.max()} do not fit K = {K}")
    n, M = codes_NM.shape
    dtype = symbol_dtype(K)
    symbols = np.ascontiguousarray(codes_NM, dtype=dtype).view(np.uint8).reshape(n, M, dtype.itemsize)
    if bits == 8 * dtype.itemsize:
        return symbols.reshape(n, M * dtype.itemsize)
    spread = np.unpackbits(symbols, axis=2, count=bits, bitorder="little")
    return np.packbits(spread.reshape(n, M * bits), axis=1, bitorder="little")


def unpack(packed: NDArray[np.uint8], M: int, K: int) -> NDArray[Any]:
    """Unpack bytes uint8 [n, ceil(M log2 K / 8)] into symbols [n, M], uint8 up to K = 256, else uint16.

    The result may share memory with `packed`.

    Raises:
        DimensionError: the width does not follow from M and K.
        UsageError: `packed` is not uint8, or K is no power of two.
    """
    bits, n = _checked(packed, M, K), len(packed)
    dtype = symbol_dtype(K)
    if bits == 8 * dtype.itemsize:
        return np.ascontiguousarray(packed).view(dtype)
    spread = np.unpackbits(packed, axis=1, count=M * bits, bitorder="little").reshape(n, M, bits)
    return np.packbits(spread, axis=2, bitorder="little").view(dtype).reshape(n, M)


def truncate(packed: NDArray[np.uint8], M: int, K: int, m: int) -> NDArray[np.uint8]:
    """The packed codes of the first m symbols: uint8 [n, ceil(m log2 K / 8)], itself a valid code.

    Raises:
        DimensionError: the width does not follow from M and K.
        UsageError: m is not from 1 to M, `packed` is not uint8, or K is no power of two.
    """
    bits = _checked(packed, M, K)
    if not 1 <= m <= M:
        raise UsageError(f"a code of {M} symbols has no prefix of {m}; use 1 to {M}")
    prefix = packed[:, : (m * bits + 7) // 8].copy()
    if used := m * bits % 8:
        prefix[:, -1] &= (1 << used) - 1
    return prefix


def _checked(packed: NDArray[np.uint8], M: int, K: int) -> int:
    bits = _bits(K)
    if packed.dtype != np.uint8:
        raise UsageError(f"packed codes are uint8, not {packed.dtype}")
    width = (M * bits + 7) // 8
    if packed.ndim != 2 or packed.shape[1] != width:
        raise DimensionError(f"packed codes have shape {packed.shape}; M = {M} and K = {K} need (n, {width})")
    return bits
