"""Artifact kind *centroids*: the coarse codebook of an IVF.

Shapes: ivf_K centroids, D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import ArtifactError, DimensionError, UsageError
from qinco_core.store.arrays import Entry, little_endian, read_arrays, read_json, write_arrays
from qinco_core.store.artifact import (
    FORMAT_VERSION,
    Header,
    canonical_json,
    create_artifact,
    damage_is_error,
    digest,
    fingerprint_of,
    open_artifact,
)
from qinco_core.vectors import open_vectors

KIND = "centroids"
_NAME = "centroids"
# the published files, which have no figures of their training
_NPY = ".npy"


@dataclass(frozen=True)
class StoredCentroids:
    """Centroids as stored: float32 [ivf_K, D], not normalised; `training` holds free figures of their k-means."""

    path: Path
    header: Header
    centroids: NDArray[np.float32]
    training: dict[str, Any]


def save_centroids(
    path: str | Path, centroids_KD: NDArray[Any], *, training: Mapping[str, Any], force: bool = False
) -> Header:
    """Write centroids [ivf_K, D] as float32; the fingerprint covers the centroids alone.

    Raises:
        ArtifactError: a centroid holds NaN or infinity.
        DimensionError: the array is not [ivf_K, D], or is empty.
        OutputExistsError: `path` exists and `force` is false.
        StorageError: the disk is full or read-only.
        UsageError: `training` is not JSON, or `path` ends in .npy.
    """
    if Path(path).suffix == _NPY:
        raise UsageError(f"{path} cannot hold an artifact of centroids: name a .h5 file, or export them as .npy")
    stored = _float32("the centroids", centroids_KD)
    figures = canonical_json(dict(training))
    with create_artifact(path, force=force) as out:
        entries = write_arrays(out, "arrays", {_NAME: stored})
        out.text("training", figures)
        out.finish(KIND, _fingerprint(entries), _config(stored), ())
    return out.header


def load_centroids(path: str | Path) -> StoredCentroids:
    """Read centroids and check all of them: an artifact, or where the path ends in .npy a bare array [ivf_K, D].

    Both have the same fingerprint where the float32 centroids are equal.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, another kind of artifact, or not of floats.
        ArtifactVersionError: a newer qinco wrote it.
        VectorFileError: the .npy file is truncated, malformed, or holds NaN or infinity.
    """
    path = Path(path)
    if path.suffix == _NPY:
        return _load_npy(path)
    with open_artifact(path, KIND) as (file, header), damage_is_error(path):
        arrays, entries = read_arrays(file, "arrays", path)
        if _fingerprint(entries) != header.fingerprint or set(arrays) != {_NAME}:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; make it again")
        centroids = _float32(str(path), arrays[_NAME])
        if header.config != _config(centroids):
            raise ArtifactError(f"{path} is corrupted: its header is of other sizes; make it again")
        return StoredCentroids(path, header, centroids, read_json(file, "training", path))


def _load_npy(path: Path) -> StoredCentroids:
    with open_vectors(path, format="npy") as file:
        if file.dtype.kind != "f":
            raise ArtifactError(f"{path} holds {file.dtype}; centroids are float32, float64 or float16")
        centroids = _float32(str(path), file.read(0, len(file)))
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    mark = digest(centroids.reshape(-1).view(np.uint8))
    fingerprint = _fingerprint([(_NAME, centroids.dtype.str, list(centroids.shape), mark)])
    header = Header(KIND, FORMAT_VERSION, fingerprint, made, "numpy", _config(centroids), ())
    return StoredCentroids(path, header, centroids, {})


def _float32(name: str, centroids_KD: NDArray[Any]) -> NDArray[np.float32]:
    if centroids_KD.ndim != 2 or 0 in centroids_KD.shape:
        raise DimensionError(f"{name} have the shape {centroids_KD.shape}; centroids are [ivf_K, D]")
    with np.errstate(over="ignore", invalid="ignore"):
        array = little_endian(np.asarray(centroids_KD, dtype=np.float32))
    if not np.isfinite(array).all():
        raise ArtifactError(f"{name}: centroids hold NaN or infinity, or are beyond float32; make them again")
    return array


def _config(centroids_KD: NDArray[np.float32]) -> dict[str, int]:
    ivf_K, D = centroids_KD.shape
    return {"ivf_K": ivf_K, "D": D}


def _fingerprint(entries: list[Entry]) -> str:
    return fingerprint_of({"kind": KIND, "arrays": entries})
