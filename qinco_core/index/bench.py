"""How good and how fast an index is at an operating point, and a file that remembers it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.config import Metric, SearchConfig
from qinco_core.evaluation.metrics import recall_at
from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.files import storage_errors
from qinco_core.index.tune import Point, Setting, explore
from qinco_core.progress import Progress
from qinco_core.store.artifact import Header, fingerprint_of
from qinco_core.vectors import VectorFile

_WARM = 16  # queries before the clock starts
_SECONDS = 0.2  # of one repetition, at least
_REPETITIONS = 3
_LONG = 1.0  # seconds from which one repetition is enough
_ROWS = 1 << 14  # vectors compared at a time
_SINGLES = 200  # queries timed one at a time
_TOGETHER = 1000  # queries searched together where only what they find counts

Array = NDArray[Any]


class Searches(Protocol):
    """What measuring asks of an index."""

    codec: Codec

    @property
    def header(self) -> Header:
        """Of the manifest."""

    def search(
        self, xq: Array, k: int = 10, params: SearchConfig | None = None, *, metric: Metric = "l2"
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Distances and ids, [nq, k]."""


class Bench:
    """Measures operating points of an index on queries with known neighbours.

    Args:
        index: open.
        xq: queries [nq, D].
        truth: ids of their true neighbours, nearest first, [nq, T].
        setting: what to measure; its batch is no larger than there are queries.
    """

    def __init__(self, index: Searches, xq: Array, truth: Array, setting: Setting) -> None:
        self.setting = replace(setting, batch=min(setting.batch, len(xq)))
        self._index = index
        self._xq = xq
        self._truth = truth

    @property
    def key(self) -> str:
        """What the measurements are of: index, queries, neighbours, setting and machine."""
        parts = self._xq, self._truth[:, :1]
        marks = [hashlib.blake2b(np.ascontiguousarray(a).data, digest_size=16).hexdigest() for a in parts]
        fields = {"index": self._index.header.fingerprint, "queries": marks[0], "truth": marks[1]}
        plan = self._index.codec.plan
        gpu = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else None
        machine = {"precision": plan.precision, "device": plan.device.type, "cpu": _processor(), "gpu": gpu}
        return fingerprint_of(fields | self.setting.fields() | machine)

    def __call__(self, params: SearchConfig) -> Point:
        """Recall, and the median of repeated timings after a warm-up."""
        at, single = self.setting.at, self.setting.batch == 1
        self._search(params, _WARM, single=single)
        started = time.perf_counter()
        found = self._search(params, len(self._xq), single=False)
        seconds = (time.perf_counter() - started) / len(self._xq)
        recall = recall_at(found, self._truth, (at,))[at]
        count = min(_SINGLES, len(self._xq)) if single else len(self._xq)
        if single or seconds * count < _LONG:
            seconds = _median_seconds(lambda: self._search(params, count, single=single)) / count
        return Point(params, recall, seconds)

    def _search(self, params: SearchConfig, count: int, *, single: bool) -> NDArray[np.int64]:
        """The ids found for the first queries, one by one or in batches."""
        step = 1 if single else self.setting.batch if self.setting.batch > 1 else _TOGETHER
        at, metric = self.setting.at, self.setting.metric
        starts = range(0, min(count, len(self._xq)), step)
        parts = (self._xq[start : min(start + step, count)] for start in starts)
        return np.concatenate([self._index.search(part, at, params, metric=metric)[1] for part in parts])


def _processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _median_seconds(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    times: list[float] = []
    for _ in range(_REPETITIONS):
        runs, started = 0, time.perf_counter()
        while not runs or time.perf_counter() - started < _SECONDS:
            work()
            runs += 1
        times.append((time.perf_counter() - started) / runs)
        if times[-1] > _LONG:
            break
    return statistics.median(times)


def true_neighbors(vectors: VectorFile, xq: Array, metric: Metric, ids: Array) -> NDArray[np.int64]:
    """The nearest vector of each query, its row number, [nq, 1].

    Args:
        vectors: the file.
        xq: queries [nq, D].
        metric: what makes a vector near.
        ids: numbers of the rows that count, those that the index has.

    Raises:
        DimensionError: the vectors do not have the queries' dimension.
    """
    there = np.zeros(len(vectors), bool)
    there[ids] = True
    starts = range(0, len(vectors), _ROWS)
    blocks = (vectors.read(at, min(at + _ROWS, len(vectors)))[there[at : at + _ROWS]] for at in starts)
    return np.flatnonzero(there)[exact_neighbors(blocks, xq, 1, metric=metric)[0]]


class Notebook:
    """Measured points as lines of JSON, so that an exploration that was stopped goes on where it was.

    Args:
        path: the file, which may be there, with measurements of other things too.
        key: what is measured now.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def read(self) -> list[Point]:
        """The points measured under this key; lines that were cut or damaged do not count."""
        points = []
        for line in self.path.read_text("utf-8", "replace").splitlines() if self.path.exists() else ():
            try:
                entry = json.loads(line)
                if entry["key"] == self.key:
                    points.append(Point.parse(entry))
            except (KeyError, TypeError, ValueError):
                continue
        return points

    def append(self, point: Point) -> None:
        """Note a point.

        Raises:
            StorageError: the disk is full or read-only.
        """
        with storage_errors(self.path), self.path.open("a+b") as handle:
            handle.seek(max(0, handle.seek(0, 2) - 1))
            cut = handle.read(1) not in (b"", b"\n")  # a kill may have left half a line
            line = json.dumps({"key": self.key} | point.fields())
            handle.write(b"\n" * cut + line.encode() + b"\n")


def explore_noting(
    bench: Bench,
    points: Sequence[SearchConfig],
    notebook: Notebook,
    *,
    budget: float = math.inf,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Point], bool]:
    """Explore operating points, noting each, until all are settled or `stop` says so.

    Args:
        bench: measures a point.
        points: in the order to look at them.
        notebook: what was measured before, and takes what is measured now.
        budget: seconds a query.
        progress: told of every point; those left out count too.
        stop: asked after every point.

    Returns:
        All that the notebook has, old and new, and whether all points are settled.
    """
    place = {params: i for i, params in enumerate(points)}
    measured = notebook.read()
    # what is not asked for now, being too large, must not rule out what is
    known = [point for point in measured if point.params in place]
    progress.begin("tuning", len(points), "points")
    done, settled = 0, False
    for point in explore(points, bench, known=known, budget=budget):
        notebook.append(point)
        measured.append(point)
        progress.advance(place[point.params] + 1 - done, recall=point.recall, rate=1 / point.seconds)
        done = place[point.params] + 1
        if stop():
            break
    else:
        settled = True
    progress.end()
    return measured, settled
