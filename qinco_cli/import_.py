"""`qinco import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.interop.detect import Foreign
    from qinco_core.store import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import", epilog=opt.example("qinco import qinco2_L-bigann1M-8x8.pt -o model.h5"))(import_)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A published checkpoint or pairwise decoder (.pt), codes (.npz), centroids (.npy), a folder of "
            "qinco export, or the name of a model that qinco fetch has brought.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Artifact to write. [default: its place in the store]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of codes in the store. [default: the file's]")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FILE", help="Model that codes or a pairwise decoder are of. [default: the store's]"
        ),
    ] = None,
    store: opt.StoreOption = None,
    force: opt.ForceOption = False,
    json_: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Take over a published model, codes, pairwise decoder or centroids."""
    from qinco_cli.console import Console, print_json
    from qinco_core.datasets import published_file
    from qinco_core.errors import UsageError
    from qinco_core.interop.detect import detect
    from qinco_core.interop.transfer import import_file
    from qinco_core.store import Store

    if name is not None and out is not None:
        raise UsageError("--name is a name in the store and -o a path: give one of the two")
    place = Store.locate(store)
    found = detect(published_file(source))
    if name is not None and found.kind != "codes":
        raise UsageError(f"--name names codes, but {found.path} is a {found.kind}: say where with -o FILE")
    if model is not None and found.kind not in ("codes", "pairwise"):
        raise UsageError(f"--model is the model of codes or a pairwise decoder, but {found.path} is a {found.kind}")
    target = out or _place(found, name, place)
    with Console(quiet) as console:
        made = import_file(found, target, model=model or place.model, progress=console, force=force)
        console.note(f"wrote {target}: {made.about}")
    if json_:
        header = made.header
        print_json({"output": str(target), "kind": header.kind, "fingerprint": header.fingerprint, **made.figures})


def _place(found: Foreign, name: str | None, place: Store) -> Path:
    if found.kind == "codes":
        return place.codes(name or found.path.stem)
    return {"pairwise": place.pairwise, "centroids": place.centroids}.get(found.kind, place.model)
