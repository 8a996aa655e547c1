"""`qinco merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qinco_cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge", epilog=opt.example("qinco merge base"))(merge)


def merge(
    codes: Annotated[str, typer.Argument(metavar="CODES", help="A folder of parts, or its name in the store.")],
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
    """Make one file of the parts that shards have encoded; every command reads the folder as it is, too."""
    from qinco_cli.console import Console, print_json
    from qinco_core.scale.shards import merge_codes
    from qinco_core.store import Store

    folder = Path(codes)
    if not folder.is_dir() and len(folder.parts) == 1:
        folder = Store.locate(store).codes(codes).with_suffix("")
    target = out or folder.with_name(f"{folder.name}.h5")
    with Console(quiet) as console:
        fingerprint = merge_codes(folder, target, progress=console, force=force, resume=resume)
        console.note(f"wrote {target}; {folder} may go")
    if json_:
        print_json({"output": str(target), "fingerprint": fingerprint})
