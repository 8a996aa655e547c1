"""The inner loops of search, compiled by numba; each works for one thread and lets others run meanwhile.

Shapes: Q queries, P probed lists, N entries of the index in the order of their lists, W bytes of a packed code,
M symbols, K codewords, n candidates kept, D dimension, T pair tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

# entries scored together before any of them is compared with the worst that is kept
_BLOCK = 128


@njit(nogil=True, cache=True)
def _keep_smallest(score: Array, place: Array, count: int, n: int) -> None:
    """Quickselect: move the n smallest of the first `count` scores, with their places, to the front."""
    low, high = 0, count - 1
    while low < high:
        pivot = score[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while score[i] < pivot:
                i += 1
            while score[j] > pivot:
                j -= 1
            if i <= j:
                score[i], score[j] = score[j], score[i]
                place[i], place[j] = place[j], place[i]
                i += 1
                j -= 1
        if n - 1 <= j:
            high = j
        elif n - 1 >= i:
            low = i
        else:
            return


@njit(nogil=True, cache=True)
def _sort(score: Array, place: Array, count: int) -> None:
    """Sort the first `count` scores with their places, ascending; of equal ones the lower place first."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):  # Ciura's gaps: the lists are short
        for i in range(gap, count):
            s, p, j = score[i], place[i], i
            while j >= gap and (score[j - gap] > s or (score[j - gap] == s and place[j - gap] > p)):
                score[j], place[j] = score[j - gap], place[j - gap]
                j -= gap
            score[j], place[j] = s, p


@njit(nogil=True, cache=True)
def _any_below(score: Array, first: int, count: int, worst: Any) -> bool:
    """Whether one of `count` scores is below `worst`; without branches, so that it is a few vector instructions."""
    found = 0
    for i in range(first, first + count):
        found |= score[i] < worst
    return found != 0


@njit(nogil=True, cache=True)
def smallest(score_QX: Array, n: int, place_Qn: Array) -> None:
    """Where the n smallest of every row stand, in no order. X is at least n."""
    Q, X = score_QX.shape
    room = 2 * n + _BLOCK
    score, place = np.empty(room, np.float32), np.empty(room, np.int64)
    for q in range(Q):
        row, count, worst = score_QX[q], 0, np.float32(np.inf)
        for first in range(0, X, _BLOCK):
            block = min(_BLOCK, X - first)
            if count >= n and not _any_below(row, first, block, worst):
                continue
            for x in range(first, first + block):
                if row[x] < worst or count < n:
                    score[count], place[count] = row[x], x
                    count += 1
            if count + _BLOCK > room or (count > n and worst == np.inf):
                _keep_smallest(score, place, count, n)
                count = n
                worst = score[:n].max()
        if count > n:
            _keep_smallest(score, place, count, n)
        place_Qn[q] = place[:n]


@njit(nogil=True, cache=True, inline="always")
def _symbol(code: Array, m: int, bits: int) -> Any:
    """Symbol m of a packed code (see `codec.packing`)."""
    at = m * bits
    byte, shift = at >> 3, at & 7
    value = np.int64(code[byte]) >> shift
    have = 8 - shift
    while have < bits:
        byte += 1
        value |= np.int64(code[byte]) << have
        have += 8
    return value & ((1 << bits) - 1)


@njit(nogil=True, cache=True)
def _look_up(table: Array, index: Any, first: int, size: int, look: Any, out: Array) -> None:
    """out[i] = Σ_m table[m·K + symbol m] of the entries first + i."""
    codes, words, whole = index.codes, index.words, index.words.shape[1]
    if look.bits != 8:
        for i in range(size):
            total = np.float32(0)
            for m in range(look.M):
                total += table[(m << look.bits) + _symbol(codes[first + i], m, look.bits)]
            out[i] = total
        return
    for i in range(size):
        total = np.float32(0)
        for w in range(whole):
            word, at = words[first + i, w], 2048 * w
            low = table[at + (word & 255)] + table[at + 256 + (word >> 8 & 255)]
            mid = table[at + 512 + (word >> 16 & 255)] + table[at + 768 + (word >> 24 & 255)]
            high = table[at + 1024 + (word >> 32 & 255)] + table[at + 1280 + (word >> 40 & 255)]
            top = table[at + 1536 + (word >> 48 & 255)] + table[at + 1792 + (word >> 56)]
            total += (low + mid) + (high + top)
        for m in range(8 * whole, look.M):
            total += table[m * 256 + codes[first + i, m]]
        out[i] = total


class Arrays(NamedTuple):
    """What a scan reads of an index.

    Attributes:
        centroids, centroid_norms: float32 [L, D], and their squared norms [L].
        offsets: of the lists, int64 [L + 1].
        codes, words: packed codes uint8 [N, W], and the same as uint64 [N, W // 8] where 8 divides W.
        norms: residual norms, uint8 [N] (see `index.build`).
        ids: of the entries [N].
    """

    centroids: Array
    centroid_norms: Array
    offsets: Array
    codes: Array
    words: Array
    norms: Array
    ids: Array


class Look(NamedTuple):
    """How a scan scores.

    Attributes:
        M, bits: symbols of a code, bits of a symbol.
        metric: 0 squared distance, 1 inner product, 2 cosine.
        low, step: residual norms are low + step · byte.
    """

    M: int
    bits: int
    metric: int
    low: float
    step: float


class Chosen(NamedTuple):
    """Which ids may be found: mode 0 all, 1 only the sorted ones given, 2 all but these."""

    mode: int
    ids: Array


@njit(nogil=True, cache=True)
def scan(
    q_QD: Array,
    table_QX: Array,
    lists_QP: Array,
    index: Arrays,
    look: Look,
    chosen: Chosen,
    score_Qn: Array,
    place_Qn: Array,
) -> None:
    """The first look (method §8.7): the n best entries of the probed lists of every query.

    Scores, the smaller the better, are squared distances ‖q − c‖² + Σ table + r, with r the entry's residual norm; or
    negative inner products Σ table − ⟨q, c⟩; or these divided by the length √(‖c‖² + r).

    Args:
        q_QD: queries, float32.
        table_QX: −2 times (squared distances) or −1 times ⟨q, T[m, k]⟩, float32 [Q, M·K].
        lists_QP: lists to look into; −1: none.
        index: the index.
        look: how to score.
        chosen: which ids may be found.
        score_Qn: best scores in no order, infinity where there are fewer than n.
        place_Qn: their entries, −1 there.
    """
    n = score_Qn.shape[1]
    room = 2 * n + _BLOCK
    score, place = np.empty(room, np.float32), np.empty(room, np.int64)
    block = np.empty(_BLOCK, np.float32)
    for q in range(len(q_QD)):
        count, worst = 0, np.float32(np.inf)
        for number in lists_QP[q]:
            if number < 0:
                continue
            base = _base(q_QD[q], index, number, look)
            end = index.offsets[number + 1]
            for first in range(index.offsets[number], end, _BLOCK):
                size = min(_BLOCK, end - first)
                _look_up(table_QX[q], index, first, size, look, block)
                _finish(block, size, base, index, number, first, look)
                if count >= n and not _any_below(block, 0, size, worst):
                    continue
                for i in range(size):
                    if block[i] < worst and _may(index.ids[first + i], chosen):
                        score[count], place[count] = block[i], first + i
                        count += 1
                if count + _BLOCK > room or (count > n and worst == np.inf):
                    _keep_smallest(score, place, count, n)
                    count = n
                    worst = score[:n].max()
        if count > n:
            _keep_smallest(score, place, count, n)
            count = n
        score_Qn[q, :count], place_Qn[q, :count] = score[:count], place[:count]
        score_Qn[q, count:], place_Qn[q, count:] = np.inf, -1


@njit(nogil=True, cache=True)
def _base(q_D: Array, index: Arrays, number: int, look: Look) -> Any:
    """What the scores of all entries of a list share."""
    inner = _dot(q_D, index.centroids[number])
    if look.metric == 0:
        return _dot(q_D, q_D) + index.centroid_norms[number] + np.float32(look.low) - np.float32(2) * inner
    return -inner


@njit(nogil=True, cache=True)
def _finish(block: Array, size: int, base: Any, index: Arrays, number: int, first: int, look: Look) -> None:
    """From sums of look-ups to scores."""
    step = np.float32(look.step)
    if look.metric == 0:
        for i in range(size):
            block[i] += base + step * np.float32(index.norms[first + i])
    elif look.metric == 1:
        for i in range(size):
            block[i] += base
    else:
        length = index.centroid_norms[number] + np.float32(look.low)
        for i in range(size):
            squared = length + step * np.float32(index.norms[first + i])
            block[i] = (block[i] + base) / np.sqrt(max(squared, np.float32(1e-12)))


@njit(nogil=True, cache=True)
def _may(number: int, chosen: Chosen) -> bool:
    """Whether an id may be found."""
    if chosen.mode == 0:
        return True
    at = np.searchsorted(chosen.ids, number)
    return bool((at < len(chosen.ids) and chosen.ids[at] == number) == (chosen.mode == 1))


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _dot(a: Array, b: Array) -> Any:
    """⟨a, b⟩ of float32 vectors."""
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@njit(nogil=True, cache=True)
def rank(score_Qn: Array, place_Qn: Array, begin: int, end: int, n: int) -> None:
    """Bring the n best of every row's columns begin..end − 1 to column begin and on, sorted."""
    for q in range(len(score_Qn)):
        score, place = score_Qn[q, begin:end], place_Qn[q, begin:end]
        if n < end - begin:
            _keep_smallest(score, place, end - begin, n)
        _sort(score, place, n)


@njit(nogil=True, cache=True)
def partition(score_Qn: Array, place_Qn: Array, end: int, n: int) -> None:
    """Bring the n best of every row's first `end` columns to the front, in no order."""
    if n < end:
        for q in range(len(score_Qn)):
            _keep_smallest(score_Qn[q], place_Qn[q], end, n)


@njit(nogil=True, cache=True)
def residual_norms(r_ND: Array, lists: Array, c_LD: Array) -> Array:
    """‖c + r‖² − ‖c‖² of every entry, float32 [N], r being its look-up reconstruction."""
    out = np.empty(len(r_ND), np.float32)
    for i in range(len(r_ND)):
        c, r = c_LD[lists[i]], r_ND[i]
        value = np.float32(0)
        for d in range(len(r)):
            value += r[d] * (r[d] + np.float32(2) * c[d])
        out[i] = value
    return out
