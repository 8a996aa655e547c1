"""Operating points of searches: measured once, kept line by line, compared at equal recall."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt

from qinco_core.evaluation.metrics import recall_at

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Settings = dict[str, Any]
Search = Callable[[Floats], Ids]  # queries [nq, D] to ids [nq, k]

KS = (1, 10, 100)
# latency of single queries is measured at this many results
ALONE_K = 10
# a longer search that adds less recall than this, 2 queries of 2,000, ends its ladder
_GAIN = 0.001


@dataclass(frozen=True)
class Point:
    """What one method reached with one setting.

    Attributes:
        method: its name in the tables.
        k: results asked for.
        settings: of the search.
        recall: R@1, R@10, R@100, those up to k, and R@k.
        rate: queries per second of the whole batch, from the median of the runs.
        seconds: of each run.
        p50_ms: median of the queries made one at a time, in milliseconds; None where not measured.
        p99_ms: their 99th percentile.
    """

    method: str
    k: int
    settings: Settings
    recall: dict[int, float]
    rate: float
    seconds: list[float]
    p50_ms: float | None = None
    p99_ms: float | None = None


class Bench:
    """Measures points that are not yet in its file, and appends each as soon as it is known."""

    def __init__(self, path: Path, xq: Floats, truth: Ids, *, repeats: int = 3, alone: int = 300) -> None:
        """Read the points measured so far.

        Args:
            path: file of JSON lines, made where there is none.
            xq: queries [nq, D].
            truth: their true neighbours [nq, any].
            repeats: timed runs of the batch, after one that warms up and gives the recall.
            alone: queries made one at a time; 0 to leave that out.
        """
        self.path, self.xq, self.truth = path, xq, truth
        self.repeats, self.alone = repeats, alone
        self.points = {_key(p.method, p.k, p.settings): p for p in read_points(path)}
        self._started = False

    def ladder(self, method: str, k: int, rungs: Iterable[Settings]) -> Iterator[Settings]:
        """Those settings, cheapest first, that `ensure` or `add` must measure, until recall no longer rises."""
        before = -1.0
        for settings in rungs:
            key = _key(method, k, settings)
            if key not in self.points:
                yield settings
            recall = self.points[key].recall[k]
            if recall < before + _GAIN:
                return
            before = recall

    def ensure(self, method: str, k: int, settings: Settings, search: Search, alone: Sequence[Search] = ()) -> Point:
        """The point of one setting, measured if it was not yet.

        Args:
            method: its name.
            k: results that `search` gives.
            settings: what it searches with.
            search: takes any number of queries.
            alone: ways to make a single query; the fastest counts. `search` by default.
        """
        key = _key(method, k, settings)
        if key not in self.points:
            recall = recall_at(search(self.xq), self.truth, {*KS, k})
            seconds = self.timed(search)
            p50, p99 = self.latency(alone or (search,)) if self.alone and k == ALONE_K else (None, None)
            rate = len(self.xq) / statistics.median(seconds)
            self.add(Point(method, k, settings, recall, rate, seconds, p50, p99))
        return self.points[key]

    def timed(self, search: Search) -> list[float]:
        """Seconds of the whole batch, each of the runs."""
        return common.alternate({"search": lambda: search(self.xq)}, self.repeats)["search"]

    def latency(self, searches: Sequence[Search]) -> tuple[float, float]:
        """Median and 99th percentile, in milliseconds, of single queries; of the search with the lower median."""
        return min(self._latency(search) for search in searches)

    def _latency(self, search: Search) -> tuple[float, float]:
        for row in range(10):
            search(self.xq[row : row + 1])
        taken = []
        for row in range(min(self.alone, len(self.xq))):
            start = time.perf_counter()
            search(self.xq[row : row + 1])
            taken.append((time.perf_counter() - start) * 1e3)
        p50, p99 = np.percentile(taken, (50, 99))
        return float(p50), float(p99)

    def add(self, point: Point) -> None:
        """Keep a point."""
        self.points[_key(point.method, point.k, point.settings)] = point
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if not self._started:
                file.write(json.dumps({"machine": common.machine()}) + "\n")
                self._started = True
            file.write(json.dumps(asdict(point)) + "\n")
        recall = "  ".join(f"R@{k} {share:.3f}" for k, share in point.recall.items())
        print(f"{point.method}  k={point.k}  {point.settings}  {recall}  {point.rate:,.0f}/s", file=sys.stderr)


def read_points(path: Path) -> list[Point]:
    """The points of a file, none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [record for record in map(json.loads, lines) if "method" in record]
    return [Point(**record | {"recall": {int(k): r for k, r in record["recall"].items()}}) for record in records]


def read_machines(path: Path) -> list[dict[str, Any]]:
    """The machine of each session that added points to a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record["machine"] for record in map(json.loads, lines) if "machine" in record]


def best(points: Iterable[Point], at: int, recall: float) -> Point | None:
    """The fastest point whose R@`at` is `recall` or more; None where none is."""
    return max((p for p in points if p.recall.get(at, -1.0) >= recall), key=lambda p: p.rate, default=None)


def soonest(points: Iterable[Point], at: int, recall: float) -> Point | None:
    """The point of lowest median latency whose R@`at` is `recall` or more; None where none is."""
    reached = (p for p in points if p.p50_ms is not None and p.recall.get(at, -1.0) >= recall)
    return min(reached, key=lambda p: p.p50_ms or 0.0, default=None)


def front(points: Iterable[Point], at: int) -> list[Point]:
    """The points that no other beats in both R@`at` and rate, by rising recall."""
    kept: list[Point] = []
    highest = -1.0
    for p in sorted((p for p in points if at in p.recall), key=lambda p: (-p.rate, -p.recall[at])):
        if p.recall[at] > highest:
            kept.append(p)
            highest = p.recall[at]
    return kept


def _key(method: str, k: int, settings: Settings) -> str:
    return json.dumps([method, k, settings], sort_keys=True)
