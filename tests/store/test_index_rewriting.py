"""An index that is rewritten: readers meanwhile, full disks, kills, and what they leave behind."""

from __future__ import annotations

import fcntl
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qinco_core import Index
from qinco_core.api import Codec
from qinco_core.errors import ArtifactError, OutputExistsError, StorageError
from qinco_core.store import Store, verify
from qinco_core.store.index import FlatWriter, file_entry, load_index, locked, save_manifest


@pytest.fixture
def store(index_store: Store, tmp_path: Path) -> Store:
    shutil.copytree(index_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def codec(index_store: Store) -> Codec:
    return Codec.load(index_store.model, precision="float32", threads=1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Every file ends at `limit` bytes; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(folder: Path, rows: int, generation: int) -> None:
    """An index of nothing but numbers."""
    folder.mkdir(exist_ok=True)
    with FlatWriter(folder / f"ids.{generation:04}.npy", (rows,), np.int32) as out:
        out.append(np.arange(rows // 2))
        out.append(np.arange(rows // 2, rows))
    graph = folder / f"index.{generation:04}.faiss"
    graph.write_bytes(b"a graph")
    files = {"ids": out.entry, "coarse": file_entry(graph)}
    save_manifest(folder, {"files": files, "generation": generation}, {"offsets": np.array([0, rows])}, ())


# the first does not hold the codes, the second holds all arrays but not the manifest
@pytest.mark.parametrize("limit", [30_000, 50_000])
def test_a_full_disk_leaves_the_old_index_and_nothing_else(store, codec, limit):
    before = names(store.index)
    with Index.open(store.index, model=codec) as index:
        with small_files(limit), pytest.raises(StorageError, match="no room left to write"):
            index.remove([1, 2])
        assert names(store.index) == before
        assert verify(store.index).ok
        assert index.remove([1, 2]) == 2


def test_a_full_disk_leaves_nothing_of_a_new_index(store, codec, tmp_path):
    arguments = tmp_path / "new", codec, store.codes("base")
    with small_files(30_000), pytest.raises(StorageError, match="no room left to write"):
        Index.build(*arguments, pairwise=store.pairwise)
    assert not (tmp_path / "new").exists()
    with small_files(30_000), pytest.raises(StorageError, match="no room left to write"):
        Index.build(store.index, *arguments[1:], pairwise=store.pairwise, force=True)
    assert verify(store.index).ok and len(load_index(store.index).flat["ids"]) == 10_000


def test_a_killed_rewrite_leaves_the_old_index(tmp_path):
    """Killed after the arrays, before the manifest: the next rewrite removes what is left."""
    write(tmp_path / "index", 100, 1)
    child = f"""
import os, signal
from pathlib import Path
from qinco_core.store import index
index.create_artifact = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_index_rewriting import write
write(Path({str(tmp_path / "index")!r}), 50, 2)
"""
    ended = subprocess.run([sys.executable, "-c", child], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    assert "ids.0002.npy" in names(tmp_path / "index")
    assert len(load_index(tmp_path / "index").flat["ids"]) == 100
    write(tmp_path / "index", 60, 2)
    assert len(load_index(tmp_path / "index").flat["ids"]) == 60
    assert names(tmp_path / "index") == {"manifest.h5", "ids.0002.npy", "index.0002.faiss"}


def test_readers_see_the_old_index_or_the_new_one(tmp_path):
    folder = tmp_path / "index"
    write(folder, 10, 1)
    ended = threading.Event()

    def rewrite() -> None:
        for generation in range(2, 120):
            write(folder, 10 * generation, generation)
        ended.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = []
    while not ended.is_set():
        stored = load_index(folder)
        seen.append(len(stored.flat["ids"]))
        assert seen[-1] == 10 * stored.generation == int(stored.arrays["offsets"][-1])
    writer.join()
    assert len(set(seen)) > 3 and seen == sorted(seen)


def test_another_process_holds_the_lock(tmp_path):
    folder = tmp_path / "index"
    write(folder, 10, 1)
    child = f"""
from pathlib import Path
from qinco_core.store.index import locked
with locked(Path({str(folder)!r}), new=False, force=False):
    print("locked", flush=True)
    input()
"""
    arguments = [sys.executable, "-c", child]
    root = Path(__file__).parents[2]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        refused = pytest.raises(OutputExistsError, match="written by another process; wait")
        with refused, locked(folder, new=True, force=True):
            pass
        other.communicate("\n")
    with locked(folder, new=False, force=False):
        assert len(load_index(folder).flat["ids"]) == 10


def test_a_new_index_takes_no_place_of_another(tmp_path):
    write(tmp_path / "index", 10, 1)
    with pytest.raises(OutputExistsError, match="--force"), locked(tmp_path / "index", new=True, force=False):
        pass
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="is a file"), locked(tmp_path / "file", new=True, force=False):
        pass
    inside = tmp_path / "file" / "index"
    with pytest.raises(StorageError, match="inside a file"), locked(inside, new=True, force=False):
        pass


def test_nothing_stays_where_nothing_was_built(tmp_path):
    with locked(tmp_path / "some" / "index", new=True, force=False):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", new=True, force=False):
        (tmp_path / "mine" / "file").touch()
    assert names(tmp_path) == {"mine"} and [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_lock_that_its_holder_removed_is_not_taken(tmp_path, monkeypatch):
    write(tmp_path, 10, 1)
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *how: ((tmp_path / ".lock").unlink(), flock(*how)))
    with pytest.raises(OutputExistsError, match="another process"), locked(tmp_path, new=False, force=False):
        pass


@pytest.mark.parametrize("content", [None, b"a gra"])
def test_a_graph_that_is_gone_or_cut_is_refused(tmp_path, content):
    write(tmp_path, 10, 1)
    graph = tmp_path / "index.0001.faiss"
    graph.unlink()
    if content:
        graph.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"index\.0001\.faiss is missing or truncated: \d of 7 bytes"):
        load_index(tmp_path)
    graph.write_bytes(b"a groph")
    assert [check.name for check in verify(tmp_path).checks if not check.ok] == [graph.name]


def test_more_or_fewer_rows_than_said_are_noticed(tmp_path):
    with (
        pytest.raises(ArtifactError, match="got 3 of 4 rows"),
        FlatWriter(tmp_path / "ids.0001.npy", (4,), np.int32) as out,
    ):
        out.append(np.arange(3))
