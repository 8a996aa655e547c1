"""Models as files, and what all artifacts share."""

import h5py
import numpy as np
import pytest

from qinco_core.config import ModelConfig
from qinco_core.errors import (
    ArtifactError,
    ArtifactVersionError,
    InputNotFoundError,
    LineageError,
    OutputExistsError,
    UsageError,
)
from qinco_core.store import Parent, check_lineage, load_model, open_codes, read_header, save_model


def test_round_trip(model_path, config, encode, tensors):
    stored = load_model(model_path)
    assert (stored.config, stored.encode) == (config, encode)
    assert stored.training == {"mse": 1.5, "curve": [3, 2]}
    assert stored.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(stored.tensors[name], tensor)
    assert stored.header == read_header(model_path)
    assert stored.header.kind == "model" and stored.header.format_version == 1
    assert stored.header.created.endswith("+00:00")


def test_fingerprint_is_of_config_and_tensors_alone(tmp_path, config, encode, tensors):
    def fingerprint(config, encode, tensors, **options):
        options = {"training": {}} | options
        return save_model(tmp_path / "m.h5", config, encode, tensors, force=True, **options).fingerprint

    same = fingerprint(config, encode, tensors)
    backwards = {k: v.astype(">f8") for k, v in reversed(tensors.items())}
    parents = (Parent("checkpoint", "00"),)
    fast = encode.model_copy(update={"B": 8})
    assert fingerprint(config, fast, backwards, training={"t": 1}, parents=parents) == same
    assert read_header(tmp_path / "m.h5").parents == parents
    assert fingerprint(config.model_copy(update={"H": 6}), encode, tensors) != same
    w = tensors["steps.1.w_up"]
    assert fingerprint(config, encode, tensors | {"steps.1.w_up": w.T}) != same
    assert fingerprint(config, encode, tensors | {"steps.1.w_up": w.reshape(6, 5)}) != same
    assert fingerprint(config, encode, tensors | {"steps.1.w_up": np.nextafter(w, 9)}) != same
    renamed = {k.replace("w_up", "w_down"): v for k, v in tensors.items()}
    assert fingerprint(config, encode, renamed) != same


def test_later_fields_are_stored_only_where_they_say_something(tmp_path, config, encode, tensors):
    def stored(**changes):
        changed = ModelConfig.parse(config.model_dump() | changes)
        header = save_model(tmp_path / "m.h5", changed, encode, tensors, training={}, force=True)
        assert load_model(tmp_path / "m.h5").config == changed
        return header.config["model"], header.fingerprint

    first = {"rules", "D", "M", "K", "L", "E", "H", "preselect", "ivf_K"}
    plain, fingerprint = stored()
    assert plain.keys() == first and config.model_dump().keys() == first
    assert stored(rank=0, groups=1, opq=False) == (plain, fingerprint)
    for changes in ({"rank": 2}, {"groups": 3}, {"groups": 3, "opq": True}):
        fields, other = stored(**changes)
        assert fields == plain | changes and other != fingerprint


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_float32_are_refused(tmp_path, config, encode, value):
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        save_model(tmp_path / "m.h5", config, encode, {"w": np.array([value])}, training={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", "", "."])
def test_names_that_hdf5_would_misread_are_refused(tmp_path, config, encode, name):
    with pytest.raises(UsageError):
        save_model(tmp_path / "m.h5", config, encode, {name: np.ones(2)}, training={})
    with pytest.raises(UsageError, match="JSON"):
        save_model(tmp_path / "m.h5", config, encode, {}, training={"mse": float("nan")})
    assert not list(tmp_path.iterdir())


def test_existing_model_needs_force(model_path, config, encode, tensors):
    before = model_path.read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        save_model(model_path, config, encode, tensors, training={})
    assert model_path.read_bytes() == before


def test_nothing_changes_when_writing_fails(model_path, config, encode, tensors):
    before = model_path.read_bytes()
    with pytest.raises(ArtifactError):
        save_model(model_path, config, encode, tensors | {"z": np.array([np.nan])}, training={}, force=True)
    with pytest.raises(UsageError):
        save_model(model_path, config, encode, tensors | {"z/": np.ones(1)}, training={}, force=True)
    assert model_path.read_bytes() == before
    assert list(model_path.parent.iterdir()) == [model_path]


def test_foreign_files(tmp_path, model_path):
    with pytest.raises(InputNotFoundError):
        load_model(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ArtifactError, match="not HDF5"):
        load_model(tmp_path / "text.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ArtifactError, match="no artifact of qinco"):
        load_model(tmp_path / "foreign.h5")
    with pytest.raises(ArtifactError, match="holds model, not codes"), open_codes(model_path):
        pass


def test_newer_format_names_the_version_to_install(model_path):
    with h5py.File(model_path, "r+") as file:
        file.attrs["format_version"] = 2
        file.attrs["writer"] = "3.1.4"
    with pytest.raises(ArtifactVersionError, match=r"pip install 'qinco>=3\.1\.4'"):
        load_model(model_path)


def test_a_changed_number_is_found(model_path):
    with h5py.File(model_path, "r+") as file:
        file["tensors/steps.1.w_up"][2, 3] += 1
    with pytest.raises(ArtifactError, match=r"steps\.1\.w_up does not have its digest"):
        load_model(model_path)


@pytest.mark.parametrize("change", ["config", "missing", "renamed"])
def test_changed_content_is_found(model_path, change):
    with h5py.File(model_path, "r+") as file:
        if change == "config":
            file.attrs["config"] = file.attrs["config"].decode().replace('"H":5', '"H":6')
        elif change == "missing":
            del file["tensors/data_std"]
        else:
            file.move("tensors/data_std", "tensors/data_var")
    with pytest.raises(ArtifactError, match="fingerprint"):
        load_model(model_path)


def test_every_truncated_or_damaged_model_is_refused_or_unharmed(model_path, tmp_path, rng):
    whole, stored = model_path.read_bytes(), load_model(model_path)
    damaged = tmp_path / "damaged.h5"
    for at in range(0, len(whole), 29):
        damaged.write_bytes(whole[:at])
        with pytest.raises(ArtifactError):
            load_model(damaged)
    for at in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(flipped)
        try:
            found = load_model(damaged)
        except ArtifactError:
            continue
        assert (found.header, found.config, found.training) == (stored.header, stored.config, stored.training)
        assert all(np.array_equal(found.tensors[name], w) for name, w in stored.tensors.items())


def test_lineage(model_path, spec):
    header = read_header(model_path)
    check_lineage(spec.model_copy(update={"model": header.fingerprint}), header)
    with pytest.raises(LineageError, match=rf"base\.h5 .*{spec.model}.*m\.h5 is {header.fingerprint}"):
        check_lineage(spec, header, codes="base.h5", model="m.h5")
