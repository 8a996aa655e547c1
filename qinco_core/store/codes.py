"""Artifact kind *codes*: packed codes of N vectors, with optional ids and a digest for every chunk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qinco_core.errors import ArtifactError, UsageError
from qinco_core.files import check_output
from qinco_core.store.artifact import (
    DIGEST_BYTES,
    ArtifactWriter,
    Header,
    Parent,
    create_artifact,
    damage_is_error,
    open_artifact,
)
from qinco_core.store.journal import Job, Journal, chunk_digest, open_journal
from qinco_core.store.spec import Codes, CodesSpec, ContentHash, Ids, check_rows

KIND = "codes"
CHUNK_ROWS = 16384


def partial_path(path: str | Path) -> Path:
    """Where an unfinished job that is to become `path` keeps what it has done."""
    path = Path(path)
    return path.with_name(f"{path.name}.partial")


class CodesWriter:
    """Writes codes chunk by chunk so that a killed job loses at most one chunk; see `create_codes`.

    A context manager: its normal end puts the finished file in place. When the block raises, the
    whole chunks stay beside it as the resume point. `done` is the number of rows there are already,
    which the caller leaves out; `header` is set at the end.
    """

    def __init__(self, path: Path, spec: CodesSpec, journal: Journal, *, force: bool) -> None:
        job = journal.job
        self.path = path
        self.spec = spec
        self.header: Header | None = None
        self._journal = journal
        self._force = force
        self._hash = ContentHash(with_ids=job.with_ids)
        self._codes = np.empty((job.chunk_rows, spec.code_bytes), np.uint8)
        self._ids = np.empty(job.chunk_rows, "<i8") if job.with_ids else None
        self._held = 0
        journal.recover(self._hash.update)
        self.done = self._hash.count

    def __len__(self) -> int:
        return self._hash.count + self._held

    def append(self, codes: Codes, ids: ArrayLike | None = None) -> None:
        """Add rows: packed codes uint8 [n, code_bytes], ids of integers [n] if the file has ids.

        Raises:
            DimensionError: a shape does not fit.
            StorageError: the disk is full; whole chunks stay.
            UsageError: a dtype does not fit, ids are missing, or there are more rows than announced.
        """
        codes, rows = check_rows(codes, ids, self.spec, with_ids=self._ids is not None)
        count = self._journal.job.count
        if count is not None and len(self) + len(codes) > count:
            raise UsageError(f"{self.path} was announced with {count} codes; more than that came")
        while len(codes):
            taken = min(len(codes), len(self._codes) - self._held)
            held = slice(self._held, self._held + taken)
            self._codes[held] = codes[:taken]
            if self._ids is not None and rows is not None:
                self._ids[held], rows = rows[:taken], rows[taken:]
            codes = codes[taken:]
            self._held += taken
            if self._held == len(self._codes):
                self._journal.append(self._codes, self._ids)
                self._hash.update(self._codes, self._ids)
                self._held = 0

    def commit(self) -> Header:
        """Write the finished file and put it in place; the with-block's normal end does this.

        Raises:
            ArtifactError: fewer rows came than announced.
            StorageError: the disk is full; whole chunks stay.
        """
        job = self._journal.job
        if job.count is not None and len(self) != job.count:
            raise ArtifactError(
                f"{self.path} got {len(self)} of {job.count} codes; "
                "--resume continues it, when the source is whole again"
            )
        with create_artifact(self.path, force=self._force) as out:
            self._write(out)
            config = self.spec.fields() | {"chunk_rows": job.chunk_rows}
            parents = (Parent("model", self.spec.model),)
            out.finish(KIND, self._hash.fingerprint(self.spec), config, parents)
        self.header = out.header
        self._journal.path.unlink(missing_ok=True)
        return out.header

    def _write(self, out: ArtifactWriter) -> None:
        total, marks = len(self), list(self._journal.digests)
        codes_data = out.dataset("codes", (total, self.spec.code_bytes), np.uint8)
        ids_data = out.dataset("ids", (total,), "<i8") if self._ids is not None else None
        row = 0
        for codes, ids in self._chunks():
            out.write(codes_data, codes, row)
            if ids is not None:
                out.write(ids_data, ids, row)
            row += len(codes)
        if self._held:
            tail = self._tail()
            self._hash.update(*tail)
            self._held = 0
            marks.append(chunk_digest(*tail))
        marks_data = out.dataset("digests", (len(marks), DIGEST_BYTES), np.uint8)
        out.write(marks_data, np.frombuffer(b"".join(marks), np.uint8).reshape(-1, DIGEST_BYTES))

    def _chunks(self) -> Iterator[tuple[Codes, Ids | None]]:
        yield from self._journal.chunks()
        yield self._tail()

    def _tail(self) -> tuple[Codes, Ids | None]:
        return self._codes[: self._held], None if self._ids is None else self._ids[: self._held]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            if self.header is None and not self._journal.digests:
                self._journal.path.unlink(missing_ok=True)
            self._journal.close()


def create_codes(
    path: str | Path,
    *,
    spec: CodesSpec,
    count: int | None,
    with_ids: bool,
    source_stamp: str,
    resume: bool = False,
    force: bool = False,
    chunk_rows: int = CHUNK_ROWS,
) -> CodesWriter:
    """Begin or continue a file of codes.

    `count` is the number of vectors where it is known; `source_stamp` any text that changes when the
    source does. Until the end everything is in `partial_path(path)`. `resume` continues that; with
    `force` also one that cannot be continued is no obstacle, and `path` may be replaced.

    Raises:
        OutputExistsError: `path` exists and `force` is false; or an unfinished job is there and
            neither `resume` nor `force` is given; or another process is at it.
        LineageError: the unfinished job is of another model, source or encoder, and `force` is false.
        ArtifactError: what is in its place is no unfinished job, and `force` is false.
        StorageError: the disk is full or read-only.
        UsageError: `chunk_rows` is not positive.
    """
    if chunk_rows < 1:
        raise UsageError(f"chunk_rows is {chunk_rows}; it is at least 1")
    path = check_output(path, force=force)
    job = Job(spec.fields(), count, with_ids, source_stamp, chunk_rows)
    journal = open_journal(partial_path(path), job, resume=resume, force=force)
    try:
        return CodesWriter(path, spec, journal, force=force)
    except BaseException:
        journal.close()
        raise


class CodesFile:
    """An open file of codes; every chunk is checked against its digest as it is read."""

    def __init__(self, path: Path, file: h5py.File, header: Header) -> None:
        self.path = path
        self.header = header
        self.spec = CodesSpec.from_fields(header.config)
        self.chunk_rows = int(header.config["chunk_rows"])
        self._codes = file["codes"]
        self._ids = file.get("ids")
        self._digests = file["digests"]
        self._check_layout()

    def _check_layout(self) -> None:
        count, width = self._codes.shape[0], self.spec.code_bytes
        chunks = -(-count // self.chunk_rows) if self.chunk_rows > 0 else -1
        wanted: list[tuple[Any, tuple[int, ...], str]] = [
            (self._codes, (count, width), "u1"),
            (self._digests, (chunks, DIGEST_BYTES), "u1"),
        ]
        if self._ids is not None:
            wanted.append((self._ids, (count,), "<i8"))
        for data, shape, dtype in wanted:
            if data.shape != shape or data.dtype != np.dtype(dtype) or data.nbytes > self.path.stat().st_size:
                found = f"{data.name} is {data.dtype} {data.shape}, not {dtype} {shape}"
                raise ArtifactError(f"{self.path} is corrupted: {found}; make it again")

    def __len__(self) -> int:
        return int(self._codes.shape[0])

    @property
    def with_ids(self) -> bool:
        """Whether the codes carry ids."""
        return self._ids is not None

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return int(self._digests.shape[0])

    def chunk(self, number: int) -> tuple[Codes, Ids | None]:
        """Codes [n, code_bytes] and ids [n] of one chunk, checked.

        Raises:
            ArtifactError: the chunk is corrupted.
        """
        begin, end = number * self.chunk_rows, min((number + 1) * self.chunk_rows, len(self))
        with damage_is_error(self.path):
            codes: Codes = self._codes[begin:end]
            ids: Ids | None = None if self._ids is None else self._ids[begin:end]
            mark = self._digests[number].tobytes()
        if chunk_digest(codes, ids) != mark:
            raise ArtifactError(
                f"{self.path} is corrupted in rows {begin} to {end - 1}; copy it again, or encode again"
            )
        return codes, ids

    def read(self, start: int, stop: int) -> Codes:
        """Packed codes uint8 [n, code_bytes] of rows start to stop (exclusive).

        Raises:
            ArtifactError: a chunk with such a row is corrupted.
            UsageError: there are no such rows.
        """
        return self._rows(start, stop)[0]

    def ids(self, start: int, stop: int) -> Ids | None:
        """Ids int64 [n] of rows start to stop (exclusive), None if there are none; errors as of `read`."""
        return self._rows(start, stop)[1]

    def batches(self, size: int) -> Iterator[tuple[Codes, Ids | None]]:
        """All rows in order, at most `size` at a time: codes uint8 [n, code_bytes], ids int64 [n] or None.

        Raises:
            ArtifactError: a chunk is corrupted.
            UsageError: `size` is not positive.
        """
        if size < 1:
            raise UsageError(f"a batch of {size} codes cannot be; use 1 or more")
        span = self.chunk_rows * -(-size // self.chunk_rows)  # whole chunks, so that none is read twice
        for begin in range(0, len(self), span):
            codes, ids = self._rows(begin, min(begin + span, len(self)))
            for at in range(0, len(codes), size):
                yield codes[at : at + size], None if ids is None else ids[at : at + size]

    def mapped(self) -> NDArray[np.uint8]:
        """All packed codes [N, code_bytes] as a read-only memory map, unchecked (`verify` checks)."""
        if not len(self):
            return np.empty((0, self.spec.code_bytes), np.uint8)
        offset = self._codes.id.get_offset()
        if offset is None:
            raise ArtifactError(f"{self.path} has codes that are not contiguous; encode again with qinco")
        return np.memmap(self.path, np.uint8, "r", offset, self._codes.shape)

    def _rows(self, start: int, stop: int) -> tuple[Codes, Ids | None]:
        if not 0 <= start <= stop <= len(self):
            raise UsageError(f"{self.path} has rows 0 to {len(self)}; there is no range {start} to {stop}")
        first = start // self.chunk_rows
        parts = [self.chunk(number) for number in range(first, -(-stop // self.chunk_rows))]
        if start == stop or not parts:
            empty = np.empty((0, self.spec.code_bytes), np.uint8)
            return empty, np.empty(0, np.int64) if self.with_ids else None
        cut = slice(start - first * self.chunk_rows, stop - first * self.chunk_rows)
        codes = _joined([part[0] for part in parts])[cut]
        ids = _joined([part[1] for part in parts if part[1] is not None])[cut] if self.with_ids else None
        return codes, ids


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@contextlib.contextmanager
def open_codes(path: str | Path) -> Iterator[CodesFile]:
    """Open a file of codes.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, an unfinished job, or another kind of artifact.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = Path(path)
    with open_artifact(path, KIND) as (file, header):
        with damage_is_error(path):
            codes = CodesFile(path, file, header)
        yield codes
