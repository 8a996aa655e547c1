"""From one format to another, and ann-benchmarks files taken apart and put together, in bounded memory.

N base vectors, nq queries, k neighbours of each, D dimension; b queries of a block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qinco_core.errors import DimensionError, OutputExistsError, UsageError
from qinco_core.files import atomic_output, check_output
from qinco_core.hdf5 import HDF5Writer, create_hdf5
from qinco_core.progress import Progress, Silent
from qinco_core.vectors import hdf5
from qinco_core.vectors.base import DTYPES, Array, DType, Outline, VectorSource
from qinco_core.vectors.formats import FORMATS, detect_format
from qinco_core.vectors.ids import Ids
from qinco_core.vectors.reader import VectorFile, locate, open_vectors
from qinco_core.vectors.writer import VectorWriter, open_writer

_BLOCK_BYTES = 8 << 20
_MAX_INT32 = np.iinfo(np.int32).max


def _cosines(x: Array, q: Array) -> Array:
    """Those of vectors [b, k, D] and queries [b, 1, D]; 0 where one has length 0, as for `exact_neighbors`."""
    lengths: Array = np.linalg.norm(x, axis=-1) * np.linalg.norm(q, axis=-1)
    cosines: Array = np.zeros_like(lengths)
    np.divide((x * q).sum(-1), lengths, out=cosines, where=lengths > 0)
    return cosines


# what ann-benchmarks calls the metrics, and its distances of vectors [b, k, D] to queries [b, 1, D]
_METRICS: dict[str, tuple[str, Callable[[Array, Array], Array]]] = {
    "l2": ("euclidean", lambda x, q: np.sqrt(np.square(x - q).sum(-1))),
    "ip": ("ip", lambda x, q: -(x * q).sum(-1)),
    "cosine": ("angular", lambda x, q: 1 - _cosines(x, q)),
}


@dataclass(frozen=True)
class Converted:
    """A file that was written: its vectors, and how many of their numbers it could not hold as they were."""

    output: str
    format: str
    vectors: int
    D: int
    dtype: str
    changed: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def parse_dtype(name: str, format: str) -> DType:
    """The dtype of that name, which files of the format can hold.

    Raises:
        UsageError: there is none, or they cannot.
    """
    found = [dtype for dtype in DTYPES if dtype.name == name]
    if not found:
        raise UsageError(f"no dtype {name!r} for vectors; there are {', '.join(map(str, DTYPES))}")
    if found[0] not in FORMATS[format].holds:
        able = ", ".join(f.name for f in FORMATS.values() if found[0] in f.holds)
        raise UsageError(
            f"{format} files hold {FORMATS[format].dtype}, not {name}; leave the dtype out, or write {able}"
        )
    return found[0]


def convert(
    source: VectorSource,
    target: str | Path | BinaryIO,
    *,
    format: str | None = None,
    dtype: DType | None = None,
    ids: Ids | None = None,
    write_ids: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write all vectors of a source to a file or pipe in another format.

    Args:
        source: an open file or stream.
        target: a path, with `::key` where the format has such, or an open binary stream.
        format: of the target; by default what its extension says.
        dtype: of the vectors in the target, where the format has a choice; by default the source's.
        ids: int64 [N], to be written beside the vectors.
        write_ids: false where they are kept elsewhere, so that only their number is checked.
        force: replace a file that exists.
        progress: told how far it is.

    Raises:
        UsageError: a format or dtype that cannot be, or another number of ids than of vectors.
        OutputExistsError: the file exists and `force` is false.
        StorageError: the disk is full or read-only.
        VectorFileError: the source is damaged, or holds numbers that the target cannot.
    """
    _check_ids(ids, source.count, source.name)
    beside = ids if write_ids else None
    progress = progress or Silent()
    kept = source.dtype if dtype is None else dtype
    options = {"format": format, "count": source.count, "with_ids": beside is not None, "force": force}
    with open_writer(target, D=source.dim, dtype=kept, **options) as writer:  # type: ignore[arg-type]
        progress.begin("converting", source.count, "vectors")
        for block in source.batches(_block_rows(source)):
            at, end = writer.written, writer.written + len(block)
            if ids is not None and end > len(ids):
                _check_ids(ids, end, source.name)
            writer.append(block, None if beside is None else beside[at:end])
            progress.advance(len(block))
        _check_ids(ids, writer.written, source.name)
        progress.end()
    return _result(writer, detect_format(writer.name, format), source.dim)


def unpack_benchmark(
    source: str | Path,
    folder: str | Path,
    *,
    format: str = "fvecs",
    force: bool = False,
    progress: Progress | None = None,
) -> list[Converted]:
    """Write train, test, neighbors and distances of an ann-benchmarks file as files of their own.

    Vectors are written in `format`, neighbours and distances beside fvecs as ivecs and fvecs, beside fbin as
    ibin and fbin, else in `format` too. Each file appears whole or not at all.

    Raises:
        UsageError: no HDF5 file, or none with a table called train.
        OutputExistsError: one of the files exists and `force` is false.
        StorageError, VectorFileError: as in `convert`.
    """
    found = locate(source, "hdf5")
    if found.key is not None:
        raise UsageError(f"{source} is one table; name a file for it, or for all tables leave ::{found.key} out")
    there = hdf5.tables(found.files[0])
    names = [name for name in ("train", "test", "neighbors", "distances") if name in there]
    if "train" not in names:
        listed = ", ".join(f"{source}::{name}" for name in there) or "none"
        raise UsageError(f"{source} has no table train, so it is no ann-benchmarks file; convert one of: {listed}")
    formats = {name: _companion(name, format) for name in names}
    paths = {name: Path(folder) / f"{name}{FORMATS[formats[name]].extensions[0]}" for name in names}
    progress = progress or Silent()
    written = []
    if Path(folder).is_file():
        raise OutputExistsError(f"{folder} is a file; name a folder")
    with contextlib.ExitStack() as stack:
        for path in paths.values():
            check_output(path, force=force)
        for name in names:
            table = stack.enter_context(open_vectors(f"{source}::{name}", format="hdf5"))
            options = {"D": table.dim, "dtype": table.dtype, "count": len(table), "force": force}
            writer = stack.enter_context(open_writer(paths[name], **options))  # type: ignore[arg-type]
            progress.begin(f"converting {name}", len(table), "vectors")
            for block in table.batches(_block_rows(table)):
                writer.append(block)
                progress.advance(len(block))
            written.append(_result(writer, formats[name], table.dim))
        progress.end()
    return written


def pack_benchmark(
    base: VectorFile,
    queries: VectorFile,
    truth: VectorFile,
    target: str | Path,
    *,
    distances: bool = False,
    metric: str = "l2",
    dtype: DType | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Converted]:
    """Write an ann-benchmarks file: train [N, D], test [nq, D], neighbors [nq, k], and distances [nq, k] if asked for.

    Args:
        base: the vectors to be searched.
        queries: of the same dimension.
        truth: row numbers of `base`, integers [nq, k].
        target: the HDF5 file.
        distances: compute those of the neighbours, as ann-benchmarks defines them: Euclidean and not squared,
            1 − cosine (1 where a vector has length 0), or − inner product.
        metric: "l2", "ip" or "cosine"; the file says which.
        dtype: of train and test; by default those of the files.
        force: replace a file that exists.
        progress: told how far it is.

    Raises:
        DimensionError: queries of another dimension.
        UsageError: ground truth that is not of these vectors, or no such metric.
        OutputExistsError, StorageError, VectorFileError: as in `convert`.
    """
    _check_benchmark(base, queries, truth, metric)
    numbers = np.dtype(np.int32 if len(base) <= _MAX_INT32 else np.int64)
    progress = progress or Silent()
    with (
        atomic_output(target, force=force) as temporary,
        temporary.open("wb", buffering=0) as handle,
        create_hdf5(handle, HDF5Writer) as out,
    ):
        attributes = {"type": "dense", "distance": _METRICS[metric][0], "dimension": base.dim, "point_type": "float"}
        out.layout.attrs.update(attributes)

        def table(name: str, blocks: Iterator[Array], count: int, D: int, dtype: DType) -> Converted:
            progress.begin(f"writing {name}", count, "vectors")
            outline = Outline(f"{target}::{name}", dtype.newbyteorder("<"), D, count)
            writer = VectorWriter(outline, hdf5.append_to(out, name, outline))
            for block in blocks:
                writer.append(block)
                progress.advance(len(block))
            writer.check()
            return _result(writer, "hdf5", D)

        nq, k = truth.shape
        written = [
            table("train", base.batches(_block_rows(base)), len(base), base.dim, dtype or base.dtype),
            table("test", queries.batches(_block_rows(queries)), nq, base.dim, dtype or queries.dtype),
            table("neighbors", _rows_of(truth, base), nq, k, numbers),
        ]
        if distances:
            blocks = _distances(base, queries, truth, metric)
            written.append(table("distances", blocks, nq, k, np.dtype(np.float32)))
        progress.end()
    return written


def _check_ids(ids: Ids | None, count: int | None, name: str) -> None:
    if ids is not None and count is not None and len(ids) != count:
        raise UsageError(f"{len(ids)} ids for {count} vectors of {name}: give one id a vector")


def _block_rows(source: VectorSource) -> int:
    return max(1, min(1 << 16, _BLOCK_BYTES // (source.dim * source.dtype.itemsize)))


def _result(writer: VectorWriter, format: str, D: int) -> Converted:
    return Converted(writer.name, format, writer.written, D, str(writer.dtype), writer.changed)


def _companion(name: str, format: str) -> str:
    """The format of a table beside vectors in `format`: neighbours are integers, distances are not."""
    if name in ("train", "test") or FORMATS[format].dtype is None:
        return format
    family = "vecs" if format.endswith("vecs") else "bin"
    return f"i{family}" if name == "neighbors" else f"f{family}"


def _check_benchmark(base: VectorFile, queries: VectorFile, truth: VectorFile, metric: str) -> None:
    if metric not in _METRICS:
        raise UsageError(f"no metric {metric!r}; there are {', '.join(_METRICS)}")
    if queries.dim != base.dim:
        raise DimensionError(f"{queries.name} has dimension {queries.dim}, but {base.name} has {base.dim}")
    if truth.dtype.kind != "i":
        raise UsageError(f"{truth.name} holds {truth.dtype}; true neighbours are row numbers: integers")
    if len(truth) != len(queries):
        raise UsageError(f"{truth.name} has {len(truth)} rows for {len(queries)} queries; give a row for each")


def _rows_of(truth: VectorFile, base: VectorFile, most: int | None = None) -> Iterator[Array]:
    """The true neighbours block by block, checked to be rows of the base vectors."""
    for block in truth.batches(most or _block_rows(truth)):
        if block.min() < 0 or block.max() >= len(base):
            wrong = int(block.max() if block.min() >= 0 else block.min())
            raise UsageError(f"{truth.name} names the neighbour {wrong}, but {base.name} has rows 0 to {len(base) - 1}")
        yield block


def _distances(base: VectorFile, queries: VectorFile, truth: VectorFile, metric: str) -> Iterator[Array]:
    k = truth.dim
    rows = max(1, 8 * _BLOCK_BYTES // (8 * k * base.dim))
    for ids_bk, q_bD in zip(_rows_of(truth, base, rows), queries.batches(rows), strict=True):
        x_bkD = base.take(ids_bk.reshape(-1)).reshape(len(ids_bk), k, base.dim).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            yield _METRICS[metric][1](x_bkD, q_bD[:, None].astype(np.float64)).astype(np.float32)
