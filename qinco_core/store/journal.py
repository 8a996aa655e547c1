"""The resume point of an encoding job: a file of whole chunks, each followed by its digest.

It is only ever appended to, so a job killed at any instant leaves whole chunks and at most one torn
record behind them, which the next run cuts off. HDF5, whose metadata is rewritten in place, would not
survive that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import ArtifactError, LineageError, OutputExistsError
from qinco_core.files import storage_errors, write_all
from qinco_core.store.artifact import DIGEST_BYTES, canonical_json
from qinco_core.store.lists import list_bytes, unpack_lists
from qinco_core.store.spec import CodeRows

_MAGIC = b"qinco partial codes 1\n"


@dataclass(frozen=True)
class Job:
    """What an encoding job is; two jobs with equal fields may continue one another."""

    spec: dict[str, Any]
    count: int | None
    with_ids: bool
    source: str
    chunk_rows: int

    @property
    def ivf_K(self) -> int:
        """Lists of the model; 0: the codes have no list numbers."""
        return int(self.spec.get("ivf_K", 0))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk: its codes, its ids, the bits of its list numbers."""
        rows = self.chunk_rows
        return int(rows * (self.spec["code_bytes"] + 8 * self.with_ids)) + list_bytes(rows, self.ivf_K)


def chunk_digest(parts: list[NDArray[Any]]) -> bytes:
    """BLAKE2b-128 of a chunk as `CodeRows.stored` gives it."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(part.data)
    return state.digest()


class Journal:
    """The open journal of one job; made by `open_journal`. `digests` holds one entry per whole chunk."""

    def __init__(self, path: Path, handle: BinaryIO, job: Job, start: int) -> None:
        self.path = path
        self.job = job
        self.digests: list[bytes] = []
        self._handle = handle
        self._start = start

    def append(self, rows: CodeRows) -> None:
        """Append one whole chunk and wait until the disk has it.

        Raises:
            StorageError: the disk is full; the chunks before stay.
        """
        parts = rows.stored(self.job.ivf_K)
        mark = chunk_digest(parts)
        with storage_errors(self.path):
            self._handle.seek(self._offset(len(self.digests)))
            for part in parts:
                write_all(self._handle, part.reshape(-1))
            write_all(self._handle, mark)
            os.fsync(self._handle.fileno())
        self.digests.append(mark)

    def chunks(self) -> Iterator[CodeRows]:
        """Read all whole chunks back."""
        for number in range(len(self.digests)):
            yield self._rows(self._read(number)[0])

    def recover(self, see: Callable[[CodeRows], None]) -> None:
        """Find the chunks of an earlier run, show each to `see`, and cut off what is torn."""
        size = os.fstat(self._handle.fileno()).st_size
        while self._offset(len(self.digests) + 1) <= size:
            chunk, mark = self._read(len(self.digests))
            if chunk_digest([chunk]) != mark:
                break
            see(self._rows(chunk))
            self.digests.append(mark)
        with storage_errors(self.path):
            self._handle.truncate(self._offset(len(self.digests)))

    def close(self) -> None:
        """Close the file, which also gives its lock back."""
        self._handle.close()

    def _offset(self, number: int) -> int:
        return self._start + number * (self.job.chunk_bytes + DIGEST_BYTES)

    def _read(self, number: int) -> tuple[NDArray[np.uint8], bytes]:
        """The bytes of a chunk, and the digest that follows it."""
        length = self.job.chunk_bytes
        self._handle.seek(self._offset(number))
        raw = bytearray()
        while len(raw) < length + DIGEST_BYTES:
            part = self._handle.read(length + DIGEST_BYTES - len(raw))
            if not part:
                raise ArtifactError(f"{self.path} became shorter while it was read; start over with --force")
            raw += part
        return np.frombuffer(raw, np.uint8, length), bytes(raw[length:])

    def _rows(self, chunk: NDArray[np.uint8]) -> CodeRows:
        job, width = self.job, self.job.spec["code_bytes"]
        codes, rest = np.split(chunk, [job.chunk_rows * width])
        ids, lists = np.split(rest, [8 * job.chunk_rows * job.with_ids])
        return CodeRows(
            codes.reshape(-1, width),
            ids.view("<i8") if job.with_ids else None,
            unpack_lists(lists, job.chunk_rows, job.ivf_K) if job.ivf_K else None,
        )


def read_journal(path: Path) -> tuple[Job, int] | None:
    """The job of a journal, and how many rows its whole chunks have; None where there is none, or no job in it yet.

    Raises:
        ArtifactError: the file is no journal.
        StorageError: it cannot be read.
    """
    if not path.is_file():
        return None
    with storage_errors(path), path.open("rb") as handle:
        magic, line = handle.read(len(_MAGIC)), handle.readline(1 << 20)
        size = os.fstat(handle.fileno()).st_size
    if _is_new(magic, line):
        return None
    job = _job(magic, line, path)
    return job, (size - len(magic) - len(line)) // (job.chunk_bytes + DIGEST_BYTES) * job.chunk_rows


def open_journal(path: Path, job: Job, *, resume: bool, force: bool) -> Journal:
    """Open the journal of a job: the one that is there, when it may be continued, or a new one.

    Raises:
        OutputExistsError: there is one, and neither `resume` nor `force` says what to do with it;
            or another process is writing it.
        LineageError: there is one of another job, and `force` is false.
        ArtifactError: there is a file that is no journal, and `force` is false.
        StorageError: the disk is full or read-only.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    try:
        _lock(handle, path)
        kept = _continued(handle, path, job, resume=resume, force=force)
        return kept or _begin(handle, path, job)
    except BaseException:
        handle.close()
        raise


def _lock(handle: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputExistsError(f"{path} is being written by another process; wait for it") from None


def _begin(handle: BinaryIO, path: Path, job: Job) -> Journal:
    head = _MAGIC + canonical_json(asdict(job)).encode() + b"\n"
    with storage_errors(path):
        handle.truncate(0)
        handle.seek(0)
        write_all(handle, head)
        os.fsync(handle.fileno())
    return Journal(path, handle, job, len(head))


def _continued(handle: BinaryIO, path: Path, job: Job, *, resume: bool, force: bool) -> Journal | None:
    magic, line = handle.read(len(_MAGIC)), handle.readline(1 << 20)
    if _is_new(magic, line):
        return None
    if not resume:
        if force:
            return None
        raise OutputExistsError(f"{path} holds an unfinished job; --resume continues it, --force starts over")
    try:
        _same_job(magic, line, path, job)
    except (ArtifactError, LineageError):
        if force:
            return None
        raise
    # chunks that are there keep their size
    kept = replace(job, chunk_rows=int(json.loads(line)["chunk_rows"]))
    return Journal(path, handle, kept, len(magic) + len(line))


def _is_new(magic: bytes, line: bytes) -> bool:
    """Whether nothing is there yet, or whoever began was killed before anything was done."""
    return _MAGIC.startswith(magic) and not line.endswith(b"\n")


def _job(magic: bytes, line: bytes, path: Path) -> Job:
    foreign = ArtifactError(f"{path} is no unfinished job of this qinco; start over with --force")
    if magic != _MAGIC:
        raise foreign
    try:
        job = Job(**json.loads(line))
        size = job.chunk_bytes
    except (ValueError, TypeError, KeyError):
        raise foreign from None
    if size <= 0:
        raise foreign
    return job


def _same_job(magic: bytes, line: bytes, path: Path, job: Job) -> None:
    was = _job(magic, line, path)
    # to JSON and back, as the other one was
    wanted = Job(**json.loads(canonical_json(asdict(job))))
    before, now = asdict(was) | was.spec, asdict(wanted) | wanted.spec
    differing = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    differing = [name for name in differing if name not in ("chunk_rows", "spec")]
    if differing:
        changes = ", ".join(f"{name} {before.get(name)!r} then, {now.get(name)!r} now" for name in differing)
        raise LineageError(f"{path} was begun for another job ({changes}); start over with --force")
