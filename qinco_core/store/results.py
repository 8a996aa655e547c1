"""Results of searches: the artifact kind *results*, and simpler files for other programs.

nq queries with k results each; ids int64 and distances float32, [n, k] a batch; -1 is a missing result.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import ArtifactError, DimensionError, UsageError
from qinco_core.files import atomic_output, check_output, folder_for, storage_errors, write_all
from qinco_core.store.artifact import (
    DIGEST_BYTES,
    Header,
    Parent,
    create_artifact,
    damage_is_error,
    digest,
    fingerprint_of,
    open_artifact,
    text,
)
from qinco_core.vectors import VectorWriter, open_writer

Ids = NDArray[np.int64]
Distances = NDArray[np.float32]

KIND = "results"
SUFFIXES = (".h5", ".npz", ".ivecs", ".jsonl")
_INT32_MAX = np.iinfo(np.int32).max
_BLOCK = 1 << 22  # bytes copied at a time


class ResultsSink(Protocol):
    """Takes results batch by batch."""

    def append(self, ids: Ids, distances: Distances) -> None:
        """Take the results of n more queries: ids int64 and distances float32, [n, k]."""


@dataclass(frozen=True)
class StoredResults:
    """Results as stored; `header.config` says of which queries and how they were found."""

    header: Header
    ids: Ids
    distances: Distances


class _Lines:
    """A line of JSON a query."""

    def __init__(self, handle: BinaryIO, name: str) -> None:
        self._handle = handle
        self._name = name
        self._query = 0

    def append(self, ids: Ids, distances: Distances) -> None:
        lines = []
        for found, distance in zip(ids, distances, strict=True):
            there = found >= 0
            near = ", ".join(f"{d:.9g}" for d in distance[there].tolist())  # 9 digits give the float32 back
            lines.append(f'{{"query": {self._query}, "ids": {found[there].tolist()}, "distances": [{near}]}}\n')
            self._query += 1
        with storage_errors(self._name):
            write_all(self._handle, "".join(lines).encode())
            self._handle.flush()


class _Vecs:
    """The ids alone, as 32-bit integers."""

    def __init__(self, writer: VectorWriter) -> None:
        self._writer = writer

    def append(self, ids: Ids, distances: Distances) -> None:
        if ids.size and ids.max() > _INT32_MAX:
            raise UsageError(
                f"{self._writer.name}: the id {ids.max()} does not fit the 32 bits of ivecs; write .h5, .npz or .jsonl"
            )
        self._writer.append(ids)


@dataclass
class _Part:
    """One array on its way: its bytes in an unnamed file, and their digest so far."""

    name: str
    dtype: str
    handle: IO[bytes]
    mark: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))

    def append(self, rows: NDArray[Any]) -> None:
        data = np.ascontiguousarray(rows, self.dtype).data
        self.mark.update(data)
        write_all(self.handle, data)

    def blocks(self, k: int) -> Iterator[NDArray[Any]]:
        self.handle.seek(0)
        row_bytes = k * np.dtype(self.dtype).itemsize
        while data := self.handle.read(max(1, _BLOCK // row_bytes) * row_bytes):
            yield np.frombuffer(data, self.dtype).reshape(-1, k)


class _Spool:
    """Both arrays in unnamed files beside the output, until the number of queries is known."""

    def __init__(self, k: int, ids: IO[bytes], distances: IO[bytes]) -> None:
        self.k = k
        self.count = 0
        self.ids = _Part("ids", "<i8", ids)
        self.distances = _Part("distances", "<f4", distances)

    def append(self, ids: Ids, distances: Distances) -> None:
        if ids.ndim != 2 or ids.shape != distances.shape or ids.shape[1] != self.k:
            raise DimensionError(f"ids {ids.shape} and distances {distances.shape} must both be [n, {self.k}]")
        self.ids.append(ids)
        self.distances.append(distances)
        self.count += len(ids)


def results_path(path: str | Path, *, force: bool) -> Path:
    """The path, checked before any work to be a kind of results that can be written, in a free place.

    Raises:
        UsageError: its suffix is none of `SUFFIXES`.
        OutputExistsError: it exists and `force` is false.
        StorageError: its folder cannot be made.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: results are written as {', '.join(SUFFIXES)}, told by the extension; or - for stdout"
        )
    return check_output(path, force=force)


@contextlib.contextmanager
def create_results(
    target: str | Path | BinaryIO,
    *,
    k: int,
    config: dict[str, Any] | None = None,
    parents: tuple[Parent, ...] = (),
    force: bool = False,
) -> Iterator[ResultsSink]:
    """Write results batch by batch, in bounded memory; a file appears when the block ends well.

    Args:
        target: a path that ends in one of `SUFFIXES`, or an open binary stream, which gets JSON lines.
        k: results a query.
        config: JSON for the artifact: the queries' name, the metric, the operating point.
        parents: for the artifact: what was searched.
        force: replace the file if it exists.

    Raises:
        OutputExistsError: the path exists and `force` is false.
        StorageError: the disk is full or read-only.
        UsageError: another suffix, or while writing .ivecs an id beyond 32 bits.
    """
    if not isinstance(target, (str, Path)):
        yield _Lines(target, "<stdout>")
        return
    path = results_path(target, force=force)
    if path.suffix == ".ivecs":
        with open_writer(path, D=k, dtype=np.int32, force=force) as writer:
            yield _Vecs(writer)
    elif path.suffix == ".jsonl":
        with atomic_output(path, force=force) as temporary, temporary.open("wb") as handle:
            yield _Lines(handle, str(path))
    else:
        with (
            storage_errors(path),
            folder_for(path),
            tempfile.TemporaryFile(dir=path.parent) as ids,
            tempfile.TemporaryFile(dir=path.parent) as distances,
        ):
            spool = _Spool(k, ids, distances)
            yield spool
            if path.suffix == ".npz":
                _write_npz(path, spool, force)
            else:
                _write_artifact(path, spool, config or {}, parents, force)


def _write_npz(path: Path, spool: _Spool, force: bool) -> None:
    with atomic_output(path, force=force) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, part in (("D", spool.distances), ("I", spool.ids)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                shape = (spool.count, spool.k)
                header = {"descr": part.dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for block in part.blocks(spool.k):
                    member.write(block.tobytes())


def _write_artifact(
    path: Path, spool: _Spool, config: dict[str, Any], parents: tuple[Parent, ...], force: bool
) -> None:
    with create_artifact(path, force=force) as out:
        for part in (spool.ids, spool.distances):
            dataset, row = out.dataset(part.name, (spool.count, spool.k), part.dtype), 0
            for block in part.blocks(spool.k):
                out.write(dataset, block, row)
                row += len(block)
            out.attribute(dataset, "digest", part.mark.hexdigest())
        marks = spool.ids.mark.hexdigest(), spool.distances.mark.hexdigest()
        fingerprint = _fingerprint((spool.count, spool.k), *marks)
        out.finish(KIND, fingerprint, config | {"count": spool.count, "k": spool.k}, parents)


def _fingerprint(shape: tuple[int, ...], ids: str, distances: str) -> str:
    return fingerprint_of({"kind": KIND, "shape": list(shape), "ids": ids, "distances": distances})


def load_results(path: str | Path) -> StoredResults:
    """Read results and check all of them.

    Raises:
        InputNotFoundError: they are not there.
        ArtifactError: the file is corrupted, foreign, or another kind of artifact.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = Path(path)
    with open_artifact(path, KIND) as (file, header), damage_is_error(path):
        shape = (int(header.config["count"]), int(header.config["k"]))
        ids = _read(file["ids"], shape, "<i8", path)
        distances = _read(file["distances"], shape, "<f4", path)
        if _fingerprint(shape, digest(ids), digest(distances)) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; search again")
        return StoredResults(header, ids, distances)


def _read(dataset: Any, shape: tuple[int, int], dtype: str, path: Path) -> NDArray[Any]:
    if dataset.shape != shape or dataset.dtype != np.dtype(dtype) or dataset.nbytes > path.stat().st_size:
        found = f"{dataset.name} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}"
        raise ArtifactError(f"{path} is corrupted: {found}; search again")
    array: NDArray[Any] = dataset[()]
    if digest(array) != text(dataset.attrs["digest"]):
        raise ArtifactError(f"{path} is corrupted: {dataset.name} does not have its digest; search again")
    return array
