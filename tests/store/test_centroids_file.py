"""Centroids as files: the artifact, and the published kind of npy file."""

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from qinco_core.errors import (
    ArtifactError,
    ArtifactVersionError,
    DimensionError,
    InputNotFoundError,
    OutputExistsError,
    UsageError,
    VectorFileError,
)
from qinco_core.store import Store, load_centroids, save_centroids, save_checkpoint, verify

FLOATS = ("float16", "float32", "float64")
finite = arrays(
    st.sampled_from(FLOATS).map(np.dtype),
    array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements={"allow_nan": False, "allow_infinity": False, "min_value": -60_000, "max_value": 60_000},
)


@pytest.fixture
def centroids(rng):
    return rng.normal(size=(7, 3)).astype("f4")


@pytest.fixture
def path(tmp_path, centroids):
    save_centroids(tmp_path / "centroids.h5", centroids, training={"mse": 2.5})
    return tmp_path / "centroids.h5"


@settings(deadline=None, max_examples=50)
@given(finite)
def test_both_kinds_of_file_give_the_same(tmp_path_factory, array):
    folder = tmp_path_factory.getbasetemp()
    header = save_centroids(folder / "c.h5", array, training={}, force=True)
    np.save(folder / "c.npy", array)
    for path in (folder / "c.h5", folder / "c.npy"):
        stored = load_centroids(path)
        assert stored.path == path and stored.centroids.dtype == np.float32 and stored.training == {}
        np.testing.assert_array_equal(stored.centroids, array.astype(np.float32))
        assert (stored.header.kind, stored.header.fingerprint) == ("centroids", header.fingerprint)
        assert stored.header.config == {"ivf_K": array.shape[0], "D": array.shape[1]}


def test_what_is_kept(path, centroids):
    stored = load_centroids(path)
    assert stored.training == {"mse": 2.5} and stored.header.parents == ()
    assert Store(path.parent).centroids == path
    report = verify(path)
    assert report.ok and [check.name for check in report.checks] == ["header", "arrays", "fingerprint"]


def test_the_fingerprint_is_of_the_centroids_alone(tmp_path, centroids):
    def fingerprint(array, **training):
        return save_centroids(tmp_path / "c.h5", array, training=training, force=True).fingerprint

    same = fingerprint(centroids)
    assert fingerprint(np.asfortranarray(centroids.astype(">f8")), mse=1) == same
    assert fingerprint(centroids[::-1]) != same
    assert fingerprint(centroids.reshape(3, 7)) != same
    assert fingerprint(np.nextafter(centroids, 9)) != same


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_values_that_are_no_float32_are_refused(tmp_path, value):
    array = np.array([[1.0, value]])
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        save_centroids(tmp_path / "c.h5", array, training={})
    assert not list(tmp_path.iterdir())
    np.save(tmp_path / "c.npy", array)
    with pytest.raises((ArtifactError, VectorFileError), match="NaN or infinity"):
        load_centroids(tmp_path / "c.npy")


def test_arrays_that_are_no_centroids_are_refused(tmp_path, centroids):
    for array in (np.ones(3), np.ones((2, 2, 2)), np.ones((0, 3)), np.ones((3, 0))):
        with pytest.raises(DimensionError):
            save_centroids(tmp_path / "c.h5", array, training={})
        np.save(tmp_path / "c.npy", array)
        with pytest.raises(VectorFileError):
            load_centroids(tmp_path / "c.npy")
    np.save(tmp_path / "c.npy", np.ones((2, 2), np.uint8))
    with pytest.raises(ArtifactError, match="uint8"):
        load_centroids(tmp_path / "c.npy")
    np.save(tmp_path / "c.npy", np.array([[{}, {}]]), allow_pickle=True)
    with pytest.raises(VectorFileError, match="dtype"):
        load_centroids(tmp_path / "c.npy")
    np.save(tmp_path / "c.npy", centroids)
    (tmp_path / "c.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:-1])
    with pytest.raises(VectorFileError, match="truncated"):
        load_centroids(tmp_path / "c.npy")
    with pytest.raises(UsageError, match="export"):
        save_centroids(tmp_path / "d.npy", centroids, training={})
    with pytest.raises(UsageError, match="JSON"):
        save_centroids(tmp_path / "d.h5", centroids, training={"mse": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["c.npy"]


def test_existing_centroids_need_force(path, centroids):
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        save_centroids(path, centroids, training={})
    assert path.read_bytes() == before


def test_foreign_files(tmp_path, path):
    with pytest.raises(InputNotFoundError):
        load_centroids(tmp_path / "absent.h5")
    save_checkpoint(tmp_path / "t.h5", config={}, arrays={}, state={})
    with pytest.raises(ArtifactError, match="holds checkpoint, not centroids"):
        load_centroids(tmp_path / "t.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(ArtifactVersionError):
        load_centroids(path)


@pytest.mark.parametrize("change", ["number", "renamed", "config", "missing"])
def test_changed_content_is_found(path, change):
    with h5py.File(path, "r+") as file:
        if change == "number":
            file["arrays/centroids"][2, 1] += 1
        elif change == "renamed":
            file.move("arrays/centroids", "arrays/books")
        elif change == "config":
            file.attrs["config"] = file.attrs["config"].decode().replace("7", "8")
        else:
            del file["arrays/centroids"]
    with pytest.raises(ArtifactError, match="corrupted"):
        load_centroids(path)
    assert not verify(path).ok


def test_every_truncated_or_damaged_file_is_refused_or_unharmed(path, centroids, rng):
    whole = path.read_bytes()
    for at in range(0, len(whole), 29):
        path.write_bytes(whole[:at])
        with pytest.raises(ArtifactError):
            load_centroids(path)
    for at in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = load_centroids(path)
        except ArtifactError:
            continue
        assert np.array_equal(found.centroids, centroids) and found.training == {"mse": 2.5}
