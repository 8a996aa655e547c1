"""Published checkpoints in and out: equal tensors, and everything that can be wrong with one."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from qinco_core.codec.network import Network
from qinco_core.errors import ForeignFileError, InputNotFoundError, OutputExistsError
from qinco_core.interop.checkpoint import read_checkpoint, write_checkpoint
from qinco_core.interop.detect import detect
from qinco_core.interop.models import import_model
from qinco_core.store import load_model

MODELS = Path(__file__).parents[1] / "codec" / "golden"
NAMES = ("q2", "q2_noA", "q1", "ivf_q2")
Content = dict[str, Any]


def published(name: str) -> Content:
    content = torch.load(MODELS / f"{name}.pt", weights_only=True)
    assert isinstance(content, dict)
    return content


def spoilt(tmp_path: Path, change: Callable[[Content], None], name: str = "ivf_q2") -> Path:
    """A published checkpoint with something changed."""
    content = published(name)
    change(content)
    path = tmp_path / "spoilt.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_gives_equal_tensors(name: str, tmp_path: Path) -> None:
    import_model(detect(MODELS / f"{name}.pt"), tmp_path / "model.h5")
    stored = load_model(tmp_path / "model.h5")
    write_checkpoint(tmp_path / "again.pt", stored.config, stored.encode, stored.tensors, force=False)
    before, after = published(name), torch.load(tmp_path / "again.pt", weights_only=True)
    assert before["parameters"] == after["parameters"]
    assert before["data_dim"] == after["data_dim"]
    assert before["model"].keys() == after["model"].keys()
    for key, tensor in before["model"].items():
        assert tensor.shape == after["model"][key].shape
        assert tensor.dtype == after["model"][key].dtype
        assert "xtarget" in key or torch.equal(tensor, after["model"][key]), key


def test_a_checkpoint_becomes_the_model_that_it_says(tmp_path: Path) -> None:
    header = import_model(detect(MODELS / "ivf_q2.pt"), tmp_path / "model.h5")
    stored = load_model(tmp_path / "model.h5")
    sizes = {"D": 48, "M": 4, "K": 64, "L": 1, "E": 32, "H": 64, "ivf_K": 300, "preselect": True, "rules": "qinco2"}
    assert {name: getattr(stored.config, name) for name in sizes} == sizes
    assert (stored.encode.A, stored.encode.B) == (8, 8)
    assert stored.training == {"imported": "ivf_q2.pt", "epoch": 5}
    assert header.fingerprint == stored.header.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_prefixes_of_distributed_training_are_left_out(name: str, tmp_path: Path) -> None:
    def change(content: Content) -> None:
        content["model"] = {f"module.{key}": value for key, value in content["model"].items()}

    plain, prefixed = read_checkpoint(MODELS / f"{name}.pt"), read_checkpoint(spoilt(tmp_path, change, name))
    assert prefixed.config == plain.config
    assert all(np.array_equal(prefixed.tensors[key], array) for key, array in plain.tensors.items())


def test_half_precision_and_a_scalar_in_brackets_are_read(tmp_path: Path) -> None:
    def change(content: Content) -> None:
        state = content["model"]
        content["model"] = {key: tensor.half() for key, tensor in state.items()}
        content["model"]["data_std"] = state["data_std"].reshape(1)

    model = read_checkpoint(spoilt(tmp_path, change))
    assert {array.dtype for array in model.tensors.values()} == {np.dtype(np.float32)}
    Network.from_arrays(model.config, model.tensors)


def test_numbers_of_numpy_in_its_logs_are_no_obstacle(tmp_path: Path) -> None:
    def change(content: Content) -> None:
        content["logger"] = {"mse": np.float64(1.5), "curve": np.arange(3), "best": [np.float32(2)]}
        content["parameters"]["M"] = np.int64(4)
        content["optimizer"] = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}

    assert read_checkpoint(spoilt(tmp_path, change)).config.M == 4


def test_statistics_and_other_forms_that_mean_the_same(tmp_path: Path) -> None:
    def change(content: Content) -> None:
        content["model"]["steps.0.xtarget_mean"] = torch.zeros(48)
        content["model"]["steps.1.xtarget_var"] = "anything"
        content["model"]["data_mean"] = content["model"]["data_mean"][None]

    plain, found = read_checkpoint(MODELS / "ivf_q2.pt"), read_checkpoint(spoilt(tmp_path, change))
    assert np.array_equal(found.tensors["mean"], plain.tensors["mean"])

    def change_q1(content: Content) -> None:
        content["model"]["data_mean"] = torch.tensor(1.0)  # QINCo1 has one number for all dimensions
        content["parameters"]["A"] = 16

    model = read_checkpoint(spoilt(tmp_path, change_q1, "q1"))
    assert np.array_equal(model.tensors["mean"], np.ones(48))
    assert model.search.A == 0


@pytest.mark.parametrize("name", ["q2", "q2_noA"])
def test_a_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    content = bytearray((MODELS / f"{name}.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(ForeignFileError, match=r"damaged: .* does not have its checksum"):
        detect(tmp_path / "flipped.pt")


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans(), old=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_never_anything_but_an_error_of_ours(
    place: float, value: int, cut: bool, old: bool, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.pt"
    torch.save(published("q2_noA"), path, _use_new_zipfile_serialization=not old)
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) if cut else min(len(content), 4000)))
    content[at] = value
    path.write_bytes(content[:at] if cut else content)
    with contextlib.suppress(ForeignFileError):
        read_checkpoint(path)


@pytest.mark.parametrize("K", [2, 1024])
def test_other_powers_of_two(K: int, tmp_path: Path) -> None:
    def change(content: Content) -> None:
        content["parameters"]["K"] = K
        for key, tensor in content["model"].items():
            if key.endswith("codebook.weight"):
                content["model"][key] = torch.zeros(K, tensor.shape[1])

    assert read_checkpoint(spoilt(tmp_path, change)).config.bits == K.bit_length() - 1


def drop(key: str) -> Callable[[Content], None]:
    return lambda content: content["model"].pop(key)


def put(key: str, value: object) -> Callable[[Content], None]:
    return lambda content: content["model"].update({key: value})


def parameter(key: str, value: object) -> Callable[[Content], None]:
    return lambda content: content["parameters"].update({key: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("steps.2.concat.mlp.weight"), "steps.2.concat.mlp.weight is missing"),
        (drop("data_mean"), "data_mean is missing"),
        (drop("steps.0.ivf_centroids.weight"), "steps.0.ivf_centroids.weight is missing"),
        (put("steps.9.codebook.weight", torch.zeros(64, 48)), "the tensor steps.9.codebook.weight is not one of"),
        (put("steps.1.codebook.weight", torch.zeros(48, 64)), "steps.1.codebook.weight has the shape [48, 64], not"),
        (put("steps.1.codebook.weight", torch.zeros(64, 48).int()), "steps.1.codebook.weight is of int32, not"),
        (put("steps.1.codebook.weight", torch.full((64, 48), torch.nan)), "steps.1.codebook.weight holds NaN"),
        (
            put("steps.1.codebook.weight", torch.full((64, 48), 1e300, dtype=torch.float64)),
            "steps.1.codebook.weight holds NaN",
        ),
        (put("steps.1.codebook.weight", [1.0]), "steps.1.codebook.weight is a list, not a tensor"),
        (put("steps.1.codebook.weight", torch.zeros(64, 48).to_sparse()), "steps.1.codebook.weight is a sparse"),
        (
            put("steps.1.codebook.weight", torch.zeros(1).expand(1 << 16, 1 << 16)),
            "steps.1.codebook.weight has the shape [65536, 65536] but fewer numbers",
        ),
        (put("data_mean", torch.zeros(1).expand(48)), "data_mean has the shape [48] but fewer numbers, repeated"),
        (put("data_std", torch.tensor(0.0)), "data_std is 0"),
        (parameter("B", 0), "B: "),
        (parameter("A", -1), "A: "),
        (parameter("K", 60), "K = 60 is not a power of two"),
        (parameter("K", None), "parameters has no K"),
        (parameter("M", "four"), "M is 'four', not a whole number"),
        (parameter("L", 0), "L: "),
        (parameter("ivf_in_use", torch.zeros(2)), "ivf_in_use is tensor([0., 0.]), neither true nor false"),
        (parameter("ivf_in_use", np.zeros(2)), "ivf_in_use is array([0., 0.]), neither"),
        (parameter("qinco1_mode", np.zeros(2)), "qinco1_mode is array([0., 0.]), neither"),
        (parameter("A", 0), "substep.codebook.weight is not one of such a model"),
        (parameter("de", None), "in_proj.weight is not one of such a model"),
        (lambda content: content.pop("data_dim"), "data_dim is missing"),
        (lambda content: content.update(model=[1]), "model is a list, not a table of names"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Content], None], said: str, tmp_path: Path) -> None:
    path = spoilt(tmp_path, change)
    with pytest.raises(ForeignFileError) as caught:
        import_model(detect(path), tmp_path / "model.h5")
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spoilt.pt"]


class Runs:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.victim,))


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(how: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.pt"
    content = {"model": Runs(victim), "parameters": {}, "data_dim": 4}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ForeignFileError, match=r"pickle of Python objects .*made by running code"):
        detect(path)
    assert not victim.exists()


def test_a_whole_module_is_refused_with_its_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ForeignFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
        detect(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "damaged, or something else"),
        ((MODELS / "q2.pt").read_bytes()[:5000], "was cut, its end is missing"),
    ],
)
def test_damaged_files(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(ForeignFileError, match=said):
        detect(path)


def test_other_torch_files(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ForeignFileError, match="holds a list, not named fields"):
        detect(tmp_path / "list.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ForeignFileError, match="holds weights: neither a checkpoint"):
        detect(tmp_path / "other.pt")
    with pytest.raises(InputNotFoundError):
        detect(tmp_path / "nothing.pt")


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        import_model(detect(MODELS / "q2.pt"), tmp_path / "model.h5")
    model = read_checkpoint(MODELS / "q2.pt")
    with pytest.raises(OutputExistsError):
        write_checkpoint(tmp_path / "model.h5", model.config, model.search, model.tensors, force=False)
    assert (tmp_path / "model.h5").read_bytes() == b"mine"
