"""Which lists lie nearest to a vector: the coarse step of an IVF, exact or through an HNSW graph (method §6).

Shapes: N vectors, K centroids, D dimension.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from qinco_core.codec.precision import plan
from qinco_core.codec.workers import run_parallel
from qinco_core.errors import ArtifactError, DependencyError, DimensionError, UsageError
from qinco_core.files import atomic_output, existing_file
from qinco_core.optional import import_faiss

Floats = NDArray[np.float32]
Lists = NDArray[np.int32]
Found = tuple[Lists, Floats]

LINKS = 32  # M of the graph: 2M links a centroid on the lowest level
# with 100 and 200 the graph agreed slightly less often with the exact search, on real vectors
_CONSTRUCTION = 40
_ASSIGN_EF = 64
# vectors looked up together, and centroids compared with them at a time; Faiss has a quarter of its rate, or with
# many centroids a twelfth, on chunks of fewer than 1,024 rows
_ROWS = {"cpu": 1024, "cuda": 1 << 14}
_GRAPH_ROWS = 64  # the same through the graph, where vectors share nothing
_COLUMNS = 4096


class Coarse:
    """Finds the nearest centroids of vectors. Searches may run at the same time in several threads.

    Not from inside `run_parallel` work, though, unless `threads` is 1: both wait for the same workers.

    Args:
        centroids_KD: float32 [K, D], not normalised.
        threads: CPU threads; $QINCO_THREADS or all cores by default.
        device: of the exact search: "auto" (a GPU if torch sees one), "cpu" or "cuda".
        hnsw_path: a graph that `save_hnsw` wrote for these centroids; read when it is first used.

    Raises:
        DeviceError: there is no such device, or no threads.
        DimensionError: the centroids are not [K, D].
        InputNotFoundError: there is no such graph.
    """

    def __init__(
        self,
        centroids_KD: Floats,
        *,
        threads: int | None = None,
        device: str = "auto",
        hnsw_path: str | Path | None = None,
    ) -> None:
        if centroids_KD.ndim != 2 or 0 in centroids_KD.shape:
            raise DimensionError(f"centroids have the shape {centroids_KD.shape}; they are [K, D]")
        self.centroids = np.ascontiguousarray(centroids_KD, dtype=np.float32)
        self._plan = plan(device, "float32", threads)
        self._host = dataclasses.replace(self._plan, device=torch.device("cpu"))
        self._path = None if hnsw_path is None else existing_file(hnsw_path)
        # imported once: an import sets warning filters, which are the whole process's
        self._faiss = _faiss_or_none()
        self._graph: Any = None
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the exact search runs."""
        return self._plan.device

    @property
    def batch(self) -> int:
        """The fewest vectors that give all threads work."""
        return _ROWS[self.device.type] * self._plan.threads

    def nearest(self, x_ND: ArrayLike | Tensor, nprobe: int, ef: int = 0) -> Found:
        """The nprobe nearest centroids of each vector, nearest first.

        Args:
            x_ND: vectors of any numeric dtype, [N, D].
            nprobe: how many.
            ef: breadth of the HNSW search, at least nprobe being used; 0: all centroids are compared.

        Returns:
            Their numbers int32 [N, nprobe] and squared distances float32 [N, nprobe].

        Raises:
            DependencyError: ef > 0 without Faiss.
            DimensionError: the vectors are not [N, D] with the centroids' D.
            UsageError: nprobe or ef cannot be, or a vector holds NaN or infinity.
        """
        x = self._check(x_ND, nprobe, ef)
        if ef == 0:
            return self._map(lambda rows: self._exact(rows, nprobe), x, nprobe, self._plan, _ROWS[self.device.type])
        graph = self._hnsw()
        return self._map(lambda rows: self._through(graph, rows, nprobe, ef), x, nprobe, self._host, _GRAPH_ROWS)

    def assign(self, x_ND: ArrayLike | Tensor, method: Literal["exact", "hnsw"] = "exact") -> Lists:
        """The nearest centroid of each vector [N, D], int32 [N]; through the graph nearly always the nearest.

        Raises:
            DependencyError, DimensionError, UsageError: as `nearest`; or there is no such method.
        """
        if method not in ("exact", "hnsw"):
            raise UsageError(f"no assignment {method!r}; there are exact and hnsw")
        return self.nearest(x_ND, 1, 0 if method == "exact" else _ASSIGN_EF)[0][:, 0]

    def agreement(self, x_ND: ArrayLike | Tensor) -> float:
        """The share of vectors [N, D] that both methods of `assign` give a centroid at the same distance."""
        x = _array(x_ND)
        exact, found = self.assign(x), self.assign(x, "hnsw")
        rows = np.flatnonzero(exact != found)
        gaps = [np.square(x[rows] - self.centroids[lists[rows]]).sum(1) for lists in (found, exact)]
        return 1 - float((gaps[0] > gaps[1]).sum()) / max(1, len(x))

    def save_hnsw(self, path: str | Path, *, force: bool = False) -> None:
        """Write the graph, building it first where it is not there yet; a plain index of Faiss over the centroids.

        Raises:
            DependencyError: Faiss is not installed.
            OutputExistsError: `path` exists and `force` is false.
            StorageError: the disk is full or read-only.
        """
        graph = self._hnsw()
        with atomic_output(path, force=force) as temporary:
            # Faiss's own writing has no exceptions for a full disk
            temporary.write_bytes(memoryview(self._faiss.serialize_index(graph)))

    def _check(self, x_ND: ArrayLike | Tensor, nprobe: int, ef: int) -> NDArray[Any]:
        K, D = self.centroids.shape
        if not 1 <= nprobe <= K:
            raise UsageError(f"nprobe = {nprobe}, but there are {K} lists; look into 1 to {K} of them")
        if ef < 0:
            raise UsageError(f"ef = {ef}; use 0 for an exact search, or the breadth of the HNSW search")
        x = _array(x_ND)
        if x.ndim != 2 or x.shape[1] != D:
            raise DimensionError(f"vectors of shape {x.shape} were given; the centroids have dimension {D}")
        return x

    def _map(self, work: Callable[[Floats], Found], x: NDArray[Any], nprobe: int, where: Any, size: int) -> Found:
        """`work` on chunks of rows, each with one thread.

        Threads have no part in the size of chunks: so they have none in the rounding, and none in a k-means.
        """
        chunks = [x[at : at + size] for at in range(0, len(x), size)]
        parts = run_parallel(lambda chunk: work(_floats(chunk)), chunks, where)
        if not parts:
            return np.empty((0, nprobe), np.int32), np.empty((0, nprobe), np.float32)
        return np.concatenate([lists for lists, _ in parts]), np.concatenate([gaps for _, gaps in parts])

    def _exact(self, x: Floats, nprobe: int) -> Found:
        # distances are differences of large products: without the common offset they are exacter
        x = x - self._offset
        # on a CPU Faiss takes two thirds of the time of torch's products and top-k
        if self._faiss is None or self.device.type != "cpu":
            return self._by_blocks(torch.from_numpy(x).to(self._plan.device), nprobe)
        with _one_thread(self._faiss):
            gaps, lists = self._faiss.knn(x, self._centred, nprobe)
        return lists.astype(np.int32), gaps

    def _by_blocks(self, x_ND: Tensor, nprobe: int) -> Found:
        best: list[tuple[Tensor, Tensor]] = []
        for at in range(0, len(self._table), _COLUMNS):
            block = slice(at, at + _COLUMNS)
            part = torch.addmm(self._norms[block], x_ND, self._table[block].T, alpha=-2)
            gaps, lists = part.topk(min(nprobe, part.shape[1]), largest=False)
            best = [_join([*best, (gaps, lists + at)], nprobe)]
        gaps, lists = best[0]
        gaps = (gaps + x_ND.square().sum(1, keepdim=True)).clamp_(min=0)
        return lists.to(torch.int32).cpu().numpy(), gaps.cpu().numpy()

    def _through(self, graph: Any, x: Floats, nprobe: int, ef: int) -> Found:
        with _one_thread(self._faiss):
            # parameters of this call alone: the graph is shared
            gaps, lists = graph.search(x, nprobe, params=self._faiss.SearchParametersHNSW(efSearch=ef))
        lists = lists.astype(np.int32)
        lost = np.flatnonzero((lists < 0).any(axis=1))
        if lost.size:  # centroids that no link reaches, such as one of many equal ones
            lists[lost], gaps[lost] = self._exact(x[lost], nprobe)
        return lists, gaps

    def _hnsw(self) -> Any:
        with self._lock:
            if self._graph is None:
                self._faiss = self._faiss or import_faiss()  # raises why it cannot be imported
                self._graph = self._build() if self._path is None else self._read(self._path)
        return self._graph

    def _build(self) -> Any:
        faiss = self._faiss
        graph = faiss.IndexHNSWFlat(self.centroids.shape[1], LINKS)
        graph.hnsw.efConstruction = _CONSTRUCTION
        before = faiss.omp_get_max_threads()
        try:
            faiss.omp_set_num_threads(self._plan.threads)
            graph.add(self.centroids)
        finally:
            faiss.omp_set_num_threads(before)
        return graph

    def _read(self, path: Path) -> Any:
        faiss = self._faiss
        try:
            graph = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ArtifactError(f"{path} is no HNSW graph of Faiss, or is damaged; build it again") from error
        if not isinstance(graph, faiss.IndexHNSWFlat) or (graph.ntotal, graph.d) != self.centroids.shape:
            raise ArtifactError(f"{path} is no HNSW graph of {len(self.centroids)} centroids; build it again")
        probes = np.linspace(0, graph.ntotal - 1, 64, dtype=np.int64)
        if any(not np.array_equal(graph.reconstruct(int(k)), self.centroids[k]) for k in probes):
            raise ArtifactError(f"{path} is the HNSW graph of other centroids; build it again")
        return graph

    @cached_property
    def _offset(self) -> Floats:
        return np.asarray(self.centroids.mean(axis=0, dtype=np.float64), np.float32)

    @cached_property
    def _centred(self) -> Floats:
        return np.subtract(self.centroids, self._offset)

    @cached_property
    def _table(self) -> Tensor:
        return torch.from_numpy(self._centred).to(self._plan.device)

    @cached_property
    def _norms(self) -> Tensor:
        return self._table.square().sum(1)


def _join(parts: list[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """The smallest `count` of several (distances, numbers), both [N, any], sorted."""
    gaps, lists = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
    gaps, order = gaps.topk(min(count, gaps.shape[1]), largest=False, sorted=True)
    return gaps, lists.gather(1, order)


def _faiss_or_none() -> Any:
    try:
        return import_faiss()
    except DependencyError:
        return None


def _array(x_ND: ArrayLike | Tensor) -> NDArray[Any]:
    return x_ND.detach().cpu().numpy() if isinstance(x_ND, Tensor) else np.asarray(x_ND)


def _floats(x: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise UsageError("a vector holds NaN or infinity; remove or repair such vectors first")
    return floats


@contextlib.contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """Let Faiss use the calling thread alone; the setting is each thread's own."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
