"""Searching all codes: the same as comparing every query with every decoded vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qinco_core.api import Codec
from qinco_core.errors import DimensionError, LineageError, UsageError, VectorFileError
from qinco_core.index import exhaustive
from qinco_core.index.exhaustive import Exhaustive
from qinco_core.store import create_codes, open_codes
from qinco_core.vectors import open_vectors

N = 1500


def similarity(q: np.ndarray, x: np.ndarray, metric: str) -> np.ndarray:
    """What each metric means, in float64; larger is nearer."""
    q, x = q.astype(np.float64), x.astype(np.float64)
    if metric == "l2":
        return -np.square(q[:, None] - x[None]).sum(2)
    if metric == "cosine":
        q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x))
    return q @ x.T


@pytest.fixture(scope="module")
def codec(sift_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    path = tmp_path_factory.mktemp("exhaustive") / "model.h5"
    changes = {"M": 4, "K": 16, "E": 16, "H": 32, "A": 4, "B": 4}
    with open_vectors(sift_learn, limit=3000) as vectors:
        Codec.train(vectors, preset_name="qinco2-XS", epochs=1, changes=changes).save(path)
    return Codec.load(path, precision="float32")


@pytest.fixture(scope="module")
def symbols(codec: Codec, sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_base.u8bin"), limit=N) as file:
        return codec.encode(file.read(0, N))


@pytest.fixture(scope="module")
def decoded(codec: Codec, symbols: np.ndarray) -> np.ndarray:
    return codec.decode(symbols)


@pytest.fixture(scope="module")
def queries(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn.with_name("sift_query.fvecs"), limit=20) as file:
        return file.read(0, 20)


@pytest.fixture
def opened(codec: Codec, symbols: np.ndarray, tmp_path: Path):
    """Open codes, with ids if some are given."""

    def opened(ids: np.ndarray | None = None, rows: np.ndarray = symbols) -> Exhaustive:
        path = tmp_path / f"{len(contexts)}.h5"
        with create_codes(
            path, spec=codec.spec("uint8"), count=None, with_ids=ids is not None, source_stamp="", chunk_rows=64
        ) as out:
            out.append(codec.pack(rows), ids)
        context = open_codes(path)
        contexts.append(context)
        return Exhaustive(codec, context.__enter__())

    contexts: list = []
    yield opened
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_it_finds_the_nearest_decoded_vectors(opened, decoded, queries, metric, monkeypatch):
    monkeypatch.setattr(exhaustive, "_ROWS", 400)
    monkeypatch.setattr(exhaustive, "_ENTRIES", 3000)
    found = opened().search_stages(queries, 10, metric=metric)
    scores = similarity(queries, decoded, metric)
    wanted = -np.sort(-scores, axis=1)[:, :10]
    given = -found.distances if metric == "l2" else found.distances
    np.testing.assert_allclose(given, wanted, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, found.ids, 1), wanted, rtol=1e-6)
    assert (found.ids.dtype, found.distances.dtype) == (np.int64, np.float32)
    (stage,) = found.stages
    assert (stage.name, stage.seconds > 0) == ("qinco", True)
    np.testing.assert_array_equal(stage.ids, found.ids)


def test_equal_codes_come_in_their_order(opened, queries, symbols, monkeypatch):
    monkeypatch.setattr(exhaustive, "_ROWS", 64)
    found = opened(rows=np.repeat(symbols[:1], 300, axis=0)).search_stages(queries, 200)
    np.testing.assert_array_equal(found.ids, np.broadcast_to(np.arange(200), (20, 200)))


def test_ids_of_the_codes_are_what_is_found(opened, queries):
    plain = opened()
    ids = np.random.default_rng(3).permutation(N) + (1 << 40)
    rows = plain.search_stages(queries, 5).ids
    named = opened(ids)
    np.testing.assert_array_equal(named.search_stages(queries, 5).ids, ids[rows])
    assert (plain.max_id, named.max_id) == (N - 1, N - 1 + (1 << 40))
    assert len(named) == N


def test_allow_and_deny(opened, queries):
    search = opened().search_stages
    everything = search(queries, 100).ids
    some = np.array([7, 3, 3, 900, 5000])
    allowed = search(queries, 4, allow=some)
    assert set(allowed.ids[:, :3].ravel()) == {3, 7, 900}
    assert (allowed.ids[:, 3] == -1).all()
    assert np.isposinf(allowed.distances[:, 3]).all()
    assert np.isneginf(search(queries, 4, allow=some, metric="ip").distances[:, 3]).all()
    np.testing.assert_array_equal(search(queries, 3, allow=some, deny=np.array([3])).ids[:, 2], -1)
    assert (search(queries, 2, allow=np.empty(0, np.int64)).ids == -1).all()
    best = everything[:, 0]
    without = search(queries, 50, deny=np.unique(best)).ids
    for row, left in zip(everything, without, strict=True):
        kept = row[~np.isin(row, best)][:50]
        np.testing.assert_array_equal(left[: len(kept)], kept)


def test_large_unsigned_ids_and_negative_ones(opened, queries):
    ids = np.arange(N) + (1 << 61)
    found = opened(ids).search_stages(queries, 20, allow=ids[::2].astype(np.uint64)).ids
    expected = opened(ids).search_stages(queries, 20, deny=ids[1::2]).ids
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(UsageError, match="has the id -5"):  # such codes could be made once
        opened(np.arange(N) - 5).search_stages(queries, 20)


def test_codes_with_list_numbers(ivf_store, queries):
    codec = Codec.load(ivf_store.model, precision="float32", threads=1)
    with open_codes(ivf_store.codes("base")) as codes:
        rows = codes.rows(0, len(codes))
        found = Exhaustive(codec, codes).search_stages(queries, 10)
    decoded = codec.decode(codec.join(codec.unpack(rows.codes), rows.lists))
    scores = similarity(queries, decoded, "l2")
    np.testing.assert_allclose(found.distances, np.sort(-scores, axis=1)[:, :10], rtol=1e-5)


def test_a_vector_of_length_zero_has_no_direction(opened, queries):
    found = opened().search_stages(np.zeros((1, 128)), 3, metric="cosine")
    np.testing.assert_array_equal(found.distances, 0)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"xq": np.zeros((2, 64))}, DimensionError, "dimension 128"),
        ({"xq": np.zeros(128)}, DimensionError, "shape"),
        ({"xq": np.full((2, 128), np.nan)}, VectorFileError, "query 0"),
        ({"k": 0}, UsageError, "ask for 1 to 1500"),
        ({"k": N + 1}, UsageError, "ask for 1 to 1500"),
        ({"params": exhaustive.SearchConfig()}, UsageError, "qinco index"),
    ],
)
def test_what_cannot_be_searched(opened, queries, change, error, says):
    with pytest.raises(error, match=says):
        opened().search_stages(**({"xq": queries, "k": 3} | change))


def test_codes_of_another_model_are_refused(opened, codec, tmp_path):
    searcher = opened()
    other = Codec(codec.network, codec.search, plan=codec.plan)
    other.network.mean.data += 1
    try:
        other.save(tmp_path / "other.h5")
        with pytest.raises(LineageError, match=r"0\.h5"):
            Exhaustive(other, searcher._codes)
    finally:
        other.network.mean.data -= 1
