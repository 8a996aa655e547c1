"""Files by the names of data sets: `bigann1M` wherever vectors are asked for, `bigann1M::queries` for a part of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qinco_core.config import Metric
from qinco_core.datasets.cache import cache_root, cached_paths, check_size, local_path
from qinco_core.datasets.registry import (
    PARTS,
    Entry,
    FileSpec,
    Part,
    SetSpec,
    check_part,
    find_entry,
    load_registry,
    similar,
)
from qinco_core.errors import DimensionError, InputNotFoundError, UsageError, VectorFileError
from qinco_core.files import existing_file
from qinco_core.vectors import VectorFile, open_vectors
from qinco_core.vectors.base import check_window
from qinco_core.vectors.remote import is_address

# what the parts are called in the files of ann-benchmarks, and their distances here
_ANN_PARTS: dict[Part, str] = {"train": "learn", "base": "train", "queries": "test", "groundtruth": "neighbors"}
_ANN_METRICS = {"euclidean": "l2", "angular": "cosine", "cosine": "cosine", "dot": "ip", "ip": "ip"}


@dataclass(frozen=True)
class Dataset:
    """A data set whose files are here: every part opens as a `VectorFile`."""

    entry: Entry
    cache: Path

    @property
    def name(self) -> str:
        """What it is called."""
        return self.entry.name

    @property
    def spec(self) -> SetSpec:
        """Its dimension, metric, limit and the scale of its MSE."""
        assert self.entry.spec is not None
        return self.entry.spec

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts it has."""
        return tuple(part for part in PARTS if part in self.entry.files)

    def train(self, *, skip: int = 0, limit: int | None = None) -> VectorFile:
        """The training vectors; see `open`."""
        return self.open("train", skip=skip, limit=limit)

    def base(self, *, skip: int = 0, limit: int | None = None) -> VectorFile:
        """The vectors to be searched, no more than the set's limit; see `open`."""
        return self.open("base", skip=skip, limit=limit)

    def queries(self, *, skip: int = 0, limit: int | None = None) -> VectorFile:
        """The queries; see `open`."""
        return self.open("queries", skip=skip, limit=limit)

    def groundtruth(self, *, skip: int = 0, limit: int | None = None) -> VectorFile:
        """The true neighbours of the queries among the base; see `open`."""
        return self.open("groundtruth", skip=skip, limit=limit)

    def open(self, part: Part, *, format: str | None = None, skip: int = 0, limit: int | None = None) -> VectorFile:
        """Rows of a part; `skip` and `limit` count within it.

        Raises:
            UsageError: there is no such part, or nothing is left of it.
            InputNotFoundError: it is not fetched; the message says how.
            ChecksumError: it has not the size it was fetched with.
            DimensionError: its vectors have not the set's dimension.
            VectorFileError: it is damaged.
        """
        check_window(skip, limit)
        file = self.entry.files[check_part(part, self.entry)]
        path = fetched_path(self.entry, part, self.cache)
        available = file.limit
        if part == "base" and self.spec.limit is not None:
            available = min(self.spec.limit, file.limit or self.spec.limit)
        if available is not None:
            if skip >= available:
                raise UsageError(f"{self.name}::{part} has {available} vectors; skipping {skip} leaves none")
            limit = min(available - skip, available if limit is None else limit)
        source = f"{path}::{file.key}" if file.key else path
        opened = open_vectors(source, format=format or file.format, skip=file.skip + skip, limit=limit)
        if part != "groundtruth" and opened.dim != self.spec.dim:
            raise DimensionError(
                f"{opened.name} has dimension {opened.dim}, but the data set {self.name} has {self.spec.dim} "
                f"by {self.entry.origin}: correct one of them"
            )
        return opened


def dataset(name: str | Path, *, cache: str | Path | None = None) -> Dataset:
    """The data set of that name, or an HDF5 file of ann-benchmarks with the datasets train, test and neighbors.

    Raises:
        UsageError: nothing has that name, or it is no data set.
        VectorFileError: the file has no train and test.
    """
    root = cache_root(cache)
    if Path(name).is_file():
        return Dataset(_ann_benchmarks(Path(name)), root)
    if Path(name).suffix.lower() in (".hdf5", ".h5"):
        existing_file(name)
    entry = find_entry(str(name))
    if entry.spec is None:
        raise UsageError(f"{name} is a file of the kind {entry.kind}, not a data set")
    return Dataset(entry, root)


def open_named(
    word: str | Path, part: Part, *, format: str | None = None, skip: int = 0, limit: int | None = None
) -> VectorFile:
    """Vectors from a file or, where no file is called so, of a data set: its `part`, or the one in NAME::PART.

    Raises:
        InputNotFoundError: there is neither; or the set is known, but not fetched. The message says how.
        Everything that `open_vectors` and `Dataset.open` raise.
    """
    name, _, wanted = str(word).partition("::")
    if not is_address(word) and _may_be_name(name):
        entries = load_registry()
        if name in entries:
            entry = entries[name]
            chosen = check_part(wanted or part, entry)
            return Dataset(entry, cache_root()).open(chosen, format=format, skip=skip, limit=limit)
        if near := similar(name, {known: e for known, e in entries.items() if e.spec}):
            raise InputNotFoundError(
                f"{word} does not exist; did you mean the data set {' or '.join(near)}? "
                f"(working directory: {Path.cwd()})"
            )
    return open_vectors(word, format=format, skip=skip, limit=limit)


def find_dataset(word: str) -> Dataset | None:
    """The data set of that very name, if there is one and no file is called so."""
    if not _may_be_name(word):
        return None
    entry = load_registry().get(word)
    return None if entry is None or entry.spec is None else Dataset(entry, cache_root())


def published_file(word: str | Path) -> Path:
    """The path of a fetched model or of centroids by their published name; any other path as it is.

    Raises:
        InputNotFoundError: the name is known, but not fetched; the message says how.
    """
    entry = load_registry().get(str(word)) if _may_be_name(str(word)) else None
    if entry is None or entry.spec is not None:
        return Path(word)
    return fetched_path(entry, "file", cache_root())


def fetched_path(entry: Entry, part: str, cache: Path) -> Path:
    """Where a part of an entry lies, checked to be there.

    Raises:
        InputNotFoundError: it is not; the message says how to fetch it, and its size.
        ChecksumError: it has not the size it was fetched with.
    """
    file = entry.files[part]
    if not file.remote:
        return local_path(file)
    path = cached_paths(entry, cache)[part]
    if not path.is_file():
        raise InputNotFoundError(_not_fetched(entry, part, file, cache))
    check_size(path)
    return path


def _may_be_name(word: str) -> bool:
    # an existing file or folder of that name wins; what has a slash is a path
    return word != "-" and "/" not in word and not Path(word).exists()


def _not_fetched(entry: Entry, part: str, file: FileSpec, cache: Path) -> str:
    size = "" if file.bytes is None else f" ({file.bytes:,} bytes)"
    if entry.spec is None:
        return f"{entry.name} is not in the cache {cache}: get it with qinco fetch {entry.name}{size}"
    return (
        f"the part {part} of the data set {entry.name} is not in the cache {cache}: get it with "
        f"qinco fetch {entry.name} --part {part}{size}, or all of the set with qinco fetch {entry.name}"
    )


def _ann_benchmarks(path: Path) -> Entry:
    """A file of ann-benchmarks as a data set."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            keys: dict[str, Any] = {part: file[key].shape for part, key in _ANN_PARTS.items() if key in file}
            told = file.attrs.get("distance", "euclidean")
            distance = (told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)).lower()
    except (OSError, RuntimeError, AttributeError, KeyError) as error:
        raise VectorFileError(f"{path} cannot be read as an HDF5 file of ann-benchmarks ({error})") from error
    if "base" not in keys or "queries" not in keys or len(keys["base"]) != 2 or 0 in keys["base"]:
        raise VectorFileError(f"{path} has no datasets train and test of vectors, as files of ann-benchmarks have")
    if distance not in _ANN_METRICS:
        raise VectorFileError(f"{path} is of the distance {distance!r}; there are {', '.join(_ANN_METRICS)}")
    files = {
        part: FileSpec.parse({"source": str(path), "format": "hdf5", "key": _ANN_PARTS[cast("Part", part)]})
        for part in keys
    }
    spec = SetSpec(dim=keys["base"][1], metric=cast("Metric", _ANN_METRICS[distance]), base=files["base"])
    return Entry(str(path), "data set", "", files, spec, path)
