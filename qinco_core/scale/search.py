"""Searching an index in shards on a Ray cluster: an actor for each shard, which is restarted where it dies.

A call to an actor tells all that it needs, so that one that was lost is made again, and the search goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.errors import LineageError, UsageError
from qinco_core.index.index import Index
from qinco_core.index.kernels import Chosen
from qinco_core.index.sharded import ShardedIndex
from qinco_core.scale.cluster import RETRIES, check_version, connected, cpus_of, fetch
from qinco_core.store.artifact import writer_version

Array = NDArray[Any]


class _Opening(NamedTuple):
    """How an actor opens its shard."""

    folder: str
    fingerprint: str
    model: str
    pairwise: str | None
    device: str
    precision: str
    threads: int
    version: str


@contextmanager
def on_cluster(
    index: Index, *, pairwise: str | Path | None = None, address: str | None = None, threads: int | None = None
) -> Iterator[ShardedIndex]:
    """The same index, searched by the machines of a Ray cluster for the length of the block.

    They read the shards, the model and the pairwise decoder where this machine has them.

    Args:
        index: open, in shards.
        pairwise: its pairwise decoder, if it is not where it was when the index was made.
        address: of the cluster, as of `scale.cluster.connected`.
        threads: of each shard's actor; by default the cluster's CPUs are shared out.

    Raises:
        UsageError: the index is not in shards.
        ClusterError: the cluster cannot be reached, or, from the searches, actors die again and again.
        DependencyError: Ray is not installed.
    """
    if not isinstance(index, ShardedIndex):
        raise UsageError(
            f"{index.folder} is not in shards, which Ray could search: build it with qinco index --shards N"
        )
    shards, plan = index.stored.shards, index.codec.plan
    assert index.codec.path is not None
    with connected(address) as ray:
        threads = threads or max(1, cpus_of(ray) // len(shards))
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / len(shards)) if plan.device.type == "cuda" else 0
        # no CPUs are held: an actor finds a place on whatever machine is left, also a busy one
        kind = ray.remote(_Shard).options(
            num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        actors = []
        for shard in shards:
            opening = _Opening(
                folder=str(shard.folder.absolute()),
                fingerprint=shard.header.fingerprint,
                model=str(index.codec.path.absolute()),
                pairwise=None if pairwise is None else str(Path(pairwise).absolute()),
                device=plan.device.type,
                precision=plan.precision,
                threads=threads,
                version=writer_version(),
            )
            actors.append(kind.remote(opening))
        try:
            yield index.through(_Actors(ray, actors))
        finally:
            for actor in actors:
                ray.kill(actor)


class _Actors:
    """The `Shards` of an index as actors."""

    def __init__(self, ray: ModuleType, actors: list[Any]) -> None:
        self._ray, self._actors = ray, actors
        self._sent: tuple[Array | None, Any] = None, None

    def each(self, method: str, arguments: Sequence[tuple[Any, ...] | None], q: Array | None = None) -> list[Any]:
        """As in `Shards`; queries go to every machine once."""
        known, sent = self._sent
        if q is not None and q is not known:
            self._sent = q, (sent := self._ray.put(q))
        first = None if q is None else sent
        refs = [
            None if given is None else actor.call.remote(method, first, given)
            for actor, given in zip(self._actors, arguments, strict=True)
        ]
        found = iter(fetch(self._ray, [ref for ref in refs if ref is not None]))
        return [None if ref is None else next(found) for ref in refs]


class _Shard:
    """An actor. The shard is opened at the first call, whose errors find their way to the search."""

    def __init__(self, opening: _Opening) -> None:
        self._opening = opening
        self._index: Index | None = None

    def call(self, method: str, q: Array | None, arguments: tuple[Any, ...]) -> Any:
        """What a method of the shard's `Scorer` gives."""
        if self._index is None:
            self._index = self._open()
        first = () if q is None else (q,)
        return getattr(self._index.scorer, method)(*map(_own, (*first, *arguments)))

    def _open(self) -> Index:
        how = self._opening
        check_version(how.version)
        codec = Codec.load(how.model, device=how.device, precision=how.precision, threads=how.threads)
        index = Index.open(how.folder, model=codec, pairwise=how.pairwise)
        if index.header.fingerprint != how.fingerprint:
            raise LineageError(f"{how.folder} was replaced since the search began: search again")
        return index


def _own(value: Any) -> Any:
    """Arrays as memory of our own: numba and torch treat what cannot be written, as Ray's is, as something else."""
    if isinstance(value, Chosen):
        return Chosen(value.mode, _own(value.ids))
    return np.require(value, requirements=["C", "W"]) if isinstance(value, np.ndarray) else value
