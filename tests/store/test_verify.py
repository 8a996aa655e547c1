"""`verify` for every kind of file."""

import h5py
import numpy as np
import pytest

from qinco_core.errors import InputNotFoundError
from qinco_core.store import StreamWriter, save_centroids, save_checkpoint, verify


@pytest.fixture
def files(tmp_path, model_path, write, spec, rows):
    codes, checkpoint, stream = tmp_path / "c.h5", tmp_path / "training.h5", tmp_path / "c.arrow"
    write(codes)
    save_checkpoint(checkpoint, config={}, arrays={"w": np.ones(30)}, state={"step": 1})
    with stream.open("wb") as sink, StreamWriter(sink, spec, with_ids=False, count=100) as out:
        out.append(rows[0])
    centroids = tmp_path / "centroids.h5"
    save_centroids(centroids, np.ones((4, 3)), training={})
    files = {"centroids": centroids}
    return files | {"model": model_path, "codes": codes, "checkpoint": checkpoint, "stream": stream}


@pytest.mark.parametrize("kind", ["centroids", "model", "codes", "checkpoint", "stream"])
def test_a_whole_file_passes_and_a_damaged_one_fails(files, kind):
    report = verify(files[kind])
    assert report.ok and report.kind == kind and len(report.checks) >= 2
    assert (report.header is None) == (kind == "stream")
    whole = files[kind].read_bytes()
    files[kind].write_bytes(whole[: len(whole) - 5])
    assert not verify(files[kind]).ok
    if kind == "stream":
        files[kind].write_bytes(whole + b"x")
        assert [check.name for check in verify(files[kind]).checks if not check.ok] == ["end"]


def test_every_damaged_chunk_is_listed(files):
    with h5py.File(files["codes"], "r+") as file:
        file["codes"][20] ^= 1
        file["ids"][99] += 1
    failed = [check for check in verify(files["codes"]).checks if not check.ok]
    assert [check.name for check in failed] == ["chunk 1", "chunk 6"]
    assert "rows 96 to 99" in failed[1].detail


@pytest.mark.parametrize("attribute", ["fingerprint", "parents", "kind"])
def test_a_header_that_does_not_fit_fails(files, attribute):
    with h5py.File(files["codes"], "r+") as file:
        file.attrs[attribute] = {"fingerprint": "00", "parents": "[]", "kind": "fish"}[attribute]
    failed = [check for check in verify(files["codes"]).checks if not check.ok]
    assert len(failed) == 1
    assert failed[0].name == {"fingerprint": "fingerprint", "parents": "lineage", "kind": "header"}[attribute]


def test_other_files(tmp_path):
    with pytest.raises(InputNotFoundError):
        verify(tmp_path / "absent")
    (tmp_path / "empty").write_bytes(b"")
    report = verify(tmp_path / "empty")
    assert not report.ok and report.kind == "unknown"
