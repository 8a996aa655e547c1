"""Encoding on a cluster: the files are those of one process, whatever happens to the workers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from ray_cluster import NODE, Once, kill

from qinco_core.api import Codec
from qinco_core.errors import ClusterError, LineageError, UsageError, VectorFileError
from qinco_core.jobs import Rows
from qinco_core.optional import import_ray
from qinco_core.progress import Progress, Silent
from qinco_core.scale.cluster import connected, cpus_of, fetch
from qinco_core.scale.encode import encode_on_cluster
from qinco_core.scale.shards import encode_to_folder
from qinco_core.vectors import open_vectors, write_vectors

pytestmark = pytest.mark.usefixtures("cluster")


def files(folder: Path) -> dict[str, str]:
    """A digest of each; whole files would take pytest minutes to tell apart."""
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def rows(sift_learn: Path) -> Rows:
    """40,000 vectors with ids: three parts."""
    return Rows(open_vectors(sift_learn), ids=np.arange(40_000)[::-1] * 7)


@pytest.fixture(scope="module")
def wanted(codec: Codec, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that one process makes."""
    folder = tmp_path_factory.mktemp("alone") / "parts"
    assert encode_to_folder(codec, rows, folder, (0, 1), search=codec.search, progress=Silent()) == 3
    return files(folder)


def encode(codec: Codec, rows: Rows, folder: Path, progress: Progress | None = None, **more: Any) -> int:
    return encode_on_cluster(codec, rows, folder, search=codec.search, progress=progress or Silent(), **more)


def test_workers_make_the_files_of_one_process(codec, rows, wanted, tmp_path):
    folder = tmp_path / "parts"
    assert encode(codec, rows, folder) == 3
    assert files(folder) == wanted
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "part-00001.h5").unlink()
    assert encode(codec, rows, folder) == 1
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"part-00001.h5"}
    assert files(folder) == wanted
    assert encode(codec, rows, folder) == 0


def test_a_killed_worker_costs_its_block(codec, rows, wanted, tmp_path):
    killed: list[int] = []
    progress = Once(lambda: killed.append(kill("ray::_encode")))
    assert encode(codec, rows, tmp_path / "parts", progress, workers=2) == 3
    assert killed and files(tmp_path / "parts") == wanted


def test_a_lost_machine_costs_its_blocks(codec, rows, wanted, tmp_path, cluster):
    third = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    assert cpus_of(import_ray()) == 3
    progress = Once(lambda: cluster.remove_node(third, allow_graceful=False))
    assert encode(codec, rows, tmp_path / "parts", progress) == 3
    assert progress.came and files(tmp_path / "parts") == wanted


def test_an_interrupted_job_goes_on(codec, rows, wanted, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(codec, rows, tmp_path / "parts", Once(interrupt))
    assert 2 <= len(files(tmp_path / "parts")) < len(wanted)
    assert encode(codec, rows, tmp_path / "parts") < 3
    assert files(tmp_path / "parts") == wanted


@pytest.mark.slow
def test_what_a_shard_left_is_taken_over(codec, rows, wanted, tmp_path):
    encode_to_folder(codec, rows, tmp_path / "parts", (2, 3), search=codec.search, progress=Silent())
    assert encode(codec, rows, tmp_path / "parts") == 2
    assert files(tmp_path / "parts") == wanted


@pytest.mark.parametrize("extension", [*(pytest.param(e, marks=pytest.mark.slow) for e in ("npy", "fvecs")), "parquet"])
def test_a_folder_of_files_is_one(codec, base, tmp_path, extension):
    with open_vectors(base, limit=3000) as file:
        v = file.read(0, 3000)
    (tmp_path / "v").mkdir()
    for number, part in enumerate(np.array_split(v, [700, 2100])):
        write_vectors(tmp_path / "v" / f"x-{number + 9}.{extension}", part if extension != "fvecs" else part * 1.0)
    folder = open_vectors(tmp_path / "v")
    assert np.array_equal(folder.read(600, 2200), v[600:2200])
    assert np.array_equal(folder.take(np.array([2999, 3, 699, 700, 3])), v[[2999, 3, 699, 700, 3]])
    encode_to_folder(codec, Rows(folder), tmp_path / "a", (0, 1), search=codec.search, progress=Silent())
    encode(codec, Rows(folder), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.slow
def test_hnsw_finds_lists_and_says_how_well(codec, base, tmp_path):
    rows = Rows(open_vectors(base, limit=2000))
    how: dict[str, Any] = {"search": codec.search, "progress": Silent(), "assign": "hnsw"}
    encode_to_folder(codec, rows, tmp_path / "a", (0, 1), **how)
    encode_on_cluster(codec, rows, tmp_path / "b", **how)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_errors_of_the_work_come_as_they_are(codec, rows, tmp_path):
    v = np.zeros((20_000, 128), np.float32)
    v[17_000, 3] = np.nan
    np.save(tmp_path / "v.npy", v)
    with pytest.raises(VectorFileError, match=r"v\.npy: row 17000 .* holds NaN"):
        encode(codec, Rows(open_vectors(tmp_path / "v.npy")), tmp_path / "parts")
    assert "part-00000.h5" in files(tmp_path / "parts")
    with pytest.raises(LineageError, match="another job"):
        encode(codec, rows, tmp_path / "parts")


def test_another_file_of_that_name_is_refused(codec, tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((10, 128), np.float32))
    opened = open_vectors(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.ones((20, 128), np.float32))
    with pytest.raises(VectorFileError, match="is not the file of the job"):
        encode(codec, Rows(opened), tmp_path / "parts")


def test_a_cluster_that_is_not_there():
    with (
        mock.patch("ray.is_initialized", return_value=False),
        pytest.raises(ClusterError, match="no Ray cluster answers"),
        connected("127.0.0.1:1"),
    ):
        pass


def test_what_cannot_be_is_refused(codec, rows, tmp_path, ivf_store):
    wide = Codec.load(ivf_store.model, precision="float32", threads=64)
    with pytest.raises(ClusterError, match="wants 64 CPUs, but no machine"):
        encode(wide, rows, tmp_path / "parts")
    with pytest.raises(UsageError, match="no way to assign"):
        encode(codec, rows, tmp_path / "parts", assign="magic")
    ray = import_ray()
    with pytest.raises(ClusterError, match="workers died"):
        fetch(ray, ray.remote(lambda: os._exit(1)).options(max_retries=1).remote())
    with pytest.raises(ClusterError, match="failed with ZeroDivisionError"):
        fetch(ray, ray.remote(lambda: 1 / 0).remote())
