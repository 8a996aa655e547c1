"""What all artifacts share: an HDF5 file whose root attributes say what it is and where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from qinco_core.errors import ArtifactError, ArtifactVersionError, QincoError, StorageError, UsageError
from qinco_core.files import atomic_output, existing_file
from qinco_core.hdf5 import HDF5Writer, create_hdf5

FORMAT_VERSION = 1
DIGEST_BYTES = 16
SIGNATURE = b"\x89HDF\r\n\x1a\n"

_DAMAGE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)


@dataclass(frozen=True)
class Parent:
    """An artifact that another was made from."""

    kind: str
    fingerprint: str


@dataclass(frozen=True)
class Header:
    """What an artifact says of itself; `fingerprint` covers the content that matters, and not the time."""

    kind: str
    format_version: int
    fingerprint: str
    created: str
    writer: str
    config: dict[str, Any]
    parents: tuple[Parent, ...]


def digest(*buffers: Any) -> str:
    """BLAKE2b-128 of the concatenated buffers, as 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for buffer in buffers:
        state.update(buffer)
    return state.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only, so that equal values are equal text.

    Raises:
        UsageError: the value holds something JSON has not, such as NaN.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"this cannot be stored as JSON: {error}") from error


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it comes back from JSON: text keys, and lists for tuples.

    Raises:
        UsageError: the value holds something JSON has not.
    """
    return dict(json.loads(canonical_json(dict(value))))


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """The fingerprint of content described by a JSON object."""
    return digest(canonical_json(content).encode())


def writer_version() -> str:
    """The version of qinco that runs."""
    try:
        return importlib.metadata.version("qinco")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def refuse_newer(what: str, version: int, writer: str) -> None:
    """Refuse a format of the future.

    Raises:
        ArtifactVersionError: `version` is above `FORMAT_VERSION`; the message names the qinco to install.
    """
    if version > FORMAT_VERSION:
        raise ArtifactVersionError(
            f"{what} has format version {version}, and this qinco ({writer_version()}) reads up to "
            f"{FORMAT_VERSION}; install the one that wrote it: pip install 'qinco>={writer}'"
        )


@contextlib.contextmanager
def damage_is_error(path: Path) -> Iterator[None]:
    """Turn whatever a corrupted file at `path` makes h5py raise into an `ArtifactError`."""
    try:
        yield
    except QincoError as error:
        if isinstance(error, UsageError):  # a stored configuration that no configuration can be
            raise ArtifactError(f"{path} is corrupted: {error}; make it again") from error
        raise
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is corrupted, or no artifact of qinco: {error}; make it again") from error


@contextlib.contextmanager
def open_artifact(path: str | Path, kind: str | None = None) -> Iterator[tuple[h5py.File, Header]]:
    """Open an artifact for reading and give its HDF5 file and header.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted, foreign, or not of `kind`.
        ArtifactVersionError: a newer qinco wrote it.
    """
    path = existing_file(path)
    if first_bytes(path, len(SIGNATURE)) != SIGNATURE:
        raise ArtifactError(f"{path} is not an artifact of qinco (not HDF5); check the path")
    with contextlib.ExitStack() as stack:
        with damage_is_error(path):
            # the lock would refuse read-only and network disks; the rename already keeps readers safe
            file = stack.enter_context(h5py.File(path, "r", locking=False))
            header = _header(file, path)
        if kind is not None and header.kind != kind:
            raise ArtifactError(f"{path} holds {header.kind}, not {kind}; name a file of {kind}")
        yield file, header


def read_header(path: str | Path) -> Header:
    """The header of an artifact of any kind; its content is not checked.

    Raises:
        InputNotFoundError: it is not there.
        ArtifactError: it is corrupted or foreign.
        ArtifactVersionError: a newer qinco wrote it.
    """
    with open_artifact(path) as (_, header):
        return header


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return handle.read(count)
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error}); check its permissions") from error


def text(value: Any) -> str:
    """A string of HDF5, of fixed or variable length."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _header(file: h5py.File, path: Path) -> Header:
    attributes = file.attrs
    if "kind" not in attributes or "format_version" not in attributes:
        raise ArtifactError(
            f"{path} is HDF5 but no artifact of qinco; check the path, or for vectors name the dataset: {path}::KEY"
        )
    version, writer = int(attributes["format_version"]), text(attributes.get("writer", "?"))
    refuse_newer(str(path), version, writer)
    if version < 1:
        raise ArtifactError(f"{path} is corrupted: format version {version}; make it again")
    config = json.loads(text(attributes["config"]))
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} is corrupted: its config is no JSON object; make it again")
    return Header(
        kind=text(attributes["kind"]),
        format_version=version,
        fingerprint=text(attributes["fingerprint"]),
        created=text(attributes["created"]),
        writer=writer,
        config=config,
        parents=tuple(Parent(**parent) for parent in json.loads(text(attributes["parents"]))),
    )


class ArtifactWriter(HDF5Writer):
    """Lays out an artifact and writes its data; made by `create_artifact`."""

    def __init__(self, handle: BinaryIO, layout: h5py.File) -> None:
        super().__init__(handle, layout)
        self._header: Header | None = None

    def group(self, name: str) -> None:
        """Make a group, so that it is there also when nothing is in it."""
        self.layout.create_group(name)

    def text(self, name: str, value: str) -> None:
        """Write a string dataset with its digest."""
        raw = value.encode()
        dataset = self.dataset(name, (), h5py.string_dtype("utf-8", len(raw)))
        self.write(dataset, np.frombuffer(raw, np.uint8))
        self.attribute(dataset, "digest", digest(raw))

    @staticmethod
    def attribute(owner: h5py.Dataset | h5py.File, name: str, value: str) -> None:
        """Set a string attribute; fixed length keeps it inside the checksummed object header."""
        owner.attrs.create(name, value, dtype=h5py.string_dtype("utf-8", len(value.encode())))

    def finish(
        self,
        kind: str,
        fingerprint: str,
        config: dict[str, Any],
        parents: tuple[Parent, ...],
        created: str | None = None,
    ) -> None:
        """Write the header; without it the artifact is not put in place. `created` is now, unless it is given."""
        created = created or datetime.now(UTC).isoformat(timespec="seconds")
        header = Header(kind, FORMAT_VERSION, fingerprint, created, writer_version(), config, parents)
        for name in ("kind", "fingerprint", "created", "writer"):
            self.attribute(self.layout, name, getattr(header, name))
        self.attribute(self.layout, "config", canonical_json(config))
        self.attribute(self.layout, "parents", canonical_json([asdict(parent) for parent in parents]))
        self.layout.attrs.create("format_version", FORMAT_VERSION, dtype="<i4")
        self._header = header

    @property
    def header(self) -> Header:
        """The header that `finish` wrote."""
        if self._header is None:
            raise RuntimeError("finish() was not called")
        return self._header


@contextlib.contextmanager
def create_artifact(path: str | Path, *, force: bool = False) -> Iterator[ArtifactWriter]:
    """Write an artifact that appears at `path` when the block ends well.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
        StorageError: the disk is full or read-only.
    """
    with (
        atomic_output(path, force=force) as temporary,
        temporary.open("wb", buffering=0) as handle,
        create_hdf5(handle, ArtifactWriter) as writer,
    ):
        yield writer
        _ = writer.header
