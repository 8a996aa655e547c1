"""A few operating points of `search.py`, measured in alternation: what its long ladders cannot do on a noisy machine.

Ours beside the plain cascade and Faiss, all at the same bytes a vector, 2,000 queries at once, ten results. It wants
the cache that `search.py --prepare` fills. Every round runs each point once; medians over the rounds are printed and
written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import faiss
import numpy as np
import search_faiss
import search_ours
import search_plain
import torch

from qinco_core.config import SearchConfig
from qinco_core.evaluation.metrics import recall_at
from qinco_core.index.index import Index
from qinco_core.store import Store
from qinco_core.vectors import open_vectors

# nprobe, n_mid, n_short
_OURS = (
    *((nprobe, 0, 0) for nprobe in (1, 2, 4, 8, 16, 32)),
    *((2, 10, 0), (4, 10, 0), (4, 20, 0), (8, 20, 0), (8, 40, 0), (16, 40, 0)),
    *((2, 10, 2), (4, 10, 2), (8, 20, 2), (16, 40, 4), (32, 60, 5)),
    *((64, 80, 20), (128, 160, 20), (256, 320, 20), (256, 640, 40)),
)
# nprobe, n_short
_PLAIN = (
    (1, 5),
    (2, 5),
    (4, 5),
    (4, 10),
    (8, 10),
    (8, 20),
    (16, 20),
    (32, 20),
    (32, 50),
    (64, 50),
    (64, 100),
    (128, 100),
)
_FAISS = {
    "IVF-PQ": (1, 2, 4, 8, 16, 32, 64),
    "IVF-PQ fast scan": (1, 2, 4, 8, 16, 32, 64),
    "IVF-PQ fast scan r": (1, 2, 4, 8, 16, 32, 64),
    "IVF-RQ": (1, 4, 16, 64, 256),
}
_K = 10
# seconds until the threads of other libraries have stopped waiting busily; seconds that are few, and runs then
_REST, _BRIEF, _RUNS = 0.1, 0.3, 5

Search = Callable[[], Any]


def main() -> None:
    """Measure, print, write."""
    options = _parse()
    files = common.sift(options.data)
    folder = options.cache / "sift"
    store = Store(folder / f"ivf4096x{options.bytes}")
    with open_vectors(files.query) as query, open_vectors(files.groundtruth) as truth:
        xq, gt = query.read(0, len(query)).astype(np.float32), truth.read(0, len(truth))
    faiss.omp_set_num_threads(torch.get_num_threads())
    points = _ours(store, xq) | _faiss(folder, files, options.bytes, store, xq) | _plain(store, xq)
    found = {name: search() for name, search in points.items()}  # which also warms up
    seconds: dict[str, list[float]] = {name: [] for name in points}
    for _ in range(options.repeats):
        for name, search in points.items():
            seconds[name].append(_seconds(search))
    middle = common.medians(seconds)
    rows = []
    for name, ids in found.items():
        recall = {f"R@{k}": round(r, 4) for k, r in recall_at(ids, gt).items()}
        rows.append({"point": name, **recall, "queries/s": len(xq) / middle[name]})
    common.table(rows)
    payload = {
        "machine": common.machine(),
        "bytes": options.bytes,
        "k": _K,
        "queries": len(xq),
        "points": rows,
        "seconds": seconds,
    }
    common.write_json(options.output or f"benchmarks/results/search-side-by-side-{options.bytes}.json", payload)


def _seconds(search: Search) -> float:
    """Of one batch; of several in a row where it takes little: then the caches hold what this point reads."""
    time.sleep(_REST)
    start = time.perf_counter()
    search()
    once = time.perf_counter() - start
    if once > _BRIEF:
        return once
    start = time.perf_counter()
    for _ in range(_RUNS):
        search()
    return (time.perf_counter() - start) / _RUNS


def _ours(store: Store, xq: Any) -> dict[str, Search]:
    index = Index.open(store.index, model=store.model, pairwise=store.pairwise)
    found: dict[str, Search] = {}
    for nprobe, n_mid, n_short in _OURS:
        rerank = "qinco" if n_short else "pairwise" if n_mid else "none"
        params = SearchConfig(nprobe=nprobe, n_mid=n_mid, n_short=n_short, rerank=rerank)
        found[f"ours {nprobe} {n_mid} {n_short}"] = lambda params=params: index.search(xq, _K, params)[1]
    return found


def _faiss(folder: Path, files: common.Sift, M: int, store: Store, xq: Any) -> dict[str, Search]:
    found: dict[str, Search] = {}
    for name, nprobes in _FAISS.items():
        index = faiss.read_index(str(search_faiss.prepare(name, folder, files, M, 4096, store.centroids)))
        for nprobe in nprobes:

            def search(index: Any = index, nprobe: int = nprobe) -> Any:
                search_faiss._set(index, {"nprobe": nprobe})
                return index.search(xq, _K)[1]

            found[f"{name} {nprobe}"] = search
    return found


def _plain(store: Store, xq: Any) -> dict[str, Search]:
    cascade = search_plain.Cascade(search_ours.parts(store))

    def search(nprobe: int, n_short: int) -> Any:
        return cascade.rerank(xq, cascade.scan(xq, max(_K, n_short), nprobe), n_short)[:, :_K]

    return {f"plain {p} {s}": lambda p=p, s=s: search(p, s) for p, s in _PLAIN}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--bytes", type=int, default=8, help="bytes per vector, M (default %(default)s)")
    parser.add_argument("--cache", type=Path, default=common.ROOT / "benchmarks/cache", help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON to write (default benchmarks/results/...)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
