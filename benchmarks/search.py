"""Search: recall against queries per second, our index beside Faiss's and beside the cascade done the plain way.

    python benchmarks/search.py --data DIR --bytes 8 --prepare
    python benchmarks/search.py --data DIR --bytes 8 --methods faiss plain ours

SIFT vectors in 4,096 lists, M bytes a vector, all on the same threads. A point is a batch of all queries (the median
of three runs after one that warms up) searched for 1, 10 and 100 results, and 300 queries one at a time for 10.

What takes long is made once and kept in --cache: Faiss's indexes (half an hour), and our model, codes and index
(more than an hour, through the command line; a store that has some of these files already is completed). Do that
first, with --prepare. Every point is kept there too as soon as it is measured, so an interrupted run goes on where it
was; --fresh forgets them first. Each run prints and writes what is known of all methods so far; --methods with no name
does nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import faiss
import numpy as np
import search_faiss
import search_ours
import search_plain
import search_report
import torch
from search_points import Bench

from qinco_core.index.index import Index
from qinco_core.store import Store
from qinco_core.vectors import open_vectors

METHODS = ("faiss", "faiss-exact", "plain", "ours", "ours-exact")


def main() -> None:
    """Prepare, measure what is not yet measured, report."""
    options = _parse()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    files = common.sift(options.data)
    folder = options.cache / ("sift" if files.full else "sample")
    lists = options.lists or (4096 if files.full else 64)
    store = Store(folder / f"ivf{lists}x{options.bytes}")
    _prepare(options, files, folder, store, lists)
    paths = {name: folder / f"points-{lists}x{options.bytes}-{name}.jsonl" for name in METHODS}
    if not options.prepare:
        for name in options.methods:
            if options.fresh:
                for path in (paths[name], _scouted(paths[name])):
                    path.unlink(missing_ok=True)
            _measure(name, options, files, folder, store, lists, paths[name])
    # results on the shipped sample compare with nothing, so they stay out of the way
    out = common.RESULTS if files.full else folder
    search_report.report(list(paths.values()), out, options.bytes, lists, full=files.full)


def _prepare(options: argparse.Namespace, files: common.Sift, folder: Path, store: Store, lists: int) -> None:
    """Make what the methods need, whatever is missing of it."""
    if options.prepare or options.methods:
        search_ours.prepare(store, files, options.bytes, lists, options.seconds)
    if options.prepare or {"faiss", "faiss-exact"} & set(options.methods):
        for name in search_faiss.FACTORY:
            search_faiss.prepare(name, folder, files, options.bytes, lists, store.centroids)


def _measure(
    name: str, options: argparse.Namespace, files: common.Sift, folder: Path, store: Store, lists: int, path: Path
) -> None:
    """Measure one method."""
    with open_vectors(files.query) as query, open_vectors(files.groundtruth) as truth:
        xq, gt = query.read(0, len(query)).astype(np.float32), truth.read(0, len(truth))
    bench = Bench(path, xq, gt, repeats=options.repeats, alone=options.alone)
    if name == "plain":
        search_plain.measure(bench, search_plain.Cascade(search_ours.parts(store)))
        return
    with open_vectors(files.base) as base:
        if name.startswith("faiss"):
            xb = base.read(0, len(base)) if name == "faiss-exact" else None
            for index in search_faiss.FACTORY:
                made = search_faiss.prepare(index, folder, files, options.bytes, lists, store.centroids)
                search_faiss.measure(bench, index, made, xb)
            return
        # half the queries tell near which points the front is
        scout = Bench(_scouted(path), xq[::2], gt[::2], repeats=1, alone=0)
        with Index.open(store.index, model=store.model, pairwise=store.pairwise, threads=options.threads) as opened:
            if name == "ours":
                search_ours.measure(bench, scout, opened)
            else:
                search_ours.measure_exact(bench, scout, opened, base)


def _scouted(path: Path) -> Path:
    return path.with_suffix(".scout.jsonl")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--bytes", type=int, default=8, help="bytes per vector, M (default %(default)s)")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--prepare", action="store_true", help="only make what --cache lacks")
    parser.add_argument("--fresh", action="store_true", help="first forget what --methods measured before")
    parser.add_argument("--cache", type=Path, default=common.ROOT / "benchmarks/cache", help="default %(default)s")
    parser.add_argument("--lists", type=int, help="K_IVF (default 4096; 64 with the shipped sample)")
    parser.add_argument("--seconds", type=float, default=600.0, help="training of our model (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a point (default %(default)s)")
    parser.add_argument("--alone", type=int, default=300, help="queries one at a time (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
