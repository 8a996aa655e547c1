"""The search cascade (method §6): lists, additive look-up, pairwise re-score, network decode, original vectors.

Every stage re-scores the best candidates of the one before and leaves the others where they are, behind them.
Work is cut into small parts that one thread does with torch to itself. Shapes: Q queries, n candidates,
D dimension, L lists, M symbols, K codewords, X = M·K.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.codec.packing import unpack
from qinco_core.codec.select import partition, rank
from qinco_core.codec.workers import run_parallel, scratch
from qinco_core.config import Metric, SearchConfig
from qinco_core.index import kernels
from qinco_core.index.build import Scale
from qinco_core.index.coarse import Coarse
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.probe import Probe
from qinco_core.store.index import StoredIndex
from qinco_core.vectors import VectorFile

Array = NDArray[Any]

METRICS: dict[str, int] = {"l2": 0, "ip": 1, "cosine": 2}
# queries that one thread looks up together; candidates decoded together
_QUERIES, _DECODED = 512, 1024
# original vectors in memory at a time
_ORIGINAL_BYTES = 1 << 25
# candidates that one thread decodes sooner than several, for which there is little work but much waiting
_FEW = 128
# entries that one query must look at for its lists to be shared between threads
_SHARED = 1 << 17


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


class Cascade:
    """The stages over one open index; safe to share by threads."""

    def __init__(self, stored: StoredIndex, codec: Codec, pairwise: Pairwise | None) -> None:
        self.stored, self._codec, self._pairwise = stored, codec, pairwise
        self._host = dataclasses.replace(codec.plan, device=torch.device("cpu"))
        arrays, flat = stored.arrays, stored.flat
        self._offsets, self._centroids, self._codes = arrays["offsets"], arrays["centroids"], flat["codes"]
        self._centroid_norms = np.square(self._centroids).sum(1)
        N, W = self._codes.shape
        self._arrays = kernels.Arrays(
            self._centroids,
            self._centroid_norms,
            self._offsets,
            self._codes,
            np.empty((N, 0), np.uint64) if W % 8 or not N else self._codes.view(np.uint64),
            flat["norms"],
            flat["ids"],
        )
        self._scales = {look: Scale(**scale) for look, scale in stored.config["scales"].items()}
        M, K, D = arrays["additive"].shape
        self._M, self._K, self._bits = M, K, K.bit_length() - 1
        dtype = codec.plan.dtype if codec.plan.device.type == "cpu" else torch.float32
        additive = torch.from_numpy(arrays["additive"].reshape(M * K, D))
        self._additive = additive.to(dtype)
        # tables are made of q − mean, which rounds less than q, and this is what the mean adds to them
        self._mean = self._centroids.mean(0)
        self._of_mean = additive @ torch.from_numpy(-2 * self._mean)
        self._nothing = torch.zeros(M * K)
        self._probe = Probe(self._centroids, arrays.get("groups"), dtype)

    @property
    def ids(self) -> Array:
        """Of the entries [N]."""
        return self._arrays.ids

    @functools.cached_property
    def _coarse(self) -> Coarse:
        """The graph of the centroids, with Faiss, for searches that ask for it."""
        graph = self.stored.file("coarse") if "coarse" in self.stored.config["files"] else None
        if graph is not None and not graph.is_file():  # the index on the disk is another one by now
            graph = None
        return Coarse(self._centroids, threads=self._host.threads, device="cpu", hnsw_path=graph)

    def run(
        self,
        q_QD: Array,
        k: int,
        params: SearchConfig,
        metric: Metric,
        chosen: kernels.Chosen,
        originals: VectorFile | None,
        see: Callable[[str, float, Candidates], None],
    ) -> Candidates:
        """Search, and show the candidates after every stage to `see` with its name and seconds."""
        if metric == "cosine":
            q_QD = q_QD / np.maximum(np.linalg.norm(q_QD, axis=1, keepdims=True), 1e-30)
        stages = plan_stages(k, params, pairwise=self._pairwise is not None, originals=originals is not None)
        started = time.perf_counter()
        found = self._scan(q_QD, stages[0][1], params, metric, chosen)
        see("scan", time.perf_counter() - started, found)
        for name, n in stages[1:]:
            started = time.perf_counter()
            n = min(n, found.heads[-1])
            self._cut(found, n)
            if name == "pairwise":
                self._rescore(found, n, metric)
            elif name == "qinco":
                self._decode(found, n, metric)
            elif originals is not None:
                self._compare(found, n, metric, originals)
            found.heads.append(n)
            see(name, time.perf_counter() - started, found)
        return found

    def _scan(self, q: Array, n: int, params: SearchConfig, metric: Metric, chosen: kernels.Chosen) -> Candidates:
        n = min(n, len(self._codes))
        nprobe = min(params.nprobe, len(self._centroids))
        through = metric == "l2" and params.ef > 0
        lists = self._coarse.nearest(q, nprobe, params.ef)[0] if through else None
        looks = nprobe * len(self._codes) / len(self._centroids)
        if len(q) < self._host.threads and looks > _SHARED:
            return self._scan_shared(q, n, nprobe, lists, metric, chosen)
        score, place = np.empty((len(q), n), np.float32), np.empty((len(q), n), np.int64)

        def work(rows: slice) -> None:
            probed = self._probe.nearest(q[rows], nprobe, metric) if lists is None else lists[rows]
            self._scan_rows(q[rows], probed, metric, chosen, score[rows], place[rows])

        run_parallel(work, _slices(len(q), _QUERIES, self._host.threads), self._host)
        return Candidates(q, score, place, [n])

    def _scan_shared(
        self, q: Array, n: int, nprobe: int, lists: Array | None, metric: Metric, chosen: kernels.Chosen
    ) -> Candidates:
        """The scan of few queries, every thread taking some of their lists."""
        probed = self._probe.nearest(q, nprobe, metric) if lists is None else lists
        parts = [np.ascontiguousarray(probed[:, i :: self._host.threads]) for i in range(self._host.threads)]

        def work(part: Array) -> tuple[Array, Array]:
            score, place = np.empty((len(q), n), np.float32), np.empty((len(q), n), np.int64)
            self._scan_rows(q, part, metric, chosen, score, place)
            return score, place

        found = run_parallel(work, parts, self._host)
        score, place = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
        partition(score, place, score.shape[1], n)
        return Candidates(q, np.ascontiguousarray(score[:, :n]), np.ascontiguousarray(place[:, :n]), [n])

    def _scan_rows(
        self, q: Array, lists: Array, metric: Metric, chosen: kernels.Chosen, score: Array, place: Array
    ) -> None:
        scaled = torch.from_numpy(-2 * (q - self._mean) if metric == "l2" else -q).to(self._additive.dtype)
        table, lists = self._table(scaled, metric).numpy(), np.ascontiguousarray(lists)
        kernels.scan(q, table, lists, self._arrays, self._look(metric), chosen, score, place)

    def _table(self, scaled: torch.Tensor, metric: Metric) -> torch.Tensor:
        """What a symbol adds to a query's scores, float32 [Q, X]."""
        offset = self._of_mean if metric == "l2" else self._nothing
        table = scratch("table", (len(scaled), len(offset)))
        if scaled.dtype == torch.float32:
            return torch.addmm(offset, scaled, self._additive.T, out=table)
        products = scratch("products", tuple(table.shape), scaled.dtype)
        return torch.add(torch.mm(scaled, self._additive.T, out=products), offset, out=table)

    def _look(self, metric: Metric) -> kernels.Look:
        scale = self._scales["norms"]
        return kernels.Look(self._M, self._bits, METRICS[metric], scale.low, scale.step)

    def _cut(self, found: Candidates, n: int) -> None:
        """Bring the n best candidates of the last stage to the front."""

        def work(rows: slice) -> None:
            partition(found.score[rows], found.place[rows], found.heads[-1], n)

        run_parallel(work, _slices(len(found.q), 256, self._host.threads), self._host)

    def _lists(self, place: Array) -> Array:
        return np.searchsorted(self._offsets, place, "right") - 1

    def _rescore(self, found: Candidates, n: int, metric: Metric) -> None:
        """The pairwise decoder's scores in place of the scan's."""
        pairwise = self._pairwise
        assert pairwise is not None
        scale = self._scales["pair_norms"]
        decoder = pairwise.list_symbols_LX, pairwise.pairs_2T, pairwise.tables_TRD, pairwise.scale

        def work(rows: slice) -> None:
            kernels.rescore(
                found.q[rows],
                self._arrays,
                self._look(metric),
                self.stored.flat["pair_norms"],
                scale.low,
                scale.step,
                *decoder,
                found.score[rows, :n],
                found.place[rows, :n],
            )

        run_parallel(work, _slices(len(found.q), 64, self._host.threads), self._host)

    def _decode(self, found: Candidates, n: int, metric: Metric) -> None:
        """Scores by the network's reconstructions."""
        place = found.place[:, :n].ravel()
        score = np.empty(len(place), np.float32)
        q, engine = torch.from_numpy(found.q), self._codec.engine

        def work(rows: slice) -> None:
            entry = np.maximum(place[rows], 0)
            codes = torch.from_numpy(unpack(self._codes[entry], self._M, self._K).astype(np.int64))
            if engine.config.ivf_K:
                codes = torch.cat([torch.from_numpy(self._lists(entry))[:, None], codes], dim=1)
            xhat = engine.decode_rows(codes.to(engine.plan.device)).cpu()
            query = torch.arange(rows.start, rows.stop) // n
            score[rows] = compare(q.index_select(0, query), xhat, metric).numpy()

        size = _DECODED if engine.plan.device.type == "cpu" else 1 << 18
        threads = min(self._host.threads, max(1, len(place) // _FEW))
        run_parallel(work, _slices(len(place), size, threads), engine.plan)
        score[place < 0] = np.inf
        found.score[:, :n] = score.reshape(len(found.q), n)

    def _compare(self, found: Candidates, n: int, metric: Metric, originals: VectorFile) -> None:
        """Scores by the original vectors, which ids number."""
        queries = max(1, _ORIGINAL_BYTES // (4 * found.q.shape[1] * n))
        for at in range(0, len(found.q), queries):
            rows = slice(at, at + queries)
            q, place, score = found.q[rows], found.place[rows, :n], found.score[rows, :n]
            self._compare_rows(q, place, score, metric, originals)

    def _compare_rows(self, q: Array, place: Array, score: Array, metric: Metric, originals: VectorFile) -> None:
        n = place.shape[1]
        rows, inverse = np.unique(self._arrays.ids[np.maximum(place, 0)].astype(np.int64), return_inverse=True)
        vectors = torch.from_numpy(originals.take(rows).astype(np.float32, copy=False))
        which = torch.from_numpy(inverse.reshape(place.shape))

        def work(part: slice) -> None:
            x = vectors.index_select(0, which[part].flatten())
            near = torch.from_numpy(q[part]).repeat_interleave(n, dim=0)
            score[part] = compare(near, x, metric).view(-1, n).numpy()

        run_parallel(work, _slices(len(place), max(1, _DECODED // n), self._host.threads), self._host)
        score[place < 0] = np.inf


def compare(q_ND: torch.Tensor, x_ND: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Squared distances, negative inner products or negative cosines (of q of length 1), row by row [N]."""
    if metric == "l2":
        return (q_ND - x_ND).square_().sum(1)
    inner = -(q_ND * x_ND).sum(1)
    return inner if metric == "ip" else inner / torch.linalg.vector_norm(x_ND, dim=1).clamp_(min=1e-30)


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


def _slices(count: int, size: int, threads: int) -> list[slice]:
    """Rows cut into parts of at most `size`, and at least one for every thread if there are as many."""
    size = max(1, min(size, -(-count // threads)))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
