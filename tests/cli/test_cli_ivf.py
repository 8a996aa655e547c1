"""IVF models on the command line: list numbers from training to decoded vectors."""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import BASE, LEARN, SIZES, contents, done, finish, run, start, wait_until

from qinco_core.api import Codec
from qinco_core.errors import UsageError
from qinco_core.jobs import Rows, assigner
from qinco_core.progress import Silent
from qinco_core.store import StreamReader, load_centroids, open_codes, partial_path, read_header, save_centroids
from qinco_core.store.spec import CodeRows
from qinco_core.vectors import open_vectors

IVF_K = 300
ONE = ["--threads", "1", "-q"]


@pytest.fixture(scope="module")
def centroids(made: Path) -> Path:
    """300 training vectors as centroids."""
    with open_vectors(LEARN) as file:
        save_centroids(made / "centroids.h5", file.read(0, IVF_K), training={})
    return made / "centroids.h5"


@pytest.fixture(scope="module")
def ivf(centroids: Path, made: Path) -> Path:
    path = made / "ivf.h5"
    options = ["--limit", 3000, "--epochs", 1, "--epoch-size", 2000, "-q"]
    done("train", LEARN, *SIZES, *options, "--ivf", centroids, "-o", path)
    return path


@pytest.fixture(scope="module")
def ivf_codes(ivf: Path, made: Path) -> Path:
    path = made / "ivf-base.h5"
    done("encode", BASE, "--model", ivf, "-o", path, *ONE)
    return path


@pytest.fixture(scope="module")
def ivf_decoded(ivf: Path, ivf_codes: Path, made: Path) -> np.ndarray:
    done("decode", ivf_codes, "--model", ivf, "-o", made / "ivf-base.npy", *ONE)
    return np.load(made / "ivf-base.npy")


def rows_of(path: Path) -> CodeRows:
    with open_codes(path) as file:
        return file.rows(0, len(file))


def base() -> np.ndarray:
    with open_vectors(BASE) as file:
        return file.read(0, len(file)).astype(np.float32)


def test_codes_of_an_ivf_model(ivf, centroids, ivf_codes, ivf_decoded):
    x, c = base(), load_centroids(centroids).centroids
    distance = np.square(c).sum(1) - 2 * x @ c.T
    lists = rows_of(ivf_codes).lists
    assert (lists == distance.argmin(1)).mean() > 0.999
    error, coarse = (np.square(y - x).sum(1).mean() for y in (ivf_decoded, c[lists]))
    assert error < 0.9 * coarse
    assert read_header(ivf).parents[0].fingerprint == read_header(centroids).fingerprint
    with h5py.File(ivf_codes) as file:
        assert file["lists"].shape == (-(-10_000 * 9 // 8),)  # 9 bits for 300 lists
    # what the library gives for the same vectors
    codec = Codec.load(ivf, threads=1)
    assert np.array_equal(codec.decode(codec.unpack_rows(rows_of(ivf_codes))), ivf_decoded)


def test_the_stream_has_the_same_lists(ivf, ivf_codes, ivf_decoded, tmp_path):
    sent = done("encode", BASE, "--model", ivf, "-o", "-", *ONE).out
    parts = list(StreamReader(io.BytesIO(sent)))
    assert np.array_equal(np.concatenate([part.lists for part in parts]), rows_of(ivf_codes).lists)
    done("decode", "-", "--model", ivf, "-o", tmp_path / "x.npy", *ONE, stdin=sent)
    assert np.array_equal(np.load(tmp_path / "x.npy"), ivf_decoded)
    saved = tmp_path / "base.arrow"
    saved.write_bytes(sent)
    assert json.loads(done("info", saved, "--json").out)["ivf_K"] == IVF_K
    assert json.loads(done("verify", saved, "--json").out)["ok"] is True


def test_prefixes_are_measured_with_the_list_number(ivf, ivf_codes, ivf_decoded, tmp_path):
    found = json.loads(done("eval", BASE, "--model", ivf, "--codes", ivf_codes, "--json", *ONE).out)["results"][0]
    assert found["bytes"] == 2 + 9 / 8
    assert found["prefix_mse"] == sorted(found["prefix_mse"], reverse=True)
    assert found["mse"] == pytest.approx(np.square(ivf_decoded - base()).sum(1).mean(), rel=1e-4)
    done("decode", ivf_codes, "--model", ivf, "--steps", 2, "-o", tmp_path / "2.npy", *ONE)
    error = np.square(np.load(tmp_path / "2.npy") - base()).sum(1).mean()
    assert found["prefix_mse"][1] == pytest.approx(error, rel=1e-4)
    table = done("eval", BASE, "--model", ivf, "--limit", 500, *ONE).text
    assert [line.split()[1] for line in table.splitlines()[-4:]] == ["1.625", "2.125", "2.625", "3.125"]


@pytest.mark.parametrize("to", ["file", "stream"])
def test_lists_by_hnsw_and_their_agreement(to, ivf, ivf_codes, tmp_path):
    pytest.importorskip("faiss")
    options = ["--model", ivf, "--assign", "hnsw", "--threads", 1]
    if to == "file":
        ended = done("encode", BASE, *options, "-o", tmp_path / "c.h5")
        found = rows_of(tmp_path / "c.h5")
        encoder = json.loads(done("info", tmp_path / "c.h5", "--json").out)["encoder"]
    else:
        ended = done("encode", "-", "--format", "u8bin", *options, "-o", "-", stdin=BASE.read_bytes())
        reader = StreamReader(io.BytesIO(ended.out))
        encoder, found = reader.spec.encoder, CodeRows.joined(list(reader))
    assert encoder["assign"] == "hnsw" and encoder["agreement"] > 0.98
    assert f"HNSW gives {encoder['agreement']:.2%} of the first 10,000 vectors" in ended.err
    exact = rows_of(ivf_codes)
    assert len(found.codes) == 10_000
    assert (found.lists == exact.lists).mean() == pytest.approx(encoder["agreement"], abs=2e-3)
    with open_codes(ivf_codes) as file:
        assert file.spec.encoder["assign"] == "exact"


def test_a_killed_job_goes_on(ivf, tmp_path):
    pytest.importorskip("faiss")
    many, out = tmp_path / "many.npy", tmp_path / "c.h5"
    np.save(many, np.tile(base().astype(np.uint8), (3, 1)))
    options = ["--model", ivf, "--assign", "hnsw", *ONE]
    done("encode", many, *options, "-o", tmp_path / "whole.h5")
    process = start("encode", many, *options, "-o", out)
    partial = partial_path(out)
    wait_until(lambda: partial.exists() and partial.stat().st_size > 16384 * (2 + 9 / 8), process)
    time.sleep(0.05)  # the chunk is being flushed
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    kept = partial.read_bytes()
    ended = run("encode", many, "--model", ivf, *ONE, "-o", out, "--resume")
    assert (ended.code, partial.read_bytes()) == (1, kept)
    assert "'assign': 'hnsw'" in ended.complaint and "'assign': 'exact'" in ended.complaint
    done("encode", many, *options, "-o", out, "--resume")
    for ours, whole in zip(rows_of(out), rows_of(tmp_path / "whole.h5"), strict=True):
        assert np.array_equal(ours, whole)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode", BASE, "--raw", "-o", "{tmp}/x.bin"], "--raw is bare symbols, but this is an IVF model"),
        (["encode", BASE, "--raw", "-o", "-"], "of no use without their list numbers"),
        (["decode", "{codes}", "--raw", "-o", "{tmp}/x.npy"], "--raw is bare symbols"),
        (["encode", BASE, "--assign", "nearly", "-o", "{tmp}/x.h5"], "there are exact and hnsw"),
    ],
)
def test_what_an_ivf_model_cannot_do(arguments, says, ivf, ivf_codes, tmp_path):
    filled = [str(argument).format(tmp=tmp_path, codes=ivf_codes) for argument in arguments]
    ended = run(*filled, "--model", ivf, "-q")
    assert (ended.code, ended.out) == (2, b"")
    assert says in ended.complaint
    assert contents(tmp_path) == {}


def test_models_without_lists_assign_none(model, tmp_path):
    ended = run("encode", BASE, "--model", model, "--assign", "hnsw", "-o", tmp_path / "x.h5", "-q")
    assert ended.code == 2
    assert "no lists to assign" in ended.complaint
    codec = Codec.load(model)
    with open_vectors(BASE, limit=5) as file, pytest.raises(UsageError):
        assigner(codec, Rows(file).source, "hnsw", Silent())


def test_a_damaged_list_is_found(ivf, ivf_codes, tmp_path):
    damaged = tmp_path / "c.h5"
    damaged.write_bytes(ivf_codes.read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["lists"][1000] ^= 0x10
    ended = run("decode", damaged, "--model", ivf, "-o", tmp_path / "x.npy", "-q")
    assert ended.code == 1
    assert "corrupted in rows 0 to 9999" in ended.complaint
    assert run("verify", damaged).code == 1


def test_dry_runs(ivf, ivf_codes, centroids, tmp_path):
    out = tmp_path / "m.h5"
    found = json.loads(done("train", LEARN, *SIZES, "--ivf", centroids, "-o", out, "--dry-run", "--json").out)
    assert found["bytes_per_vector"] == 3.125 and found["code_bytes"] == 2
    assert found["model_bytes"] > 4 * IVF_K * 128
    found = json.loads(done("encode", BASE, "--model", ivf, "-o", out, "--dry-run", "--json", "-q").out)
    assert found["output_bytes"] == 31_250
    done("decode", ivf_codes, "--model", ivf, "-o", tmp_path / "x.npy", "--dry-run", "-q")
    assert list(tmp_path.iterdir()) == []


def test_centroids_of_other_vectors_are_refused(centroids, ivf_codes, tmp_path):
    save_centroids(tmp_path / "narrow.h5", np.zeros((7, 96)), training={})
    before = contents(tmp_path)
    for file, code, says in (
        (tmp_path / "narrow.h5", 1, "centroids of dimension 96, but the training vectors have 128"),
        (tmp_path / "absent.h5", 2, "does not exist"),
        (ivf_codes, 1, "holds codes, not centroids"),
    ):
        for more in ([], ["--dry-run"]):
            ended = run("train", LEARN, *SIZES, "--limit", 3000, "--ivf", file, "-o", tmp_path / "m.h5", "-q", *more)
            assert ended.code == code, ended.err
            assert says in ended.complaint
            assert contents(tmp_path) == before
