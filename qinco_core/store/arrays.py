"""Named arrays in an artifact, each with the digest of its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import ArtifactError, UsageError
from qinco_core.store.artifact import ArtifactWriter, digest, text

_KINDS = "biufcS"  # bool, integers, floats, complex, bytes: what has the same bytes everywhere

# what a fingerprint covers of an array: name, dtype, shape, digest of the little-endian bytes
Entry = tuple[str, str, list[int], str]


def write_arrays(out: ArtifactWriter, group: str, arrays: Mapping[str, NDArray[Any]]) -> list[Entry]:
    """Write arrays below `group`, sorted by name, and give their entries.

    Raises:
        UsageError: a name cannot be a dataset's, or a dtype has no portable bytes.
    """
    out.group(group)
    return [_write(out, group, name, arrays[name]) for name in sorted(arrays)]


def _write(out: ArtifactWriter, group: str, name: str, array: NDArray[Any]) -> Entry:
    if not name or name == "." or "/" in name or "\0" in name:
        raise UsageError(f"{name!r} cannot name an array; use a name without '/'")
    if array.dtype.kind not in _KINDS or array.dtype.itemsize == 0:
        raise UsageError(f"array {name} of dtype {array.dtype} cannot be stored; convert it to numbers or bytes")
    array = little_endian(array)
    dataset = out.dataset(f"{group}/{name}", array.shape, array.dtype)
    out.write(dataset, array)
    mark = digest(array.reshape(-1).view(np.uint8))
    out.attribute(dataset, "digest", mark)
    return name, array.dtype.str, list(array.shape), mark


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order with little-endian elements; itself where it is that already."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def read_arrays(file: h5py.File, group: str, path: Path) -> tuple[dict[str, NDArray[Any]], list[Entry]]:
    """Read the arrays below `group` and check their digests; called within `damage_is_error`.

    Raises:
        ArtifactError: an array does not have its digest, or claims to be larger than the file.
    """
    arrays: dict[str, NDArray[Any]] = {}
    entries: list[Entry] = []
    for name, dataset in sorted(file[group].items()):
        arrays[name] = array = _read(dataset, path)
        mark = digest(array.reshape(-1).view(np.uint8))
        if text(dataset.attrs["digest"]) != mark:
            raise ArtifactError(f"{path} is corrupted: {group}/{name} does not have its digest; copy or make it again")
        # only whitelisted dtypes were written, so equal bytes give the equal entry
        entries.append((name, array.dtype.str, list(array.shape), mark))
    return arrays, entries


def _read(dataset: Any, path: Path) -> NDArray[Any]:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in _KINDS:
        raise ArtifactError(f"{path} is corrupted: {getattr(dataset, 'name', dataset)} is no array; make it again")
    if dataset.nbytes > path.stat().st_size:
        raise ArtifactError(f"{path} is corrupted: {dataset.name} is larger than the file; make it again")
    array = np.empty(dataset.shape, dataset.dtype.newbyteorder("<"))
    if array.size:
        # read_direct costs four times as much, most of the time of opening a model
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def read_json(file: h5py.File, name: str, path: Path) -> dict[str, Any]:
    """Read a JSON object that `ArtifactWriter.text` wrote; called within `damage_is_error`.

    Raises:
        ArtifactError: it does not have its digest, or is no object.
    """
    dataset = file[name]
    raw = bytes(dataset[()])
    value = json.loads(raw) if digest(raw) == text(dataset.attrs["digest"]) else None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is corrupted: {name} does not have its digest; make it again")
    return value
