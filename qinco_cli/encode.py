"""`qinco encode`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.api import Codec
    from qinco_core.config import EncodeConfig
    from qinco_core.jobs import Rows
    from qinco_core.vectors import VectorSource


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("encode", epilog=opt.example("qinco encode base.fvecs -o - | ssh host qinco decode - -o out.npy"))(
        encode
    )


def encode(
    xb: Annotated[str, typer.Argument(metavar="XB", help="Vectors to compress; - for stdin (with --format).")],
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Codes to write; - for a stream on stdout. [default: codes/NAME.h5 in the store]",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the codes in the store. [default: the file's]")
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option("--ids", metavar="FILE.npy", help="64-bit ids, one a vector. [default: row numbers]"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write bare packed symbols, with nothing around them.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted job.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N|slurm",
            help="Encode the I-th of N shards, 0/N to N-1/N, to its parts of the folder codes/NAME; "
            "slurm: as the job's environment says. [default: under torchrun, its rank]",
        ),
    ] = None,
    A: opt.AOption = None,
    B: opt.BOption = None,
    exact: opt.ExactOption = False,
    assign: Annotated[
        str, typer.Option("--assign", metavar="exact|hnsw", help="How the lists of an IVF model are found.")
    ] = "exact",
    model: opt.ModelOption = None,
    store: opt.StoreOption = None,
    format: opt.FormatOption = None,
    skip: opt.SkipOption = 0,
    limit: opt.LimitOption = None,
    force: opt.ForceOption = False,
    dry_run: opt.DryRunOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Compress vectors to codes of M·log2 K bits."""
    from qinco_cli.console import Console, print_json
    from qinco_core.jobs import Rows, check_assign, check_dimension, check_raw

    _check_options(out, name, raw=raw, resume=resume, ids=ids)
    place = opt.shard(shard)
    if place is not None:
        _check_shard(out, raw=raw, force=force)
    with opt.open_source(xb, format, skip, limit) as source, Console(quiet) as console:
        target = _target(xb, out, name, store, raw)
        if place is not None and target is not None:
            target = _shard_folder(target) if out is None else target
        codec = opt.open_codec(model, store, device=device, precision=precision, threads=threads)
        search = opt.search_options(codec, A, B, exact)
        check_dimension(codec, source)
        check_assign(codec, assign)
        if raw:
            check_raw(codec)
        rows = Rows(source, skip, opt.read_ids(ids))
        if dry_run:
            _report(codec, source, target, search, json_)
            return
        beam = ", ".join(f"{name} = {value}" for name, value in search.model_dump().items())
        console.note(f"encoding on {codec.plan}; {beam}")
        started = time.perf_counter()
        how: dict[str, Any] = {"search": search, "assign": assign, "progress": console}
        if place is not None and target is not None:
            _encode_shard(codec, rows, target, place, how, json_)
            return
        fingerprint = _run(codec, rows, target, how, raw=raw, force=force, resume=resume)
        seconds = time.perf_counter() - started
        if target is None:
            return
        console.note(f"wrote {target} in {seconds:.1f} s")
        if json_:
            print_json({"output": str(target), "fingerprint": fingerprint, "seconds": round(seconds, 3)})


def _check_options(out: str | None, name: str | None, *, raw: bool, resume: bool, ids: str | None) -> None:
    """Refuse options that contradict one another."""
    from qinco_core.errors import UsageError

    if name is not None and out is not None:
        raise UsageError("--name is a name in the store and -o a path: give one of the two")
    if resume and (raw or out == "-"):
        raise UsageError("only a codes artifact can be resumed: leave out --raw and -o -, or --resume")
    if raw and ids is not None:
        raise UsageError("--raw has no place for ids: leave out --ids, or write an artifact or a stream")


def _check_shard(out: str | None, *, raw: bool, force: bool) -> None:
    from qinco_core.errors import UsageError

    if raw or out == "-":
        raise UsageError("a shard is parts of a folder: leave out --raw and -o -, or --shard")
    if force:
        raise UsageError("shards share a folder, which none of them may drop: remove it yourself, without --force")


def _shard_folder(file: Path) -> Path:
    """The folder of parts of codes in the store whose file is `file`."""
    from qinco_core.errors import OutputExistsError

    folder = file.with_suffix("")
    if file.exists() and not folder.exists():
        raise OutputExistsError(f"{file} is there already, and stands for the name; give --name another, or remove it")
    return folder


def _encode_shard(
    codec: Codec, rows: Rows, folder: Path, place: tuple[int, int], how: dict[str, Any], as_json: bool
) -> None:
    from qinco_cli.console import print_json
    from qinco_core.scale.shards import encode_to_folder

    started = time.perf_counter()
    try:
        made = encode_to_folder(codec, rows, folder, place, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command makes what is missing") from None
    seconds = time.perf_counter() - started
    how["progress"].note(f"shard {place[0]} of {place[1]}: made {made} parts of {folder} in {seconds:.1f} s")
    if as_json:
        print_json({"output": str(folder), "shard": list(place), "parts": made, "seconds": round(seconds, 3)})


def _target(xb: str, out: str | None, name: str | None, store: str | None, raw: bool) -> Path | None:
    """The file to write, or None for stdout."""
    from qinco_core.errors import UsageError
    from qinco_core.store import Store

    if out is not None:
        return None if out == "-" else Path(out)
    if raw:
        raise UsageError("--raw writes no artifact: say where with -o FILE, or -o - for stdout")
    if name is None and xb == "-":
        raise UsageError("vectors from stdin have no name: give the codes one with --name, or a file with -o")
    return Store.locate(store).codes(name or Path(xb.partition("::")[0]).stem)


def _run(
    codec: Codec, rows: Rows, target: Path | None, how: dict[str, Any], *, raw: bool, force: bool, resume: bool
) -> str | None:
    from qinco_core.files import atomic_output
    from qinco_core.jobs import encode_to_stream

    if target is None:
        encode_to_stream(codec, rows, sys.stdout.buffer, **how, raw=raw)
        return None
    if raw:
        with atomic_output(target, force=force) as temporary, temporary.open("wb") as handle:
            encode_to_stream(codec, rows, handle, **how, raw=True)
        return None
    return _to_artifact(codec, rows, target, **how, force=force, resume=resume)


def _to_artifact(codec: Codec, rows: Rows, target: Path, **options: Any) -> str:
    from qinco_core.jobs import encode_to_artifact
    from qinco_core.store import partial_path

    try:
        return encode_to_artifact(codec, rows, target, **options)
    except KeyboardInterrupt:
        how = "continue with the same command and --resume"
        if rows.source.name == "<stdin>":
            how = "a stream cannot be resumed: start again with --force"
        raise KeyboardInterrupt(f"interrupted; {how}" if partial_path(target).exists() else "") from None


def _report(codec: Codec, source: VectorSource, target: Path | None, search: EncodeConfig, as_json: bool) -> None:
    import numpy as np
    import torch

    from qinco_cli.console import duration, print_json, print_pairs, size
    from qinco_core.jobs import estimate

    noise = np.random.default_rng(0).standard_normal((256, codec.config.D)).astype(np.float32)
    v = codec.network.denormalize(torch.from_numpy(noise)).numpy()

    def work(n: int) -> float:
        started = time.perf_counter()
        codec.encode(v[:n], search=search)
        return time.perf_counter() - started

    found = estimate(work, source.count, codec.bytes_per_vector, codec, 2048)
    if as_json:
        print_json({"input": source.name, "output": str(target or "-"), **found.as_dict()})
        return
    unknown = "unknown until the stream ends"
    print_pairs(
        [
            (
                "would read",
                f"{source.name}: {unknown if source.count is None else f'{source.count:,}'} vectors "
                f"of {source.dim} × {source.dtype}",
            ),
            (
                "would write",
                f"{target or 'stdout'}: {found.bytes_per_vector:g} bytes a vector, "
                f"{unknown if found.output_bytes is None else size(found.output_bytes)}",
            ),
            ("memory", f"about {size(found.memory_bytes)}"),
            (
                "time",
                f"about {unknown if found.seconds is None else duration(found.seconds)} "
                f"({found.vectors_per_second:,.0f} vectors/s on {codec.plan})",
            ),
        ]
    )
