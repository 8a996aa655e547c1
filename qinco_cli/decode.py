"""`qinco decode`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.api import Codec


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("decode", epilog=opt.example("qinco decode base -o base.fvecs --steps 4"))(decode)


def decode(
    codes: Annotated[
        str,
        typer.Argument(metavar="CODES", help="Codes: a file, a name in the store, or - for a stream on stdin."),
    ],
    out: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Vectors to write; - for stdout.")],
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="m", help="Use the first m symbols only. [default: all M]"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Read bare packed symbols.")] = False,
    model: opt.ModelOption = None,
    store: opt.StoreOption = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Format to write. [default: by extension]")
    ] = None,
    force: opt.ForceOption = False,
    dry_run: opt.DryRunOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Get vectors back from codes, all of their symbols or a prefix."""
    import numpy as np

    from qinco_cli.console import Console, print_json
    from qinco_core.files import check_output
    from qinco_core.jobs import check_raw, decode_to
    from qinco_core.vectors import open_writer, output_path

    if out != "-":
        check_output(output_path(out, format), force=force, dry_run=dry_run)
    codec = opt.open_codec(model, store, device=device, precision=precision, threads=threads)
    codec.check_steps(steps)
    if raw:
        check_raw(codec)
    with Console(quiet) as console, open_codes(codes, codec, store, raw) as (batches, count):
        if dry_run:
            _report(codec, codes, out, count, steps, json_)
            return
        console.note(f"decoding on {codec.plan}")
        started = time.perf_counter()
        target: Any = sys.stdout.buffer if out == "-" else out
        writer = open_writer(target, D=codec.config.D, dtype=np.float32, format=format, count=count, force=force)
        with writer as sink:
            done = decode_to(codec, batches, sink, steps=steps, count=count, progress=console)
        seconds = time.perf_counter() - started
    if out != "-":
        console.note(f"wrote {done:,} vectors to {out} in {seconds:.1f} s")
        if json_:
            print_json({"output": out, "vectors": done, "seconds": round(seconds, 3)})


@contextmanager
def open_codes(name: str, codec: Codec, store: str | None, raw: bool) -> Iterator[tuple[Iterator[Any], int | None]]:
    """Rows of codes from an artifact, a stream or raw bytes, batch by batch, and their number if known."""
    from qinco_core.files import existing_file
    from qinco_core.jobs import code_batches, read_raw
    from qinco_core.store import StreamReader, is_stream
    from qinco_core.store import open_codes as open_artifact

    if name == "-":
        handle = sys.stdin.buffer
        if raw:
            yield read_raw(codec, handle, "<stdin>"), None
            return
        reader = StreamReader(handle)
        codec.check_codes(reader.spec, "the codes from stdin")
        yield code_batches(reader), reader.count
        return
    path = find_codes(name, store)
    if not path.is_dir() and (raw or is_stream(existing_file(path))):
        with path.open("rb") as file:
            if raw:
                yield read_raw(codec, file, str(path)), None
                return
            reader = StreamReader(file)
            codec.check_codes(reader.spec, path)
            yield code_batches(reader), reader.count
        return
    with open_artifact(path) as artifact:
        codec.check_codes(artifact.spec, path)
        yield code_batches(artifact), len(artifact)


def find_codes(name: str, store: str | None) -> Path:
    """A file of codes by its path, or by its name in the store."""
    from qinco_core.store import Store

    path = Path(name)
    if path.exists() or len(path.parts) > 1 or name.endswith(".h5"):
        return path
    file = Store.locate(store).codes(name)
    folder = file.with_suffix("")
    return folder if folder.is_dir() and not file.exists() else file


def _report(codec: Codec, name: str, out: str, count: int | None, steps: int | None, as_json: bool) -> None:
    import numpy as np

    from qinco_cli.console import duration, known, print_json, print_pairs, size
    from qinco_core.scale.costs import MEASURED, Machines, Sizes, pace, streaming

    random = np.random.default_rng(0)
    symbols = random.integers(0, codec.config.K, (MEASURED, codec.config.M))
    ivf_K = codec.config.ivf_K
    codes = codec.join(symbols, random.integers(0, ivf_K, MEASURED) if ivf_K else None)

    def work(n: int) -> float:
        started = time.perf_counter()
        codec.decode(codes[:n], steps=steps)
        return time.perf_counter() - started

    cores = codec.plan.threads
    place: dict[str, Any] = {"sizes": Sizes.of(codec.config), "machines": Machines(cores=cores)}
    found = streaming(count, 4 * codec.config.D, cores * pace(work), rows=1 << 14, spare=0, **place)
    if as_json:
        print_json({"input": name, "output": out, **found.as_dict()})
        return
    print_pairs(
        [
            ("would read", f"{name}: {known(count, '{:,}'.format)} codes"),
            ("would write", f"{out}: {known(found.output_bytes, size)}"),
            ("memory", f"about {size(found.memory_bytes)}"),
            ("time", f"about {known(found.seconds, duration)} on {codec.plan}"),
        ]
    )
