"""An index in shards: indexes of some rows each, on one machine or on many, searched as if they were one.

All have the same centroids, codebooks and scales, so an entry has the score that it would have in one index. After
every stage the best candidates of all shards are what goes on, and each shard scores those of them that it has.
Shapes: Q queries, n candidates, R pairs of a query and a candidate, N entries in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.codec.precision import Plan
from qinco_core.config import Metric, SearchConfig
from qinco_core.errors import UsageError
from qinco_core.index.build import CodesSource, Scale
from qinco_core.index.cascade import Cascade
from qinco_core.index.index import Index, opened_with
from qinco_core.index.kernels import Chosen
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.rewrite import Origin, Writer, nothing_left_of_failure, recorded
from qinco_core.index.stages import Scorer, cut_to_best
from qinco_core.progress import Progress
from qinco_core.store import Header
from qinco_core.store.index import StoredIndex, load_index
from qinco_core.store.shards import StoredShards, load_shards, next_generation, save_shards, shard_folder

Array = NDArray[Any]


class Shards(Protocol):
    """The shards of an index, all of which are asked at once."""

    def each(self, method: str, arguments: Sequence[tuple[Any, ...] | None], q: Array | None = None) -> list[Any]:
        """What a method of each shard's `Scorer` gives for its arguments; those that have none are not asked.

        Args:
            method: its name.
            arguments: of every shard.
            q: the first argument of all of them.
        """


class LocalShards:
    """Shards in this process, one after the other; the threads share each."""

    def __init__(self, stored: Sequence[StoredIndex], codec: Codec, pairwise: Pairwise | None) -> None:
        self._scorers: list[Scorer] = [Cascade(one, codec, pairwise) for one in stored]

    def each(self, method: str, arguments: Sequence[tuple[Any, ...] | None], q: Array | None = None) -> list[Any]:
        """As in `Shards`."""
        first = () if q is None else (q,)
        pairs = zip(self._scorers, arguments, strict=True)
        return [None if given is None else getattr(scorer, method)(*first, *given) for scorer, given in pairs]


class ShardedScorer:
    """A `Scorer` of all shards: the places of one follow those of the one before."""

    def __init__(self, stored: StoredShards, shards: Shards, host: Plan, *, has_pairwise: bool) -> None:
        counts = [len(shard.flat["ids"]) for shard in stored.shards]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._counts, self._shards = counts, shards
        self.host, self.has_pairwise = host, has_pairwise
        self.count, self.nlist = sum(counts), len(stored.shards[0].arrays["centroids"])
        self.max_id = max(int(shard.config["max_id"]) for shard in stored.shards)

    def scan(self, q: Array, n: int, params: SearchConfig, metric: Metric, chosen: Chosen) -> tuple[Array, Array]:
        """Scores and places of the n best entries."""
        arguments = [(min(n, count), params, metric, chosen) for count in self._counts]
        found = self._shards.each("scan", arguments, q)
        score = np.concatenate([score for score, _ in found], axis=1)
        places = [np.where(place < 0, -1, place + at) for (_, place), at in zip(found, self._starts[:-1], strict=True)]
        place = np.concatenate(places, axis=1)
        cut_to_best(score, place, score.shape[1], n, self.host)
        return np.ascontiguousarray(score[:, :n]), np.ascontiguousarray(place[:, :n])

    def rescore(self, q: Array, score: Array, place: Array, metric: Metric) -> Array:
        """The pairwise decoder's scores in place of the scan's."""
        groups = [_Group.of(place, start, stop) for start, stop in self._spans()]
        arguments = [None if one is None else (one.packed(score, np.inf), one.place, metric) for one in groups]
        for one, found in zip(groups, self._shards.each("rescore", arguments, q), strict=True):
            if one is not None:
                score[one.row, one.column] = found[one.row, one.at]
        return score

    def decode(self, q: Array, query: Array, place: Array, metric: Metric) -> Array:
        """Scores by the network's reconstructions."""
        score = np.empty(len(place), np.float32)
        own = self._own(place)
        arguments = [(query[rows], place[rows] - at, metric) if len(rows) else None for rows, at in own]
        for (rows, _), found in zip(own, self._shards.each("decode", arguments, q), strict=True):
            if len(rows):
                score[rows] = found
        return score

    def ids_of(self, place: Array) -> NDArray[np.int64]:
        """The ids of places, −1 for the place −1."""
        flat, ids = place.ravel(), np.full(place.size, -1, np.int64)
        own = self._own(flat)
        arguments = [(flat[rows] - at,) if len(rows) else None for rows, at in own]
        for (rows, _), found in zip(own, self._shards.each("ids_of", arguments), strict=True):
            if len(rows):
                ids[rows] = found
        return ids.reshape(place.shape)

    def _spans(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)

    def _own(self, place: Array) -> list[tuple[Array, int]]:
        """For each shard which of the places [R] are its own, and its first place."""
        return [(np.flatnonzero((place >= start) & (place < stop)), start) for start, stop in self._spans()]


@dataclasses.dataclass(frozen=True)
class _Group:
    """The candidates that one shard has, side by side.

    Attributes:
        row, column: where they stand among all candidates.
        at: and in which column of the group.
        place: as the shard calls them, int64 [Q, n of the group]; −1: none.
    """

    row: Array
    column: Array
    at: Array
    place: Array

    @classmethod
    def of(cls, place: Array, start: int, stop: int) -> _Group | None:
        """Those with places from `start` to before `stop`, if any."""
        inside = (place >= start) & (place < stop)
        counts = inside.sum(1)
        if not counts.any():
            return None
        row, column = np.nonzero(inside)
        at = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        own = np.full((len(place), counts.max()), -1, np.int64)
        own[row, at] = place[row, column] - start
        return cls(row, column, at, own)

    def packed(self, values: Array, nothing: float) -> Array:
        """Values of all candidates [Q, n] as values of the group."""
        own = np.full(self.place.shape, nothing, values.dtype)
        own[self.row, self.at] = values[self.row, self.column]
        return own


class ShardedIndex(Index):
    """An open index in shards; it can be searched, and replaced as a whole.

    Attributes:
        stored: the manifest and the shards.
    """

    def __init__(
        self, stored: StoredShards, codec: Codec, pairwise: Pairwise | None, shards: Shards | None = None
    ) -> None:
        super().__init__(stored.shards[0], codec, pairwise)
        self.stored, self.folder = stored, stored.folder
        self._shards = shards
        self._scorer: Scorer | None = None
        self._closed = False

    def _use(self, stored: StoredIndex) -> None:
        """Nothing to do: shards do not change."""

    @classmethod
    def load(
        cls, folder: Path, model: Codec | str | Path | None, pairwise: str | Path | None, **hardware: Any
    ) -> ShardedIndex:
        """Open one; arguments and errors as of `Index.open`."""
        stored = load_shards(folder)
        codec, decoder = opened_with(stored.shards[0], model, pairwise, **hardware)
        return cls(stored, codec, decoder)

    def through(self, shards: Shards) -> ShardedIndex:
        """The same index, searched by others than this process."""
        return ShardedIndex(self.stored, self.codec, self._pairwise, shards)

    @property
    def scorer(self) -> Scorer:
        """What scores the entries."""
        if self._closed:
            raise UsageError(f"{self.folder} was closed; open it again")
        if self._scorer is None:
            shards = self._shards or LocalShards(self.stored.shards, self.codec, self._pairwise)
            host = dataclasses.replace(self.codec.plan, device=torch.device("cpu"))
            self._scorer = ShardedScorer(self.stored, shards, host, has_pairwise=self.has_pairwise)
        return self._scorer

    def close(self) -> None:
        """Let go of the files; the index cannot be searched any more."""
        super().close()
        self._scorer, self._closed = None, True

    @property
    def header(self) -> Header:
        """The manifest's header."""
        return self.stored.header

    @property
    def ids(self) -> Array:
        """Ids of the entries [N], in the order of shards and lists."""
        return np.concatenate([shard.flat["ids"] for shard in self.stored.shards])

    @property
    def bytes_per_entry(self) -> float:
        """Bytes of an entry in the flat arrays."""
        return sum(array.nbytes for shard in self.stored.shards for array in shard.flat.values()) / max(1, len(self))

    @property
    def front(self) -> list[dict[str, Any]]:
        """Refused."""
        self.check_whole("tuned")

    def memory_bytes(self, params: SearchConfig) -> int:
        """Refused."""
        self.check_whole("tuned")

    def save_front(self, *_: Any) -> None:
        """Refused."""
        self.check_whole("tuned")

    def add(self, *_: Any, **__: Any) -> None:
        """Refused."""
        self.check_whole("added to")

    def remove(self, *_: Any, **__: Any) -> int:
        """Refused."""
        self.check_whole("removed from")

    def export_faiss(self, *_: Any, **__: Any) -> None:
        """Refused."""
        self.check_whole("exported")

    def check_whole(self, what: str) -> NoReturn:
        """Refuse what shards cannot do.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self.folder} is in {len(self.stored.shards)} shards, which cannot be {what}: build the index in one, "
            "without --shards, for that"
        )


def write_shards(
    folder: Path,
    count: int,
    writer: Writer,
    source: CodesSource,
    scales: dict[str, Scale],
    origins: Sequence[Origin],
    progress: Progress,
) -> Header:
    """Write an index in shards, of consecutive rows each, in place of one that may be there; the caller holds the lock.

    Args:
        folder: the index.
        count: shards.
        writer: of an index of all of them.
        source: all codes.
        scales: of the residual norms of all codes.
        origins: what they were made from.
        progress: told of every shard.

    Raises:
        UsageError: there are not as many codes as shards.
    """
    N = len(source)
    if not 1 <= count <= N:
        raise UsageError(f"{N} codes cannot be in {count} shards: use 1 to {N}")
    generation = next_generation(folder)
    shards: list[StoredIndex] = []
    with nothing_left_of_failure(folder):
        for number in range(count):
            rows = range(number * N // count, (number + 1) * N // count)
            progress.note(f"shard {number + 1} of {count}: {len(rows):,} vectors")
            place, part = shard_folder(folder, generation, number), source.part(rows)
            part.use(scales)
            place.mkdir(parents=True)
            writer.beside(place).create([part], scales, origins, progress, like=shards[0] if shards else None)
            shards.append(load_index(place))
        config = {
            "model": shards[0].config["model"],
            "sources": [recorded(parent, path, folder) for parent, path in origins],
            "generation": generation,
            "files": {},
            "shards": [{"fingerprint": one.header.fingerprint, "vectors": len(one.flat["ids"])} for one in shards],
        }
        return save_shards(folder, config, tuple(parent for parent, _ in origins))
