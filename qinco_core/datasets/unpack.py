"""Packed downloads: a gzip file, or the members of a tar archive that are used."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from qinco_core.datasets.cache import BLOCK, Digest, Source, Target, mebibytes
from qinco_core.datasets.received import check_received
from qinco_core.errors import ForeignFileError
from qinco_core.files import atomic_output, storage_errors
from qinco_core.progress import Progress


def unpack(source: Source, ready: Callable[[], None], progress: Progress) -> dict[str, Digest]:
    """Unpack a download into its targets, each whole or not at all; gives their digests by file name.

    None is replaced before all are written, and `ready` was called.
    Of an archive only the bytes of the members asked for are used: where they go is said by the registry, never by
    the archive.

    Raises:
        ForeignFileError: it is damaged, lacks a member, or the member is no plain file.
        DownloadError: what was in it is not what the registry describes.
        StorageError: no room.
    """
    with _damage(source), contextlib.ExitStack() as outputs:
        if source.targets[0].member is None:
            with gzip.open(source.download, "rb") as packed:
                found = {source.targets[0]: _copy(packed, source.targets[0], outputs, progress)}
        else:
            found = _members(source, outputs, progress)
        for target, (temporary, _) in found.items():
            check_received(source, target, temporary)
        ready()
        return {target.path.name: digest for target, (_, digest) in found.items()}


def _members(source: Source, outputs: contextlib.ExitStack, progress: Progress) -> dict[Target, tuple[Path, Digest]]:
    wanted = {str(target.member): target for target in source.targets}
    found, seen = {}, []
    with tarfile.open(source.download, "r:*") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            seen.append(name)
            if name not in wanted:
                continue
            packed = archive.extractfile(member) if member.isreg() else None
            if packed is None:
                raise ForeignFileError(f"{source.file}: its member {name} is no plain file; correct the registry")
            target = wanted.pop(name)
            found[target] = _copy(packed, target, outputs, progress)
        # only at its end a packed archive tells that it is undamaged
        while archive.fileobj is not None and archive.fileobj.read(BLOCK):
            pass
    if wanted:
        there = ", ".join(seen[:10]) + (", ..." if len(seen) > 10 else "")
        raise ForeignFileError(
            f"{source.file} has no member {min(wanted)}; there are {there}: correct the member in the registry"
        )
    return found


def _copy(
    packed: IO[bytes] | gzip.GzipFile, target: Target, outputs: contextlib.ExitStack, progress: Progress
) -> tuple[Path, Digest]:
    """Write a target to a temporary path, which `outputs` puts in place when all are written."""
    hasher, size = hashlib.sha256(), 0
    total = None if target.bytes is None else mebibytes(target.bytes)
    progress.begin(f"unpacking {target.path.name}", total, "MiB")
    temporary = outputs.enter_context(atomic_output(target.path, force=True))
    with storage_errors(target.path), temporary.open("wb") as handle:
        while block := packed.read(BLOCK):
            handle.write(block)
            hasher.update(block)
            size += len(block)
            progress.advance(mebibytes(len(block)))
    progress.end()
    return temporary, Digest(sha256=hasher.hexdigest(), bytes=size)


@contextlib.contextmanager
def _damage(source: Source) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError) as error:
        reason = str(error).partition(":")[0]  # tarfile goes on for lines
        raise ForeignFileError(
            f"{source.file} cannot be unpacked ({reason}); fetch it anew with qinco fetch {source.name} --force"
        ) from error
