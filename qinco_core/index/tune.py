"""Operating points of an index: explored from coarse to fine, pruned by bounds, the best of them kept.

Recall and time both grow with every parameter of the cascade. So a measured point bounds the recall of all smaller
points from above and the time of all larger ones from below, and a point is left out when another that was measured
is at least as good as its bounds allow (as Faiss's OperatingPoints does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from qinco_core.config import Metric, SearchConfig
from qinco_core.errors import UsageError

_NPROBE_MAX = 1024
_GRAPH_FROM = 4096  # up to here comparing centroids costs less than a graph
_EFS = (16, 64, 256, 1024)
_SHORTEST = 5


@dataclass(frozen=True)
class Setting:
    """What is measured: hits among `at` results, with `batch` queries at a time on `threads` threads."""

    at: int = 10
    batch: int = 1000
    threads: int = 1
    metric: Metric = "l2"

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Point:
    """An operating point with its recall and its seconds a query."""

    params: SearchConfig
    recall: float
    seconds: float

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {"recall": self.recall, "seconds": self.seconds, "params": self.params.model_dump()}

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Point:
        """The inverse of `fields`.

        Raises:
            KeyError, TypeError, ValueError: they are of something else.
        """
        return cls(SearchConfig.parse(fields["params"]), float(fields["recall"]), float(fields["seconds"]))


def grid(nlist: int, at: int, metric: Metric = "l2", *, pairwise: bool) -> list[SearchConfig]:
    """The points worth a look, those first that bound many others.

    Args:
        nlist: lists of the index.
        at: results a query.
        metric: of the search; a graph of the centroids knows squared distances only.
        pairwise: whether the index has a pairwise decoder.
    """
    top = min(nlist, _NPROBE_MAX)
    nprobes = [*_doublings(1, top - 1), top]
    efs = [0, *(_EFS if nlist > _GRAPH_FROM and metric == "l2" else ())]
    shorts = [0, *_doublings(max(2 * at, _SHORTEST), max(256, 8 * at))]
    mids = [0, *(_doublings(2 * max(at, _SHORTEST), max(1280, 16 * at)) if pairwise else ())]
    axes = (nprobes, efs, mids, shorts)
    ranked = []
    for place in product(*(range(len(axis)) for axis in axes)):
        nprobe, ef, n_mid, n_short = (axis[i] for axis, i in zip(axes, place, strict=True))
        if 0 < ef < nprobe or 0 < n_mid <= n_short:
            continue
        levels = [_level(i, len(axis)) for i, axis in zip(place, axes, strict=True)]
        ranked.append(((max(levels), sum(levels), nprobe * (1 + n_mid + n_short)), _point(nprobe, ef, n_mid, n_short)))
    return [params for _, params in sorted(ranked, key=lambda entry: entry[0])]


def _point(nprobe: int, ef: int, n_mid: int, n_short: int) -> SearchConfig:
    rerank = "qinco" if n_short else "pairwise" if n_mid else "none"
    return SearchConfig.parse({"nprobe": nprobe, "ef": ef, "n_mid": n_mid, "n_short": n_short, "rerank": rerank})


def _doublings(first: int, last: int) -> list[int]:
    return [first << i for i in range(64) if first << i <= last]


def _level(i: int, count: int) -> int:
    """When a place of an axis is looked at: its ends at 0, then its middle at 1, quarters at 2, and so on."""
    low, high, level = 0, count - 1, 0
    while i not in (low, high):
        middle, level = (low + high) // 2, level + 1
        low, high = (low, middle) if i <= middle else (middle, high)
    return level


def _no_better(a: SearchConfig, b: SearchConfig) -> bool:
    """Whether every parameter of `a` allows at most the recall that `b`'s does."""
    return _reach(a.ef) <= _reach(b.ef) and _no_larger(a, b)


def _no_slower(a: SearchConfig, b: SearchConfig) -> bool:
    """Whether every parameter of `a` costs at most what `b`'s does; a graph and no graph cannot be compared."""
    return (a.ef == 0) == (b.ef == 0) and a.ef <= b.ef and _no_larger(a, b)


def _no_larger(a: SearchConfig, b: SearchConfig) -> bool:
    return a.nprobe <= b.nprobe and a.n_mid <= b.n_mid and a.n_short <= b.n_short


def _reach(ef: int) -> float:
    return ef or math.inf


def _hopeless(params: SearchConfig, measured: Sequence[Point], budget: float) -> bool:
    """Whether a point cannot be better than one that was measured, or is too slow."""
    recall = min((m.recall for m in measured if _no_better(params, m.params)), default=1.0)
    seconds = max((m.seconds for m in measured if _no_slower(m.params, params)), default=0.0)
    return seconds > budget or any(m.recall >= recall and m.seconds <= seconds for m in measured)


def explore(
    points: Iterable[SearchConfig],
    measure: Callable[[SearchConfig], Point],
    *,
    known: Sequence[Point] = (),
    budget: float = math.inf,
) -> Iterator[Point]:
    """Measure points one by one, leaving out those that cannot matter any more.

    Args:
        points: in the order to look at them.
        measure: takes the time.
        known: measured before.
        budget: seconds a query; points that cannot keep it are left out.

    Yields:
        Each point that was measured.
    """
    measured = list(known)
    done = {point.params for point in known}
    for params in points:
        if params not in done and not _hopeless(params, measured, budget):
            measured.append(measure(params))
            yield measured[-1]


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that none other is as fast as and better than; fastest first, recall rising."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.seconds, -p.recall)):
        if not front or point.recall > front[-1].recall:
            front.append(point)
    return front


def fastest(points: Iterable[Point], recall: float, budget: float = math.inf) -> Point | None:
    """The fastest point that reaches a recall within the budget, in seconds a query; None if there is none."""
    good = [point for point in points if point.recall >= recall and point.seconds <= budget]
    return min(good, key=lambda point: point.seconds, default=None)


def merge_front(old: Sequence[dict[str, Any]], new: Sequence[Point], setting: Setting) -> list[dict[str, Any]]:
    """The front for the manifest: the new points in place of those that were measured in the same setting."""
    kept = [entry for entry in old if not _is_of(entry, setting)]
    return kept + [setting.fields() | point.fields() for point in new]


def known_points(front: Sequence[dict[str, Any]], setting: Setting) -> list[Point]:
    """The points of a manifest's front that were measured in a setting."""
    return [Point.parse(entry) for entry in front if _is_of(entry, setting)]


def _is_of(entry: dict[str, Any], setting: Setting) -> bool:
    return all(entry.get(name) == value for name, value in setting.fields().items())


def operating_point(front: Sequence[dict[str, Any]], recall: float, at: int, metric: str, *, single: bool) -> Point:
    """The fastest known point that reaches a recall.

    Args:
        front: of the manifest.
        recall: R@at wanted.
        at: results in which the true neighbour counts.
        metric: of the search.
        single: prefer what was measured one query at a time; else what was not.

    Raises:
        UsageError: none reaches it, or none was measured; the message says which command would look for one.
    """
    known = [entry for entry in front if entry["at"] == at and entry["metric"] == metric]
    points = [Point.parse(entry) for entry in known]
    alike = [point for point, entry in zip(points, known, strict=True) if (entry["batch"] == 1) == single]
    found = fastest(alike, recall) or fastest(points, recall)
    if found is not None:
        return found
    wanted = f"qinco tune XQ --groundtruth GT --at {at} --metric {metric}"
    if not points:
        raise UsageError(f"the index knows no operating points for R@{at} by {metric}: find some with {wanted}")
    best = max(point.recall for point in points)
    raise UsageError(
        f"no known operating point reaches R@{at} = {recall:g}; the best reaches {best:.3f}. Ask for less, "
        f"look for more with {wanted}, or encode with more bytes"
    )
