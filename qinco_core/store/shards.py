"""Artifact kind *index shards*: a folder with a manifest of indexes below it that are searched as one.

The shards lie in a folder of their generation, each an index by itself. Those of a new generation are written before
the manifest is replaced, so a reader sees the old ones or the new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinco_core.errors import ArtifactError
from qinco_core.store.artifact import Header, Parent, create_artifact, damage_is_error, fingerprint_of, open_artifact
from qinco_core.store.index import MANIFEST, StoredIndex, existing_index, load_index, remove_unnamed

KIND = "index shards"


@dataclass(frozen=True)
class StoredShards:
    """Shards as stored.

    Attributes:
        folder: where the manifest lies.
        config: what was given to `save_shards`.
        shards: the indexes, in the order of their rows.
    """

    folder: Path
    header: Header
    config: dict[str, Any]
    shards: tuple[StoredIndex, ...]


def shard_folder(folder: Path, generation: int, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shards.{generation:04}" / f"shard-{number:03}"


def next_generation(folder: Path) -> int:
    """The generation of shards that are to be written."""
    numbers = [path.name.partition(".")[2] for path in folder.glob("shards.*")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def save_shards(folder: Path, config: Mapping[str, Any], parents: tuple[Parent, ...]) -> Header:
    """Put the manifest in place, and remove what is of other generations. The caller holds `store.index.locked`.

    Args:
        folder: the index.
        config: `generation`, `shards` (for each its `fingerprint`), `files` (none), and whatever else.
        parents: what all shards were made from.

    Raises:
        StorageError: the disk is full or read-only.
    """
    fields = dict(config)
    with create_artifact(folder / MANIFEST, force=True) as out:
        out.finish(KIND, _fingerprint(fields), fields, parents)
    remove_unnamed(folder)
    return out.header


def load_shards(folder: str | Path) -> StoredShards:
    """Read the manifest, and open the shards as `load_index` does.

    Raises:
        InputNotFoundError: there is no index.
        ArtifactError: the manifest is damaged, or a shard is missing, damaged or not the one of the manifest.
        ArtifactVersionError: a newer qinco wrote it.
    """
    folder = existing_index(folder)
    path = folder / MANIFEST
    with open_artifact(path, KIND) as (_, header), damage_is_error(path):
        config = header.config
        if _fingerprint(config) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; build it again")
        places = [shard_folder(folder, int(config["generation"]), n) for n in range(len(config["shards"]))]
        wanted = [str(shard["fingerprint"]) for shard in config["shards"]]
    return StoredShards(folder, header, config, tuple(map(_load, places, wanted)))


def _load(place: Path, fingerprint: str) -> StoredIndex:
    if not (place / MANIFEST).is_file():
        raise ArtifactError(f"{place} is missing; build the index again")
    shard = load_index(place)
    if shard.header.fingerprint != fingerprint:
        raise ArtifactError(f"{place} is not the shard that its index was made with; build the index again")
    return shard


def _fingerprint(config: Mapping[str, Any]) -> str:
    return fingerprint_of({"kind": KIND, "config": dict(config)})
