"""`qinco export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qinco_cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", epilog=opt.example("qinco export qinco.store/model.h5 -o my-model"))(export)


def export(
    artifact: Annotated[
        str | None,
        typer.Argument(metavar="ARTIFACT", help="A file, or codes by their name in the store. [default: its model]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR",
            help="What to write: of a model .pt (as published), .onnx, or a folder to share; of codes .npz, of a "
            "pairwise decoder .pt, of centroids .npy. [default with --onnx: beside the model]",
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the model's decoder as ONNX.")] = False,
    part_rows: Annotated[
        int, typer.Option("--part-rows", metavar="N", min=1, help="Codes of a part of published codes.")
    ] = 1_000_000,
    store: opt.StoreOption = None,
    force: opt.ForceOption = False,
    json_: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Write a model, codes, a pairwise decoder or centroids for other programs."""
    from qinco_cli.console import Console, print_json
    from qinco_cli.decode import find_codes
    from qinco_core.errors import UsageError
    from qinco_core.interop.transfer import export_file
    from qinco_core.store import Store

    source = Store.locate(store).model if artifact is None else find_codes(artifact, store)
    target = out or (source.with_suffix(".onnx") if onnx else None)
    if target is None:
        raise UsageError("say what to write with -o: a .pt file, or a folder, for example -o my-model")
    if str(target) == "-":
        raise UsageError("an export is one file or several: write it with -o FILE, or to a folder")
    with Console(quiet) as console:
        made = export_file(source, target, onnx=onnx, part_rows=part_rows, progress=console, force=force)
        more = f" and {len(made.files) - 3} more" if len(made.files) > 3 else ""
        console.note(f"wrote {', '.join(map(str, made.files[:3]))}{more}")
        for note in made.notes:
            console.note(note)
    if json_:
        print_json({"input": str(source), "output": [str(path) for path in made.files], **made.figures})
