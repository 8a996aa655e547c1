"""Exact nearest neighbours by brute force, in bounded memory.

Symbols: n vectors of a block, nq queries, D their dimension, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from qinco_core.errors import DimensionError, UsageError

_ROWS = 16384  # vectors compared at a time
_ENTRIES = 1 << 20  # distances held at a time
_MISSING = torch.iinfo(torch.int64).max


def exact_neighbors(
    xb_blocks: Iterable[npt.NDArray[np.generic]], xq: npt.NDArray[np.generic], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k nearest vectors of each query by squared Euclidean distance; ties go to the lower id.

    Products are in float64, so large norms cancel without harm; distances are compared as float32.

    Args:
        xb_blocks: the vectors in order, blocks of any length [n, D], real dtype; ids count from 0.
        xq: queries [nq, D], real dtype.
        k: neighbours per query, 1 or more.

    Returns:
        Ids int64 [nq, k], nearest first, -1 where there are fewer than k vectors, and squared
        distances float32 [nq, k], infinity there.

    Raises:
        DimensionError: a block's dimension is not that of the queries.
        UsageError: k is below 1.
    """
    if k < 1:
        raise UsageError(f"k = {k} neighbours cannot be; use 1 or more")
    if xq.ndim != 2:
        raise DimensionError(f"queries of shape {xq.shape}; they must be [nq, D]")
    q = torch.from_numpy(xq.astype(np.float64))
    best = torch.full((len(q), k), _MISSING)
    first = 0
    for block in xb_blocks:
        if block.ndim != 2 or block.shape[1] != q.shape[1]:
            raise DimensionError(f"vectors {block.shape} do not fit queries of dimension {q.shape[1]}")
        for start in range(0, len(block), _ROWS):
            x = torch.from_numpy(block[start : start + _ROWS].astype(np.float64))
            _merge(best, q, x, first + start)
        first += len(block)
    return _unpack(best)


def _merge(best: torch.Tensor, q: torch.Tensor, x: torch.Tensor, first: int) -> None:
    """Update the best keys [nq, k] of all queries with the vectors numbered from `first`."""
    ids = torch.arange(first, first + len(x))
    x_norms = x.square().sum(1)
    rows = max(1, _ENTRIES // len(x))
    for start in range(0, len(q), rows):
        part = slice(start, start + rows)
        distances = torch.addmm(x_norms, q[part], x.T, alpha=-2)
        distances += q[part].square().sum(1, keepdim=True)
        keys = torch.cat([best[part], _pack(distances, ids)], dim=1)
        best[part] = keys.topk(best.shape[1], largest=False).values


def _pack(distances: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """One int64 a pair: the bits of a float >= 0 sort as it does, and the id below them breaks ties."""
    bits = distances.clamp_(min=0).float().abs_().view(torch.int32).long()
    return bits.bitwise_left_shift_(32).bitwise_or_(ids)


def _unpack(keys: torch.Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    missing = keys == _MISSING
    ids = (keys & 0xFFFFFFFF).masked_fill_(missing, -1)
    distances = (keys >> 32).int().view(torch.float32).masked_fill_(missing, float("inf"))
    return ids.numpy(), distances.numpy()
