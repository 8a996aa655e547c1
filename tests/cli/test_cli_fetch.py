"""`qinco fetch`, and data sets by name in the other commands."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import BASE, LEARN, QUERIES, SIZES, TRUTH, done, environment, finish, run, start, wait_until

from qinco_cli import evaluate
from qinco_core.store import Store
from qinco_core.vectors import open_vectors, write_vectors

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from servers import Surroundings, Web, serve_http, surroundings

SIFT = """
[datasets.sift]
about = "the sample"
dim = 128
mse_scale = 1e-4
limit = 1000
train = {{ source = "{LEARN}", limit = 3000 }}
base = "{BASE}"
queries = {{ source = "{QUERIES}", limit = 50 }}
groundtruth = "{truth}"
"""


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nearest neighbours of the first 50 queries among the first 1000 base vectors."""
    path = tmp_path_factory.mktemp("truth") / "truth.ivecs"
    with open_vectors(BASE, limit=1000) as base, open_vectors(QUERIES, limit=50) as queries:
        x, q = base.read(0, 1000).astype(np.float64), queries.read(0, 50).astype(np.float64)
    distances = (q**2).sum(1)[:, None] + (x**2).sum(1) - 2 * q @ x.T
    write_vectors(path, np.argsort(distances, axis=1)[:, :10].astype(np.int32))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: Path) -> Surroundings:
    found = surroundings(tmp_path, monkeypatch)
    found.register(SIFT.format(LEARN=LEARN, BASE=BASE, QUERIES=QUERIES, truth=truth))
    return found


@pytest.fixture
def web(here: Surroundings) -> Iterator[Web]:
    with serve_http() as served:
        served.files["base.u8bin"] = BASE.read_bytes()
        served.files["query.fvecs"] = QUERIES.read_bytes()
        served.files["model.pt"] = b"weights"
        here.register(
            "[datasets.mine]\ndim = 128\n"
            f"base = {{ source = '{served.url('base.u8bin')}', count = 10_000 }}\n"
            f"queries = '{served.url('query.fvecs')}'\n"
            f"[[files]]\nname = 'net'\nkind = 'model'\nsource = '{served.url('model.pt')}'\n"
        )
        yield served


def test_stdout_is_the_paths(here: Surroundings, web: Web) -> None:
    ended = done("fetch", "mine", "net")
    paths = [here.cache / "mine" / "base.u8bin", here.cache / "mine" / "query.fvecs", here.cache / "net" / "model.pt"]
    assert ended.text.split() == list(map(str, paths))
    assert f"fetched {paths[0]}" in ended.err
    assert paths[0].read_bytes() == BASE.read_bytes()
    assert done("fetch", "mine", "--part", "queries", "-q").text.split() == [str(paths[1])]
    assert len(web.requests) == 3


def test_json(here: Surroundings, web: Web) -> None:
    (one,) = json.loads(done("fetch", "net", "--json", "-q").out)
    assert one["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert {name: one[name] for name in ("name", "parts", "bytes", "state")} == {
        "name": "net",
        "parts": ["file"],
        "bytes": 7,
        "state": "fetched",
    }


def test_dry_run_says_what_would_come_and_does_nothing(here: Surroundings, web: Web) -> None:
    text = done("fetch", "mine", "net", "--dry-run").text
    size = len(QUERIES.read_bytes())
    assert f"mine base     missing, 1.2 MiB, {web.url('base.u8bin')} to {here.cache}/mine/base.u8bin" in text
    assert "would fetch" in text
    assert "free" in text
    found = json.loads(done("fetch", "mine", "net", "--dry-run", "--json").out)
    assert [one["bytes"] for one in found["files"]] == [1_280_008, size, 7]
    assert found["bytes"] == 1_280_008 + size + 7
    assert found["unknown"] == 0
    assert {method for method, *_ in web.requests} == {"HEAD"}
    assert not here.cache.exists()
    web.heads = 405
    assert "net missing, unknown size (the server does not tell)" in " ".join(
        done("fetch", "mine", "net", "--dry-run").text.split()
    )
    del web.files["query.fvecs"]
    web.heads = None
    found = json.loads(done("fetch", "mine", "--dry-run", "--json").out)
    assert (found["unknown"], found["bytes"]) == (1, 1_280_008)
    assert "HTTP 404" in found["files"][1]["note"]


def test_list(here: Surroundings, web: Web) -> None:
    done("fetch", "mine", "--part", "queries", "-q")
    listed = {one["name"]: one for one in json.loads(done("fetch", "--list", "--json").out)}
    assert listed["mine"]["here"] == ["queries"]
    assert listed["mine"]["bytes"] == 1_280_008 + len(QUERIES.read_bytes())
    assert (listed["net"]["kind"], listed["net"]["bytes"], listed["net"]["here"]) == ("model", None, [])
    assert "bigann1M" in listed
    assert "qinco2_L-deep1M-8x8" in listed
    lines = done("fetch", "--list").text.splitlines()
    assert next(line for line in lines if line.startswith("mine")).split()[1:] == [
        "data",
        "set",
        "1.5",
        "MiB",
        "queries",
    ]


def test_a_users_file_that_is_not_there_is_not_here(here: Surroundings) -> None:
    here.register("[datasets.mine]\ndim = 4\nbase = 'nowhere.npy'")
    listed = {one["name"]: one for one in json.loads(done("fetch", "--list", "--json").out)}
    assert listed["mine"]["here"] == []
    text = done("fetch", "mine", "--dry-run", "--force").text
    assert f"mine base    missing, {here.folder}/nowhere.npy" in text
    found = json.loads(done("fetch", "mine", "--dry-run", "--json").out)
    assert (found["files"][0]["state"], found["bytes"], found["unknown"]) == ("missing", 0, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name what to fetch, or list the names there are with --list"),
        (["mine", "--list"], 2, "name what to fetch, or list"),
        (["--list", "--part", "bogus"], 2, "--list lists all there is: leave --part, --force and --dry-run out"),
        (["--list", "--dry-run"], 2, "--list lists all there is"),
        (["--list", "--force"], 2, "--list lists all there is"),
        (["mines"], 2, "nothing is called 'mines': did you mean mine?"),
        (["mine", "--part", "learn"], 2, "no part 'learn' of a data set"),
        (["mine", "--part", "train"], 2, "the data set mine has no part 'train'"),
        (["net", "--part", "base"], 2, "a file of the kind model, not a data set"),
        (["mine", "nime"], 2, "nothing is called 'nime'"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, message: str, web: Web) -> None:
    ended = run("fetch", *arguments)
    assert ended.code == code
    assert message in ended.complaint
    assert web.requests == []


def test_failures(here: Surroundings, web: Web) -> None:
    web.files.pop("model.pt")
    ended = run("fetch", "net")
    assert ended.code == 1
    assert "the server has no such file (HTTP 404)" in ended.complaint
    web.files["model.pt"], web.kind = b"<html>please log in</html>", "TEXT/HTML; charset=utf-8"
    assert "the server sends a web page, not the file" in run("fetch", "net").complaint
    web.kind = None
    done("fetch", "mine", "-q")
    (here.cache / "mine" / "base.u8bin").write_bytes(b"damaged")
    ended = run("fetch", "mine", "-q")
    assert ended.code == 1
    assert ended.out == b""
    assert "changed or damaged" in ended.complaint


def test_cache_and_force(web: Web, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "net" / "model.pt"
    assert done("fetch", "net", "--cache", tmp_path / "elsewhere", "-q").text.strip() == str(place)
    web.files["model.pt"] = b"other weights"
    done("fetch", "net", "--cache", tmp_path / "elsewhere", "--force", "-q")
    assert place.read_bytes() == b"other weights"


def test_an_interrupted_fetch_goes_on(here: Surroundings, web: Web) -> None:
    web.files["model.pt"] = bytes(np.random.default_rng(0).bytes(300_000))
    web.cuts = [100_000]
    web.stalls = True
    process = start("fetch", "net", env=environment(NO_PROXY="*"))
    partial = here.cache / "net" / "model.pt.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    assert "interrupted; what has come is kept: the same command goes on" in ended.complaint
    web.stalls = False
    kept = partial.stat().st_size
    done("fetch", "net", "-q")
    assert web.asked_from == [None, f"bytes={kept}-"]


def test_names_where_vectors_are_asked_for(model: Path, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    for command in (["train", *SIZES], ["centroids", "--k", 4]):
        assert json.loads(done(*command, "sift", "--dry-run", "--json").out)["input"] == str(LEARN)
    done("encode", "sift", "--limit", 100, "--model", model, *store, "-q")
    (ours,) = json.loads(
        done("eval", "sift", "--codes", "sift", "--limit", 100, "--model", model, *store, "--json", "-q").out
    )["results"]
    assert ours["mse"] > 0
    done("encode", "sift::queries", "--name", "q", "--model", model, *store, "-q")
    assert Store(tmp_path / "store").codes("q").exists()
    report = json.loads(done("pairwise", "sift", "--model", model, "--tables", 0, "--dry-run", "--json").out)
    assert report["input"] == str(LEARN)
    assert report["vectors"] <= 3000


def test_names_in_search_and_tune(index_store: Store, here: Surroundings) -> None:
    where = ("--store", index_store.root, "--threads", 1, "--json", "-q", "--limit", 50)
    here.register(SIFT.format(LEARN=LEARN, BASE=BASE, QUERIES=QUERIES, truth=TRUTH).replace("limit = 1000", ""))
    given = done("search", QUERIES, "--groundtruth", TRUTH, "--rerank", f"exact:{BASE}", *where)
    named = done("search", "sift", "--groundtruth", "sift", "--rerank", "exact:sift", *where)
    assert [stage["recall"] for stage in json.loads(named.out)["stages"]] == [
        stage["recall"] for stage in json.loads(given.out)["stages"]
    ]
    ended = run("tune", "sift", "--groundtruth", "sift::groundtruth", "--skip", 60, *where)
    assert ended.complaint == "qinco: sift::queries has 50 vectors; skipping 60 leaves none"
    ended = run("tune", "sift", "--base", "sift::queries", *where)
    assert "sift::queries has 50 vectors, but the index has ids up to 9999" in ended.complaint
    ended = run("index", "base", "--train", "bigann1M", "--store", index_store.root)
    assert "qinco fetch bigann1M --part train (1,321,320,000 bytes)" in ended.complaint


def test_a_name_that_is_not_fetched_and_one_that_is_none(model: Path, web: Web) -> None:
    ended = run("encode", "mine", "--model", model)
    assert ended.code == 2
    assert "get it with qinco fetch mine --part base (1,280,008 bytes), or all of the set" in ended.complaint
    ended = run("train", "bigan1M")
    assert ended.code == 2
    assert "bigan1M does not exist; did you mean the data set bigann1M" in ended.complaint
    done("fetch", "mine", "-q")
    done("encode", "mine", "--limit", 10, "--model", model, "-o", "-", "-q")


def test_eval_on_a_data_set(model: Path, truth: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--threads", 1, "-q")
    named = json.loads(done("eval", "--dataset", "sift", *options, "--json").out)
    with open_vectors(QUERIES, limit=50) as queries:
        write_vectors(tmp_path / "q.fvecs", queries.read(0, 50))
    names = (BASE, "--limit", 1000, "--queries", tmp_path / "q.fvecs", "--groundtruth", truth)
    given = json.loads(done("eval", *names, *options, "--json").out)
    (ours,), (theirs,) = named["results"], given["results"]
    assert (named["dataset"], named["mse_scale"]) == ("sift", 1e-4)
    assert ours["recall"] == theirs["recall"]
    assert ours["mse"] == theirs["mse"]
    assert ours["scaled_mse"] == pytest.approx(1e-4 * ours["mse"])
    assert "dataset" not in given
    text = done("eval", "--dataset", "sift", "--limit", 500, *options).text
    assert "MSE × 0.0001" in text.splitlines()[0]
    assert text.count("MSE × 0.0001") == 2


def test_eval_baselines_are_trained_on_the_sets_training_part(model: Path) -> None:
    pytest.importorskip("faiss")
    options = ("--baseline", "PQ", "--limit", 300, "--model", model, "--threads", 1, "-q", "--json")
    named = json.loads(done("eval", "--dataset", "sift", *options).out)["results"][1]
    assert named["scaled_mse"] == pytest.approx(1e-4 * named["mse"])


def test_eval_baselines_get_no_more_training_vectors_than_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    options = ("--dataset", "sift", "--baseline", "PQ", "--limit", 300, "--model", model, "--threads", 1)
    ended = done("eval", *options)
    assert "baselines get the first 2,700 training vectors of sift; for more, use --train" in ended.err
    assert "training PQ on 2,700 vectors" in ended.err
    ended = done("eval", *options, "--train", "sift")
    assert "baselines get" not in ended.err
    assert "training PQ on 3,000 vectors" in ended.err
    monkeypatch.setattr(evaluate, "_MOST_TRAINING", 500)
    assert "training PQ on 500 vectors" in done("eval", *options).err


def test_eval_on_a_data_set_whose_name_a_folder_has(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sift").mkdir()
    found = json.loads(done("eval", "--dataset", "sift", "--model", model, "--threads", 1, "-q", "--json").out)
    assert (found["vectors"], found["count"], found["dataset"]) == (str(BASE), 1000, "sift")


def test_eval_on_a_file_of_ann_benchmarks(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "sift.data"  # its content tells, not its name
    with (
        open_vectors(BASE, limit=500) as base,
        open_vectors(QUERIES, limit=20) as queries,
        h5py.File(path, "w") as file,
    ):
        file.attrs["distance"] = "euclidean"
        file["train"] = base.read(0, 500).astype(np.float32)
        file["test"] = queries.read(0, 20)
    options = ("--model", model, "--threads", 1, "-q", "--json")
    computed = json.loads(done("eval", "--dataset", path, *options).out)
    (ours,) = computed["results"]
    assert computed["vectors"] == f"{path}::train"
    with h5py.File(path, "r+") as file:
        x, q = file["train"][:].astype(np.float64), file["test"][:].astype(np.float64)
        file["neighbors"] = np.argsort(((q[:, None] - x) ** 2).sum(2), axis=1)[:, :5].astype(np.int32)
    (again,) = json.loads(done("eval", "--dataset", path, *options).out)["results"]
    assert again["recall"]["1"] == ours["recall"]["1"]
    ended = run("eval", "--dataset", path, "--baseline", "PQ", "--model", model)
    assert "give their training vectors with --train" in ended.complaint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([BASE, "--dataset", "sift"], "leave XB out"),
        (["--dataset", "sift", "--queries", QUERIES], "leave --queries out"),
        (["--dataset", "sift", "--groundtruth", TRUTH], "leave --groundtruth out"),
        (["--dataset", "sift", "--valset", LEARN], "leave --valset out"),
        (["--dataset", "soft"], "nothing is called 'soft': did you mean sift?"),
        (["--dataset", "bigann1M"], "qinco fetch bigann1M --part base (132,000,000 bytes)"),
        ([], "a file XB, or --valset XT, or --dataset NAME"),
    ],
)
def test_eval_options_that_do_not_go_together(arguments: list[object], message: str, model: Path) -> None:
    ended = run("eval", *arguments, "--model", model)
    assert ended.code == 2
    assert message in ended.complaint


def test_info(here: Surroundings) -> None:
    facts = json.loads(done("info", "sift", "--json").out)
    assert (facts["kind"], facts["D"], facts["limit"]) == ("data set", 128, 1000)
    assert facts["base"] == {"state": "local", "file": str(BASE)}
    assert json.loads(done("info", "sift::queries", "--json").out)["file"] == "sift::queries"
    assert "state missing" in done("info", "bigann1M").text


def test_published_centroids_by_name(here: Surroundings, tmp_path: Path) -> None:
    centroids = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    with serve_http() as web:
        np.save(tmp_path / "c.npy", centroids)
        web.files["coarse.npy"] = (tmp_path / "c.npy").read_bytes()
        here.register(f"[[files]]\nname = 'coarse4'\nkind = 'centroids'\nsource = '{web.url('coarse.npy')}'\n")
        ended = run("centroids", "--import", "coarse4", "--store", tmp_path / "store")
        assert ended.complaint.endswith("get it with qinco fetch coarse4")
        assert run("train", "sift", "--ivf", "coarse4").complaint == ended.complaint
        done("fetch", "coarse4", "-q")
    done("centroids", "--import", "coarse4", "--store", tmp_path / "store")
    done("centroids", "--export", tmp_path / "out.npy", "--store", tmp_path / "store")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), centroids)
