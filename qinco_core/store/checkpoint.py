"""Artifact kind *checkpoint*: all that a training run needs to continue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qinco_core.errors import ArtifactError
from qinco_core.store.arrays import Entry, read_arrays, read_json, write_arrays
from qinco_core.store.artifact import (
    canonical_json,
    create_artifact,
    damage_is_error,
    fingerprint_of,
    open_artifact,
    plain,
)

KIND = "checkpoint"


def save_checkpoint(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    state: Mapping[str, Any],
) -> None:
    """Replace the checkpoint at `path`: arrays of numbers, bools or bytes, and JSON `config` and `state`.

    Raises:
        StorageError: the disk is full or read-only; the former checkpoint stays.
        UsageError: `config` or `state` is not JSON, or an array's name or dtype cannot be stored.
    """
    described, position = plain(config), plain(state)
    with create_artifact(path, force=True) as out:
        entries = write_arrays(out, "arrays", arrays)
        out.text("state", canonical_json(position))
        out.finish(KIND, _fingerprint(described, position, entries), described, ())


def load_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, Any]]:
    """Read (config, arrays, state) and check all of it.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, or another kind of artifact.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = Path(path)
    with open_artifact(path, KIND) as (file, header), damage_is_error(path):
        arrays, entries = read_arrays(file, "arrays", path)
        state = read_json(file, "state", path)
        if _fingerprint(header.config, state, entries) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; start over")
        return header.config, arrays, state


def _fingerprint(config: dict[str, Any], state: dict[str, Any], entries: list[Entry]) -> str:
    return fingerprint_of({"kind": KIND, "config": config, "state": state, "arrays": entries})
