"""Tables, picture and JSON of `search.py`: each method's best rate at equal recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import search_ours
import search_plain
from search_points import KS, Point, best, front, read_machines, read_points, soonest

from qinco_core.evaluation.picture import RateCurve, draw_recall_rate

# columns of the tables and the methods that each is the best of
_BY_CODES = {
    "IVF-PQ": ("IVF-PQ",),
    "fast scan": ("IVF-PQ fast scan", "IVF-PQ fast scan r"),
    "IVF-RQ": ("IVF-RQ",),
    search_plain.SCAN: (search_plain.SCAN,),
    search_plain.NAME: (search_plain.NAME,),
    search_ours.NAME: (search_ours.NAME,),
}
_BY_VECTORS = {
    **{name: tuple(f"{m}, exact" for m in _BY_CODES[name]) for name in ("IVF-PQ", "fast scan", "IVF-RQ")},
    search_ours.NAME: (search_ours.EXACT,),
}
_RECALLS = (*(i / 20 for i in range(1, 20)), 0.97, 0.98, 0.99, 0.995, 1.0)

Columns = dict[str, list[Point]]


def report(paths: Sequence[Path], out: Path, M: int, lists: int, *, full: bool) -> None:
    """Print what the points in these files say; write it to the folder `out` with pictures."""
    points = [point for path in paths for point in read_points(path)]
    if not points:
        return
    result: dict[str, Any] = {
        "benchmark": "search",
        "machines": [machine for path in paths for machine in read_machines(path)],
        "full": full,
        "bytes": M,
        "lists": lists,
        "tables": [],
    }
    for title, methods in (("by codes alone", _BY_CODES), ("with exact re-ranking", _BY_VECTORS)):
        columns = {name: [p for p in points if p.method in among] for name, among in methods.items()}
        columns = {name: found for name, found in columns.items() if found}
        for at in KS if columns else ():
            tables = _tables(columns, at)
            for what, rows in tables.items():
                print(f"\n{M} bytes, {title}: {what} at R@{at}")
                common.table([{name: _shown(value) for name, value in row.items()} for row in rows])
            result["tables"].append({"title": title, "at": at} | tables)
            picture = out / f"search-{M}-{title.split()[1]}-R{at}.png"
            _draw(columns, at, f"{M} bytes in {lists:,} lists, {title}", picture)
    result["points"] = [asdict(point) for point in points]
    common.write_json(out / f"search-{M}.json", result)


def _tables(columns: Columns, at: int) -> dict[str, list[dict[str, Any]]]:
    """Rates and latencies at a ladder of recalls, and how far each method gets."""
    top = {name: max((p.recall[at] for p in found if at in p.recall), default=0.0) for name, found in columns.items()}
    rows = [recall for recall in _RECALLS if _least(columns, at) <= recall <= max(top.values())]
    rates = [{f"R@{at}": recall, **_rates(columns, at, recall)} for recall in rows]
    waits = [{f"R@{at}": recall, **_waits(columns, at, recall)} for recall in rows] if at <= 10 else []
    most = [{"method": name, f"highest R@{at}": recall} for name, recall in top.items()]
    ratios = [_ratio_summary(rates, column) for column in _ratio_columns(columns)]
    tables = {"queries/s": rates, "ms for one query, p50 / p99": waits, "the most": most, "ratios": ratios}
    return {what: table for what, table in tables.items() if table}


def _least(columns: Columns, at: int) -> float:
    """Below this recall no method gets any faster, but for one step of the ladder."""
    fastest = [best(found, at, 0.0) for found in columns.values()]
    return min(p.recall[at] for p in fastest if p and at in p.recall) - 0.05


def _rates(columns: Columns, at: int, recall: float) -> dict[str, float | None]:
    found = {name: best(points, at, recall) for name, points in columns.items()}
    rates = {name: point and point.rate for name, point in found.items()}
    ours = rates.get(search_ours.NAME)
    for column in _ratio_columns(columns):
        theirs = rates[column.removeprefix("ours / ")]
        rates[column] = ours / theirs if ours and theirs else None
    return rates


def _ratio_columns(columns: Columns) -> list[str]:
    if search_ours.NAME not in columns:
        return []
    return [f"ours / {name}" for name in columns if name != search_ours.NAME]


def _ratio_summary(rates: Sequence[dict[str, Any]], column: str) -> dict[str, Any]:
    """The worst and the best of a ratio, and where the worst is."""
    known = [(row[column], next(iter(row.values()))) for row in rates if row[column] is not None]
    least, where = min(known, default=(None, None))
    return {"ratio": column, "least": least, "at recall": where, "most": max(known, default=(None, None))[0]}


def _waits(columns: Columns, at: int, recall: float) -> dict[str, list[float] | None]:
    found = {name: soonest(points, at, recall) for name, points in columns.items()}
    return {name: point and [point.p50_ms, point.p99_ms] for name, point in found.items()}


def _shown(value: Any) -> Any:
    """A cell: – where a method does not get there."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " / ".join(f"{ms:.3g}" for ms in value)
    return f"{value:,.0f}" if isinstance(value, float) and value >= 100 else value


def _draw(columns: Columns, at: int, title: str, path: Path) -> None:
    curves = []
    for name, points in columns.items():
        line = front(points, at)
        if line:
            recall, rate = tuple(p.recall[at] for p in line), tuple(p.rate for p in line)
            curves.append(RateCurve(name, recall, rate, emphasised=name == search_ours.NAME))
    draw_recall_rate(curves, path, title, at=at, force=True)
