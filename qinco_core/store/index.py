"""Artifact kind *index*: a folder with a manifest and, beside it, flat arrays that searches map into memory.

Entries lie in the order of their lists: list l has the entries offsets[l] to offsets[l + 1] - 1. A rewritten index
gets new array files of the next generation before its manifest is replaced, so a reader sees the old index or the
new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import ArtifactError, InputNotFoundError, OutputExistsError, StorageError, UsageError
from qinco_core.files import existing_file, storage_errors, write_all
from qinco_core.store.arrays import Entry, read_arrays, read_json, write_arrays
from qinco_core.store.artifact import (
    DIGEST_BYTES,
    Header,
    Parent,
    canonical_json,
    create_artifact,
    damage_is_error,
    fingerprint_of,
    open_artifact,
    read_header,
)

KIND = "index"
MANIFEST = "manifest.h5"
# files of some generation; others in the folder are not ours to remove
_OURS = re.compile(r"(codes|ids|norms|pair_norms|index)\.\d{4,}\.(npy|faiss)")
_SHARDS = re.compile(r"shards\.(\d{4,})")
Array = NDArray[Any]


@dataclass(frozen=True)
class StoredIndex:
    """An index as stored.

    Attributes:
        folder: where it lies.
        config: what was given to `save_manifest`.
        arrays: the small arrays of the manifest.
        flat: the flat arrays by name, mapped read-only.
        front: operating points that `qinco tune` found.
    """

    folder: Path
    header: Header
    config: dict[str, Any]
    arrays: dict[str, Array]
    flat: dict[str, Array]
    front: list[dict[str, Any]]

    @property
    def generation(self) -> int:
        """Number of times the array files were written."""
        return int(self.config["generation"])

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        return self.folder / str(self.config["files"][name]["name"])


class FlatWriter:
    """Writes one .npy file of known shape front to back; `entry` is its line in the manifest."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path = path
        self._shape, self._dtype = shape, np.dtype(dtype).newbyteorder("<")
        self._rows = 0
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        with storage_errors(path):
            self._handle = path.open("wb", buffering=0)
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._handle, header)

    def append(self, rows: Array) -> None:
        """Write more rows.

        Raises:
            StorageError: the disk is full.
        """
        data = np.ascontiguousarray(rows, dtype=self._dtype)
        if data.size:
            self._hash.update(data.reshape(-1).view(np.uint8).data)
            with storage_errors(self.path):
                write_all(self._handle, data)
        self._rows += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self._rows != self._shape[0]:
                    raise ArtifactError(f"{self.path} got {self._rows} of {self._shape[0]} rows; build the index again")
                with storage_errors(self.path):
                    os.fsync(self._handle.fileno())
        finally:
            self._handle.close()

    @property
    def entry(self) -> dict[str, Any]:
        """Name, shape, dtype and digest, for the manifest."""
        described = {"name": self.path.name, "shape": list(self._shape), "dtype": self._dtype.str}
        return described | {"digest": self._hash.hexdigest()}


def file_entry(path: Path) -> dict[str, Any]:
    """The manifest's line of a file that is not an array: its name, size and digest."""
    with path.open("rb") as handle:
        mark = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "digest": mark}


@contextlib.contextmanager
def locked(folder: Path, *, new: bool, force: bool) -> Iterator[None]:
    """Be the only writer of an index; with `new`, of one that is not there yet, unless `force`.

    Where no index comes of it, folders that were made for it go again.

    Raises:
        OutputExistsError: there is one, or another process is writing it.
        InputNotFoundError: there is none, and `new` is false.
        StorageError: the folder cannot be made or written.
    """
    if not new:
        existing_index(folder)
    lock = folder / ".lock"
    with storage_errors(folder):
        made = _make_folder(folder)
        handle = lock.open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(handle.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:  # held by another, or removed by one that built nothing
            raise OutputExistsError(f"{folder} is being written by another process; wait for it")
        try:
            if new and not force and (folder / MANIFEST).exists():
                raise OutputExistsError(f"{folder} holds an index; replace it with --force, or add to it with --add")
            yield
        finally:
            if not (folder / MANIFEST).exists():
                lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # one that is not empty any more stays
                    for place in made:
                        place.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Make the folder, and give all folders that this made, the innermost first."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputExistsError(f"{folder} is a file; an index is a folder: name another") from error
    except NotADirectoryError as error:
        raise StorageError(f"{folder} would lie inside a file, not a folder; choose another output") from error
    return made


def manifest_of(path: str | Path) -> Path:
    """The manifest where `path` is the folder of an index, else `path`."""
    path = Path(path)
    return path / MANIFEST if (path / MANIFEST).is_file() else path


def existing_index(folder: str | Path) -> Path:
    """The folder of an index, given it or its manifest.

    Raises:
        InputNotFoundError: there is no index.
    """
    folder = Path(folder)
    if folder.name == MANIFEST:
        folder = folder.parent
    if not (folder / MANIFEST).is_file():
        raise InputNotFoundError(f"{folder} holds no index; make one with qinco index")
    return folder


def save_manifest(
    folder: Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, Array],
    parents: tuple[Parent, ...],
    front: list[dict[str, Any]] | None = None,
) -> Header:
    """Put the manifest in place, and remove array files of other generations. The caller holds `locked`.

    `config["files"]` names the flat files. The fingerprint covers config and arrays, not the front.

    Raises:
        StorageError: the disk is full or read-only.
    """
    fields = dict(config)
    with create_artifact(folder / MANIFEST, force=True) as out:
        entries = write_arrays(out, "arrays", arrays)
        out.text("front", canonical_json({"points": front or []}))
        out.finish(KIND, _fingerprint(fields, entries), fields, parents)
    remove_unnamed(folder)
    return out.header


def remove_unnamed(folder: Path) -> None:
    """Remove files, and shards, of other generations than the manifest's. The caller holds `locked`.

    Raises:
        ArtifactError: the manifest is damaged, and all files stay.
    """
    named, generation = set(), None
    if (folder / MANIFEST).exists():
        config = read_header(folder / MANIFEST).config
        named = {entry["name"] for entry in config["files"].values()}
        generation = config["generation"] if "shards" in config else None
    for path in folder.iterdir():
        shards = _SHARDS.fullmatch(path.name)
        if shards and int(shards[1]) != generation and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def load_index(folder: str | Path) -> StoredIndex:
    """Read the manifest, checked, and map the flat arrays; of these and other files only sizes are checked.

    Raises:
        InputNotFoundError: there is no index.
        ArtifactError: the manifest is damaged, or an array is missing, truncated or of another shape.
        ArtifactVersionError: a newer qinco wrote it.
    """
    folder = existing_index(folder)
    while True:
        before = (folder / MANIFEST).stat()
        try:
            return _load(folder)
        except ArtifactError:
            # a writer may have put a new manifest in place, and removed the arrays of the one just read
            if (folder / MANIFEST).stat().st_ino == before.st_ino:
                raise


def _load(folder: Path) -> StoredIndex:
    path = folder / MANIFEST
    with open_artifact(path, KIND) as (file, header), damage_is_error(path):
        arrays, entries = read_arrays(file, "arrays", path)
        if _fingerprint(header.config, entries) != header.fingerprint:
            raise ArtifactError(f"{path} is corrupted: its content does not have its fingerprint; build it again")
        front = list(read_json(file, "front", path)["points"])
        flat = {}
        for name, entry in header.config["files"].items():
            if "shape" in entry:
                flat[name] = _mapped(folder / entry["name"], entry)
            else:
                _sized(folder / entry["name"], entry)
    return StoredIndex(folder, header, header.config, arrays, flat, front)


def _mapped(path: Path, entry: dict[str, Any]) -> Array:
    shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
    if 0 in shape:
        return np.empty(shape, dtype)
    try:
        array: Array = np.load(existing_file(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(f"{path} is missing, truncated or damaged ({error}); build the index again") from error
    if array.shape != shape or array.dtype != dtype:
        raise ArtifactError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape}; build the index again")
    return array


def _sized(path: Path, entry: dict[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size != entry["bytes"]:
        raise ArtifactError(f"{path} is missing or truncated: {size} of {entry['bytes']} bytes; build the index again")


def check_files(index: StoredIndex) -> list[tuple[str, bool]]:
    """Whether each file of the index has its digest: names and outcomes. Reads all of them."""
    outcomes = []
    for entry in index.config["files"].values():
        path = index.folder / entry["name"]
        if "shape" in entry:
            state = hashlib.blake2b(digest_size=DIGEST_BYTES)
            array = _mapped(path, entry)
            rows = max(1, (1 << 24) // max(1, array[:1].nbytes))
            for start in range(0, len(array), rows):
                state.update(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data)
            outcomes.append((entry["name"], state.hexdigest() == entry["digest"]))
        else:
            outcomes.append((entry["name"], file_entry(existing_file(path)) == entry))
    return outcomes


def _fingerprint(config: Mapping[str, Any], entries: list[Entry]) -> str:
    return fingerprint_of({"kind": KIND, "config": config, "arrays": entries})


def smallest_ids(largest: int) -> np.dtype[Any]:
    """The dtype that ids up to `largest` are stored in.

    Raises:
        UsageError: an id is negative.
    """
    if largest < -1:
        raise UsageError("ids are 0 or more")
    return np.dtype("<i4" if largest <= np.iinfo(np.int32).max else "<i8")
