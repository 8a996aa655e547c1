"""`qinco groundtruth`: the neighbours it writes, who can use them, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, LEARN, QUERIES, TEXT, TRUTH, contents, done, finish, run, start, wait_until

from qinco_core.evaluation import groundtruth
from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.vectors import open_vectors, write_vectors


def read(path: Path) -> np.ndarray:
    with open_vectors(path) as file:
        return file.read(0, len(file))


def test_the_shipped_ground_truth_is_made(tmp_path):
    out, distances = tmp_path / "truth.ivecs", tmp_path / "distances.fvecs"
    ended = done("groundtruth", BASE, QUERIES, "-k", 100, "-o", out, "--distances", distances, "--json")
    assert out.read_bytes() == TRUTH.read_bytes()
    expected = np.square(read(QUERIES)[:, None] - read(BASE)[read(out)[:, :5]].astype(np.float32)).sum(2)
    np.testing.assert_array_equal(read(distances)[:, :5], expected)
    said = json.loads(ended.out)
    facts = {"vectors": 10_000, "queries": 500, "k": 100, "metric": "l2", "passes": 1}
    assert said == facts | {"output": str(out), "distances": str(distances), "seconds": said["seconds"]}
    assert "the 100 nearest of 10,000 vectors to 500 queries" in ended.err


@pytest.mark.parametrize("name", ["truth.ibin", "truth.npy", "truth.ivecs"])
def test_formats_of_ids(name, tmp_path):
    done("groundtruth", BASE, QUERIES, "-k", 3, "-o", tmp_path / name, "--memory", "8M", "--threads", 1, "-q")
    np.testing.assert_array_equal(read(tmp_path / name), read(TRUTH)[:, :3])


def test_vectors_and_ids_through_pipes(tmp_path):
    options = ["--format", "u8bin", "-k", 5, "-o", "-", "-q"]
    piped = done("groundtruth", "-", QUERIES, *options, stdin=BASE.read_bytes()).out
    (tmp_path / "piped.ivecs").write_bytes(piped)
    np.testing.assert_array_equal(read(tmp_path / "piped.ivecs"), read(TRUTH)[:, :5])


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_similarities(metric, tmp_path):
    out, values = tmp_path / "truth.npy", tmp_path / "similarities.npy"
    done("groundtruth", TEXT, TEXT, "-k", 4, "--metric", metric, "-o", out, "--distances", values, "-q")
    ids, expected = exact_neighbors([read(TEXT)], read(TEXT), 4, metric=metric)
    np.testing.assert_array_equal(read(out), ids)
    np.testing.assert_array_equal(read(values), expected)
    assert (np.diff(expected) <= 0).all()


def test_a_part_of_a_file_without_its_extension(tmp_path):
    (tmp_path / "base").write_bytes(LEARN.read_bytes())
    (tmp_path / "query").write_bytes(QUERIES.read_bytes())
    formats = ["--format", "bvecs", "--query-format", "fvecs"]
    window = ["--skip", 200, "--limit", 1000]
    done("groundtruth", tmp_path / "base", tmp_path / "query", *formats, *window, "-k", 2, "-o", tmp_path / "t.npy")
    expected, _ = exact_neighbors([read(LEARN)[200:1200]], read(QUERIES), 2)
    np.testing.assert_array_equal(read(tmp_path / "t.npy"), expected)


def test_search_and_eval_take_it(model, codes, tmp_path):
    out = tmp_path / "truth.ivecs"
    done("groundtruth", BASE, QUERIES, "-o", out, "-q")
    common = ["--model", model, "--groundtruth", out, "--json", "-q", "--threads", 1]
    found = json.loads(done("search", QUERIES, "--codes", codes, "-k", 10, *common).out)
    assert 0 < found["stages"][-1]["recall"]["10"] <= 1
    measured = json.loads(done("eval", BASE, "--codes", codes, "--queries", QUERIES, *common).out)
    assert 0 < next(iter(measured["results"]))["recall"]["10"] <= 1


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(groundtruth, "_SAMPLE", 1000)
    arguments = ["groundtruth", BASE, QUERIES, "-o", tmp_path / "new" / "t.ivecs", "--dry-run"]
    text = done(*arguments).text
    assert "10,000 vectors of 128 × uint8, 1 times" in text
    assert "500 × 100 each" in text
    said = json.loads(done(*arguments, "--json").out)
    assert said["seconds"] > 0
    assert 0 < said["memory_bytes"] < 1 << 30
    stream = ["groundtruth", "-", QUERIES, "--format", "bvecs", "-o", "-", "--dry-run"]
    assert "unknown until the stream ends" in done(*stream, stdin=LEARN.read_bytes()).text
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_cannot_be_written_and_passes_what_is_there(tmp_path):
    (tmp_path / "t.npy").write_bytes(b"mine")
    done("groundtruth", BASE, QUERIES, "-o", tmp_path / "t.npy", "--dry-run")
    ended = run("groundtruth", BASE, QUERIES, "-o", tmp_path / "t.npy" / "new" / "x.npy", "--dry-run")
    assert (ended.code, "would lie inside a file" in ended.complaint) == (1, True)
    assert contents(tmp_path) == {"t.npy": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([BASE, QUERIES, "-o", "{tmp}/t.bvecs"], 2, "bvecs files hold no ids; write one of"),
        ([BASE, QUERIES, "-o", "{tmp}/t.fvecs"], 2, "fvecs files hold no ids; write one of"),
        ([BASE, QUERIES, "-o", "{tmp}/truth"], 2, "there is no extension"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--distances", "{tmp}/d.ivecs"], 2, "hold no distances"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--distances", "{tmp}/t.npy"], 2, "cannot hold both"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--distances", "{tmp}/none/../t.npy"], 2, "cannot hold both"),
        ([BASE, QUERIES, "-o", "{tmp}/t.hdf5::I", "--distances", "{tmp}/t.hdf5::D"], 2, "cannot hold both"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--distances", "-"], 2, "distances are written to a file"),
        ([BASE, QUERIES, "-o", "{tmp}/there.ivecs"], 2, "--force"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--distances", "{tmp}/there.ivecs"], 2, "hold no distances"),
        ([BASE, QUERIES, "-o", "{tmp}/there.hdf5::I", "--device", "tpu"], 2, "there.hdf5 exists"),
        ([BASE, QUERIES, "-o", "-", "--json"], 2, "both write to stdout"),
        ([BASE, "-", "-o", "{tmp}/t.npy"], 2, "queries are read from a file"),
        (["-", QUERIES, "-o", "{tmp}/t.npy"], 2, "need --format"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "-k", 0], 2, "1 or more"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "-k", 10_001], 2, "use -k 10000"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--limit", 20], 2, "use -k 20"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--metric", "l1"], 2, "no metric 'l1'"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--memory", "10K"], 2, "are too few for k = 100"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--memory", "much"], 2, "no size"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--device", "tpu"], 2, "no device"),
        ([BASE, QUERIES, "-o", "{tmp}/t.npy", "--threads", 0], 2, "threads"),
        ([TEXT, QUERIES, "-o", "{tmp}/t.npy"], 1, "has dimension 128, but"),
        ([BASE, "{tmp}/none.fvecs", "-o", "{tmp}/t.npy"], 2, "does not exist"),
        ([BASE, "{tmp}/nan.npy", "-o", "{tmp}/t.npy"], 1, "row 1 (counted from 0) holds NaN"),
        (["{tmp}/nan.npy", QUERIES, "-k", 2, "-o", "{tmp}/t.npy"], 1, "row 1 (counted from 0) holds NaN"),
        (["{tmp}/huge.npy", QUERIES, "-k", 2, "-o", "{tmp}/t.npy"], 2, "beyond float32"),
    ],
)
def test_what_cannot_be(arguments, code, says, tmp_path):
    vectors = np.ones((3, 128), np.float32)
    (tmp_path / "there.ivecs").write_bytes(b"mine")
    (tmp_path / "there.hdf5").write_bytes(b"mine")
    write_vectors(tmp_path / "huge.npy", vectors * 1e30)
    vectors[1, 5] = np.nan
    np.save(tmp_path / "nan.npy", vectors)
    before = contents(tmp_path)
    ended = run("groundtruth", *(str(a).format(tmp=tmp_path) for a in arguments), "-q")
    assert (ended.code, ended.out) == (code, b""), ended.err
    assert says in ended.complaint
    assert contents(tmp_path) == before


def test_a_stream_with_too_few_vectors_leaves_nothing(tmp_path):
    few = LEARN.read_bytes()[: 132 * 30]
    options = ["--format", "bvecs", "-o", tmp_path / "t.npy", "-q"]
    ended = run("groundtruth", "-", QUERIES, *options, stdin=few)
    assert (ended.code, "has 30 vectors, too few for 100" in ended.complaint) == (2, True)
    ended = run("groundtruth", "-", QUERIES, *options, stdin=few[:-3])
    assert (ended.code, "was cut after 29 vectors" in ended.complaint) == (1, True)
    assert contents(tmp_path) == {}


def test_force_overwrites(tmp_path):
    (tmp_path / "t.ivecs").write_bytes(b"mine")
    done("groundtruth", BASE, QUERIES, "-k", 1, "-o", tmp_path / "t.ivecs", "--force", "-q")
    np.testing.assert_array_equal(read(tmp_path / "t.ivecs"), read(TRUTH)[:, :1])


def test_an_interrupted_run_leaves_nothing(tmp_path):
    folder = tmp_path / "out"
    process = start(
        "groundtruth", "-", QUERIES, "--format", "bvecs", "-o", folder / "t.ivecs", stdin=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    process.stdin.write(LEARN.read_bytes()[: 132 * 400])  # and then nothing: it waits for more
    wait_until(lambda: folder.exists() and any(folder.iterdir()), process)
    process.terminate()
    ended = finish(process)
    assert ended.code == 130
    assert "interrupted; nothing was written: start again with the same command" in ended.err
    assert contents(tmp_path) == {}
