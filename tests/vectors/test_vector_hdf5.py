"""HDF5 datasets as vectors, in the layout of ann-benchmarks and in others."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import DATA, quick, ramp

from qinco_core.errors import QincoError, UsageError, VectorFileError
from qinco_core.vectors import open_vectors


@pytest.fixture(scope="module")
def sift() -> np.ndarray:
    with open_vectors(DATA / "sift_query.fvecs") as queries:
        return queries.read(0, 60)


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory, sift: np.ndarray) -> Path:
    """A file as ann-benchmarks makes them, with storage variants beside."""
    path = tmp_path_factory.mktemp("ann") / "sift.hdf5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["train"] = sift
        file["test"] = sift[:7]
        file["neighbors"] = ramp(7, 5, "<i4")
        file.create_dataset("packed", data=sift, chunks=(7, 50), compression="gzip", shuffle=True)
        file.create_dataset("big", data=sift.astype(">f4"))
        file.create_dataset("half", data=sift.astype("f2"), chunks=(16, 128))
        file.create_dataset("deep/er", data=sift)
        file["flat"] = np.arange(4.0)
        file["names"] = np.array([[b"a", b"b"]])
        file["none"] = np.zeros((0, 4), "f4")
        file["gone"] = h5py.ExternalLink("nowhere.h5", "/x")
    return path


@pytest.mark.parametrize("key", ["train", "/train", "packed", "big", "half", "deep/er"])
def test_datasets_read_alike(key: str, ann: Path, sift: np.ndarray) -> None:
    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        skip = data.draw(st.integers(0, 59))
        limit = data.draw(st.integers(1, 80))
        expected = sift[skip : skip + limit]
        rows = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1))), dtype=np.int64)
        with open_vectors(f"{ann}::{key}", skip=skip, limit=limit) as vectors:
            assert vectors.name == f"{ann}::{key.lstrip('/')}" and vectors.dtype.isnative
            assert vectors.shape == expected.shape
            np.testing.assert_array_equal(np.concatenate(list(vectors.batches(17))), expected)
            np.testing.assert_array_equal(vectors.take(rows), expected[rows])

    check()


def test_neighbors_and_stamps(ann: Path) -> None:
    with open_vectors(f"{ann}::neighbors") as neighbors, open_vectors(f"{ann}::train") as train:
        assert neighbors.dtype == np.int32 and neighbors.shape == (7, 5)
        with open_vectors(f"{ann}::big") as big:
            assert train.stamp != big.stamp


def test_without_a_key_the_only_table_is_taken(tmp_path: Path, sift: np.ndarray, ann: Path) -> None:
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["vectors"] = sift
        file["distances"] = np.zeros(3)
    with open_vectors(tmp_path / "one.h5") as vectors:
        assert vectors.name.endswith("one.h5::vectors")
        np.testing.assert_array_equal(vectors.read(0, 60), sift)
    with pytest.raises(UsageError, match=r"several tables; name one: .*::test \(7, 128\) float32.*::train \(60"):
        open_vectors(ann)


@pytest.mark.parametrize("key", ["trian", "deep", "gone", "", "/"])
def test_a_wrong_key_lists_the_right_ones(key: str, ann: Path) -> None:
    with pytest.raises(UsageError, match=r"no dataset.*::train \(60, 128\) float32"):
        open_vectors(f"{ann}::{key}")


@pytest.mark.parametrize(("key", "message"), [("flat", r"shape \(4,\)"), ("names", "convert"), ("none", "no vectors")])
def test_datasets_that_are_no_vectors(key: str, message: str, ann: Path) -> None:
    with pytest.raises(VectorFileError, match=message):
        open_vectors(f"{ann}::{key}")


def test_files_that_are_foreign(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["flat"] = np.arange(4.0)
    with pytest.raises(VectorFileError, match="without vectors"):
        open_vectors(tmp_path / "other.h5")
    (tmp_path / "no.h5").write_bytes(b"this is no HDF5")
    with pytest.raises(VectorFileError, match=r"no\.h5 cannot be read as HDF5"):
        open_vectors(tmp_path / "no.h5")
    misnamed = (tmp_path / "other.h5").rename(tmp_path / "other.fvecs")
    with pytest.raises(VectorFileError, match="holds hdf5; read it with --format hdf5"):
        open_vectors(misnamed)


@pytest.mark.parametrize("chunks", [None, (3, 2)])
def test_nan_names_the_row(chunks: tuple[int, int] | None, tmp_path: Path) -> None:
    array = ramp(20, 4, "<f4")
    array[13, 1] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=array, chunks=chunks)
    with open_vectors(tmp_path / "x.h5", skip=5) as vectors, pytest.raises(VectorFileError, match="row 13 "):
        vectors.read(0, 15)


@quick
@given(st.data())
def test_damage_never_escapes_as_other_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=ramp(20, 4, "<f4"), chunks=(5, 4), compression="gzip")
        file["y"] = ramp(3, 4, "<f4")
    contents = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(contents) - 1), min_size=1, max_size=6)):
        contents[at] = data.draw(st.integers(0, 255))
    path.write_bytes(contents[: data.draw(st.sampled_from([len(contents), len(contents) // 2]))])
    for key in "xy":
        try:
            with open_vectors(f"{path}::{key}", limit=100) as vectors:
                assert vectors.read(0, len(vectors)).shape == vectors.shape
        except QincoError as error:
            assert path.name in str(error)
