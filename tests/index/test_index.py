"""An index: it finds what comparing with every decoded vector finds, and stays right through changes."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qinco_core import Index
from qinco_core.api import Codec
from qinco_core.config import SearchConfig
from qinco_core.errors import DimensionError, LineageError, OutputExistsError, UsageError, VectorFileError
from qinco_core.index import cascade
from qinco_core.index.tune import Setting
from qinco_core.optional import import_faiss
from qinco_core.store import Store, create_codes, open_codes
from qinco_core.vectors import open_vectors

ALL = SearchConfig(nprobe=64, n_mid=0, n_short=10_000)
FEW = SearchConfig(nprobe=8, n_mid=200, n_short=50)


@pytest.fixture(scope="module")
def codec(index_store: Store) -> Codec:
    return Codec.load(index_store.model, precision="float32", threads=2)


@pytest.fixture(scope="module")
def index(index_store: Store, codec: Codec) -> Index:
    return Index.open(index_store.index, model=codec)


@pytest.fixture(scope="module")
def base(sift_learn: Path) -> Path:
    return sift_learn.with_name("sift_base.u8bin")


@pytest.fixture(scope="module")
def xq(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_query.fvecs")) as file:
        return file.read(0, 40)


@pytest.fixture(scope="module")
def decoded(index_store: Store, codec: Codec) -> np.ndarray:
    with open_codes(index_store.codes("base")) as file:
        return codec.decode(codec.unpack_rows(file.rows(0, len(file))))


@pytest.fixture
def changing(index_store: Store, tmp_path: Path) -> Store:
    """A copy of the store that a test may change."""
    shutil.copytree(index_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


def nearness(q: np.ndarray, x: np.ndarray, metric: str) -> np.ndarray:
    """Squared distances, or similarities, by definition."""
    q, x = q.astype(np.float64), x.astype(np.float64)
    if metric == "l2":
        return np.square(q[:, None] - x[None]).sum(2)
    if metric == "cosine":
        q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x))
    return q @ x.T


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_all_lists_and_all_entries_are_an_exhaustive_search(index, decoded, xq, metric):
    D, I = index.search(xq[:8], 20, ALL, metric=metric)
    expected = nearness(xq[:8], decoded, metric)
    best = np.sort(expected, axis=1)[:, :20] if metric == "l2" else -np.sort(-expected, axis=1)[:, :20]
    np.testing.assert_allclose(D, best, rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(expected, I, 1), best, rtol=1e-4)


def test_every_stage_is_better_than_the_one_before(index, decoded, xq):
    true = np.argmin(nearness(xq, decoded, "l2"), axis=1)
    found = index.search_stages(xq, 10, SearchConfig(nprobe=64, n_mid=400, n_short=100))
    assert [stage.name for stage in found.stages] == ["scan", "pairwise", "qinco"]
    scan, pairwise, network = ((stage.ids[:, 0] == true).mean() for stage in found.stages)
    assert scan < network > pairwise and network > 0.9
    np.testing.assert_array_equal(found.stages[-1].ids, found.ids)


def test_what_a_stage_does_not_reach_follows_in_the_order_before(index, xq):
    scan = index.search(xq, 10, SearchConfig(nprobe=8, rerank="none"))[1]
    short = index.search(xq, 10, SearchConfig(nprobe=8, n_mid=0, n_short=4))[1]
    # but for equal scores, of which either may be kept
    assert (short[:, 4:] == scan[:, 4:]).mean() > 0.98
    assert (np.sort(short[:, :4]) == np.sort(scan[:, :4])).mean() > 0.98


def test_one_query_at_a_time_finds_the_same(index, xq):
    D, I = index.search(xq, 10, FEW)
    for row in range(10):
        d, i = index.search(xq[row : row + 1], 10, FEW)
        np.testing.assert_array_equal(i[0], I[row])
        np.testing.assert_allclose(d[0], D[row], rtol=1e-5)


def test_threads_that_share_a_query_find_the_same(index, xq, monkeypatch):
    alone = index.search(xq[:1], 30, SearchConfig(nprobe=32, n_mid=100, n_short=40))
    monkeypatch.setattr(cascade, "_SHARED", 0)
    shared = index.search(xq[:1], 30, SearchConfig(nprobe=32, n_mid=100, n_short=40))
    np.testing.assert_array_equal(alone[1], shared[1])


def test_searches_at_the_same_time_do_not_disturb_each_other(index, xq):
    expected = index.search(xq, 10, FEW)[1]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: index.search(xq, 10, FEW)[1], range(12)):
            np.testing.assert_array_equal(found, expected)


def test_through_the_graph(index, xq):
    exact = index.search(xq, 10, FEW)[1]
    through = index.search(xq, 10, FEW.model_copy(update={"ef": 64}))[1]
    assert (exact == through).mean() > 0.95


def test_missing_results(index, changing, xq):
    with Index.open(changing.index) as small:
        small.remove(np.arange(100, 10_000))
        D, I = small.search(xq, 50, SearchConfig(nprobe=1))
    assert (I[:, -1] == -1).all() and np.isinf(D[I == -1]).all()
    assert (I[:, 0] >= -1).all() and (I < 100).all()


def test_allowed_and_denied_ids(index, decoded, xq):
    expected = nearness(xq, decoded, "l2")
    some = np.arange(0, 10_000, 7)
    only = index.search(xq[:5], 5, ALL, allow=some)[1]
    np.testing.assert_array_equal(np.sort(only), np.sort(some[np.argsort(expected[:5][:, some], axis=1)[:, :5]]))
    first = index.search(xq[:5], 3, ALL)[1]
    without = index.search(xq[:5], 3, ALL, deny=first[:, 0])[1]
    assert not np.isin(without, first[:, 0]).any()
    both = index.search(xq[:5], 5, ALL, allow=some, deny=some[::2])[1]
    assert np.isin(both, some[1::2]).all()
    assert (index.search(xq[:5], 5, ALL, allow=[])[1] == -1).all()


def test_original_vectors_are_the_last_word(index, base, xq):
    with open_vectors(base) as originals:
        v = originals.read(0, len(originals))
        params = SearchConfig(nprobe=64, n_mid=0, n_short=2000, n_exact=1000, rerank="exact")
        D, I = index.search(xq[:10], 5, params, originals=originals)
        expected = nearness(xq[:10], v, "l2")
        np.testing.assert_array_equal(I[:, 0], expected.argmin(1))
        np.testing.assert_allclose(D, np.take_along_axis(expected, I, 1), rtol=1e-5)
        with pytest.raises(UsageError, match="row numbers"):
            index.search(xq, 5, params, originals=originals.section(0, 500))
    with pytest.raises(UsageError, match="give their file"):
        index.search(xq, 5, params)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"k": 10_001}, UsageError, "ask for 1 to 10000"),
        ({"k": 0}, UsageError, "k = 0"),
        ({"params": SearchConfig(nprobe=65)}, UsageError, "has 64 lists"),
        ({"metric": "hamming"}, UsageError, "there are l2, ip, cosine"),
        ({"allow": [0.5]}, UsageError, "integers"),
    ],
)
def test_what_cannot_be_searched(index, xq, arguments, error, says):
    with pytest.raises(error, match=says):
        index.search(xq, **arguments)


def test_queries_that_cannot_be(index, xq):
    with pytest.raises(DimensionError, match="dimension 128"):
        index.search(xq[:, :64])
    broken = xq.copy()
    broken[3, 5] = np.nan
    with pytest.raises(VectorFileError, match="query 3"):
        index.search(broken)


def test_adding_equals_building_from_all(changing, codec, xq, tmp_path):
    with open_codes(changing.codes("base")) as file:
        spec, rows = file.spec, file.rows(0, len(file))
    for name, part in (("first", slice(0, 6000)), ("second", slice(6000, 10_000))):
        with create_codes(tmp_path / name, spec=spec, count=None, with_ids=False, source_stamp=name) as out:
            out.append(rows.codes[part], None, rows.lists[part])
    with Index.build(tmp_path / "index", codec, tmp_path / "first", pairwise=changing.pairwise) as grown:
        before = sorted(path.name for path in grown.folder.glob("*.npy"))
        grown.add(tmp_path / "second")
        assert (len(grown), grown.max_id) == (10_000, 9999)
        assert not set(before) & {path.name for path in grown.folder.glob("*.npy")}
        found = grown.search(xq, 10, FEW)[1]
    with Index.open(changing.index, model=codec) as whole:
        # the residual norms are rounded by another sample
        assert (found == whole.search(xq, 10, FEW)[1]).mean() > 0.98


def test_ids_of_64_bits_removing_and_adding_again(changing, codec, xq, tmp_path):
    ids = np.arange(10_000) + (1 << 40)
    arguments = {"pairwise": changing.pairwise, "ids": ids, "force": True}
    with Index.build(changing.index, codec, changing.codes("base"), **arguments) as index:
        first = index.search(xq, 5, FEW)[1]
        assert (first >= 1 << 40).all()
        before = index.header.fingerprint
        assert index.remove([17]) == 0
        assert index.header.fingerprint == before
        assert index.remove(np.append(first[:, 0], 17)) == len(set(first[:, 0]))
        assert not np.isin(index.search(xq, 5, FEW)[1], first[:, 0]).any()
    with Index.open(changing.index) as again:
        assert len(again) == 10_000 - len(set(first[:, 0]))
        with pytest.raises(UsageError, match="integers in one dimension"):
            again.remove([0.5])
    with pytest.raises(UsageError, match="one id a code"):
        Index.build(tmp_path / "other", codec, changing.codes("base"), pairwise=changing.pairwise, ids=ids[:5])
    with pytest.raises(OutputExistsError, match="--force"):
        Index.build(changing.index, codec, changing.codes("base"), pairwise=changing.pairwise)


def test_a_closed_index_is_not_searched(changing, codec, xq):
    with Index.open(changing.index, model=codec) as index:
        index.search(xq, 5, FEW)
    with pytest.raises(UsageError, match="was closed"):
        index.search(xq, 5, FEW)


def test_unsigned_ids_remove_and_allow_only_what_they_name(changing, codec, xq):
    first = np.sort(np.random.default_rng(0).choice(1 << 60, 5000, replace=False)) * 2 + (1 << 61)
    ids = np.append(first, first + 1)  # neighbours, which float64 cannot tell apart
    arguments = {"pairwise": changing.pairwise, "ids": ids, "force": True}
    with Index.build(changing.index, codec, changing.codes("base"), **arguments) as index:
        some = first[:2000].astype(np.uint64)
        for wrong in (np.append(some, np.uint64(1 << 63)), np.append(first[:3], -5)):
            for use in (index.remove, lambda ids: index.search(xq, 5, deny=ids)):
                with pytest.raises(UsageError, match=r"are 0 to 2\^63 - 1, and -\d+ is among them"):
                    use(wrong)
        only = index.search(xq, 5, ALL, allow=some)[1]
        assert np.isin(only, first[:2000]).all()
        assert index.remove(some) == 2000
        assert np.isin(first[:2000] + 1, index.search(xq, 8000, ALL)[1][0]).all()


@pytest.mark.parametrize("ids", [np.arange(10_000) + 0.5, np.zeros((10_000, 2), np.int64)])
def test_ids_that_are_no_integers_in_a_row_are_refused(index_store, codec, tmp_path, ids):
    with pytest.raises(UsageError, match="integers in one dimension"):
        Index.build(tmp_path, codec, index_store.codes("base"), pairwise=index_store.pairwise, ids=ids)


def test_searches_go_on_while_the_index_changes(changing, codec, xq):
    """Each sees all of the index as it was or all of it as it is."""
    with Index.open(changing.index, model=codec) as index, ThreadPoolExecutor(2) as pool:
        few, more = np.arange(5000), np.arange(20_000, 30_000)
        states = [np.arange(10_000), few, np.append(few, more)]
        going = True

        def search() -> list[bool]:
            kept = []
            while going:
                found = index.search(xq, 400, SearchConfig(nprobe=64, rerank="none"))[1]
                kept.append(any(np.isin(found, state).all() for state in states))
            return kept

        searches = [pool.submit(search) for _ in range(2)]
        for _ in range(3):
            index.remove(np.arange(5000, 10_000))
            index.add(changing.codes("base"), ids=more)
            index.remove(more)
        going = False
        outcomes = [kept for future in searches for kept in future.result()]
    assert outcomes and all(outcomes)


def test_another_holder_changed_the_index(changing, codec, xq):
    """Places and ids stay of one generation, and only what a call removed is counted."""
    with Index.open(changing.index, model=codec) as held, Index.open(changing.index, model=codec) as other:
        before = held.search(xq, 10, FEW)[1]
        assert other.remove(np.arange(5000)) == 5000
        with pytest.raises(LineageError, match="open it again"):
            held.save_front([], Setting())
        np.testing.assert_array_equal(held.search(xq, 10, FEW)[1], before)
        assert other.remove([5000, 5001]) == 2
        assert held.remove([6000]) == 1


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_threads_share_a_query_whatever_the_metric(index, xq, monkeypatch, metric):
    params = SearchConfig(nprobe=32, n_mid=100, n_short=40)
    alone = index.search(xq[:1], 30, params, metric=metric)
    shared, scan = [], cascade.Cascade._scan_shared
    monkeypatch.setattr(cascade, "_SHARED", 0)
    monkeypatch.setattr(cascade.Cascade, "_scan_shared", lambda *a: shared.append(1) or scan(*a))
    np.testing.assert_array_equal(alone[1], index.search(xq[:1], 30, params, metric=metric)[1])
    assert shared


def test_a_model_without_lists(trained, sift_learn, base, xq, tmp_path):
    trained.save(tmp_path / "model.h5", force=True)
    with open_vectors(base, limit=3000) as file:
        codes = trained.encode(file.read(0, 3000))
    with create_codes(
        tmp_path / "codes.h5", spec=trained.spec("uint8"), count=3000, with_ids=False, source_stamp=""
    ) as out:
        out.append(trained.pack(codes))
    with open_vectors(sift_learn, limit=3000) as learn:
        index = Index.build(tmp_path / "index", trained, tmp_path / "codes.h5", train=learn)
    with index:
        assert (index.nlist, index.has_pairwise) == (1, False)
        I = index.search(xq, 1, SearchConfig(nprobe=1, n_short=3000))[1]
    expected = nearness(xq, trained.decode(codes), "l2")
    best = expected.min(1)
    np.testing.assert_allclose(np.take_along_axis(expected, I, 1)[:, 0], best, rtol=1e-2)


def test_faiss_alone_finds_what_the_scan_finds(index, xq, tmp_path):
    faiss = import_faiss()
    index.export_faiss(tmp_path / "base.faiss")
    plain = faiss.read_index(str(tmp_path / "base.faiss"))
    plain.nprobe = 64
    assert plain.ntotal == 10_000
    I = plain.search(xq, 50)[1]
    ours = index.search(xq, 50, SearchConfig(nprobe=64, rerank="none"))[1]
    # two roundings of norms to a byte: those at the edge change places
    assert np.mean([len(set(a) & set(b)) / 50 for a, b in zip(I, ours, strict=True)]) > 0.9
    with pytest.raises(OutputExistsError):
        index.export_faiss(tmp_path / "base.faiss")
