"""`qinco centroids`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.store import StoredCentroids
    from qinco_core.vectors import VectorFile


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("centroids", epilog=opt.example("qinco centroids learn.bvecs --k 65536"))(centroids)


def centroids(
    xt: Annotated[str | None, typer.Argument(metavar="XT", help="Training vectors.")] = None,
    k: Annotated[int | None, typer.Option("--k", metavar="N", help="How many centroids; needed with XT.")] = None,
    iterations: Annotated[int, typer.Option("--iterations", metavar="N", help="Iterations of every k-means.")] = 20,
    levels: Annotated[
        int | None,
        typer.Option("--levels", metavar="1|2", help="2: k-means in clusters. [default: 2 from 65,536 centroids on]"),
    ] = None,
    refine: Annotated[
        int, typer.Option("--refine", metavar="N", help="With two levels: last iterations over all centroids.")
    ] = 2,
    per_centroid: Annotated[
        int, typer.Option("--per-centroid", metavar="N", help="Training vectors per centroid at most, at random.")
    ] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of all randomness.")] = 0,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE.npy", help="Take these centroids in place of training some."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE.npy", help="Write the store's centroids, or those of --import, as npy."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Centroids to write. [default: centroids.h5 in the store]"),
    ] = None,
    store: opt.StoreOption = None,
    format: opt.FormatOption = None,
    skip: opt.SkipOption = 0,
    limit: opt.LimitOption = None,
    force: opt.ForceOption = False,
    dry_run: opt.DryRunOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Train the coarse centroids of an IVF by k-means; or import or export them."""
    from qinco_core.datasets import open_named, published_file
    from qinco_core.store import Store

    _check_options(xt, k, import_, export, out)
    kept = Store.locate(store).centroids
    target = export or out or kept
    if xt is None:
        _copy(published_file(import_) if import_ else kept, target, force=force, dry_run=dry_run, as_json=json_)
        return
    settings = {"iterations": iterations, "levels": levels, "refine": refine}
    settings |= {"per_centroid": per_centroid, "seed": seed}
    machine = {"device": device, "threads": threads}
    with open_named(xt, "train", format=format, skip=skip, limit=limit) as vectors:
        if dry_run:
            _report(vectors, target, {"K": k} | settings | machine, json_)
            return
        _train(vectors, target, {"K": k} | settings, machine, force=force, quiet=quiet, as_json=json_)


def _check_options(xt: str | None, k: int | None, import_: Path | None, export: Path | None, out: Path | None) -> None:
    """Refuse options that contradict one another."""
    from qinco_core.errors import UsageError

    copies = import_ is not None or export is not None
    npy = out is not None and out.suffix == ".npy"
    refused = {
        "name the training vectors and --k, or centroids to --import or --export": xt is None and not copies,
        "training vectors make new centroids: leave out --import and --export": xt is not None and copies,
        "k-means draws vectors in random order, so it needs a file, not a stream": xt == "-",
        "say how many centroids: --k 65536, for example": xt is not None and k is None,
        "--k is how many centroids to train: leave it out": xt is None and k is not None,
        "--export names the file to write: leave out -o": export is not None and out is not None,
        "centroids are exported as npy: write --export FILE.npy": export is not None and export.suffix != ".npy",
        "centroids are a file that others name: write it with -o FILE.h5 (npy: --export)": str(out) == "-" or npy,
    }
    for message, applies in refused.items():
        if applies:
            raise UsageError(message)


def _train(
    vectors: VectorFile,
    target: Path,
    settings: dict[str, Any],
    machine: dict[str, Any],
    *,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from qinco_cli.console import Console
    from qinco_core.codec.precision import plan
    from qinco_core.files import check_output
    from qinco_core.index.centroids import CentroidsConfig, check_vectors, train_centroids
    from qinco_core.store import save_centroids

    check_vectors(vectors, CentroidsConfig.parse(settings))
    check_output(target, force=force)
    where = plan(precision="float32", **machine)
    with Console(quiet) as console, opt.stop_on_signal() as stop:
        console.note(f"k-means on {where.device}, {where.threads} threads")
        try:
            found = train_centroids(vectors, progress=console, stop=stop, **settings, **machine)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; nothing was written: start again with the same command") from None
        header = save_centroids(target, found.centroids, training=found.training, force=force)
        console.note(f"wrote {target}")
    _print(target, header.fingerprint, vectors.dim, found.training, as_json)


def _copy(source: Path, target: Path, *, force: bool, dry_run: bool, as_json: bool) -> None:
    """Import to an artifact, or export to npy, by the name of the target."""
    from qinco_core.files import check_output
    from qinco_core.store import load_centroids, save_centroids
    from qinco_core.vectors import write_vectors

    stored = load_centroids(source)
    if dry_run:
        _report_copy(stored, target, as_json)
        return
    check_output(target, force=force)
    if target.suffix == ".npy":
        write_vectors(target, stored.centroids, format="npy", force=force)
    else:
        save_centroids(target, stored.centroids, training=stored.training | {"source": str(source)}, force=force)
    K, D = stored.centroids.shape
    _print(target, stored.header.fingerprint, D, {"K": K}, as_json)


def _print(target: Path, fingerprint: str, D: int, figures: dict[str, Any], as_json: bool) -> None:
    from qinco_cli.console import duration, print_json, print_pairs

    if as_json:
        print_json({"output": str(target), "fingerprint": fingerprint, "D": D, **figures})
        return
    pairs = [("centroids", f"{figures['K']:,} of dimension {D}"), ("file", str(target))]
    if "mse" in figures:
        pairs += [
            ("MSE", f"{figures['mse']:,.6g} on {figures['vectors']:,} training vectors"),
            ("imbalance", f"{figures['imbalance']:.3f} (1: all lists of one length)"),
            ("empty clusters", f"{figures['repaired']:,} repaired, {figures['empty']:,} left"),
            ("time", duration(figures["seconds"])),
        ]
    print_pairs(pairs)


def _report(vectors: VectorFile, target: Path, arguments: dict[str, Any], as_json: bool) -> None:
    from qinco_cli.console import duration, print_json, print_pairs, size
    from qinco_core.index.centroids import forecast

    found = forecast(vectors, **arguments)
    if as_json:
        print_json({"input": vectors.name, "output": str(target), **found.as_dict()})
        return
    N, D = vectors.shape
    print_pairs(
        [
            ("would read", f"{vectors.name}: {found.sample:,} of {N:,} vectors of {D} × {vectors.dtype}"),
            ("would write", f"{target}: {found.K:,} centroids, {size(found.output_bytes)}"),
            ("levels", str(found.levels)),
            ("memory", f"about {size(found.memory_bytes)}"),
            ("time", f"about {duration(found.seconds)}"),
        ]
    )


def _report_copy(stored: StoredCentroids, target: Path, as_json: bool) -> None:
    from qinco_cli.console import print_json, print_pairs, size

    K, D = stored.centroids.shape
    if as_json:
        print_json({"input": str(stored.path), "output": str(target), "K": K, "D": D})
        return
    written = f"{target}: {size(stored.centroids.nbytes)}"
    print_pairs([("would read", f"{stored.path}: {K:,} centroids of dimension {D}"), ("would write", written)])
