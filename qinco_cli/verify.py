"""`qinco verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qinco_cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify", epilog=opt.example("qinco verify qinco.store/codes/base.h5"))(verify)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An artifact or a saved stream of codes.")],
    json_: opt.JsonOption = False,
) -> None:
    """Check every digest, size and fingerprint of a file; exit 1 if one is wrong."""
    from qinco_cli.console import print_json, print_pairs
    from qinco_core.store import verify as check

    report = check(file)
    if json_:
        checks = [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in report.checks]
        print_json({"file": str(file), "kind": report.kind, "ok": report.ok, "checks": checks})
    else:
        print_pairs([(c.name, ("ok      " if c.ok else "WRONG   ") + c.detail) for c in report.checks])
    if not report.ok:
        raise typer.Exit(1)
