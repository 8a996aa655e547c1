"""`qinco convert`."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.progress import Progress
    from qinco_core.vectors.convert import Converted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("convert", epilog=opt.example("qinco convert embeddings.parquet::embedding base.fvecs"))(convert)


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="Vectors: a file, a folder of Parquet or Arrow files, - for stdin."),
    ],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="File to write; a folder for a whole ann-benchmarks file; - for stdout."),
    ],
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Format of IN. [default: by extension]")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="NAME", help="Format of OUT. [default: by extension; a folder: fvecs]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="Type of the numbers in OUT. [default: that of IN]")
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option("--ids", metavar="FILE[::COLUMN]", help="64-bit ids to write into a Parquet or Arrow file."),
    ] = None,
    ids_out: Annotated[
        str | None,
        typer.Option("--ids-out", metavar="FILE.npy", help="Where to write the ids of --ids, or else those in IN."),
    ] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", metavar="FILE", help="Queries of an ann-benchmarks file: its test.")
    ] = None,
    groundtruth: Annotated[
        str | None, typer.Option("--groundtruth", metavar="FILE", help="True neighbours of the queries: its neighbors.")
    ] = None,
    distances: Annotated[
        bool, typer.Option("--distances", help="Compute the distances of the neighbours: its distances.")
    ] = False,
    metric: opt.MetricOption = "l2",
    skip: opt.SkipOption = 0,
    limit: opt.LimitOption = None,
    force: opt.ForceOption = False,
    json_: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Copy vectors from one format to another, or an ann-benchmarks file apart and together."""
    from qinco_cli.console import Console

    given = {"--dtype": dtype, "--ids": ids, "--ids-out": ids_out, "--skip": skip, "--limit": limit}
    marks = {"--queries": queries, "--groundtruth": groundtruth, "--distances": distances}
    started = time.perf_counter()
    if metric != "l2" and not any(marks.values()):
        raise _usage("--metric is for making an ann-benchmarks file: leave it out, or give --queries and --groundtruth")
    with Console(quiet) as console:
        if any(marks.values()):
            _refuse("an ann-benchmarks file", {name: value for name, value in given.items() if name != "--dtype"})
            files = [source, target, queries, groundtruth]
            written = _pack(files, to, format, dtype, distances=distances, metric=metric, force=force, progress=console)
        elif target.endswith("/") or Path(target).is_dir():
            _refuse("a whole ann-benchmarks file", given)
            written = _unpack(source, target, format, to, force=force, progress=console)
        else:
            window = {"skip": skip, "limit": limit}
            if target == "-" and json_:
                raise _usage("stdout takes the vectors: leave out --json, or write to a file")
            written = [_one(source, target, format, to, dtype, ids, ids_out, window, force=force, progress=console)]
        console.end()
        _report(written, source, time.perf_counter() - started, console, as_json=json_)


def _usage(text: str) -> Exception:
    from qinco_core.errors import UsageError

    return UsageError(text)


def _refuse(what: str, given: dict[str, Any]) -> None:
    """Refuse options that do not go with a whole ann-benchmarks file."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise _usage(f"{what} is converted as it is: leave out {', '.join(wrong)}")


def _one(
    source: str,
    target: str,
    format: str | None,
    to: str | None,
    dtype: str | None,
    ids: str | None,
    ids_out: str | None,
    window: dict[str, int | None],
    *,
    force: bool,
    progress: Progress,
) -> Converted:
    """Convert one table, and write its ids beside it where that is asked for."""
    from qinco_core.files import atomic_output
    from qinco_core.vectors import FORMATS, detect_format
    from qinco_core.vectors.convert import convert as convert_vectors
    from qinco_core.vectors.convert import parse_dtype
    from qinco_core.vectors.ids import write_ids

    if target == "-" and to is None:
        raise _usage("vectors to stdout need --to, for example --to fvecs")
    chosen = FORMATS[detect_format(target, to)]
    kept = None if dtype is None else parse_dtype(dtype, chosen.name)
    _check_outputs(target, to, ids_out, force=force)
    with opt.open_source(source, format, window["skip"] or 0, window["limit"]) as vectors, ExitStack() as stack:
        numbers = _ids(source, format, ids, ids_out is not None, window)
        if ids_out is not None:
            temporary = stack.enter_context(atomic_output(ids_out, force=force))
            with temporary.open("wb") as handle:
                write_ids(handle, numbers)
        beside = ids is not None and (chosen.with_ids or ids_out is None)
        out: Any = sys.stdout.buffer if target == "-" else target
        options: dict[str, Any] = {"format": to, "dtype": kept, "force": force, "progress": progress}
        return convert_vectors(vectors, out, ids=numbers, write_ids=beside, **options)


def _check_outputs(target: str, to: str | None, ids_out: str | None, *, force: bool) -> None:
    """Refuse outputs that cannot be before any work starts."""
    from qinco_core.files import check_output
    from qinco_core.vectors import output_path

    paths = [] if target == "-" else [output_path(target, to)]
    if ids_out is not None:
        if Path(ids_out).suffix.lower() != ".npy":
            raise _usage(f"{ids_out}: ids are written as npy; name a file like ids.npy")
        paths.append(Path(ids_out))
    if len({path.resolve() for path in paths}) < len(paths):
        raise _usage(f"{ids_out} cannot hold both the vectors and the ids: name another file")
    for path in paths:
        check_output(path, force=force)


def _ids(source: str, format: str | None, ids: str | None, wanted: bool, window: dict[str, int | None]) -> Any:
    """The ids of the vectors converted: of those in IN itself the same rows, of others all."""
    from qinco_core.vectors import read_ids
    from qinco_core.vectors.formats import split_key
    from qinco_core.vectors.remote import is_address

    if ids is None and not wanted:
        return None
    if ids is None and source == "-":
        raise _usage("ids cannot be read from stdin: name them with --ids, or convert a file")
    if ids is None and is_address(source):
        return read_ids(source)  # which says that it cannot be
    path, _ = split_key(source)
    if ids is not None and split_key(ids)[0] != path:
        return read_ids(ids)
    found = read_ids(str(path) if ids is None else ids, format)
    skip, limit = window["skip"] or 0, window["limit"]
    return found[skip : None if limit is None else skip + limit]


def _unpack(source: str, target: str, format: str | None, to: str | None, **how: Any) -> list[Converted]:
    from qinco_core.vectors import detect_format
    from qinco_core.vectors.convert import unpack_benchmark

    if source == "-" or detect_format(source, format) != "hdf5":
        raise _usage(f"{target} is a folder: only ann-benchmarks HDF5 files are written to one; name a file")
    return unpack_benchmark(source, target, format=detect_format(target, to or "fvecs"), **how)


def _pack(
    files: list[str | None], to: str | None, format: str | None, dtype: str | None, **how: Any
) -> list[Converted]:
    from qinco_core.datasets import open_named
    from qinco_core.vectors import detect_format
    from qinco_core.vectors.convert import pack_benchmark, parse_dtype

    source, target, queries, groundtruth = files
    if source is None or target is None or queries is None or groundtruth is None:
        raise _usage("an ann-benchmarks file needs both --queries and --groundtruth")
    if source == "-" or target == "-" or "::" in target or detect_format(target, to) != "hdf5":
        raise _usage("an ann-benchmarks file is made from files, and is HDF5: name OUT like base.hdf5")
    kept = None if dtype is None else parse_dtype(dtype, "hdf5")
    with (
        open_named(source, "base", format=format) as base,
        open_named(queries, "queries") as test,
        open_named(groundtruth, "groundtruth") as truth,
    ):
        return pack_benchmark(base, test, truth, target, dtype=kept, **how)


def _report(written: list[Converted], source: str, seconds: float, console: Any, *, as_json: bool) -> None:
    from qinco_cli.console import print_json

    for file in written:
        console.note(f"wrote {file.vectors:,} vectors of {file.D} × {file.dtype} to {file.output}")
        if file.changed:
            how = "rounded or clipped" if file.dtype in ("uint8", "int8") else "rounded"
            total = file.vectors * file.D
            console.note(f"{file.changed:,} of their {total:,} numbers are not as they were, but {how} to {file.dtype}")
    if as_json:
        files = [file.as_dict() for file in written]
        print_json({"input": source, "files": files, "seconds": round(seconds, 3)})
