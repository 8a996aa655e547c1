"""`qinco encode`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
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
    engine: opt.EngineOption = "local",
    address: opt.AddressOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Ray workers at the same time. [default: all there is room for]"),
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
    from qinco_core.errors import UsageError
    from qinco_core.jobs import Rows, check_assign, check_dimension, check_raw

    _check_options(out, name, raw=raw, resume=resume, ids=ids)
    ray = opt.on_ray(engine, address)
    place = None if ray and shard is None else opt.shard(shard)
    if place is not None or ray:
        _check_parts(out, raw=raw, force=force, shard=shard, ray=ray)
    if workers is not None and (workers < 1 or not ray):
        raise UsageError(f"--workers {workers} cannot be: 1 or more, of --engine ray")
    with opt.open_source(xb, format, skip, limit) as source, Console(quiet) as console:
        target = _target(xb, out, name, store, raw)
        if (place is not None or ray) and target is not None:
            target = target if out is not None else _parts_folder(target)
        hardware: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        codec = opt.open_codec(model, store, **hardware | ({"threads": threads or 1} if ray else {}))
        search = opt.search_options(codec, A, B, exact)
        check_dimension(codec, source)
        check_assign(codec, assign)
        if raw:
            check_raw(codec)
        rows = Rows(source, skip, _ids(ids, source, skip))
        if dry_run:
            _report(codec, rows, target, search, place, raw, json_)
            return
        beam = ", ".join(f"{name} = {value}" for name, value in search.model_dump().items())
        console.note(f"encoding on {codec.plan}; {beam}")
        started = time.perf_counter()
        how: dict[str, Any] = {"search": search, "assign": assign, "progress": console}
        if (place is not None or ray) and target is not None:
            cluster = {"address": address, "workers": workers} if ray else None
            _encode_parts(codec, rows, target, place, cluster, how, json_)
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
        raise UsageError("only a codes artifact can be resumed: leave --resume out; a stream goes on with --skip")
    if raw and ids is not None:
        raise UsageError("--raw has no place for ids: leave out --ids, or write an artifact or a stream")


def _ids(ids: str | None, source: VectorSource, skip: int) -> Any:
    """One id a vector; an id of every vector of the file, those passed over included, will do too."""
    numbers = opt.read_ids(ids)
    whole = source.count is not None and numbers is not None and len(numbers) == skip + source.count
    return numbers[skip:] if whole else numbers


def _check_parts(out: str | None, *, raw: bool, force: bool, shard: str | None, ray: bool) -> None:
    from qinco_core.errors import UsageError

    if shard is not None and ray:
        raise UsageError("--engine ray shares out all parts by itself: leave --shard out")
    if raw or out == "-":
        raise UsageError(
            "a shard is parts of a folder, and so is what Ray's workers make: leave out --raw and -o -, or --shard and "
            "--engine"
        )
    if force:
        raise UsageError("shards share a folder, which none of them may drop: remove it yourself, without --force")


def _parts_folder(file: Path) -> Path:
    """The folder of parts of codes in the store whose file is `file`."""
    from qinco_core.errors import OutputExistsError

    folder = file.with_suffix("")
    if file.exists() and not folder.exists():
        raise OutputExistsError(f"{file} is there already, and stands for the name; give --name another, or remove it")
    return folder


def _encode_parts(
    codec: Codec,
    rows: Rows,
    folder: Path,
    place: tuple[int, int] | None,
    cluster: dict[str, Any] | None,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    from qinco_cli.console import print_json
    from qinco_core.scale.encode import encode_on_cluster
    from qinco_core.scale.shards import encode_to_folder

    started = time.perf_counter()
    place = place or (0, 1)
    try:
        if cluster is not None:
            made = encode_on_cluster(codec, rows, folder, **how, **cluster)
        else:
            made = encode_to_folder(codec, rows, folder, place, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command makes what is missing") from None
    seconds = time.perf_counter() - started
    who = "Ray" if cluster else f"shard {place[0]} of {place[1]}"
    how["progress"].note(f"{who}: made {made} parts of {folder} in {seconds:.1f} s")
    if as_json:
        print_json({"output": str(folder), "shard": list(place), "parts": made, "seconds": round(seconds, 3)})


def _target(xb: str, out: str | None, name: str | None, store: str | None, raw: bool) -> Path | None:
    """The file to write, or None for stdout."""
    from qinco_core.errors import UsageError
    from qinco_core.store import Store
    from qinco_core.vectors.formats import source_stem

    if out is not None:
        return None if out == "-" else Path(out)
    if raw:
        raise UsageError("--raw writes no artifact: say where with -o FILE, or -o - for stdout")
    if name is None and xb == "-":
        raise UsageError("vectors from stdin have no name: give the codes one with --name, or a file with -o")
    return Store.locate(store).codes(name or source_stem(xb))


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


def _report(
    codec: Codec,
    rows: Rows,
    target: Path | None,
    search: EncodeConfig,
    place: tuple[int, int] | None,
    raw: bool,
    as_json: bool,
) -> None:
    from qinco_cli.console import duration, known, print_json, print_pairs, size
    from qinco_core.scale.costs import Machines, Rates, Sizes, encoding

    source, count, threads = rows.source, rows.source.count, codec.plan.threads
    whole = count if place is not None else None
    own = count if place is None else _shard_rows(count, place)
    sizes = Sizes.of(codec.config, ids=not raw and (rows.ids is not None or target is None))
    rates = Rates(encode=threads * _seconds_a_vector(codec, search))
    found = encoding(own, sizes, rates, Machines(cores=threads), parts=whole)
    if target is None or raw:  # nothing is kept to go on from
        found = replace(found, disk_bytes=0 if target is None else found.output_bytes)
    if as_json:
        facts = {"input": source.name, "output": str(target or "-"), "threads": threads, **found.as_dict()}
        print_json(facts if place is None else facts | {"shard": list(place)})
        return
    width, speed = found.bytes_per_vector, found.vectors_per_second
    print_pairs(
        [
            ("would read", f"{source.name}: {known(own, '{:,}'.format)} vectors of {source.dim} × {source.dtype}"),
            ("would write", f"{target or 'stdout'}: {width:g} bytes a vector, {known(found.output_bytes, size)}"),
            ("disk", f"at most {known(found.disk_bytes, size)} while it is written"),
            ("memory", f"about {size(found.memory_bytes)}"),
            ("time", f"about {known(found.seconds, duration)} ({speed:,.0f} vectors/s on {codec.plan})"),
        ]
    )


def _shard_rows(count: int | None, place: tuple[int, int]) -> int:
    """How many vectors belong to a shard."""
    from qinco_core.errors import UsageError
    from qinco_core.store.folder import Parts

    if count is None:
        raise UsageError("a stream cannot be divided into shards: encode a file, or leave --shard out")
    parts = Parts(count)
    own = parts.shard(*place)
    return min(count, own.stop * parts.rows) - min(count, own.start * parts.rows)


def _seconds_a_vector(codec: Codec, search: EncodeConfig) -> float:
    import numpy as np
    import torch

    from qinco_core.scale.costs import MEASURED, pace

    noise = np.random.default_rng(0).standard_normal((MEASURED, codec.config.D)).astype(np.float32)
    v = codec.network.denormalize(torch.from_numpy(noise)).numpy()

    def work(n: int) -> float:
        started = time.perf_counter()
        codec.encode(v[:n], search=search)
        return time.perf_counter() - started

    return pace(work)
