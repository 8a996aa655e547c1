from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_core.errors import DimensionError, UsageError
from qinco_core.evaluation import neighbors
from qinco_core.evaluation.metrics import recall_at
from qinco_core.evaluation.neighbors import exact_neighbors


def by_definition(xb, xq, k):
    """Neighbours by differences in integers; a stable sort gives ties to the lower id."""
    distances = np.square(xq[:, None].astype(np.int64) - xb[None].astype(np.int64)).sum(axis=2)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


def test_real_vectors_match_the_definition(base, queries):
    xb = base[:3000].astype(np.uint8)
    ids, distances = exact_neighbors([xb[:1000], xb[1000:1001], xb[1001:]], queries[:20], 50)
    expected_ids, expected = by_definition(xb, queries[:20], 50)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(distances, expected)
    assert ids.dtype == np.int64
    assert distances.dtype == np.float32


def test_the_shipped_ground_truth_is_found(base, queries, truth):
    ids, _ = exact_neighbors([base], queries, 10)
    assert recall_at(ids, truth, ks=(1, 10)) == pytest.approx({1: 1.0, 10: 1.0}, abs=0.011)


@given(
    xb=st.lists(st.tuples(*[st.integers(0, 2)] * 2), max_size=30),
    cut=st.integers(0, 30),
    k=st.integers(1, 12),
    rows=st.integers(1, 40),
    entries=st.integers(1, 60),
)
def test_ties_blocks_and_chunks(xb, cut, k, rows, entries):
    xb = np.array(xb, dtype=np.uint8).reshape(-1, 2)
    xq = np.array([[0, 0], [1, 1], [2, 0]], dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "_ROWS", rows)
        patch.setattr(neighbors, "_ENTRIES", entries)
        ids, distances = exact_neighbors(iter([xb[:cut], xb[cut:]]), xq, k)
    expected_ids, expected = by_definition(xb, xq, k)
    n = min(k, len(xb))
    np.testing.assert_array_equal(ids[:, :n], expected_ids)
    np.testing.assert_array_equal(distances[:, :n], expected)
    assert (ids[:, n:] == -1).all()
    assert np.isinf(distances[:, n:]).all()


def test_a_large_offset_does_not_cancel(base, queries):
    near, _ = exact_neighbors([base[:500]], queries[:20], 5)
    far, distances = exact_neighbors([base[:500].astype(np.float64) + 1e5], queries[:20] + 1e5, 5)
    np.testing.assert_array_equal(near, far)
    _, expected = by_definition(base[:500], queries[:20], 5)
    np.testing.assert_allclose(distances, expected, rtol=1e-3)


def test_a_vector_is_its_own_nearest_at_distance_zero(base):
    unique = np.unique(base[:300], axis=0) / np.float32(7)
    ids, distances = exact_neighbors([unique], unique, 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(len(unique)))
    np.testing.assert_allclose(distances, 0, atol=1e-6)


def test_what_does_not_fit_is_refused(base):
    with pytest.raises(DimensionError, match="queries of dimension 64"):
        exact_neighbors([base[:10]], base[:2, :64], 1)
    with pytest.raises(DimensionError, match="queries of shape"):
        exact_neighbors([base[:10]], base[0], 1)
    with pytest.raises(UsageError, match="1 or more"):
        exact_neighbors([base[:10]], base[:2], 0)
