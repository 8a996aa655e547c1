"""A few operating points of `search.py`, measured in alternation: what its long ladders cannot do on a noisy machine.

Ours beside the plain cascade and Faiss, all at the same bytes a vector, 2,000 queries at once and one at a time, by
codes alone and with the original vectors as the last stage. It wants the cache that `search.py --prepare` fills. Every
round runs each point once; medians over the rounds are printed and written.
"""

from __future__ import annotations

import argparse
import functools
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
from qinco_core.vectors import VectorFile, open_vectors

# nprobe, n_mid, n_short
_OURS = (
    *((nprobe, 0, 0) for nprobe in (1, 2, 4, 8, 16, 32)),
    *((2, 10, 0), (4, 10, 0), (4, 20, 0), (8, 20, 0), (8, 40, 0), (16, 40, 0), (32, 80, 0), (32, 160, 0)),
    *((64, 160, 0), (64, 320, 0), (128, 320, 0)),
    *((16, 40, 4), (32, 60, 5), (64, 80, 5), (64, 160, 5), (64, 80, 20), (128, 160, 20)),
    *((256, 320, 20), (256, 640, 40)),
)
# nprobe, n_short
_PLAIN = ((1, 5), (2, 5), (4, 10), (8, 20), (16, 20), (32, 50), (64, 100))
_FAISS = {
    "IVF-PQ": (1, 2, 4, 8, 16, 32, 64),
    "IVF-PQ fast scan": (1, 2, 4, 8, 16, 32, 64),
    "IVF-PQ fast scan r": (1, 2, 4, 8, 16, 32, 64),
    "IVF-RQ": (1, 4, 16, 64),
}
# nprobe, n_mid, n_exact; nprobe, n_exact
_OURS_EXACT = ((4, 0, 10), (8, 0, 20), (16, 40, 20), (32, 80, 40), (64, 160, 80), (256, 400, 200))
_FAISS_EXACT = ((4, 10), (8, 20), (16, 50), (64, 100), (64, 400))
# seconds until the threads of other libraries have stopped waiting busily; seconds that are few, and runs then
_REST, _BRIEF, _RUNS = 0.1, 0.3, 5

Search = Callable[[Any], Any]  # queries [nq, D] to ids [nq, k]


def main() -> None:
    """Measure, print, write."""
    options = _parse()
    files = common.sift(options.data)
    folder = options.cache / "sift"
    store = Store(folder / f"ivf4096x{options.bytes}")
    with open_vectors(files.query) as query, open_vectors(files.groundtruth) as truth, open_vectors(files.base) as base:
        xq, gt = query.read(0, len(query)).astype(np.float32), truth.read(0, len(truth))
        faiss.omp_set_num_threads(torch.get_num_threads())
        points = _points(store, folder, files, base, options)
        found = {name: search(xq) for name, search in points.items()}  # which also warms up
        seconds: dict[str, list[float]] = {name: [] for name in points}
        for _ in range(options.repeats):
            for name, search in points.items():
                seconds[name].append(_seconds(search, xq))
        waits = {name: _alone(search, xq[: options.alone]) for name, search in points.items()}
    middle = common.medians(seconds)
    rows = []
    for name, ids in found.items():
        recall = {f"R@{k}": round(r, 4) for k, r in recall_at(ids, gt).items()}
        wait = dict(zip(("p50 ms", "p99 ms"), waits[name], strict=True))
        rows.append({"point": name, **recall, "queries/s": len(xq) / middle[name], **wait})
    common.table(rows)
    payload = {"machine": common.machine(), "bytes": options.bytes, "k": options.k, "queries": len(xq)}
    out = common.RESULTS / f"search-side-by-side-{options.bytes}-k{options.k}.json"
    common.write_json(options.output or out, payload | {"points": rows, "seconds": seconds})


def _points(
    store: Store, folder: Path, files: common.Sift, base: VectorFile, options: argparse.Namespace
) -> dict[str, Search]:
    k = options.k
    opened = Index.open(store.index, model=store.model, pairwise=store.pairwise)
    points = _ours(opened, base, k) | _faiss(store, folder, files, base, options)
    return points | ({} if options.fast else _plain(store, k))


def _seconds(search: Search, xq: Any) -> float:
    """Of one batch; of several in a row where it takes little: then the caches hold what this point reads."""
    time.sleep(_REST)
    start = time.perf_counter()
    search(xq)
    once = time.perf_counter() - start
    if once > _BRIEF:
        return once
    start = time.perf_counter()
    for _ in range(_RUNS):
        search(xq)
    return (time.perf_counter() - start) / _RUNS


def _alone(search: Search, xq: Any) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds, of queries one at a time."""
    taken = []
    for row in range(-10, len(xq)):  # ten to warm up
        start = time.perf_counter()
        search(xq[abs(row), None])
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.percentile(taken[10:], 50)), float(np.percentile(taken[10:], 99))


def _ours(index: Index, base: VectorFile, k: int) -> dict[str, Search]:
    def search(params: SearchConfig) -> Search:
        return lambda xq: index.search(xq, k, params, originals=base if params.rerank == "exact" else None)[1]

    found: dict[str, Search] = {}
    for nprobe, n_mid, n_short in _OURS:
        rerank = "qinco" if n_short else "pairwise" if n_mid else "none"
        params = SearchConfig(nprobe=nprobe, n_mid=n_mid, n_short=n_short, rerank=rerank)
        found[f"ours {nprobe} {n_mid} {n_short}"] = search(params)
    for nprobe, n_mid, n_exact in _OURS_EXACT:
        params = SearchConfig(nprobe=nprobe, n_mid=n_mid, n_short=0, n_exact=max(k, n_exact), rerank="exact")
        found[f"ours, exact {nprobe} {n_mid} {n_exact}"] = search(params)
    return found


def _faiss(
    store: Store, folder: Path, files: common.Sift, base: VectorFile, options: argparse.Namespace
) -> dict[str, Search]:
    found: dict[str, Search] = {}
    xb, k = base.read(0, len(base)), options.k
    for name, nprobes in _FAISS.items():
        if name in options.without:
            continue
        made = search_faiss.prepare(name, folder, files, options.bytes, 4096, store.centroids)
        index = faiss.read_index(str(made))
        refined = search_faiss.with_vectors(index, xb)

        def search(xq: Any, nprobe: int, n_exact: int = 0, index: Any = index, refined: Any = refined) -> Any:
            search_faiss.use(index, {"nprobe": nprobe})
            refined.k_factor = (max(k, n_exact) + 0.01) / k  # Faiss rounds k · k_factor down
            return (refined if n_exact else index).search(xq, k)[1]

        found |= {f"{name} {p}": functools.partial(search, nprobe=p) for p in nprobes}
        exact = {f"{name}, exact {p} {n}": functools.partial(search, nprobe=p, n_exact=n) for p, n in _FAISS_EXACT}
        found |= exact if name != "IVF-PQ fast scan" else {}
    return found


def _plain(store: Store, k: int) -> dict[str, Search]:
    cascade = search_plain.Cascade(search_ours.parts(store))

    def search(xq: Any, nprobe: int, n_short: int) -> Any:
        return cascade.rerank(xq, cascade.scan(xq, max(k, n_short), nprobe), n_short)[:, :k]

    return {f"plain {p} {s}": functools.partial(search, nprobe=p, n_short=s) for p, s in _PLAIN}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--bytes", type=int, default=8, help="bytes per vector, M (default %(default)s)")
    parser.add_argument("--k", type=int, default=10, help="results of a query (default %(default)s)")
    parser.add_argument("--cache", type=Path, default=common.ROOT / "benchmarks/cache", help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--alone", type=int, default=200, help="queries one at a time (default %(default)s)")
    parser.add_argument("--fast", action="store_true", help="leave out the plain cascade, which takes minutes")
    parser.add_argument("--without", nargs="*", default=[], choices=_FAISS, help="indexes of Faiss to leave out")
    parser.add_argument("--output", type=Path, help="JSON to write (default benchmarks/results/...)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
