"""Selecting the best of many scores, compiled by numba; each function works for one thread and lets others run.

Shapes: Q queries, X scores of a row, n that are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

# scores looked at together before any of them is compared with the worst that is kept
_BLOCK = 64


@njit(nogil=True, cache=True)
def keep_smallest(score: Array, place: Array, count: int, n: int) -> None:
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
def sort(score: Array, place: Array, count: int) -> None:
    """Sort the first `count` scores with their places, ascending; of equal ones the lower place first."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):  # Ciura's gaps: the lists are short
        for i in range(gap, count):
            s, p, j = score[i], place[i], i
            while j >= gap and (score[j - gap] > s or (score[j - gap] == s and place[j - gap] > p)):
                score[j], place[j] = score[j - gap], place[j - gap]
                j -= gap
            score[j], place[j] = s, p


@njit(nogil=True, cache=True)
def any_below(score: Array, worst: Any) -> bool:
    """Whether one score is below `worst`; without branches, so that it is a few vector instructions."""
    found = np.int32(0)
    for i in range(len(score)):
        found |= np.int32(score[i] < worst)
    return bool(found != 0)


@njit(nogil=True, cache=True)
def room_for(n: int, block: int) -> tuple[Array, Array]:
    """Scores and places to `take` into: for n that are kept, and blocks of so many."""
    size = n + n // 2 + 4 + block + 1
    return np.empty(size, np.float32), np.empty(size, np.int64)


@njit(nogil=True, cache=True)
def take(block: Array, first: int, score: Array, place: Array, count: int, worst: Any, n: int) -> tuple[int, Any]:
    """Put the scores of a block that are below `worst`, at the places from `first` on, behind the `count` there are.

    When there are half as many again as n they are cut to the n smallest. Returns how many there are, and the worst
    that is of use from now on.
    """
    if not any_below(block, worst):
        return count, worst
    for i in range(len(block)):
        # written first and counted after: no branch to mispredict
        score[count], place[count] = block[i], first + i
        count += block[i] < worst
    if count > n + n // 2 + 4:
        keep_smallest(score, place, count, n)
        return n, score[:n].max()
    return count, worst


@njit(nogil=True, cache=True)
def cut(score: Array, place: Array, count: int, n: int) -> int:
    """Cut what `take` has taken to the n smallest; returns how many there are."""
    if count > n:
        keep_smallest(score, place, count, n)
    return min(count, n)


@njit(nogil=True, cache=True)
def _bound(row: Array, n: int, lane: Array) -> Any:
    """A bound just above the n smallest: the n-th of the minima of as many parts of the row as `lane` has places."""
    X, width = len(row), len(lane)
    if 4 * width > X:
        return np.float32(np.inf)
    lane[:] = row[:width]
    for first in range(width, X - width + 1, width):
        part = row[first : first + width]
        for i in range(width):
            lane[i] = part[i] if part[i] < lane[i] else lane[i]
    keep_smallest(lane, np.empty(width, np.uint8), width, n)
    return np.nextafter(lane[:n].max(), np.float32(np.inf))


@njit(nogil=True, cache=True)
def smallest(score_QX: Array, n: int, place_Qn: Array) -> None:
    """Where the n smallest of every row stand, ascending; −1 in place of those that are infinite or NaN."""
    Q, X = score_QX.shape
    score, place = room_for(n, _BLOCK)
    lane = np.empty(max(32, 2 * n), np.float32)
    for q in range(Q):
        row, count = score_QX[q], 0
        worst = _bound(row, n, lane)
        for first in range(0, X, _BLOCK):
            count, worst = take(row[first : first + _BLOCK], first, score, place, count, worst, n)
        count = cut(score, place, count, n)
        sort(score, place, count)
        place_Qn[q, :count], place_Qn[q, count:] = place[:count], -1


@njit(nogil=True, cache=True)
def rank(score_Qn: Array, place_Qn: Array, begin: int, end: int, n: int) -> None:
    """Bring the n best of every row's columns begin..end − 1 to column begin and on, sorted."""
    for q in range(len(score_Qn)):
        score, place = score_Qn[q, begin:end], place_Qn[q, begin:end]
        if n < end - begin:
            keep_smallest(score, place, end - begin, n)
        sort(score, place, n)


@njit(nogil=True, cache=True)
def partition(score_Qn: Array, place_Qn: Array, end: int, n: int) -> None:
    """Bring the n best of every row's first `end` columns to the front, in no order."""
    if n < end:
        for q in range(len(score_Qn)):
            keep_smallest(score_Qn[q], place_Qn[q], end, n)
