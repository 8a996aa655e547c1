"""Queries searched batch by batch, and what there is to say of it: recall and time of every stage, latency.

Shapes: nq queries, n of a batch, D dimension, k results, T true neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qinco_core.config import Metric, SearchConfig
from qinco_core.errors import UsageError
from qinco_core.evaluation.metrics import check_id_type, recall_at
from qinco_core.index.found import Found
from qinco_core.index.kernels import Chosen
from qinco_core.progress import Progress
from qinco_core.store.results import ResultsSink
from qinco_core.vectors import VectorFile

KS = (1, 10, 100)
_WARM = 16  # queries searched before the clock starts

Array = NDArray[Any]


class Searcher(Protocol):
    """An open index, or an exhaustive search."""

    def search_stages(
        self,
        xq: Array,
        k: int = 10,
        params: SearchConfig | None = None,
        *,
        metric: Metric = "l2",
        allow: ArrayLike | Chosen | None = None,
        originals: VectorFile | None = None,
        ranked: bool = True,
    ) -> Found:
        """Results of queries [n, D]; if `ranked`, those after every stage."""


@dataclass(frozen=True)
class Request:
    """What is asked of every query: the arguments of `Index.search`."""

    k: int = 10
    params: SearchConfig | None = None
    metric: Metric = "l2"
    chosen: Chosen | None = None
    originals: VectorFile | None = None

    def __call__(self, searcher: Searcher, xq: Array, *, ranked: bool) -> Found:
        """Search for queries [n, D]."""
        return searcher.search_stages(
            xq,
            self.k,
            self.params,
            metric=self.metric,
            allow=self.chosen,
            originals=self.originals,
            ranked=ranked,
        )


@dataclass
class StageTotal:
    """A stage over all queries: its seconds, and how many queries have a hit among the first k."""

    seconds: float = 0.0
    hits: dict[int, float] = field(default_factory=dict)


@dataclass
class SearchReport:
    """Totals of a search.

    Attributes:
        queries: how many.
        seconds: all batches together, without the warm-up, reading and writing.
        stages: by name, in their order.
        latencies: seconds of each batch.
    """

    queries: int = 0
    seconds: float = 0.0
    stages: dict[str, StageTotal] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    def add(self, found: Found, seconds: float, truth: Array | None) -> None:
        """Count a batch; truth [n, T] has the ids of the true neighbours."""
        self.queries += len(found.ids)
        self.seconds += seconds
        self.latencies.append(seconds)
        for stage in found.stages:
            total = self.stages.setdefault(stage.name, StageTotal())
            total.seconds += stage.seconds
            if truth is not None:
                for k, share in recall_at(stage.ids, truth, KS).items():
                    total.hits[k] = total.hits.get(k, 0) + share * len(truth)

    def recall(self, stage: str) -> dict[int, float]:
        """R@k after a stage; empty without ground truth."""
        return {k: hits / self.queries for k, hits in self.stages[stage].hits.items()}

    @property
    def queries_per_second(self) -> float:
        """Rate of the whole search."""
        return self.queries / max(self.seconds, 1e-9)

    def percentile(self, share: float) -> float:
        """The seconds within which this share (0 to 100) of the batches ended."""
        return float(np.percentile(self.latencies, share))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            {
                "stage": name,
                "seconds": total.seconds,
                "queries_per_second": self.queries / max(total.seconds, 1e-9),
                "recall": {str(k): share for k, share in self.recall(name).items()},
            }
            for name, total in self.stages.items()
        ]
        return {
            "queries": self.queries,
            "seconds": self.seconds,
            "queries_per_second": self.queries_per_second,
            "latency": {"p50": self.percentile(50), "p99": self.percentile(99)},
            "stages": stages,
        }


def search_batches(
    searcher: Searcher,
    batches: Iterable[Array],
    request: Request,
    *,
    sink: ResultsSink | None,
    progress: Progress,
    truth: VectorFile | None = None,
    warm: bool = True,
) -> SearchReport:
    """Search for queries that come batch by batch, and hand on what is found.

    Args:
        searcher: open.
        batches: queries [n, D].
        request: what to find.
        sink: takes the results, if anyone wants them.
        progress: told of every batch.
        truth: ids of the true neighbours, nearest first, a row a query, to measure recall.
        warm: search for a few queries before the clock starts.

    Raises:
        UsageError: the ground truth has fewer or more rows than there are queries; or as of `Index.search`.
    """
    report = SearchReport()
    for xq in batches:
        if warm and not report.queries:
            request(searcher, xq[:_WARM], ranked=False)
        rows = _rows(truth, report.queries, len(xq)) if truth is not None else None
        started = time.perf_counter()
        found = request(searcher, xq, ranked=rows is not None)  # rankings cost time that nobody else asked for
        report.add(found, time.perf_counter() - started, rows)
        if sink is not None:
            sink.append(found.ids, found.distances)
        progress.advance(len(xq))
    if truth is not None and report.queries != len(truth):
        raise UsageError(_mismatch(truth, f"{report.queries}"))
    return report


def _rows(truth: VectorFile, start: int, count: int) -> Array:
    if start + count > len(truth):
        raise UsageError(_mismatch(truth, f"{start + count} or more"))
    return truth.read(start, start + count)


def check_truth(truth: VectorFile, queries: int | None, max_id: int) -> None:
    """Check before any work that ground truth is of these queries and these vectors.

    Args:
        truth: ids of neighbours.
        queries: how many, if known.
        max_id: the largest id that can be found.

    Raises:
        UsageError: it is no table of ids, has another number of rows, or names vectors that are not there.
    """
    check_id_type(truth.dtype, truth.name)
    if queries is not None and queries != len(truth):
        raise UsageError(_mismatch(truth, f"{queries}"))
    largest = max(int(rows[:, 0].max()) for rows in truth.batches(1 << 16))
    if largest > max_id:
        raise UsageError(
            f"{truth.name} names the vector {largest}, but the largest id searched is {max_id}: "
            "it is the ground truth of other vectors"
        )


def _mismatch(truth: VectorFile, queries: str) -> str:
    return f"{truth.name} has {len(truth)} rows for {queries} queries: they must be of the same file"
