from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_core.errors import DimensionError, UsageError
from qinco_core.evaluation import metrics
from qinco_core.evaluation.metrics import ErrorSum, recall_at


def blurred(x):
    """A crude code: every entry rounded to a multiple of 16."""
    return np.rint(x / 16) * np.float32(16)


def test_errors_of_real_vectors_match_the_definition(base):
    xhat = blurred(base)
    error = ErrorSum()
    error.add(base, xhat)
    squared = np.square(base.astype(np.float64) - xhat).sum()
    assert error.count == len(base)
    assert error.mse == pytest.approx(squared / len(base), rel=1e-12)
    variance = base.astype(np.float64).var(axis=0).sum()
    assert error.relative == pytest.approx(squared / len(base) / variance, rel=1e-12)


@given(cuts=st.lists(st.integers(0, 500), max_size=6), entries=st.integers(1, 4000))
def test_blocks_do_not_change_the_result(base, cuts, entries):
    x, xhat = base[:500], blurred(base[:500])
    whole, parts = ErrorSum(), ErrorSum()
    whole.add(x, xhat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_ENTRIES", entries)
        bounds = [0, *sorted(cuts), 500]
        for start, stop in itertools.pairwise(bounds):
            parts.add(x[start:stop], xhat[start:stop])
    assert parts.count == whole.count
    assert parts.mse == pytest.approx(whole.mse, rel=1e-12)
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


def test_a_large_offset_does_not_cancel(base):
    # the sum of squares minus the squared sum would lose every digit here
    x = base[:400].astype(np.float64)
    near, far = ErrorSum(), ErrorSum()
    near.add(x, blurred(x))
    for start in range(0, 400, 7):
        far.add(x[start : start + 7] + 1e9, blurred(x[start : start + 7]) + 1e9)
    assert far.relative == pytest.approx(near.relative, rel=1e-5)


def test_bytes_do_not_wrap_around():
    error = ErrorSum()
    error.add(np.array([[0, 255]], dtype=np.uint8), np.array([[255, 0]], dtype=np.uint8))
    assert error.mse == 2 * 255**2


def test_the_mean_as_reconstruction_has_relative_error_one(base):
    error = ErrorSum()
    error.add(base, np.broadcast_to(base.mean(axis=0, dtype=np.float64), base.shape))
    assert error.relative == pytest.approx(1)


def test_equal_vectors_have_no_variance():
    ones = np.ones((3, 2))
    exact, wrong = ErrorSum(), ErrorSum()
    exact.add(ones, ones)
    wrong.add(ones, 2 * ones)
    assert exact.relative == 0
    assert wrong.relative == float("inf")


def test_what_does_not_fit_is_refused():
    error = ErrorSum()
    with pytest.raises(UsageError, match="no vectors"):
        _ = error.mse
    with pytest.raises(DimensionError, match="one shape"):
        error.add(np.ones((3, 2)), np.ones((1, 2)))
    error.add(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(DimensionError, match="dimension 3 after"):
        error.add(np.ones((3, 3)), np.ones((3, 3)))


def test_recall_counts_the_first_true_neighbour():
    found = np.array([[5, 1, 2], [9, 4, 7], [8, 8, 3], [-1, -1, -1]])
    truth = np.array([[5, 9], [4, 9], [6, 8], [-1, 0]])
    assert recall_at(found, truth, ks=(1, 2, 3)) == {1: 0.25, 2: 0.5, 3: 0.5}


def test_recall_leaves_out_what_the_results_cannot_tell():
    assert set(recall_at(np.zeros((1, 10), int), np.zeros((1, 1), int))) == {1, 10}


@given(st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_recall_never_falls_with_k(queries, results, random):
    found = np.array([random.sample(range(40), results) for _ in range(queries)])
    truth = np.array([[random.randrange(40)] for _ in range(queries)])
    recalls = list(recall_at(found, truth, ks=range(1, results + 1)).values())
    assert recalls == sorted(recalls)
    assert recalls[-1] == np.mean([t[0] in f for f, t in zip(found, truth, strict=True)])


def test_recall_refuses_what_does_not_fit():
    with pytest.raises(DimensionError, match="one row a query"):
        recall_at(np.zeros((2, 3), int), np.zeros((3, 3), int))
    with pytest.raises(UsageError, match="k of 1 or more"):
        recall_at(np.zeros((2, 3), int), np.zeros((2, 3), int), ks=(0,))
    with pytest.raises(UsageError, match="at least one query"):
        recall_at(np.zeros((0, 3), int), np.zeros((0, 3), int))
