"""`qinco fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qinco_core.datasets import Fetched, Planned


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("fetch", epilog=opt.example("qinco fetch bigann1M --part base --part queries"))(fetch)


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Data sets, published models or centroids.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part", metavar="train|base|queries|groundtruth", help="Only this part; repeatable. [default: all]"
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the names, their sizes, and what is here.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Where to. [default: $QINCO_CACHE, or the platform's cache]"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Fetch anew, and forget the checksums of the first time.")
    ] = False,
    dry_run: opt.DryRunOption = False,
    json_: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Fetch data sets, published models and centroids by name; check those that are here."""
    from qinco_cli.console import Console, print_json
    from qinco_core.datasets import fetch as fetch_one
    from qinco_core.datasets import plan
    from qinco_core.errors import UsageError

    if list_ == bool(names):
        raise UsageError("name what to fetch, or list the names there are with --list")
    if list_ and (part or force or dry_run):
        raise UsageError("--list lists all there is: leave --part, --force and --dry-run out")
    if list_:
        _list(cache, json_)
        return
    parts, chosen = tuple(part or ()), list(dict.fromkeys(names or ()))
    for name in chosen:
        plan(name, parts=parts, cache=cache, ask=False)  # refuses a wrong name before anything is fetched
    if dry_run:
        _report([row for name in chosen for row in plan(name, parts=parts, cache=cache)], cache, force, json_)
        return
    with Console(quiet) as console:
        done: list[Fetched] = []
        try:
            for name in chosen:
                done += fetch_one(name, parts=parts, cache=cache, force=force, progress=console)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; what has come is kept: the same command goes on from there") from None
    if json_:
        print_json([one.as_dict() for one in done])
        return
    for path in dict.fromkeys(one.path for one in done):
        typer.echo(path)


def _report(rows: Sequence[Planned], cache: Path | None, force: bool, as_json: bool) -> None:
    from qinco_cli.console import print_json, print_pairs, size
    from qinco_core.datasets import cache_root, free_space

    root = cache_root(cache)
    free = free_space(root)
    coming = [row for row in rows if row.remote and (force or row.state != "here")]
    total = sum(row.bytes or 0 for row in coming)
    unknown = sum(row.bytes is None and not row.shared for row in coming)
    if as_json:
        files = [row.as_dict() for row in rows]
        print_json({"files": files, "bytes": total, "unknown": unknown, "free_bytes": free})
        return
    more = f", and {unknown} files of unknown size" if unknown else ""
    totals = [("would fetch", f"{size(total)}{more}"), ("free", f"{size(free)} for {root}")]
    print_pairs([(_label(row), _described(row)) for row in rows] + totals)


def _label(row: Planned) -> str:
    return row.name if row.parts == ("file",) else f"{row.name} {', '.join(row.parts)}"


def _described(row: Planned) -> str:
    from qinco_cli.console import size

    if not row.remote:
        return f"{row.state}, {row.path}"
    length = f"unknown size ({row.note})" if row.bytes is None else size(row.bytes)
    length = "of the same download" if row.shared else length
    unpacked = "" if row.unpacked is None else f", {size(row.unpacked)} unpacked"
    return f"{row.state}, {length}{unpacked}, {row.source} to {row.path}"


def _list(cache: Path | None, as_json: bool) -> None:
    from qinco_cli.console import print_json, print_table, size
    from qinco_core.datasets import load_registry, plan

    found, table = [], []
    for name, entry in load_registry().items():
        rows = plan(entry, cache=cache, ask=False)
        sizes = [row.bytes if row.unpacked is None else row.unpacked for row in rows]
        known = sum(count or 0 for count in sizes)
        here = [part for row in rows if row.state in ("here", "local") for part in row.parts]
        begun = [part for row in rows if row.state == "partial" for part in row.parts]
        fields = {"name": name, "kind": entry.kind, "about": entry.about, "registry": str(entry.origin)}
        found.append(fields | {"bytes": None if None in sizes else known, "here": here, "partial": begun})
        least = "" if None not in sizes else "more than " if known else "unknown"
        there = "all" if len(here) == len(entry.files) else ", ".join([*here, *(f"{part} (partial)" for part in begun)])
        table.append([name, entry.kind, least + (size(known) if known else ""), there or "-", entry.about])
    if as_json:
        print_json(found)
        return
    print_table(["name", "kind", "size", "here", "about"], table)
