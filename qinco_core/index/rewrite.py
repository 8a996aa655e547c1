"""Writing an index: its array files, then the manifest that names them and what they were made from.

Shapes: M symbols, K codewords, D dimension.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.errors import ArtifactError, DependencyError, InputNotFoundError, LineageError
from qinco_core.index.build import Estimator, Scale
from qinco_core.index.coarse import Coarse
from qinco_core.index.lists import EntrySource, count_lists, write_lists
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.probe import group_centroids
from qinco_core.memory import share
from qinco_core.progress import Progress
from qinco_core.store import Header, Parent, Store, read_header
from qinco_core.store.folder import codes_header
from qinco_core.store.index import StoredIndex, file_entry, remove_unnamed, save_manifest, smallest_ids

# an HNSW graph over fewer centroids than this is of no use
GRAPH_FROM = 256
# what sorting takes where nothing else is said and memory is not short
_MEMORY = 1 << 30
Origin = tuple[Parent, Path | None]


class Writer:
    """Writes one generation of an index; the caller holds `store.index.locked`."""

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        additive_MKD: NDArray[np.float32],
        pairwise: Pairwise | None,
        memory: int | None,
    ) -> None:
        self._folder, self._codec = folder, codec
        self._memory = share(_MEMORY) if memory is None else memory
        self._additive, self._pairwise = additive_MKD, pairwise
        self.centroids = _centroids(codec)
        self.estimator = Estimator(codec, self.centroids, additive_MKD, pairwise)

    def beside(self, folder: Path) -> Writer:
        """A writer of an index of the same model and decoders elsewhere."""
        return Writer(folder, self._codec, self._additive, self._pairwise, self._memory)

    def create(
        self,
        sources: Sequence[EntrySource],
        scales: dict[str, Scale],
        origins: Sequence[Origin],
        progress: Progress,
        like: StoredIndex | None = None,
    ) -> Header:
        """Write a new index, in place of one that may be there; with groups and graph of the centroids as in `like`."""
        generation = 1 + max((_generation(path) for path in self._folder.glob("*.npy")), default=0)
        fields = {
            "model": self._codec.config.model_dump(mode="json"),
            "scales": {look: asdict(scale) for look, scale in scales.items()},
            "sources": [recorded(parent, path, self._folder) for parent, path in origins],
        }
        groups = like.arrays["groups"] if like else group_centroids(self.centroids, self._codec.plan.threads)
        arrays = {"centroids": self.centroids, "groups": groups, "additive": self._additive}
        with nothing_left_of_failure(self._folder):
            fields["files"] = self._graph(generation, progress, like)
            return self._write(sources, fields, arrays, generation, tuple(parent for parent, _ in origins), progress)

    def _graph(self, generation: int, progress: Progress, like: StoredIndex | None) -> dict[str, Any]:
        graph = self._folder / f"index.{generation:04}.faiss"
        if like is not None and "coarse" in like.config["files"]:
            shutil.copyfile(like.file("coarse"), graph)
            return {"coarse": file_entry(graph)}
        if like is not None or len(self.centroids) < GRAPH_FROM:
            return {}
        progress.note("building the HNSW graph of the centroids")
        try:
            Coarse(self.centroids, threads=self._codec.plan.threads, device="cpu").save_hnsw(graph, force=True)
        except DependencyError as error:
            progress.note(f"no graph, so searches cannot use --ef: {error}")
            return {}
        return {"coarse": file_entry(graph)}

    def rewrite(
        self,
        stored: StoredIndex,
        sources: Sequence[EntrySource],
        scales: dict[str, Scale],
        more: Sequence[Origin],
        progress: Progress,
    ) -> Header:
        """Write the next generation of an index from these sources; operating points are dropped."""
        fields = stored.config | {"scales": {look: asdict(scale) for look, scale in scales.items()}}
        fields["sources"] = fields["sources"] + [recorded(parent, path, self._folder) for parent, path in more]
        arrays = {name: array for name, array in stored.arrays.items() if name != "offsets"}
        parents = stored.header.parents + tuple(parent for parent, _ in more)
        with nothing_left_of_failure(self._folder):
            return self._write(sources, fields, arrays, stored.generation + 1, parents, progress)

    def _write(
        self,
        sources: Sequence[EntrySource],
        fields: dict[str, Any],
        arrays: dict[str, NDArray[Any]],
        generation: int,
        parents: tuple[Parent, ...],
        progress: Progress,
    ) -> Header:
        counts, largest = count_lists(sources, len(self.centroids))
        scales = {look: Scale(**scale) for look, scale in fields["scales"].items()}
        columns = self.estimator.columns(smallest_ids(largest), scales)
        written = write_lists(
            sources,
            counts,
            columns,
            lambda name: self._folder / f"{name}.{generation:04}.npy",
            self._memory,
            progress,
        )
        kept = {name: entry for name, entry in fields["files"].items() if "shape" not in entry}
        config = fields | {"generation": generation, "max_id": largest, "files": kept | written}
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return save_manifest(self._folder, config, arrays | {"offsets": offsets}, parents)


@contextlib.contextmanager
def nothing_left_of_failure(folder: Path) -> Iterator[None]:
    """Remove the new files when the block raises: they may be what filled the disk."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ArtifactError, OSError):  # what went wrong first is what matters
            remove_unnamed(folder)
        raise


def identity(header: Header) -> Parent:
    """What an artifact is, as its children name it."""
    return Parent(header.kind, header.fingerprint)


def _generation(path: Path) -> int:
    middle = path.name.split(".")[-2]
    return int(middle) if middle.isdigit() else 0


def _centroids(codec: Codec) -> NDArray[np.float32]:
    """Where residuals start: the coarse centroids, or without an IVF the mean of all vectors, [L, D]."""
    centroids = codec.centroids
    if centroids is None:
        centroids = codec.network.mean.detach().float().cpu().numpy()[None]
    return np.ascontiguousarray(centroids, dtype=np.float32)


def recorded(parent: Parent, path: Path | None, folder: Path) -> dict[str, Any]:
    """An origin in the manifest; its path is from the index's folder, so that both can move together."""
    place = None if path is None else os.path.relpath(path.resolve(), folder.resolve())
    return {"kind": parent.kind, "fingerprint": parent.fingerprint, "path": place}


def origins(stored: StoredIndex, kind: str) -> list[Origin]:
    """What an index was made from, of one kind, and where that was."""
    return [
        (Parent(kind, source["fingerprint"]), _place(stored.folder, source["path"]))
        for source in stored.config["sources"]
        if source["kind"] == kind
    ]


def _place(folder: Path, path: str | None) -> Path | None:
    """A recorded path from here."""
    return None if path is None else Path(os.path.normpath(folder / path))


def centroids_of(codec: Codec) -> list[Origin]:
    """The centroids that a model was trained behind, and where they are if they lie beside it; none without an IVF."""
    assert codec.header is not None
    found: list[Origin] = []
    for parent in codec.header.parents:
        if parent.kind == "centroids":
            path = None if codec.path is None else Store(codec.path.parent).centroids
            there = path is not None and path.is_file() and read_header(path).fingerprint == parent.fingerprint
            found.append((parent, path if there else None))
    return found


def needed(stored: StoredIndex, parent: Parent, path: Path | None) -> Path:
    """Where something is that an index cannot do without, unchanged.

    Raises:
        InputNotFoundError: it is gone.
        LineageError: it is another now.
    """
    if path is None or not path.exists():
        raise InputNotFoundError(
            f"{stored.folder} needs the {parent.kind} {parent.fingerprint}, "
            f"{'whose place is not known' if path is None else f'which is not at {path}'}: "
            f"say where it is with --{parent.kind}"
        )
    unchanged(stored, parent, path)
    return path


def unchanged(stored: StoredIndex, parent: Parent, path: Path | None) -> None:
    """Check that what an index was made from has not been replaced where it was.

    Raises:
        LineageError: it is another now; the message says what to build again.
    """
    if path is None or not path.exists():
        return
    found = codes_header(path)
    if found.fingerprint != parent.fingerprint or found.kind != parent.kind:
        raise LineageError(
            f"{path} was replaced since {stored.folder} was made: it is the {found.kind} {found.fingerprint} now, not "
            f"{parent.kind} {parent.fingerprint}; build the index again: qinco index --force"
        )
