"""`qinco pairwise`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.api import Codec
    from qinco_core.index.pairwise import Pairwise
    from qinco_core.index.pairwise_fit import FitConfig
    from qinco_core.store import StoredCodes
    from qinco_core.vectors import VectorFile


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pairwise", epilog=opt.example("qinco pairwise learn.bvecs --codes learn"))(pairwise)


def pairwise(
    xt: Annotated[str, typer.Argument(metavar="XT", help="Training vectors.")],
    codes: Annotated[
        str | None,
        typer.Option("--codes", help="Their codes, file or name in the store. [default: they are encoded here]"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="CODES", help="Codes to be searched, file or name: fit to these above all."),
    ] = None,
    tables: Annotated[
        int, typer.Option("--tables", metavar="N", help="Tables of pairs per step; 0: additive codebooks only.")
    ] = 2,
    sample: Annotated[
        int,
        typer.Option(
            "--sample", metavar="N", help="Codes to fit to at most: of the base, of training vectors, then fresh ones."
        ),
    ] = 1 << 20,
    seed: Annotated[int, typer.Option("--seed", help="Of all randomness.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Decoders to write. [default: pairwise.h5 in the store]"),
    ] = None,
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
    """Fit the look-up decoders of a model: additive codebooks, and tables of pairs of symbols."""
    from qinco_cli.console import Console
    from qinco_cli.decode import find_codes
    from qinco_core.datasets import open_named
    from qinco_core.errors import UsageError
    from qinco_core.files import check_output
    from qinco_core.index.pairwise_fit import FitConfig, check_fit
    from qinco_core.jobs import check_dimension
    from qinco_core.store import Store, open_codes

    if xt == "-":
        raise UsageError("decoders are fitted to vectors from all over a file, not to a stream: name a file")
    config = FitConfig.parse({"tables": tables, "sample": sample, "seed": seed})
    target = out or Store.locate(store).pairwise
    with ExitStack() as stack:
        vectors = stack.enter_context(open_named(xt, "train", format=format, skip=skip, limit=limit))
        codec = opt.open_codec(model, store, device=device, precision=precision, threads=threads)
        check_dimension(codec, vectors)
        check_fit(codec, config)
        known = None if codes is None else stack.enter_context(open_codes(find_codes(codes, store)))
        searched = None if base is None else stack.enter_context(open_codes(find_codes(base, store)))
        if searched is not None:
            codec.check_codes(searched.spec, searched.path)
        if dry_run:
            _report(codec, vectors, known, searched, target, config, json_)
            return
        check_output(target, force=force)
        console = stack.enter_context(Console(quiet))
        console.note(f"fitting on {codec.plan}")
        found, fingerprint = _fit(codec, vectors, known, searched, target, config, console, force)
        console.note(f"wrote {target} in {found.training['seconds']:.1f} s, not counting the encoding")
    _print(found, fingerprint, target, json_)


def _fit(
    codec: Codec,
    vectors: VectorFile,
    codes: StoredCodes | None,
    base: StoredCodes | None,
    target: Path,
    config: FitConfig,
    console: Any,
    force: bool,
) -> tuple[Pairwise, str]:
    from qinco_core.index.training_codes import fit_to_vectors
    from qinco_core.store import Parent

    assert codec.header is not None
    try:
        found = fit_to_vectors(codec, vectors, codes, config, console, base)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was written: start again with the same command") from None
    parents = [Parent("model", codec.header.fingerprint)]
    parents += [Parent("codes", file.header.fingerprint) for file in (codes, base) if file is not None]
    header = found.save(target, codec.config, tuple(parents), force=force)
    return found, header.fingerprint


def _print(found: Pairwise, fingerprint: str, target: Path, as_json: bool) -> None:
    from qinco_cli.console import print_json, print_table

    if as_json:
        print_json({"output": str(target), "fingerprint": fingerprint, **found.training})
        return
    mse = found.training["mse"]
    rows = [[name, *(f"{mse[part][name]:,.6g}" for part in mse)] for name in mse["held-out"]]
    print_table(["decoder", *(f"MSE, {part}" for part in mse)], rows)


def _report(
    codec: Codec,
    vectors: VectorFile,
    codes: StoredCodes | None,
    base: StoredCodes | None,
    target: Path,
    config: FitConfig,
    as_json: bool,
) -> None:
    from qinco_cli.console import duration, print_json, print_pairs, size
    from qinco_core.index.training_codes import check_training_codes, forecast

    if codes is not None:
        check_training_codes(codec, vectors, codes)
    searched = 0 if base is None else len(base)
    found = forecast(codec, len(vectors), config, encoded=codes is not None, base=searched)
    if as_json:
        print_json({"input": vectors.name, "base": base and str(base.path), "output": str(target), **found})
        return
    N, D = vectors.shape
    read = f"{vectors.name}: {found['vectors']:,} of {N:,} vectors of {D} × {vectors.dtype}"
    read += "" if codes is None else f", their codes {codes.path}"
    read += "" if base is None else f", and {searched:,} codes to be searched, {base.path}"
    print_pairs(
        [
            ("would read", read),
            ("would fit to", f"{found['sample']:,} codes"),
            ("would write", f"{target}: {found['tables']} tables, {size(found['output_bytes'])}"),
            ("memory", f"about {size(found['memory_bytes'])}"),
            ("time", f"about {duration(found['seconds'])}"),
        ]
    )
