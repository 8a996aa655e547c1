"""The folder that fetched files lie in: NAME/file, with the digest that each had at first and is held to ever after."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qinco_core.config import Frozen
from qinco_core.datasets.registry import Entry, FileSpec
from qinco_core.errors import ChecksumError, StorageError, UsageError
from qinco_core.files import atomic_output, existing_file, storage_errors
from qinco_core.progress import Progress

CHECKSUMS = "checksums.json"
BLOCK = 1 << 20


class Digest(Frozen):
    """What a file was when it was first seen: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Target:
    """A file in the cache that is used.

    Attributes:
        path: of it.
        parts: of the data set that are read from it.
        member: of the archive, where it comes from one.
        bytes: its size, where the registry tells.
        vectors: what the registry says of the vectors in it, if it has some.
    """

    path: Path
    parts: tuple[str, ...]
    member: str | None
    bytes: int | None
    vectors: tuple[FileSpec, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file on a server, and what becomes of it here.

    Attributes:
        name: of the entry that it belongs to.
        url: its address.
        file: what it is called.
        folder: of the cache, where it goes.
        packed: whether it has to be unpacked.
        targets: the files that are used: itself, or what it is unpacked to.
        sha256: of it, where the registry has that.
    """

    name: str
    url: str
    file: str
    folder: Path
    packed: bool
    targets: tuple[Target, ...]
    sha256: str | None

    @property
    def partial(self) -> Path:
        """What has come of it so far."""
        return self.folder / f"{self.file}.partial"

    @property
    def download(self) -> Path:
        """It when it is whole, until the targets are in place."""
        return self.folder / f"{self.file}.download"

    @property
    def names(self) -> set[str]:
        """The files that have a digest: it and its targets."""
        return {self.file, *(target.path.name for target in self.targets)}

    @property
    def here(self) -> bool:
        """Whether all of it has been fetched."""
        return all(target.path.is_file() for target in self.targets)

    @property
    def bytes(self) -> int | None:
        """The size of what comes from the server, where the registry tells."""
        return None if self.packed else self.targets[0].bytes


def cache_root(cache: str | Path | None = None) -> Path:
    """The cache: `cache`, else `$QINCO_CACHE`, else the platform's folder for caches."""
    if cache is not None:
        return Path(cache)
    if named := os.environ.get("QINCO_CACHE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("qinco"))


def sources(entry: Entry, root: Path) -> list[Source]:
    """The files on servers that an entry is made of; parts of one address are one source."""
    folder = root / entry.name
    groups: dict[str, list[str]] = {}
    for part, file in entry.files.items():
        if file.remote:
            groups.setdefault(file.source, []).append(part)
    places = cached_paths(entry, root)
    names = Counter(entry.files[parts[0]].name for parts in groups.values())
    found = []
    for url, parts in groups.items():
        files = [entry.files[part] for part in parts]
        name = files[0].name if names[files[0].name] == 1 else f"{parts[0]}-{files[0].name}"
        sha256 = next((file.sha256 for file in files if file.sha256), None)
        shared: dict[tuple[Path, str | None], list[str]] = {}
        for part, file in zip(parts, files, strict=True):
            shared.setdefault((places[part], file.member), []).append(part)
        targets = tuple(
            Target(path, tuple(which), member, _bytes(entry, which), _vectors(entry, which))
            for (path, member), which in shared.items()
        )
        found.append(Source(entry.name, url, name, folder, files[0].packed, targets, sha256))
    return found


def _bytes(entry: Entry, parts: list[str]) -> int | None:
    # of an HDF5 file no part alone has the size
    return entry.files[parts[0]].bytes if len(parts) == 1 else None


def _vectors(entry: Entry, parts: list[str]) -> tuple[FileSpec, ...]:
    files = tuple(entry.files[part] for part in parts)
    if entry.spec is not None or (entry.kind == "centroids" and files[0].unpacked_name.lower().endswith(".npy")):
        return files
    return ()


def local_path(file: FileSpec) -> Path:
    """The path of a user's own file, or of a folder of Parquet or Arrow files, checked to be there.

    Raises:
        InputNotFoundError: it is not.
    """
    path = Path(file.source)
    return path if path.is_dir() else existing_file(path)


def cached_paths(entry: Entry, root: Path) -> dict[str, Path]:
    """Where the parts of an entry that have to be fetched lie, or would."""
    remote = {part: file for part, file in entry.files.items() if file.remote}
    origins: dict[str, set[tuple[str, str | None]]] = {}
    for file in remote.values():
        origins.setdefault(file.unpacked_name, set()).add((file.source, file.member))

    def name(part: str, file: FileSpec) -> str:
        if len(origins[file.unpacked_name]) == 1:
            return file.unpacked_name
        first = next(p for p, f in remote.items() if (f.source, f.member) == (file.source, file.member))
        return f"{first}-{file.unpacked_name}"

    return {part: root / entry.name / name(part, file) for part, file in remote.items()}


@contextlib.contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold a folder of the cache, which is made: one process at a time fetches into it; others wait.

    What a killed one left half written goes.

    Raises:
        StorageError: it cannot be made or written to.
    """
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / ".lock").open("a")
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"{folder} would lie inside a file, not a folder; choose another --cache") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note(f"waiting: another process is fetching into {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        yield


def read_checksums(folder: Path) -> dict[str, Digest]:
    """The digests of a folder's files by name; a download that was unpacked is among them.

    Raises:
        UsageError: the record is damaged.
    """
    path = folder / CHECKSUMS
    try:
        return {name: Digest.parse(fields) for name, fields in json.loads(path.read_text("utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); remove it, and qinco fetch records the digests anew") from error


def write_checksums(folder: Path, known: dict[str, Digest]) -> None:
    """Record the digests of a folder's files."""
    with atomic_output(folder / CHECKSUMS, force=True) as temporary:
        fields = {name: digest.model_dump() for name, digest in sorted(known.items())}
        temporary.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


def forget(folder: Path, names: set[str]) -> None:
    """Drop the digests of files that are about to be replaced: a new one must never be held to an old digest."""
    known = read_checksums(folder)
    if not names.isdisjoint(known):
        write_checksums(folder, {name: digest for name, digest in known.items() if name not in names})


def digest_of(path: Path, progress: Progress) -> Digest:
    """The digest of a file, read whole."""
    hasher, size = hashlib.sha256(), path.stat().st_size
    progress.begin(f"checking {path.name}", mebibytes(size), "MiB")
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            hasher.update(block)
            progress.advance(mebibytes(len(block)))
    progress.end()
    return Digest(sha256=hasher.hexdigest(), bytes=size)


def mebibytes(count: int) -> float:
    """Bytes in MiB, for people who watch."""
    return count / (1 << 20)


def check_size(path: Path) -> None:
    """Refuse a fetched file that has not the size it was fetched with: all that can be checked in no time.

    Raises:
        ChecksumError: it has another.
    """
    known = read_checksums(path.parent).get(path.name)
    size = path.stat().st_size
    if known is not None and size != known.bytes:
        name = path.parent.name
        raise ChecksumError(
            f"{path} has {size:,} bytes, but {known.bytes:,} when it was fetched: fetch it anew with "
            f"qinco fetch {name} --force"
        )
