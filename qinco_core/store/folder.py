"""Codes in a folder: a manifest that says what they are, and parts, each an artifact of codes by itself.

How many rows a part has follows from the number of vectors alone, and nothing in a part tells who made it or when: the
files are the same whichever machines shared the work, and however often they were interrupted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qinco_core.errors import ArtifactError, LineageError, UsageError
from qinco_core.store.artifact import (
    Header,
    Parent,
    create_artifact,
    damage_is_error,
    fingerprint_of,
    open_artifact,
    plain,
    read_header,
)
from qinco_core.store.codes import CHUNK_ROWS, CodesFile, StoredCodes, open_codes_file
from qinco_core.store.codes import KIND as CODES
from qinco_core.store.spec import CodeRows, CodesSpec, ContentHash

KIND = "codes folder"
MANIFEST = "manifest.h5"
# parts, at least where there are enough vectors, and rows of one, at most: an hour's work of a core at the very most
_PARTS, _MOST_ROWS = 256, 1 << 20


@dataclass(frozen=True)
class Parts:
    """How so many rows are divided into parts: of equal length but for the last, in whole chunks."""

    count: int

    @property
    def rows(self) -> int:
        """Rows of a part."""
        chunks = -(-self.count // (_PARTS * CHUNK_ROWS))
        return min(_MOST_ROWS, max(1, chunks) * CHUNK_ROWS)

    def __len__(self) -> int:
        return -(-self.count // self.rows)

    def span(self, number: int) -> tuple[int, int]:
        """The first row of a part, and the row after its last."""
        return number * self.rows, min(self.count, (number + 1) * self.rows)

    def shard(self, i: int, n: int) -> range:
        """The parts of shard i of n, which lie side by side.

        Raises:
            UsageError: there is no such shard.
        """
        if not 0 <= i < n:
            raise UsageError(f"there is no shard {i} of {n}: shards are 0/{n} to {max(0, n - 1)}/{n}")
        return range(i * len(self) // n, (i + 1) * len(self) // n)


@dataclass(frozen=True)
class Manifest:
    """What the codes in a folder are.

    Attributes:
        spec: of all parts.
        count: vectors in all.
        with_ids: whether there are ids.
        source: text that changes when the source does.
        created: the time that all its files carry, which is that of the model.
    """

    spec: CodesSpec
    count: int
    with_ids: bool
    source: str
    created: str

    @property
    def parts(self) -> Parts:
        """How the rows are divided."""
        return Parts(self.count)

    def fields(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return asdict(self) | {"spec": self.spec.fields()}


def part_path(folder: Path, number: int) -> Path:
    """The file of a part."""
    return folder / f"part-{number:05}.h5"


def part_notes(number: int) -> dict[str, Any]:
    """What a part's encoder field says beside that of the manifest."""
    return {"part": number}


def begin_folder(folder: Path, wanted: Manifest) -> None:
    """Write the manifest of a folder, or check that the one there is of the same job.

    Raises:
        LineageError: it is of another job; the message says in what it differs.
        ArtifactError: it is damaged.
        StorageError: the disk is full or read-only.
    """
    path = folder / MANIFEST
    if not path.exists():
        fields = wanted.fields()
        # several shards may begin at once: all of them write the same
        with create_artifact(path, force=True) as out:
            parents = (Parent("model", wanted.spec.model),)
            out.finish(KIND, fingerprint_of(fields), fields, parents, wanted.created)
    there, asked = read_manifest(folder).fields(), plain(wanted.fields())
    there, asked = there | there.pop("spec"), asked | asked.pop("spec")
    differing = [name for name in asked if asked[name] != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} then, {asked[name]!r} now" for name in differing)
        raise LineageError(f"{folder} was begun for another job ({changes}); give the codes another name, or remove it")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of codes.

    Raises:
        InputNotFoundError: there is none.
        ArtifactError: it is damaged, or no manifest.
    """
    return _read(folder)[0]


def codes_header(path: Path) -> Header:
    """The header of codes: that of the file, or what the manifest says of the parts in a folder.

    Raises:
        InputNotFoundError, ArtifactError, ArtifactVersionError: as of `open_codes`.
    """
    return _read(path)[1] if path.is_dir() else read_header(path)


def _read(folder: Path) -> tuple[Manifest, Header]:
    path = folder / MANIFEST
    with open_artifact(path, KIND) as (_, header), damage_is_error(path):
        if fingerprint_of(header.config) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: it has not its fingerprint; make it again")
        fields = dict(header.config)
        manifest = Manifest(spec=CodesSpec.from_fields(fields.pop("spec")), **fields)
    return manifest, replace(header, kind=CODES)


def has_part(folder: Path, manifest: Manifest, number: int) -> bool:
    """Whether a part is finished.

    Raises:
        ArtifactError: it is there, but damaged, or not of this folder.
    """
    path = part_path(folder, number)
    if not path.exists():
        return False
    with open_codes_file(path) as part:
        _check_part(part, manifest, number)
    return True


def check_part(folder: Path, manifest: Manifest, number: int) -> None:
    """Read a part from its beginning to its end.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is damaged, or not of this folder.
    """
    with open_codes_file(part_path(folder, number)) as part:
        _check_part(part, manifest, number)
        content = ContentHash(with_ids=part.with_ids, with_lists=part.with_lists)
        for chunk in range(part.chunks):
            content.update(part.chunk(chunk))
        if content.fingerprint(part.spec) != part.header.fingerprint:
            raise ArtifactError(f"{part.path} has not its fingerprint; remove it, and encode again")


def _check_part(part: CodesFile, manifest: Manifest, number: int) -> None:
    first, end = manifest.parts.span(number)
    spec, wanted = part.spec.fields(), manifest.spec.fields()
    wanted["encoder"] |= part_notes(number)
    spec["encoder"] = {name: spec["encoder"].get(name) for name in wanted["encoder"]}  # parts may say more
    if (len(part), part.with_ids, part.chunk_rows, spec) != (end - first, manifest.with_ids, CHUNK_ROWS, wanted):
        raise ArtifactError(f"{part.path} is not part {number} of the codes in its folder; remove it, and encode again")


class CodesFolder(StoredCodes):
    """The parts of a folder as one; they are opened one at a time."""

    def __init__(self, folder: Path) -> None:
        """Look at all parts' headers.

        Raises:
            ArtifactError: a part is missing, damaged, or not of this folder.
        """
        self.manifest, header = _read(folder)
        manifest = self.manifest
        self._open: tuple[int, CodesFile] | None = None
        self._stack = contextlib.ExitStack()
        missing = [n for n in range(len(manifest.parts)) if not part_path(folder, n).exists()]
        if missing:
            raise ArtifactError(
                f"{folder} has {len(manifest.parts) - len(missing)} of its {len(manifest.parts)} parts, and not "
                f"{part_path(folder, missing[0]).name}: run qinco encode with the same --shard again"
            )
        for number in range(len(manifest.parts)):
            with open_codes_file(part_path(folder, number)) as part:
                _check_part(part, manifest, number)
        super().__init__(folder, header, manifest.spec, CHUNK_ROWS, manifest.count)

    @property
    def with_ids(self) -> bool:
        """Whether the codes carry ids."""
        return self.manifest.with_ids

    def chunk(self, number: int) -> CodeRows:
        """One chunk, checked; errors as of `CodesFile.chunk`."""
        part, within = divmod(number, self.manifest.parts.rows // CHUNK_ROWS)
        return self._part(part).chunk(within)

    def _part(self, number: int) -> CodesFile:
        if self._open is None or self._open[0] != number:
            self.close()
            self._open = number, self._stack.enter_context(open_codes_file(part_path(self.path, number)))
        return self._open[1]

    def close(self) -> None:
        """Close the part that is open."""
        self._open = None
        self._stack.close()


@contextlib.contextmanager
def open_codes(path: str | Path) -> Iterator[StoredCodes]:
    """Open codes: a file of them, or a folder of parts, which is read as one.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, unfinished, or another kind of artifact.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = Path(path)
    if not path.is_dir():
        with open_codes_file(path) as file:
            yield file
        return
    codes = CodesFolder(path)
    try:
        yield codes
    finally:
        codes.close()
