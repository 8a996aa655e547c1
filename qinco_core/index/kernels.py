"""The inner loops of search, compiled by numba; each works for one thread and lets others run meanwhile.

Shapes: Q queries, P probed lists, N entries of the index in the order of their lists, W bytes of a packed code,
M symbols, K codewords, n candidates kept, D dimension, T pair tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qinco_core.codec.select import cut, room_for, take
from qinco_core.index.pairwise import AHEAD, add_rows, find_rows
from qinco_core.index.prefetch import fetch_rows

Array = NDArray[Any]

# entries scored together before any of them is compared with the worst that is kept
_BLOCK = 128
# entries of a list that are asked for ahead, at most: more would be gone from the cache again
_ASKED = 1024


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
def _look_up(table: Array, codes: Array, words: Array, first: int, size: int, M: int, bits: int, out: Array) -> None:
    """out[i] = Σ_m table[m·K + symbol m] of the entries first + i."""
    if bits != 8:
        for i in range(size):
            total = np.float32(0)
            for m in range(M):
                total += table[(m << bits) + _symbol(codes[first + i], m, bits)]
            out[i] = total
        return
    whole = words.shape[1]
    out[:size] = 0
    for w in range(whole):
        _look_up_word(table[2048 * w : 2048 * (w + 1)], words[first : first + size, w], out)
    for m in range(8 * whole, M):
        part = table[256 * m : 256 * (m + 1)]
        for i in range(size):
            out[i] += part[codes[first + i, m]]


@njit(nogil=True, cache=True)
def _look_up_word(table: Array, words: Array, out: Array) -> None:
    """out[i] += Σ table[256·j + byte j of word i]; all indices unsigned, for a signed one is tested for its sign."""
    byte = np.uint64(255)
    for i in range(len(words)):
        word = words[i]
        low = table[word & byte] + table[np.uint64(256) + (word >> np.uint64(8) & byte)]
        mid = (
            table[np.uint64(512) + (word >> np.uint64(16) & byte)]
            + table[np.uint64(768) + (word >> np.uint64(24) & byte)]
        )
        high = (
            table[np.uint64(1024) + (word >> np.uint64(32) & byte)]
            + table[np.uint64(1280) + (word >> np.uint64(40) & byte)]
        )
        top = table[np.uint64(1536) + (word >> np.uint64(48) & byte)] + table[np.uint64(1792) + (word >> np.uint64(56))]
        out[i] += (low + mid) + (high + top)


class Arrays(NamedTuple):
    """What a scan reads of an index.

    Attributes:
        centroids, centroid_norms: float32 [L, D], and their squared norms [L].
        offsets: of the lists, int64 [L + 1].
        codes, words: packed codes uint8 [N, W], and the same as uint64 [N, W // 8] where 8 divides W.
        norms: residual norms, uint8 or uint16 [N] (see `index.build`).
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
        low, step: residual norms are low + step · what is stored.
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
    negative inner products Σ table − ⟨q, c⟩; or these divided by the length √(‖c‖² + r). ‖q − c‖² is computed as it
    stands: far from the origin ‖q‖² and ‖c‖² have no digits left for it.

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
    score, place = room_for(n, _BLOCK)
    block = np.empty(_BLOCK, np.float32)
    centroids, centroid_norms, offsets, codes, words, norms, ids = index
    M, bits, metric = look.M, look.bits, look.metric
    low, step = np.float32(look.low), np.float32(look.step)
    mode = chosen.mode
    looks = lists_QP.ravel()
    for q in range(len(q_QD)):
        count, worst = 0, np.float32(np.inf)
        query, table = q_QD[q], table_QX[q]
        fetch_rows(table_QX, q + 1, min(q + 2, len(table_QX)))
        for p in range(lists_QP.shape[1]):
            number = lists_QP[q, p]
            if number < 0:
                continue
            next_look = q * lists_QP.shape[1] + p + 1
            _ask_for_list(index, looks[next_look] if next_look < len(looks) else -1)
            length = centroid_norms[number] + low
            base = _gap(query, centroids[number]) + low if metric == 0 else -dot(query, centroids[number])
            end = offsets[number + 1]
            for first in range(offsets[number], end, _BLOCK):
                size = min(_BLOCK, end - first)
                _look_up(table, codes, words, first, size, M, bits, block)
                _finish(block[:size], base, length, step, norms[first : first + size], metric)
                if mode:
                    _leave_out(block[:size], ids[first : first + size], chosen)
                count, worst = take(block[:size], first, score, place, count, worst, n)
        count = cut(score, place, count, n)
        score_Qn[q, :count], place_Qn[q, :count] = score[:count], place[:count]
        score_Qn[q, count:], place_Qn[q, count:] = np.inf, -1


@njit(nogil=True, cache=True)
def _ask_for_list(index: Arrays, number: int) -> None:
    """Ask for what a scan reads of a list, or first reads of a long one; −1: of none."""
    if number >= 0:
        first = index.offsets[number]
        last = min(first + _ASKED, index.offsets[number + 1])
        fetch_rows(index.codes, first, last)
        fetch_rows(index.norms, first, last)
        fetch_rows(index.centroids, number, number + 1)


@njit(nogil=True, cache=True)
def rescore(
    q_QD: Array,
    index: Arrays,
    look: Look,
    pair_norms: Array,
    pair_low: float,
    pair_step: float,
    list_symbols: Array,
    pairs: Array,
    tables: Array,
    scale: float,
    score_Qn: Array,
    place_Qn: Array,
) -> None:
    """From the scan's scores to those of the pairwise decoder, in place.

    Args:
        q_QD: queries, float32.
        index: the index.
        look: how the scan scored.
        pair_norms: residual norms of the pairwise decoder, uint8 or uint16 [N].
        pair_low: what 0 stands for.
        pair_step: and every 1 more.
        list_symbols: of the lists, [L, X].
        pairs: the two streams of each table, [2, T].
        tables: int8 [T, K², D], in units of `scale`.
        scale: see there.
        score_Qn: scores; those of missing entries stay.
        place_Qn: entries, −1 where one is missing.
    """
    centroid_norms, offsets, codes, norms = index.centroid_norms, index.offsets, index.codes, index.norms
    M, bits, metric = look.M, look.bits, look.metric
    low, step = np.float32(look.low), np.float32(look.step)
    scale_pair, first_pair, unit = np.float32(pair_step), np.float32(pair_low), np.float32(scale)
    n, total = place_Qn.shape[1], np.empty(q_QD.shape[1], np.int16)
    stream, row_AT = np.empty(M + list_symbols.shape[1], np.uint16), np.empty((AHEAD, pairs.shape[1]), np.int64)
    number_A = np.empty(AHEAD, np.int64)
    for q in range(len(q_QD)):
        for i in range(n + AHEAD - 1):
            place = place_Qn[q, i] if i < n else -1
            if place >= 0:
                number_A[i % AHEAD] = number = np.searchsorted(offsets, place, "right") - 1
                for m in range(M):
                    stream[m] = codes[place, m] if bits == 8 else _symbol(codes[place], m, bits)
                stream[M:] = list_symbols[number]
                find_rows(stream, pairs, 1 << bits, tables, row_AT[i % AHEAD])
            i -= AHEAD - 1
            place = place_Qn[q, i] if i >= 0 else -1
            if place < 0:
                continue
            number = number_A[i % AHEAD]
            add_rows(row_AT[i % AHEAD], tables, total)
            inner = unit * dot(q_QD[q], total)
            before = low + step * np.float32(norms[place])
            after = first_pair + scale_pair * np.float32(pair_norms[place])
            score = score_Qn[q, i]
            if metric == 0:
                score += after - before - np.float32(2) * inner
            elif metric == 1:
                score -= inner
            else:
                c = centroid_norms[number]
                raw = score * np.sqrt(max(c + before, np.float32(1e-12))) - inner
                score = raw / np.sqrt(max(c + after, np.float32(1e-12)))
            score_Qn[q, i] = score


@njit(nogil=True, cache=True)
def _finish(block: Array, base: Any, length: Any, step: Any, norms: Array, metric: int) -> None:
    """From sums of look-ups to scores."""
    if metric == 0:
        for i in range(len(block)):
            block[i] += base + step * np.float32(norms[i])
    elif metric == 1:
        for i in range(len(block)):
            block[i] += base
    else:
        for i in range(len(block)):
            squared = length + step * np.float32(norms[i])
            block[i] = (block[i] + base) / np.sqrt(max(squared, np.float32(1e-12)))


@njit(nogil=True, cache=True)
def _leave_out(block: Array, ids: Array, chosen: Chosen) -> None:
    """Infinity for scores of entries that may not be found."""
    for i in range(len(block)):
        if _listed(ids[i], chosen.ids) != (chosen.mode == 1):
            block[i] = np.inf


@njit(nogil=True, cache=True)
def _listed(number: int, ids: Array) -> Any:
    """Whether sorted ids hold a number."""
    at = np.searchsorted(ids, number)
    return at < len(ids) and ids[at] == number


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def dot(a: Array, b: Array) -> Any:
    """⟨a, b⟩ of a float32 vector and one of any type."""
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * np.float32(b[d])
    return total


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _gap(a: Array, b: Array) -> Any:
    """‖a − b‖² of float32 vectors."""
    total = np.float32(0)
    for d in range(len(a)):
        total += (a[d] - b[d]) * (a[d] - b[d])
    return total


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
