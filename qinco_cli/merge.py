"""`qinco merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from typing import BinaryIO

    from qinco_cli.console import Console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge", epilog=opt.example("qinco merge base"))(merge)


def merge(
    codes: Annotated[
        str,
        typer.Argument(
            metavar="CODES", help="A folder of parts, or its name in the store; a saved stream, or - for one on stdin."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Codes to write. [default: codes/NAME.h5 in the store]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted job.")] = False,
    store: opt.StoreOption = None,
    force: opt.ForceOption = False,
    json_: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Make one file of the parts that shards have encoded, or of a stream from another machine."""
    from qinco_cli.console import Console, print_json
    from qinco_core.scale.collect import merge_codes
    from qinco_core.store import Store, is_stream

    how = {"force": force, "resume": resume}
    with Console(quiet) as console:
        source = Path(codes)
        if codes == "-":
            target = _named(out, "from stdin")
            fingerprint = _receive(sys.stdin.buffer, target, console, **how)
        elif source.is_file() and is_stream(source):
            target = _named(out, f"in {source}")
            with source.open("rb") as handle:
                fingerprint = _receive(handle, target, console, **how)
        else:
            if not source.is_dir() and len(source.parts) == 1:
                source = Store.locate(store).codes(codes).with_suffix("")
            target = out or source.with_name(f"{source.name}.h5")
            fingerprint = merge_codes(source, target, progress=console, **how)
            console.note(f"{source} may go")
        console.note(f"wrote {target}")
    if json_:
        print_json({"output": str(target), "fingerprint": fingerprint})


def _named(out: Path | None, where: str) -> Path:
    from qinco_core.errors import UsageError

    if out is None:
        raise UsageError(f"the codes {where} have no name: say where to write them with -o FILE")
    return out


def _receive(source: BinaryIO, target: Path, console: Console, *, force: bool, resume: bool) -> str:
    from qinco_core.scale.collect import receive_codes, remainder
    from qinco_core.store import StreamReader

    try:
        return receive_codes(StreamReader(source), target, progress=console, force=force, resume=resume)
    except KeyboardInterrupt:
        rest = remainder(target)
        raise KeyboardInterrupt(f"interrupted; send the codes again{rest}") from None
