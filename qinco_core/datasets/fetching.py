"""Fetching what has a name into the cache, and checking what is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qinco_core.datasets.cache import (
    Digest,
    Source,
    Target,
    cache_root,
    digest_of,
    forget,
    local_path,
    locked,
    read_checksums,
    sources,
    write_checksums,
)
from qinco_core.datasets.received import check_received
from qinco_core.datasets.registry import Entry, Part, check_part, find_entry, is_remote
from qinco_core.datasets.remote import Broken, remote_size
from qinco_core.datasets.transfer import Patience, Transfer
from qinco_core.datasets.unpack import unpack
from qinco_core.errors import ChecksumError, DownloadError, StorageError
from qinco_core.files import commit, storage_errors
from qinco_core.progress import Progress, Silent


@dataclass(frozen=True)
class Fetched:
    """A file that is here and is what it should be.

    Attributes:
        name: of the entry.
        parts: of the data set that are read from it; `file` of a published file.
        path: of the file.
        source: where it came from.
        bytes, sha256: of it; None of a user's own file, which is not fetched.
        state: "fetched", "checked" (it was here), or "local".
    """

    name: str
    parts: tuple[str, ...]
    path: Path
    source: str
    bytes: int | None
    sha256: str | None
    state: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": str(self.path), "parts": list(self.parts)}


@dataclass(frozen=True)
class Planned:
    """A file that a fetch would deal with.

    Attributes:
        name, parts, path, source: as of `Fetched`.
        bytes: what comes from the server, or None where nobody knows.
        unpacked: its size in the cache, where that is another, if known.
        state: "here", "partial" or "missing"; of a user's own file "local" or "missing".
        shared: whether it comes out of the same download as the row before.
        note: why the size is not known.
    """

    name: str
    parts: tuple[str, ...]
    path: Path
    source: str
    bytes: int | None
    unpacked: int | None
    state: str
    shared: bool = False
    note: str = ""

    @property
    def remote(self) -> bool:
        """Whether it is fetched, and no file of the user's own."""
        return is_remote(self.source)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": str(self.path), "parts": list(self.parts)}


def fetch(
    name: str,
    *,
    parts: Iterable[str] = (),
    cache: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> list[Fetched]:
    """Fetch a data set (or only those parts of it), a published model or centroids; what is here already is checked.

    A broken download goes on where it ended. Digests are those of the registry, else those recorded when a file
    was first fetched; `force` drops the recorded ones and fetches everything anew. Two fetches of the same name wait
    for one another.

    Raises:
        UsageError: nothing has that name, or the set no such part.
        DownloadError: a server refuses a file, the connection keeps breaking, or what comes is not what the registry
            describes.
        ChecksumError: a file is not what its digest is of; it is not used.
        ForeignFileError: a packed file is damaged.
        StorageError: no room, or no right to write.
        InputNotFoundError: a user's own file is not there.
    """
    entry, chosen, root = _chosen(name, parts, cache)
    progress = progress or Silent()
    done = [
        Fetched(name, (part,), local_path(file), file.source, None, None, "local")
        for part, file in entry.files.items()
        if part in chosen and not file.remote
    ]
    wanted = _wanted(entry, chosen, root)
    if not wanted:
        return done
    with locked(root / name, progress):
        _check_room(root / name, wanted, force)
        for source in wanted:
            done += _fetch_source(source, force, progress, patience or Patience())
    return done


def plan(
    name: str | Entry, *, parts: Iterable[str] = (), cache: str | Path | None = None, ask: bool = True
) -> list[Planned]:
    """What `fetch` of a name (or what it stands for) would deal with.

    With `ask`, servers are asked for the sizes that the registry does not have.

    Raises:
        UsageError: as `fetch`.
    """
    entry, chosen, root = _chosen(name, parts, cache)
    found = [
        Planned(entry.name, (part,), path, file.source, None, None, "local" if path.exists() else "missing")
        for part, file in entry.files.items()
        if part in chosen and not file.remote
        for path in [Path(file.source)]
    ]
    for source in _wanted(entry, chosen, root):
        found += _planned(source, ask)
    return found


def free_space(root: Path) -> int:
    """The bytes that are free where a folder is, or would be."""
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free


def _planned(source: Source, ask: bool) -> list[Planned]:
    size, note = source.bytes, "not asked for"
    if size is None and source.here and not source.packed:
        size = source.targets[0].path.stat().st_size
    elif size is None and ask:
        size, note = _asked(source)
    state = "here" if source.here else "partial" if source.partial.exists() else "missing"
    rows = []
    for i, target in enumerate(source.targets):
        unpacked = _size_here(target) if source.packed else None
        facts = (source.name, target.parts, target.path, source.url)
        rows.append(Planned(*facts, None if i else size, unpacked, state, i > 0, note if size is None else ""))
    return rows


def _asked(source: Source) -> tuple[int | None, str]:
    """The size of a source, recorded or by the server, or why it is not known."""
    if recorded := read_checksums(source.folder).get(source.file):
        return recorded.bytes, ""
    try:
        return remote_size(source.url, Patience().timeout), "the server does not tell"
    except (Broken, DownloadError) as error:
        return None, str(error)


def _size_here(target: Target) -> int | None:
    return target.path.stat().st_size if target.path.exists() else target.bytes


def _chosen(name: str | Entry, parts: Iterable[str], cache: str | Path | None) -> tuple[Entry, Sequence[str], Path]:
    entry = name if isinstance(name, Entry) else find_entry(name)
    chosen: list[Part] = [check_part(part, entry) for part in parts]
    return entry, chosen or list(entry.files), cache_root(cache)


def _wanted(entry: Entry, chosen: Sequence[str], root: Path) -> list[Source]:
    """The sources of the chosen parts; of an archive that several parts come from, all."""
    return [s for s in sources(entry, root) if any(part in chosen for target in s.targets for part in target.parts)]


def _check_room(folder: Path, wanted: Sequence[Source], force: bool) -> None:
    missing = [source for source in wanted if force or not source.here]
    sizes = [source.bytes or sum(target.bytes or 0 for target in source.targets) for source in missing]
    needed = sum(sizes) - sum(source.partial.stat().st_size for source in missing if source.partial.exists())
    free = free_space(folder)
    if needed > free:
        raise StorageError(
            f"{folder} needs {needed:,} bytes at least, and {free:,} are free; free some, choose another --cache, "
            "or fetch some parts only"
        )


def _fetch_source(source: Source, force: bool, progress: Progress, patience: Patience) -> list[Fetched]:
    known = read_checksums(source.folder)
    if source.here and not force:
        return [_check(source, target, known, progress) for target in source.targets]
    if force:
        known = {name: digest for name, digest in known.items() if name not in source.names}
        source.download.unlink(missing_ok=True)  # a partial one is gone on with only if the server's is the same
    found = _download(source, known, progress, patience)
    done = []
    for target in source.targets:
        digest = found[target.path.name]
        done.append(Fetched(source.name, target.parts, target.path, source.url, digest.bytes, digest.sha256, "fetched"))
    write_checksums(source.folder, known | found)
    source.download.unlink(missing_ok=True)
    progress.note(f"fetched {', '.join(str(one.path) for one in done)}")
    return done


def _download(source: Source, known: dict[str, Digest], progress: Progress, patience: Patience) -> dict[str, Digest]:
    """Put the targets of a source in place; gives the digests of all that came, the packed file among them."""
    expected = source.sha256 or (known[source.file].sha256 if source.file in known else None)
    with storage_errors(source.download):
        if source.download.exists():  # a fetch was killed before it was put in place
            found = digest_of(source.download, progress)
        else:
            found = Transfer(source.partial, expected, progress, patience)(source.url, source.download)
        return _placed(source, found, expected, progress)


def _placed(source: Source, found: Digest, expected: str | None, progress: Progress) -> dict[str, Digest]:
    """Put the targets of a download with the digest `found` in place; gives all digests by file name."""
    if expected is not None and found.sha256 != expected:
        source.download.unlink()
        raise ChecksumError(_mismatch(source.download, found.sha256, expected, source.name))
    ready = partial(forget, source.folder, source.names)
    try:
        if source.packed:
            return {source.file: found} | unpack(source, ready, progress)
        (target,) = source.targets
        check_received(source, target, source.download)
    except DownloadError:
        source.download.unlink()
        raise
    ready()
    commit(source.download, target.path)
    return {source.file: found, target.path.name: found}


def _check(source: Source, target: Target, known: dict[str, Digest], progress: Progress) -> Fetched:
    """Check a file that is here; one that nothing is known of is taken as it is, and known from now on."""
    found = digest_of(target.path, progress)
    recorded = known.get(target.path.name)
    expected = recorded.sha256 if recorded else None
    if not source.packed and source.sha256:
        expected = source.sha256
    if expected is not None and found.sha256 != expected:
        aside = target.path.with_name(f"{target.path.name}.damaged")
        target.path.replace(aside)
        raise ChecksumError(_mismatch(target.path, found.sha256, expected, source.name, f"; it is now {aside.name}"))
    if recorded is None:
        write_checksums(target.path.parent, known | {target.path.name: found})
        known[target.path.name] = found
    return Fetched(source.name, target.parts, target.path, source.url, found.bytes, found.sha256, "checked")


def _mismatch(path: Path, found: str, expected: str, name: str, moved: str = "") -> str:
    return (
        f"{path} has the SHA-256 {found}, but {expected} is known of it: it was changed or damaged{moved}. "
        f"Fetch it anew with qinco fetch {name}"
    )
