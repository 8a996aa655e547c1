"""`qinco train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.distributed import Group
    from qinco_core.vectors import VectorFile


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", epilog=opt.example("qinco train --preset qinco2-S --time 10m learn.bvecs"))(train)


def train(
    xt: Annotated[str, typer.Argument(metavar="XT", help="Training vectors.")],
    preset: Annotated[str, typer.Option("--preset", help="Sizes to start from; see qinco presets.")] = "qinco2-S",
    M: Annotated[int | None, typer.Option("-M", "--M", help="Steps, symbols per code. [default: the preset's]")] = None,
    K: Annotated[
        int | None, typer.Option("--K", help="Codewords per step, a power of two. [default: the preset's]")
    ] = None,
    L: Annotated[int | None, typer.Option("--L", help="Residual blocks per step. [default: the preset's]")] = None,
    de: Annotated[int | None, typer.Option("--de", help="Embedding width E. [default: the preset's]")] = None,
    dh: Annotated[int | None, typer.Option("--dh", help="Hidden width H. [default: the preset's]")] = None,
    A: opt.AOption = None,
    B: opt.BOption = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            help="Rank of the concatenation matrix, for high D (the paper: dh); 0: whole. [default: the preset's]",
        ),
    ] = None,
    groups: Annotated[
        int, typer.Option("--groups", help="Groups of dimensions, a model each: M/N of the M symbols for D/N of them.")
    ] = 1,
    opq: Annotated[bool, typer.Option("--opq", help="Rotate vectors before the groups, as OPQ does (Faiss).")] = False,
    ivf: Annotated[
        Path | None,
        typer.Option("--ivf", metavar="FILE", help="Coarse centroids (.h5, .npy): train an IVF model behind them."),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="fast|paper", help="How to train: ours, or as published.")
    ] = "fast",
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="5m", help="Train this long, in s, m or h (after the initialisation)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Or this many epochs. [default: 20; paper: 60]")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Or this many vectors in all.")] = None,
    epoch_size: Annotated[
        int | None, typer.Option("--epoch-size", help="Vectors of an epoch. [default: all, at most 500,000]")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Vectors of an optimizer step. [default: 1,024, on a GPU with --time 4,096]"),
    ] = None,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Batches added up to one optimizer step.")] = 1,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Peak learning rate. [default: by run and model]"),
    ] = None,
    val: Annotated[
        int | None,
        typer.Option("--val", help="Validate on the last N vectors. [default: 10,000, at most a tenth]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of all randomness.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Model to write. [default: model.h5 in the store]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    tensorboard: Annotated[Path | None, typer.Option("--tensorboard", metavar="DIR", help="Also log there.")] = None,
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
    """Train a model on a file of vectors."""
    from qinco_core.datasets import open_named, published_file
    from qinco_core.distributed import launched
    from qinco_core.errors import UsageError
    from qinco_core.store import Store

    if str(out) == "-":
        raise UsageError("a model is a file that others name: write it with -o FILE")
    if xt == "-":
        raise UsageError("training draws vectors in random order, so it needs a file, not a stream")
    changes = {"M": M, "K": K, "L": L, "E": de, "H": dh, "A": A, "B": B, "rank": rank}
    changes |= {"groups": None if groups == 1 else groups, "opq": opq or None}
    training: dict[str, Any] = {"recipe": recipe, "samples": samples, "epoch_size": epoch_size, "batch": batch}
    training |= {"accumulate": accumulate, "lr": lr, "val": val, "seed": seed}
    options: dict[str, Any] = {
        "preset_name": preset,
        "seconds": None if time is None else opt.parse_duration(time),
        "epochs": epochs,
        "changes": {name: value for name, value in changes.items() if value is not None},
        "training": {name: value for name, value in training.items() if value is not None},
        "ivf": None if ivf is None else published_file(ivf),
    }
    machine = {"device": device, "precision": precision, "threads": threads}
    target = out or Store.locate(store).model
    with open_named(xt, "train", format=format, skip=skip, limit=limit) as vectors, launched() as group:
        if dry_run:
            _report(vectors, target, options, machine, group, json_)
            return
        _train(vectors, target, options, machine, group, resume, force, tensorboard, quiet, json_)


def _train(
    vectors: VectorFile,
    target: Path,
    options: dict[str, Any],
    machine: dict[str, Any],
    group: Group,
    resume: bool,
    force: bool,
    tensorboard: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from qinco_cli.console import Console, print_json
    from qinco_core.api import Codec
    from qinco_core.codec.precision import plan
    from qinco_core.files import check_output, existing_file
    from qinco_core.store import training_files
    from qinco_core.training.trainer import Interrupted

    check_output(target, force=force)
    checkpoint, log = training_files(target)
    if group.restarted:  # what there was before is not to be lost, nor to be in the way
        resume, force = checkpoint.exists(), True
    if resume:
        existing_file(checkpoint)
    with Console(quiet or not group.first) as console, opt.stop_on_signal() as stop:
        console.note(f"training on {plan(**machine)}")
        try:
            codec = Codec.train(
                vectors,
                **options,
                **machine,
                checkpoint=checkpoint,
                log=log,
                tensorboard=tensorboard,
                resume=resume,
                force=force,
                progress=console,
                stop=stop,
            )
        except (Interrupted, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"interrupted; {checkpoint} is kept: continue with the same command and --resume"
                if checkpoint.exists()
                else "interrupted before there was anything to keep: start again with the same command"
            ) from None
        if not group.first:
            return
        header = codec.save(target, force=force)
        size = f"{codec.bytes_per_vector:g} bytes a vector"
        console.note(f"wrote {target}: validation MSE {codec.training['val_mse']:,.6g}, {size}")
    if as_json:
        print_json({"output": str(target), "fingerprint": header.fingerprint, **codec.training})


def _report(
    vectors: VectorFile, target: Path, options: dict[str, Any], machine: dict[str, Any], group: Group, as_json: bool
) -> None:
    from qinco_cli.console import duration, print_json, print_pairs, size
    from qinco_core.training.forecast import forecast

    found = forecast(vectors, **options, **machine)
    if not group.first:
        return
    if as_json:
        print_json({"input": vectors.name, "output": str(target), **found.as_dict()})
        return
    N, D = vectors.shape
    print_pairs(
        [
            ("would read", f"{vectors.name}: {N:,} vectors of {D} × {vectors.dtype}"),
            ("would write", f"{target}: {size(found.model_bytes)}, {found.parameters:,} parameters"),
            ("codes", f"{found.bytes_per_vector:g} bytes a vector"),
            ("memory", f"about {size(found.memory_bytes)}"),
            (
                "training",
                f"{found.samples:,} vectors, about {duration(found.seconds)} after the initialisation",
            ),
        ]
    )
