"""The library's other class: an index of codes, searched by a cascade.

Shapes: nq queries, D dimension, k results, N entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray

from qinco_core.api import Codec
from qinco_core.config import ModelConfig, SearchConfig
from qinco_core.errors import LineageError, UsageError
from qinco_core.index import tune
from qinco_core.index.build import CodesSource, IndexSource
from qinco_core.index.cascade import Cascade
from qinco_core.index.faiss_export import export_faiss
from qinco_core.index.found import sorted_ids
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.pairwise_fit import FitConfig
from qinco_core.index.rewrite import Origin, Writer, centroids_of, identity, needed, origins, unchanged
from qinco_core.index.searching import Searching
from qinco_core.index.stages import Scorer
from qinco_core.index.training_codes import fit_to_vectors
from qinco_core.progress import Progress, Silent
from qinco_core.store import Header, open_codes, read_header
from qinco_core.store.index import MANIFEST, StoredIndex, existing_index, load_index, locked, save_manifest
from qinco_core.store.shards import KIND as SHARDS
from qinco_core.store.shards import load_shards
from qinco_core.vectors import VectorFile


class Index(Searching):
    """An open index; a context manager. Searches may run in several threads at once.

    Attributes:
        codec: the model of its codes.
        folder: where it lies.
    """

    def __init__(self, stored: StoredIndex, codec: Codec, pairwise: Pairwise | None) -> None:
        self.codec = codec
        self.folder = stored.folder
        self._pairwise = pairwise if pairwise is not None and len(pairwise.tables_TRD) else None
        # the one thing that changes; a search takes it once, and so sees the index as it was or as it is
        self._open: Cascade | None = None
        self._use(stored)

    def _use(self, stored: StoredIndex) -> None:
        self._open = Cascade(stored, self.codec, self._pairwise)

    @property
    def scorer(self) -> Scorer:
        """What scores the entries, as they are now."""
        return self._cascade

    @property
    def _cascade(self) -> Cascade:
        cascade = self._open
        if cascade is None:
            raise UsageError(f"{self.folder} was closed; open it again")
        return cascade

    @property
    def _stored(self) -> StoredIndex:
        return self._cascade.stored

    @classmethod
    def build(
        cls,
        path: str | Path,
        codec: Codec | str | Path,
        codes: str | Path,
        *,
        pairwise: str | Path | None = None,
        train: VectorFile | None = None,
        ids: NDArray[Any] | None = None,
        shards: int | None = None,
        memory: int | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Index:
        """Make an index of codes and open it.

        Args:
            path: the folder to write.
            codec: the model that made the codes, saved; or its path.
            codes: a codes artifact.
            pairwise: a pairwise artifact, which has the additive codebooks too; or
            train: vectors to fit the additive codebooks to; they are encoded here.
            ids: of the codes, integers [N]; by default those in the artifact, or row numbers.
            shards: make as many indexes of consecutive rows each, to be searched as one, by one machine or many
                (`index.sharded`).
            memory: bytes that sorting may take, by default 1 GiB or a quarter of all; more passes where it is little.
            force: replace an index.
            progress: told of every pass.

        Raises:
            LineageError: codes or pairwise decoder are of another model.
            OutputExistsError: there is an index, and `force` is false.
            UsageError: neither `pairwise` nor `train` is given, or ids do not fit; or fewer codes than shards.
        """
        progress = progress or Silent()
        codec = codec if isinstance(codec, Codec) else Codec.load(codec)
        folder = Path(path)
        with locked(folder, new=True, force=force), open_codes(codes) as file:
            codec.check_codes(file.spec, file.path)
            decoder = None if pairwise is None else _load_pairwise(pairwise, codec)
            if decoder is not None:
                additive = decoder.additive_MKD
            elif train is not None:
                additive = fit_to_vectors(codec, train, None, FitConfig(tables=0), progress).additive_MKD
            else:
                raise UsageError("an index needs additive codebooks: give a pairwise artifact, or training vectors")
            writer = Writer(folder, codec, additive, decoder, memory)
            source = CodesSource(file, writer.estimator, ids)
            scales = source.scales()
            made_from: list[Origin] = [(codec.identity, codec.path), (identity(file.header), file.path)]
            made_from += centroids_of(codec)
            if decoder is not None and decoder.header is not None and pairwise is not None:
                made_from.append((identity(decoder.header), Path(pairwise)))
            if shards is not None:
                from qinco_core.index.sharded import ShardedIndex, write_shards

                write_shards(folder, shards, writer, source, scales, made_from, progress)
                return ShardedIndex(load_shards(folder), codec, decoder)
            source.use(scales)
            writer.create([source], scales, made_from, progress)
        return cls(load_index(folder), codec, decoder)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Codec | str | Path | None = None,
        pairwise: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Index:
        """Open an index, in shards or not.

        Args:
            path: its folder.
            model: the model, open or by its path; by default where it was when the index was made.
            pairwise: likewise the pairwise decoder.
            device: where the network decodes: "auto", "cpu" or "cuda".
            precision: as in `Codec.load`.
            threads: CPU threads; $QINCO_THREADS or all cores by default.

        Raises:
            InputNotFoundError: there is no index, or a file it needs is gone.
            ArtifactError: a file is damaged.
            LineageError: the model, the codes or the pairwise decoder were replaced since.
        """
        hardware: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        folder = existing_index(path)
        if read_header(folder / MANIFEST).kind == SHARDS:
            from qinco_core.index.sharded import ShardedIndex

            return ShardedIndex.load(folder, model, pairwise, **hardware)
        stored = load_index(folder)
        codec, decoder = opened_with(stored, model, pairwise, **hardware)
        return cls(stored, codec, decoder)

    def check_whole(self, what: str) -> None:
        """Check that the index is not in shards, which cannot be tuned, exported and so on; `what` says it.

        Raises:
            UsageError: it is.
        """

    def __len__(self) -> int:
        """Entries N."""
        return self.scorer.count

    @property
    def header(self) -> Header:
        """The manifest's header."""
        return self._stored.header

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        return self.codec.config

    @property
    def dim(self) -> int:
        """Dimension D of the vectors."""
        return self.codec.config.D

    @property
    def name(self) -> str:
        """The index in messages."""
        return str(self.folder)

    @property
    def threads(self) -> int:
        """CPU threads that searches use."""
        return self.codec.plan.threads

    @property
    def nlist(self) -> int:
        """Number of lists; 1 without an IVF."""
        return self.scorer.nlist

    @property
    def max_id(self) -> int:
        """The largest id, -1 of an empty index."""
        return self.scorer.max_id

    @property
    def bytes_per_entry(self) -> float:
        """Bytes of an entry in the flat arrays; 0 of an empty index."""
        return sum(array.nbytes for array in self._stored.flat.values()) / max(1, len(self))

    @property
    def ids(self) -> NDArray[Any]:
        """Ids of the entries [N], in the order of the lists."""
        return self._cascade.ids

    @property
    def has_pairwise(self) -> bool:
        """Whether there is a pairwise decoder to re-score with."""
        return self._pairwise is not None

    @property
    def front(self) -> list[dict[str, Any]]:
        """The operating points that `qinco tune` found, as JSON objects."""
        return self._stored.front

    def save_front(self, points: Sequence[tune.Point], setting: tune.Setting) -> None:
        """Put operating points into the manifest, in place of those that it has of the same setting.

        Raises:
            LineageError: the index was changed since it was opened, and the points are of what it was.
        """
        with locked(self.folder, new=False, force=False):
            stored = load_index(self.folder)
            if stored.header.fingerprint != self.header.fingerprint:
                raise LineageError(f"{self.folder} was changed since it was opened: open it again")
            front = tune.merge_front(stored.front, points, setting)
            save_manifest(self.folder, stored.config, stored.arrays, stored.header.parents, front)
            self._use(load_index(self.folder))

    def memory_bytes(self, params: SearchConfig) -> int:
        """Bytes of the arrays and tables that searches with these parameters read."""
        flat = self._stored.flat
        total = sum(array.nbytes for name, array in flat.items() if name != "pair_norms")
        arrays = self._stored.arrays
        # centroids once more in the order of their groups, and where a graph is asked for twice more in it
        total += sum(array.nbytes for array in arrays.values()) + arrays["centroids"].nbytes * (3 if params.ef else 1)
        if self._pairwise is not None and params.rerank != "none" and params.n_mid:
            total += self._pairwise.tables_TRD.nbytes + flat["pair_norms"].nbytes
        if params.rerank in ("qinco", "exact") and params.n_short:
            total += 3 * sum(array.nbytes for array in self.codec.network.to_arrays().values())
        return total

    def add(
        self,
        codes: str | Path,
        *,
        ids: NDArray[Any] | None = None,
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Add codes of the same model; the array files are written anew.

        Args:
            codes: a codes artifact.
            ids: integers [n]; by default those in the artifact, or numbers from the largest id on.
            memory: as in `build`.
            progress: told of every pass.

        Raises:
            LineageError: the codes are of another model.
            UsageError: ids do not fit.
        """
        with locked(self.folder, new=False, force=False), open_codes(codes) as file:
            self.codec.check_codes(file.spec, file.path)
            stored = self._reload()
            writer = Writer(self.folder, self.codec, stored.arrays["additive"], self._pairwise, memory)
            there, more = IndexSource(stored), CodesSource(file, writer.estimator, ids, stored.config["max_id"] + 1)
            scales = more.scales()
            if len(stored.flat["ids"]):  # by one scale, which holds the norms of both
                scales = {look: scale.spanning(scales[look]) for look, scale in there.scales.items()}
            for source in (there, more):
                source.use(scales)
            made_from = [(identity(file.header), file.path)]
            writer.rewrite(stored, [there, more], scales, made_from, progress or Silent())
            self._use(load_index(self.folder))

    def remove(self, ids: ArrayLike, *, memory: int | None = None, progress: Progress | None = None) -> int:
        """Remove entries by their ids, integers [n]; ids that are not there are passed over. Returns how many went."""
        unwanted = sorted_ids(ids, "remove")
        with locked(self.folder, new=False, force=False):
            stored = self._reload()
            there = IndexSource(stored, unwanted)
            left = sum(len(ids) for _, ids in there.heads())
            if left < len(stored.flat["ids"]):
                writer = Writer(self.folder, self.codec, stored.arrays["additive"], self._pairwise, memory)
                writer.rewrite(stored, [there], there.scales, [], progress or Silent())
            self._use(load_index(self.folder))
        return len(stored.flat["ids"]) - left

    def _reload(self) -> StoredIndex:
        """The index as it is now, to go on from.

        Raises:
            LineageError: it is another one, of another model or pairwise decoder.
        """
        stored = load_index(self.folder)
        for kind in ("model", "pairwise"):
            if [parent for parent, _ in origins(stored, kind)] != [parent for parent, _ in origins(self._stored, kind)]:
                raise LineageError(
                    f"{self.folder} was replaced since it was opened, with another {kind}: open it again"
                )
        return stored

    def export_faiss(self, path: str | Path, *, force: bool = False) -> None:
        """Write a plain index of Faiss with these lists, codes and additive codebooks: `index.faiss_export`.

        Raises:
            DependencyError: Faiss is not installed.
            OutputExistsError: `path` exists and `force` is false.
            UsageError: K is above 256.
        """
        export_faiss(self._stored, path, force=force)

    def close(self) -> None:
        """Let go of the files; the index cannot be searched any more."""
        self._open = self._pairwise = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def opened_with(
    stored: StoredIndex, model: Codec | str | Path | None, pairwise: str | Path | None, **hardware: Any
) -> tuple[Codec, Pairwise | None]:
    """The model and the pairwise decoder that an index was made with; arguments and errors as of `Index.open`."""
    # of the codes those that it was built from: what was added since may well be written over by what comes next
    for parent, where in origins(stored, "codes")[:1] + origins(stored, "centroids"):
        unchanged(stored, parent, where)
    ((parent, where),) = origins(stored, "model")
    if not isinstance(model, Codec):
        model = Codec.load(needed(stored, parent, where) if model is None else Path(model), **hardware)
    if model.identity != parent:
        raise LineageError(
            f"{stored.folder} was made with the model {parent.fingerprint}, not with {model.identity.fingerprint}; "
            "use that model, or build the index again: qinco index --force"
        )
    decoder = None
    for parent, where in origins(stored, "pairwise"):
        found = needed(stored, parent, where) if pairwise is None else Path(pairwise)
        decoder = _load_pairwise(found, model)
        if decoder.header is None or identity(decoder.header) != parent:
            raise LineageError(
                f"{stored.folder} was made with the pairwise decoder {parent.fingerprint}, which {found} is not; "
                "use that one, or build the index again: qinco index --force"
            )
    return model, decoder


def _load_pairwise(path: str | Path, codec: Codec) -> Pairwise:
    assert codec.header is not None
    return Pairwise.load(path, codec.header, codec.centroids).for_search()
