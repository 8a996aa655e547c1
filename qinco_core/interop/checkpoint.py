"""Published checkpoints (method §7), in and out.

Their steps are numbered from the first codebook or the coarse step on, ours from the first network, so that step m
there is step m − 1 here. Shapes: D dimension, K codewords, L residual blocks, E embedding width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import ForeignFileError, UsageError
from qinco_core.interop.torchfile import floats_of, read_torch, tensor_of, write_torch

Arrays = dict[str, NDArray[np.float32]]

_PREFIX = "module."
# of a step: our name, theirs
_STEP = {
    "codebook": "codebook.weight",
    "preselect": "substep.codebook.weight",
    "w_in": "in_proj.weight",
    "w_out": "out_proj.weight",
    "w_cat": "concat.mlp.weight",
    "b_cat": "concat.mlp.bias",
}
_BLOCKS = {"w_up": "up_proj.weight", "w_down": "down_proj.weight"}
# statistics of the training targets, which nothing needs that decodes or encodes
_STATISTICS = ("xtarget_mean", "xtarget_var")
# more than any search is the better for
_MOST_BEAMS = 1 << 16


@dataclass(frozen=True)
class PublishedModel:
    """A model as a checkpoint has it: what it is, its encoder, its tensors under our names, the epoch it is of."""

    config: ModelConfig
    search: EncodeConfig
    tensors: Arrays
    epoch: int | None


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether a torch file's fields are those of a checkpoint."""
    return "model" in content and "parameters" in content


def read_checkpoint(path: str | Path) -> PublishedModel:
    """Read a published checkpoint of QINCo1, QINCo2 or IVF-QINCo2, and check every tensor that the model has.

    Its training statistics and the state of its training are passed over.

    Raises:
        InputNotFoundError: it is not there.
        ForeignFileError: it is damaged or no checkpoint, would run code, or a field or tensor is missing, unknown,
            misshapen, or not of finite floats; the message names it.
    """
    path = Path(path)
    return parse_checkpoint(read_torch(path), path)


def parse_checkpoint(content: Mapping[str, Any], path: Path) -> PublishedModel:
    """The model in the fields of a torch file; errors as of `read_checkpoint`."""
    for name in ("model", "parameters", "data_dim"):
        if name not in content:
            raise ForeignFileError(f"{path}: {name} is missing; a published checkpoint has model, parameters, data_dim")
    state, given = content["model"], content["parameters"]
    for name, value in (("model", state), ("parameters", given)):
        if not isinstance(value, Mapping):
            raise ForeignFileError(f"{path}: {name} is a {type(value).__name__}, not a table of names")
    state = _without_prefix(state)
    config, search = _configs(given, content["data_dim"], state, path)
    tensors = _tensors(state, config, path)
    epoch = content.get("epoch")
    return PublishedModel(config, search, tensors, epoch if type(epoch) is int else None)


def write_checkpoint(
    path: str | Path, config: ModelConfig, search: EncodeConfig, tensors: Mapping[str, NDArray[Any]], *, force: bool
) -> None:
    """Write a model as a published checkpoint, without the state of its training.

    The statistics of training targets are written as 0 and 1: they are not known here, and are not used. A W_cat of
    low rank is written as the matrix that its factors make.

    Args:
        path: the `.pt` file.
        config: what the model is.
        search: its encoder; A and B are kept.
        tensors: by our names, as `Network.to_arrays` gives them.
        force: overwrite what is there.

    Raises:
        UsageError: the published format has no place for such a model.
        OutputExistsError, StorageError: as of `write_torch`.
    """
    if config.groups > 1:
        raise UsageError(
            f"{path}: the published format has no place for a model of {config.groups} groups; export it to a folder"
        )
    tensors = _with_whole_matrices(tensors, config)
    state: dict[str, Tensor] = {}
    for theirs, ours, block, _ in _names(config):
        if ours:
            array = tensors[ours] if block is None else tensors[ours][block]
        else:
            array = np.full(config.D, float(theirs.endswith("var")))
        state[theirs] = torch.from_numpy(np.array(array, np.float32))
    parameters: dict[str, Any] = {"K": config.K, "M": config.M, "dh": config.H, "L": config.L}
    parameters |= {"A": search.A, "B": search.B}
    if config.projects:
        parameters["de"] = config.E
    if config.ivf_K:
        parameters |= {"ivf_in_use": True, "ivf_K": config.ivf_K}
    if config.rules == "qinco1":
        parameters["qinco1_mode"] = True
    content = {"epoch": 0, "model": state, "optimizer": None, "scheduler": None, "logger": None}
    write_torch(path, {**content, "parameters": parameters, "data_dim": config.D}, force=force)


def _with_whole_matrices(tensors: Mapping[str, NDArray[Any]], config: ModelConfig) -> Mapping[str, NDArray[Any]]:
    """The tensors with every W_cat as one matrix, also where it is the product of two."""
    if not config.rank:
        return tensors
    products = {
        name.removesuffix("_out"): left @ tensors[name.removesuffix("_out") + "_in"]
        for name, left in tensors.items()
        if name.endswith(".w_cat_out")
    }
    return {**tensors, **products}


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without the prefix that distributed training puts before every name."""
    if state and all(str(name).startswith(_PREFIX) for name in state):
        return {str(name).removeprefix(_PREFIX): value for name, value in state.items()}
    return {str(name): value for name, value in state.items()}


def _configs(
    given: Mapping[str, Any], dim: Any, state: Mapping[str, Any], path: Path
) -> tuple[ModelConfig, EncodeConfig]:
    D = _number({"data_dim": dim}, "data_dim", path)
    ivf_K = 0
    if _flag(given, "ivf_in_use", path):
        centroids = tensor_of(state, "steps.0.ivf_centroids.weight", path)
        ivf_K = _number(given, "ivf_K", path, len(centroids) if centroids.dim() else 0)
    qinco1 = _flag(given, "qinco1_mode", path)
    A = 0 if qinco1 else _number(given, "A", path, 0)  # QINCo1 has nothing to pre-select with
    fields = {
        "rules": "qinco1" if qinco1 else "qinco2",
        "D": D,
        "M": _number(given, "M", path),
        "K": _number(given, "K", path),
        "L": _number(given, "L", path),
        "E": _number(given, "de", path, D),
        "H": _number(given, "dh", path),
        "preselect": A > 0,
        "ivf_K": ivf_K,
    }
    try:
        config = ModelConfig.parse(fields)
        return config, EncodeConfig.parse({"A": min(A, config.K), "B": min(_number(given, "B", path, 1), _MOST_BEAMS)})
    except UsageError as error:
        raise ForeignFileError(f"{path}: its parameters cannot be: {error}") from error


def _flag(given: Mapping[str, Any], name: str, path: Path) -> bool:
    """Whether what is called `name` is set; it is not where it is not there or None."""
    value = given.get(name)
    if not isinstance(value, (int, np.bool_, np.integer, type(None))):
        raise ForeignFileError(f"{path}: {name} is {value!r}, neither true nor false")
    return bool(value)


def _number(given: Mapping[str, Any], name: str, path: Path, unset: int | None = None) -> int:
    """The whole number called `name`, or `unset` where it is not there or None."""
    value = given.get(name)
    if value is None:
        if unset is None:
            raise ForeignFileError(f"{path}: parameters has no {name}; without it the sizes of the model are unknown")
        return unset
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ForeignFileError(f"{path}: {name} is {value!r}, not a whole number")
    return int(value)


def _names(config: ModelConfig) -> Iterator[tuple[str, str, int | None, tuple[int, ...]]]:
    """Every tensor of a checkpoint: its name there, ours ("" for statistics), its residual block, its shape."""
    D, K, E, H = config.D, config.K, config.E, config.H
    shapes: dict[str, tuple[int, ...]] = {
        "codebook": (K, D),
        "preselect": (K, D),
        "w_in": (E, D),
        "w_out": (D, E),
        "w_cat": (E, E + D),
    }
    shapes |= {"b_cat": (E,), "w_up": (H, E), "w_down": (E, H)}
    without = {name for name, there in (("preselect", config.preselect), ("w_in", config.projects)) if not there}
    without |= set() if config.projects else {"w_out"}
    yield "data_mean", "mean", None, (D,)
    yield "data_std", "std", None, ()
    if config.ivf_K:
        yield "steps.0.ivf_centroids.weight", "centroids", None, (config.ivf_K, D)
    else:
        yield from ((f"steps.0.{name}", "", None, (D,)) for name in _STATISTICS)
        yield "steps.0.codebook.weight", "codebook0", None, (K, D)
    for m in range(config.M if config.ivf_K else config.M - 1):
        there, here = f"steps.{m + 1}.", f"steps.{m}."
        yield from ((there + name, "", None, (D,)) for name in _STATISTICS)
        for ours, theirs in _STEP.items():
            if ours not in without:
                yield there + theirs, here + ours, None, shapes[ours]
        for block in range(config.L):
            for ours, theirs in _BLOCKS.items():
                yield f"{there}residual_blocks.{block}.{theirs}", here + ours, block, shapes[ours]


def _tensors(state: Mapping[str, Any], config: ModelConfig, path: Path) -> Arrays:
    names = list(_names(config))
    known = {theirs for theirs, *_ in names}
    if unknown := sorted(name for name in state.keys() - known if not name.endswith(_STATISTICS)):
        raise ForeignFileError(
            f"{path}: the tensor {unknown[0]} is not one of such a model (M = {config.M}, L = {config.L}, "
            f"E = {config.E} of D = {config.D}, {'with' if config.preselect else 'without'} pre-selection, "
            f"ivf_K = {config.ivf_K}); its parameters are of another model"
        )
    tensors: Arrays = {}
    for theirs, ours, block, shape in names:
        if not ours:
            continue
        tensor = tensor_of(state, theirs, path)
        tensor = _normalisation(tensor, shape) if theirs in ("data_mean", "data_std") else tensor
        array = floats_of(tensor, shape, theirs, path)
        if block is None:
            tensors[ours] = array
        else:
            tensors.setdefault(ours, np.empty((config.L, *shape), np.float32))[block] = array
    if tensors["std"] <= 0:
        raise ForeignFileError(f"{path}: data_std is {float(tensors['std']):g}; it has to be above 0")
    return tensors


def _normalisation(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mean or a standard deviation in the shape it is used in, where one number stands for all, or a row of them."""
    if tensor.numel() == 1:
        return tensor.reshape(()).expand(shape)
    return tensor.squeeze(0) if tuple(tensor.shape) == (1, *shape) else tensor
