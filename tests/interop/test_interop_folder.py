"""Models as folders of safetensors and as ONNX decoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from qinco_core.api import Codec
from qinco_core.codec.network import Network
from qinco_core.codec.product import AnyNetwork, ProductNetwork, network_of
from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import ForeignFileError, OutputExistsError, QincoError, UsageError
from qinco_core.interop.checkpoint import read_checkpoint, write_checkpoint
from qinco_core.interop.detect import detect
from qinco_core.interop.folder import export_folder
from qinco_core.interop.models import import_model
from qinco_core.interop.onnx import export_onnx
from qinco_core.store import Parent, load_model, save_model

MODELS = Path(__file__).parents[1] / "codec" / "golden"


@pytest.fixture
def shared(ivf_codec: Codec, tmp_path: Path) -> Path:
    """A model as a folder."""
    assert ivf_codec.path is not None
    export_folder(load_model(ivf_codec.path), tmp_path / "my-model", force=False)
    return tmp_path / "my-model"


def test_a_folder_is_the_same_model_again(shared: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    assert sorted(path.name for path in shared.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for source in (shared, shared / "model.safetensors", shared / "config.json"):
        out = tmp_path / f"{source.name}.h5"
        header = import_model(detect(source), out)
        assert ivf_codec.header is not None
        assert header.fingerprint == ivf_codec.header.fingerprint
        stored = load_model(out)
        assert (stored.config, stored.encode) == (ivf_codec.config, ivf_codec.search)
        assert stored.training == ivf_codec.training
    with pytest.raises(OutputExistsError):
        export_folder(stored, shared, force=False)
    export_folder(stored, shared, force=True)


def test_the_tensors_are_plain_safetensors(shared: Path, ivf_codec: Codec) -> None:
    tensors = safetensors.numpy.load_file(shared / "model.safetensors")
    wanted = ivf_codec.network.to_arrays()
    assert tensors.keys() == wanted.keys()
    assert all(np.array_equal(tensors[name], array) for name, array in wanted.items())


def test_the_card_says_what_the_model_is(shared: Path, ivf_codec: Codec) -> None:
    card = (shared / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: qinco\n")
    assert ivf_codec.header is not None
    for said in ("300 coarse centroids", "| dimension of the vectors, D | 48 |", ivf_codec.header.fingerprint):
        assert said in card


def edit(shared: Path, change: Callable[[dict[str, Any]], None]) -> None:
    described = json.loads((shared / "config.json").read_text("utf-8"))
    change(described)
    (shared / "config.json").write_text(json.dumps(described), "utf-8")


def put(shared: Path, name: str, value: np.ndarray | None) -> None:
    tensors = safetensors.numpy.load_file(shared / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    safetensors.numpy.save_file(tensors, shared / "model.safetensors")


def put_torch(shared: Path, name: str, value: torch.Tensor) -> None:
    tensors = safetensors.torch.load_file(shared / "model.safetensors")
    safetensors.torch.save_file({**tensors, name: value}, shared / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: put(s, "mean", None), "tensor mean is missing"),
        (lambda s: put(s, "extra", np.zeros(3, np.float32)), "tensor extra is unknown"),
        (lambda s: put(s, "mean", np.zeros(3, np.float32)), r"tensor mean has shape \(3,\), not \(48,\)"),
        (lambda s: put(s, "mean", np.zeros(48, np.int32)), "the tensor mean is of int32, not of floats"),
        (lambda s: put_torch(s, "mean", torch.zeros(48).to(torch.float8_e4m3fn)), "numpy cannot hold .*as float32"),
        (lambda s: put_torch(s, "mean", torch.zeros(48).to(torch.bfloat16)), "numpy cannot hold .*as float32"),
        (lambda s: edit(s, lambda d: d["training"].update(mse=float("nan"))), "is no JSON .*NaN"),
        (lambda s: edit(s, lambda d: d.update(parents=[1])), "its parents are not kinds and fingerprints"),
        (lambda s: put(s, "mean", np.full(48, np.nan, np.float32)), "tensor mean holds NaN"),
        (lambda s: put(s, "mean", np.zeros(48, np.float32)), "not of one model, or were changed"),
        (lambda s: edit(s, lambda d: d.update(format="other")), 'its "format" is not "qinco"'),
        (lambda s: edit(s, lambda d: d.update(format_version=9)), "format_version 9; this qinco reads 1"),
        (lambda s: edit(s, lambda d: d["model"].update(K=60)), "K = 60 is not a power of two"),
        (lambda s: edit(s, lambda d: d.pop("training")), "training is missing"),
        (lambda s: (s / "config.json").write_text("{"), "is no JSON"),
        (lambda s: (s / "model.safetensors").write_bytes(b"\0" * 99), "cannot be read as safetensors"),
        (lambda s: (s / "model.safetensors").unlink(), "model.safetensors does not exist"),
        (lambda s: (s / "config.json").unlink(), "config.json does not exist"),
    ],
)
def test_a_spoilt_folder_is_refused(spoil: Callable[[Path], None], said: str, shared: Path, tmp_path: Path) -> None:
    spoil(shared)
    with pytest.raises(QincoError, match=said):
        import_model(detect(shared), tmp_path / "new" / "sub" / "model.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["my-model"]


def test_another_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match=r"folder without config\.json and model\.safetensors"):
        detect(tmp_path)


def small(**sizes: Any) -> AnyNetwork:
    """A model of random weights, of low rank or in groups."""
    config = ModelConfig(D=16, M=4, K=16, L=1, E=8, H=16, **sizes)
    network = ProductNetwork(config) if config.groups > 1 else Network(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return network_of(config, network.to_arrays())


def test_a_low_rank_becomes_a_whole_matrix(tmp_path: Path) -> None:
    network = small(rank=3)
    write_checkpoint(tmp_path / "m.pt", network.config, EncodeConfig(A=4, B=4), network.to_arrays(), force=False)
    model = read_checkpoint(tmp_path / "m.pt")
    assert model.config.rank == 0
    again, codes = Network.from_arrays(model.config, model.tensors), torch.randint(16, (9, 4))
    assert torch.allclose(again.decode(codes), network.decode(codes), atol=1e-5)


def test_what_a_model_was_made_from_goes_along(ivf_codec: Codec, tmp_path: Path) -> None:
    parents = (Parent("centroids", "0" * 32),)
    arrays = ivf_codec.network.to_arrays()
    save_model(tmp_path / "m.h5", ivf_codec.config, ivf_codec.search, arrays, training={}, parents=parents)
    export_folder(load_model(tmp_path / "m.h5"), tmp_path / "m", force=False)
    assert import_model(detect(tmp_path / "m"), tmp_path / "n.h5").parents == parents


@pytest.mark.parametrize("sizes", [{"rank": 3}, {"groups": 2}, {"groups": 2, "opq": True}])
def test_every_kind_of_model_goes_to_a_folder_and_back(sizes: dict[str, Any], tmp_path: Path) -> None:
    network = small(**sizes)
    save_model(tmp_path / "m.h5", network.config, EncodeConfig(A=4, B=4), network.to_arrays(), training={})
    stored = load_model(tmp_path / "m.h5")
    export_folder(stored, tmp_path / "m", force=False)
    assert import_model(detect(tmp_path / "m"), tmp_path / "n.h5").fingerprint == stored.header.fingerprint
    assert load_model(tmp_path / "n.h5").config == network.config


def test_groups_have_no_place_in_a_published_checkpoint(tmp_path: Path) -> None:
    network = small(groups=2)
    with pytest.raises(UsageError, match="no place for a model of 2 groups"):
        write_checkpoint(tmp_path / "m.pt", network.config, EncodeConfig(A=4, B=4), network.to_arrays(), force=False)
    assert not list(tmp_path.iterdir())


def test_a_product_model_decodes_by_onnx(tmp_path: Path) -> None:
    assert export_onnx(small(groups=2, opq=True), tmp_path / "m.onnx", properties={}, force=False) < 1e-5


@pytest.mark.parametrize("name", ["q1", "ivf_q2"])
def test_other_programs_decode_by_onnx(name: str, tmp_path: Path) -> None:
    model, expected = read_checkpoint(MODELS / f"{name}.pt"), np.load(MODELS / f"{name}.expected.npz")
    network = Network.from_arrays(model.config, model.tensors)
    difference = export_onnx(network, tmp_path / "model.onnx", properties={"D": "48"}, force=False)
    assert difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"D": "48"}
    for count in (1, 3, 1000):
        codes = expected["codes"][:count].astype(np.int64)
        (decoded,) = session.run(["vectors"], {"codes": codes})
        assert decoded.dtype == np.float32
        assert np.abs(decoded - expected["decoded"][:count]).max() <= 1e-4 * np.abs(expected["decoded"]).max()
    with pytest.raises(OutputExistsError):
        export_onnx(network, tmp_path / "model.onnx", properties={}, force=False)
