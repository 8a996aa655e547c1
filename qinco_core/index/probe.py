"""Which lists a search looks into: those of the nearest centroids.

For squared distances only the centroids of the nearest *groups* are compared, a group being some dozen centroids
that lie together (`group_centroids`, made with the index). It costs a third of comparing all 4,096 and leaves out
1 to 2 % of the lists, mostly the last of those asked for (`docs/log.md`).

Shapes: Q queries, D dimension, L lists, G groups, S groups that a query looks at, X members of the largest group.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch.nn import functional as F

from qinco_core.codec.select import cut, room_for, smallest, sort, take
from qinco_core.codec.workers import scratch
from qinco_core.config import Metric
from qinco_core.index.kmeans import Machine, assign, kmeans

Array = NDArray[Any]

# lists from which on groups pay
_GROUPS_FROM = 1024
# a query looks at so many groups, and at as many more as have so many times nprobe centroids
_FEWEST, _TIMES = 16, 8
_ITERATIONS, _PER_GROUP = 8, 64
_ENTRIES = 1 << 22  # scores in memory at a time


def group_centroids(centroids_LD: Array, threads: int) -> NDArray[np.int32]:
    """The group of every centroid, int32 [L]: 2·√L clusters of them; one for all where there are few."""
    L = len(centroids_LD)
    if L < _GROUPS_FROM:
        return np.zeros(L, np.int32)
    rng, machine = np.random.default_rng(0), Machine(threads=threads, device="cpu")
    G = round(2 * math.sqrt(L))
    some = np.sort(rng.choice(L, min(L, _PER_GROUP * G), replace=False))
    return assign(centroids_LD, kmeans(centroids_LD[some], G, _ITERATIONS, rng, machine)[0], machine).lists_N


class Probe:
    """Finds the nearest centroids; safe to share by threads.

    Args:
        centroids_LD: float32 [L, D].
        groups_L: of each, from `group_centroids`; None: all are compared.
        dtype: of the products where all are compared.
    """

    def __init__(self, centroids_LD: Array, groups_L: Array | None, dtype: torch.dtype) -> None:
        groups_L = np.zeros(len(centroids_LD), np.int32) if groups_L is None else groups_L
        self._order = np.argsort(groups_L, kind="stable")
        self._mean = centroids_LD.mean(0)
        # about their mean, where rounding costs least; members of a group side by side
        self._table = centroids_LD[self._order]
        self._table -= self._mean
        self._half_norms = np.einsum("ld,ld->l", self._table, self._table) / 2
        counts = np.bincount(groups_L)
        counts = counts[counts > 0]
        self._starts, self._widest = np.concatenate([[0], np.cumsum(counts)]), int(counts.max())
        self._groups = torch.from_numpy(np.add.reduceat(self._table, self._starts[:-1]) / counts[:, None]).float()
        self._group_half_norms = self._groups.square().sum(1) / 2
        self._dtype = dtype

    def nearest(self, q_QD: Array, nprobe: int, metric: Metric) -> NDArray[np.int32]:
        """The nprobe best lists of every query, int32 [Q, nprobe], best first; those left out are −1."""
        L, G = len(self._table), len(self._groups)
        if nprobe == L:
            return np.broadcast_to(np.arange(L, dtype=np.int32), (len(q_QD), L))
        place = np.empty((len(q_QD), nprobe), np.int64)
        looked = _FEWEST + _TIMES * nprobe * G // L
        grouped = metric == "l2" and 2 * looked <= G
        size = max(1, _ENTRIES // (looked * self._widest if grouped else L))
        for at in range(0, len(q_QD), size):
            rows = slice(at, at + size)
            if grouped:
                self._by_groups(q_QD[rows] - self._mean, looked, place[rows])
            else:
                smallest(self._scores(q_QD[rows], metric).float().numpy(), nprobe, place[rows])
        return np.where(place < 0, -1, self._order[place]).astype(np.int32)

    def _by_groups(self, q_QD: Array, looked: int, place_Qn: Array) -> None:
        """The best places out of so many groups; queries about the mean."""
        score = F.linear(torch.from_numpy(-q_QD), self._groups, self._group_half_norms)
        group_QS = np.empty((len(q_QD), looked), np.int64)
        smallest(score.numpy(), looked, group_QS)
        score_QSX = scratch("groups", (len(q_QD), looked, self._widest)).numpy()
        _compare(q_QD, group_QS, self._starts, self._table, self._half_norms, score_QSX)
        _nearest(score_QSX, group_QS, self._starts, place_Qn)

    def _scores(self, q_QD: Array, metric: Metric) -> torch.Tensor:
        """Of all centroids, the best ones' the smallest: ‖c‖²/2 − ⟨q, c⟩, or −⟨q, c⟩, or −⟨q, c⟩ / ‖c‖."""
        if metric == "cosine":
            return F.linear(torch.from_numpy(-q_QD).to(self._dtype), self._directions)
        near, norms = (q_QD - self._mean, self._products[1]) if metric == "l2" else (q_QD, None)
        return F.linear(torch.from_numpy(-near).to(self._dtype), self._products[0], norms)

    @functools.cached_property
    def _products(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Centroids and their norms for the comparison of all."""
        return torch.from_numpy(self._table).to(self._dtype), torch.from_numpy(self._half_norms).to(self._dtype)

    @functools.cached_property
    def _directions(self) -> torch.Tensor:
        """Centroids at length 1."""
        return F.normalize(torch.from_numpy(self._table + self._mean)).to(self._dtype)


@njit(nogil=True, cache=True)
def _nearest(score_QSX: Array, group_QS: Array, starts: Array, place_Qn: Array) -> None:
    """The n places with the smallest scores of every query's groups, ascending."""
    (Q, S, X), n = score_QSX.shape, place_Qn.shape[1]
    score, place = room_for(n, X)
    for q in range(Q):
        count, worst = 0, np.float32(np.inf)
        for s in range(S):
            g = group_QS[q, s]
            if g < 0:  # no number
                break
            block = score_QSX[q, s, : starts[g + 1] - starts[g]]
            count, worst = take(block, starts[g], score, place, count, worst, n)
        count = cut(score, place, count, n)
        sort(score, place, count)
        place_Qn[q, :count], place_Qn[q, count:] = place[:count], -1


@njit(nogil=True, cache=True)
def _compare(q_QD: Array, group_QS: Array, starts: Array, table_LD: Array, half_L: Array, score_QSX: Array) -> None:
    """‖c‖²/2 − ⟨q, c⟩ of the members of every query's groups; group by group, so that each is read once."""
    (Q, S, X), G = score_QSX.shape, len(starts) - 1
    group_R = group_QS.ravel()
    ends = np.zeros(G + 2, np.int64)  # after those without a group, which come first
    for g in group_R:
        ends[g + 2] += 1
    ends = np.cumsum(ends)
    looks, at = np.empty(Q * S, np.int64), ends.copy()
    for r in range(Q * S):
        looks[at[group_R[r] + 1]] = r
        at[group_R[r] + 1] += 1
    score_RX = score_QSX.reshape(Q * S, X)
    for g in range(G):
        asked = looks[ends[g + 1] : ends[g + 2]]
        # four queries share what is read of a centroid; the last ones are computed again to fill up
        last = len(asked) - 1
        for r in range(0, len(asked), 4):
            a, b, c, d = asked[r], asked[min(r + 1, last)], asked[min(r + 2, last)], asked[min(r + 3, last)]
            for i in range(starts[g], starts[g + 1]):
                place = i - starts[g]
                in_a, in_b, in_c, in_d = _four_dots(q_QD[a // S], q_QD[b // S], q_QD[c // S], q_QD[d // S], table_LD[i])
                score_RX[a, place], score_RX[b, place] = half_L[i] - in_a, half_L[i] - in_b
                score_RX[c, place], score_RX[d, place] = half_L[i] - in_c, half_L[i] - in_d


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _four_dots(a: Array, b: Array, c: Array, d: Array, x: Array) -> Any:
    """⟨a, x⟩, ⟨b, x⟩, ⟨c, x⟩ and ⟨d, x⟩."""
    in_a = in_b = in_c = in_d = np.float32(0)
    for i in range(len(x)):
        in_a += a[i] * x[i]
        in_b += b[i] * x[i]
        in_c += c[i] * x[i]
        in_d += d[i] * x[i]
    return in_a, in_b, in_c, in_d
