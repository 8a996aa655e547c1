"""An index in shards finds what the same codes in one index find, and what it cannot do it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from qinco_core import Index, SearchConfig
from qinco_core.api import Codec
from qinco_core.errors import ArtifactError, OutputExistsError, UsageError
from qinco_core.index import rewrite
from qinco_core.index.sharded import ShardedIndex
from qinco_core.store import Store, verify
from qinco_core.vectors import open_vectors

POINTS = {
    "scan": SearchConfig(nprobe=4, rerank="none"),
    "pairwise": SearchConfig(nprobe=8, n_mid=60, rerank="pairwise"),
    "qinco": SearchConfig(nprobe=8, n_mid=200, n_short=30),
    "all lists": SearchConfig(nprobe=64, n_mid=0, n_short=100),
}


@pytest.fixture(scope="module")
def codec(index_store: Store) -> Codec:
    return Codec.load(index_store.model, precision="float32", threads=2)


@pytest.fixture(scope="module")
def whole(index_store: Store, codec: Codec) -> Index:
    return Index.open(index_store.index, model=codec)


@pytest.fixture(scope="module")
def made(index_store: Store, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index in three shards."""
    folder = tmp_path_factory.mktemp("shards") / "index"
    Index.build(folder, codec, index_store.codes("base"), pairwise=index_store.pairwise, shards=3).close()
    return folder


@pytest.fixture(scope="module")
def sharded(made: Path, codec: Codec) -> Index:
    return Index.open(made, model=codec)


@pytest.fixture(scope="module")
def xq(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_query.fvecs")) as file:
        return file.read(0, 100)


def same(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> None:
    """Equal distances to the bit, and equal ids except where distances are."""
    np.testing.assert_array_equal(found[0], wanted[0])
    for row, (ids, others) in enumerate(zip(found[1], wanted[1], strict=True)):
        for distance in np.unique(wanted[0][row]):
            alike = wanted[0][row] == distance
            # of the last one's kind, others may be just as good
            assert alike[-1] or set(ids[alike]) == set(others[alike])


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("point", POINTS)
def test_shards_find_what_one_index_finds(whole, sharded, xq, point, metric):
    same(
        sharded.search(xq, 10, POINTS[point], metric=metric),
        whole.search(xq, 10, POINTS[point], metric=metric),
    )


def test_more_results_than_a_stage_scores_or_a_shard_has(whole, sharded, xq):
    for k, params in ((60, SearchConfig(nprobe=16, n_mid=50, n_short=20)), (4000, SearchConfig(nprobe=64, n_short=5))):
        same(sharded.search(xq[:9], k, params), whole.search(xq[:9], k, params))
    few = SearchConfig(nprobe=1, n_short=400, n_mid=800)
    D, I = sharded.search(xq[:9], 400, few)
    same((D, I), whole.search(xq[:9], 400, few))
    assert (I[:, -1] == -1).any() and np.isinf(D[I == -1]).all()


def test_original_vectors_and_chosen_ids(whole, sharded, sift_learn, xq):
    with open_vectors(sift_learn.with_name("sift_base.u8bin")) as originals:
        params = SearchConfig(nprobe=16, n_short=60, n_exact=30, rerank="exact")
        given = {"originals": originals, "allow": np.arange(0, 10_000, 3)}
        found = sharded.search_stages(xq, 10, params, **given)
        wanted = whole.search_stages(xq, 10, params, **given)
        same((found.distances, found.ids), (wanted.distances, wanted.ids))
        assert [stage.name for stage in found.stages] == [stage.name for stage in wanted.stages]
        assert (found.stages[0].ids == wanted.stages[0].ids).mean() > 0.99
    assert (found.ids[found.ids >= 0] % 3 == 0).all()


def test_ids_given_to_the_build_are_those_found(index_store, codec, tmp_path, xq):
    ids = np.random.default_rng(0).permutation(10_000) + (1 << 40)
    arguments = {"pairwise": index_store.pairwise, "ids": ids}
    with (
        Index.build(tmp_path / "a", codec, index_store.codes("base"), shards=4, **arguments) as shards,
        Index.build(tmp_path / "b", codec, index_store.codes("base"), **arguments) as one,
    ):
        same(shards.search(xq, 5, POINTS["qinco"]), one.search(xq, 5, POINTS["qinco"]))
        assert shards.max_id == one.max_id and np.array_equal(np.sort(shards.ids), np.sort(ids))


def test_it_is_an_index_like_another(sharded, whole):
    assert isinstance(sharded, ShardedIndex)
    assert (len(sharded), sharded.nlist, sharded.max_id, sharded.dim) == (10_000, 64, 9_999, 128)
    assert sharded.bytes_per_entry == whole.bytes_per_entry and sharded.has_pairwise
    assert [parent.kind for parent in sharded.header.parents] == [parent.kind for parent in whole.header.parents]


def test_what_shards_cannot_do_is_refused(sharded, index_store, tmp_path):
    for work in (
        lambda: sharded.add(index_store.codes("base")),
        lambda: sharded.remove([1]),
        lambda: sharded.export_faiss(tmp_path / "x.faiss"),
        lambda: sharded.front,
    ):
        with pytest.raises(UsageError, match="is in 3 shards, which cannot be"):
            work()


def test_building_in_place_of_another(index_store, codec, tmp_path, xq):
    folder, codes = tmp_path / "index", index_store.codes("base")
    books = {"pairwise": index_store.pairwise}
    Index.build(folder, codec, codes, **books).close()
    with pytest.raises(OutputExistsError):
        Index.build(folder, codec, codes, **books, shards=2)
    Index.build(folder, codec, codes, **books, shards=2, force=True).close()
    with Index.build(folder, codec, codes, **books, shards=3, force=True) as shards:
        found = shards.search(xq, 5, POINTS["qinco"])
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "manifest.h5", "shards.0002"]
    with pytest.raises(UsageError, match="10000 codes cannot be in 0 shards"):
        Index.build(folder, codec, codes, **books, shards=0, force=True)
    with Index.open(folder, model=codec) as still:
        same(still.search(xq, 5, POINTS["qinco"]), found)
    Index.build(folder, codec, codes, **books, force=True).close()
    assert not list(folder.glob("shards*"))
    with pytest.raises(UsageError, match="closed"):
        still.search(xq)


def test_all_shards_have_one_graph(index_store, codec, tmp_path, xq, monkeypatch):
    monkeypatch.setattr(rewrite, "GRAPH_FROM", 16)
    with Index.build(tmp_path, codec, index_store.codes("base"), pairwise=index_store.pairwise, shards=3) as shards:
        graphs = [path.read_bytes() for path in tmp_path.glob("shards.0001/*/index.*.faiss")]
        found = shards.search(xq, 10, POINTS["qinco"])[1]
        assert (shards.search(xq, 10, POINTS["qinco"].model_copy(update={"ef": 64}))[1] == found).mean() > 0.95
    assert len(graphs) == 3 and len(set(graphs)) == 1


def test_damage_is_found(made, codec, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(made, folder)
    assert verify(folder).ok
    codes = next(folder.glob("shards.0001/shard-001/codes.*.npy"))
    raw = bytearray(codes.read_bytes())
    raw[-1] ^= 1
    codes.write_bytes(raw)
    report = verify(folder)
    assert not report.ok and [check.name for check in report.checks if not check.ok] == ["shard-001/codes.0001.npy"]
    shutil.rmtree(codes.parent)
    with pytest.raises(ArtifactError, match="shard-001 is missing"):
        Index.open(folder, model=codec)
    shutil.copytree(codes.parent.with_name("shard-002"), codes.parent)
    with pytest.raises(ArtifactError, match="not the shard"):
        Index.open(folder, model=codec)
