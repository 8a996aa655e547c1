"""Operating points: what pruning may leave out, what is kept, what is found again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_core.config import SearchConfig
from qinco_core.errors import UsageError
from qinco_core.index import bench
from qinco_core.index.bench import Bench, Notebook, true_neighbors
from qinco_core.index.index import Index
from qinco_core.index.tune import (
    Point,
    Setting,
    explore,
    fastest,
    grid,
    known_points,
    merge_front,
    operating_point,
    pareto,
)
from qinco_core.vectors import open_vectors, write_vectors

GRIDS = {
    "small": grid(64, 10, pairwise=True),
    "plain": grid(100, 1, pairwise=False),
    "large": grid(65536, 10, pairwise=False),
}
positive = st.floats(0.01, 10)


@st.composite
def monotone(draw):
    """A measurement whose recall and time grow with every parameter."""
    gains = draw(st.lists(positive, min_size=4, max_size=4))
    costs = draw(st.lists(positive, min_size=5, max_size=5))
    steps = draw(st.integers(3, 1000))  # recall is a share of so many queries: plateaus

    def measure(params: SearchConfig) -> Point:
        sizes = (params.nprobe, params.ef or 1e9, params.n_mid, params.n_short)
        parts = [1 - 1 / (1 + gain * math.log1p(size)) for gain, size in zip(gains, sizes, strict=True)]
        coarse = costs[0] * params.ef if params.ef else 300 * costs[4]
        seconds = coarse + costs[1] * params.nprobe + costs[2] * params.n_mid + costs[3] * params.n_short
        return Point(params, round(steps * sum(parts) / 4) / steps, seconds)

    return measure


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=15, deadline=None)
@given(measure=monotone())
def test_what_is_left_out_is_no_better_than_what_is_found(name, measure):
    points = GRIDS[name][:400]
    found = list(explore(points, measure))
    front = pareto(found)
    for params in points:
        point = measure(params)
        assert any(kept.recall >= point.recall and kept.seconds <= point.seconds for kept in front), params


def test_pruning_saves_most_of_the_work():
    def measure(params: SearchConfig) -> Point:
        recall = min(1.0, math.log2(1 + params.nprobe) / 5) * (0.5 + min(params.n_short, 80) / 160)
        return Point(params, recall, 1e-6 * (params.nprobe + params.n_mid + 4 * params.n_short))

    points = GRIDS["small"]
    found = list(explore(points, measure))
    assert len(found) < len(points) / 3
    assert max(point.recall for point in found) == 1


@given(measure=monotone(), cut=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_an_exploration_goes_on_where_it_stopped(measure, cut):
    whole = list(explore(GRIDS["small"], measure))
    asked = []

    def noting(params: SearchConfig) -> Point:
        asked.append(params)
        return measure(params)

    list(explore(GRIDS["small"], noting, known=whole[:cut]))
    assert asked == [point.params for point in whole[cut:]]


@given(measure=monotone(), share=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_a_budget_leaves_out_only_what_cannot_keep_it(measure, share):
    times = sorted(measure(params).seconds for params in GRIDS["small"])
    budget = times[int(share * (len(times) - 1))]
    front = pareto(explore(GRIDS["small"], measure, budget=budget))
    for params in GRIDS["small"]:
        point = measure(params)
        if point.seconds <= budget:
            assert any(kept.recall >= point.recall and kept.seconds <= point.seconds for kept in front)


@pytest.mark.parametrize(("nlist", "at"), [(1, 1), (3, 10), (100, 100), (1 << 20, 10)])
@pytest.mark.parametrize("pairwise", [False, True])
def test_the_grid_has_only_sensible_points(nlist, at, pairwise):
    points = grid(nlist, at, pairwise=pairwise)
    assert len(set(points)) == len(points)
    for p in points:
        assert p.nprobe <= nlist
        assert p.ef == 0 or p.ef >= p.nprobe
        assert p.n_mid == 0 or (pairwise and p.n_mid > p.n_short)
        assert p.n_short == 0 or p.n_short >= at
        assert p.rerank == ("qinco" if p.n_short else "pairwise" if p.n_mid else "none")
    assert max(p.nprobe for p in points) == min(nlist, 1024)
    assert any(p.ef for p in points) == (nlist > 4096)
    assert any(p.n_mid for p in points) == pairwise
    assert (points[0].nprobe, points[0].rerank) == (1, "none")  # the cheapest first


points = st.lists(
    st.builds(
        Point,
        st.builds(SearchConfig, nprobe=st.integers(1, 99)),
        st.integers(0, 10).map(lambda n: n / 10),
        st.integers(1, 20).map(lambda n: n / 100),
    ),
    max_size=30,
)


@given(points)
def test_a_front_is_what_nothing_beats(measured):
    front = pareto(measured)
    assert [p.seconds for p in front] == sorted({p.seconds for p in front})
    assert [p.recall for p in front] == sorted({p.recall for p in front})
    assert set(front) <= set(measured)
    for p in measured:
        assert any(f.recall >= p.recall and f.seconds <= p.seconds for f in front)


@given(points, st.floats(0, 1), st.floats(0, 0.25))
def test_the_fastest_of_a_front_is_the_fastest_of_all(measured, recall, budget):
    best, known = fastest(pareto(measured), recall, budget), fastest(measured, recall, budget)
    assert (best is None) == (known is None)
    if best is not None:
        assert best.seconds == known.seconds
        assert best.recall >= recall


def point(recall: float, seconds: float, nprobe: int = 1) -> Point:
    return Point(SearchConfig(nprobe=nprobe), recall, seconds)


def test_a_new_front_replaces_only_its_own_setting():
    ten, one = Setting(at=10, batch=1000, threads=2), Setting(at=10, batch=1, threads=2)
    first = merge_front([], [point(0.5, 0.1), point(0.8, 0.2)], ten)
    both = merge_front(first, [point(0.8, 0.4)], one)
    assert both[:2] == first
    again = merge_front(both, [point(0.9, 0.3)], ten)
    assert again == [both[2], {**ten.fields(), **point(0.9, 0.3).fields()}]
    json.dumps(again)
    assert known_points(again, one) == [point(0.8, 0.4)]


def test_search_takes_the_fastest_known_point():
    together = [point(0.5, 0.01, 2), point(0.9, 0.03, 8), point(0.95, 0.09, 16)]
    front = merge_front([], together, Setting(batch=1000))
    front = merge_front(front, [point(0.9, 0.002, 4)], Setting(batch=1))

    def chosen(recall: float, **how: object) -> int:
        asked = {"at": 10, "metric": "l2", "single": False} | how
        return operating_point(front, recall, **asked).params.nprobe

    assert [chosen(0.1), chosen(0.9), chosen(0.91)] == [2, 8, 16]
    assert chosen(0.9, single=True) == 4
    assert chosen(0.95, single=True) == 16
    with pytest.raises(UsageError, match=r"R@10 = 0\.99; the best reaches 0\.950\. Ask for less"):
        chosen(0.99)
    for how in ({"at": 1}, {"metric": "ip"}):
        with pytest.raises(UsageError, match="qinco tune XQ"):
            chosen(0.1, **how)


def test_the_notebook_gives_back_what_was_noted(tmp_path):
    path = tmp_path / "tuning.jsonl"
    book, other = Notebook(path, "a" * 32), Notebook(path, "b" * 32)
    assert book.read() == []
    measured = [point(0.1, 0.001), point(1 / 3, 1e-5, 7)]
    book.append(measured[0])
    other.append(point(0.9, 0.9))
    book.append(measured[1])
    assert book.read() == measured
    assert len(other.read()) == 1


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_is_measured_again(tmp_path, cut):
    book = Notebook(tmp_path / "tuning.jsonl", "a" * 32)
    for n in (1, 2):
        book.append(point(0.5, 0.1, n))
    book.path.write_bytes(book.path.read_bytes()[:-cut])
    assert book.read() == [point(0.5, 0.1, 1)] + ([point(0.5, 0.1, 2)] if cut == 1 else [])
    book.append(point(0.5, 0.1, 3))
    assert book.read()[-1] == point(0.5, 0.1, 3)
    assert len(book.read()) == (3 if cut == 1 else 2)


@pytest.mark.parametrize("line", ["", "[]", "1", '{"key": 3}', "\udcff", '{"key": "%s", "params": {"nprobe": 0}}'])
def test_foreign_lines_do_not_count(tmp_path, line):
    book = Notebook(tmp_path / "tuning.jsonl", "a" * 32)
    book.append(point(0.5, 0.1))
    with book.path.open("ab") as file:
        file.write(line.replace("%s", book.key).encode("utf-8", "surrogateescape") + b"\n")
    assert book.read() == [point(0.5, 0.1)]


def test_true_neighbours_by_length_and_by_direction(tmp_path: Path):
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    x *= rng.uniform(0.1, 10, (300, 1)).astype(np.float32)
    write_vectors(tmp_path / "x.npy", x)
    with open_vectors(tmp_path / "x.npy") as file:
        near = np.square(q[:, None] - x[None]).sum(2).argmin(1)
        np.testing.assert_array_equal(true_neighbors(file, q, "l2", np.arange(300))[:, 0], near)
        alike = (q @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T).argmax(1)
        np.testing.assert_array_equal(true_neighbors(file, q, "cosine", np.arange(300))[:, 0], alike)
        there = np.arange(0, 300, 2)
        near = there[np.square(q[:, None] - x[None, there]).sum(2).argmin(1)]
        np.testing.assert_array_equal(true_neighbors(file, q, "l2", there[::-1])[:, 0], near)
        np.testing.assert_array_equal(true_neighbors(file, q, "ip", np.arange(300))[:, 0], (q @ x.T).argmax(1))


def test_a_bench_measures_what_the_index_finds(index_store, sift_learn, monkeypatch):
    monkeypatch.setattr(bench, "_SECONDS", 0.0)
    with open_vectors(sift_learn.with_name("sift_query.fvecs"), limit=60) as file:
        xq = file.read(0, 60)
    with open_vectors(sift_learn.with_name("sift_groundtruth.ivecs"), limit=60) as file:
        truth = file.read(0, 60)
    params = SearchConfig(nprobe=4, n_mid=0, n_short=20)
    with Index.open(index_store.index, threads=1) as opened:
        recall = (opened.search(xq, 5, params)[1] == truth[:, :1]).any(axis=1).mean()
        settings = [Setting(at=5, batch=25), Setting(at=5, batch=1), Setting(at=5, batch=25, metric="ip")]
        benches = [Bench(opened, xq, truth, setting) for setting in settings] + [
            Bench(opened, xq[::-1], truth, settings[0])
        ]
        for measured in (benches[0](params), benches[1](params)):
            assert (measured.params, measured.recall) == (params, recall)
            assert 0 < measured.seconds < 1
        assert len({each.key for each in benches}) == 4
        assert benches[0].key == Bench(opened, xq.copy(), truth, settings[0]).key
        assert Bench(opened, xq, truth, Setting(batch=1000)).setting == Setting(batch=60)


def test_timings_are_of_a_machine_and_a_precision(index_store, monkeypatch):
    xq, truth = np.zeros((3, 128), np.float32), np.zeros((3, 1), np.int32)

    def key(precision: str) -> str:
        with Index.open(index_store.index, threads=1, precision=precision) as opened:
            return Bench(opened, xq, truth, Setting()).key

    keys = {key("float32"), key("bfloat16")}
    monkeypatch.setattr(bench, "_processor", lambda: "another")
    assert len(keys | {key("float32")}) == 3
