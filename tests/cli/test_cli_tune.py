"""`qinco tune`: the front it finds, that it goes on, and that it says when there is nothing to find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, QUERIES, TEXT, TRUTH, contents, done, run, start, wait_until

from qinco_core.config import SearchConfig
from qinco_core.index import bench
from qinco_core.index.index import Index
from qinco_core.index.tune import Point, pareto
from qinco_core.store import Store
from qinco_core.vectors import write_vectors

FEW = ["--limit", 100, "--threads", 1]


@pytest.fixture
def store(index_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy to change, and clocks that are content with little."""
    monkeypatch.setattr(bench, "_SECONDS", 0.0)
    monkeypatch.setattr(bench, "_REPETITIONS", 1)
    shutil.copytree(index_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


def tune(store: Store, *arguments: object) -> dict:
    return dict(json.loads(done("tune", QUERIES, "--store", store.root, *FEW, "-q", "--json", *arguments).out))


def noted(store: Store) -> list[dict]:
    return [json.loads(line) for line in (store.index / "tuning.jsonl").read_text().splitlines()]


def test_a_front_is_found_and_search_uses_it(store, tmp_path):
    said = tune(store, "--groundtruth", TRUTH, "--recall", 0.5, "--plot", tmp_path / "front.png")
    front, chosen = said["front"], said["chosen"]
    assert [point["recall"] for point in front] == sorted({point["recall"] for point in front})
    assert [point["seconds"] for point in front] == sorted({point["seconds"] for point in front})
    assert chosen == next(point for point in front if point["recall"] >= 0.5)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    search = ["search", QUERIES, "--store", store.root, *FEW, "-q", "--json"]
    found = json.loads(done(*search, "--groundtruth", TRUTH, "--recall", 0.5).out)
    assert found["params"] == chosen["params"]
    assert found["stages"][-1]["recall"]["10"] == pytest.approx(chosen["recall"], abs=0.02)
    with Index.open(store.index) as opened:
        assert [entry["recall"] for entry in opened.front] == [point["recall"] for point in front]


def test_the_same_command_measures_nothing_twice(store):
    first = tune(store, "--groundtruth", TRUTH, "--time", "500ms")
    count = len(noted(store))
    assert count
    whole = tune(store, "--groundtruth", TRUTH)
    lines = noted(store)
    assert len(lines) > count
    assert len({json.dumps(line["params"]) for line in lines}) == len(lines)
    assert tune(store, "--groundtruth", TRUTH) == whole
    assert noted(store) == lines
    assert {point["recall"] for point in first["front"]} <= {line["recall"] for line in lines}
    tune(store, "--groundtruth", TRUTH, "--at", 1, "--time", "1ms")  # something else to measure
    assert len(noted(store)) == len(lines) + 1
    with Index.open(store.index) as opened:
        assert {entry["at"] for entry in opened.front} == {1, 10}


def front(store: Store) -> list[dict]:
    with Index.open(store.index) as opened:
        return opened.front


def test_a_run_that_sees_less_keeps_the_front_that_is_there(store):
    tune(store, "--groundtruth", TRUTH)
    whole = front(store)
    with Index.open(store.index) as opened:
        little = opened.memory_bytes(SearchConfig(rerank="none"))
    small = tune(store, "--groundtruth", TRUTH, "--memory", little)["front"]
    assert {point["params"]["rerank"] for point in small} == {"none"}
    assert small[-1]["recall"] < whole[-1]["recall"]
    kept = front(store)
    assert kept[-1]["recall"] == whole[-1]["recall"]
    assert [Point.parse(entry) for entry in kept] == pareto(Point.parse(line) for line in noted(store))
    others = ["tune", QUERIES, "--store", store.root, *FEW, "--skip", 100, "--groundtruth", TRUTH, "--time", "1ms"]
    assert "keeps those of another run" in done(*others).err
    assert front(store) == kept


def test_runs_cut_short_add_up(store):
    for _ in range(2):
        tune(store, "--groundtruth", TRUTH, "--time", "1ms")
    best = pareto(Point.parse(line) for line in noted(store))
    assert [Point.parse(entry) for entry in front(store)] == best
    assert len(noted(store)) == 2


def test_true_neighbours_can_be_computed(store):
    given = tune(store, "--groundtruth", TRUTH, "--time", "300ms")
    computed = tune(store, "--base", BASE, "--time", "300ms")
    recall = {json.dumps(line["params"]): line["recall"] for line in noted(store)}
    for point in given["front"] + computed["front"]:
        assert recall[json.dumps(point["params"])] == point["recall"]
    assert tune(store, "--base", BASE, "--metric", "cosine", "--time", "1ms")["setting"]["metric"] == "cosine"


def test_a_batch_is_no_larger_than_the_queries(store):
    assert tune(store, "--groundtruth", TRUTH, "--time", "1ms")["setting"]["batch"] == 100


def test_single_queries_are_a_setting_of_their_own(store):
    assert tune(store, "--groundtruth", TRUTH, "--single", "--time", "1ms")["setting"]["batch"] == 1
    with Index.open(store.index) as opened:
        assert {entry["batch"] for entry in opened.front} == {1}


def test_what_cannot_be_reached_is_said_and_the_front_kept(store):
    common = ["tune", QUERIES, "--store", store.root, *FEW, "--groundtruth", TRUTH, "--time", "300ms", "-q"]
    ended = run(*common, "--recall", 1)
    assert ended.code == 1
    assert "no operating point reaches R@10 = 1; the best reaches 0." in ended.complaint
    assert ended.text.splitlines()[0].split()[:3] == ["R@10", "queries/s", "ms"]
    with Index.open(store.index) as opened:
        assert opened.front
    ended = run(*common, "--recall", 0.01, "--budget", "0.0001ms")
    assert "within 0.0001 ms a query; none keeps the time" in ended.complaint
    ended = run(*common, "--memory", "1K")
    assert (ended.code, "at least" in ended.complaint) == (1, True)


def test_an_interrupted_exploration_keeps_its_front(store):
    process = start("tune", QUERIES, "--store", store.root, *FEW, "--groundtruth", TRUTH)
    wait_until(lambda: (store.index / "tuning.jsonl").exists(), process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err.decode()
    with Index.open(store.index) as opened:
        assert len(opened.front) >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([QUERIES], 2, "one of the two"),
        ([QUERIES, "--groundtruth", TRUTH, "--base", BASE], 2, "one of the two"),
        ([QUERIES, "--groundtruth", TRUTH, "--recall", 90], 2, "share"),
        ([QUERIES, "--groundtruth", TRUTH, "--at", 0], 2, "at least 1"),
        ([QUERIES, "--groundtruth", TRUTH, "--budget", "fast"], 2, "no duration"),
        ([QUERIES, "--groundtruth", TRUTH, "--memory", "-1"], 2, "no size"),
        ([QUERIES, "--groundtruth", "{tmp}/beyond.ivecs"], 2, "names the vector 10000"),
        ([QUERIES, "--groundtruth", "{tmp}/few.ivecs"], 2, "3 rows for 500 queries"),
        ([QUERIES, "--groundtruth", TRUTH, "--metric", "l1"], 2, "no metric"),
        ([QUERIES, "--base", QUERIES], 2, "ids up to 9999"),
        ([QUERIES, "--groundtruth", TRUTH, "--plot", "{tmp}/few.ivecs"], 2, "--force"),
        ([QUERIES, "--groundtruth", TRUTH, "--index", "{tmp}"], 2, "holds no index"),
        ([TEXT, "--groundtruth", TRUTH], 1, "dimension 384"),
    ],
)
def test_what_cannot_be_tuned(arguments, code, says, index_store, tmp_path):
    write_vectors(tmp_path / "beyond.ivecs", np.full((500, 1), 10_000, np.int32))
    write_vectors(tmp_path / "few.ivecs", np.zeros((3, 1), np.int32))
    before = contents(tmp_path), contents(index_store.root)
    filled = (str(a).format(tmp=tmp_path) for a in arguments)
    ended = run(
        "tune", *filled, "--threads", 1, "-q", *(() if "--index" in arguments else ("--store", index_store.root))
    )
    assert (ended.code, ended.out) == (code, b""), ended.err
    assert says in ended.complaint
    assert (contents(tmp_path), contents(index_store.root)) == before
