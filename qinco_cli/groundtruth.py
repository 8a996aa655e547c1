"""`qinco groundtruth`."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.codec.precision import Plan
    from qinco_core.evaluation.groundtruth import GroundTruth
    from qinco_core.vectors import VectorFile, VectorSource

_MAX_INT32 = (1 << 31) - 1


def register(app: typer.Typer) -> None:
    """Add the command."""
    command = "qinco groundtruth base.bvecs query.fvecs -k 100 -o groundtruth.ivecs"
    app.command("groundtruth", epilog=opt.example(command))(groundtruth)


def groundtruth(
    xb: Annotated[str, typer.Argument(metavar="XB", help="Vectors to search; - for stdin (with --format).")],
    xq: Annotated[str, typer.Argument(metavar="XQ", help="Queries.")],
    out: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="Ids to write: .ivecs, .ibin or .npy; - for ivecs."),
    ],
    k: Annotated[int, typer.Option("-k", "--k", metavar="K", help="Neighbours a query.")] = 100,
    metric: opt.MetricOption = "l2",
    distances: Annotated[
        str | None,
        typer.Option("--distances", metavar="FILE", help="Write distances or similarities too: .fvecs, .fbin, .npy."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory at most, beside what Python and torch take. [default: 1G, or a quarter of all if less]",
        ),
    ] = None,
    format: opt.FormatOption = None,
    query_format: Annotated[
        str | None,
        typer.Option("--query-format", metavar="NAME", help="Format of the queries. [default: by extension]"),
    ] = None,
    skip: opt.SkipOption = 0,
    limit: opt.LimitOption = None,
    force: opt.ForceOption = False,
    dry_run: opt.DryRunOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Find the exact nearest neighbours of queries, to measure others against."""
    from qinco_cli.console import Console, print_json
    from qinco_core.codec.precision import plan
    from qinco_core.datasets import open_named
    from qinco_core.errors import UsageError
    from qinco_core.evaluation.groundtruth import GroundTruth

    if xq == "-":
        raise UsageError("queries are read from a file; only the vectors can come from stdin")
    room, near = opt.room(memory), opt.check_metric(metric)
    _check_outputs(out, distances, force=force, dry_run=dry_run, as_json=json_ and not dry_run)
    where = plan(device, "float32", threads)
    with ExitStack() as stack:
        console = stack.enter_context(Console(quiet))
        base = stack.enter_context(opt.open_source(xb, format, skip, limit))
        queries = stack.enter_context(open_named(xq, "queries", format=query_format))
        work = GroundTruth(base, queries, k, metric=near, plan=where, memory=room)
        _check_ids(out, base.count)
        facts = {"vectors": base.count, "queries": len(queries), "k": k, "metric": metric}
        facts |= {"output": out, "distances": distances}
        if dry_run:
            _report(work, facts, (base, queries), where, json_)
            return
        again = f", reading {base.name} {work.passes} times" if work.passes > 1 else ""
        console.note(f"comparing on {where.device}, {where.threads} threads{again}")
        started = time.perf_counter()
        try:
            found = _write(work, facts, console, force)
        except KeyboardInterrupt:
            left = "what was printed is not all" if out == "-" else "nothing was written"
            raise KeyboardInterrupt(f"interrupted; {left}: start again with the same command") from None
        seconds = time.perf_counter() - started
    if out != "-":
        console.note(
            f"wrote the {k} nearest of {found:,} vectors to {len(queries):,} queries in {seconds:.1f} s: {out}"
        )
    if json_:
        print_json({**facts, "vectors": found, "passes": work.passes, "seconds": round(seconds, 3)})


def _check_outputs(out: str, distances: str | None, *, force: bool, dry_run: bool, as_json: bool) -> None:
    """Refuse outputs that cannot be before any work starts."""
    from qinco_core.errors import UsageError
    from qinco_core.files import check_output
    from qinco_core.vectors import FORMATS, detect_format, output_path

    if out == "-" and as_json:
        raise UsageError("--json and -o - both write to stdout: write the ids to a file, or leave --json out")
    if distances == "-":
        raise UsageError("distances are written to a file: name one with --distances FILE")
    paths = []
    for target, kind, what in ((out, "i", "ids"), (distances, "f", "distances")):
        if target is None or target == "-":
            continue
        usable = [f for f in FORMATS.values() if f.dtype is None or _holds(f.dtype, kind)]
        if FORMATS[detect_format(target)] not in usable:
            names = ", ".join(f.name for f in usable)
            raise UsageError(f"{target}: {detect_format(target)} files hold no {what}; write one of {names}")
        paths.append(output_path(target))
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"{paths[0]} cannot hold both ids and distances: name another file")
    for path in paths:
        check_output(path, force=force, dry_run=dry_run)


def _holds(dtype: Any, kind: str) -> bool:
    return bool(dtype.kind == kind and dtype.itemsize >= 4)


def _check_ids(out: str, count: int | None) -> None:
    """Refuse more vectors than the ids of the output can number."""
    from qinco_core.errors import UsageError
    from qinco_core.vectors import FORMATS, detect_format

    limited = out == "-" or FORMATS[detect_format(out)].dtype is not None
    if limited and count is not None and count - 1 > _MAX_INT32:
        raise UsageError(f"ids of {count:,} vectors do not fit the 32 bits of {out}; write npy")


def _write(work: GroundTruth, facts: dict[str, Any], console: Any, force: bool) -> int:
    """Do the work; gives the number of vectors."""
    import numpy as np

    from qinco_core.vectors import open_writer

    out, k, nq = facts["output"], facts["k"], facts["queries"]
    with ExitStack() as stack:
        target, format = (sys.stdout.buffer, "ivecs") if out == "-" else (out, None)
        ids = stack.enter_context(open_writer(target, D=k, dtype=np.int64, format=format, count=nq, force=force))
        values = None
        if facts["distances"]:
            writer = open_writer(facts["distances"], D=k, dtype=np.float32, count=nq, force=force)
            values = stack.enter_context(writer)
        for I, D in work.batches(console):
            ids.append(I)
            if values is not None:
                values.append(D)
    return work.count


def _report(
    work: GroundTruth, facts: dict[str, Any], sources: tuple[VectorSource, VectorFile], plan: Plan, as_json: bool
) -> None:
    from qinco_cli.console import duration, print_json, print_pairs, size

    base, queries = sources
    seconds = work.forecast()
    if as_json:
        figures = {"passes": work.passes, "memory_bytes": work.memory, "seconds": seconds}
        print_json({"base": base.name, "input": queries.name, **facts, **figures})
        return
    unknown = "unknown until the stream ends"
    count = unknown if base.count is None else f"{base.count:,}"
    outputs = " and ".join(name for name in (facts["output"], facts["distances"]) if name)
    print_pairs(
        [
            ("would read", f"{base.name}: {count} vectors of {base.dim} × {base.dtype}, {work.passes} times"),
            ("queries", f"{queries.name}: {len(queries):,}"),
            ("would write", f"{outputs}: {len(queries):,} × {facts['k']} each"),
            ("memory", f"about {size(work.memory)}, beside what Python and torch take"),
            ("time", f"about {unknown if seconds is None else duration(seconds)} on {plan}"),
        ]
    )
