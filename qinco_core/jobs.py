"""Whole files and streams through a codec, in bounded memory.

Shapes: n rows of a batch, N vectors in all, D dimension, M symbols.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.config import EncodeConfig
from qinco_core.errors import DimensionError, StreamError, UsageError, VectorFileError
from qinco_core.files import check_output, storage_errors, write_all
from qinco_core.progress import Progress
from qinco_core.store import CodeRows, StreamWriter, create_codes
from qinco_core.vectors import VectorFile, VectorSource, VectorWriter

if TYPE_CHECKING:
    from qinco_core.index.coarse import Coarse

Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]
Lists = NDArray[np.int32]

# vectors between two looks at the progress, and codes decoded together
ENCODE_ROWS = {"cpu": 2048, "cuda": 1 << 16}
_DECODE_ROWS = 1 << 14
# first vectors that lists found by HNSW are compared with the exact ones of
_COMPARED_ROWS = 10_000


class CodeSink(Protocol):
    """Takes packed codes [n, code_bytes], their ids [n], and list numbers [n] of an IVF model."""

    def append(self, codes: Codes, ids: Ids | None = None, lists: Lists | None = None) -> None:
        """Take n more codes."""


@dataclass
class RawSink:
    """Bare packed symbols, for programs that know the rest."""

    handle: BinaryIO

    def append(self, codes: Codes, ids: Ids | None = None, lists: Lists | None = None) -> None:
        """Write n more codes; ids and list numbers are not kept."""
        with storage_errors(getattr(self.handle, "name", "the output stream")):
            write_all(self.handle, np.ascontiguousarray(codes))
            self.handle.flush()


@dataclass(frozen=True)
class Rows:
    """What to encode: vectors, the number of their first row, and ids from elsewhere if there are any."""

    source: VectorSource
    first: int = 0
    ids: NDArray[np.integer[Any]] | None = None

    def __post_init__(self) -> None:
        N = self.source.count
        if self.ids is not None and N is not None and len(self.ids) != N:
            raise UsageError(f"{len(self.ids)} ids for {N} vectors of {self.source.name}: give one id a vector")
        if self.ids is not None and len(self.ids) and self.ids.min() < 0:
            raise UsageError(f"an id is {self.ids.min()}; ids are 0 or more, for -1 means a missing result")

    @property
    def stamp(self) -> str:
        """What identifies the vectors, where they are a file, and their ids."""
        stamp = self.source.stamp if isinstance(self.source, VectorFile) else self.source.name
        if self.ids is not None:
            stamp += f" ids {hashlib.blake2b(np.ascontiguousarray(self.ids).data, digest_size=16).hexdigest()}"
        return stamp

    def section(self, start: int, stop: int) -> Rows:
        """Rows start..stop − 1 of a file."""
        assert isinstance(self.source, VectorFile)
        ids = None if self.ids is None else self.ids[start:stop]
        return Rows(self.source.section(start, stop), self.first + start, ids)

    def row_ids(self, start: int, stop: int) -> Ids:
        """The ids of rows start..stop − 1: those given, or the rows' numbers in their file."""
        if self.ids is None:
            return np.arange(self.first + start, self.first + stop, dtype=np.int64)
        if stop > len(self.ids):
            raise UsageError(f"{self.source.name} has more vectors than the {len(self.ids)} ids: give one id a vector")
        return self.ids[start:stop].astype(np.int64)


@dataclass(frozen=True)
class Assigner:
    """How list numbers are found: by the codec itself (`find` is None), or by HNSW.

    Attributes:
        find: list numbers int32 [n] of vectors [n, D].
        notes: what the codes' encoder field says of it.
        measured: what it says once that is known; unlike `notes`, not the same in every run of a job.
    """

    find: Callable[[NDArray[Any]], Lists] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


def assigner(codec: Codec, source: VectorSource, method: str, progress: Progress) -> tuple[Assigner, VectorSource]:
    """Choose how the list numbers of an IVF model are found, and say how often HNSW agrees with the exact search.

    Args:
        codec: the model.
        source: its first vectors are compared, at most 10,000.
        method: "exact" or "hnsw".
        progress: told the share of agreement.

    Returns:
        The assigner, and the source to encode from in place of the given one, which may be a stream.

    Raises:
        UsageError: no such method, or one for a model without lists.
        DependencyError: HNSW needs Faiss, which is not installed.
    """
    check_assign(codec, method)
    centroids = codec.centroids
    if centroids is None:
        return Assigner(), source
    if method == "exact":
        return Assigner(notes={"assign": method}), source
    coarse = _coarse(codec)
    head, source = _peek(source, ENCODE_ROWS[codec.plan.device.type])
    share = round(coarse.agreement(head), 4)
    progress.note(f"HNSW gives {share:.2%} of the first {len(head):,} vectors the list of the nearest centroid")
    return Assigner(lambda v: coarse.assign(v, method="hnsw"), {"assign": method}, {"agreement": share}), source


@functools.lru_cache(maxsize=1)
def _coarse(codec: Codec) -> Coarse:
    """The coarse search of an IVF model, whose graph takes a while to build; the last one stays."""
    from qinco_core.index.coarse import Coarse

    assert codec.centroids is not None
    return Coarse(codec.centroids, threads=codec.plan.threads, device=codec.plan.device.type)


def check_assign(codec: Codec, method: str) -> None:
    """Check a way to find list numbers, as `assigner` does."""
    if method not in ("exact", "hnsw"):
        raise UsageError(f"no way to assign lists called {method!r}; there are exact and hnsw")
    if method != "exact" and not codec.config.ivf_K:
        raise UsageError("this model has no lists to assign vectors to; leave --assign out")


@dataclass(frozen=True)
class _Peeked:
    """A stream whose first batches have been looked at."""

    name: str
    dim: int
    dtype: np.dtype[Any]
    count: int | None
    rest: Iterator[NDArray[Any]]

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """The batches, of the size that they were looked at in."""
        return self.rest


def _peek(source: VectorSource, size: int) -> tuple[NDArray[Any], VectorSource]:
    if isinstance(source, VectorFile):
        return source.read(0, min(_COMPARED_ROWS, len(source))), source
    batches = source.batches(size)
    head = list(itertools.islice(batches, -(-_COMPARED_ROWS // size)))
    if not head:
        raise VectorFileError(f"{source.name} holds no vectors")
    rest = itertools.chain(head, batches)
    peeked = _Peeked(source.name, source.dim, source.dtype, source.count, rest)
    return np.concatenate(head)[:_COMPARED_ROWS], peeked


def encode_to_artifact(
    codec: Codec,
    rows: Rows,
    path: Path,
    *,
    search: EncodeConfig,
    progress: Progress,
    assign: str = "exact",
    force: bool = False,
    resume: bool = False,
    created: str | None = None,
    notes: dict[str, Any] | None = None,
) -> str:
    """Encode to a codes artifact; a crash or an interrupt loses at most one chunk, and `resume` goes on.

    Args:
        codec: a saved model.
        rows: what to encode. A stream cannot be resumed.
        path: the artifact; ids are stored only if some were given.
        search: A, B, T.
        progress: told of every batch.
        assign: how the lists of an IVF model are found, "exact" or "hnsw".
        force: overwrite an artifact, or drop an unfinished job.
        resume: continue an unfinished job.
        created: the time that the artifact carries, if not that of its making.
        notes: more for the codes' encoder field to say.

    Returns:
        The artifact's fingerprint.

    Raises:
        DimensionError, VectorFileError, OutputExistsError, StorageError, LineageError: before or while writing.
        UsageError, DependencyError: as of `assigner`.
    """
    source = rows.source
    check_dimension(codec, source)
    if resume and not isinstance(source, VectorFile):
        raise UsageError("a stream cannot be resumed: encode a file, or leave --resume out")
    stamp = rows.stamp
    check_output(path, force=force)
    lists, source = assigner(codec, source, assign, progress)
    writer = create_codes(
        path,
        spec=codec.spec(source.dtype, search, **lists.notes, **(notes or {})),
        count=source.count,
        with_ids=rows.ids is not None,
        source_stamp=stamp,
        resume=resume,
        force=force,
        created=created,
    )
    with writer:
        writer.record(**lists.measured)
        rows = replace(rows, source=source)
        encode_to_sink(codec, rows, writer, search, progress, lists, done=writer.done, with_ids=rows.ids is not None)
    assert writer.header is not None
    return writer.header.fingerprint


def encode_to_stream(
    codec: Codec,
    rows: Rows,
    sink: BinaryIO,
    *,
    search: EncodeConfig,
    progress: Progress,
    assign: str = "exact",
    raw: bool = False,
) -> None:
    """Encode to an Arrow stream of codes and ids, or with `raw` to bare packed symbols.

    Raises:
        UsageError: `raw` with an IVF model; else as `encode_to_artifact`.
    """
    check_dimension(codec, rows.source)
    if raw:
        check_raw(codec)
    lists, source = assigner(codec, rows.source, assign, progress)
    rows = replace(rows, source=source)
    if raw:
        encode_to_sink(codec, rows, RawSink(sink), search, progress, lists, with_ids=False)
        return
    spec = codec.spec(source.dtype, search, **lists.notes, **lists.measured)
    place: dict[str, Any] = {"count": source.count, "first": rows.first, "row_ids": rows.ids is None}
    with StreamWriter(sink, spec, with_ids=True, **place) as writer:
        encode_to_sink(codec, rows, writer, search, progress, lists, with_ids=True)


def check_raw(codec: Codec) -> None:
    """Check that bare symbols are all there is to this model's codes.

    Raises:
        UsageError: it is an IVF model.
    """
    if codec.config.ivf_K:
        raise UsageError(
            "--raw is bare symbols, but this is an IVF model, whose codes are of no use without their list numbers: "
            "leave --raw out, an artifact or a stream has both"
        )


def encode_to_sink(
    codec: Codec,
    rows: Rows,
    sink: CodeSink,
    search: EncodeConfig,
    progress: Progress,
    lists: Assigner,
    *,
    done: int = 0,
    with_ids: bool,
) -> None:
    """Encode batch by batch to a sink, what comes after the `done` first rows; `lists` are from `assigner`.

    Raises:
        VectorFileError: there are no rows, or one is damaged.
    """
    source = rows.source
    progress.begin("encoding", source.count, "vectors")
    progress.advance(done)
    if done and isinstance(source, VectorFile):
        source = source.section(done, len(source))
    for v in source.batches(ENCODE_ROWS[codec.plan.device.type]):
        codes = codec.encode(v, search=search, lists=None if lists.find is None else lists.find(v))
        sink.append(*codec.pack_rows(codes, rows.row_ids(done, done + len(v)) if with_ids else None))
        done += len(v)
        progress.advance(len(v))
    progress.end()
    if done == 0:
        raise VectorFileError(f"{source.name} holds no vectors")


def decode_to(
    codec: Codec,
    batches: Iterator[CodeRows],
    writer: VectorWriter,
    *,
    steps: int | None,
    count: int | None,
    progress: Progress,
) -> int:
    """Decode rows of codes batch by batch into a writer of vectors; returns how many there were."""
    progress.begin("decoding", count, "vectors")
    done = 0
    for rows in batches:
        n = len(rows.codes)
        for at in range(0, n, _DECODE_ROWS):
            writer.append(codec.decode(codec.unpack_rows(rows.cut(at, at + _DECODE_ROWS)), steps=steps))
        done += n
        progress.advance(n)
    progress.end()
    return done


def read_raw(codec: Codec, handle: BinaryIO, name: str) -> Iterator[CodeRows]:
    """Bare packed symbols, batch by batch.

    Raises:
        StreamError: it does not end at the end of a code.
        UsageError: the model is an IVF model, whose codes cannot be bare symbols.
    """
    check_raw(codec)
    code_bytes = codec.config.code_bytes
    while data := _read_exactly(handle, code_bytes * _DECODE_ROWS):
        if len(data) % code_bytes:
            raise StreamError(
                f"{name} ends inside a code: {len(data) % code_bytes} bytes are left of codes of {code_bytes} bytes; "
                "it was cut, or is of another model"
            )
        yield CodeRows(np.frombuffer(data, np.uint8).reshape(-1, code_bytes))


def _read_exactly(handle: BinaryIO, size: int) -> bytes:
    """`size` bytes, or what is left; a pipe may give less at a time."""
    parts = bytearray()
    while len(parts) < size and (more := handle.read(size - len(parts))):
        parts += more
    return bytes(parts)


def check_dimension(codec: Codec, source: VectorSource) -> None:
    """Check that the vectors are the model's.

    Raises:
        DimensionError: they are not.
    """
    if source.dim != codec.config.D:
        raise DimensionError(
            f"{source.name} has vectors of dimension {source.dim}, but the model takes {codec.config.D}: "
            "use the model that was trained for them"
        )


def code_batches(source: Any) -> Iterator[CodeRows]:
    """The rows of an open artifact or stream, batch by batch."""
    yield from source.batches(_DECODE_ROWS) if hasattr(source, "batches") else source
