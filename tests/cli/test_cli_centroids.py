"""`qinco centroids`: training, import and export, bad input."""

from __future__ import annotations

import json
import resource
import signal
import time

import numpy as np
import pytest
from command_line import LEARN, TEXT, contents, done, finish, run, spawn, start

from qinco_core.store import load_centroids

FEW = ["centroids", LEARN, "--limit", 3000, "--k", 32, "--iterations", 5, "--threads", 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    done(*FEW, "--store", folder, "-q")
    return folder


def test_the_store_is_the_default_place(trained):
    stored = load_centroids(trained / "centroids.h5")
    assert stored.centroids.shape == (32, 128)
    assert (stored.training["K"], stored.training["vectors"], stored.training["levels"]) == (32, 3000, 1)
    assert done("verify", trained / "centroids.h5").code == 0
    found = json.loads(done("info", trained / "centroids.h5", "--json").out)
    assert (found["kind"], found["ivf_K"], found["D"]) == ("centroids", 32, 128)
    assert found["training"] == stored.training


def test_what_it_says(tmp_path):
    ended = spawn(*FEW, "-o", tmp_path / "a.h5")
    assert ended.code == 0
    for name in ("32 of dimension 128", "MSE", "imbalance", "repaired", "time"):
        assert name in ended.text
    assert "k-means on" in ended.err and "wrote" in ended.err
    found = json.loads(done(*FEW, "-o", tmp_path / "b.h5", "--json", "-q").out)
    stored = load_centroids(tmp_path / "b.h5")
    assert found["fingerprint"] == stored.header.fingerprint
    assert found["fingerprint"] == load_centroids(tmp_path / "a.h5").header.fingerprint
    assert stored.training == {name: found[name] for name in stored.training}
    assert found["mse"] > 0 and found["imbalance"] >= 1 and found["repaired"] == 0


def test_options_arrive(tmp_path):
    options = ["--levels", 2, "--refine", 3, "--seed", 4, "--per-centroid", 50, "--device", "cpu"]
    found = json.loads(done(*FEW, *options, "-o", tmp_path / "c.h5", "--json", "-q").out)
    wanted = {"levels": 2, "refine": 3, "seed": 4, "per_centroid": 50, "vectors": 1600, "iterations": 5}
    assert {name: found[name] for name in wanted} == wanted


def test_export_and_import_again(trained, tmp_path):
    wanted = load_centroids(trained / "centroids.h5")
    assert done("centroids", "--store", trained, "--export", tmp_path / "c.npy").text
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy", allow_pickle=False), wanted.centroids)
    done("centroids", "--import", tmp_path / "c.npy", "--store", tmp_path / "new")
    stored = load_centroids(tmp_path / "new" / "centroids.h5")
    assert stored.header.fingerprint == wanted.header.fingerprint
    assert stored.training == {"source": str(tmp_path / "c.npy")}
    done("centroids", "--import", trained / "centroids.h5", "-o", tmp_path / "d.h5")
    assert load_centroids(tmp_path / "d.h5").training["mse"] == wanted.training["mse"]
    done("centroids", "--import", tmp_path / "d.h5", "--export", tmp_path / "d.npy")
    assert (tmp_path / "d.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()


@pytest.mark.parametrize(
    "arguments", [[*FEW, "--store", "{tmp}"], ["--import", "{kept}"], ["--import", "{kept}", "--export", "{tmp}/x.npy"]]
)
def test_a_dry_run_writes_nothing(arguments, trained, tmp_path):
    filled = [str(a).format(tmp=tmp_path, kept=trained / "centroids.h5") for a in arguments]
    filled = filled if filled[0] == "centroids" else ["centroids", *filled, "--store", tmp_path]
    assert "would write" in done(*filled, "--dry-run").text
    found = json.loads(done(*filled, "--dry-run", "--json").out)
    assert found["K"] == 32 and str(tmp_path) in found["output"]
    if filled[1] == str(LEARN):
        assert (found["sample"], found["output_bytes"], found["levels"]) == (3000, 32 * 128 * 4, 1)
        assert found["seconds"] > 0 and found["memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "name the training vectors"),
        (["{tmp}/none.fvecs", "--k", 4], 2, "none.fvecs does not exist"),
        (["-", "--k", 4], 2, "not a stream"),
        ([LEARN], 2, "--k"),
        ([LEARN, "--k", 0], 2, "K"),
        ([LEARN, "--k", -5], 2, "K"),
        ([LEARN, "--k", 40_001], 2, "too few for 40001"),
        ([LEARN, "--k", 200, "--limit", 100], 2, "too few for 200"),
        ([LEARN, "--k", 4, "--skip", 40_000], 2, "leaves none"),
        ([LEARN, "--k", 4, "--iterations", 0], 2, "iterations"),
        ([LEARN, "--k", 4, "--levels", 3], 2, "levels"),
        ([LEARN, "--k", 4, "--seed", -1], 2, "seed"),
        ([LEARN, "--k", 4, "--threads", 0], 2, "threads"),
        ([LEARN, "--k", 4, "--device", "tpu"], 2, "device"),
        ([LEARN, "--k", 4, "--format", "fvecs"], 1, "fvecs"),
        ([LEARN, "--k", 4, "-o", "-"], 2, "-o FILE.h5"),
        ([LEARN, "--k", 4, "-o", "{tmp}/c.npy"], 2, "--export"),
        ([LEARN, "--k", 4, "--import", "{tmp}/c.npy"], 2, "leave out --import"),
        ([LEARN, "--k", 4, "--export", "{tmp}/c.npy"], 2, "leave out --import"),
        (["{tmp}/nan.npy", "--k", 4], 1, "row 3"),
        (["--import", "{tmp}/none.npy"], 2, "none.npy does not exist"),
        (["--import", "{tmp}/nan.npy"], 1, "NaN"),
        (["--import", "{tmp}/whole.npy"], 1, "int64"),
        (["--import", "{tmp}/object.npy"], 1, "dtype"),
        (["--import", "{tmp}/cut.npy"], 1, "truncated"),
        (["--import", "{tmp}/one.npy"], 1, "shape"),
        (["--import", "{tmp}/kept.h5", "--k", 4], 2, "leave it out"),
        (["--import", LEARN], 1, "not HDF5"),
        (["--export", "{tmp}/c.npy"], 2, "centroids.h5 does not exist"),
        (["--export", "{tmp}/c.fvecs", "--import", "{tmp}/kept.h5"], 2, "--export FILE.npy"),
        (["--export", "{tmp}/c.npy", "-o", "{tmp}/d.h5"], 2, "leave out -o"),
        (["--export", "{tmp}/nan.npy", "--import", "{tmp}/kept.h5"], 2, "--force"),
        (["--import", "{tmp}/kept.h5", "-o", "{tmp}/kept.h5"], 2, "--force"),
        ([LEARN, "--k", 4, "-o", "{tmp}/kept.h5"], 2, "--force"),
    ],
    ids=str,
)
def test_bad_input(arguments, code, says, trained, tmp_path):
    rows = np.ones((9, 4), np.float32)
    rows[3, 1] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    np.save(tmp_path / "whole.npy", np.ones((3, 3), np.int64))
    np.save(tmp_path / "object.npy", np.array([[{}]]), allow_pickle=True)
    np.save(tmp_path / "one.npy", np.ones(3, np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:-3])
    (tmp_path / "kept.h5").write_bytes((trained / "centroids.h5").read_bytes())
    before = contents(tmp_path)
    filled = [str(a).format(tmp=tmp_path) for a in arguments]
    ended = run("centroids", *filled, "--store", tmp_path / "store", "-q")
    assert (ended.code, ended.out) == (code, b"")
    assert says in ended.complaint
    assert contents(tmp_path) == before


def test_force_overwrites(trained, tmp_path):
    out = tmp_path / "c.h5"
    out.write_bytes(b"something")
    done(*FEW, "-o", out, "--force", "-q")
    assert load_centroids(out).header.fingerprint == load_centroids(trained / "centroids.h5").header.fingerprint


def test_other_vectors(tmp_path):
    found = json.loads(done("centroids", TEXT, "--k", 9, "-o", tmp_path / "c.h5", "--json", "-q", "--threads", 1).out)
    assert found["D"] == load_centroids(tmp_path / "c.h5").centroids.shape[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(number, tmp_path):
    endless = ["centroids", LEARN, "--k", 2000, "--iterations", 10_000, "--threads", 1, "-o", tmp_path / "c.h5"]
    process = start(*endless)
    assert process.stderr is not None
    assert b"k-means on" in process.stderr.readline()  # handlers are in place
    time.sleep(0.5)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == 130 and ended.out == b""
    assert ended.err.splitlines()[-1] == "qinco: interrupted; nothing was written: start again with the same command"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["train", "export"])
def test_a_full_disk(what, trained, tmp_path):
    out = {"train": ["-o", tmp_path / "c.h5"], "export": ["--export", tmp_path / "c.npy"]}[what]
    arguments = FEW if what == "train" else ["centroids", "--store", trained]
    ended = spawn(*arguments, *out, "-q", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)))
    assert ended.code == 1
    assert "no room left to write" in ended.complaint
    assert list(tmp_path.iterdir()) == []
