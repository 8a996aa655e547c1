"""Outputs: looked at before any work, made with the folders they need, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qinco_core.errors import OutputExistsError, StorageError
from qinco_core.files import atomic_output, check_output


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a" / "b" / "x.npy", force=False) == tmp_path / "a" / "b" / "x.npy"
    assert not list(tmp_path.iterdir())


def test_an_output_brings_its_folders(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "a" / "b" / "x") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a" / "b" / "x").read_text() == "whole"


def test_folders_of_an_output_that_failed_go_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "a" / "b" / "c" / "x") as temporary:
        temporary.write_text("part")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_folders_that_others_use_by_then_stay(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="x"), atomic_output(tmp_path / "a" / "b" / "x") as temporary:
        (temporary.parent.parent / "theirs").write_text("")
        raise OSError("x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "theirs"]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(StorageError, match=r"x\.npy cannot be written here .* is read-only"):
        check_output(tmp_path / "new" / "x.npy", force=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="inside a file"):
        check_output(tmp_path / "file" / "x.npy", force=False)
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(tmp_path / "file", force=False)


def test_a_disk_that_fills_up_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no room left to write"), atomic_output(tmp_path / "new" / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "new").exists()
