"""`qinco import` and `qinco export`: published files in and out, and files for other programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import TEXT, contents, done, environment, run

HERE = Path(__file__).parents[1]
MODELS, PUBLISHED = HERE / "codec" / "golden", HERE / "interop" / "golden"
EXPECTED = np.load(MODELS / "ivf_q2.expected.npz")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of published files: model, codes, pairwise decoder and centroids."""
    place = tmp_path_factory.mktemp("published")
    for name in ("ivf_pairwise.pt", "ivf_db.npz", "ivf_centroids.npy"):
        if name == "ivf_pairwise.pt":
            done("import", MODELS / "ivf_q2.pt", "--store", place)
        done("import", PUBLISHED / name, "--store", place)
    return place


def test_everything_has_its_place(store: Path) -> None:
    found = {str(path.relative_to(store)) for path in store.rglob("*.h5")}
    assert found == {"model.h5", "pairwise.h5", "centroids.h5", "codes/ivf_db.h5"}
    for path in found:
        done("verify", store / path)


def test_published_codes_decode_as_there(store: Path, tmp_path: Path) -> None:
    done("decode", "ivf_db", "-o", tmp_path / "out.npy", "--store", store, "--precision", "float32")
    decoded = np.load(tmp_path / "out.npy")[:1000]
    assert np.abs(decoded - EXPECTED["decoded"]).max() <= 1e-3 * np.abs(EXPECTED["decoded"]).max()


def test_vectors_encode_as_there(store: Path, tmp_path: Path) -> None:
    done(
        "encode",
        MODELS / "vectors48.npy",
        "-o",
        tmp_path / "c.h5",
        "--exact",
        "--precision",
        "float32",
        "--store",
        store,
    )
    done("export", tmp_path / "c.h5", "-o", tmp_path / "c.npz")
    codes = np.load(tmp_path / "c.part_0.npz")["codes"]
    assert (codes == EXPECTED["codes"]).mean() >= 0.999


def test_an_index_is_made_of_published_files_alone(store: Path, tmp_path: Path) -> None:
    done("index", "ivf_db", "-o", tmp_path / "index", "--store", store)
    xq = MODELS / "vectors48.npy"
    ended = done("search", xq, "-k", 5, "--limit", 3, "--nprobe", 8, "--index", tmp_path / "index", "--store", store)
    assert len(ended.text.splitlines()) == 3


def test_reports(store: Path, tmp_path: Path) -> None:
    ended = done("import", MODELS / "q1.pt", "-o", tmp_path / "m.h5", "--json")
    facts = json.loads(ended.text)
    assert facts["output"] == str(tmp_path / "m.h5")
    assert (facts["kind"], facts["model"]["rules"], facts["encode"]["A"]) == ("model", "qinco1", 0)
    assert "wrote" in ended.err
    ended = done("export", tmp_path / "m.h5", "-o", tmp_path / "q1.pt", "--json", "--quiet")
    assert json.loads(ended.text)["output"] == [str(tmp_path / "q1.pt")]
    assert ended.err == ""


def test_a_checkpoint_goes_round(store: Path, tmp_path: Path) -> None:
    done("export", store / "model.h5", "-o", tmp_path / "model.pt")
    before, after = (torch.load(p, weights_only=True)["model"] for p in (MODELS / "ivf_q2.pt", tmp_path / "model.pt"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "xtarget" not in name)


def test_a_folder_and_onnx(store: Path, tmp_path: Path) -> None:
    done("export", "-o", tmp_path / "shared", "--store", store)
    done("import", tmp_path / "shared", "-o", tmp_path / "model.h5")
    assert (tmp_path / "shared" / "README.md").exists()
    ended = done("export", tmp_path / "model.h5", "--onnx")
    assert "ONNX Runtime decodes as qinco does" in ended.err
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (decoded,) = session.run(None, {"codes": EXPECTED["codes"].astype(np.int64)})
    assert np.abs(decoded - EXPECTED["decoded"]).max() <= 1e-3 * np.abs(EXPECTED["decoded"]).max()


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    code = "from qinco_core.optional import import_onnxruntime as load; load()"  # which else keeps a device id
    subprocess.run([sys.executable, "-c", code], env=environment(XDG_CACHE_HOME=str(tmp_path)), check=True)
    assert not contents(tmp_path)


def test_centroids_and_pairwise_go_out(store: Path, tmp_path: Path) -> None:
    done("export", store / "centroids.h5", "-o", tmp_path / "c.npy")
    assert np.array_equal(np.load(tmp_path / "c.npy"), np.load(PUBLISHED / "ivf_centroids.npy"))
    done("export", store / "pairwise.h5", "-o", tmp_path / "p.pt")
    before, after = (torch.load(p, weights_only=True) for p in (PUBLISHED / "ivf_pairwise.pt", tmp_path / "p.pt"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["import", "nothing.pt"], 2, "nothing.pt does not exist"),
        (["import", "qinco1-bigann1M-8x8"], 2, "qinco fetch qinco1-bigann1M-8x8"),
        (["import", TEXT, "--name", "x", "-o", "y.h5"], 2, "--name is a name in the store and -o a path"),
        (["import", MODELS / "q2.pt", "--name", "x"], 2, "--name names codes, but"),
        (["import", MODELS / "q2.pt", "--model", "m.h5"], 2, "--model is the model of codes"),
        (["import", PUBLISHED / "ivf_db.npz", "--model", "m.h5"], 2, "m.h5 does not exist"),
        (["import", TEXT.with_name("sift_query.fvecs")], 1, "cannot be read as a torch file"),
        (["export", "nothing.h5", "-o", "x.pt"], 2, "nothing.h5 does not exist"),
        (["export", "STORE/model.h5"], 2, "say what to write with -o"),
        (
            ["export", "STORE/model.h5", "-o", "x.bin"],
            2,
            "a model is exported to a .pt file, a .onnx file, or a folder",
        ),
        (["export", "STORE/pairwise.h5", "-o", "x.npy"], 2, "pairwise are exported as .pt"),
        (["export", "STORE/pairwise.h5", "--onnx"], 2, "ONNX is the decoder of a model"),
    ],
)
def test_bad_input(
    arguments: list[object], code: int, said: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QINCO_STORE", "here.store")
    ended = run(*(str(argument).replace("STORE", str(store)) for argument in arguments))
    assert (ended.code, ended.out) == (code, b"")
    assert said in ended.complaint
    assert not contents(tmp_path)
