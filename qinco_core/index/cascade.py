"""What the stages of a search (`stages`) ask of one index: its entries' scores.

Work is cut into small parts that one thread does with torch to itself. Shapes: Q queries, n candidates,
D dimension, L lists, M symbols, K codewords, X = M·K.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.codec.packing import unpack
from qinco_core.codec.select import partition
from qinco_core.codec.workers import run_parallel, scratch
from qinco_core.config import Metric, SearchConfig
from qinco_core.index import kernels
from qinco_core.index.build import Scale
from qinco_core.index.coarse import Coarse
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.probe import Probe
from qinco_core.index.stages import compare, slices
from qinco_core.store.index import StoredIndex

Array = NDArray[Any]

METRICS: dict[str, int] = {"l2": 0, "ip": 1, "cosine": 2}
# queries that one thread looks up together; candidates decoded together
_QUERIES, _DECODED = 512, 1024
# candidates that one thread decodes sooner than several, for which there is little work but much waiting
_FEW = 128
# entries that one query must look at for its lists to be shared between threads
_SHARED = 1 << 17


class Cascade:
    """A `Scorer` of one open index."""

    def __init__(self, stored: StoredIndex, codec: Codec, pairwise: Pairwise | None) -> None:
        self.stored, self._codec, self._pairwise = stored, codec, pairwise
        self.host = dataclasses.replace(codec.plan, device=torch.device("cpu"))
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

    @property
    def count(self) -> int:
        """Entries N."""
        return len(self._codes)

    @property
    def nlist(self) -> int:
        """Lists; 1 without an IVF."""
        return len(self._centroids)

    @property
    def max_id(self) -> int:
        """The largest id, −1 of an empty index."""
        return int(self.stored.config["max_id"])

    @property
    def has_pairwise(self) -> bool:
        """Whether there is a pairwise decoder."""
        return self._pairwise is not None

    @functools.cached_property
    def _coarse(self) -> Coarse:
        """The graph of the centroids, with Faiss, for searches that ask for it."""
        graph = self.stored.file("coarse") if "coarse" in self.stored.config["files"] else None
        if graph is not None and not graph.is_file():  # the index on the disk is another one by now
            graph = None
        return Coarse(self._centroids, threads=self.host.threads, device="cpu", hnsw_path=graph)

    def scan(
        self, q: Array, n: int, params: SearchConfig, metric: Metric, chosen: kernels.Chosen
    ) -> tuple[Array, Array]:
        """Scores and places of the n best entries."""
        nprobe = min(params.nprobe, len(self._centroids))
        through = metric == "l2" and params.ef > 0
        lists = self._coarse.nearest(q, nprobe, params.ef)[0] if through else None
        looks = nprobe * len(self._codes) / len(self._centroids)
        if len(q) < self.host.threads and looks > _SHARED:
            return self._scan_shared(q, n, nprobe, lists, metric, chosen)
        score, place = np.empty((len(q), n), np.float32), np.empty((len(q), n), np.int64)

        def work(rows: slice) -> None:
            probed = self._probe.nearest(q[rows], nprobe, metric) if lists is None else lists[rows]
            self._scan_rows(q[rows], probed, metric, chosen, score[rows], place[rows])

        run_parallel(work, slices(len(q), _QUERIES, self.host.threads), self.host)
        return score, place

    def _scan_shared(
        self, q: Array, n: int, nprobe: int, lists: Array | None, metric: Metric, chosen: kernels.Chosen
    ) -> tuple[Array, Array]:
        """The scan of few queries, every thread taking some of their lists."""
        probed = self._probe.nearest(q, nprobe, metric) if lists is None else lists
        parts = [np.ascontiguousarray(probed[:, i :: self.host.threads]) for i in range(self.host.threads)]

        def work(part: Array) -> tuple[Array, Array]:
            score, place = np.empty((len(q), n), np.float32), np.empty((len(q), n), np.int64)
            self._scan_rows(q, part, metric, chosen, score, place)
            return score, place

        found = run_parallel(work, parts, self.host)
        score, place = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
        partition(score, place, score.shape[1], n)
        return np.ascontiguousarray(score[:, :n]), np.ascontiguousarray(place[:, :n])

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

    def _lists(self, place: Array) -> Array:
        return np.searchsorted(self._offsets, place, "right") - 1

    def rescore(self, q: Array, score: Array, place: Array, metric: Metric) -> Array:
        """The pairwise decoder's scores in place of the scan's."""
        pairwise = self._pairwise
        assert pairwise is not None
        scale = self._scales["pair_norms"]
        decoder = pairwise.list_symbols_LX, pairwise.pairs_2T, pairwise.tables_TRD, pairwise.scale

        def work(rows: slice) -> None:
            kernels.rescore(
                q[rows],
                self._arrays,
                self._look(metric),
                self.stored.flat["pair_norms"],
                scale.low,
                scale.step,
                *decoder,
                score[rows],
                place[rows],
            )

        run_parallel(work, slices(len(q), 64, self.host.threads), self.host)
        return score

    def decode(self, q: Array, query: Array, place: Array, metric: Metric) -> Array:
        """Scores by the network's reconstructions."""
        score = np.empty(len(place), np.float32)
        near, engine = torch.from_numpy(q), self._codec.engine

        def work(rows: slice) -> None:
            entry = place[rows]
            codes = torch.from_numpy(unpack(self._codes[entry], self._M, self._K).astype(np.int64))
            if engine.config.ivf_K:
                codes = torch.cat([torch.from_numpy(self._lists(entry))[:, None], codes], dim=1)
            xhat = engine.decode_rows(codes.to(engine.plan.device)).cpu()
            score[rows] = compare(near.index_select(0, torch.from_numpy(query[rows])), xhat, metric).numpy()

        size = _DECODED if engine.plan.device.type == "cpu" else 1 << 18
        threads = min(self.host.threads, max(1, len(place) // _FEW))
        run_parallel(work, slices(len(place), size, threads), engine.plan)
        return score

    def ids_of(self, place: Array) -> NDArray[np.int64]:
        """The ids of places, −1 for the place −1."""
        return np.where(place < 0, -1, self.ids[np.maximum(place, 0)]).astype(np.int64)
