"""Searching, which is the same for one index and for one in shards.

Shapes: nq queries, D dimension, k results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qinco_core.api import Codec
from qinco_core.config import Metric, SearchConfig
from qinco_core.errors import DimensionError, UsageError
from qinco_core.index.found import Found, Stage, check_queries, chosen_ids
from qinco_core.index.kernels import Chosen
from qinco_core.index.stages import Candidates, Scorer, run_stages
from qinco_core.vectors import VectorFile

METRICS = ("l2", "ip", "cosine")
# queries that go through the stages together
_QUERIES = 1024


class Searching:
    """Whatever has a `Scorer` can be searched.

    Attributes:
        codec: the model of its codes.
        folder: where it lies.
    """

    codec: Codec
    folder: Path

    @property
    def scorer(self) -> Scorer:
        """What scores the entries, as they are now."""
        raise NotImplementedError

    def search(
        self,
        xq: NDArray[Any],
        k: int = 10,
        params: SearchConfig | None = None,
        *,
        metric: Metric = "l2",
        allow: ArrayLike | None = None,
        deny: ArrayLike | None = None,
        originals: VectorFile | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest entries of every query.

        Args:
            xq: queries [nq, D], any real dtype.
            k: results a query.
            params: the operating point.
            metric: "l2", "ip" or "cosine".
            allow: the only ids to find; or
            deny: ids not to find.
            originals: the original vectors, numbered by the ids, for `rerank="exact"`.

        Returns:
            Distances float32 [nq, k] and ids int64 [nq, k]. "l2" distances are squared and ascending, similarities
            descend; of results that the last stage did not reach they are the estimates of the stage before. Missing
            results have id −1 and distance inf, or −inf.

        Raises:
            DimensionError: the queries are not the index's.
            UsageError: a parameter is wrong.
            VectorFileError: a query holds NaN or infinity.
        """
        limits = {"allow": allow, "deny": deny}
        found = self.search_stages(xq, k, params, metric=metric, originals=originals, ranked=False, **limits)
        return found.distances, found.ids

    def search_stages(
        self,
        xq: NDArray[Any],
        k: int = 10,
        params: SearchConfig | None = None,
        *,
        metric: Metric = "l2",
        allow: ArrayLike | Chosen | None = None,
        deny: ArrayLike | None = None,
        originals: VectorFile | None = None,
        ranked: bool = True,
    ) -> Found:
        """`search`, with the time of every stage and, if `ranked`, its ranking.

        For many searches for the same ids `found.chosen_ids` sorts them once; its result goes in as `allow`.
        """
        scorer = self.scorer
        params = params or SearchConfig(nprobe=min(16, scorer.nlist))
        q = check_queries(xq, k, dim=self.codec.config.D, count=scorer.count)
        self._check(scorer, params, metric, originals)
        chosen = chosen_ids(allow, deny)
        distances, found = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
        rankings: dict[str, list[NDArray[np.int64]]] = {}
        seconds: dict[str, float] = {}

        def see(name: str, spent: float, candidates: Candidates) -> None:
            seconds[name] = seconds.get(name, 0.0) + spent
            ranking = scorer.ids_of(candidates.best(k)[1]) if ranked else np.empty((0, k), np.int64)
            rankings.setdefault(name, []).append(ranking)

        for at in range(0, len(q), _QUERIES):
            rows = slice(at, at + _QUERIES)
            score, place = run_stages(scorer, q[rows], k, params, metric, chosen, originals, see).best(k)
            distances[rows], found[rows] = score, scorer.ids_of(place)
        if metric == "l2":
            np.maximum(distances, 0, out=distances)
        else:
            np.negative(distances, out=distances)
        spent = tuple(Stage(name, seconds[name], np.concatenate(parts)) for name, parts in rankings.items())
        return Found(distances, found, spent)

    def _check(self, scorer: Scorer, params: SearchConfig, metric: str, originals: VectorFile | None) -> None:
        D = self.codec.config.D
        if metric not in METRICS:
            raise UsageError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
        if params.nprobe > scorer.nlist:
            raise UsageError(
                f"nprobe = {params.nprobe}, but the index has {scorer.nlist} lists: use 1 to {scorer.nlist}"
            )
        if params.rerank == "pairwise" and not scorer.has_pairwise:
            raise UsageError(f"{self.folder} has no pairwise decoder: build it with one (qinco pairwise, qinco index)")
        if params.rerank != "exact":
            return
        if originals is None:
            raise UsageError("re-ranking by original vectors needs them: give their file")
        if originals.dim != D:
            raise DimensionError(f"{originals.name} has dimension {originals.dim}, but the index has {D}")
        if scorer.max_id >= len(originals):
            raise UsageError(
                f"{originals.name} has {len(originals)} vectors, but the index has the id {scorer.max_id}: ids must "
                "be row numbers of the original vectors"
            )
