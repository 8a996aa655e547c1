"""Our index for `search.py`: how it is made, and its operating points.

Everything is made through the command line into one store, step by step; what is there already is kept. The points
are found in two looks: one quick run of each that the bounds of `qinco_core.index.tune` do not rule out, on half the
queries, then a full measurement of those on the front or near it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import common
import numpy as np
from search_plain import Parts
from search_points import KS, Bench, Point, Search, best

from qinco_core.api import Codec
from qinco_core.config import SearchConfig
from qinco_core.index import tune
from qinco_core.index.index import Index
from qinco_core.store import Store, load_centroids, load_pairwise, open_codes
from qinco_core.vectors import VectorFile

NAME, EXACT = "ours", "ours, exact"
NPROBE = tuple(1 << i for i in range(10))
# with exact re-ranking: how many entries, for each number of results, and how many times as many pairwise scores
_N_EXACT = {1: (2, 5, 10, 20, 50), 10: (10, 20, 50, 100, 200), 100: (100, 200, 500)}
_MIDS = (0, 2, 4, 8)
# slower operating points are not looked for, in seconds a query
_SLOWEST = 3e-3
# points that a first look finds within this share of the front are measured in full
_NEAR = 0.8


def prepare(store: Store, files: common.Sift, M: int, lists: int, seconds: float) -> None:
    """Make centroids, model, codes, pairwise decoder and index, those that are missing; an hour on two cores."""
    learn, base = str(files.learn), str(files.base)
    codes = {name: str(store.codes(name)) for name in ("learn", "base")}
    _make(store, store.centroids, "centroids", learn, "--k", str(lists))
    ivf = ("--ivf", str(store.centroids), "--M", str(M))
    _make(store, store.model, "train", learn, *ivf, "--preset", "qinco2-S", "--time", f"{seconds:g}s")
    _make(store, store.codes("learn"), "encode", learn, "--name", "learn")
    _make(store, store.codes("base"), "encode", base, "--name", "base")
    _make(store, store.pairwise, "pairwise", learn, "--codes", codes["learn"], "--base", codes["base"])
    _make(store, store.index / "manifest.h5", "index", codes["base"])


def _make(store: Store, output: Path, *arguments: str) -> None:
    if output.exists():
        return
    line = [sys.executable, "-m", "qinco_cli", *arguments, "--store", str(store.root)]
    print(shlex.join(["qinco", *line[3:]]), file=sys.stderr, flush=True)
    if code := subprocess.run(line, check=False).returncode:
        sys.exit(code)


def parts(store: Store) -> Parts:
    """What the plain cascade shares with our index: model, centroids, additive codebooks and codes."""
    codec = Codec.load(store.model)
    with open_codes(store.codes("base")) as file:
        batches = list(file.batches(1 << 16))
    codes = [np.column_stack([rows.lists, codec.unpack(rows.codes)]).astype(np.int32) for rows in batches]
    additive = load_pairwise(store.pairwise).additive_MKD
    return Parts(codec.network, load_centroids(store.centroids).centroids, additive, np.concatenate(codes))


def measure(bench: Bench, scout: Bench, index: Index) -> None:
    """The operating points near the front, found by a first look with `scout`."""

    def search(params: SearchConfig, k: int) -> Search:
        return lambda xq: index.search(xq, k, params)[1]

    for k in KS:

        def look(params: SearchConfig, k: int = k) -> tune.Point:
            point = scout.ensure(NAME, k, params.model_dump(), search(params, k))
            return tune.Point(params, point.recall[k], 1 / point.rate)

        grid = tune.grid(index.nlist, k, pairwise=index.has_pairwise)
        for _ in tune.explore(grid, look, budget=_SLOWEST):
            pass
        _measure_near(bench, scout, NAME, k, search)


def measure_exact(bench: Bench, scout: Bench, index: Index, originals: VectorFile) -> None:
    """The same with the original vectors as the last stage."""

    def search(params: SearchConfig, k: int) -> Search:
        return lambda xq: index.search(xq, k, params, originals=originals)[1]

    for k in KS:
        for n_exact in _N_EXACT[k]:
            for times in _MIDS if index.has_pairwise else (0,):
                fields = {"n_mid": times * n_exact, "n_short": 0, "n_exact": n_exact, "rerank": "exact"}
                rungs = [SearchConfig(nprobe=nprobe, **fields) for nprobe in NPROBE if nprobe <= index.nlist]
                for settings in scout.ladder(EXACT, k, [params.model_dump() for params in rungs]):
                    scout.ensure(EXACT, k, settings, search(SearchConfig.parse(settings), k))
        _measure_near(bench, scout, EXACT, k, search)


def _measure_near(bench: Bench, scout: Bench, name: str, k: int, search: Callable[[SearchConfig, int], Search]) -> None:
    """Measure in full what the first look found near the front of R@k."""
    seen = [p for p in scout.points.values() if p.method == name and p.k == k]
    for point in sorted(_near(seen, k), key=lambda p: p.recall[k]):
        bench.ensure(name, k, point.settings, search(SearchConfig.parse(point.settings), k))


def _near(points: list[Point], at: int) -> Iterable[Point]:
    for point in points:
        rival = best(points, at, point.recall[at])
        if rival is not None and point.rate >= _NEAR * rival.rate:
            yield point
