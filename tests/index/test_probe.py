"""Lists are chosen through groups of centroids nearly as well as by comparing all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qinco_core.index.probe import Probe, group_centroids
from qinco_core.vectors import open_vectors

L = 2048


@pytest.fixture(scope="module")
def centroids(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn, limit=L) as file:
        return file.read(0, L).astype(np.float32)


@pytest.fixture(scope="module")
def xq(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_query.fvecs")) as file:
        return file.read(0, 200).astype(np.float32)


@pytest.fixture(scope="module")
def probe(centroids: np.ndarray) -> Probe:
    return Probe(centroids, group_centroids(centroids, 2), torch.float32)


def gaps(xq: np.ndarray, centroids: np.ndarray, lists: np.ndarray) -> np.ndarray:
    return np.square(xq[:, None].astype(float) - centroids[lists]).sum(2)


@pytest.mark.parametrize("nprobe", [1, 5, 40])
def test_groups_find_nearly_all(probe, centroids, xq, nprobe):
    exact = np.argsort(gaps(xq, centroids, np.arange(L)[None]), axis=1)[:, :nprobe]
    found = probe.nearest(xq, nprobe, "l2")
    assert found.shape == (200, nprobe) and found.dtype == np.int32
    distances = gaps(xq, centroids, found)
    assert (np.diff(distances, axis=1) >= -1e-3 * distances[:, :-1]).all()
    shared = [len(np.intersect1d(a, b)) == len(set(a)) for a, b in zip(found, found, strict=True)]
    assert all(shared)
    agreed = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
    assert agreed > 0.95


def test_one_query_at_a_time_finds_the_same(probe, xq):
    together = probe.nearest(xq[:20], 3, "l2")
    alone = np.concatenate([probe.nearest(q[None], 3, "l2") for q in xq[:20]])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("grouped", [True, False])
def test_all_are_compared_where_groups_do_not_pay(probe, centroids, xq, grouped, metric):
    nprobe = 600
    probe = probe if grouped else Probe(centroids, None, torch.float32)
    score = gaps(xq, centroids, np.arange(L)[None]) if metric == "l2" else -(xq.astype(float) @ centroids.T)
    found = np.take_along_axis(score, probe.nearest(xq, nprobe, metric).astype(np.int64), 1)
    np.testing.assert_allclose(found, np.sort(score, axis=1)[:, :nprobe], rtol=1e-3)


def test_by_cosine_the_direction_of_a_centroid_counts(centroids, xq):
    scaled = centroids * np.exp(np.random.default_rng(0).normal(size=(L, 1))).astype(np.float32)
    q = xq / np.linalg.norm(xq, axis=1, keepdims=True)
    score = -(q.astype(float) @ (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).T)
    found = Probe(scaled, None, torch.float32).nearest(q, 5, "cosine").astype(np.int64)
    np.testing.assert_allclose(np.take_along_axis(score, found, 1), np.sort(score, axis=1)[:, :5], atol=1e-5)


def test_few_centroids_are_one_group(centroids):
    assert not group_centroids(centroids[:500], 1).any()
    groups = group_centroids(centroids, 1)
    assert len(np.unique(groups)) > 40


def test_queries_that_cannot_be_compared_find_no_list(probe):
    far = np.full((2, 128), 1e30, np.float32)
    far[1] = 3
    found = probe.nearest(far, 4, "l2")
    assert (found[1] >= 0).all()
    assert ((found[0] >= -1) & (found[0] < L)).all()
