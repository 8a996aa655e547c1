"""Additive codebooks: the least-squares solution, whatever the batches, within bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_core.codec.precision import plan
from qinco_core.errors import UsageError
from qinco_core.index.additive import (
    NormalEquations,
    additive_sums,
    best_codebooks,
    mean_square,
    sum_by_row,
    take_away,
)

M, K, D = 3, 8, 5


def problem(n: int, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, the sums that true codebooks give, and the codebooks."""
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, K, (n, M)).astype(np.uint8)
    books = rng.standard_normal((M, K, D)).astype(np.float32)
    sums = sum(books[m, symbols[:, m]] for m in range(M))
    return symbols, (sums + noise * rng.standard_normal((n, D))).astype(np.float32), books


def solved(symbols: np.ndarray, targets: np.ndarray, ridge: float = 1e-6, batch: int = 1000) -> np.ndarray:
    equations = NormalEquations(M, K, D)
    for at in range(0, len(symbols), batch):
        equations.add(symbols[at : at + batch], targets[at : at + batch])
    return equations.solve(ridge)


def test_sums_are_those_of_the_chosen_codewords():
    symbols, sums, books = problem(50)
    np.testing.assert_allclose(additive_sums(books, symbols), sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(additive_sums(books, symbols.astype(np.int32)), sums, rtol=1e-5, atol=1e-6)


def test_true_codebooks_are_found_up_to_what_sums_cannot_tell():
    symbols, sums, _ = problem(2000)
    fresh = problem(500, seed=0)[0][::-1]
    books = solved(symbols, sums)
    np.testing.assert_allclose(additive_sums(books, symbols), sums, atol=1e-3)
    np.testing.assert_allclose(additive_sums(books, fresh), additive_sums(problem(2000)[2], fresh), atol=1e-3)


def test_the_solution_is_that_of_dense_ridge_regression():
    symbols, targets, _ = problem(300, noise=1.0)
    dense = np.zeros((300, M * K))
    for m in range(M):
        dense[np.arange(300), m * K + symbols[:, m]] = 1
    for ridge in (0.3, 20.0):
        wanted = np.linalg.solve(dense.T @ dense + ridge * np.eye(M * K), dense.T @ targets).reshape(M, K, D)
        np.testing.assert_allclose(solved(symbols, targets, ridge), wanted, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 400), seed=st.integers(0, 1000))
def test_batches_do_not_matter(batch: int, seed: int):
    symbols, targets, _ = problem(200, seed, noise=0.5)
    np.testing.assert_allclose(solved(symbols, targets, 1.0, batch), solved(symbols, targets, 1.0, 200), atol=1e-5)


def test_symbols_that_never_occur_get_zeros():
    symbols, targets, _ = problem(200)
    symbols = symbols % (K - 1)
    assert np.abs(solved(symbols, targets, 1.0)[:, K - 1]).max() < 1e-9


def test_the_ridge_is_the_one_that_held_out_targets_like():
    symbols, targets, _ = (part[:60] for part in problem(2000, noise=3.0))
    held, wanted, _ = problem(2000, noise=3.0)
    equations = NormalEquations(M, K, D)
    equations.add(symbols, targets)
    books, ridge = best_codebooks(equations, held, wanted)
    assert ridge > 0.1
    error = mean_square(wanted - additive_sums(books, held))
    assert error < mean_square(wanted - additive_sums(equations.solve(0.1), held))
    assert error < mean_square(wanted)


def test_equations_that_are_too_large_are_refused_before_memory_is_taken():
    with pytest.raises(UsageError, match=r"M = 8 times K = 65536 .* GiB is the limit; use a model with a smaller K"):
        NormalEquations(8, 65536, 128)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sums_by_row_and_their_removal(threads: int):
    rng = np.random.default_rng(1)
    values, row = rng.standard_normal((1000, 7)).astype(np.float32), rng.integers(0, 40, 1000)
    machine = plan("cpu", threads=threads)
    wanted = np.zeros((50, 7), np.float64)
    np.add.at(wanted, row, values)
    sums = sum_by_row(values, row, 50, machine)
    np.testing.assert_allclose(sums, wanted, atol=1e-4)
    left = values.copy()
    take_away(left, row, sums, machine)
    np.testing.assert_allclose(left, values - wanted[row], atol=1e-4)
