"""The coarse search: exact against a plain reference, the graph against the exact one."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import faiss
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from qinco_core.errors import (
    ArtifactError,
    DependencyError,
    DeviceError,
    DimensionError,
    InputNotFoundError,
    OutputExistsError,
    UsageError,
)
from qinco_core.index.coarse import Coarse
from qinco_core.vectors import open_vectors


@pytest.fixture(scope="module")
def vectors(sift_learn):
    """4,000 real vectors, uint8."""
    with open_vectors(sift_learn, limit=4000) as file:
        return file.read(0, 4000)


@pytest.fixture(scope="module")
def coarse(vectors):
    """1,000 of them as centroids."""
    return Coarse(vectors[::4].astype(np.float32), threads=2, device="cpu")


def reference(x, centroids):
    """All squared distances, in float64."""
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    return np.square(x).sum(1)[:, None] - 2 * x @ centroids.T + np.square(centroids).sum(1)


def check(found, x, centroids, nprobe, tolerance):
    """Nearest first, with the right distances, and none nearer left out."""
    lists, gaps = found
    distances = reference(x, centroids)
    assert lists.dtype == np.int32 and gaps.dtype == np.float32
    assert lists.shape == gaps.shape == (len(x), nprobe)
    assert all(len(set(row)) == nprobe for row in lists.tolist())
    assert (np.diff(gaps) >= 0).all()
    np.testing.assert_allclose(gaps, np.take_along_axis(distances, lists, 1), atol=tolerance, rtol=1e-5)
    np.testing.assert_allclose(gaps, np.sort(distances)[:, :nprobe], atol=tolerance, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 300),
    st.integers(1, 20),
    st.integers(0, 40),
    st.sampled_from([0.0, 1000.0]),
    st.booleans(),
    st.data(),
)
def test_exact_is_exact(K, D, N, offset, with_faiss, data):
    rng = np.random.default_rng(K + D)
    centroids = (rng.normal(size=(K, D)) + offset).astype(np.float32)
    x = (rng.normal(size=(N, D)) + offset).astype(np.float32)
    nprobe = data.draw(st.integers(1, K))
    coarse = Coarse(centroids, threads=1, device="cpu")
    if not with_faiss:
        coarse._faiss = None  # as on a GPU
    check(coarse.nearest(x, nprobe), x, centroids, nprobe, tolerance=1e-3)


@pytest.mark.parametrize("with_faiss", [True, False])
def test_real_vectors_in_many_chunks_and_blocks(vectors, with_faiss, monkeypatch):
    monkeypatch.setattr("qinco_core.index.coarse._COLUMNS", 300)
    coarse = Coarse(vectors[::4].astype(np.float32), threads=2, device="cpu")
    if not with_faiss:
        coarse._faiss = None
    check(coarse.nearest(vectors[:700], 5), vectors[:700], coarse.centroids, 5, tolerance=0.5)


def test_without_faiss_the_exact_search_still_works(monkeypatch, coarse, vectors):
    monkeypatch.setitem(sys.modules, "faiss", None)
    bare = Coarse(coarse.centroids, threads=1, device="cpu")
    check(bare.nearest(vectors[:50], 3), vectors[:50], coarse.centroids, 3, tolerance=0.5)
    with pytest.raises(DependencyError, match="qinco\\[cpu\\]"):
        bare.nearest(vectors[:50], 3, ef=8)


def test_what_goes_in_may_be_of_any_type(coarse, vectors):
    lists, gaps = coarse.nearest(vectors[:9], 4)
    for same in (vectors[:9].astype(np.float64), torch.from_numpy(vectors[:9]), vectors[:9].tolist()):
        found = coarse.nearest(same, 4)
        np.testing.assert_array_equal(found[0], lists)
        np.testing.assert_array_equal(found[1], gaps)


def test_the_graph_agrees_with_the_exact_search(coarse, vectors):
    assert coarse.agreement(vectors) > 0.995
    exact, _ = coarse.nearest(vectors[:500], 10)
    share = {}
    for ef in (1, 16, 128):
        lists, gaps = coarse.nearest(vectors[:500], 10, ef=ef)
        assert (np.diff(gaps) >= 0).all()
        true = np.take_along_axis(reference(vectors[:500], coarse.centroids), lists, 1)
        np.testing.assert_allclose(gaps, true, rtol=1e-5)
        share[ef] = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), lists.tolist(), strict=True)])
    assert share[1] <= share[16] <= share[128]
    assert share[128] > 0.99


def test_assign(coarse, vectors):
    lists = coarse.assign(vectors)
    assert lists.dtype == np.int32
    distances = reference(vectors[:200], coarse.centroids)
    np.testing.assert_array_equal(distances[np.arange(200), lists[:200]], distances.min(1))
    assert np.mean(coarse.assign(vectors, "hnsw") == lists) > 0.995


def test_equal_centroids_are_all_found_and_agree():
    """A graph has no links to most of many equal vectors."""
    centroids = np.repeat(np.eye(3, dtype=np.float32), [100, 1, 1], axis=0)
    coarse = Coarse(centroids, threads=1)
    lists, gaps = coarse.nearest(np.eye(3), 102, ef=1)
    assert (np.sort(lists) == np.arange(102)).all()
    assert (gaps[0] == np.repeat([0, 2], [100, 2])).all()
    one = np.eye(3)[:1].repeat(5, axis=0)
    assert coarse.agreement(one) == 1  # whichever of them it is


def test_searches_at_the_same_time_give_what_each_gives_alone(coarse, vectors):
    fresh = Coarse(coarse.centroids, threads=2)  # the graph is built by whoever comes first
    jobs = [(vectors[i : i + n], nprobe, ef) for i, (n, nprobe, ef) in enumerate([(1, 3, 0), (600, 5, 16)] * 8)]
    jobs += [(vectors[:300], 5, ef) for ef in (8, 200) * 4]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: fresh.nearest(*job), jobs))
    for job, (lists, gaps) in zip(jobs, found, strict=True):
        alone = fresh.nearest(*job)
        np.testing.assert_array_equal(lists, alone[0])
        np.testing.assert_array_equal(gaps, alone[1])
    assert faiss.omp_get_max_threads() >= 1 and fresh._graph.hnsw.efSearch == faiss.HNSW().efSearch


def test_the_settings_of_others_stay(coarse, vectors):
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    coarse.nearest(vectors, 3)
    coarse.nearest(vectors, 3, ef=8)
    Coarse(coarse.centroids[:50]).nearest(vectors[:2], 1, ef=4)
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before


def test_a_graph_on_disk(coarse, vectors, tmp_path):
    path = tmp_path / "hnsw.faiss"
    coarse.save_hnsw(path)
    with pytest.raises(OutputExistsError):
        coarse.save_hnsw(path)
    before = path.read_bytes()
    coarse.save_hnsw(path, force=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    read = Coarse(coarse.centroids, threads=1, hnsw_path=path)
    for found, wanted in zip(read.nearest(vectors[:99], 4, ef=9), coarse.nearest(vectors[:99], 4, ef=9), strict=True):
        np.testing.assert_array_equal(found, wanted)
    plain = faiss.read_index(str(path))  # for Faiss alone
    assert (plain.ntotal, plain.d) == (1000, 128)


@pytest.mark.parametrize("damage", ["cut", "other", "fewer", "foreign", "kind"])
def test_a_graph_that_does_not_fit(coarse, vectors, tmp_path, damage):
    path = tmp_path / "hnsw.faiss"
    centroids = coarse.centroids
    if damage == "foreign":
        path.write_bytes(b"no index")
    elif damage == "kind":
        flat = faiss.IndexFlatL2(128)
        flat.add(centroids)
        faiss.write_index(flat, str(path))
    else:
        coarse.save_hnsw(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other":
        centroids = centroids[::-1]
    elif damage == "fewer":
        centroids = centroids[1:]
    with pytest.raises(ArtifactError, match=r"hnsw\.faiss .*build it again"):
        Coarse(centroids, threads=1, hnsw_path=path).nearest(vectors[:2], 1, ef=8)


def test_calls_that_cannot_be(coarse, vectors, tmp_path):
    for nprobe in (0, -1, 1001):
        with pytest.raises(UsageError, match="nprobe"):
            coarse.nearest(vectors, nprobe)
    with pytest.raises(UsageError, match="ef"):
        coarse.nearest(vectors, 1, ef=-1)
    for x in (vectors[:, :64], vectors[0], np.empty((0, 3))):
        with pytest.raises(DimensionError, match="128"):
            coarse.nearest(x, 1)
    for value in (np.nan, np.inf, 1e200):
        for ef in (0, 8):
            with pytest.raises(UsageError, match="NaN or infinity"):
                coarse.nearest(np.full((1, 128), value), 1, ef=ef)
    with pytest.raises(UsageError, match="exact and hnsw"):
        coarse.assign(vectors, "best")
    with pytest.raises(InputNotFoundError):
        Coarse(coarse.centroids, hnsw_path=tmp_path / "absent")
    with pytest.raises(DeviceError):
        Coarse(coarse.centroids, threads=0)
    for centroids in (np.ones(3, np.float32), np.ones((0, 3), np.float32)):
        with pytest.raises(DimensionError):
            Coarse(centroids)


def test_no_vectors_give_no_lists(coarse):
    for ef in (0, 8):
        lists, gaps = coarse.nearest(np.empty((0, 128)), 3, ef=ef)
        assert lists.shape == gaps.shape == (0, 3)
    assert coarse.agreement(np.empty((0, 128))) == 1
