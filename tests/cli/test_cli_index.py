"""`qinco index`: build, add, remove, export, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, LEARN, QUERIES, TRUTH, contents, done, run

from qinco_core.api import Codec
from qinco_core.errors import StorageError
from qinco_core.index import training_codes
from qinco_core.index.index import Index
from qinco_core.store import Store, load_results
from qinco_core.vectors import open_vectors, write_vectors

N, NLIST = 10_000, 64
ONE = ["--threads", 1, "-q"]


@pytest.fixture
def store(index_store: Store, tmp_path: Path) -> Store:
    """A copy to change."""
    shutil.copytree(index_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 training vectors as a file of their own."""
    path = tmp_path_factory.mktemp("learn") / "learn.bvecs"
    with open_vectors(LEARN, limit=3000) as file:
        write_vectors(path, file.read(0, 3000))
    return path


def facts(store: Store, *arguments: object) -> dict:
    return dict(json.loads(done("index", *arguments, "--store", store.root, *ONE, "--json").out))


def search(store: Store, *arguments: object, k: int = 10) -> dict:
    options = ["-k", k, "--groundtruth", TRUTH, "--nprobe", NLIST, "--n-short", 100, *ONE, "--json"]
    return dict(json.loads(done("search", QUERIES, "--store", store.root, *options, *arguments).out))


def test_the_codes_of_the_store_become_its_index(store):
    before = search(store)["stages"][-1]["recall"]
    shutil.rmtree(store.index)
    said = facts(store)
    assert (said["vectors"], said["lists"], said["index"]) == (N, NLIST, str(store.index))
    assert said["bytes"] == sum(path.stat().st_size for path in store.index.iterdir())
    assert said["bytes_per_vector"] < 30
    assert search(store)["stages"][-1]["recall"] == before


def test_additive_codebooks_can_be_fitted_here(store, learn):
    shutil.rmtree(store.index)
    store.pairwise.unlink()
    ended = run("index", "--store", store.root, *ONE)
    assert (ended.code, "--train XT" in ended.complaint) == (2, True)
    assert facts(store, store.codes("base"), "--train", learn)["vectors"] == N
    found = search(store)
    assert [stage["stage"] for stage in found["stages"]] == ["scan", "qinco"]
    assert found["stages"][1]["recall"]["10"] > 0.3


def test_an_index_elsewhere_with_ids_in_little_memory(store, tmp_path):
    ids = np.random.default_rng(1).permutation(N) + (1 << 33)
    np.save(tmp_path / "ids.npy", ids)
    place = tmp_path / "elsewhere"
    facts(store, "base", "-o", place, "--ids", tmp_path / "ids.npy", "--memory", "64K")
    for name, options in (("a", []), ("b", ["--index", place])):
        done("search", QUERIES, "--store", store.root, *options, *ONE, "--name", name)
    plain, named = (load_results(store.results(name)).ids for name in "ab")
    np.testing.assert_array_equal(named, ids[plain])
    header = load_results(store.results("b")).header
    assert [parent.kind for parent in header.parents] == ["index", "model"]
    assert header.config["params"]["nprobe"] == 16


def test_add_remove_and_export_in_one_go(store, tmp_path):
    first = search(store)["stages"][-1]["recall"]
    gone = np.arange(0, N, 2)
    np.save(tmp_path / "gone.npy", gone)
    said = facts(store, "--remove", tmp_path / "gone.npy")
    assert (said["removed"], said["vectors"]) == (N // 2, N // 2)
    done("search", QUERIES, "--store", store.root, *ONE, "-o", tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:
        assert (arrays["I"] % 2 == 1).all()
    np.save(tmp_path / "all.npy", np.arange(N))
    np.save(tmp_path / "rest.npy", np.arange(1, N, 2))
    facts(store, "--remove", tmp_path / "rest.npy")
    arguments = ["--add", "base", "--ids", tmp_path / "all.npy", "--export", tmp_path / "base.faiss"]
    said = facts(store, *arguments)
    assert (said["added"], said["vectors"]) == (N, N)
    assert (tmp_path / "base.faiss").stat().st_size > 10 * N
    assert search(store)["stages"][-1]["recall"] == pytest.approx(first, abs=0.02)


def test_a_dry_run_writes_nothing(store, tmp_path):
    before = contents(tmp_path)
    said = facts(store, "--dry-run", "-o", tmp_path / "other")
    assert said["bytes_per_vector"] == 4 + 4 + 2
    built = sum(path.stat().st_size for path in store.index.iterdir())
    assert said["vectors"] == N and said["output_bytes"] == pytest.approx(built, rel=0.1)
    assert said["seconds"] > 0
    assert "10 bytes a vector" in done("index", "--store", store.root, "--dry-run", *ONE).text
    assert contents(tmp_path) == before


def test_a_dry_run_counts_what_building_does(store, learn, monkeypatch):
    monkeypatch.setattr(training_codes, "forecast", lambda *_, **__: {"seconds": 1e6, "memory_bytes": 1 << 40})
    fitted = facts(store, "--dry-run", "--train", learn)
    assert fitted["seconds"] > 1e6
    assert fitted["memory_bytes"] == 1 << 40
    assert str(learn) in done("index", "--store", store.root, "--dry-run", "--train", learn, *ONE).text
    monkeypatch.setattr(Codec, "decode", None)  # building runs no network
    assert 0 < facts(store, "--dry-run")["seconds"] < 100
    ended = run("index", "--store", store.root, "--dry-run", "--train", "none.bvecs", *ONE)
    assert (ended.code, "none.bvecs does not exist" in ended.complaint) == (2, True)


def test_an_export_that_would_fail_changes_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    before = contents(store.root, [".lock"])
    ended = run("index", "--add", "base", "--export", tmp_path / "base.faiss", "--store", store.root, *ONE)
    assert (ended.code, "Faiss" in ended.complaint) == (1, True)
    assert contents(store.root, [".lock"]) == before


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def fill_the_disk(*_: object, **__: object) -> None:
    raise StorageError("no room left")


def test_who_interrupts_is_told_what_was_done(store, tmp_path, monkeypatch):
    np.save(tmp_path / "gone.npy", np.arange(3))
    monkeypatch.setattr(Index, "remove", interrupt)
    call = ["index", "--remove", tmp_path / "gone.npy", "--store", store.root, *ONE]
    assert "nothing was changed: start again" in run(*call).complaint
    ended = run(*call, "--add", "base")
    assert (ended.code, "--add is done: go on without it" in ended.complaint) == (130, True)
    monkeypatch.setattr(Index, "remove", fill_the_disk)
    assert "no room left; --add is done: go on without it" in run(*call, "--add", "base").complaint
    monkeypatch.setattr(Index, "build", interrupt)
    (store.index / "manifest.h5").write_bytes(b"damaged")
    assert "nothing was changed: start again" in run("index", "base", "--force", "--store", store.root, *ONE).complaint


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--force"),
        (["none", "--force"], 2, "none.h5 does not exist"),
        (["--pairwise", "{store}/pairwise.h5", "--train", LEARN], 2, "give one of the two"),
        (["--pairwise", "{store}/none.h5", "--force"], 2, "does not exist"),
        (["--pairwise", "{store}/model.h5", "--force"], 1, "model"),
        (["--memory", "lots", "--force"], 2, "512M or 2G"),
        (["base", "--add", "base"], 2, "leave CODES out"),
        (["--remove", "x.npy", "--train", LEARN], 2, "leave --train out"),
        (["--add", "base", "--dry-run"], 2, "leave --dry-run out"),
        (["--ids", "{tmp}/three.npy", "--force"], 2, "3 ids for 10000 codes"),
        (["--ids", "{tmp}/minus.npy", "--force"], 2, "0 or more"),
        (["--add", "base", "-o", "{tmp}/none"], 2, "holds no index"),
        (["--remove", "{tmp}/floats.npy"], 2, "ids are integers"),
        (["--export", "{tmp}/three.npy"], 2, "--force"),
        (["--add", "base", "--export", "{tmp}/three.npy"], 2, "--force"),
        (["--add", "base", "--remove", "{tmp}/none.npy"], 2, "none.npy does not exist"),
        (["-o", "{tmp}/new", "--pairwise", "{store}/model.h5"], 1, "model"),
        (["-o", "{store}/model.h5/index"], 1, "inside a file"),
    ],
)
def test_what_cannot_be_indexed(arguments, code, says, index_store, tmp_path):
    np.save(tmp_path / "three.npy", np.arange(3))
    np.save(tmp_path / "minus.npy", np.arange(N) - 1)
    np.save(tmp_path / "floats.npy", np.zeros(3))
    places = {"store": index_store.root, "tmp": tmp_path}
    before = contents(tmp_path), contents(index_store.root, [".lock"])
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    ended = run("index", *(str(a).format(**places) for a in arguments), "--store", index_store.root, *ONE)
    assert (ended.code, ended.out) == (code, b""), ended.err
    assert says in ended.complaint
    assert (contents(tmp_path), contents(index_store.root, [".lock"])) == before
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == folders


def test_codes_of_another_model_are_refused(store, model):
    for arguments in (["--force"], ["--dry-run"]):
        ended = run("index", "--store", store.root, "--model", model, *arguments, *ONE)
        assert ended.code == 1
        assert "model" in ended.complaint


def test_several_codes_have_to_be_named(store):
    shutil.copy(store.codes("base"), store.codes("more"))
    ended = run("index", "--store", store.root, "--force", *ONE)
    assert (ended.code, "base, more" in ended.complaint) == (2, True)


def test_a_model_that_was_replaced_is_noticed(store, model):
    shutil.copy(model, store.model)
    ended = run("search", QUERIES, "--store", store.root, *ONE)
    assert ended.code == 1
    assert "build the index again" in ended.complaint


def test_an_index_of_another_base_has_another_truth(store, tmp_path):
    with open_vectors(BASE, limit=100) as file:
        write_vectors(tmp_path / "few.fvecs", file.read(0, 100).astype(np.float32))
    done("encode", tmp_path / "few.fvecs", "--store", store.root, *ONE)
    facts(store, "few", "--force")
    ended = run("search", QUERIES, "--store", store.root, "--groundtruth", TRUTH, *ONE)
    assert ended.code == 2
    assert "it is the ground truth of other vectors" in ended.complaint
