"""Searching on a cluster: what one index finds, whatever happens to the actors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray_cluster import kill, processes

from qinco_core import Index, SearchConfig
from qinco_core.api import Codec
from qinco_core.errors import LineageError, UsageError
from qinco_core.index.sharded import ShardedIndex
from qinco_core.scale.search import on_cluster
from qinco_core.store import Store
from qinco_core.vectors import open_vectors

pytestmark = pytest.mark.usefixtures("cluster")

ACTOR = "ray::_Shard"
FEW = SearchConfig(nprobe=8, n_mid=100, n_short=30)
ALL = SearchConfig(nprobe=64, n_mid=0, n_short=50)


@pytest.fixture(scope="module")
def whole(index_store: Store, codec: Codec) -> Index:
    return Index.open(index_store.index, model=codec)


@pytest.fixture(scope="module")
def folder(index_store: Store, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "index"
    Index.build(folder, codec, index_store.codes("base"), pairwise=index_store.pairwise, shards=2).close()
    return folder


@pytest.fixture(scope="module")
def spread(folder: Path, codec: Codec) -> Iterator[ShardedIndex]:
    with Index.open(folder, model=codec) as index, on_cluster(index, threads=1) as spread:
        yield spread


@pytest.fixture(scope="module")
def xq(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_query.fvecs")) as file:
        return file.read(0, 40)


def check(index: Index, whole: Index, xq: np.ndarray, params: SearchConfig = FEW, metric: str = "l2") -> None:
    """Equal distances, and equal ids but for a few whose distances are equal."""
    D, I = index.search(xq, 10, params, metric=metric)
    wanted = whole.search(xq, 10, params, metric=metric)
    np.testing.assert_array_equal(D, wanted[0])
    assert np.mean(wanted[1] == I) > 0.97


@pytest.mark.parametrize("metric", ["l2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ip", "cosine"))])
@pytest.mark.parametrize("params", [FEW, ALL], ids=["few", "all"])
def test_actors_find_what_one_index_finds(spread, whole, xq, params, metric):
    check(spread, whole, xq, params, metric)


def test_original_vectors_and_chosen_ids(spread, whole, base, xq):
    params = SearchConfig(nprobe=16, n_short=60, n_exact=30, rerank="exact")
    with open_vectors(base) as originals:
        given = {"originals": originals, "deny": np.arange(0, 10_000, 3)}
        np.testing.assert_array_equal(
            spread.search(xq, 10, params, **given)[0], whole.search(xq, 10, params, **given)[0]
        )


def test_an_actor_lost_between_two_searches_is_restarted(spread, whole, xq):
    check(spread, whole, xq)
    lost = kill(ACTOR)
    check(spread, whole, xq)
    assert lost not in processes(ACTOR) and len(processes(ACTOR)) == 2


def test_an_actor_lost_during_a_search_is_restarted(spread, whole, xq, monkeypatch):
    lost: list[int] = []
    shards = spread.scorer._shards
    each = type(shards).each

    def after_the_scan(self, method, arguments, q=None):
        if method == "rescore" and not lost:
            lost.append(kill(ACTOR))
        return each(self, method, arguments, q)

    monkeypatch.setattr(type(shards), "each", after_the_scan)
    check(spread, whole, xq)
    assert lost and lost[0] not in processes(ACTOR)


@pytest.mark.slow
def test_actors_go_when_the_search_ends(folder, codec, xq, whole):
    before = set(processes(ACTOR))
    with Index.open(folder, model=codec) as index, on_cluster(index, threads=1) as spread:
        check(spread, whole, xq[:5])
        own = set(processes(ACTOR)) - before
        assert len(own) == 2
    deadline = time.monotonic() + 30
    while own & set(processes(ACTOR)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_is_refused(whole, folder, codec, index_store, xq, monkeypatch):
    with pytest.raises(UsageError, match="qinco index --shards"), on_cluster(whole):
        pass
    with Index.open(folder, model=codec) as index, on_cluster(index, threads=1) as spread:
        Index.build(folder, codec, index_store.codes("base"), pairwise=index_store.pairwise, force=True).close()
        with pytest.raises((LineageError, FileNotFoundError), match="shard-00"):
            spread.search(xq)
