"""Whole files and streams through a codec, in bounded memory.

Shapes: n rows of a batch, D dimension, M symbols.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.config import EncodeConfig
from qinco_core.errors import DimensionError, StreamError, UsageError, VectorFileError
from qinco_core.files import storage_errors
from qinco_core.progress import Progress
from qinco_core.store import CodesSpec, StreamWriter, create_codes
from qinco_core.store.artifact import write_all
from qinco_core.vectors import VectorFile, VectorSource, VectorWriter

Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]

# vectors between two looks at the progress, and codes decoded together
_ENCODE_ROWS = {"cpu": 2048, "cuda": 1 << 16}
_DECODE_ROWS = 1 << 14


class CodeSink(Protocol):
    """Takes packed codes [n, code_bytes] and their ids [n]."""

    def append(self, codes: Codes, ids: Ids | None = None) -> None:
        """Take n more codes."""


@dataclass
class RawSink:
    """Bare packed symbols, for programs that know the rest."""

    handle: BinaryIO

    def append(self, codes: Codes, ids: Ids | None = None) -> None:
        """Write n more codes; ids are not kept."""
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

    def row_ids(self, start: int, stop: int) -> Ids:
        """The ids of rows start..stop − 1: those given, or the rows' numbers in their file."""
        if self.ids is None:
            return np.arange(self.first + start, self.first + stop, dtype=np.int64)
        if stop > len(self.ids):
            raise UsageError(f"{self.source.name} has more vectors than the {len(self.ids)} ids: give one id a vector")
        return self.ids[start:stop].astype(np.int64)


def encode_to_artifact(
    codec: Codec,
    rows: Rows,
    path: Path,
    *,
    search: EncodeConfig,
    progress: Progress,
    force: bool = False,
    resume: bool = False,
) -> str:
    """Encode to a codes artifact; a crash or an interrupt loses at most one chunk, and `resume` goes on.

    Args:
        codec: a saved model.
        rows: what to encode. A stream cannot be resumed.
        path: the artifact; ids are stored only if some were given.
        search: A, B, T.
        progress: told of every batch.
        force: overwrite an artifact, or drop an unfinished job.
        resume: continue an unfinished job.

    Returns:
        The artifact's fingerprint.

    Raises:
        DimensionError, VectorFileError, OutputExistsError, StorageError, LineageError: before or while writing.
    """
    source = rows.source
    check_dimension(codec, source)
    if resume and not isinstance(source, VectorFile):
        raise UsageError("a stream cannot be resumed: encode a file, or leave --resume out")
    stamp = source.stamp if isinstance(source, VectorFile) else source.name
    if rows.ids is not None:
        stamp += f" ids {hashlib.blake2b(np.ascontiguousarray(rows.ids).data, digest_size=16).hexdigest()}"
    writer = create_codes(
        path,
        spec=codec.spec(source.dtype, search),
        count=source.count,
        with_ids=rows.ids is not None,
        source_stamp=stamp,
        resume=resume,
        force=force,
    )
    with writer:
        _encode(codec, rows, writer, search, progress, done=writer.done, with_ids=rows.ids is not None)
    assert writer.header is not None
    return writer.header.fingerprint


def encode_to_stream(
    codec: Codec, rows: Rows, sink: BinaryIO, *, search: EncodeConfig, progress: Progress, raw: bool = False
) -> None:
    """Encode to an Arrow stream of codes and ids, or with `raw` to bare packed symbols."""
    source = rows.source
    check_dimension(codec, source)
    if raw:
        _encode(codec, rows, RawSink(sink), search, progress, with_ids=False)
        return
    with StreamWriter(sink, codec.spec(source.dtype, search), with_ids=True, count=source.count) as writer:
        _encode(codec, rows, writer, search, progress, with_ids=True)


def _encode(
    codec: Codec,
    rows: Rows,
    sink: CodeSink,
    search: EncodeConfig,
    progress: Progress,
    *,
    done: int = 0,
    with_ids: bool,
) -> None:
    source = rows.source
    progress.begin("encoding", source.count, "vectors")
    progress.advance(done)
    if done and isinstance(source, VectorFile):
        source = source.section(done, len(source))
    for v in source.batches(_ENCODE_ROWS[codec.plan.device.type]):
        codes = codec.pack(codec.encode(v, search=search))
        sink.append(codes, rows.row_ids(done, done + len(v)) if with_ids else None)
        done += len(v)
        progress.advance(len(v))
    progress.end()
    if done == 0:
        raise VectorFileError(f"{source.name} holds no vectors")


def decode_to(
    codec: Codec,
    batches: Iterator[Codes],
    writer: VectorWriter,
    *,
    steps: int | None,
    count: int | None,
    progress: Progress,
) -> int:
    """Decode packed codes batch by batch into a writer of vectors; returns how many there were."""
    progress.begin("decoding", count, "vectors")
    done = 0
    for packed in batches:
        for part in np.array_split(packed, max(1, -(-len(packed) // _DECODE_ROWS))):
            writer.append(codec.decode(codec.unpack(part), steps=steps))
        done += len(packed)
        progress.advance(len(packed))
    progress.end()
    return done


def read_raw(handle: BinaryIO, code_bytes: int, name: str) -> Iterator[Codes]:
    """Bare packed symbols, batch by batch.

    Raises:
        StreamError: it does not end at the end of a code.
    """
    while data := _read_exactly(handle, code_bytes * _DECODE_ROWS):
        if len(data) % code_bytes:
            raise StreamError(
                f"{name} ends inside a code: {len(data) % code_bytes} bytes are left of codes of {code_bytes} bytes; "
                "it was cut, or is of another model"
            )
        yield np.frombuffer(data, np.uint8).reshape(-1, code_bytes)


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


@dataclass(frozen=True)
class Estimate:
    """What a job would take: bytes written, seconds, and memory (bytes), from a short measurement."""

    vectors: int | None
    bytes_per_vector: float
    output_bytes: int | None
    vectors_per_second: float
    seconds: float | None
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(self.__dict__)


def estimate(
    work: Callable[[int], float], count: int | None, bytes_per_vector: float, codec: Codec, rows: int
) -> Estimate:
    """Estimate a job from its measured time on a few vectors.

    Args:
        work: does the job on n vectors and returns the seconds it took.
        count: vectors in all, if known.
        bytes_per_vector: of the output.
        codec: the model, for its share of the memory.
        rows: vectors in memory at a time.
    """
    work(64)  # the first call also builds caches
    rate = 256 / max(work(256), 1e-9)
    tensors = sum(array.nbytes for array in codec.network.to_arrays().values())
    memory = (400 << 20) + 3 * tensors + rows * codec.config.D * 16
    output = None if count is None else int(count * bytes_per_vector)
    return Estimate(count, bytes_per_vector, output, rate, None if count is None else count / rate, memory)


def code_batches(source: Any) -> Iterator[Codes]:
    """The codes of an open artifact or stream, without their ids."""
    pairs = source.batches(_DECODE_ROWS) if hasattr(source, "batches") else iter(source)
    for codes, _ in pairs:
        yield codes


def check_codes(codec: Codec, spec: CodesSpec, name: str) -> None:
    """Check that codes are of this model.

    Raises:
        LineageError: they are not; the message names both.
    """
    from qinco_core.store import check_lineage

    assert codec.header is not None
    check_lineage(spec, codec.header, codes=name)
