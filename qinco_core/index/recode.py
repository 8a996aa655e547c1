"""Symbols for the lists of an IVF: residual k-means of their centroids, weighted by their sizes (method §6).

Shapes: L lists, D dimension, X books.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.precision import Plan
from qinco_core.index.additive import sum_by_row
from qinco_core.index.coarse import Coarse

Floats = NDArray[np.float32]

BOOKS, BOOK_SIZE = 5, 256
_ITERATIONS = 12


def recode(
    centroids_LD: Floats, sizes_L: NDArray[Any], most: int, plan: Plan, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """The symbols of every list, uint16 [L, X], coarse to fine, in X = 5 books of at most `most` codewords.

    Args:
        centroids_LD: the lists' centroids, float32.
        sizes_L: how many vectors each list has; one more is counted, so that none weighs nothing.
        most: codewords of a book at most; at most 256 in any case.
        plan: threads.
        rng: the source of randomness.
    """
    size = min(most, BOOK_SIZE, len(centroids_LD))
    weight_L = sizes_L + 1.0
    left, symbols = centroids_LD.astype(np.float32), np.empty((len(centroids_LD), BOOKS), np.uint16)
    for x in range(BOOKS):
        book = left[rng.choice(len(left), size, replace=False, p=weight_L / weight_L.sum())]
        for _ in range(_ITERATIONS):
            k_L = _nearest(left, book, plan)
            mass = np.bincount(k_L, weight_L, minlength=size)
            sums = sum_by_row(left * weight_L[:, None].astype(np.float32), k_L, size, plan)
            book = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-9)[:, None], book).astype(np.float32)
        symbols[:, x] = k_L = _nearest(left, book, plan)
        left = left - book[k_L]
    return symbols


def _nearest(x_ND: Floats, book_KD: Floats, plan: Plan) -> NDArray[np.int32]:
    return Coarse(book_KD, threads=plan.threads, device=plan.device.type).assign(x_ND)
