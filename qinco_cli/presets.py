"""`qinco presets`."""

from __future__ import annotations

from typing import Annotated

import typer

from qinco_cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("presets", epilog=opt.example("qinco presets --dim 768"))(presets)


def presets(
    dim: Annotated[int, typer.Option("--dim", metavar="D", help="Dimension to count parameters for.")] = 128,
    json_: opt.JsonOption = False,
) -> None:
    """List the presets with their sizes."""
    from qinco_cli.console import print_json, print_table
    from qinco_core.config import PRESETS

    models = {name: preset.model(dim) for name, preset in PRESETS.items()}
    if json_:
        print_json({n: {**p.model_dump(), "parameters": models[n].parameters} for n, p in PRESETS.items()})
        return
    columns = ["preset", "M", "K", "L", "de", "dh", "rank", "A", "B", "bytes", "parameters", "about"]
    rows = []
    for name, preset in PRESETS.items():
        m = models[name]
        sizes = (m.M, m.K, m.L, m.E, m.H, m.rank or "-", preset.A, preset.B, m.code_bytes)
        rows.append([name, *map(str, sizes), f"{m.parameters:,}", preset.about])
    print_table(columns, rows)
