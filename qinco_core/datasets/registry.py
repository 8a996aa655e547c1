"""What has a name: data sets and published files, from the package's own registry and the user's.

A registry is a TOML file; `docs/datasets.md` describes its keys. N vectors of D dimensions.
"""

from __future__ import annotations

import difflib
import itertools
import os
import posixpath
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import unquote, urlsplit

import numpy as np
from pydantic import ConfigDict, Field, field_validator, model_validator

from qinco_core.config import Frozen, Metric
from qinco_core.errors import UsageError
from qinco_core.files import existing_file

Part = Literal["train", "base", "queries", "groundtruth"]
PARTS: tuple[Part, ...] = get_args(Part)
PUBLISHED = Path(__file__).with_name("published.toml")

_SCHEMES = ("http", "https", "ftp")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_TAR = (".tar", ".tar.gz", ".tgz")
# what the cache calls files of its own; `.` and `..` are among them
_OURS = re.compile(r"\..*|checksums\.json|.*\.(partial|partial\.json|download|damaged)")
# the type in a file (None: any), bytes before each row, bytes before the first row
_FORMATS: dict[str, tuple[str | None, int, int]] = {
    "fvecs": ("float32", 4, 0),
    "bvecs": ("uint8", 4, 0),
    "ivecs": ("int32", 4, 0),
    "fbin": ("float32", 0, 8),
    "u8bin": ("uint8", 0, 8),
    "i8bin": ("int8", 0, 8),
    "ibin": ("int32", 0, 8),
    "npy": (None, 0, 128),
}
DType = Literal["float16", "float32", "float64", "uint8", "int8", "int32", "int64"]


class FileSpec(Frozen):
    """Where a file of vectors is, and what is known of it.

    Attributes:
        source: an address (http, https, ftp), or a path, relative to the registry's file. A source that ends in
            `.gz` is unpacked when it is fetched.
        format: where the extension does not tell.
        key: the dataset's key, in an HDF5 file.
        member: the file to take, where the source is a tar archive.
        skip, limit: rows passed over, and rows used at most.
        count, dim, dtype: N, D (by default the set's) and type of the vectors, where they are known before.
        sha256: of the source, as it is downloaded.
    """

    model_config = ConfigDict(strict=True)

    source: str = Field(min_length=1)
    format: str | None = None
    key: str | None = None
    member: str | None = None
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    count: int | None = Field(default=None, ge=1)
    dim: int | None = Field(default=None, ge=1)
    dtype: DType | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="before")
    @classmethod
    def _from_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("member")
    @classmethod
    def _one_spelling(cls, member: str | None) -> str | None:
        return None if member is None else posixpath.normpath(member)

    @model_validator(mode="after")
    def _check(self) -> Self:
        scheme, separator, _ = self.source.partition("://")
        if separator and scheme not in _SCHEMES:
            raise ValueError(f"source: {self.source} cannot be fetched; there are {', '.join(_SCHEMES)}, and paths")
        _check_source(self.source, self.remote)
        if self.remote and not (_server(self.source) and self.name):
            raise ValueError(f"source: {self.source} names no file on a server")
        if self.tar and self.member is None:
            raise ValueError(f"member: say which file of the archive {self.name} it is")
        if self.member is not None and not self.tar:
            raise ValueError(f"member: only of a tar archive, and {self.name} is none")
        if self.tar and not self.unpacked_name:
            raise ValueError(f"member: {self.member} is no file of an archive")
        if not self.remote and (self.tar or self.name.endswith(".gz")):
            raise ValueError(f"source: {self.source} is packed; unpack your own files, or name an address")
        for name in (self.name, self.unpacked_name) if self.remote else ():
            if _OURS.fullmatch(name):
                raise ValueError(f"source: files in the cache cannot be called {name}, which is kept for its own")
        return self

    @property
    def remote(self) -> bool:
        """Whether it has to be fetched."""
        return is_remote(self.source)

    @property
    def name(self) -> str:
        """The file's name at the source."""
        if self.remote:
            return PurePosixPath(unquote(urlsplit(self.source).path)).name
        return Path(self.source).name

    @property
    def tar(self) -> bool:
        """Whether the source is a tar archive."""
        return self.name.lower().endswith(_TAR)

    @property
    def packed(self) -> bool:
        """Whether the source has to be unpacked."""
        return self.tar or self.name.lower().endswith(".gz")

    @property
    def unpacked_name(self) -> str:
        """The name of the file that is used."""
        if self.tar:
            return PurePosixPath(str(self.member)).name
        return self.name[: -len(".gz")] if self.packed else self.name

    @property
    def bytes(self) -> int | None:
        """The size of the file that is used, where count, dim and type tell."""
        name = self.format or PurePosixPath(self.unpacked_name).suffix.removeprefix(".").lower()
        if name not in _FORMATS or self.count is None or self.dim is None:
            return None
        holds, before_row, header = _FORMATS[name]
        dtype = holds or self.dtype
        return None if dtype is None else header + self.count * (before_row + self.dim * np.dtype(dtype).itemsize)


def is_remote(source: str) -> bool:
    """Whether a source is an address, and no path."""
    return "://" in source


def _check_source(source: str, remote: bool) -> None:
    """Refuse control characters and, in a path, `::` and a user that there is not.

    Raises:
        ValueError: the source has one of these.
    """
    if any(unicodedata.category(c) == "Cc" for c in (unquote(source) if remote else source)):
        raise ValueError(f"source: {source!r} has control characters")
    if remote:
        return
    if "::" in source:
        raise ValueError(f"source: {source}: name what is in the file with key, not with ::")
    try:
        Path(source).expanduser()
    except RuntimeError as error:
        raise ValueError(f"source: {source}: there is no such user") from error


def _server(source: str) -> bool:
    """Whether an address has a server, and a port that can be."""
    try:
        return bool(urlsplit(source).hostname) and urlsplit(source).port != 0
    except ValueError:
        return False


class SetSpec(Frozen):
    """A data set.

    Attributes:
        about: a few words.
        dim: D of its vectors.
        metric: by which its ground truth is nearest.
        mse_scale: papers report its MSE times this.
        limit: base vectors used.
        train, base, queries, groundtruth: its parts.
    """

    model_config = ConfigDict(strict=True)

    about: str = ""
    dim: int = Field(ge=1)
    metric: Metric = "l2"
    mse_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    limit: int | None = Field(default=None, ge=1)
    train: FileSpec | None = None
    base: FileSpec
    queries: FileSpec | None = None
    groundtruth: FileSpec | None = None


class PublishedSpec(Frozen):
    """Published files of one kind: a name, which may have {fields}, the values of these, and the address."""

    model_config = ConfigDict(strict=True)

    name: str
    kind: Literal["model", "centroids", "pairwise"]
    source: str
    about: str = ""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    values: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = set(re.findall(r"{(\w+)}", self.name))
        if fields != self.values.keys():
            raise ValueError(f"values: the name {self.name} has the fields {sorted(fields)}: give values for these")
        if unknown := set(re.findall(r"{(.*?)}", self.source)) - fields - {"name"}:
            raise ValueError(f"source: {{{min(unknown)}}} is no field of the name {self.name}")
        if fields and self.sha256:
            raise ValueError("sha256: is of one file, and this names several")
        return self

    def expand(self) -> Iterator[tuple[str, FileSpec]]:
        """Every single name with its file."""
        for values in itertools.product(*self.values.values()):
            fields = dict(zip(self.values, values, strict=True))
            name = _filled(self.name, fields)
            source = _filled(self.source, fields | {"name": name})
            yield name, FileSpec.parse({"source": source, "sha256": self.sha256})


class _RegistryFile(Frozen):
    model_config = ConfigDict(strict=True)

    datasets: dict[str, SetSpec] = Field(default={})
    files: list[PublishedSpec] = Field(default=[])


@dataclass(frozen=True)
class Entry:
    """What a name stands for: a data set with its parts, or one published file, the part `file`.

    Attributes:
        name, about: itself, in a few words.
        kind: "data set", "model", "centroids", "pairwise".
        files: its parts, with absolute paths where they are no addresses.
        spec: of a data set.
        origin: the registry's file.
    """

    name: str
    kind: str
    about: str
    files: Mapping[str, FileSpec]
    spec: SetSpec | None
    origin: Path


def load_registry() -> dict[str, Entry]:
    """Everything that has a name: the package's registry, `$QINCO_DATASETS`, and the user's `datasets.toml`.

    Raises:
        InputNotFoundError: `$QINCO_DATASETS` names no file.
        UsageError: a file is malformed, or a name is defined twice; names file and field.
    """
    entries: dict[str, Entry] = {}
    for path in registry_files():
        for entry in read_registry(path):
            if entry.name in entries:
                first = entries[entry.name].origin
                raise UsageError(f"{path}: {entry.name} is defined in {first} already; give it another name")
            entries[entry.name] = entry
    return entries


def registry_files() -> list[Path]:
    """The files that names come from."""
    import platformdirs

    files = [PUBLISHED]
    if named := os.environ.get("QINCO_DATASETS"):
        files.append(existing_file(named))
    personal = Path(platformdirs.user_config_dir("qinco")) / "datasets.toml"
    if personal.is_file():
        files.append(personal)
    return list({path.resolve(): path for path in files}.values())


def read_registry(path: Path) -> list[Entry]:
    """The entries of one registry file.

    Raises:
        UsageError: it is no TOML, or a field is unknown, missing or wrong; names file and field.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} is no TOML file that can be read: {error}") from error
    try:
        return list(_entries(_RegistryFile.parse(content), path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}; docs/datasets.md lists the fields") from error


def _entries(content: _RegistryFile, path: Path) -> Iterator[Entry]:
    for name, spec in content.datasets.items():
        files: dict[str, FileSpec] = {}
        for part in PARTS:
            file: FileSpec | None = getattr(spec, part)
            if file is not None:
                own_dim = None if part == "groundtruth" else spec.dim
                files[part] = _anchored(file, path.parent).model_copy(update={"dim": file.dim or own_dim})
        _check_name(name)
        _check_digests(name, files)
        yield Entry(name, "data set", spec.about, files, spec, path)
    seen: set[str] = set(content.datasets)
    for pattern in content.files:
        for name, file in pattern.expand():
            _check_name(name)
            if name in seen:
                raise UsageError(f"{name} is defined twice")
            seen.add(name)
            yield Entry(name, pattern.kind, pattern.about, {"file": _anchored(file, path.parent)}, None, path)


def _anchored(file: FileSpec, folder: Path) -> FileSpec:
    if file.remote:
        return file
    return file.model_copy(update={"source": str(folder.resolve() / Path(file.source).expanduser())})


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name: use letters, digits, - _ and ., and begin with a letter or digit")


def _check_digests(name: str, files: Mapping[str, FileSpec]) -> None:
    known: dict[str, str] = {}
    for part, file in files.items():
        if file.sha256 and known.setdefault(file.source, file.sha256) != file.sha256:
            raise UsageError(f"datasets.{name}.{part}.sha256: another part gives another one for {file.source}")


def _filled(pattern: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda found: fields[found[1]], pattern)


def find_entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: there is none; the message suggests similar ones.
    """
    entries = load_registry()
    if name not in entries:
        hint = "qinco fetch --list shows what there is"
        if near := similar(name, entries):
            hint = f"did you mean {' or '.join(near)}?"
        raise UsageError(f"nothing is called {name!r}: {hint}")
    return entries[name]


def similar(name: str, entries: Mapping[str, Entry]) -> list[str]:
    """The names that `name` may have been meant to be, at most three."""
    lower = {known.lower(): known for known in entries}
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.75)]


def check_part(part: str, entry: Entry) -> Part:
    """The part of a data set that is called so.

    Raises:
        UsageError: no part is, or the set lacks it.
    """
    if entry.spec is None:
        raise UsageError(f"{entry.name} is a file of the kind {entry.kind}, not a data set: it has no parts")
    if part not in PARTS:
        raise UsageError(f"no part {part!r} of a data set; there are {', '.join(PARTS)}")
    if part not in entry.files:
        raise UsageError(
            f"the data set {entry.name} has no part {part!r}: name a file, "
            f"or add datasets.{entry.name}.{part} to {entry.origin}"
        )
    return part
