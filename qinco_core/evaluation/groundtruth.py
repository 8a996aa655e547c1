"""Ground truth: the exact neighbours of all queries of a file in vectors of any number, in bounded memory.

The base is read once for as many queries as the memory holds.

Symbols: N vectors, nq queries, D dimension, k neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.precision import Plan
from qinco_core.config import Metric
from qinco_core.errors import DimensionError, UsageError
from qinco_core.evaluation.neighbors import NeighborSearch, Sizes
from qinco_core.progress import Progress, Silent
from qinco_core.vectors import VectorFile, VectorSource

_SAMPLE = 1 << 14  # vectors compared to tell the time
_SAMPLE_QUERIES = 1024


class GroundTruth:
    """The work of finding neighbours, checked and ready to be done.

    Attributes:
        passes: times that the base is read.
        memory: bytes that will be taken, beside what Python and torch take.
        sizes: what is held at a time.
        count: vectors that the last pass has compared.
    """

    def __init__(
        self, base: VectorSource, queries: VectorFile, k: int, *, metric: Metric, plan: Plan, memory: int
    ) -> None:
        """Check that it can be done.

        Args:
            base: the vectors [N, D]; ids are their numbers, from 0.
            queries: [nq, D].
            k: neighbours a query, at most N.
            metric: "l2", "ip" or "cosine", see `exact_neighbors`.
            plan: where to compute.
            memory: bytes to take at most.

        Raises:
            DimensionError: queries and base differ.
            UsageError: k or the memory cannot be, or a stream would have to be read more than once.
        """
        if base.dim != queries.dim:
            raise DimensionError(f"{queries.name} has dimension {queries.dim}, but {base.name} has {base.dim}")
        if k < 1:
            raise UsageError(f"k = {k} neighbours cannot be; use 1 or more")
        if base.count is not None and k > base.count:
            raise _too_few(base.name, base.count, k)
        self.sizes = Sizes.fit(base.dim, k, plan, memory)
        self._step = min(len(queries), self.sizes.queries or 1)
        self.passes = -(-len(queries) // self._step)
        self.memory = self.sizes.bytes + self._step * self.sizes.query_bytes
        if self.passes > 1 and not isinstance(base, VectorFile):
            needed = self.sizes.bytes + len(queries) * self.sizes.query_bytes
            raise UsageError(
                f"{base.name} can be read only once, and {len(queries):,} queries with their results do not fit "
                f"{memory:,} bytes: allow {needed:,}, or write the vectors to a file"
            )
        self._base, self._queries, self._k, self._metric, self._plan = base, queries, k, metric, plan
        self._memory = memory
        self.count = 0

    def batches(self, progress: Progress | None = None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ids and distances or similarities, [n, k] of the next n queries; see `exact_neighbors`.

        Raises:
            UsageError: a stream had fewer than k vectors, or values are beyond float32.
            VectorFileError: a vector is damaged, or holds NaN or infinity.
        """
        progress = progress or Silent()
        count = self._base.count
        progress.begin("comparing", None if count is None else count * self.passes, "vectors")
        for start in range(0, len(self._queries), self._step):
            xq = self._queries.read(start, min(start + self._step, len(self._queries)))
            search = NeighborSearch(xq, self._k, metric=self._metric, plan=self._plan, memory=self._memory)
            for block in self._base.batches(self.sizes.rows):
                search.add(block)
                progress.advance(len(block))
            self.count = search.count
            if search.count < self._k:
                raise _too_few(self._base.name, search.count, self._k)
            yield search.result()
        progress.end()

    def forecast(self) -> float | None:
        """Seconds that it will take, from random vectors; None where the number of vectors is unknown."""
        if self._base.count is None:
            return None
        random = np.random.default_rng(0)
        xb = random.standard_normal((_SAMPLE, self._base.dim), np.float32)
        xq = xb[: min(self._step, _SAMPLE_QUERIES)]
        for _ in range(2):  # the first one warms up
            search = NeighborSearch(xq, min(self._k, _SAMPLE), metric=self._metric, plan=self._plan)
            started = time.perf_counter()
            for start in range(0, len(xb), self.sizes.rows):
                search.add(xb[start : start + self.sizes.rows])
            seconds = time.perf_counter() - started
        return seconds * self._base.count / len(xb) * len(self._queries) / len(xq)


def _too_few(name: str, count: int, k: int) -> UsageError:
    return UsageError(f"{name} has {count:,} vectors, too few for {k:,} neighbours a query: use -k {max(1, count)}")
