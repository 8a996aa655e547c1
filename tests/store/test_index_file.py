"""The index on disk: damage, replaced parents and interrupted rewriting are noticed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from qinco_core import Index
from qinco_core.api import Codec
from qinco_core.config import SearchConfig
from qinco_core.errors import ArtifactError, InputNotFoundError, LineageError, OutputExistsError
from qinco_core.index import rewrite
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.tune import Point, Setting
from qinco_core.store import Store, verify
from qinco_core.store.index import load_index, locked


@pytest.fixture
def store(index_store: Store, tmp_path: Path) -> Store:
    shutil.copytree(index_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


def flat(store: Store, name: str) -> Path:
    (path,) = store.index.glob(f"{name}.*.npy")
    return path


def test_everything_is_verified(store):
    report = verify(store.index)
    assert report.ok and report.kind == "index"
    assert {"codes", "ids", "norms", "pair_norms"} <= {check.name.split(".")[0] for check in report.checks}
    raw = bytearray(flat(store, "codes").read_bytes())
    raw[5000] ^= 1
    flat(store, "codes").write_bytes(raw)
    assert [check.name for check in verify(store.index / "manifest.h5").checks if not check.ok] == ["codes.0001.npy"]


@pytest.mark.parametrize("name", ["codes", "ids", "norms"])
def test_a_truncated_array_is_refused(store, name):
    path = flat(store, name)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=rf"{name}\.0001\.npy is missing, truncated or damaged"):
        Index.open(store.index)


def test_missing_and_foreign_arrays_are_refused(store):
    np.save(flat(store, "norms"), np.zeros(3))
    with pytest.raises(ArtifactError, match="holds float64"):
        Index.open(store.index)
    flat(store, "norms").unlink()
    with pytest.raises(ArtifactError, match="norms"):
        Index.open(store.index)


def test_a_damaged_manifest_is_refused(store):
    manifest = store.index / "manifest.h5"
    raw = bytearray(manifest.read_bytes())
    raw[len(raw) // 2] ^= 255
    manifest.write_bytes(raw)
    with pytest.raises(ArtifactError, match="manifest"):
        Index.open(store.index)
    manifest.unlink()
    with pytest.raises(InputNotFoundError, match="qinco index"):
        Index.open(store.index)


@pytest.mark.parametrize("kind", ["model", "codes", "centroids", "pairwise"])
def test_what_was_replaced_is_named(store, kind):
    other = Codec.load(store.model, precision="float32", threads=1)
    other.network.mean.add_(1)
    if kind == "model":
        other.save(store.model, force=True)
    else:
        path = {"codes": store.codes("base"), "centroids": store.centroids, "pairwise": store.pairwise}[kind]
        shutil.copy(store.model, path)  # some other artifact in its place
    with pytest.raises(LineageError, match=r"was replaced since .*: qinco index --force"):
        Index.open(store.index)


def test_a_model_that_moved_can_be_named(store, tmp_path):
    moved = store.model.rename(tmp_path / "elsewhere.h5")
    with pytest.raises(InputNotFoundError, match="say where it is with --model"):
        Index.open(store.index)
    assert len(Index.open(store.index, model=moved)) == 10_000


def test_a_pairwise_decoder_that_moved_can_be_named_and_another_cannot(store, tmp_path):
    moved = store.pairwise.rename(tmp_path / "elsewhere.h5")
    with pytest.raises(InputNotFoundError, match="say where it is with --pairwise"):
        Index.open(store.index)
    with Index.open(store.index, pairwise=moved) as index:
        assert index.has_pairwise
        codec = index.codec
    fitted = Pairwise.load(moved, codec.header, codec.centroids)
    parents = tuple(parent for parent in fitted.header.parents if parent.kind == "model")
    dataclasses.replace(fitted, scale=2 * fitted.scale).save(tmp_path / "other.h5", codec.config, parents)
    with pytest.raises(LineageError, match=r"was made with the pairwise decoder .*, which .*other\.h5 is not"):
        Index.open(store.index, pairwise=tmp_path / "other.h5")


def test_added_codes_may_be_written_over(store):
    shutil.copy(store.codes("base"), store.codes("more"))
    with Index.open(store.index) as index:
        index.add(store.codes("more"), ids=np.arange(20_000, 30_000))
    shutil.copy(store.model, store.codes("more"))
    assert len(Index.open(store.index)) == 20_000


def test_the_store_can_move(store, tmp_path):
    moved = Store(store.root.rename(tmp_path / "moved"))
    with Index.open(moved.index) as index:
        assert index.has_pairwise


def test_a_rewrite_that_fails_leaves_the_old_index(store, monkeypatch):
    before = load_index(store.index).header.fingerprint

    def fail(*_: object) -> None:
        raise OSError("the machine lost power")

    with Index.open(store.index) as index:
        monkeypatch.setattr(rewrite, "save_manifest", fail)
        with pytest.raises(OSError, match="lost power"):
            index.remove([1, 2, 3])
        monkeypatch.undo()
        assert len(index) == 10_000
        assert load_index(store.index).header.fingerprint == before
        assert index.remove([1, 2, 3]) == 3
    assert verify(store.index).ok
    assert len(list(store.index.glob("codes.*.npy"))) == 1


def test_files_of_others_in_the_folder_stay(store):
    for name in ("mine.npy", "codes.npy", "vectors.0001.npy"):
        np.save(store.index / name, np.zeros(3))
    with Index.open(store.index) as index:
        index.remove([1])
    assert {"mine.npy", "codes.npy", "vectors.0001.npy"} <= {path.name for path in store.index.iterdir()}


def test_one_writer_at_a_time(store):
    refused = pytest.raises(OutputExistsError, match="another process")
    with Index.open(store.index) as index, locked(store.index, new=False, force=False), refused:
        index.remove([1])


def test_operating_points_do_not_change_what_an_index_is(store):
    before = load_index(store.index)
    with Index.open(store.index) as index:
        index.save_front([Point(SearchConfig(), 0.5, 0.1)], Setting(at=10))
        with Index.open(store.index) as other:
            other.save_front([Point(SearchConfig(), 0.4, 0.1)], Setting(at=1))
        # what another process has found since stays
        index.save_front([Point(SearchConfig(), 0.6, 0.1)], Setting(at=10))
        assert [entry["recall"] for entry in index.front] == [0.4, 0.6]
    after = load_index(store.index)
    assert [entry["recall"] for entry in after.front] == [0.4, 0.6]
    assert after.header.fingerprint == before.header.fingerprint
