"""`qinco search`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_cli.console import Console
    from qinco_core.config import SearchConfig
    from qinco_core.index.exhaustive import Exhaustive
    from qinco_core.index.index import Index
    from qinco_core.index.report import SearchReport
    from qinco_core.store import Header, Parent
    from qinco_core.vectors import VectorFile, VectorSource

_BATCH = 1000
_EXHAUSTIVE_BATCH = 1 << 14  # every batch decodes all codes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search", epilog=opt.example("qinco search query.fvecs -k 10 --groundtruth groundtruth.ivecs"))(search)


def search(
    xq: Annotated[str, typer.Argument(metavar="XQ", help="Queries; - for stdin (with --format).")],
    k: Annotated[int, typer.Option("-k", "--k", metavar="K", help="Results a query.")] = 10,
    index: opt.IndexOption = None,
    codes: Annotated[
        str | None,
        typer.Option("--codes", metavar="CODES", help="Search all these codes, file or name in the store; no index."),
    ] = None,
    nprobe: Annotated[
        int | None, typer.Option("--nprobe", metavar="N", help="Lists looked into. [default: 16, or all]")
    ] = None,
    ef: Annotated[
        int | None,
        typer.Option("--ef", metavar="N", help="Breadth of the graph search for lists. [default: 0, no graph]"),
    ] = None,
    n_mid: Annotated[
        int | None,
        typer.Option("--n-mid", metavar="N", help="Entries that the pairwise decoder scores; 0: none. [default: 200]"),
    ] = None,
    n_short: Annotated[
        int | None,
        typer.Option("--n-short", metavar="N", help="Entries that the network decodes; 0: none. [default: 50]"),
    ] = None,
    n_exact: Annotated[
        int | None,
        typer.Option("--n-exact", metavar="N", help="Entries compared by their original vectors. [default: 20]"),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option("--rerank", metavar="none|pairwise|qinco|exact:FILE", help="The last stage. [default: qinco]"),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option("--recall", metavar="R", help="Instead: the fastest point of qinco tune that reaches this."),
    ] = None,
    at: opt.AtOption = 10,
    metric: opt.MetricOption = "l2",
    allow: Annotated[str | None, typer.Option("--allow", metavar="FILE.npy", help="Find only these ids.")] = None,
    deny: Annotated[str | None, typer.Option("--deny", metavar="FILE.npy", help="Do not find these ids.")] = None,
    groundtruth: Annotated[
        str | None, typer.Option("--groundtruth", metavar="GT", help="True neighbours, to report recall.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Results: .h5, .npz, .ivecs, .jsonl, or - for stdout."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Instead of -o: name of the results in the store.")] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", help="Queries searched together. [default: 1000, without an index 16384]"),
    ] = None,
    engine: opt.EngineOption = "local",
    address: opt.AddressOption = None,
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
    """Find the nearest neighbours of queries."""
    from qinco_cli.console import Console
    from qinco_core.index.found import chosen_ids
    from qinco_core.index.report import Request, search_batches
    from qinco_core.store import create_results

    asked = {"nprobe": nprobe, "ef": ef, "n_mid": n_mid, "n_short": n_short, "n_exact": n_exact, "rerank": rerank}
    target = _target(out, name, store, force, as_json=json_, measuring=groundtruth is not None)
    hardware = {"device": device, "precision": precision, "threads": threads}
    ray = opt.on_ray(engine, address)
    with ExitStack() as stack:
        console = stack.enter_context(Console(quiet))
        source = stack.enter_context(opt.open_source(xq, format, skip, limit, "queries"))
        searcher, label = _searcher(stack, console, index, codes, model, pairwise, store, hardware)
        if ray:
            searcher = _on_cluster(stack, searcher, pairwise, address, threads)
        size = _batch_size(batch, searcher)
        given = {name: value for name, value in asked.items() if value is not None}
        params = _params(searcher, given, recall, at, k, metric, size, console)
        originals = _originals(stack, rerank, searcher)
        _check(searcher, label, source, k, params)
        chosen = chosen_ids(opt.read_ids(allow), opt.read_ids(deny))
        request = Request(k, params, opt.check_metric(metric), chosen, originals)
        truth = _truth(stack, groundtruth, source, searcher, skip, limit)
        sink = None
        if target is not None:
            config = {"queries": source.name, "metric": metric, "params": params.model_dump() if params else None}
            place = sys.stdout.buffer if target == "-" else target
            results = create_results(place, k=k, config=config, parents=_parents(searcher.header), force=force)
            sink = stack.enter_context(results)
        console.begin("searching", source.count, "queries")
        batches = source.batches(size)
        try:
            report = search_batches(
                searcher, batches, request, sink=sink, progress=console, truth=truth, warm=searcher.nlist > 0
            )
        except KeyboardInterrupt:
            left = "what was printed is not all" if target == "-" else "nothing was written"
            raise KeyboardInterrupt(f"interrupted; {left}: start again with the same command") from None
        console.end()
        facts = {"queries": source.name, "searched": label, "vectors": len(searcher), "k": k, "metric": metric}
    facts |= {"params": params.model_dump() if params else None, "output": target and str(target), "batch": size}
    _render(report, facts, console, as_json=json_, on_stdout=target != "-")


def _target(
    out: str | None, name: str | None, store: str | None, force: bool, *, as_json: bool, measuring: bool
) -> Path | str | None:
    """Where the results go: a file, "-" for stdout, or None where only the report is wanted."""
    from qinco_core.errors import UsageError
    from qinco_core.store import Store
    from qinco_core.store.results import results_path

    if out is not None and name is not None:
        raise UsageError("--name is a name in the store and -o a path: give one of the two")
    if out == "-" and as_json:
        raise UsageError("--json and -o - both write to stdout: write the results to a file, or leave --json out")
    if out is None and name is None:
        return None if as_json or measuring else "-"
    if out == "-":
        return "-"
    return results_path(Store.locate(store).results(name) if name else str(out), force=force)


def _searcher(
    stack: ExitStack,
    console: Console,
    index: Path | None,
    codes: str | None,
    model: Path | None,
    pairwise: Path | None,
    store: str | None,
    hardware: dict[str, Any],
) -> tuple[Index | Exhaustive, str]:
    """The index, or where there is none all codes; and its path."""
    from qinco_cli.decode import find_codes
    from qinco_core.errors import UsageError
    from qinco_core.index.exhaustive import Exhaustive
    from qinco_core.store import Store, open_codes
    from qinco_core.store.index import MANIFEST

    if index is not None and codes is not None:
        raise UsageError("--index and --codes are two things to search: give one of them")
    folder = index or Store.locate(store).index
    if codes is None and (index is not None or (folder / MANIFEST).exists()):
        from qinco_core.index.index import Index

        opened = stack.enter_context(Index.open(folder, model=model, pairwise=pairwise, **hardware))
        if pairwise is not None and all(parent.kind != "pairwise" for parent in opened.header.parents):
            raise UsageError(f"{folder} was built without a pairwise decoder: leave --pairwise out, or build it anew")
        return opened, str(folder)
    if pairwise is not None:
        raise UsageError("--pairwise is of an index, and all codes are searched here: leave it out")
    file = stack.enter_context(open_codes(find_codes(codes, store) if codes else opt.store_codes(store)))
    found = Exhaustive(opt.open_codec(model, store, **hardware), file)
    hint = "" if codes else "no index in the store, "
    console.note(f"{hint}searching all {len(found):,} codes of {file.path}; qinco index makes searches faster")
    return found, str(file.path)


def _on_cluster(
    stack: ExitStack, searcher: Index | Exhaustive, pairwise: Path | None, address: str | None, threads: int | None
) -> Index:
    """The index, searched by a Ray cluster."""
    from qinco_core.errors import UsageError
    from qinco_core.index.exhaustive import Exhaustive
    from qinco_core.scale.search import on_cluster

    if isinstance(searcher, Exhaustive):
        raise UsageError("--engine ray searches an index in shards, and all codes are searched here: leave it out")
    return stack.enter_context(on_cluster(searcher, pairwise=pairwise, address=address, threads=threads))


def _batch_size(asked: int | None, searcher: Index | Exhaustive) -> int:
    from qinco_core.errors import UsageError

    if asked is not None and asked < 1:
        raise UsageError(f"--batch {asked} queries cannot be: at least 1")
    return asked or (_BATCH if searcher.nlist else _EXHAUSTIVE_BATCH)


def _parents(header: Header) -> tuple[Parent, ...]:
    """What was searched, and the model that decodes it."""
    from qinco_core.store import Parent

    return (Parent(header.kind, header.fingerprint), *(p for p in header.parents if p.kind == "model"))


def _params(
    searcher: Index | Exhaustive,
    given: dict[str, Any],
    recall: float | None,
    at: int,
    k: int,
    metric: str,
    batch: int,
    console: Console,
) -> SearchConfig | None:
    """The operating point: from the options, or from the front in the manifest; None without an index."""
    from qinco_core.config import SearchConfig
    from qinco_core.errors import UsageError
    from qinco_core.index.exhaustive import Exhaustive
    from qinco_core.index.tune import operating_point

    options = [f"--{name.replace('_', '-')}" for name in given] + ["--recall"] * (recall is not None)
    if isinstance(searcher, Exhaustive):
        if options:
            raise UsageError(
                f"{options[0]} is of an index, and all codes are searched here: build one with qinco index"
            )
        return None
    if recall is None:
        given["rerank"] = str(given.get("rerank", "qinco")).partition(":")[0]
        params = SearchConfig.parse({"nprobe": min(16, searcher.nlist)} | given)
        _check_stages(searcher, given)
        return params
    if given:
        raise UsageError(f"--recall chooses the operating point: leave {options[0]} out")
    if at > k:
        raise UsageError(f"--recall counts hits among --at {at} results, but -k is {k}: use -k {at} or --at {k}")
    point = operating_point(searcher.front, recall, at, metric, single=batch == 1)
    figures = ", ".join(f"{name} {value}" for name, value in point.params.model_dump().items())
    console.note(f"operating point: {figures}; R@{at} = {point.recall:.3f} where it was measured")
    return point.params


def _check_stages(index: Index, given: dict[str, Any]) -> None:
    """Refuse a number of entries for a stage that there will not be."""
    from qinco_core.errors import UsageError

    stages, last = ["none", "pairwise", "qinco", "exact"], given["rerank"]
    for name, stage in (("n_mid", "pairwise"), ("n_short", "qinco"), ("n_exact", "exact")):
        if given.get(name) and stages.index(stage) > stages.index(last):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is of the stage {stage}, but the last one is --rerank {last}: leave it out")
    if given.get("n_mid") and not index.has_pairwise:
        raise UsageError(f"{index.folder} has no pairwise decoder: leave --n-mid out, or build it with one")


def _originals(stack: ExitStack, rerank: str | None, searcher: Index | Exhaustive) -> VectorFile | None:
    """The vectors that `--rerank exact:FILE` names."""
    from qinco_core.datasets import open_named
    from qinco_core.errors import DimensionError, UsageError

    stage, _, path = (rerank or "").partition(":")
    if bool(path) != (stage == "exact"):
        raise UsageError(f"--rerank {rerank} cannot be: exact needs the original vectors, exact:FILE, and only exact")
    if not path:
        return None
    originals = stack.enter_context(open_named(path, "base"))
    if originals.dim != searcher.dim:
        raise DimensionError(f"{path} has dimension {originals.dim}, but the index has {searcher.dim}")
    if len(originals) <= searcher.max_id:
        raise UsageError(
            f"{path} has {len(originals)} vectors, but the index has ids up to {searcher.max_id}: "
            "name the file that was encoded, whose row numbers are the ids"
        )
    return originals


def _check(searcher: Index | Exhaustive, label: str, source: VectorSource, k: int, params: SearchConfig | None) -> None:
    """Refuse what no query could be searched with, before any is."""
    from qinco_core.errors import DimensionError, UsageError

    if source.dim != searcher.dim:
        raise DimensionError(f"{source.name} has dimension {source.dim}, but {label} has {searcher.dim}")
    if not len(searcher):
        raise UsageError(f"{label} holds no vectors: add some with qinco index --add")
    if not 1 <= k <= len(searcher):
        raise UsageError(f"-k {k} of {len(searcher)} vectors cannot be: ask for 1 to {len(searcher)}")
    if params and params.nprobe > searcher.nlist:
        raise UsageError(f"--nprobe {params.nprobe} of {searcher.nlist} lists cannot be: use {searcher.nlist} or fewer")


def _truth(
    stack: ExitStack, path: str | None, source: VectorSource, searcher: Index | Exhaustive, skip: int, limit: int | None
) -> VectorFile | None:
    """The rows of the ground truth that belong to the queries looked at."""
    from qinco_core.datasets import open_named
    from qinco_core.index.report import check_truth

    if path is None:
        return None
    truth = stack.enter_context(open_named(path, "groundtruth", skip=skip, limit=limit))
    check_truth(truth, source.count, searcher.max_id)
    return truth


def _render(report: SearchReport, facts: dict[str, Any], console: Console, *, as_json: bool, on_stdout: bool) -> None:
    """The report goes to stdout where the results do not, else to stderr."""
    from qinco_cli.console import print_json, print_table, table_lines

    if as_json and on_stdout:
        print_json(facts | report.as_dict())
        return
    columns, rows = _table(report)
    if on_stdout:
        print_table(columns, rows)
    else:
        for line in table_lines(columns, rows):
            console.note(line)
    if facts["batch"] == 1:
        p50, p99 = (f"{1e3 * report.percentile(share):.2f} ms" for share in (50, 99))
        console.note(f"one query at a time: p50 {p50}, p99 {p99}")


def _table(report: SearchReport) -> tuple[list[str], list[list[str]]]:
    ks = sorted({k for name in report.stages for k in report.recall(name)})
    rows = []
    for name, total in report.stages.items():
        recall = [f"{report.recall(name)[k]:.4f}" for k in ks]
        rows.append([name, f"{total.seconds:.3f} s", f"{report.queries / max(total.seconds, 1e-9):,.0f}", *recall])
    whole = ["all", f"{report.seconds:.3f} s", f"{report.queries_per_second:,.0f}", *([""] * len(ks))]
    return ["stage", "time", "queries/s", *(f"R@{k}" for k in ks)], [*rows, whole]
