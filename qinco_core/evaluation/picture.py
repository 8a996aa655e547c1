"""Pictures: bytes per vector against error, and recall against queries per second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinco_core.errors import UsageError
from qinco_core.files import atomic_output
from qinco_core.optional import import_pyplot

# after Okabe and Ito, told apart by every kind of colour vision, darkened so that labels read well
_OURS = "#0072B2"
_COLOURS = ("#C04F00", "#00805D", "#A9578A", "#A87400", "#3287B8", "#000000")
_MARKERS = ("s", "^", "D", "v", "P", "X")
_INK, _FAINT = "#333333", "#DDDDDD"
_LABEL_GAP = 13.0  # points between the baselines of two labels

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Curve:
    """One compressor in the picture: its error at each size, in order of size.

    Attributes:
        name: how it is labelled.
        bytes: bytes per vector of each point; a fraction for symbols that do not fill bytes.
        mse: error of each point.
        emphasised: drawn in front, bold.
    """

    name: str
    bytes: tuple[float, ...]
    mse: tuple[float, ...]
    emphasised: bool = False


def draw_rate_distortion(curves: Sequence[Curve], path: str | Path, title: str, *, force: bool = False) -> None:
    """Draw the error of compressors against their bytes per vector, both logarithmic, as a PNG.

    Args:
        curves: one or more, of one point or more each.
        path: the PNG to write.
        title: what was measured on which vectors.
        force: replace the file if it exists.

    Raises:
        DependencyError: Matplotlib is not installed.
        OutputExistsError: the file exists and `force` is false.
        StorageError: it cannot be written.
        UsageError: there is no curve, or one without points or with a point that is not positive.
    """
    _check(curves)
    plt = import_pyplot()
    with plt.rc_context(_STYLE), atomic_output(path, force=force) as temporary:
        figure, axes = plt.subplots(figsize=(7.2, 4.6), dpi=160, layout="constrained")
        try:
            colours = _draw_curves(axes, curves)
            _scale(axes, curves)
            axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
            _label(figure, axes, curves, colours)
            figure.savefig(temporary, format="png")
        finally:
            plt.close(figure)


@dataclass(frozen=True)
class RateCurve:
    """One index in the picture of recall and rate: its operating points, in order of recall.

    Attributes:
        name: how it is called in the legend.
        recall: R@k of each point, 0 to 1.
        rate: queries per second of each point.
        emphasised: drawn in front, bold.
    """

    name: str
    recall: tuple[float, ...]
    rate: tuple[float, ...]
    emphasised: bool = False


def draw_recall_rate(
    curves: Sequence[RateCurve],
    path: str | Path,
    title: str,
    *,
    at: int,
    chosen: int | None = None,
    force: bool = False,
) -> None:
    """Draw queries per second, logarithmic, over recall, as a PNG; up and to the right is better.

    Args:
        curves: one or more, of one point or more each.
        path: the PNG to write.
        title: what was searched for what.
        at: the k of R@k.
        chosen: which point of the first curve to ring.
        force: replace the file if it exists.

    Raises:
        DependencyError: Matplotlib is not installed.
        OutputExistsError: the file exists and `force` is false.
        StorageError: it cannot be written.
        UsageError: there is no curve, or one without points or with a rate that is not positive.
    """
    _check_rates(curves)
    plt = import_pyplot()
    from matplotlib import ticker

    with plt.rc_context(_STYLE), atomic_output(path, force=force) as temporary:
        figure, axes = plt.subplots(figsize=(7.2, 4.6), dpi=160, layout="constrained")
        try:
            for curve, look in zip(curves, _looks([c.emphasised for c in curves]), strict=True):
                axes.plot(curve.recall, curve.rate, label=curve.name, markersize=5, **look)
            if chosen is not None:
                place = curves[0].recall[chosen], curves[0].rate[chosen]
                axes.plot(*place, "o", markersize=13, markerfacecolor="none", markeredgecolor=_INK, zorder=5)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(_log_ticks([rate for curve in curves for rate in curve.rate]))
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda rate, _: _number(rate)))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            axes.set_xlabel(f"R@{at}")
            axes.set_ylabel("queries per second")
            axes.tick_params(length=0, which="both", pad=6)
            axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
            axes.legend(frameon=False)
            figure.savefig(temporary, format="png")
        finally:
            plt.close(figure)


def _check_rates(curves: Sequence[RateCurve]) -> None:
    if not curves:
        raise UsageError("no curves to draw; give at least one")
    for curve in curves:
        if not curve.rate or len(curve.rate) != len(curve.recall):
            raise UsageError(f"{curve.name}: {len(curve.recall)} recalls, {len(curve.rate)} rates; pair them up")
        if not all(0 < rate < float("inf") for rate in curve.rate):
            raise UsageError(f"{curve.name}: rates must be positive to be drawn")


def _check(curves: Sequence[Curve]) -> None:
    if not curves:
        raise UsageError("no curves to draw; give at least one")
    for curve in curves:
        if not curve.bytes or len(curve.bytes) != len(curve.mse):
            raise UsageError(f"{curve.name}: {len(curve.bytes)} sizes, {len(curve.mse)} errors; pair them up")
        if not all(0 < value < float("inf") for value in (*curve.bytes, *curve.mse)):
            raise UsageError(f"{curve.name}: sizes and errors must be positive to be drawn")


def _draw_curves(axes: Any, curves: Sequence[Curve]) -> list[str]:
    looks = _looks([curve.emphasised for curve in curves])
    for curve, look in zip(curves, looks, strict=True):
        axes.plot(curve.bytes, curve.mse, markersize=7, clip_on=False, **look)
    return [look["color"] for look in looks]


def _looks(emphasised: Sequence[bool]) -> list[dict[str, Any]]:
    """How each curve is drawn: the emphasised ones in front, bold; the others told apart by colour and marker."""
    looks: list[dict[str, Any]] = []
    plain = 0
    for ours in emphasised:
        if ours:
            look: dict[str, Any] = {"color": _OURS, "marker": "o", "linewidth": 2.6, "zorder": 4}
        else:
            colour, marker = _COLOURS[plain % len(_COLOURS)], _MARKERS[plain % len(_MARKERS)]
            look = {"color": colour, "marker": marker, "linewidth": 1.4, "zorder": 3}
            plain += 1
        looks.append(look | {"markeredgecolor": "white"})
    return looks


def _scale(axes: Any, curves: Sequence[Curve]) -> None:
    from matplotlib import ticker

    sizes = sorted({size for curve in curves for size in curve.bytes})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] * 0.93, sizes[-1] * 1.08)
    axes.set_xticks(_spread_ticks(sizes))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    errors = [error for curve in curves for error in curve.mse]
    axes.set_ylim(min(errors) * 0.9, max(errors) * 1.1)
    axes.yaxis.set_major_locator(_log_ticks(errors))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda error, _: _number(error)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0, pad=6)
    axes.set_xlabel("bytes per vector")
    axes.set_ylabel("MSE (squared error per vector)")


def _spread_ticks(sizes: Sequence[float]) -> list[float]:
    """The sizes to write on the axis, kept apart: powers of two first, then whole bytes, then others."""
    gap = max(0.18, 0.06 * math.log2(max(sizes) / min(sizes)))
    ticks: list[float] = []
    for size in sorted(sizes, key=lambda s: (not math.log2(s).is_integer(), not float(s).is_integer(), s)):
        if all(abs(math.log2(size / tick)) > gap for tick in ticks):
            ticks.append(size)
    return sorted(ticks)


def _log_ticks(values: Sequence[float]) -> Any:
    """Which values get a line: even steps over a narrow range, fewer per power of ten over a wide one."""
    from matplotlib import ticker

    decades = math.log10(max(values) / min(values))
    if decades < 0.3:
        return ticker.MaxNLocator(5)
    if decades < 1.2:
        return ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8))
    return ticker.LogLocator(subs=(1, 2, 5) if decades < 3 else (1,))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _label(figure: Any, axes: Any, curves: Sequence[Curve], colours: Sequence[str]) -> None:
    """Name each curve and its last error beside its last point, labels of one place kept apart."""
    from matplotlib import patheffects

    figure.canvas.draw()  # the layout decides where a point lies on the paper
    inch = figure.dpi / 72
    ends = [axes.transData.transform((c.bytes[-1], c.mse[-1])) / inch for c in curves]
    for column in sorted({round(x) for x, _ in ends}):
        members = [i for i, (x, _) in enumerate(ends) if round(x) == column]
        heights = _apart([ends[i][1] for i in members])
        for i, height in zip(members, heights, strict=True):
            text = axes.annotate(
                f"{curves[i].name}  {_number(curves[i].mse[-1])}",
                xy=(curves[i].bytes[-1], curves[i].mse[-1]),
                xytext=(11, height - ends[i][1]),
                textcoords="offset points",
                va="center",
                color=colours[i],
                fontweight="bold" if curves[i].emphasised else "normal",
                annotation_clip=False,
                zorder=5,
            )
            text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights, moved as little as keeps neighbours `_LABEL_GAP` apart, in the order given."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[float]] = []  # labels that touch, as [sum of their wishes, how many]
    for i in order:
        groups.append([heights[i], 1])
        while len(groups) > 1 and _bottom(groups[-1]) - _top(groups[-2]) < _LABEL_GAP:
            wish, count = groups.pop()
            groups[-1] = [groups[-1][0] + wish, groups[-1][1] + count]
    placed = [_bottom(g) + _LABEL_GAP * j for g in groups for j in range(int(g[1]))]
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result


def _bottom(group: Sequence[float]) -> float:
    return group[0] / group[1] - _LABEL_GAP * (group[1] - 1) / 2


def _top(group: Sequence[float]) -> float:
    return group[0] / group[1] + _LABEL_GAP * (group[1] - 1) / 2
