"""Pairs of a beam and a codeword: choosing them, adding what belongs to each of the two, their errors.

Most of it stands twice: in torch, for GPUs, and in float32, compiled by numba for one thread of a CPU, where it writes
into memory that is used again. Shapes: N vectors, B beams of each, K codewords, T pairs of each vector, written
as beam · K + codeword; rows of beams are N·B, rows of pairs N·T; X any width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from qinco_core.codec.select import keep_smallest
from qinco_core.codec.workers import scratch

Array = NDArray[Any]

# codewords of whose scores the least is found first
_GROUP = 16


def best_pairs(score_NBK: Tensor, norm_NB: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """The T smallest of score + norm over all beams and codewords of each vector: pairs int64 and values [N, T]."""
    if score_NBK.device.type != "cpu":
        return torch_best_pairs(score_NBK, norm_NB, T)
    pair = torch.empty(len(score_NBK), T, dtype=torch.int64)
    value = torch.empty(len(score_NBK), T)
    _best_pairs(score_NBK.numpy(), norm_NB.numpy(), pair.numpy(), value.numpy())
    return pair, value


def best_of_groups(value_NBK: Tensor, least_NBG: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """The T smallest values over all beams and codewords of each vector: pairs int64 and values [N, T].

    Args:
        value_NBK: one of every beam and codeword.
        least_NBG: of every beam, the least of codewords g, g + G, g + 2 G and so on.
        T: how many.
    """
    (_, B, K), G = value_NBK.shape, least_NBG.shape[2]
    value_NX = value_NBK.flatten(1)
    if T >= B * G:
        best = value_NX.topk(T, dim=1, largest=False, sorted=False)
        return best.indices, best.values
    # they are all in the T groups with the least of these
    group = least_NBG.flatten(1).topk(T, dim=1, largest=False, sorted=False).indices
    first = torch.div(group, G, rounding_mode="floor") * K + group % G
    pair = (first[..., None] + torch.arange(0, K, G, device=group.device)).flatten(1)
    best = value_NX.gather(1, pair).topk(T, dim=1, largest=False, sorted=False)
    return pair.gather(1, best.indices), best.values


def split(pair_NT: Tensor, B: int, K: int) -> tuple[Tensor, Tensor]:
    """The row of the beam, among all N·B, and the codeword of every pair, int64 [N·T] each."""
    first = torch.arange(len(pair_NT), device=pair_NT.device)[:, None] * B
    # K is a power of two, and divisions are slow
    return ((pair_NT >> (K.bit_length() - 1)) + first).flatten(), (pair_NT & (K - 1)).flatten()


def add(name: str, book_KX: Tensor, k_R: Tensor, rows_BX: Tensor, beam_R: Tensor) -> Tensor:
    """book[k] + rows[beam] of every row [R, X]; on a CPU in the scratch memory `name`."""
    if book_KX.device.type != "cpu":
        return torch_add(book_KX, k_R, rows_BX, beam_R)
    out = scratch(name, (len(k_R), book_KX.shape[1]))
    _add(book_KX.numpy(), k_R.numpy(), rows_BX.numpy(), beam_R.numpy(), out.numpy())
    return out


def add_relu(name: str, book_KX: Tensor, k_R: Tensor, rows_BX: Tensor, beam_R: Tensor, width: int) -> Tensor:
    """The positive part of book[k] + rows[beam], first `width` columns [R, width]; on a CPU in that scratch memory."""
    if book_KX.device.type != "cpu":
        return torch_add(book_KX[:, :width], k_R, rows_BX[:, :width], beam_R).relu_()
    out = scratch(name, (len(k_R), width))
    _add_relu(book_KX.numpy(), k_R.numpy(), rows_BX.numpy(), beam_R.numpy(), out.numpy())
    return out


def squared_gaps(r_BX: Tensor, beam_R: Tensor, c_KX: Tensor, k_R: Tensor, z_RX: Tensor | None = None) -> Tensor:
    """‖r[beam] − c[k] − z‖² of every row [R]; without z, ‖r[beam] − c[k]‖²."""
    if r_BX.device.type != "cpu":
        return torch_squared_gaps(r_BX, beam_R, c_KX, k_R, z_RX)
    out = torch.empty(len(k_R))
    rows = (r_BX.numpy(), beam_R.numpy(), c_KX.numpy(), k_R.numpy())
    if z_RX is None:
        _squared_gaps(*rows, out.numpy())
    else:
        _squared_gaps_without(*rows, z_RX.numpy(), out.numpy())
    return out


def torch_best_pairs(score_NBK: Tensor, norm_NB: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """`best_pairs` on any device."""
    best = (score_NBK + norm_NB[..., None]).flatten(1).topk(T, dim=1, largest=False, sorted=False)
    return best.indices, best.values


def torch_add(book_KX: Tensor, k_R: Tensor, rows_BX: Tensor, beam_R: Tensor) -> Tensor:
    """`add` on any device."""
    return book_KX.index_select(0, k_R).add_(rows_BX.index_select(0, beam_R))


def torch_squared_gaps(r_BX: Tensor, beam_R: Tensor, c_KX: Tensor, k_R: Tensor, z_RX: Tensor | None) -> Tensor:
    """`squared_gaps` on any device."""
    gap = r_BX.index_select(0, beam_R).sub_(c_KX.index_select(0, k_R))
    return (gap if z_RX is None else gap.sub_(z_RX)).square_().sum(1)


@njit(nogil=True, cache=True)
def _best_pairs(score: Array, norm: Array, pair: Array, value: Array) -> None:
    N, B, K = score.shape
    T, size = pair.shape[1], min(K, _GROUP)
    groups = K // size
    low, least = np.empty((B, groups), np.float32), np.empty(B * groups, np.float32)
    nowhere = np.empty(B * groups, np.uint8)
    found, place = np.empty(B * K + 1, np.float32), np.empty(B * K + 1, np.int64)
    for n in range(N):
        _group_minima(score[n], norm[n], low)
        bound = np.float32(np.inf)
        if B * groups > T:
            # the T-th of the minima of the groups bounds the T-th of all
            least[:] = low.reshape(B * groups)
            keep_smallest(least, nowhere, B * groups, T)
            bound = np.nextafter(least[:T].max(), np.float32(np.inf))
        count = 0
        for b in range(B):
            for g in range(groups):
                if low[b, g] < bound:
                    # written first and counted after: no branch to mispredict
                    for i in range(g * size, (g + 1) * size):
                        s = score[n, b, i] + norm[n, b]
                        found[count], place[count] = s, b * K + i
                        count += s < bound
        found[count:T], place[count:T] = np.inf, 0  # of NaN there may be too few
        keep_smallest(found, place, max(count, T), T)
        pair[n], value[n] = place[:T], found[:T]


@njit(nogil=True, cache=True, fastmath=True)
def _group_minima(score: Array, norm: Array, low: Array) -> None:
    B, groups = low.shape
    size = score.shape[1] // groups
    for b in range(B):
        for g in range(groups):
            least = score[b, g * size]
            if size == _GROUP:  # a length that the compiler knows
                for i in range(1, _GROUP):
                    least = min(least, score[b, g * _GROUP + i])
            else:
                for i in range(1, size):
                    least = min(least, score[b, g * size + i])
            low[b, g] = least + norm[b]


@njit(nogil=True, cache=True, fastmath=True)
def _add(book: Array, k: Array, rows: Array, beam: Array, out: Array) -> None:
    for r in range(len(k)):
        a, b = book[k[r]], rows[beam[r]]
        for i in range(len(a)):
            out[r, i] = a[i] + b[i]


@njit(nogil=True, cache=True, fastmath=True)
def _add_relu(book: Array, k: Array, rows: Array, beam: Array, out: Array) -> None:
    for r in range(len(k)):
        a, b = book[k[r]], rows[beam[r]]
        for i in range(out.shape[1]):
            out[r, i] = max(a[i] + b[i], np.float32(0))


@njit(nogil=True, cache=True, fastmath=True)
def _squared_gaps(r: Array, beam: Array, c: Array, k: Array, out: Array) -> None:
    for row in range(len(k)):
        a, b = r[beam[row]], c[k[row]]
        total = np.float32(0)
        for i in range(len(a)):
            gap = a[i] - b[i]
            total += gap * gap
        out[row] = total


@njit(nogil=True, cache=True, fastmath=True)
def _squared_gaps_without(r: Array, beam: Array, c: Array, k: Array, z: Array, out: Array) -> None:
    for row in range(len(k)):
        a, b, without = r[beam[row]], c[k[row]], z[row]
        total = np.float32(0)
        for i in range(len(a)):
            gap = a[i] - b[i] - without[i]
            total += gap * gap
        out[row] = total
