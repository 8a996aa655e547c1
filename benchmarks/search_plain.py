"""The search cascade done the plain way, for `search.py`: Faiss's IVF-RQ scan, then the network's decode.

The scan is Faiss's `IVF…_HNSW32,RQ…x8_Nqint8` with our centroids, our additive codebooks and our codes; n_short
entries of each query are decoded by the network as method §2 writes it, in torch, and ranked by their exact distance
to the decoded vector. Entries beyond n_short keep the scan's order.

The two stages do not touch each other, and the second takes as long wherever its entries are from. So they are timed
apart and a point's time is their sum: of two thousand queries at dozens of points, only a few decodes have to run.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import common
import faiss
import numpy as np
import numpy.typing as npt
import torch
from search_points import ALONE_K, KS, Bench, Floats, Ids, Point, Settings

from qinco_core.codec.network import Network
from qinco_core.evaluation.metrics import recall_at

NAME, SCAN = "plain cascade", "plain scan"
NPROBE = tuple(1 << i for i in range(9))
N_SHORT = (10, 20, 50, 100, 200)
# codes decoded together; the fastest is chosen
_BATCHES = (200, 1000, 4000, 16000)

Decode = Callable[[torch.Tensor], torch.Tensor]  # rows of the base [n] to vectors [n, D]


@dataclass(frozen=True, eq=False)
class Parts:
    """What the cascade is made of.

    Attributes:
        network: an IVF model.
        centroids: not normalised, float32 [lists, D].
        codebooks: additive, of the residual to the centroid, float32 [M, K, D].
        codes: of the base, list number first, int32 [N, 1 + M].
    """

    network: Network
    centroids: Floats
    codebooks: Floats
    codes: npt.NDArray[np.int32]


class Cascade:
    """The Faiss index, the codes and the network.

    Attributes:
        batch: codes that the network decodes together, all cores working on them.
    """

    def __init__(self, parts: Parts) -> None:
        """Fill the index with the codes as they are, and find the best batch."""
        self._network = parts.network
        self._codes = torch.from_numpy(parts.codes).long()
        self._index = _index(parts)
        self._coarse = faiss.downcast_index(self._index.quantizer)
        rows = torch.arange(max(_BATCHES)) % len(self._codes)
        fns = {size: (lambda size=size: [self.decode(some) for some in rows.split(size)]) for size in _BATCHES}
        for fn in fns.values():
            fn()
        seconds = common.medians(common.alternate(fns, 3))
        self.batch = min(_BATCHES, key=lambda size: seconds[size])

    def scan(self, xq: Floats, k: int, nprobe: int, parallel_mode: int = 0) -> Ids:
        """The k best entries of each query by the additive look-up [nq, k]."""
        self._index.nprobe, self._index.parallel_mode = nprobe, parallel_mode
        self._coarse.hnsw.efSearch = max(16, 2 * nprobe)
        return self._index.search(xq, k)[1]

    def rerank(self, xq: Floats, found: Ids, n_short: int, decode: Decode | None = None) -> Ids:
        """The found entries [nq, any], the first n_short of them by their distance to the decoded vector."""
        queries = max(1, self.batch // n_short)
        decode = decode or self.decode
        ranked = found.copy()
        for start in range(0, len(xq), queries):
            short = found[start : start + queries, :n_short]
            xhat = decode(torch.from_numpy(short.clip(0)).flatten()).view(*short.shape, -1)
            distance = (xhat - torch.from_numpy(xq[start : start + queries, None])).square().sum(-1).numpy()
            distance[short < 0] = np.inf
            ranked[start : start + queries, :n_short] = np.take_along_axis(short, distance.argsort(axis=1), 1)
        return ranked

    @torch.no_grad()
    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of these rows of the base, by the network."""
        codes = self._codes[rows]
        return self._network.denormalize(self._network.decode(codes[:, 1:], lists_N=codes[:, 0]))

    @cached_property
    def decoded(self) -> torch.Tensor:
        """All of the base, decoded: recall of many points needs no decode of each."""
        return torch.cat([self.decode(rows) for rows in torch.arange(len(self._codes)).split(self.batch)])


def measure(bench: Bench, cascade: Cascade) -> None:
    """Every operating point of the cascade, and of its scan alone."""
    print(f"the plain network decodes {cascade.batch} codes at a time", file=sys.stderr)
    for k in KS:
        for settings in bench.ladder(SCAN, k, [{"nprobe": nprobe} for nprobe in NPROBE]):
            _scanned(bench, cascade, k, **settings)
    for n_short in N_SHORT:
        rungs = [{"n_short": n_short, "nprobe": nprobe} for nprobe in NPROBE]
        stage = _Rerank(bench, cascade, n_short)
        for k in KS:
            for settings in bench.ladder(NAME, k, rungs):
                bench.add(_point(bench, cascade, stage, k, settings))


class _Rerank:
    """The last stage at one n_short, timed when first asked for."""

    def __init__(self, bench: Bench, cascade: Cascade, n_short: int) -> None:
        self._bench, self._cascade, self._n_short = bench, cascade, n_short

    @cached_property
    def seconds(self) -> list[float]:
        """Of the whole batch, each run."""
        xq = self._bench.xq
        found = self._cascade.scan(xq, self._n_short, NPROBE[-1])
        self._cascade.rerank(xq[:100], found[:100], self._n_short)
        return self._bench.timed(lambda xq: self._cascade.rerank(xq, found, self._n_short))


def _point(bench: Bench, cascade: Cascade, stage: _Rerank, k: int, settings: Settings) -> Point:
    n_short, nprobe = settings["n_short"], settings["nprobe"]
    size = max(k, n_short)
    found = cascade.scan(bench.xq, size, nprobe)
    ids = cascade.rerank(bench.xq, found, n_short, lambda rows: cascade.decoded[rows])[:, :k]
    scan = _scanned(bench, cascade, size, nprobe)
    seconds = statistics.median(scan.seconds) + statistics.median(stage.seconds)
    p50, p99 = None, None
    if k == ALONE_K:
        p50, p99 = bench.latency([lambda xq: cascade.rerank(xq, cascade.scan(xq, size, nprobe, 1), n_short)[:, :k]])
    return Point(NAME, k, settings, recall_at(ids, bench.truth, KS), len(bench.xq) / seconds, [seconds], p50, p99)


def _scanned(bench: Bench, cascade: Cascade, k: int, nprobe: int) -> Point:
    """The scan alone, measured if it was not yet; single queries by one thread or by all sharing out the lists."""
    searches = [lambda xq, mode=mode: cascade.scan(xq, k, nprobe, mode) for mode in (0, 1)]
    return bench.ensure(SCAN, k, {"nprobe": nprobe}, searches[0], searches)


def _index(parts: Parts) -> Any:
    """Faiss's IVF-RQ index of codes that were made elsewhere."""
    M, K, D = parts.codebooks.shape
    quantizer = faiss.IndexHNSWFlat(D, 32)
    quantizer.add(parts.centroids)
    index = faiss.IndexIVFResidualQuantizer(
        quantizer,
        D,
        len(parts.centroids),
        M,
        K.bit_length() - 1,
        faiss.METRIC_L2,
        faiss.AdditiveQuantizer.ST_norm_qint8,
    )
    rq = index.rq
    faiss.copy_array_to_vector(np.ascontiguousarray(parts.codebooks).ravel(), rq.codebooks)
    symbols = np.ascontiguousarray(parts.codes[:, 1:])
    norms = _norms(parts.codebooks, symbols)
    rq.train_norm(len(norms), faiss.swig_ptr(norms))
    rq.is_trained = index.is_trained = True
    packed = np.empty((len(symbols), rq.code_size), np.uint8)
    rq.pack_codes(len(symbols), faiss.swig_ptr(symbols), faiss.swig_ptr(packed), -1, faiss.swig_ptr(norms), None)
    order = parts.codes[:, 0].argsort(kind="stable")
    bounds = parts.codes[order, 0].searchsorted(np.arange(len(parts.centroids) + 1))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        ids, entries = order[start:stop], packed[order[start:stop]]
        index.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(entries))
    index.ntotal = len(symbols)
    return index


def _norms(codebooks: Floats, symbols: npt.NDArray[np.int32]) -> Floats:
    """Squared norms of the additive reconstructions of the residuals."""
    norms = np.empty(len(symbols), np.float32)
    for start in range(0, len(symbols), 1 << 16):
        some = symbols[start : start + (1 << 16)]
        norms[start : start + len(some)] = np.square(
            sum(book[k] for book, k in zip(codebooks, some.T, strict=True))
        ).sum(1)
    return norms
