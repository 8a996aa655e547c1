"""Artifact kind *codes*: packed codes of N vectors, with optional ids and lists, and a digest for every chunk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike

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
from qinco_core.store.lists import Lists, list_bits, list_bytes, unpack_lists
from qinco_core.store.spec import CodeRows, Codes, CodesSpec, ContentHash, Ids, check_rows

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

    def __init__(
        self, path: Path, spec: CodesSpec, journal: Journal, *, force: bool, created: str | None = None
    ) -> None:
        job = journal.job
        self.path = path
        self.spec = spec
        self.header: Header | None = None
        self._journal = journal
        self._force = force
        self._created = created
        self._hash = ContentHash(with_ids=job.with_ids, with_lists=spec.ivf_K > 0)
        self._chunk = CodeRows(
            np.empty((job.chunk_rows, spec.code_bytes), np.uint8),
            np.empty(job.chunk_rows, "<i8") if job.with_ids else None,
            np.empty(job.chunk_rows, "<i4") if spec.ivf_K else None,
        )
        self._held = 0
        journal.recover(self._hash.update)
        self.done = self._hash.count

    def __len__(self) -> int:
        return self._hash.count + self._held

    @property
    def with_ids(self) -> bool:
        """Whether every row needs an id."""
        return self._journal.job.with_ids

    def append(self, codes: Codes, ids: ArrayLike | None = None, lists: ArrayLike | None = None) -> None:
        """Add rows.

        Args:
            codes: packed, uint8 [n, code_bytes].
            ids: integers [n], if the file has ids.
            lists: list numbers [n], if the model has lists.

        Raises:
            DimensionError: a shape does not fit.
            StorageError: the disk is full; whole chunks stay.
            UsageError: a dtype or list number does not fit, something is missing, or there are more rows
                than announced.
        """
        job = self._journal.job
        rows = check_rows(codes, ids, lists, self.spec, with_ids=job.with_ids)
        n, at = len(codes), 0
        if job.count is not None and len(self) + n > job.count:
            raise UsageError(f"{self.path} was announced with {job.count} codes; more than that came")
        while at < n:
            taken = min(n - at, job.chunk_rows - self._held)
            for held, part in zip(self._chunk, rows, strict=True):
                if held is not None and part is not None:
                    held[self._held : self._held + taken] = part[at : at + taken]
            at += taken
            self._held += taken
            if self._held == job.chunk_rows:
                self._journal.append(self._chunk)
                self._hash.update(self._chunk)
                self._held = 0

    def record(self, **figures: Any) -> None:
        """Add figures to the encoder's field that are known only now, and do not tell one job from another."""
        self.spec = self.spec.model_copy(update={"encoder": {**self.spec.encoder, **figures}})

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
            out.finish(KIND, self._hash.fingerprint(self.spec), config, parents, self._created)
        self.header = out.header
        self._journal.path.unlink(missing_ok=True)
        return out.header

    def _write(self, out: ArtifactWriter) -> None:
        total, spec, marks = len(self), self.spec, list(self._journal.digests)
        datasets = [out.dataset("codes", (total, spec.code_bytes), np.uint8)]
        if self._journal.job.with_ids:
            datasets.append(out.dataset("ids", (total,), "<i8"))
        if spec.ivf_K:
            datasets.append(out.dataset("lists", (list_bytes(total, spec.ivf_K),), np.uint8))
        at = [0] * len(datasets)
        for rows in self._chunks():
            for i, part in enumerate(rows.stored(spec.ivf_K)):
                out.write(datasets[i], part, at[i])
                at[i] += len(part)
        if self._held:
            tail = self._chunk.cut(0, self._held)
            self._hash.update(tail)
            self._held = 0
            marks.append(chunk_digest(tail.stored(spec.ivf_K)))
        marks_data = out.dataset("digests", (len(marks), DIGEST_BYTES), np.uint8)
        out.write(marks_data, np.frombuffer(b"".join(marks), np.uint8).reshape(-1, DIGEST_BYTES))

    def _chunks(self) -> Iterator[CodeRows]:
        yield from self._journal.chunks()
        yield self._chunk.cut(0, self._held)

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
    created: str | None = None,
) -> CodesWriter:
    """Begin or continue a file of codes.

    `count` is the number of vectors where it is known; `source_stamp` any text that changes when the source does;
    `created` the time that the file carries, if not that of its making. Until the end everything is in
    `partial_path(path)`. `resume` continues that; with `force` also one that cannot be continued is no obstacle, and
    `path` may be replaced.

    Raises:
        OutputExistsError: `path` exists and `force` is false; or an unfinished job is there and
            neither `resume` nor `force` is given; or another process is at it.
        LineageError: the unfinished job is of another model, source or encoder, and `force` is false.
        ArtifactError: what is in its place is no unfinished job, and `force` is false.
        StorageError: the disk is full or read-only.
        UsageError: `chunk_rows` is not positive, or with lists not a multiple of 8.
    """
    if chunk_rows < 1 or (spec.ivf_K and chunk_rows % 8):  # the bits of a chunk's lists are whole bytes
        raise UsageError(f"chunk_rows is {chunk_rows}; it is at least 1, and of an IVF model a multiple of 8")
    path = check_output(path, force=force)
    job = Job(spec.fields(), count, with_ids, source_stamp, chunk_rows)
    journal = open_journal(partial_path(path), job, resume=resume, force=force)
    try:
        return CodesWriter(path, spec, journal, force=force, created=created)
    except BaseException:
        journal.close()
        raise


class StoredCodes:
    """Codes that can be read in any order, chunk by chunk: those of a file (`CodesFile`) or of a folder of parts."""

    def __init__(self, path: Path, header: Header, spec: CodesSpec, chunk_rows: int, count: int) -> None:
        self.path = path
        self.header = header
        self.spec = spec
        self.chunk_rows = chunk_rows
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-len(self) // self.chunk_rows)

    @property
    def with_ids(self) -> bool:
        """Whether the codes carry ids."""
        raise NotImplementedError

    @property
    def with_lists(self) -> bool:
        """Whether the codes carry list numbers, as those of an IVF model do."""
        return self.spec.ivf_K > 0

    def chunk(self, number: int) -> CodeRows:
        """One chunk, checked.

        Raises:
            ArtifactError: the chunk is corrupted.
        """
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> CodeRows:
        """Rows start to stop (exclusive): packed codes, ids and list numbers.

        Raises:
            ArtifactError: a chunk with such a row is corrupted.
            UsageError: there are no such rows.
        """
        if not 0 <= start <= stop <= len(self):
            raise UsageError(f"{self.path} has rows 0 to {len(self)}; there is no range {start} to {stop}")
        first = start // self.chunk_rows
        chunks = [self.chunk(number) for number in range(first, -(-stop // self.chunk_rows))]
        if start == stop or not chunks:
            return self._none()
        return CodeRows.joined(chunks).cut(start - first * self.chunk_rows, stop - first * self.chunk_rows)

    def _none(self) -> CodeRows:
        return CodeRows(
            np.empty((0, self.spec.code_bytes), np.uint8),
            np.empty(0, np.int64) if self.with_ids else None,
            np.empty(0, np.int32) if self.with_lists else None,
        )

    def read(self, start: int, stop: int) -> Codes:
        """Packed codes uint8 [n, code_bytes] of rows start to stop (exclusive); errors as of `rows`."""
        return self.rows(start, stop).codes

    def ids(self, start: int, stop: int) -> Ids | None:
        """Ids int64 [n] of rows start to stop (exclusive), None if there are none; errors as of `rows`."""
        return self.rows(start, stop).ids

    def lists(self, start: int, stop: int) -> Lists | None:
        """List numbers int32 [n] of rows start to stop (exclusive), None if there are none; errors as of `rows`."""
        return self.rows(start, stop).lists

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[CodeRows]:
        """All rows in order, at most `size` at a time; or rows start to stop (exclusive).

        Raises:
            ArtifactError: a chunk is corrupted.
            UsageError: `size` is not positive.
        """
        if size < 1:
            raise UsageError(f"a batch of {size} codes cannot be; use 1 or more")
        span = self.chunk_rows * -(-size // self.chunk_rows)  # whole chunks, so that none is read twice
        end = len(self) if stop is None else stop
        for begin in range(start - start % span, end, span):
            rows = self.rows(max(start, begin), min(begin + span, end))
            for at in range(0, len(rows.codes), size):
                yield rows.cut(at, at + size)


class CodesFile(StoredCodes):
    """An open file of codes; every chunk is checked against its digest as it is read."""

    def __init__(self, path: Path, file: h5py.File, header: Header) -> None:
        self._codes = file["codes"]
        self._ids = file.get("ids")
        self._digests = file["digests"]
        spec, chunk_rows = CodesSpec.from_fields(header.config), int(header.config["chunk_rows"])
        super().__init__(path, header, spec, chunk_rows, int(self._codes.shape[0]))
        self._lists = file["lists"] if spec.ivf_K else None
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
        if self._lists is not None:
            wanted.append((self._lists, (list_bytes(count, self.spec.ivf_K),), "u1"))
            if self.chunk_rows % 8:
                raise ArtifactError(f"{self.path} is corrupted: chunks of {self.chunk_rows} rows; make it again")
        for data, shape, dtype in wanted:
            if data.shape != shape or data.dtype != np.dtype(dtype) or data.nbytes > self.path.stat().st_size:
                found = f"{data.name} is {data.dtype} {data.shape}, not {dtype} {shape}"
                raise ArtifactError(f"{self.path} is corrupted: {found}; make it again")

    @property
    def with_ids(self) -> bool:
        """Whether the codes carry ids."""
        return self._ids is not None

    def chunk(self, number: int) -> CodeRows:
        """One chunk, checked.

        Raises:
            ArtifactError: the chunk is corrupted.
        """
        begin, end = number * self.chunk_rows, min((number + 1) * self.chunk_rows, len(self))
        with damage_is_error(self.path):
            parts = [self._codes[begin:end]]
            if self._ids is not None:
                parts.append(self._ids[begin:end])
            if self._lists is not None:
                first = begin * list_bits(self.spec.ivf_K) // 8
                parts.append(self._lists[first : first + list_bytes(end - begin, self.spec.ivf_K)])
            if chunk_digest(parts) != self._digests[number].tobytes():
                raise ArtifactError(
                    f"{self.path} is corrupted in rows {begin} to {end - 1}; copy it again, or encode again"
                )
            lists = unpack_lists(parts[-1], end - begin, self.spec.ivf_K) if self.with_lists else None
        return CodeRows(parts[0], parts[1] if self.with_ids else None, lists)


@contextlib.contextmanager
def open_codes_file(path: str | Path) -> Iterator[CodesFile]:
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
