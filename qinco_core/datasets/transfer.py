"""Downloads that go on where they broke off: what has come of a file is kept, with a note on what it is of."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from qinco_core.config import Frozen
from qinco_core.datasets.cache import BLOCK, Digest, mebibytes
from qinco_core.datasets.remote import Broken, Stream, open_remote
from qinco_core.errors import ChecksumError, DownloadError, StorageError, UsageError
from qinco_core.files import atomic_output, storage_errors
from qinco_core.progress import Progress


class Patience(Frozen):
    """How long a download is tried.

    Attributes:
        retries: tries in a row that bring nothing new before it is given up.
        pause: seconds before the first of them; each next one waits twice as long, at most 30 s.
        timeout: seconds in which a server has to say something.
    """

    retries: int = Field(default=4, ge=0)
    pause: float = Field(default=1.0, ge=0)
    timeout: float = Field(default=30.0, gt=0)


class _State(Frozen):
    """What the bytes of a partial file are of."""

    url: str
    validator: str | None
    total: int | None


class Transfer:
    """A download: one file, whole and checked, or an error."""

    def __init__(self, partial: Path, sha256: str | None, progress: Progress, patience: Patience) -> None:
        self._partial, self._note = partial, note_of(partial)
        self._name = partial.stem
        self._sha256 = sha256
        self._progress = progress
        self._patience = patience
        self._hasher, self._hashed = hashlib.sha256(), 0

    def __call__(self, url: str, output: Path) -> Digest:
        """Download `url` to `output`; gives its digest, taken while the bytes pass.

        Raises:
            DownloadError: the server refuses it, or every try broke.
            ChecksumError: it is not the file that the digest is of; nothing is kept of it.
            StorageError: no room for it.
        """
        with storage_errors(self._partial):
            self._retry(url)
            digest = Digest(sha256=self._hasher.hexdigest(), bytes=self._size())
            self._note.unlink(missing_ok=True)
            self._check(url, digest)
            self._partial.replace(output)
        return digest

    def _retry(self, url: str) -> None:
        tries, furthest = 0, self._size()
        while True:
            try:
                self._go_on(url)
                return
            except Broken as error:
                size = self._size()
                tries = 0 if size > furthest else tries + 1
                furthest = max(furthest, size)
                if tries > self._patience.retries:
                    kept = f"; {self._partial} keeps {size:,} bytes" if size else ""
                    raise DownloadError(f"{url} cannot be fetched: {error}{kept}; try the same command later") from None
                self._progress.note(f"{self._name}: {error}; trying again")
                time.sleep(min(self._patience.pause * 2 ** max(0, tries - 1), 30))

    def _go_on(self, url: str) -> None:
        """One connection: what is missing of the file, or all of it.

        Raises:
            Broken: it ended before the file did, or the file is another one by now.
        """
        state = self._state(url)
        start = self._size() if state else 0
        self._hash_again(start)
        if state and start and start == state.total:
            return
        validator = state.validator if state else None
        with open_remote(url, start, validator, self._patience.timeout) as stream:
            if state and stream.start and self._may_differ(state, stream):
                self._note.unlink()
                raise Broken("the file on the server has changed, or the server does not tell")
            if start and not stream.start:
                self._progress.note(f"{self._name}: the server starts from the beginning")
            self._receive(url, stream)

    def _may_differ(self, state: _State, stream: Stream) -> bool:
        # with a digest of the whole it need not be told by the server
        told = self._sha256 is not None or stream.validator == state.validator
        return not told or state.total not in (None, stream.total)

    def _receive(self, url: str, stream: Stream) -> None:
        self._make_room(stream)
        self._hash_again(stream.start)
        self._progress.begin(self._name, None if stream.total is None else mebibytes(stream.total), "MiB")
        try:
            self._progress.advance(mebibytes(stream.start))
            with self._partial.open("ab" if stream.start else "wb") as handle:
                self._write_note(_State(url=url, validator=stream.validator, total=stream.total))
                self._copy(stream, handle)
        finally:
            self._progress.end()

    def _copy(self, stream: Stream, handle: BinaryIO) -> None:
        got = stream.start
        for block in stream.blocks:
            handle.write(block)
            self._hash(block)
            got += len(block)
            self._progress.advance(mebibytes(len(block)))
        if stream.total is not None and got != stream.total:
            raise Broken(f"the connection ended after {got:,} of {stream.total:,} bytes")

    def _hash(self, block: bytes) -> None:
        self._hasher.update(block)
        self._hashed += len(block)

    def _hash_again(self, size: int) -> None:
        """Have the digest of the first `size` bytes, which are here."""
        if self._hashed == size:
            return
        self._hasher, self._hashed = hashlib.sha256(), 0
        if not size:
            return
        self._progress.begin(f"reading {self._partial.name}", mebibytes(size), "MiB")
        with self._partial.open("rb") as handle:
            while block := handle.read(BLOCK):
                self._hash(block)
                self._progress.advance(mebibytes(len(block)))
        self._progress.end()

    def _make_room(self, stream: Stream) -> None:
        free = shutil.disk_usage(self._partial.parent).free
        needed = (stream.total or 0) - self._size()
        if needed > free:
            raise StorageError(
                f"{self._partial} needs {needed:,} more bytes, but {free:,} are free; choose another --cache"
            )

    def _check(self, url: str, digest: Digest) -> None:
        if self._sha256 is None or digest.sha256 == self._sha256:
            return
        self._partial.unlink()
        raise ChecksumError(
            f"{self._name} from {url} has the SHA-256 {digest.sha256}, but {self._sha256} is known of it; "
            "it was dropped. Try again; if its publisher has replaced it, take the new one with --force, "
            "or correct the registry's sha256"
        )

    def _size(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _state(self, url: str) -> _State | None:
        """What is known of the partial file, where it can be gone on with."""
        try:
            state = _State.parse(json.loads(self._note.read_text("utf-8")))
        except (OSError, ValueError, TypeError, UsageError):
            return None
        # without a validator only a digest would tell that the halves do not fit
        sure = state.validator is not None or self._sha256 is not None
        return state if state.url == url and sure else None

    def _write_note(self, state: _State) -> None:
        with atomic_output(self._note, force=True) as temporary:
            temporary.write_text(state.model_dump_json(), "utf-8")


def note_of(partial: Path) -> Path:
    """The note about a partial file, beside it."""
    return partial.with_name(f"{partial.name}.json")
