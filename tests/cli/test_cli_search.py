"""`qinco search`: what it finds, where it goes, what is said of it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, LEARN, PATIENCE, QUERIES, TEXT, TRUTH, contents, done, run, start

from qinco_core.config import SearchConfig
from qinco_core.index import report
from qinco_core.index.index import Index
from qinco_core.index.tune import Point, Setting
from qinco_core.store import Store, load_results, read_header
from qinco_core.vectors import open_vectors, write_vectors

N, NQ = 10_000, 500


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    with open_vectors(QUERIES) as file:
        return file.read(0, NQ).astype(np.float64)


@pytest.fixture
def all_codes(model: Path, codes: Path) -> list[object]:
    """The options of an exhaustive search."""
    return ["--model", model, "--codes", codes, "--threads", 1]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_all_codes_are_searched_where_there_is_no_index(model, codes, decoded, queries, tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "model.h5").symlink_to(model)
    (tmp_path / "codes" / "base.h5").symlink_to(codes)
    ended = done("search", QUERIES, "-k", 3, "--store", tmp_path, "--threads", 1)
    assert "no index in the store, searching all 10,000 codes" in ended.err
    found = lines(ended.text)
    assert [line["query"] for line in found] == list(range(NQ))
    distances = np.square(decoded.astype(np.float64)[None] - queries[:20, None]).sum(2)
    for line, row in zip(found[:20], distances, strict=True):
        np.testing.assert_allclose(line["distances"], np.sort(row)[:3], rtol=1e-4)
        np.testing.assert_allclose(line["distances"], row[line["ids"]], rtol=1e-4)


def test_every_format_holds_the_same(all_codes, model, codes, tmp_path):
    for name in ("r.h5", "r.npz", "r.ivecs", "r.jsonl"):
        done("search", QUERIES, "-k", 4, *all_codes, "-o", tmp_path / name, "-q", "--batch", 300)
    piped = done("search", QUERIES, "-k", 4, *all_codes, "-q")
    stored = load_results(tmp_path / "r.h5")
    assert stored.ids.shape == (NQ, 4)
    with np.load(tmp_path / "r.npz") as arrays:
        np.testing.assert_array_equal(arrays["I"], stored.ids)
        np.testing.assert_allclose(arrays["D"], stored.distances, rtol=1e-6)
    with open_vectors(tmp_path / "r.ivecs") as file:
        np.testing.assert_array_equal(file.read(0, NQ), stored.ids)
    assert [line["ids"] for line in lines((tmp_path / "r.jsonl").read_text())] == stored.ids.tolist()
    assert [line["ids"] for line in lines(piped.text)] == stored.ids.tolist()
    wanted = [(header.kind, header.fingerprint) for header in map(read_header, (codes, model))]
    assert [(parent.kind, parent.fingerprint) for parent in stored.header.parents] == wanted
    assert stored.header.config["queries"] == str(QUERIES)
    done("verify", tmp_path / "r.h5")
    assert json.loads(done("info", tmp_path / "r.h5", "--json").out)["config"]["k"] == 4


def test_queries_from_a_pipe_and_results_by_name(all_codes, tmp_path):
    filed = done("search", QUERIES, *all_codes, "-q", "--limit", 50)
    piped = done("search", "-", "--format", "fvecs", *all_codes, "-q", "--limit", 50, stdin=QUERIES.read_bytes())
    assert piped.out == filed.out
    done("search", QUERIES, *all_codes, "-q", "--skip", 20, "--limit", 30, "--name", "few", "--store", tmp_path)
    stored = load_results(tmp_path / "results" / "few.h5")
    assert stored.ids.tolist() == [line["ids"] for line in lines(filed.text)[20:]]


def test_the_report_needs_ground_truth_only_for_recall(all_codes, tmp_path):
    plain = json.loads(done("search", QUERIES, *all_codes, "-q", "--json").out)
    assert plain["stages"][0]["recall"] == {}
    assert plain["output"] is None
    found = json.loads(done("search", QUERIES, "-k", 100, *all_codes, "-q", "--json", "--groundtruth", TRUTH).out)
    recall = found["stages"][0]["recall"]
    assert list(recall) == ["1", "10", "100"]
    assert 0.05 < recall["1"] < recall["10"] < recall["100"] <= 1
    assert (found["queries"], found["vectors"], found["stages"][0]["stage"]) == (NQ, N, "qinco")
    assert found["latency"]["p99"] >= found["latency"]["p50"] > 0
    evaluated = json.loads(
        done("eval", BASE, *all_codes, "--queries", QUERIES, "--groundtruth", TRUTH, "--json", "-q").out
    )
    assert recall == pytest.approx(evaluated["results"][0]["recall"], abs=0.004)


def test_where_report_and_results_go(all_codes, tmp_path):
    truth = ["--groundtruth", TRUTH]
    only = done("search", QUERIES, *all_codes, *truth)
    assert only.text.splitlines()[0].split() == ["stage", "time", "queries/s", "R@1", "R@10"]
    both = done("search", QUERIES, *all_codes, *truth, "-o", "-")
    assert len(lines(both.text)) == NQ
    assert "R@10" in both.err
    filed = done("search", QUERIES, *all_codes, *truth, "-o", tmp_path / "r.npz")
    assert filed.text.splitlines()[0] == only.text.splitlines()[0]
    part = done("search", QUERIES, *all_codes, *truth, "--skip", 100, "--limit", 20, "--json")
    assert json.loads(part.out)["queries"] == 20


def test_allow_deny_and_metric(all_codes, tmp_path):
    np.save(tmp_path / "allow.npy", np.array([5, 70, 9000]))
    np.save(tmp_path / "deny.npy", np.array([70], np.uint16))
    limits = ["--allow", tmp_path / "allow.npy", "--deny", tmp_path / "deny.npy"]
    found = lines(done("search", QUERIES, *all_codes, *limits, "-q", "--metric", "cosine").text)
    assert all(set(line["ids"]) == {5, 9000} for line in found)
    assert all(1 >= line["distances"][0] >= line["distances"][1] > 0 for line in found)


def test_a_reader_that_stops_is_no_error(all_codes):
    process = start("search", QUERIES, *all_codes, "-q")
    assert json.loads(process.stdout.readline())["query"] == 0
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([TEXT], 1, "dimension 384"),
        (["{tmp}/none.fvecs"], 2, "does not exist"),
        ([QUERIES, "-k", 0], 2, "ask for 1 to 10000"),
        ([QUERIES, "-k", 10001], 2, "ask for 1 to 10000"),
        ([QUERIES, "--batch", 0], 2, "at least 1"),
        ([QUERIES, "--batch", -3], 2, "at least 1"),
        ([QUERIES, "--nprobe", 4], 2, "--nprobe is of an index"),
        ([QUERIES, "--recall", 0.9], 2, "--recall is of an index"),
        ([QUERIES, "--rerank", "exact:x.npy"], 2, "--rerank is of an index"),
        ([QUERIES, "--pairwise", "{tmp}/p.h5"], 2, "--pairwise is of an index"),
        ([QUERIES, "--index", "{tmp}"], 2, "give one of them"),
        ([QUERIES, "--metric", "l1"], 2, "there are l2, ip, cosine"),
        ([QUERIES, "--json", "-o", "-"], 2, "both write to stdout"),
        ([QUERIES, "--name", "a", "-o", "r.h5"], 2, "give one of the two"),
        ([QUERIES, "--groundtruth", QUERIES], 2, "ground truth is ids"),
        ([QUERIES, "--groundtruth", LEARN, "--limit", 50], 2, "ground truth is ids, int32 or int64"),
        ([QUERIES, "--groundtruth", "{tmp}/short.ivecs"], 2, "10 rows for 500 queries"),
        ([QUERIES, "--groundtruth", "{tmp}/beyond.ivecs"], 2, "names the vector 10000, but the largest"),
        ([QUERIES, "--allow", "{tmp}/floats.npy"], 2, "ids are integers"),
        ([QUERIES, "--deny", "{tmp}/square.npy"], 2, "in one dimension"),
        (["{tmp}/nan.npy"], 1, "NaN"),
        (["-"], 2, "--format"),
    ],
)
def test_what_cannot_be_searched(arguments, code, says, all_codes, tmp_path):
    ids = np.zeros((NQ, 1), np.int32)
    write_vectors(tmp_path / "short.ivecs", ids[:10])
    write_vectors(tmp_path / "beyond.ivecs", ids + N)
    np.save(tmp_path / "floats.npy", np.zeros(3))
    np.save(tmp_path / "square.npy", np.zeros((3, 3), np.int64))
    np.save(tmp_path / "nan.npy", np.full((NQ, 128), np.nan, np.float32))
    before = contents(tmp_path)
    output = [] if "-o" in arguments or "--json" in arguments else ["-o", tmp_path / "r.h5"]
    ended = run("search", *(str(a).format(tmp=tmp_path) for a in arguments), *all_codes, "-q", *output)
    assert (ended.code, ended.out) == (code, b""), ended.err
    assert says in ended.complaint
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("rows", "says"), [(30, "30 rows for 40 or more"), (50, "50 rows for 40 queries")])
def test_a_pipe_and_its_ground_truth_must_be_of_one_length(rows, says, all_codes, tmp_path):
    write_vectors(tmp_path / "truth.ivecs", np.zeros((rows, 1), np.int32))
    with open_vectors(QUERIES, limit=40) as file:
        write_vectors(tmp_path / "q.fvecs", file.read(0, 40))
    piped = ["search", "-", "--format", "fvecs", *all_codes, "--batch", 20, "-q", "-o", tmp_path / "r.h5"]
    ended = run(*piped, "--groundtruth", tmp_path / "truth.ivecs", stdin=(tmp_path / "q.fvecs").read_bytes())
    assert (ended.code, says in ended.complaint) == (2, True), ended.err
    assert set(contents(tmp_path)) == {"truth.ivecs", "q.fvecs"}


def test_the_store_has_one_set_of_codes_or_says_which(model, tmp_path):
    store = ["--store", tmp_path, "--model", model]
    ended = run("search", QUERIES, *store)
    assert (ended.code, "qinco encode" in ended.complaint) == (2, True)
    (tmp_path / "codes").mkdir()
    for name in ("one", "two"):
        (tmp_path / "codes" / f"{name}.h5").touch()
    assert "name one of one, two" in run("search", QUERIES, *store).complaint


def test_an_output_that_exists_is_kept(all_codes, tmp_path):
    (tmp_path / "r.npz").write_bytes(b"mine")
    ended = run("search", QUERIES, *all_codes, "-o", tmp_path / "r.npz")
    assert (ended.code, "--force" in ended.complaint) == (2, True)
    assert (tmp_path / "r.npz").read_bytes() == b"mine"
    done("search", QUERIES, *all_codes, "-o", tmp_path / "r.npz", "--force", "-q")


def test_codes_of_another_model_are_refused(other_model, codes):
    ended = run("search", QUERIES, "--model", other_model, "--codes", codes)
    assert ended.code == 1
    assert "were made by the model" in ended.complaint


@pytest.fixture
def indexed(index_store: Store) -> list[object]:
    """The options of a search in the small index."""
    return ["--store", index_store.root, "--threads", 1, "-q"]


def measured(*arguments: object) -> dict:
    return dict(json.loads(done("search", QUERIES, *arguments, "--json", "--groundtruth", TRUTH).out))


def test_every_stage_of_the_cascade_is_measured(indexed):
    found = measured(*indexed, "-k", 100, "--nprobe", 16, "--n-mid", 400, "--n-short", 200)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert list(stages) == ["scan", "pairwise", "qinco"]
    assert stages["scan"]["recall"]["10"] < stages["qinco"]["recall"]["10"]
    assert all(0 < stage["seconds"] < found["seconds"] for stage in stages.values())
    sizes = {"nprobe": 16, "ef": 0, "n_mid": 400, "n_short": 200, "n_exact": 20}
    assert found["params"] == {**sizes, "rerank": "qinco"}
    first = measured(*indexed, "-k", 100, "--nprobe", 16, "--rerank", "none")["stages"]
    assert [stage["stage"] for stage in first] == ["scan"]


def test_the_whole_index_finds_what_all_codes_hold(indexed):
    whole = measured(*indexed, "--nprobe", 64, "--n-mid", 0, "--n-short", 1000)["stages"][-1]["recall"]
    every = measured(*indexed, "--codes", "base")["stages"][-1]["recall"]
    assert whole == pytest.approx(every, abs=0.01)


def test_original_vectors_have_the_last_word(indexed, tmp_path):
    last = measured(*indexed, "--nprobe", 64, "--n-short", 100, "--n-exact", 100, "--rerank", f"exact:{BASE}")
    assert last["stages"][-1]["stage"] == "exact"
    assert last["stages"][-1]["recall"]["1"] > max(0.9, last["stages"][-2]["recall"]["1"])


def test_the_fastest_known_point_that_reaches_a_recall(index_store, indexed, tmp_path):
    shutil.copytree(index_store.root, tmp_path / "store")
    indexed[1] = tmp_path / "store"
    ended = run("search", QUERIES, *indexed, "--recall", 0.5)
    assert (ended.code, "qinco tune" in ended.complaint) == (2, True)
    with Index.open(tmp_path / "store" / "index") as opened:
        points = [Point(SearchConfig(nprobe=2, rerank="none"), 0.4, 1e-5), Point(SearchConfig(nprobe=8), 0.7, 1e-4)]
        opened.save_front(points, Setting())
    assert measured(*indexed, "--recall", 0.5)["params"]["nprobe"] == 8
    assert measured(*indexed, "--recall", 0.3)["params"]["nprobe"] == 2
    assert "best reaches 0.700" in run("search", QUERIES, *indexed, "--recall", 0.9).complaint
    assert "-k 10 or --at 5" in run("search", QUERIES, *indexed, "--recall", 0.5, "-k", 5).complaint


def test_the_latency_of_single_queries(indexed):
    ended = done("search", QUERIES, *indexed[:-1], "--batch", 1, "--limit", 40, "--groundtruth", TRUTH)
    assert "one query at a time: p50" in ended.err
    one = measured(*indexed, "--batch", 1, "--limit", 40)
    many = measured(*indexed, "--limit", 40)
    assert one["stages"][-1]["recall"] == many["stages"][-1]["recall"]


def test_an_index_without_a_pairwise_decoder(index_store, indexed, tmp_path):
    with open_vectors(LEARN, limit=3000) as learn:
        Index.build(tmp_path / "index", index_store.model, index_store.codes("base"), train=learn).close()
    plain = [QUERIES, "--index", tmp_path / "index", "--limit", 2, *indexed]
    assert "leave --n-mid out" in run("search", *plain, "--n-mid", 400).complaint
    assert "leave --pairwise out" in run("search", *plain, "--pairwise", index_store.pairwise).complaint
    done("search", *plain, "--n-mid", 0)


@pytest.mark.parametrize(
    ("output", "says"), [("-", "what was printed is not all"), ("{tmp}/r.h5", "nothing was written")]
)
def test_who_interrupts_is_told_what_there_is(output, says, indexed, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "search_batches", interrupt)
    ended = run("search", QUERIES, *indexed, "-o", output.format(tmp=tmp_path))
    assert (ended.code, f"{says}: start again" in ended.complaint) == (130, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--nprobe", 65], 2, "--nprobe 65 of 64 lists"),
        (["--nprobe", 0], 2, "nprobe"),
        (["--n-mid", -1], 2, "n_mid"),
        (["--rerank", "best"], 2, "rerank"),
        (["--rerank", "exact"], 2, "exact:FILE"),
        (["--rerank", "none:x"], 2, "only exact"),
        (["--rerank", f"exact:{TEXT}"], 1, "dimension 384"),
        (["--rerank", f"exact:{QUERIES}"], 2, "ids up to 9999"),
        (["--rerank", "exact:none.npy"], 2, "does not exist"),
        (["--recall", 0.5, "--nprobe", 4], 2, "leave --nprobe out"),
        (["--n-exact", 50], 2, "--n-exact is of the stage exact, but the last one is --rerank qinco"),
        (["--n-mid", 50, "--rerank", "none"], 2, "--n-mid is of the stage pairwise"),
        (["--n-short", 50, "--rerank", "pairwise"], 2, "--n-short is of the stage qinco"),
        (["-k", 10_001], 2, "ask for 1 to 10000"),
        (["--index", "{tmp}"], 2, "holds no index"),
        (["--groundtruth", "{tmp}/beyond.ivecs"], 2, "names the vector 10000"),
    ],
)
def test_what_an_index_cannot_be_asked(arguments, code, says, indexed, tmp_path):
    write_vectors(tmp_path / "beyond.ivecs", np.full((NQ, 1), N, np.int32))
    before = contents(tmp_path)
    filled = (str(a).format(tmp=tmp_path) for a in arguments)
    ended = run("search", QUERIES, *indexed, "-o", tmp_path / "r.h5", *filled)
    assert (ended.code, ended.out) == (code, b""), ended.err
    assert says in ended.complaint
    assert contents(tmp_path) == before
