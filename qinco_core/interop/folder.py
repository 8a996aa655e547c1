"""A model as a folder for sharing: `model.safetensors`, `config.json`, and a model card, `README.md`.

The tensors are those of the model artifact, and `config.json` has what its header has, so that an import gives an
artifact with the same fingerprint, which codes of the model fit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import ForeignFileError, UsageError
from qinco_core.files import atomic_output, check_output, existing_file
from qinco_core.store import Parent, StoredModel

TENSORS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_FORMAT = "qinco"
_VERSION = 1


def is_folder(path: str | Path) -> bool:
    """Whether a path is such a folder."""
    return (Path(path) / CONFIG).is_file() or (Path(path) / TENSORS).is_file()


def export_folder(stored: StoredModel, folder: str | Path, *, force: bool) -> tuple[Path, ...]:
    """Write a model artifact as a folder.

    Returns:
        The files written.

    Raises:
        OutputExistsError: one of them exists and `force` is false.
        StorageError: the disk is full or read-only.
    """
    folder = Path(folder)
    new = not folder.exists()
    described = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "model": stored.header.config["model"],
        "encode": stored.header.config["encode"],
        "fingerprint": stored.header.fingerprint,
        "created": stored.header.created,
        "qinco_version": stored.header.writer,
        "training": stored.training,
        "parents": [asdict(parent) for parent in stored.header.parents],
    }
    contents = {
        TENSORS: safetensors.numpy.save(stored.tensors, metadata={"format": _FORMAT}),
        CARD: _card(stored, folder.resolve().name).encode(),
        CONFIG: (json.dumps(described, indent=2, sort_keys=True) + "\n").encode(),
    }
    paths = [check_output(folder / name, force=force) for name in contents]
    # the configuration has the fingerprint, so it is the last: halves of two models are noticed
    try:
        for path, content in zip(paths, contents.values(), strict=True):
            with atomic_output(path, force=force) as temporary:
                temporary.write_bytes(content)
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return tuple(paths)


@dataclass(frozen=True)
class SharedModel:
    """A model as a folder has it: all of its artifact, and the fingerprint that this had."""

    config: ModelConfig
    search: EncodeConfig
    tensors: dict[str, NDArray[Any]]
    training: dict[str, Any]
    parents: tuple[Parent, ...]
    fingerprint: str


def read_folder(folder: str | Path) -> SharedModel:
    """Read such a folder.

    Raises:
        InputNotFoundError: a file is missing.
        ForeignFileError: a file is damaged, of another program, or of a later version of the format.
    """
    folder = Path(folder)
    path = existing_file(folder / CONFIG)
    described = _described(path)
    try:
        config, search = ModelConfig.parse(described["model"]), EncodeConfig.parse(described["encode"])
    except (UsageError, TypeError) as error:
        raise ForeignFileError(f"{path}: its model or encode cannot be: {error}") from error
    tensors = _tensors(existing_file(folder / TENSORS))
    return SharedModel(
        config, search, tensors, described["training"], _parents(described, path), described["fingerprint"]
    )


def _parents(described: dict[str, Any], path: Path) -> tuple[Parent, ...]:
    found = described.get("parents", [])
    try:
        return tuple(Parent(str(parent["kind"]), str(parent["fingerprint"])) for parent in found)
    except (TypeError, KeyError) as error:
        raise ForeignFileError(f"{path}: its parents are not kinds and fingerprints") from error


def _described(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{path} is no JSON ({error}); it is damaged: copy it again") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise ForeignFileError(f'{path} is not of qinco: its "format" is not "{_FORMAT}"')
    version = described.get("format_version")
    if version != _VERSION:
        raise ForeignFileError(
            f"{path} has format_version {version!r}; this qinco reads {_VERSION}: install a later one"
        )
    wanted = {"model": dict, "encode": dict, "training": dict, "fingerprint": str}
    for name, kind in wanted.items():
        if not isinstance(described.get(name), kind):
            raise ForeignFileError(f"{path}: {name} is missing or no {'text' if kind is str else 'table of names'}")
    return described


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ForeignFileError(
            f"{path} cannot be read as safetensors ({error}); it is damaged: copy it again"
        ) from error
    except (AttributeError, TypeError) as error:  # numpy knows no bfloat16 and no float8
        raise ForeignFileError(f"{path} has a tensor that numpy cannot hold ({error}): save it as float32") from error
    for name, array in tensors.items():
        if array.dtype.kind != "f":
            raise ForeignFileError(f"{path}: the tensor {name} is of {array.dtype}, not of floats")
    return tensors


def _card(stored: StoredModel, name: str) -> str:
    c, e, training = stored.config, stored.encode, stored.training
    behind = f" behind {c.ivf_K:,} coarse centroids (an IVF)" if c.ivf_K else ""
    sizes: Mapping[str, Any] = {
        "dimension of the vectors, D": c.D,
        "symbols of a code, M": c.M,
        "codewords of a step, K": c.K,
        "bytes of a code": c.code_bytes,
        "coarse centroids": c.ivf_K,
        "residual blocks, L": c.L,
        "embedding width, de": c.E,
        "hidden width, dh": c.H,
        "rank of W_cat (0: whole)": c.rank,
        "groups of dimensions": c.groups,
        "candidates of a beam, A": e.A,
        "beams, B": e.B,
        "parameters": f"{c.parameters:,}",
        "fingerprint": f"`{stored.header.fingerprint}`",
    }
    known = {
        "preset": training.get("preset"),
        "training vectors": training.get("train_vectors"),
        "validation MSE": training.get("val_mse"),
        "imported from": training.get("imported"),
    }
    rows = [f"| {label} | {value} |" for label, value in sizes.items()]
    facts = [f"| {label} | {value} |" for label, value in known.items() if value is not None]
    return "\n".join(
        [
            "---",
            "library_name: qinco",
            "tags: [vector-compression, quantization, embeddings, qinco]",
            "---",
            f"# {name}",
            "",
            f"A {c.rules.replace('qinco', 'QINCo')} model{behind}: it compresses vectors of {c.D} dimensions to "
            f"{c.code_bytes} bytes each and decodes them again.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            *facts,
            "",
            "Use it with [qinco](https://pypi.org/project/qinco/), in the folder that holds this one:",
            "",
            "```sh",
            f"qinco import {name} -o model.h5",
            "qinco encode vectors.npy --model model.h5 -o codes.h5",
            "qinco decode codes.h5 --model model.h5 -o decoded.npy",
            "```",
            "",
            f"`{TENSORS}` has its tensors, `{CONFIG}` what they are. Say here what it was trained on and under which",
            "licence it may be used.",
            "",
        ]
    )
