"""`qinco encode --shard` and `qinco merge`: parts that nobody can tell apart, whoever made them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import LEARN, QUERIES, done, environment, finish, run, start, wait_until

from qinco_core.store import open_codes, partial_path

PARTS = 3  # of 40,000 vectors in parts of 16,384


def shard(model: Path, folder: Path, text: str, *more: object) -> list[object]:
    return ["encode", LEARN, "--model", model, "-o", folder, "--shard", text, "--threads", 1, "-q", *more]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def parts(model: Path, made: Path) -> Path:
    """The codes of the learn vectors as one shard makes them."""
    done(*shard(model, made / "parts", "0/1"))
    return made / "parts"


def test_parts_do_not_tell_how_many_shards_there_were(model: Path, parts: Path, tmp_path: Path) -> None:
    for i in (1, 0, 2):
        done(*shard(model, tmp_path / "three", f"{i}/3"))
    assert files(tmp_path / "three") == files(parts)
    assert sorted(files(parts)) == ["manifest.h5", *(f"part-{number:05}.h5" for number in range(PARTS))]


def test_a_folder_is_read_as_one_and_merged_to_one(model: Path, parts: Path, tmp_path: Path) -> None:
    done("encode", LEARN, "--model", model, "-o", tmp_path / "whole.h5", "--threads", 1, "-q")
    done("merge", parts, "-o", tmp_path / "merged.h5", "-q")
    with open_codes(parts) as a, open_codes(tmp_path / "whole.h5") as b, open_codes(tmp_path / "merged.h5") as c:
        assert len(a) == len(b) == len(c) == 40_000
        assert np.array_equal(a.read(0, 40_000), b.read(0, 40_000))
        assert np.array_equal(a.read(16_000, 33_000), b.read(16_000, 33_000))
        assert c.header.fingerprint == b.header.fingerprint
    for source in (parts, tmp_path / "whole.h5"):
        done("decode", source, "--model", model, "-o", tmp_path / f"{source.stem}.npy", "-q")
    assert np.array_equal(np.load(tmp_path / "parts.npy"), np.load(tmp_path / "whole.npy"))
    assert done("verify", tmp_path / "merged.h5").code == 0


def test_commands_take_the_folder_for_codes(model: Path, parts: Path, tmp_path: Path) -> None:
    name = parts.name
    store, whole = tmp_path / "store", tmp_path / "whole.h5"
    done("merge", parts, "-o", whole, "-q")
    shutil.copytree(parts, store / "codes" / name)
    shutil.copy(model, store / "model.h5")
    done("search", QUERIES, "--limit", 20, "-k", 3, "--store", store, "-o", tmp_path / "all.ivecs", "-q")
    done("pairwise", LEARN, "--codes", name, "--tables", 0, "--store", store, "-q")
    done("index", "--store", store, "-q")
    for source, index in ((store / "codes" / name, tmp_path / "a"), (whole, tmp_path / "b")):
        done("index", source, "--store", store, "-o", index, "-q")
        found = ["search", QUERIES, "--limit", 20, "-k", 3, "--store", store, "--index", index]
        done(*found, "-o", tmp_path / f"{index.name}.ivecs", "-q")
    assert (tmp_path / "a.ivecs").read_bytes() == (tmp_path / "b.ivecs").read_bytes()
    for source in (parts, whole):
        done("export", source, "-o", tmp_path / f"{source.stem}.npz")
    with np.load(tmp_path / f"{name}.npz") as a, np.load(tmp_path / "whole.npz") as b:
        assert a.files == b.files and all(np.array_equal(a[key], b[key]) for key in a.files)
    facts = json.loads(done("info", parts, "--json").text)
    assert (facts["vectors"], facts["parts"][:6]) == (40_000, "3 of 3")
    done("verify", parts)
    (store / "codes" / name / "part-00000.h5").write_bytes((parts / "part-00001.h5").read_bytes())
    ended = run("verify", store / "codes" / name)
    assert ended.code == 1
    done("merge", parts, "-o", store / "codes" / f"{name}.h5", "-q")  # from now on the name means the file
    done("decode", name, "--store", store, "-o", tmp_path / "x.npy", "-q")
    shutil.rmtree(store / "codes" / name)
    ended = run("encode", LEARN, "--name", name, "--store", store, "--shard", "0/2")
    assert ended.code == 2 and f"{name}.h5 is there already" in ended.complaint


def test_only_what_is_missing_is_made(model: Path, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    done(*shard(model, folder, "0/1"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "part-00001.h5").unlink()
    ended = run("decode", folder, "--model", model, "-o", tmp_path / "x.npy")
    assert ended.code == 1 and "part-00001" in ended.complaint
    done(*shard(model, folder, "0/1"))
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"part-00001.h5"}
    assert files(folder) == files(parts)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_shard_goes_on(number: int, model: Path, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    process = start(*shard(model, folder, "0/1"))
    wait_until(partial_path(folder / "part-00000.h5").exists, process)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == (130 if number == signal.SIGINT else -number)
    done(*shard(model, folder, "0/1"))
    assert files(folder) == files(parts)


def test_torchrun_gives_each_process_a_shard(model: Path, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    work = ["encode", LEARN, "--model", model, "-o", folder, "--threads", 1, "-q"]
    ended = subprocess.run([*launcher, "qinco_cli", *map(str, work)], env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert files(folder) == files(parts)


def test_slurm_tells_which(model: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parts"
    assert "Slurm" in run(*shard(model, folder, "slurm")).complaint
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for number in (5, 6):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        done(*shard(model, folder, "slurm"))
    assert files(folder) == files(parts)


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("2/2", [], "2/2"),
        ("1", [], "I/N"),
        ("-1/2", [], "I/N"),
        ("0/2", ["--raw"], "--raw"),
        ("0/2", ["--force"], "--force"),
        ("0/2", ["-o", "-"], "--raw"),
    ],
)
def test_shards_that_cannot_be(model: Path, tmp_path: Path, text: str, more: list[str], words: str) -> None:
    ended = run(*shard(model, tmp_path / "parts", text, *more))
    assert ended.code == 2 and words in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_another_job_is_refused(model: Path, other_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    done(*shard(model, folder, "2/3"))
    before = files(folder)
    for arguments in (shard(other_model, folder, "0/3"), shard(model, folder, "0/3", "--limit", 30_000)):
        ended = run(*arguments)
        assert ended.code == 1 and "another job" in ended.complaint
    assert files(folder) == before
    assert "part-00000" in run("merge", folder, "-o", tmp_path / "x.h5").complaint
