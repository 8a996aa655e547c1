"""The file of look-up decoders: what comes back, what is refused, what `verify` finds."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from qinco_core.config import ModelConfig
from qinco_core.errors import ArtifactError, OutputExistsError, UsageError
from qinco_core.store import Parent, load_pairwise, read_header, save_pairwise, verify

CONFIG = ModelConfig(D=6, M=3, K=4, L=1, E=6, H=5, ivf_K=7)
PARENTS = (Parent("model", "ab" * 16), Parent("codes", "cd" * 16))


@pytest.fixture
def arrays(rng):
    return {
        "additive": rng.standard_normal((3, 4, 6)).astype("f4"),
        "mean": np.zeros(6, "f4"),
        "pairs": np.array([[0, 1], [4, 2]], "i4"),
        "scale": np.array(0.25, "f4"),
        "list_symbols": rng.integers(0, 4, (7, 2)).astype("u2"),
    }


@pytest.fixture
def tables(rng):
    return rng.integers(-127, 128, (2, 16, 6)).astype(np.int8)


@pytest.fixture
def path(tmp_path, arrays, tables):
    save_pairwise(tmp_path / "p.h5", CONFIG, arrays, tables, training={"mse": 1.5}, parents=PARENTS)
    return tmp_path / "p.h5"


def test_round_trip(path, arrays, tables):
    stored = load_pairwise(path)
    np.testing.assert_array_equal(stored.additive_MKD, arrays["additive"])
    np.testing.assert_array_equal(stored.pairs_2T, arrays["pairs"])
    np.testing.assert_array_equal(stored.list_symbols_LX, arrays["list_symbols"])
    np.testing.assert_array_equal(stored.tables_TRD, tables)
    assert (stored.scale, stored.training, stored.header.parents) == (0.25, {"mse": 1.5}, PARENTS)
    assert isinstance(stored.tables_TRD, np.memmap)
    assert not stored.tables_TRD.flags.writeable
    assert verify(path).ok


def test_without_tables_and_without_lists(tmp_path, arrays):
    config = CONFIG.model_copy(update={"ivf_K": 0})
    empty = arrays | {"pairs": np.zeros((2, 0), "i4"), "list_symbols": np.zeros((0, 0), "u2")}
    none = np.zeros((0, 16, 6), np.int8)
    save_pairwise(tmp_path / "a.h5", config, empty, none, training={}, parents=PARENTS[:1])
    assert load_pairwise(tmp_path / "a.h5").tables_TRD.shape == (0, 16, 6)
    assert verify(tmp_path / "a.h5").ok


def test_fingerprint_covers_content_alone(path, tmp_path, arrays, tables):
    def fingerprint(arrays, tables, **options):
        options = {"training": {}, "parents": ()} | options
        return save_pairwise(tmp_path / "q.h5", CONFIG, arrays, tables, force=True, **options).fingerprint

    same = read_header(path).fingerprint
    assert fingerprint(arrays, tables) == fingerprint(arrays, tables, training={"t": 1}, parents=PARENTS) == same
    assert fingerprint(arrays | {"additive": arrays["additive"] * 2}, tables) != same
    assert fingerprint(arrays | {"scale": np.array(0.5, "f4")}, tables) != same
    assert fingerprint(arrays, -tables) != same


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"additive": np.zeros((3, 4, 5), "f4")}, "additive has the shape"),
        ({"mean": np.full(6, np.nan, "f4")}, "mean holds NaN"),
        ({"pairs": np.array([[0, 1], [5, 2]], "i4")}, "pairs has numbers that are not below 5"),
        ({"pairs": np.array([[0, 1, 2], [4, 2, 3]], "i4")}, "tables have the shape"),
        ({"list_symbols": np.full((7, 2), 4, "u2")}, "list_symbols has numbers that are not below 4"),
        ({"list_symbols": np.zeros((6, 2), "u2")}, "list_symbols has the shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, tables, change, says):
    with pytest.raises(ArtifactError, match=says):
        save_pairwise(tmp_path / "p.h5", CONFIG, arrays | change, tables, training={}, parents=())
    assert not list(tmp_path.iterdir())


def test_existing_files_and_odd_figures(path, arrays, tables):
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        save_pairwise(path, CONFIG, arrays, tables, training={}, parents=())
    with pytest.raises(UsageError, match="JSON"):
        save_pairwise(path, CONFIG, arrays, tables, training={"mse": float("nan")}, parents=(), force=True)
    assert path.read_bytes() == before


def test_a_changed_table_is_found_by_verify_alone(path):
    with h5py.File(path, "r+") as file:
        file["tables"][1, 3, 2] = ~file["tables"][1, 3, 2]
    load_pairwise(path)
    report = verify(path)
    assert not report.ok
    assert "tables do not have their digest" in report.checks[-1].detail


@pytest.mark.parametrize("name", ["arrays/additive", "arrays/scale", "arrays/list_symbols"])
def test_a_changed_array_is_found(path, name):
    with h5py.File(path, "r+") as file:
        file[name][...] = 1
    with pytest.raises(ArtifactError, match="does not have its digest"):
        load_pairwise(path)


@pytest.mark.parametrize("change", ["config", "missing", "tables", "extra"])
def test_changed_content_is_found(path, change):
    with h5py.File(path, "r+") as file:
        if change == "config":
            file.attrs["config"] = file.attrs["config"].decode().replace('"ivf_K":7', '"ivf_K":8')
        elif change == "missing":
            del file["arrays/mean"]
        elif change == "tables":
            del file["tables"]
        else:
            file["arrays/more"] = np.ones(3, "f4")
            file["arrays/more"].attrs["digest"] = "0" * 32
    with pytest.raises(ArtifactError, match=r"corrupted|has the shape"):
        load_pairwise(path)


def test_every_truncated_or_damaged_file_is_refused_or_unharmed(path, tmp_path, rng):
    whole, stored = path.read_bytes(), load_pairwise(path)
    damaged = tmp_path / "damaged.h5"
    for at in range(0, len(whole), 97):
        damaged.write_bytes(whole[:at])
        with pytest.raises(ArtifactError):
            load_pairwise(damaged)
    for at in range(0, len(whole), 23):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(flipped)
        try:
            found = load_pairwise(damaged)
        except ArtifactError:
            continue
        assert (found.header, found.training, found.scale) == (stored.header, stored.training, stored.scale)
        np.testing.assert_array_equal(found.additive_MKD, stored.additive_MKD)
        if not np.array_equal(found.tables_TRD, stored.tables_TRD):
            assert not verify(damaged).ok
