"""The cascade on real codes is what a few lines of numpy say it is, and Faiss agrees with its first look."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qinco_core import Index, SearchConfig
from qinco_core.api import Codec
from qinco_core.codec.network import Network
from qinco_core.codec.packing import unpack
from qinco_core.errors import DependencyError, LineageError, UsageError
from qinco_core.index import build, lists, rewrite
from qinco_core.index.build import CodesSource, Estimator, Scale
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.stages import plan_stages
from qinco_core.index.tune import Setting
from qinco_core.optional import import_faiss
from qinco_core.store import Store, create_codes, open_codes
from qinco_core.store.index import StoredIndex, load_index
from qinco_core.vectors import open_vectors

NPROBE, N_MID, N_SHORT = 8, 300, 60
LOOK = SearchConfig(nprobe=64, rerank="none")


@pytest.fixture(scope="module")
def codec(index_store: Store) -> Codec:
    return Codec.load(index_store.model, precision="float32", threads=2)


@pytest.fixture(scope="module")
def index(index_store: Store, codec: Codec) -> Index:
    return Index.open(index_store.index, model=codec)


@pytest.fixture(scope="module")
def xq(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_query.fvecs")) as file:
        return file.read(0, 40).astype(np.float32)


@pytest.fixture
def changing(index_store: Store, tmp_path: Path) -> Store:
    """A copy of the store that a test may change."""
    shutil.copytree(index_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


class Statement:
    """The cascade of method §6 over an index as stored, for squared distances, in float64."""

    def __init__(self, stored: StoredIndex, codec: Codec, pairwise: Pairwise) -> None:
        arrays, flat = stored.arrays, stored.flat
        M, K, _ = arrays["additive"].shape
        self.ids, self.c = np.asarray(flat["ids"]), arrays["centroids"].astype(float)
        self.lists = np.repeat(np.arange(len(self.c)), np.diff(arrays["offsets"]))
        symbols = unpack(np.asarray(flat["codes"]), M, K)
        self.additive = pairwise.additive(symbols, self.lists).astype(float)
        self.pairwise = pairwise.decode(symbols, self.lists).astype(float)
        codes = np.column_stack([self.lists, symbols.astype(np.int32)]).astype(np.int32)
        self.decoded = codec.decode(codes).astype(float)
        self.lengths = {look: self._length(stored, look) for look in ("norms", "pair_norms")}

    def _length(self, stored: StoredIndex, look: str) -> np.ndarray:
        """‖c + r‖² as eight bits tell it."""
        scale = stored.config["scales"][look]
        return np.square(self.c).sum(1)[self.lists] + scale["low"] + scale["step"] * np.asarray(stored.flat[look])

    def search(self, q: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Places after the stages, best first, and the last one's distances."""
        q = q.astype(float)
        probed = np.argsort(np.square(q - self.c).sum(1))[:NPROBE]
        place = np.flatnonzero(np.isin(self.lists, probed))
        stages = []
        scores: list[tuple[int, Callable[[np.ndarray], np.ndarray]]] = [
            (N_MID, lambda p: q @ q - 2 * self.additive[p] @ q + self.lengths["norms"][p]),
            (N_SHORT, lambda p: q @ q - 2 * self.pairwise[p] @ q + self.lengths["pair_norms"][p]),
            (N_SHORT, lambda p: np.square(q - self.decoded[p]).sum(1)),
        ]
        for kept, score in scores:
            place = place[np.argsort(score(place), kind="stable")][:kept]
            stages.append(place)
        return stages, scores[-1][1](place)


def test_the_cascade_as_numpy_states_it(index_store, index, codec, xq):
    pairwise = Pairwise.load(index_store.pairwise, codec.header, codec.centroids)
    statement = Statement(load_index(index_store.index), codec, pairwise)
    found = index.search_stages(xq, 50, SearchConfig(nprobe=NPROBE, n_mid=N_MID, n_short=N_SHORT))
    assert [stage.name for stage in found.stages] == ["scan", "pairwise", "qinco"]
    same = np.zeros((3, len(xq)))
    for row, q in enumerate(xq):
        stages, distances = statement.search(q)
        for number, (stage, place) in enumerate(zip(found.stages, stages, strict=True)):
            same[number, row] = (stage.ids[row] == statement.ids[place[:50]]).mean()
        if same[:, row].all():
            np.testing.assert_allclose(found.distances[row], distances[:50], rtol=1e-4)
    # float32 and float64 order near-equal scores differently
    assert (same.mean(1) > 0.97).all(), same.mean(1)


def test_several_passes_write_the_same_index(index_store, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "_FEWEST", 500)
    arguments = index_store.codes("base"), index_store.pairwise
    once = load_index(index_store.index)
    Index.build(tmp_path / "index", codec, arguments[0], pairwise=arguments[1], memory=1).close()
    passes = load_index(tmp_path / "index")
    assert len(lists.ranges(np.diff(once.arrays["offsets"]), 500)) > 10
    for name in ("codes", "ids", "norms", "pair_norms"):
        np.testing.assert_array_equal(passes.flat[name], once.flat[name])
        assert passes.config["files"][name]["digest"] == once.config["files"][name]["digest"]


def test_norms_are_scaled_by_codes_from_beginning_to_end(index_store, codec, tmp_path, monkeypatch):
    """Not by the first ones, which sorted vectors would make unlike the others."""
    pairwise = Pairwise.load(index_store.pairwise, codec.header, codec.centroids)
    estimator = Estimator(codec, codec.centroids, pairwise.additive_MKD, None)
    with open_codes(index_store.codes("base")) as file:
        rows = file.rows(0, len(file))
        norms = estimator.norms(rows)["norms"]
        order = np.argsort(norms)
        options = {"spec": file.spec, "count": 10_000, "with_ids": False, "source_stamp": "", "chunk_rows": 200}
    with create_codes(tmp_path / "sorted.h5", **options) as out:
        out.append(rows.codes[order], None, rows.lists[order])
    monkeypatch.setattr(build, "_SAMPLE", 1000)
    with open_codes(tmp_path / "sorted.h5") as file:
        scale = CodesSource(file, estimator).scales()["norms"]
    assert scale.low == norms.min()
    assert (norms > scale.low + 255 * scale.step).mean() < 0.02


def test_nothing_is_left_and_all_can_come_again(changing, codec, xq):
    with Index.open(changing.index, model=codec) as index:
        expected = index.search(xq, 5)[1]
        assert index.remove(np.arange(10_000)) == 10_000
        assert (len(index), index.max_id) == (0, -1)
        with pytest.raises(UsageError, match="no vectors to search: add some"):
            index.search(xq, 1)
        index.export_faiss(changing.root / "none.faiss")
        index.add(changing.codes("base"))
        np.testing.assert_array_equal(index.search(xq, 5)[1], expected)
    assert import_faiss().read_index(str(changing.root / "none.faiss")).ntotal == 0


def test_no_queries_and_queries_too_long_to_measure(index, xq):
    D, I = index.search(xq[:0], 3)
    assert D.shape == I.shape == (0, 3)
    far = index.search(np.full((1, 128), 1e38, np.float32), 3)[1]
    assert ((far >= -1) & (far < 10_000)).all()


def test_an_index_that_was_replaced_or_closed(changing, codec, sift_learn, xq, tmp_path):
    held = Index.open(changing.index, model=codec)
    with open_vectors(sift_learn, limit=2000) as learn:
        arguments = {"train": learn, "force": True}
        Index.build(changing.index, codec, changing.codes("base"), **arguments).close()
    changes = (
        lambda: held.remove([1]),
        lambda: held.add(changing.codes("base")),
        lambda: held.save_front([], Setting()),
    )
    for change in changes:
        with pytest.raises(LineageError, match=r"was (replaced|changed) since .*: open it again"):
            change()
    held.close()
    for use in (*changes, lambda: held.search(xq, 1), lambda: len(held)):
        with pytest.raises(UsageError, match="was closed"):
            use()


@pytest.mark.parametrize(
    ("params", "stages"),
    [
        (SearchConfig(n_mid=20, n_short=50), [("scan", 50), ("pairwise", 50), ("qinco", 50)]),
        (SearchConfig(n_mid=200, n_short=50), [("scan", 200), ("pairwise", 200), ("qinco", 50)]),
        (
            SearchConfig(n_mid=20, n_short=0, n_exact=100, rerank="exact"),
            [("scan", 100), ("pairwise", 100), ("exact", 100)],
        ),
        (SearchConfig(rerank="none"), [("scan", 10)]),
    ],
)
def test_a_stage_scores_as_many_as_the_next_one_takes(params, stages):
    assert plan_stages(10, params, pairwise=True, originals=True) == stages


def test_originals_are_compared_part_by_part(index, sift_learn, xq, monkeypatch):
    params = SearchConfig(nprobe=4, n_exact=30, rerank="exact")
    with open_vectors(sift_learn.with_name("sift_base.u8bin")) as base:
        once = index.search(xq, 10, params, originals=base)
        monkeypatch.setattr("qinco_core.index.stages._ORIGINAL_BYTES", 3 * 4 * 128 * 30)
        parts = index.search(xq, 10, params, originals=base)
    np.testing.assert_array_equal(parts[1], once[1])
    np.testing.assert_array_equal(parts[0], once[0])


def test_norms_take_two_bytes_where_one_would_be_coarse():
    values = np.linspace(0, 1000, 50, dtype=np.float32)
    near, far = Scale.of(values, fine=10.0), Scale.of(values, fine=1.0)
    assert (near.bits, far.bits) == (8, 16)
    for scale in (near, far):
        stored = scale.quantize(values)
        assert stored.dtype == scale.dtype
        assert np.abs(scale.low + scale.step * stored - values).max() <= scale.step / 2 + 1e-3


def test_an_index_with_norms_of_two_bytes_finds_the_same(index, index_store, codec, xq, tmp_path, monkeypatch):
    monkeypatch.setattr(Estimator, "fine", 0.0)
    wide = Index.build(tmp_path / "index", codec, index_store.codes("base"), pairwise=index_store.pairwise)
    flat = load_index(wide.folder).flat
    assert {flat[name].dtype for name in ("norms", "pair_norms")} == {np.dtype("<u2")}
    for rerank in ("none", "pairwise"):
        params = SearchConfig(nprobe=8, rerank=rerank)
        found, expected = wide.search(xq, 10, params), index.search(xq, 10, params)
        np.testing.assert_allclose(found[0], expected[0], rtol=0.05)
        assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found[1], expected[1], strict=True)]) > 9


def test_far_from_the_origin_it_finds_the_same(index, index_store, codec, xq, sift_learn, tmp_path):
    far = np.float32(50_000)
    arrays = codec.network.to_arrays()
    moved = Codec(
        Network.from_arrays(codec.config, arrays | {"mean": arrays["mean"] + far}), codec.search, plan=codec.plan
    )
    moved.save(tmp_path / "model.h5")
    with open_codes(index_store.codes("base")) as file:
        rows, spec = file.rows(0, len(file)), file.spec.model_copy(update={"model": moved.identity.fingerprint})
    options = {"spec": spec, "count": len(rows.codes), "with_ids": False, "source_stamp": ""}
    with create_codes(tmp_path / "codes.h5", **options) as out:
        out.append(rows.codes, None, rows.lists)
    with open_vectors(sift_learn, limit=1000) as learn:
        np.save(tmp_path / "learn.npy", learn.read(0, 1000) + far)
    with open_vectors(tmp_path / "learn.npy") as learn:
        away = Index.build(tmp_path / "index", moved, tmp_path / "codes.h5", train=learn)
    found, expected = away.search(xq + far, 10, LOOK)[1], index.search(xq, 10, LOOK)[1]
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, expected, strict=True)]) > 8


def test_added_codes_may_have_larger_norms(changing, codec, index, xq, tmp_path):
    stored = load_index(changing.index)
    decoder = Pairwise.load(changing.pairwise, codec.header, codec.centroids)
    estimator = Estimator(codec, stored.arrays["centroids"], stored.arrays["additive"], decoder)
    with open_codes(changing.codes("base")) as file:
        rows, spec = file.rows(0, len(file)), file.spec
    order = np.argsort(estimator.norms(rows)["norms"])
    parts = {"small": order[:5000], "large": order[5000:]}
    for name, part in parts.items():
        with create_codes(tmp_path / name, spec=spec, count=None, with_ids=False, source_stamp=name) as out:
            out.append(rows.codes[part], None, rows.lists[part])
    arguments = {"pairwise": changing.pairwise, "ids": parts["small"]}
    with Index.build(tmp_path / "index", codec, tmp_path / "small", **arguments) as grown:
        grown.add(tmp_path / "large", ids=parts["large"])
        for rerank in ("none", "pairwise"):
            params = SearchConfig(nprobe=8, rerank=rerank)
            found, expected = grown.search(xq, 10, params)[1], index.search(xq, 10, params)[1]
            assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, expected, strict=True)]) > 9.5


def test_the_graph_may_be_gone_or_was_never_there(index_store, codec, xq, tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite, "GRAPH_FROM", 16)
    arguments = codec, index_store.codes("base")
    through = SearchConfig(nprobe=8, ef=64, rerank="none")
    with Index.build(tmp_path / "index", *arguments, pairwise=index_store.pairwise) as held:
        (graph,) = (tmp_path / "index").glob("*.faiss")
        graph.unlink()
        found = held.search(xq, 5, through)[1]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with Index.build(tmp_path / "without", *arguments, pairwise=index_store.pairwise) as bare:
        assert (bare.search(xq, 5, SearchConfig(nprobe=8, rerank="none"))[1] == found).mean() > 0.9
        with pytest.raises(DependencyError, match=r"qinco\[cpu\]"):
            bare.search(xq, 5, through)
