"""Artifact kind *model*: a trained model, its configuration, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import ArtifactError
from qinco_core.store.arrays import Entry, read_arrays, read_json, write_arrays
from qinco_core.store.artifact import (
    Header,
    Parent,
    canonical_json,
    create_artifact,
    damage_is_error,
    fingerprint_of,
    open_artifact,
)

KIND = "model"


@dataclass(frozen=True)
class StoredModel:
    """A model as stored; `tensors` are float32, `training` holds free figures of its training."""

    path: Path
    header: Header
    config: ModelConfig
    encode: EncodeConfig
    tensors: dict[str, NDArray[np.float32]]
    training: dict[str, Any]


def save_model(
    path: str | Path,
    config: ModelConfig,
    encode: EncodeConfig,
    tensors: Mapping[str, NDArray[Any]],
    *,
    training: Mapping[str, Any],
    parents: tuple[Parent, ...] = (),
    force: bool = False,
) -> Header:
    """Write a model; `tensors` are kept as float32. Its fingerprint covers `config` and the tensors.

    Raises:
        ArtifactError: a tensor holds NaN or infinity.
        OutputExistsError: `path` exists and `force` is false.
        StorageError: the disk is full or read-only.
        UsageError: `training` is not JSON, or a tensor's name holds '/'.
    """
    stored = {name: _float32(name, tensor) for name, tensor in tensors.items()}
    figures = canonical_json(dict(training))
    described = config.model_dump(mode="json")
    with create_artifact(path, force=force) as out:
        entries = write_arrays(out, "tensors", stored)
        out.text("training", figures)
        fields = {"model": described, "encode": encode.model_dump(mode="json")}
        out.finish(KIND, _fingerprint(described, entries), fields, tuple(parents))
    return out.header


def load_model(path: str | Path) -> StoredModel:
    """Read a model and check all of it: digests, fingerprint, finite values.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, or another kind of artifact.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = Path(path)
    with open_artifact(path, KIND) as (file, header), damage_is_error(path):
        config = ModelConfig.parse(header.config["model"])
        encode = EncodeConfig.parse(header.config["encode"])
        arrays, entries = read_arrays(file, "tensors", path)
        if _fingerprint(header.config["model"], entries) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; make it again")
        tensors = {name: _float32(f"{path}: {name}", array) for name, array in arrays.items()}
        return StoredModel(path, header, config, encode, tensors, read_json(file, "training", path))


def _float32(name: str, tensor: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.asarray(tensor, dtype="<f4")
    if not np.isfinite(array).all():
        raise ArtifactError(f"tensor {name} holds NaN or infinity, so the model is unusable; train it again")
    return array


def _fingerprint(config: dict[str, Any], entries: list[Entry]) -> str:
    return fingerprint_of({"kind": KIND, "config": config, "arrays": entries})
