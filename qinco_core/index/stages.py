"""The search cascade (method §6): lists, additive look-up, pairwise re-score, network decode, original vectors.

Every stage re-scores the best candidates of the one before and leaves the others where they are, behind them. Who
scores is not known here: one index (`cascade`), or several that are searched as one (`sharded`).
Shapes: Q queries, n candidates, D dimension, R pairs of a query and a candidate.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.codec.precision import Plan
from qinco_core.codec.select import partition, rank
from qinco_core.codec.workers import run_parallel
from qinco_core.config import Metric, SearchConfig
from qinco_core.index.kernels import Chosen
from qinco_core.vectors import VectorFile

Array = NDArray[Any]

# original vectors in memory at a time, and how many one thread compares together
_ORIGINAL_BYTES, _COMPARED = 1 << 25, 1024


@dataclasses.dataclass
class Candidates:
    """The candidates of some queries; the smaller the score the better.

    Attributes:
        q: queries, float32 [Q, D]; of length 1 for cosines.
        score, place: float32 and int64 [Q, n]; entry −1 with score infinity is none.
        heads: how many at the front each stage scored, falling; what a stage left behind keeps its place.
    """

    q: Array
    score: Array
    place: Array
    heads: list[int]

    def best(self, k: int) -> tuple[Array, Array]:
        """Scores and places of the k best [Q, k]."""
        score, place = self.score.copy(), self.place.copy()
        ends = [0, *sorted(set(self.heads))]
        for begin, end in itertools.pairwise(ends):
            if begin < k:
                rank(score, place, begin, end, min(end, k) - begin)
        return score[:, :k], place[:, :k]


class Scorer(Protocol):
    """Scores the entries of an index, which it calls by their places; safe to share by threads.

    Every call tells all that it needs, so that it may be made again.
    """

    @property
    def count(self) -> int:
        """Entries N."""

    @property
    def nlist(self) -> int:
        """Lists."""

    @property
    def max_id(self) -> int:
        """The largest id."""

    @property
    def has_pairwise(self) -> bool:
        """Whether there is a pairwise decoder."""

    @property
    def host(self) -> Plan:
        """The threads of this process."""

    def scan(self, q: Array, n: int, params: SearchConfig, metric: Metric, chosen: Chosen) -> tuple[Array, Array]:
        """Scores float32 and places int64 [Q, n] of the n best entries by the additive look-up, in no order.

        n is no more than there are entries; where fewer are found, scores are infinite and places −1.
        """

    def rescore(self, q: Array, score: Array, place: Array, metric: Metric) -> Array:
        """The pairwise decoder's scores [Q, n] for those of the scan, which may be overwritten; places may be −1."""

    def decode(self, q: Array, query: Array, place: Array, metric: Metric) -> Array:
        """Scores float32 [R] by the network's reconstruction of entries; `query` are rows of q."""

    def ids_of(self, place: Array) -> NDArray[np.int64]:
        """The ids of places of any shape, −1 for −1."""


def run_stages(
    scorer: Scorer,
    q_QD: Array,
    k: int,
    params: SearchConfig,
    metric: Metric,
    chosen: Chosen,
    originals: VectorFile | None,
    see: Callable[[str, float, Candidates], None],
) -> Candidates:
    """Search, and show the candidates after every stage to `see` with its name and seconds."""
    if metric == "cosine":
        q_QD = q_QD / np.maximum(np.linalg.norm(q_QD, axis=1, keepdims=True), 1e-30)
    stages = plan_stages(k, params, pairwise=scorer.has_pairwise, originals=originals is not None)
    started = time.perf_counter()
    n = min(stages[0][1], scorer.count)
    found = Candidates(q_QD, *scorer.scan(q_QD, n, params, metric, chosen), [n])
    see("scan", time.perf_counter() - started, found)
    for name, most in stages[1:]:
        started = time.perf_counter()
        n = min(most, found.heads[-1])
        cut_to_best(found.score, found.place, found.heads[-1], n, scorer.host)
        if name == "pairwise":
            found.score[:, :n] = scorer.rescore(q_QD, found.score[:, :n], found.place[:, :n], metric)
        elif name == "qinco":
            _decode(scorer, found, n, metric)
        elif originals is not None:
            _compare(scorer, found, n, metric, originals)
        found.heads.append(n)
        see(name, time.perf_counter() - started, found)
    return found


def plan_stages(k: int, params: SearchConfig, *, pairwise: bool, originals: bool) -> list[tuple[str, int]]:
    """The stages to run and how many candidates each scores: at least as many as the next; the scan k at least."""
    stages = []
    if params.rerank != "none" and params.n_mid and pairwise:
        stages.append(("pairwise", params.n_mid))
    if params.rerank in ("qinco", "exact") and params.n_short:
        stages.append(("qinco", params.n_short))
    if params.rerank == "exact" and params.n_exact and originals:
        stages.append(("exact", params.n_exact))
    counts = list(itertools.accumulate((n for _, n in reversed(stages)), max))[::-1]
    kept = [(name, n) for (name, _), n in zip(stages, counts, strict=True)]
    return [("scan", max([k, *counts])), *kept]


def cut_to_best(score: Array, place: Array, end: int, n: int, host: Plan) -> None:
    """Bring the n best of every row's first `end` candidates to the front, in no order."""

    def work(rows: slice) -> None:
        partition(score[rows], place[rows], end, n)

    run_parallel(work, slices(len(score), 256, host.threads), host)


def _decode(scorer: Scorer, found: Candidates, n: int, metric: Metric) -> None:
    """Scores by the network's reconstructions."""
    place = found.place[:, :n]
    there = place >= 0
    score = np.full(place.shape, np.inf, np.float32)
    score[there] = scorer.decode(found.q, np.nonzero(there)[0], place[there], metric)
    found.score[:, :n] = score


def _compare(scorer: Scorer, found: Candidates, n: int, metric: Metric, originals: VectorFile) -> None:
    """Scores by the original vectors, which ids number."""
    queries = max(1, _ORIGINAL_BYTES // (4 * found.q.shape[1] * n))
    for at in range(0, len(found.q), queries):
        rows = slice(at, at + queries)
        ids = scorer.ids_of(found.place[rows, :n])
        _compare_rows(found.q[rows], ids, found.score[rows, :n], metric, originals, scorer.host)


def _compare_rows(q: Array, ids: Array, score: Array, metric: Metric, originals: VectorFile, host: Plan) -> None:
    n = ids.shape[1]
    rows, inverse = np.unique(np.maximum(ids, 0), return_inverse=True)
    vectors = torch.from_numpy(originals.take(rows).astype(np.float32, copy=False))
    which = torch.from_numpy(inverse.reshape(ids.shape))

    def work(part: slice) -> None:
        x = vectors.index_select(0, which[part].flatten())
        near = torch.from_numpy(q[part]).repeat_interleave(n, dim=0)
        score[part] = compare(near, x, metric).view(-1, n).numpy()

    run_parallel(work, slices(len(ids), max(1, _COMPARED // n), host.threads), host)
    score[ids < 0] = np.inf


def compare(q_ND: torch.Tensor, x_ND: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Squared distances, negative inner products or negative cosines (of q of length 1), row by row [N]."""
    if metric == "l2":
        return (q_ND - x_ND).square_().sum(1)
    inner = -(q_ND * x_ND).sum(1)
    return inner if metric == "ip" else inner / torch.linalg.vector_norm(x_ND, dim=1).clamp_(min=1e-30)


def slices(count: int, size: int, threads: int) -> list[slice]:
    """Rows cut into parts of at most `size`, and at least one for every thread if there are as many."""
    size = max(1, min(size, -(-count // threads)))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
