"""Additive codebooks by least squares (method §6), and the kernels that the look-up decoders are fitted with.

Shapes: n codes, M symbols of a code, K codewords, D dimension, R rows of a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import run_parallel
from qinco_core.errors import UsageError

Array = NDArray[Any]
Floats = NDArray[np.float32]

# the normal equations and their factor take no more than this
_MOST_BYTES = 4 << 30
_RIDGES = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


def check_equations(M: int, K: int) -> None:
    """Check that the normal equations of M·K codewords can be kept.

    Raises:
        UsageError: they would take more than 4 GiB.
    """
    size = M * K
    if 2 * 8 * size * size > _MOST_BYTES:
        raise UsageError(
            f"additive codebooks of M = {M} times K = {K} codewords need {16 * size * size / 2**30:.0f} GiB "
            f"of normal equations, and {_MOST_BYTES >> 30} GiB is the limit; use a model with a smaller K"
        )


class NormalEquations:
    """Sums over codes and targets, from which the least-squares codebooks follow.

    Only co-occurrence counts [M·K, M·K] and sums of targets [M·K, D] are kept, whatever the number of codes.
    """

    def __init__(self, M: int, K: int, D: int) -> None:
        """Start with nothing; errors as of `check_equations`."""
        check_equations(M, K)
        size = M * K
        self.shape = M, K, D
        self._counts = np.zeros((size, size))
        self._sums = np.zeros((size, D))

    def add(self, symbols_nM: Array, targets_nD: Floats) -> None:
        """Take n codes (any integer dtype) and what their codewords should sum to."""
        _count(symbols_nM, self.shape[1], self._counts)
        for m, k_n in enumerate(symbols_nM.T):
            first = m * self.shape[1]
            add_rows(targets_nD, k_n, self._sums[first : first + self.shape[1]], 0, self.shape[2])

    def solve(self, ridge: float) -> Floats:
        """The codebooks float32 [M, K, D] that minimise the squared error + ridge · Σ‖T‖²; `ridge` is above 0."""
        matrix = torch.from_numpy(self._counts.copy())
        matrix.diagonal().add_(ridge)
        solved = torch.cholesky_solve(torch.from_numpy(self._sums), torch.linalg.cholesky(matrix))
        return solved.numpy().astype(np.float32).reshape(self.shape)


def best_codebooks(equations: NormalEquations, symbols_nM: Array, targets_nD: Floats) -> tuple[Floats, float]:
    """The codebooks float32 [M, K, D] and the ridge that predict held-out targets best."""
    best: tuple[float, float, Floats] | None = None
    for ridge in _RIDGES:
        T_MKD = equations.solve(ridge)
        error = mean_square(targets_nD - additive_sums(T_MKD, symbols_nM))
        if best is not None and error >= best[0]:
            break  # the error has one minimum
        best = error, ridge, T_MKD
    assert best is not None
    return best[2], best[1]


def additive_sums(T_MKD: Floats, symbols_nM: Array) -> Floats:
    """Σ_m T_m[k_m] of every code: float32 [n, D]."""
    total = np.zeros((len(symbols_nM), T_MKD.shape[2]), np.float32)
    for table_KD, k_n in zip(T_MKD, symbols_nM.T, strict=True):
        subtract_rows(total, np.ascontiguousarray(k_n), -table_KD, 0, len(total))
    return total


def mean_square(gap_nD: Array) -> float:
    """The mean over rows of the squared norm."""
    return float(np.einsum("nd,nd->", gap_nD, gap_nD, dtype=np.float64)) / max(1, len(gap_nD))


def sum_by_row(values_nD: Floats, row_n: Array, R: int, plan: Plan) -> Floats:
    """The sums of the values of each row, float32 [R, D]; threads share the columns, so no two write to one place."""
    sums = np.zeros((R, values_nD.shape[1]), np.float32)
    spans = _spans(values_nD.shape[1], plan.threads)
    run_parallel(lambda span: add_rows(values_nD, row_n, sums, *span), spans, plan)
    return sums


def take_away(values_nD: Floats, row_n: Array, table_RD: Floats, plan: Plan) -> None:
    """Subtract from every value its row of the table, in place."""
    run_parallel(
        lambda span: subtract_rows(values_nD, row_n, table_RD, *span), _spans(len(values_nD), plan.threads), plan
    )


def _spans(size: int, parts: int) -> Sequence[tuple[int, int]]:
    edges = np.linspace(0, size, parts + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


@njit(nogil=True, cache=True)
def add_rows(values_nD: Array, row_n: Array, sums_RD: Array, first: int, last: int) -> None:
    """Add columns first to last (exclusive) of every value to its row of the sums."""
    for i in range(len(row_n)):
        row = row_n[i]
        for d in range(first, last):
            sums_RD[row, d] += values_nD[i, d]


@njit(nogil=True, cache=True)
def subtract_rows(values_nD: Array, row_n: Array, table_RD: Array, first: int, last: int) -> None:
    """Subtract from the values first to last (exclusive) their rows of the table."""
    for i in range(first, last):
        row = row_n[i]
        for d in range(values_nD.shape[1]):
            values_nD[i, d] -= table_RD[row, d]


@njit(nogil=True, cache=True)
def _count(symbols_nM: Array, K: int, counts: Array) -> None:
    n, M = symbols_nM.shape
    for i in range(n):
        for a in range(M):
            row = a * K + symbols_nM[i, a]
            for b in range(M):
                counts[row, b * K + symbols_nM[i, b]] += 1
