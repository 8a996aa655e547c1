"""Artifact kind *pairwise*: the look-up decoders of a model, additive and pairwise.

Shapes: M symbols, K codewords, D dimension, T tables, L lists, X symbols that re-code a list's centroid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from qinco_core.config import ModelConfig
from qinco_core.errors import ArtifactError
from qinco_core.store.arrays import Entry, little_endian, read_arrays, read_json, write_arrays
from qinco_core.store.artifact import (
    Header,
    Parent,
    canonical_json,
    create_artifact,
    damage_is_error,
    digest,
    fingerprint_of,
    open_artifact,
    text,
)

KIND = "pairwise"
# rows of 8 bits are summed in 16
MOST_TABLES = 256
# apart from the rest, so that it can be mapped without being read
_TABLES = "tables"


@dataclass(frozen=True)
class StoredPairwise:
    """Look-up decoders as stored.

    Attributes:
        path: the file.
        header: its `config` has the sizes M, K, D, ivf_K of the model.
        additive_MKD: codebooks, float32 [M, K, D]; their sum is added to the list's centroid, or to `mean_D`.
        mean_D: float32 [D]: zeros for an IVF model, else what stands in place of the centroid.
        pairs_2T: the two streams of each table, int32: 0 to M − 1 are the code's symbols, from M on the list's.
        tables_TRD: int8 [T, K², D], in units of `scale`, memory-mapped; row first · K + second. float32 with a scale
            of 1 where they were imported.
        scale: what a table's entries are multiplied by.
        list_symbols_LX: the symbols of every list, uint16 [L, X]; [0, 0] without an IVF.
        training: free figures of the fit.
    """

    path: Path
    header: Header
    additive_MKD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    pairs_2T: NDArray[np.int32]
    tables_TRD: NDArray[Any]
    scale: float
    list_symbols_LX: NDArray[np.uint16]
    training: dict[str, Any]


def save_pairwise(
    path: str | Path,
    config: ModelConfig,
    arrays: Mapping[str, NDArray[Any]],
    tables_TRD: NDArray[Any],
    *,
    training: Mapping[str, Any],
    parents: tuple[Parent, ...],
    force: bool = False,
) -> Header:
    """Write look-up decoders.

    Args:
        path: the file.
        config: the model's.
        arrays: `additive` [M, K, D], `mean` [D], `pairs` [2, T], `scale` [], `list_symbols` [L, X], see
            `StoredPairwise`.
        tables_TRD: int8 or float32 [T, K², D].
        training: free figures of the fit.
        parents: the model, and the codes that were fitted to, training codes and those to be searched, if any.
        force: overwrite what is there.

    Raises:
        ArtifactError: the arrays do not fit together, or hold NaN or infinity.
        OutputExistsError: `path` exists and `force` is false.
        StorageError: the disk is full or read-only.
        UsageError: `training` is not JSON.
    """
    sizes = {name: getattr(config, name) for name in ("M", "K", "D", "ivf_K")}
    stored = {name: np.asarray(arrays[name], dtype) for name, dtype in _DTYPES.items()}
    _check(str(path), sizes, stored, tables_TRD)
    figures = canonical_json(dict(training))
    with create_artifact(path, force=force) as out:
        entries = write_arrays(out, "arrays", stored)
        tables_TRD = little_endian(tables_TRD)
        tables = out.dataset(_TABLES, tables_TRD.shape, tables_TRD.dtype)
        out.write(tables, tables_TRD)
        mark = digest(tables_TRD.reshape(-1).view(np.uint8))
        out.attribute(tables, "digest", mark)
        out.text("training", figures)
        out.finish(KIND, _fingerprint(sizes, entries, mark), sizes, tuple(parents))
    return out.header


def load_pairwise(path: str | Path) -> StoredPairwise:
    """Open look-up decoders: all but the tables is read and checked, the tables are mapped (`verify` checks them).

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, or another kind of artifact.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = Path(path)
    with open_artifact(path, KIND) as (file, header), damage_is_error(path):
        arrays, entries = read_arrays(file, "arrays", path)
        if {name: array.dtype.str for name, array in arrays.items()} != _DTYPES:
            raise ArtifactError(f"{path} is corrupted: it holds other arrays than it should; make it again")
        tables = _mapped(file[_TABLES], path)
        _check(str(path), header.config, arrays, tables)
        if _fingerprint(header.config, entries, text(file[_TABLES].attrs["digest"])) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; make it again")
        return StoredPairwise(
            path,
            header,
            additive_MKD=arrays["additive"],
            mean_D=arrays["mean"],
            pairs_2T=arrays["pairs"],
            tables_TRD=tables,
            scale=float(arrays["scale"]),
            list_symbols_LX=arrays["list_symbols"],
            training=read_json(file, "training", path),
        )


def check_tables(path: str | Path) -> None:
    """Read the tables and check their digest.

    Raises:
        ArtifactError: they do not have it.
    """
    path = Path(path)
    with open_artifact(path, KIND) as (file, _), damage_is_error(path):
        tables = _mapped(file[_TABLES], path)
        if digest(tables.reshape(-1).view(np.uint8)) != text(file[_TABLES].attrs["digest"]):
            raise ArtifactError(f"{path} is corrupted: the tables do not have their digest; copy or make it again")


_TABLE_DTYPES = (np.dtype(np.int8), np.dtype("<f4"))
_DTYPES = {"additive": "<f4", "list_symbols": "<u2", "mean": "<f4", "pairs": "<i4", "scale": "<f4"}


def _mapped(tables: h5py.Dataset, path: Path) -> NDArray[Any]:
    if tables.dtype not in _TABLE_DTYPES or tables.nbytes > path.stat().st_size:
        raise ArtifactError(f"{path} is corrupted: its tables are {tables.dtype} {tables.shape}; make it again")
    if not tables.size:
        return np.empty(tables.shape, tables.dtype)
    return np.memmap(path, tables.dtype, "r", tables.id.get_offset(), tables.shape)


def _check(name: str, sizes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], tables_TRD: NDArray[Any]) -> None:
    M, K, D, L = (sizes[size] for size in ("M", "K", "D", "ivf_K"))
    T, X = arrays["pairs"].shape[-1], arrays["list_symbols"].shape[-1]
    wanted = {"additive": (M, K, D), "mean": (D,), "pairs": (2, T), "scale": (), "list_symbols": (L, X)}
    for key, shape in wanted.items():
        if arrays[key].shape != shape:
            raise ArtifactError(f"{name}: {key} has the shape {arrays[key].shape}, not {shape}; make it again")
        if not np.isfinite(arrays[key]).all():
            raise ArtifactError(f"{name}: {key} holds NaN or infinity, so it is unusable; fit it again")
    if T > MOST_TABLES:
        raise ArtifactError(f"{name}: {T} tables are more than the {MOST_TABLES} that can be summed; fit fewer")
    if tables_TRD.shape != (T, K * K, D):
        raise ArtifactError(f"{name}: the tables have the shape {tables_TRD.shape}, not {(T, K * K, D)}; make it again")
    for key, end in (("pairs", M + X), ("list_symbols", K)):
        if arrays[key].size and not 0 <= arrays[key].min() <= arrays[key].max() < end:
            raise ArtifactError(f"{name}: {key} has numbers that are not below {end}; make it again")


def _fingerprint(sizes: Mapping[str, Any], entries: list[Entry], tables: str) -> str:
    return fingerprint_of({"kind": KIND, "config": dict(sizes), "arrays": entries, "tables": tables})
