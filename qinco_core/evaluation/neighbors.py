"""Exact nearest neighbours by brute force, in bounded memory.

Products in float32 tell which vectors cannot be among the nearest, with a margin for all that rounding may have done
to them (`shortlist`); the others are compared in float64. So the result is that of float64 throughout.

Symbols: n vectors of a block, nq queries, R of them compared together, D their dimension, k neighbours, P pairs of
a query and a vector. A value is what is smallest for the nearest: the squared distance, or minus the similarity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qinco_core.codec.precision import Plan, plan
from qinco_core.codec.workers import run_parallel
from qinco_core.config import Metric
from qinco_core.errors import DimensionError, UsageError
from qinco_core.evaluation.shortlist import GROUP, Block, Shortlist, directions

_ENTRIES = 1 << 19  # products that a thread holds, all of which stay in its cache
_GPU_ENTRIES = 1 << 24
_ENTRY_BYTES = 100  # of a product, where every pair has to be looked at
_BLOCK = 1 << 21  # numbers of the vectors that are looked at in one go
_BLOCK_BYTES = 40
_PENDING = 32  # pairs a query that wait for their float64 distance
_PAIR_ENTRIES = 1 << 16  # numbers gathered for such distances


@dataclass(frozen=True)
class Sizes:
    """How much is held at a time.

    Attributes:
        rows: vectors of the base.
        entries: products, by each thread, or by the GPU.
        queries: queries with their results; None: all there are.
        bytes: what the first two take.
        query_bytes: what a query takes, with its results.
    """

    rows: int
    entries: int
    queries: int | None
    bytes: int
    query_bytes: int

    @classmethod
    def fit(cls, D: int, k: int, plan: Plan, memory: int | None = None) -> Self:
        """Sizes for vectors of dimension D and k neighbours a query in `memory` bytes; None: without a bound.

        Raises:
            UsageError: that is too little; the message says how much is needed.
        """
        query_bytes = 24 * (D + 8) + 40 * k
        threads, entries = (plan.threads, _ENTRIES) if plan.device.type == "cpu" else (1, _GPU_ENTRIES)
        block = _BLOCK
        work = threads * entries * _ENTRY_BYTES + block * _BLOCK_BYTES
        if memory is not None and work > memory // 2:
            share = memory / 2 / work
            entries, block = int(entries * share), int(block * share)
        least = max(4 * k, 1 << 12)
        needed = max(entries, least) * threads * _ENTRY_BYTES + max(block, 64 * D) * _BLOCK_BYTES
        if memory is not None and needed + query_bytes > memory:
            least_bytes = 2 * (least * threads * _ENTRY_BYTES + 64 * D * _BLOCK_BYTES + query_bytes)
            raise UsageError(
                f"{memory:,} bytes are too few for k = {k} neighbours of dimension {D} on {threads} threads: "
                f"{least_bytes:,} will do"
            )
        queries = None if memory is None else (memory - needed) // query_bytes
        return cls(max(64, block // D), max(entries, least), queries, needed, query_bytes)


def exact_neighbors(
    xb_blocks: Iterable[npt.NDArray[np.generic]],
    xq: npt.NDArray[np.generic],
    k: int,
    *,
    metric: Metric = "l2",
    device: str = "cpu",
    threads: int | None = None,
    memory: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k nearest vectors of each query, as float64 has them; ties go to the lower id.

    Values are computed in float64 (distances by differences, so that large norms cancel without harm) and compared as
    float32: two vectors are equally near where their values are the same float32.

    Args:
        xb_blocks: the vectors in order, blocks of any length [n, D], real dtype; ids count from 0.
        xq: queries [nq, D], real dtype.
        k: neighbours per query, 1 or more.
        metric: "l2" (squared Euclidean distance), "ip" (inner product) or "cosine"; the cosine of a vector of
            length 0 with any other is 0.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        threads: CPU threads; $QINCO_THREADS or all cores by default.
        memory: bytes to take at most for queries, results and all that is held meanwhile; None: no bound.

    Returns:
        Ids int64 [nq, k], nearest first, -1 where there are fewer than k vectors, and their squared distances float32
        [nq, k], infinity there; or similarities, descending, minus infinity there.

    Raises:
        DeviceError: there is no such device here.
        DimensionError: a block's dimension is not that of the queries.
        UsageError: k is below 1, values are beyond float32, or the memory is too little.
    """
    search = NeighborSearch(xq, k, metric=metric, plan=plan(device, "float32", threads), memory=memory)
    for block in xb_blocks:
        search.add(block)
    return search.result()


class NeighborSearch:
    """The nearest of the vectors that have been added so far.

    Attributes:
        count: how many have been.
        sizes: what is held at a time.
    """

    def __init__(
        self, xq: npt.NDArray[np.generic], k: int, *, metric: Metric, plan: Plan, memory: int | None = None
    ) -> None:
        """Prepare for vectors; see `exact_neighbors`."""
        if k < 1:
            raise UsageError(f"k = {k} neighbours cannot be; use 1 or more")
        if metric not in get_args(Metric):
            raise UsageError(f"no metric {metric!r}; there are {', '.join(get_args(Metric))}")
        if xq.ndim != 2 or xq.shape[1] == 0:
            raise DimensionError(f"queries of shape {xq.shape}; they must be [nq, D]")
        nq, D = xq.shape
        self.count = 0
        self.sizes = Sizes.fit(D, k, plan, memory)
        if self.sizes.queries is not None and nq > self.sizes.queries:
            raise UsageError(
                f"{nq:,} queries with {k} neighbours each do not fit {memory:,} bytes: allow "
                f"{self.sizes.bytes + nq * self.sizes.query_bytes:,}, or search for {self.sizes.queries:,} at a time"
            )
        self._k = k
        self._metric = metric
        self._plan = plan
        self._q = self._read(xq)
        self._shortlist: Shortlist | None = None  # its center is that of the first vectors
        self._values = torch.full((nq, k), torch.inf, device=plan.device)
        self._ids = torch.full((nq, k), -1, device=plan.device)
        # an eighth as many queries as vectors are compared together, and every thread has some
        size = max(1, min(isqrt(self.sizes.entries // 8), self.sizes.entries // (2 * k), -(-nq // plan.threads)))
        self._parts = [slice(start, min(start + size, nq)) for start in range(0, nq, size)]

    def add(self, block: npt.NDArray[np.generic]) -> None:
        """Compare the queries with the next vectors [n, D], of any real dtype.

        Raises:
            DimensionError, UsageError: as `exact_neighbors`.
        """
        D = self._q.shape[1]
        if block.ndim != 2 or block.shape[1] != D:
            raise DimensionError(f"vectors {block.shape} do not fit queries of dimension {D}")
        for start in range(0, len(block), self.sizes.rows):
            x = self._read(block[start : start + self.sizes.rows])
            if self._parts:
                self._compare(x)
            self.count += len(x)

    def _read(self, v: npt.NDArray[np.generic]) -> Tensor:
        """The vectors float64 [n, D] on the device, as they are multiplied."""
        own = np.array(v, dtype=v.dtype.newbyteorder("="))  # torch takes no other byte order, nor what it may not write
        x = torch.from_numpy(own).to(self._plan.device).double()
        return directions(x) if self._metric == "cosine" else x

    def _compare(self, x: Tensor) -> None:
        """Update the nearest of all queries by the next vectors, float64 [n, D]."""
        if self._shortlist is None:
            self._shortlist = Shortlist(self._q, x, l2=self._metric == "l2")
        block = self._shortlist.prepare(x, self._plan)
        run_parallel(partial(self._scan, self._shortlist, block), self._parts, self._plan)

    def result(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Ids int64 and distances or similarities float32, [nq, k]."""
        values = self._values if self._metric == "l2" else 0 - self._values
        return self._ids.cpu().numpy(), values.cpu().numpy()

    def _scan(self, shortlist: Shortlist, block: Block, part: slice) -> None:
        """Update the nearest of some queries by a block."""
        R = part.stop - part.start
        width = max(GROUP, self.sizes.entries // R // GROUP * GROUP)
        pending: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(block), width):
            columns = slice(start, min(start + width, len(block)))
            pending.append(shortlist.pairs(part, block, columns, self._values[part, -1], self._k))
            if columns.stop == len(block) or sum(len(rows) for rows, _ in pending) > _PENDING * R:
                rows, found = map(torch.cat, zip(*pending, strict=True))
                self._merge(shortlist, block, part, rows, found)
                pending = []

    def _merge(self, shortlist: Shortlist, block: Block, part: slice, rows: Tensor, columns: Tensor) -> None:
        """Put pairs, rows of the part and columns of the block int64 [P], among the nearest."""
        if not len(rows):
            return
        rows, order = rows.sort(stable=True)
        columns = columns[order]
        values = torch.empty(len(rows), device=rows.device)
        step = max(1, _PAIR_ENTRIES // self._q.shape[1])
        for start in range(0, len(rows), step):
            piece = slice(start, start + step)
            values[piece] = shortlist.values(block, part.start + rows[piece], columns[piece])
        counts = torch.bincount(rows, minlength=part.stop - part.start)
        place = torch.arange(self._k, self._k + len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        shape = len(counts), self._k + int(counts.max())
        near = torch.full(shape, torch.inf, device=rows.device)
        ids = torch.full(shape, -1, device=rows.device)
        near[:, : self._k], ids[:, : self._k] = self._values[part], self._ids[part]
        near[rows, place], ids[rows, place] = values, columns + self.count
        # vectors come in order, so a stable sort puts the lower of two equally near ids first
        near, order = near.sort(dim=1, stable=True)
        self._values[part] = near[:, : self._k]
        self._ids[part] = ids.gather(1, order[:, : self._k])
