"""`qinco tune`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qinco_cli.console import Console
    from qinco_core.config import Metric, SearchConfig
    from qinco_core.index.bench import Bench
    from qinco_core.index.index import Index
    from qinco_core.index.tune import Point, Setting


def register(app: typer.Typer) -> None:
    """Add the command."""
    command = "qinco tune query.fvecs --groundtruth groundtruth.ivecs --recall 0.9"
    app.command("tune", epilog=opt.example(command))(tune)


def tune(
    xq: Annotated[str, typer.Argument(metavar="XQ", help="Queries like those to come.")],
    groundtruth: Annotated[
        str | None, typer.Option("--groundtruth", metavar="GT", help="Their true neighbours; or --base.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="XB", help="The vectors themselves, to compute true neighbours.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option("--recall", metavar="R", help="Mark the fastest point that reaches this.")
    ] = None,
    at: opt.AtOption = 10,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="Time a query at most, like 20ms. [default: none]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory at most, like 2G. [default: none]")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Queries searched together.")] = 1000,
    single: Annotated[bool, typer.Option("--single", help="Time one query at a time.")] = False,
    metric: opt.MetricOption = "l2",
    limit_time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Stop looking after this, like 5m. [default: never]")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw recall against queries/s.")
    ] = None,
    index: opt.IndexOption = None,
    model: opt.ModelOption = None,
    pairwise: opt.PairwiseOption = None,
    store: opt.StoreOption = None,
    format: opt.FormatOption = None,
    skip: opt.SkipOption = 0,
    limit: opt.LimitOption = None,
    force: opt.ForceOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Find the operating points of an index that are worth having, and keep them in it."""
    from qinco_cli.console import Console
    from qinco_core.files import check_output
    from qinco_core.index.bench import Bench
    from qinco_core.index.index import Index
    from qinco_core.index.tune import Setting, fastest, pareto
    from qinco_core.optional import import_pyplot
    from qinco_core.store import Store

    _check_options(groundtruth, base, recall, at, batch)
    bound = opt.parse_duration(budget) if budget else float("inf")
    room = opt.parse_size(memory) if memory else None
    until = time.monotonic() + opt.parse_duration(limit_time) if limit_time else float("inf")
    if plot is not None:
        check_output(plot, force=force)
        import_pyplot()
    hardware: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    with ExitStack() as stack:
        console = stack.enter_context(Console(quiet))
        opened = stack.enter_context(
            Index.open(index or Store.locate(store).index, model=model, pairwise=pairwise, **hardware)
        )
        opened.check_whole("tuned")
        window = {"format": format, "skip": skip, "limit": limit}
        asked = Setting(at, 1 if single else batch, opened.codec.plan.threads, opt.check_metric(metric))
        queries, truth = _queries(xq, groundtruth, base, opened, window, asked.metric, console)
        bench = Bench(opened, queries, truth, asked)
        setting = bench.setting
        points, settled, interrupted = _explore(bench, opened, bound, room, until, console)
        console.note(f"measured {len(points)} operating points; {_keep(opened, points, setting, settled)}")
        front = pareto(point for point in points if _fits(opened, point.params, room))
    if interrupted:
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped")
    chosen = fastest(front, recall, bound) if recall is not None else None
    _render(front, chosen, setting, json_)
    if plot is not None:
        _draw(front, chosen, setting, plot, xq, force)
        console.note(f"drew {plot}")
    if recall is not None and chosen is None:
        _refuse(front, recall, at, bound)


def _check_options(groundtruth: str | None, base: str | None, recall: float | None, at: int, batch: int) -> None:
    from qinco_core.errors import UsageError

    if (groundtruth is None) == (base is None):
        raise UsageError("give the true neighbours with --groundtruth GT, or --base XB to compute them, one of the two")
    if recall is not None and not 0 < recall <= 1:
        raise UsageError(f"--recall {recall:g} cannot be: it is a share, above 0 and at most 1")
    if at < 1 or batch < 1:
        raise UsageError("--at and --batch are at least 1")


def _queries(
    xq: str,
    groundtruth: str | None,
    base: str | None,
    opened: Index,
    window: dict[str, Any],
    metric: Metric,
    console: Console,
) -> tuple[Any, Any]:
    """The queries [nq, D] and their true neighbours [nq, T]."""
    from qinco_core.datasets import open_named
    from qinco_core.errors import DimensionError, UsageError
    from qinco_core.index.bench import true_neighbors
    from qinco_core.index.report import check_truth

    with open_named(xq, "queries", **window) as file:
        if file.dim != opened.dim:
            raise DimensionError(f"{xq} has dimension {file.dim}, but {opened.folder} has {opened.dim}")
        queries = file.read(0, len(file)).astype("float32")
    if base is not None:
        with open_named(base, "base") as vectors:
            if len(vectors) <= opened.max_id:
                raise UsageError(
                    f"{base} has {len(vectors)} vectors, but the index has ids up to {opened.max_id}: "
                    "name the file that was encoded, whose row numbers are the ids"
                )
            console.note(f"computing the true neighbours of {len(queries):,} queries in {base}")
            return queries, true_neighbors(vectors, queries, metric, opened.ids)
    rows = {name: value for name, value in window.items() if name != "format"}
    with open_named(str(groundtruth), "groundtruth", **rows) as truth:
        check_truth(truth, len(queries), opened.max_id)
        return queries, truth.read(0, len(truth))


def _explore(
    bench: Bench, opened: Index, bound: float, room: int | None, until: float, console: Console
) -> tuple[list[Point], bool, bool]:
    """All measured points, also those over the memory; whether all are settled; whether someone interrupted."""
    from qinco_core.errors import QincoError
    from qinco_core.index.bench import Notebook, explore_noting
    from qinco_core.index.tune import grid

    points = grid(opened.nlist, bench.setting.at, bench.setting.metric, pairwise=opened.has_pairwise)
    fitting = [params for params in points if _fits(opened, params, room)]
    if not fitting:
        from qinco_cli.console import size

        least = min(opened.memory_bytes(params) for params in points)
        raise QincoError(f"searching this index takes {size(least)} at least: give it that with --memory")
    notebook = Notebook(opened.folder / "tuning.jsonl", bench.key)
    with opt.stop_on_signal() as asked:
        found, settled = explore_noting(
            bench,
            fitting,
            notebook,
            budget=bound,
            progress=console,
            stop=lambda: asked() or time.monotonic() > until,
        )
        return found, settled, asked()


def _keep(opened: Index, points: Sequence[Point], setting: Setting, settled: bool) -> str:
    """Put the best points into the index, unless better ones may be lost by that; gives what to say of it."""
    from qinco_core.index.tune import known_points, pareto

    if not settled and not set(known_points(opened.front, setting)) <= set(points):
        return f"{opened.folder} keeps those of another run until the same command has come to its end"
    opened.save_front(pareto(points), setting)
    return f"the best are in {opened.folder}"


def _fits(opened: Index, params: SearchConfig, room: int | None) -> bool:
    return room is None or opened.memory_bytes(params) <= room


def _render(front: Sequence[Point], chosen: Point | None, setting: Setting, as_json: bool) -> None:
    from qinco_cli.console import print_json, print_table

    if as_json:
        points = [point.fields() for point in front]
        print_json({"setting": setting.fields(), "front": points, "chosen": chosen and chosen.fields()})
        return
    columns = [f"R@{setting.at}", "queries/s", "ms a query", "nprobe", "ef", "n_mid", "n_short", "rerank", ""]
    rows = []
    for point in front:
        params = point.params
        sizes = (params.nprobe, params.ef, params.n_mid, params.n_short)
        figures = [f"{point.recall:.4f}", f"{1 / point.seconds:,.0f}", f"{1e3 * point.seconds:.3f}"]
        rows.append([*figures, *map(str, sizes), params.rerank, "<- chosen" if point == chosen else ""])
    print_table(columns, rows)


def _draw(front: Sequence[Point], chosen: Point | None, setting: Setting, path: Path, xq: str, force: bool) -> None:
    from qinco_core.evaluation.picture import RateCurve, draw_recall_rate
    from qinco_core.vectors.remote import shown

    recalls, rates = (tuple(p.recall for p in front), tuple(1 / p.seconds for p in front))
    how = "one query at a time" if setting.batch == 1 else f"{setting.batch:,} queries at a time"
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    curve = RateCurve(f"{how}, {threads}", recalls, rates, emphasised=True)
    ring = None if chosen is None else list(front).index(chosen)
    title = f"Recall and rate on {Path(shown(xq)).name}"
    draw_recall_rate([curve], path, title, at=setting.at, chosen=ring, force=force)


def _refuse(front: Sequence[Point], recall: float, at: int, budget: float) -> None:
    """Say that no point will do."""
    from qinco_core.errors import QincoError

    within = [point for point in front if point.seconds <= budget]
    best = f"the best reaches {max(point.recall for point in within):.4f}" if within else "none keeps the time"
    limit = "" if budget == float("inf") else f" within {1e3 * budget:g} ms a query"
    raise QincoError(
        f"no operating point reaches R@{at} = {recall:g}{limit}; {best}. "
        "Ask for less, allow more, or encode with more bytes"
    )
