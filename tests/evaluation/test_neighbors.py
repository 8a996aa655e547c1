from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qinco_core.codec.precision import plan
from qinco_core.errors import DeviceError, DimensionError, UsageError
from qinco_core.evaluation import groundtruth, neighbors
from qinco_core.evaluation.groundtruth import GroundTruth
from qinco_core.evaluation.metrics import recall_at
from qinco_core.evaluation.neighbors import NeighborSearch, Sizes, exact_neighbors
from qinco_core.evaluation.shortlist import Shortlist
from qinco_core.optional import import_faiss
from qinco_core.progress import Silent
from qinco_core.vectors import open_vectors, read_stream, write_vectors

METRICS = ["l2", "ip", "cosine"]


def plain(xb, xq, k, metric="l2"):
    """By definition, in float64, compared as float32; a stable sort gives ties to the lower id."""
    x, q = xb.astype(np.float64), xq.astype(np.float64)
    if metric == "cosine":
        x, q = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (x, q))
    pairs = ((q[i : i + 1], x) for i in range(len(q)))
    values = [np.square(a - b).sum(1) if metric == "l2" else -(a * b).sum(1) for a, b in pairs]
    values = np.array(values, np.float32).reshape(len(q), len(x))
    ids = np.argsort(values, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(values, ids, axis=1)
    return ids, values if metric == "l2" else -values


def check(xb, xq, k, metric="l2", **options):
    """Compare with the definition, to the last float32 of every value."""
    ids, values = exact_neighbors([xb], xq, k, metric=metric, **options)
    expected_ids, expected = plain(xb, xq, k, metric)
    n = min(k, len(xb))
    np.testing.assert_array_equal(ids[:, :n], expected_ids)
    np.testing.assert_array_equal(values[:, :n], expected)
    assert (ids[:, n:] == -1).all()
    assert (values[:, n:] == (np.inf if metric == "l2" else -np.inf)).all()
    assert (ids.dtype, values.dtype, ids.shape) == (np.int64, np.float32, (len(xq), k))


@pytest.fixture(scope="module")
def text(request):
    path = request.path.parents[2] / "examples" / "data" / "text_base.npy"
    with open_vectors(path) as file:
        return file.read(0, 800)


@pytest.fixture
def doubles():
    """Counts the products in float64."""
    with mock.patch.object(Shortlist, "_double", autospec=True, side_effect=Shortlist._double) as spy:
        yield spy


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("threads", [1, 2])
def test_real_vectors_match_the_definition(base, queries, text, metric, threads, doubles):
    check(base[:3000].astype(np.uint8), queries[:30], 50, metric, threads=threads)
    check(text[:700], text[700:].astype(np.float64), 50, metric, threads=threads)
    assert not doubles.called


def test_the_shipped_ground_truth_is_found(base, queries, truth):
    ids, _ = exact_neighbors([base], queries, 10)
    assert recall_at(ids, truth, ks=(1, 10)) == {1: 1.0, 10: 1.0}
    np.testing.assert_array_equal(ids, truth[:, :10])


@given(
    xb=st.lists(st.tuples(*[st.integers(0, 2)] * 2), max_size=30),
    cut=st.integers(0, 30),
    k=st.integers(1, 12),
    entries=st.integers(1, 200),
    block=st.integers(1, 200),
    metric=st.sampled_from(METRICS),
)
def test_ties_blocks_and_chunks(xb, cut, k, entries, block, metric):
    xb = np.array(xb, dtype=np.uint8).reshape(-1, 2)
    xq = np.array([[0, 0], [1, 1], [2, 0]], dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "_PENDING", 2)
        patch.setattr(Sizes, "fit", lambda *_: Sizes(block, entries, None, 0, 0))
        ids, values = exact_neighbors(iter([xb[:cut], xb[cut:]]), xq, k, metric=metric)
    expected_ids, expected = plain(xb, xq, k, metric)
    n = min(k, len(xb))
    np.testing.assert_array_equal(ids[:, :n], expected_ids)
    np.testing.assert_array_equal(values[:, :n], expected)
    assert (ids[:, n:] == -1).all()


@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 700),
    D=st.integers(1, 9),
    k=st.integers(1, 40),
    offset=st.sampled_from([0.0, 1.0, 1e5, 1e9]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
    kind=st.sampled_from(["normal", "copies", "outlier", "line"]),
    metric=st.sampled_from(METRICS),
)
def test_floats_of_any_size_match_the_definition(seed, n, D, k, offset, scale, kind, metric):
    random = np.random.default_rng(seed)
    xb = random.standard_normal((n, D))
    if kind == "copies":
        xb = xb[random.integers(0, -(-n // 8), n)]
    elif kind == "outlier":
        xb[random.integers(n)] *= 1e7
    elif kind == "line":  # distances apart by less than float32 tells
        xb = xb[:1] + np.arange(n)[:, None] * 1e-9
    xq = np.concatenate([random.standard_normal((3, D)), xb[:2], np.zeros((1, D))])
    with mock.patch.object(neighbors, "_ENTRIES", 1), mock.patch.object(neighbors, "_BLOCK", 256 * D):
        check((xb + offset) * scale, (xq + offset) * scale, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "types", [("uint8", "float32"), ("int8", "float16"), (">f4", "int64"), ("float64", "uint8"), ("int32", ">f8")]
)
def test_types_of_all_kinds(base, queries, metric, types):
    check((base[:700] // 2).astype(types[0]), (queries[:9] // 2).astype(types[1]), 20, metric)


def test_arrays_that_torch_would_not_take(base, queries):
    xb = np.asfortranarray(base[:900])[::-2]
    xb.flags.writeable = False
    check(xb, queries[:10, :], 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "nq", "k"), [(1, 1, 1), (1, 1, 5), (300, 1, 1), (1, 40, 3), (300, 5, 1000), (65, 2, 64)])
def test_few_of_something(base, queries, metric, n, nq, k):
    check(base[:n], queries[:nq], k, metric)


def test_no_queries_and_no_vectors(base, queries):
    ids, distances = exact_neighbors([base[:10]], queries[:0], 3)
    assert ids.shape == distances.shape == (0, 3)
    ids, _ = exact_neighbors([], queries[:2], 3)
    assert (ids == -1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_length_zero(base, metric):
    xb = base[:200].astype(np.float32)
    xb[[3, 90]] = 0
    xq = np.concatenate([np.zeros((1, 128)), -base[:3], base[5:8]])
    check(xb, xq, 20, metric)
    if metric == "cosine":
        ids, values = exact_neighbors([xb], xq, 2, metric=metric)
        assert ids[0].tolist() == [0, 1]
        assert (values[0] == 0).all()
        assert ids[1].tolist() == [3, 90]


def test_a_large_offset_needs_no_products_in_float64(base, queries, doubles):
    near, distances = exact_neighbors([base[:500]], queries[:20], 5)
    far, same = exact_neighbors([base[:500] + np.float64(1e9)], queries[:20] + np.float64(1e9), 5)
    np.testing.assert_array_equal(near, far)
    np.testing.assert_array_equal(distances, same)
    assert not doubles.called


def test_where_float32_cannot_tell_float64_does(base, queries, doubles):
    xb = base[:6000].astype(np.float64)
    xb[2500] = 1e7  # makes the margin of its neighbours in the file as wide as all distances
    check(xb, queries[:50], 10)
    assert doubles.called


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_too_short_for_float32(base, queries, metric, doubles):
    check(base[:500] * np.float64(1e15), queries[:10] * np.float64(1e-42), 20, metric)
    assert doubles.called == (metric == "ip")
    check(base[:500] * np.float64(1e-20), queries[:10] * np.float64(1e-20), 20, metric)


def test_many_copies_of_the_nearest(base, queries):
    xb = np.concatenate([np.repeat(base[:3], 2000, axis=0), base[3:50]]) / 7
    check(xb, queries[:5] / 7, 30)
    check(xb, xb[:3], 30)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_shorter_products_change_nothing(base, queries, precision, doubles):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check(base[:1000], queries[:10], 10)
    finally:
        torch.set_float32_matmul_precision(before)
    assert doubles.called


def test_ids_beyond_32_bits(base, queries):
    search = NeighborSearch(queries[:4], 3, metric="l2", plan=plan("cpu"))
    search.count = (1 << 32) - 100
    search.add(base[:300])
    expected, _ = plain(base[:300], queries[:4], 3)
    np.testing.assert_array_equal(search.result()[0], expected + (1 << 32) - 100)
    assert search.count == (1 << 32) + 200


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_faiss_finds_the_same(base, queries, text, metric):
    faiss = import_faiss()
    for xb, xq in ((base, queries[:50]), (text[:700].astype(np.float32), text[700:].astype(np.float32))):
        index = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(xb.shape[1])
        index.add(xb)
        theirs, their_ids = index.search(xq, 20)
        ids, values = exact_neighbors([xb], xq, 20, metric=metric)
        np.testing.assert_allclose(values, theirs, rtol=1e-4)
        differ = ids != their_ids
        assert differ.mean() < 0.1
        # what differs is as near as float32 can tell
        np.testing.assert_allclose(values[differ], theirs[differ], rtol=1e-5)


def test_memory_is_kept_to(base, queries):
    sizes = Sizes.fit(128, 100, plan("cpu", threads=2), 1 << 30)
    assert sizes.queries is not None
    assert sizes.bytes + sizes.queries * sizes.query_bytes <= 1 << 30
    small = Sizes.fit(128, 100, plan("cpu", threads=2), 1 << 23)
    assert small.queries is not None
    assert small.bytes + small.queries * small.query_bytes <= 1 << 23
    assert small.rows < sizes.rows
    check(base[:2000], queries[:20], 30, memory=1 << 23)
    with pytest.raises(UsageError, match="bytes are too few for k = 30 neighbours"):
        exact_neighbors([base], queries, 30, memory=1 << 16)
    with pytest.raises(UsageError, match=r"200 queries with 5000 neighbours each do not fit 30,000,000 bytes: allow"):
        exact_neighbors([base], queries, 5000, memory=30_000_000)


@given(D=st.integers(1, 4096), k=st.integers(1, 5000), threads=st.integers(1, 64), memory=st.integers(1, 1 << 40))
def test_a_refusal_names_memory_that_will_do(D, k, threads, memory):
    where = plan("cpu", "float32", threads)
    try:
        sizes = Sizes.fit(D, k, where, memory)
    except UsageError as error:
        enough = int(str(error).split(": ")[1].split(" will do")[0].replace(",", ""))
        assert enough > memory
        sizes, memory = Sizes.fit(D, k, where, enough), enough
    assert sizes.queries is not None
    assert sizes.queries >= 1
    assert sizes.bytes + sizes.queries * sizes.query_bytes <= memory


def test_what_does_not_fit_is_refused(base, queries):
    with pytest.raises(DimensionError, match="queries of dimension 64"):
        exact_neighbors([base[:10]], base[:2, :64], 1)
    with pytest.raises(DimensionError, match="queries of shape"):
        exact_neighbors([base[:10]], base[0], 1)
    with pytest.raises(UsageError, match="1 or more"):
        exact_neighbors([base[:10]], base[:2], 0)
    with pytest.raises(UsageError, match="no metric 'l1'; there are l2, ip, cosine"):
        exact_neighbors([base[:10]], base[:2], 1, metric="l1")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="no device 'tpu'"):
        exact_neighbors([base[:10]], base[:2], 1, device="tpu")
    for wrong in (np.nan, np.inf, 1e30):
        for xb, xq in ((base[:10] + wrong, queries[:2]), (base[:10], queries[:2] + wrong)):
            with pytest.raises(UsageError, match="beyond float32"):
                exact_neighbors([xb.astype(np.float64)], xq.astype(np.float64), 1)


class Steps(Silent):
    """Remembers what was said."""

    def begin(self, title, total, unit):
        self.total, self.done = total, 0

    def advance(self, amount, **figures):
        self.done += amount


@pytest.fixture
def files(base, queries, tmp_path):
    write_vectors(tmp_path / "base.u8bin", base[:3000])
    write_vectors(tmp_path / "query.fvecs", queries)
    with open_vectors(tmp_path / "base.u8bin") as xb, open_vectors(tmp_path / "query.fvecs") as xq:
        yield xb, xq


@pytest.mark.parametrize("metric", METRICS)
def test_a_file_is_read_as_often_as_the_memory_asks(files, base, queries, metric):
    work = GroundTruth(*files, 40, metric=metric, plan=plan("cpu", threads=1), memory=1_000_000)
    assert work.passes > 2
    assert work.memory <= 1_000_000
    steps = Steps()
    ids, values = map(np.concatenate, zip(*work.batches(steps), strict=True))
    assert steps.done == steps.total == work.passes * 3000
    expected_ids, expected = plain(base[:3000], queries, 40, metric)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected)


def test_the_time_is_told_from_a_sample(files):
    work = GroundTruth(*files, 40, metric="l2", plan=plan("cpu", threads=1), memory=1_000_000)
    with mock.patch.object(groundtruth, "_SAMPLE", 1000):
        seconds = work.forecast()
    assert seconds is not None
    assert 0 < seconds < 100


def test_a_stream_is_read_once(files, base, tmp_path):
    options = {"metric": "l2", "plan": plan("cpu", threads=1)}
    expected, _ = exact_neighbors([base[:3000]], files[1].read(0, 200), 40)
    with (tmp_path / "base.u8bin").open("rb") as handle:
        stream = read_stream(handle, "u8bin")
        with pytest.raises(UsageError, match="can be read only once, and 200 queries"):
            GroundTruth(stream, files[1], 40, memory=1_000_000, **options)
        work = GroundTruth(stream, files[1], 40, memory=1 << 30, **options)
        ((ids, _),) = work.batches()
    np.testing.assert_array_equal(ids, expected)
    write_vectors(tmp_path / "few.bvecs", base[:30])
    with (tmp_path / "few.bvecs").open("rb") as handle:  # the number of vectors is known at the end
        work = GroundTruth(read_stream(handle, "bvecs"), files[1], 40, memory=1 << 30, **options)
        assert work.forecast() is None
        with pytest.raises(UsageError, match="has 30 vectors, too few for 40 neighbours a query: use -k 30"):
            list(work.batches())


def test_work_that_cannot_be_done_is_refused(files, text, tmp_path):
    options = {"metric": "l2", "plan": plan("cpu", threads=1), "memory": 1 << 30}
    with pytest.raises(UsageError, match="too few for 3,001 neighbours"):
        GroundTruth(*files, 3001, **options)
    with pytest.raises(UsageError, match="1 or more"):
        GroundTruth(*files, 0, **options)
    write_vectors(tmp_path / "text.npy", text[:5])
    with open_vectors(tmp_path / "text.npy") as wide, pytest.raises(DimensionError, match="has dimension 384, but"):
        GroundTruth(files[0], wide, 5, **options)
