"""Faiss's IVF indexes for `search.py`: trained, filled and kept in a folder, then measured.

Every index has K_IVF lists, around the same centroids as ours, and M bytes a vector; IVF-RQ has one more for its norms.
All train on every vector of `learn`, other settings being Faiss's own. PQ fast scan is there with codes of the vectors
and with codes of the residuals ("r"), as neither is better at every recall.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common
import faiss
import numpy as np
import numpy.typing as npt
from search_points import KS, Bench, Floats, Ids, Search, Settings

from qinco_core.files import atomic_output
from qinco_core.store import load_centroids
from qinco_core.vectors import open_vectors

Bytes = npt.NDArray[np.uint8]

# names in the tables, and what Faiss's factory makes the indexes from
FACTORY = {
    "IVF-PQ": "IVF{lists},PQ{M}",
    "IVF-PQ fast scan": "IVF{lists},PQ{twice}x4fs",
    "IVF-PQ fast scan r": "IVF{lists},PQ{twice}x4fsr",
    "IVF-RQ": "IVF{lists}_HNSW32,RQ{M}x8_Nqint8",
}
NPROBE = tuple(1 << i for i in range(10))
# entries that exact distances re-rank, for each number of results
N_EXACT = {1: (2, 5), 10: (10, 20, 50, 100, 200), 100: (100, 200, 500)}
_ROWS = 1 << 16


def prepare(name: str, folder: Path, files: common.Sift, M: int, lists: int, centroids: Path) -> Path:
    """The file of the filled index of that name; made if it is not in `folder` yet, which takes minutes."""
    factory = FACTORY[name].format(lists=lists, M=M, twice=2 * M)
    path = folder / f"faiss-{factory.replace(',', '-')}.index"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        index = _fill(factory, files, centroids)
        with atomic_output(path, force=True) as temporary:
            faiss.write_index(index, str(temporary))
    return path


def measure(bench: Bench, name: str, path: Path, xb: Bytes | None = None) -> None:
    """Every operating point of an index; with the base vectors xb, of that index with exact re-ranking."""
    index = faiss.read_index(str(path))
    if xb is None:
        for k in KS:
            for settings in bench.ladder(name, k, ({"nprobe": nprobe} for nprobe in NPROBE)):
                use(index, settings)
                bench.ensure(name, k, settings, _search(index, k), _alone(index, k))
        return
    name, refined = f"{name}, exact", with_vectors(index, xb)
    for k, counts in N_EXACT.items():
        for n_exact in counts:
            refined.k_factor = (n_exact + 0.01) / k  # Faiss rounds k · k_factor down
            for settings in bench.ladder(name, k, ({"n_exact": n_exact, "nprobe": nprobe} for nprobe in NPROBE)):
                use(index, settings)
                bench.ensure(name, k, settings, _search(refined, k), _alone(refined, k))


def _fill(factory: str, files: common.Sift, centroids: Path) -> Any:
    print(f"training and filling {factory} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    with open_vectors(files.learn) as learn, open_vectors(files.base) as base:
        index = faiss.index_factory(base.dim, factory)
        index.quantizer.add(load_centroids(centroids).centroids)
        _train_on_all(index, len(learn))
        index.train(learn.read(0, len(learn)).astype(np.float32))
        for v in base.batches(_ROWS):
            index.add(v.astype(np.float32))
    print(f"{factory}: {time.perf_counter() - start:,.0f} s", file=sys.stderr, flush=True)
    return index


def _train_on_all(index: Any, nt: int) -> None:
    """Let every vector train, where Faiss would sample."""
    quantizer = index.rq if hasattr(index, "rq") else index.pq
    ksub = quantizer.ksub if hasattr(quantizer, "ksub") else 256
    quantizer.cp.max_points_per_centroid = -(-nt // ksub)
    quantizer.cp.min_points_per_centroid = 1


def with_vectors(index: Any, xb: Bytes) -> Any:
    """The index with exact distances to the original vectors, kept as bytes, as its last stage."""
    vectors = faiss.IndexScalarQuantizer(xb.shape[1], faiss.ScalarQuantizer.QT_8bit_direct)
    for start in range(0, len(xb), _ROWS):
        vectors.add(xb[start : start + _ROWS].astype(np.float32))
    return faiss.IndexRefine(index, vectors)


def use(index: Any, settings: Settings) -> None:
    """Set what a search looks at."""
    index.nprobe, index.parallel_mode = settings["nprobe"], 0
    coarse = faiss.downcast_index(index.quantizer)
    if isinstance(coarse, faiss.IndexHNSW):
        coarse.hnsw.efSearch = max(16, 2 * settings["nprobe"])


def _search(index: Any, k: int) -> Search:
    return lambda xq: index.search(xq, k)[1]


def _alone(index: Any, k: int) -> tuple[Search, ...]:
    """One query by one thread, and by all threads sharing out its lists."""
    ivf = faiss.extract_index_ivf(index)

    def search(mode: int) -> Search:
        def run(xq: Floats) -> Ids:
            ivf.parallel_mode = mode
            return index.search(xq, k)[1]

        return run

    return (search(1), search(0))
