"""`qinco eval`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qinco_core.api import Codec
    from qinco_core.datasets import Dataset, Part
    from qinco_core.evaluation.quality import Quality, Queries
    from qinco_core.vectors import VectorFile

# training vectors of a data set that baselines take unasked: these are read whole, as float32
_MOST_TRAINING = 500_000

Openers = dict["Part", Callable[..., "VectorFile"]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "eval",
        epilog=opt.example("qinco eval base.u8bin --queries query.fvecs --baselines --train learn.bvecs"),
    )(evaluate)


def evaluate(
    xb: Annotated[str | None, typer.Argument(metavar="XB", help="Vectors to encode, decode and compare.")] = None,
    valset: Annotated[
        str | None,
        typer.Option("--valset", metavar="XT", help="Instead: the validation part of this training file."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Instead: base, queries, ground truth and training part of a data set, or an ann-benchmarks .hdf5.",
        ),
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option("--codes", help="Check these codes of XB, file or name in the store; do not encode."),
    ] = None,
    queries: Annotated[str | None, typer.Option("--queries", metavar="XQ", help="Queries, to report recall.")] = None,
    groundtruth: Annotated[
        str | None,
        typer.Option("--groundtruth", metavar="GT", help="Their true neighbours. [default: computed]"),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compare with Faiss PQ, OPQ, RQ and LSQ at the same bytes.")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", metavar="PQ|OPQ|RQ|LSQ|PRQ|SQ|RaBitQ", help="Only these; repeatable."),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="XT",
            help="Training vectors of the baselines. [default: those of --valset; of --dataset the first, as many "
            "as the model was trained on, at most 500,000]",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw MSE over bytes, for every prefix.")
    ] = None,
    A: opt.AOption = None,
    B: opt.BOption = None,
    exact: opt.ExactOption = False,
    model: opt.ModelOption = None,
    store: opt.StoreOption = None,
    format: opt.FormatOption = None,
    skip: opt.SkipOption = 0,
    limit: opt.LimitOption = None,
    force: opt.ForceOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Measure a model: error, rates, recall; beside other quantizers if asked."""
    from qinco_cli.console import Console
    from qinco_core.datasets import dataset as named_dataset
    from qinco_core.errors import UsageError
    from qinco_core.evaluation.quality import measure, measure_baseline
    from qinco_core.files import check_output
    from qinco_core.jobs import check_dimension
    from qinco_core.optional import import_pyplot

    names = _baseline_names(baselines, baseline)
    named = None
    if dataset is not None:
        _check_alone({"XB": xb, "--valset": valset, "--queries": queries, "--groundtruth": groundtruth})
        named = named_dataset(dataset)
        openers = _of_set(named, whole=not skip and limit is None)
    else:
        _check_inputs(xb, valset, queries, groundtruth, skip)
        openers = _of_words({"base": xb, "queries": queries, "groundtruth": groundtruth})
    openers |= _of_words({"train": train})
    if names and "train" not in openers and valset is None:
        raise UsageError("baselines are trained here: give their training vectors with --train")
    if plot is not None:
        check_output(plot, force=force)
        import_pyplot()
    with ExitStack() as stack:
        console = stack.enter_context(Console(quiet))
        codec = opt.open_codec(model, store, device=device, precision=precision, threads=threads)
        opened = openers["base"] if valset is None else _of_words({"train": valset})["train"]
        vectors = stack.enter_context(opened(format=format, skip=skip, limit=limit))
        check_dimension(codec, vectors)
        training = None
        if valset is not None:
            training, vectors = _split(vectors, codec)
        if names and "train" in openers:
            bound = _bound(codec) if named and train is None else None
            training = stack.enter_context(openers["train"](limit=bound))
            check_dimension(codec, training)
            if len(training) == bound:
                console.note(f"baselines get the first {bound:,} training vectors of {dataset}; for more, use --train")
        asked = _load_queries(openers, vectors) if "queries" in openers else None
        search = opt.search_options(codec, A, B, exact)
        console.note(f"evaluating on {codec.plan}")
        known = stack.enter_context(_symbols(codes, codec, store)) if codes else None
        label = str(codec.training.get("preset", "qinco"))
        results = [measure(codec, vectors, name=label, search=search, progress=console, codes=known, queries=asked)]
        xt = training.read(0, len(training)).astype("float32") if names and training is not None else None
        for name in names:
            assert xt is not None
            console.note(f"training {name} on {len(xt):,} vectors")
            results.append(measure_baseline(name, xt, vectors, codec.config.code_bytes, seed=0, queries=asked))
    _render(results, vectors, codec, json_, named)
    if plot is not None:
        _draw(results, codec, plot, vectors.name, force)
        console.note(f"drew {plot}")


def _check_inputs(xb: str | None, valset: str | None, queries: str | None, groundtruth: str | None, skip: int) -> None:
    """Refuse inputs that do not go together."""
    from qinco_core.errors import UsageError

    if (xb is None) == (valset is None):
        raise UsageError("name the vectors to measure: a file XB, or --valset XT, or --dataset NAME, one of these")
    if groundtruth is not None and queries is None:
        raise UsageError("--groundtruth is of queries: give them with --queries")
    if groundtruth is not None and (skip or valset is not None):
        raise UsageError("ground truth counts from a file's first vector: leave --groundtruth out, it is computed")


def _check_alone(others: dict[str, str | None]) -> None:
    from qinco_core.errors import UsageError

    for name, value in others.items():
        if value is not None:
            raise UsageError(f"--dataset says what to measure on, with queries and ground truth: leave {name} out")


def _of_set(named: Dataset, *, whole: bool) -> Openers:
    """What opens the parts of a set; ground truth only where it is the one of this search (L2, all vectors)."""
    other = () if whole and named.spec.metric == "l2" else ("groundtruth",)
    return {part: partial(named.open, part) for part in named.parts if part not in other}


def _of_words(words: dict[Part, str | None]) -> Openers:
    """What opens the parts that are named."""
    from qinco_core.datasets import open_named

    return {part: partial(open_named, word, part) for part, word in words.items() if word is not None}


def _bound(codec: Codec) -> int:
    """How many training vectors of a set baselines get: no more than the model had."""
    return min(int(codec.training.get("train_vectors") or _MOST_TRAINING), _MOST_TRAINING)


def _load_queries(openers: Openers, vectors: VectorFile) -> Queries:
    """The queries and their true neighbours, computed where no file gives them."""
    from qinco_core.errors import DimensionError
    from qinco_core.evaluation.quality import Queries, check_truth, true_neighbors

    with openers["queries"]() as file:
        name, queries = file.name, file.read(0, len(file))
    if queries.shape[1] != vectors.dim:
        raise DimensionError(f"{name} has dimension {queries.shape[1]}, but {vectors.name} has {vectors.dim}")
    if "groundtruth" not in openers:
        return Queries(queries, true_neighbors(vectors, queries))
    with openers["groundtruth"]() as file:
        ids = file.read(0, len(file))
    check_truth(ids, len(queries), vectors)
    return Queries(queries, ids)


def _baseline_names(every: bool, some: Sequence[str] | None) -> list[str]:
    from qinco_core.errors import UsageError
    from qinco_core.evaluation.baselines import baseline_names, usual_baselines
    from qinco_core.optional import import_faiss

    names = list(some or (usual_baselines() if every else ()))
    if unknown := [name for name in names if name not in baseline_names()]:
        raise UsageError(f"no baseline {unknown[0]!r}; there are {', '.join(baseline_names())}")
    if names:
        import_faiss()
    return names


def _split(vectors: VectorFile, codec: Codec) -> tuple[VectorFile, VectorFile]:
    """The training and validation parts of a training file, as this model's training split it."""
    from qinco_core.errors import UsageError

    val = codec.training.get("val_vectors")
    if val is None or val >= len(vectors):
        raise UsageError(f"the model does not say which part of {vectors.name} it was validated on: give a file XB")
    N = len(vectors) - int(val)
    return vectors.section(0, N), vectors.section(N, len(vectors))


def _symbols(name: str, codec: Codec, store: str | None) -> Any:
    """A context that gives the symbols of codes, batch by batch."""
    from contextlib import contextmanager

    from qinco_cli.decode import open_codes

    @contextmanager
    def symbols() -> Iterator[Any]:
        with open_codes(name, codec, store, raw=False) as (batches, _):
            yield (codec.unpack_rows(rows) for rows in batches)

    return symbols()


def _render(
    results: Sequence[Quality], vectors: VectorFile, codec: Codec, as_json: bool, named: Dataset | None
) -> None:
    from qinco_cli.console import print_json, print_table

    scale = named.spec.mse_scale if named else 1.0
    if as_json:
        described: dict[str, Any] = {"vectors": vectors.name, "count": len(vectors), "plan": str(codec.plan)}
        found = [result.as_dict() for result in results]
        if named:
            described |= {"dataset": named.name, "mse_scale": scale}
            found = [fields | {"scaled_mse": fields["mse"] * scale} for fields in found]
        print_json({**described, "results": found})
        return
    scaled = [] if scale == 1 else [f"MSE × {scale:g}"]  # the papers' scale
    ks = sorted({k for result in results for k in result.recall})
    columns = [
        "quantizer",
        "bytes",
        "MSE",
        *scaled,
        "relative",
        *(f"R@{k}" for k in ks),
        "encode/s",
        "decode/s",
        "training",
    ]
    rows = []
    for r in results:
        recall = [f"{r.recall[k]:.3f}" if k in r.recall else "" for k in ks]
        rates = [f"{rate:,.0f}" if rate else "" for rate in (r.encode_rate, r.decode_rate)]
        seconds = r.train_seconds or codec.training.get("seconds")
        mse = [f"{r.mse:,.6g}", *(f"{r.mse * scale:.4f}" for _ in scaled)]
        cells = [f"{r.bytes:g}", *mse, f"{r.relative_mse:.4f}", *recall, *rates]
        rows.append([r.name, *cells, f"{seconds:,.1f} s" if seconds else ""])
    print_table(columns, rows)
    print_table(
        ["prefix (symbols)", "bytes", "MSE", *scaled],
        [
            [str(m), f"{size:g}", f"{mse:,.6g}", *(f"{mse * scale:.4f}" for _ in scaled)]
            for m, (size, mse) in enumerate(zip(_prefix_bytes(codec), results[0].prefix_mse, strict=True), start=1)
        ],
    )


def _prefix_bytes(codec: Codec) -> list[float]:
    """What 1, 2, ... symbols take, with the list number of an IVF model."""
    c = codec.config
    return [codec.bytes_per_vector - c.code_bytes + m * c.bits / 8 for m in range(1, c.M + 1)]


def _draw(results: Sequence[Quality], codec: Codec, path: Path, name: str, force: bool) -> None:
    from qinco_core.evaluation.picture import Curve, draw_rate_distortion
    from qinco_core.vectors.remote import shown

    ours, *others = results
    curves = [Curve(ours.name, tuple(_prefix_bytes(codec)), tuple(ours.prefix_mse), emphasised=True)]
    curves += [Curve(other.name, (other.bytes,), (other.mse,)) for other in others]
    draw_rate_distortion(curves, path, f"Rate and distortion on {Path(shown(name)).name}", force=force)
