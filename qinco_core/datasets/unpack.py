"""Packed downloads: a gzip file, or the members of a tar archive that are used."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

from qinco_core.datasets.cache import BLOCK, Digest, Source, Target, mebibytes
from qinco_core.errors import ForeignFileError
from qinco_core.files import atomic_output, storage_errors
from qinco_core.progress import Progress


def unpack(source: Source, progress: Progress) -> dict[str, Digest]:
    """Unpack a download into its targets, all of them whole or none; gives their digests by file name.

    Of an archive only the bytes of the members asked for are used: where they go is said by the registry, never by
    the archive.

    Raises:
        ForeignFileError: it is damaged, lacks a member, or the member is no plain file.
        StorageError: no room.
    """
    with _damage(source), contextlib.ExitStack() as outputs:
        if source.targets[0].member is None:
            with gzip.open(source.download, "rb") as packed:
                return dict([_copy(packed, source.targets[0], outputs, progress)])
        return _members(source, outputs, progress)


def _members(source: Source, outputs: contextlib.ExitStack, progress: Progress) -> dict[str, Digest]:
    wanted = {posixpath.normpath(str(target.member)): target for target in source.targets}
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
            key, digest = _copy(packed, wanted.pop(name), outputs, progress)
            found[key] = digest
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
) -> tuple[str, Digest]:
    """Write a target, which `outputs` puts in place when all are written."""
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
    return target.path.name, Digest(sha256=hasher.hexdigest(), bytes=size)


@contextlib.contextmanager
def _damage(source: Source) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError) as error:
        reason = str(error).partition(":")[0]  # tarfile goes on for lines
        raise ForeignFileError(
            f"{source.file} cannot be unpacked ({reason}); fetch it anew with qinco fetch {source.name} --force"
        ) from error
