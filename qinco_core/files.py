"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qinco_core.errors import InputNotFoundError, OutputExistsError, StorageError, UsageError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # as a path has it, with one slash
_NAME_BYTES = 255  # of the longest name that file systems allow


def existing_file(path: str | Path) -> Path:
    """The path, checked to be a readable regular file.

    Raises:
        InputNotFoundError: nothing is there, or it is a directory.
    """
    path = Path(path)
    if path.is_dir():
        raise InputNotFoundError(f"{path} is a directory; name a file")
    if not path.exists():
        raise InputNotFoundError(f"{path} does not exist; check the path (working directory: {Path.cwd()})")
    return path


def check_output(path: str | Path, *, force: bool, dry_run: bool = False) -> Path:
    """The path, checked to be free to write to before any work starts; nothing is made.

    In a dry run a file that exists is no obstacle.

    Raises:
        UsageError: it is an address.
        OutputExistsError: it exists and `force` is false, or it is a directory.
        StorageError: its folder cannot be made or written to.
    """
    path = Path(path)
    if _ADDRESS.match(str(path)):
        raise UsageError(f"{path}: only files are written, not addresses; name one, and upload it")
    with storage_errors(path):
        if path.is_dir():
            raise OutputExistsError(f"{path} is a directory; name a file")
        if path.exists() and not (force or dry_run):
            raise OutputExistsError(f"{path} exists; overwrite it with --force, or name another output")
        nearest = next((folder for folder in path.parents if os.path.lexists(folder)), path.parent)
        if not nearest.is_dir():
            raise StorageError(f"{path} would lie inside a file, not a folder; choose another output")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise StorageError(f"{path} cannot be written here ({nearest} is read-only); choose another output")
    return path


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Make the folder of a file, with those around it; what was not there before goes again when the block fails.

    Raises:
        StorageError: the disk is full or read-only.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # one that others have put something into stays
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at `path` into a `StorageError` that says so."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (InputNotFoundError, OutputExistsError, StorageError)):
            raise
        # h5py reports errno only in its text
        text = str(error)
        if error.errno in _NO_ROOM or "errno = 28" in text or "errno = 122" in text or "errno = 27" in text:
            raise StorageError(f"no room left to write {path}; free some space and run again") from error
        if error.errno in _NO_WRITE or "errno = 30" in text or "errno = 13" in text:
            raise StorageError(f"{path} cannot be written here ({error}); choose another output") from error
        raise


@contextlib.contextmanager
def atomic_output(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; put it in place when the block ends well.

    A reader sees the old file or the new one. When the block raises, the temporary file goes and the
    old file stays.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
        StorageError: the disk is full or read-only.
    """
    path = check_output(path, force=force)
    temporary = path.with_name(_temporary_name(path.name))
    with folder_for(path):
        try:
            with storage_errors(path):
                yield temporary
                commit(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # a read-only disk refuses that too, and the error on its way says more
                temporary.unlink(missing_ok=True)


def _temporary_name(name: str) -> str:
    """A hidden name for this process; a digest where the name itself leaves no room for more."""
    ending = f".{os.getpid()}.tmp"
    raw = os.fsencode(name)
    if 1 + len(raw) + len(ending) > _NAME_BYTES:
        name = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return f".{name}{ending}"


def commit(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk and rename it into place."""
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_all(handle: Any, data: Any) -> None:
    """Write every byte of `data`, also where an unbuffered file takes only a part at once."""
    view = memoryview(data).cast("B")
    while view:
        view = view[handle.write(view) :]
