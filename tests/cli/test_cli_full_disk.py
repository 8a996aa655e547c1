"""A full disk: one clear line, no half-written file, and what was there stays."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import BASE, LEARN, SIZES, contents, done, run, spawn

from qinco_core.vectors import open_vectors


def small_disk(limit: int) -> Callable[[], None]:
    """Makes every file of a process end at `limit` bytes; Python ignores the signal that comes with it."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


WRITERS = {
    "train": (["train", LEARN, *SIZES, "--limit", 3000, "--samples", 4096, "--force"], "m.h5", 100_000),
    "encode": (["encode", BASE, "--force"], "c.h5", 12_000),
    "encode --raw": (["encode", BASE, "--raw", "--force"], "c.raw", 12_000),
    "decode": (["decode", "{codes}", "--force"], "x.fvecs", 1_000_000),
}


@pytest.mark.parametrize("action", WRITERS)
def test_a_full_disk(action, model, codes, tmp_path):
    arguments, name, limit = WRITERS[action]
    out = tmp_path / name
    out.write_bytes(b"mine")
    filled = [str(a).format(codes=codes) for a in arguments]
    filled += [] if action == "train" else ["--model", model]
    ended = spawn(*filled, "-o", out, "-q", preexec_fn=small_disk(limit))
    assert ended.code == 1
    assert "no room left to write" in ended.complaint
    assert contents(tmp_path, without=[".training.jsonl"]) == {name: b"mine"}


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("action", WRITERS)
def test_a_disk_that_is_really_full(action, model, codes, tiny_disk):
    arguments, name, _ = WRITERS[action]
    kept = tiny_disk / "kept"
    kept.write_bytes(bytes(84_000))
    filled = [str(a).format(codes=codes) for a in arguments]
    filled += [] if action == "train" else ["--model", model]
    ended = run(*filled, "-o", tiny_disk / name, "-q")
    assert ended.code == 1
    assert "no room left to write" in ended.complaint
    assert contents(tiny_disk, without=[".training.jsonl"]) == {"kept": bytes(84_000)}


def test_an_encoding_that_filled_the_disk_goes_on(model, tmp_path):
    """What was done before the disk was full is not lost."""
    with open_vectors(BASE) as file:
        np.save(tmp_path / "many.npy", np.tile(file.read(0, len(file)), (4, 1)))
    out = tmp_path / "c.h5"
    arguments = ["encode", tmp_path / "many.npy", "--model", model, "--threads", 1, "-q"]
    ended = spawn(*arguments, "-o", out, preexec_fn=small_disk(50_000))
    assert ended.code == 1
    assert "no room left to write" in ended.complaint
    assert sorted(contents(tmp_path)) == ["c.h5.partial", "many.npy"]
    done(*arguments, "-o", out, "--resume")
    done(*arguments, "-o", tmp_path / "whole.h5")
    with h5py.File(out) as resumed, h5py.File(tmp_path / "whole.h5") as whole:
        assert resumed.attrs["fingerprint"] == whole.attrs["fingerprint"]
