"""`qinco index`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_cli.console import Console
    from qinco_core.api import Codec
    from qinco_core.index.index import Index
    from qinco_core.scale.costs import Machines
    from qinco_core.vectors import VectorFile


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("index", epilog=opt.example("qinco index base --train learn.bvecs"))(index)


def index(
    codes: Annotated[
        str | None,
        typer.Argument(metavar="CODES", help="Codes, a file or a name in the store. [default: the store's, if one]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the index. [default: index in the store]"),
    ] = None,
    pairwise: opt.PairwiseOption = None,
    train: Annotated[
        str | None,
        typer.Option("--train", metavar="XT", help="Instead: vectors to fit the additive codebooks on, here."),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option("--ids", metavar="FILE.npy", help="64-bit ids, one a code. [default: those of the codes]"),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option("--shards", metavar="N", help="Divide the index into N, which may be searched by many machines."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help="Memory to sort in, like 512M. [default: 1G, or a quarter of all if less]"
        ),
    ] = None,
    add: Annotated[
        str | None, typer.Option("--add", metavar="CODES", help="Add these codes to the index that is there.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="FILE.npy", help="Remove these ids from the index that is there.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE.faiss", help="Write the index as a plain one of Faiss.")
    ] = None,
    model: opt.ModelOption = None,
    store: opt.StoreOption = None,
    force: opt.ForceOption = False,
    dry_run: opt.DryRunOption = False,
    json_: opt.JsonOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "auto",
    threads: opt.ThreadsOption = None,
    quiet: opt.QuietOption = False,
) -> None:
    """Build an index of codes for fast searches, add to it, or remove from it."""
    from qinco_cli.console import Console
    from qinco_cli.decode import find_codes
    from qinco_core.datasets import open_named
    from qinco_core.index.index import Index
    from qinco_core.store import Store

    folder = out or Store.locate(store).index
    hardware: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    changes = {"add": add, "remove": remove, "export": export}
    building = {"CODES": codes, "--train": train, "--dry-run": dry_run or None, "--shards": shards}
    _check_options(changes, building | ({} if add else {"--ids": ids}))
    budget = opt.room(memory)
    if any(value is not None for value in changes.values()):
        with Console(quiet) as console, Index.open(folder, model=model, pairwise=pairwise, **hardware) as opened:
            _finish(opened, _change(opened, changes, ids, store, budget, force, console), console, json_)
        return
    books = _codebooks(pairwise, train, store)
    source = find_codes(codes, store) if codes else opt.store_codes(store)
    codec = opt.open_codec(model, store, **hardware)
    with ExitStack() as stack:
        if train is not None:
            books = {"train": stack.enter_context(open_named(train, "train"))}
        if dry_run:
            from qinco_core.scale.costs import Machines

            _report(codec, source, folder, books, ids, Machines(shards or 1, memory=budget), json_)
            return
        console = stack.enter_context(Console(quiet))
        started = time.perf_counter()
        build: dict[str, Any] = {"ids": opt.read_ids(ids), "memory": budget, "force": force, "progress": console}
        with _saying_what_is_done(folder, ["building"]):
            opened = stack.enter_context(Index.build(folder, codec, source, **books, **build, shards=shards))
        seconds = time.perf_counter() - started
        console.note(f"wrote {folder} in {seconds:.1f} s")
        _finish(opened, {"seconds": round(seconds, 3)}, console, json_)


def _check_options(changes: dict[str, Any], building: dict[str, Any]) -> None:
    """Refuse options of building an index where one is changed."""
    from qinco_core.errors import UsageError

    change = next((name for name, value in changes.items() if value is not None), None)
    extra = next((name for name, value in building.items() if value is not None), None)
    if change and extra:
        raise UsageError(f"--{change} works on the index that is there: leave {extra} out")


def _codebooks(pairwise: Path | None, train: str | None, store: str | None) -> dict[str, Any]:
    """Where the additive codebooks come from."""
    from qinco_core.errors import UsageError
    from qinco_core.store import Store

    if pairwise is not None and train is not None:
        raise UsageError("the additive codebooks come from --pairwise or are fitted on --train: give one of the two")
    if train is not None:
        return {"train": train}
    path = pairwise or Store.locate(store).pairwise
    if pairwise is None and not path.exists():
        raise UsageError(
            "there are no additive codebooks: make them, and pairwise ones, with qinco pairwise XT, "
            "or have them fitted here with --train XT"
        )
    return {"pairwise": path}


def _change(
    opened: Index,
    changes: dict[str, Any],
    ids: str | None,
    store: str | None,
    memory: int,
    force: bool,
    console: Console,
) -> dict[str, Any]:
    """Add, then remove, then export, whatever is asked; gives the figures."""
    from qinco_cli.decode import find_codes
    from qinco_core.index.faiss_export import check_export

    facts: dict[str, Any] = {}
    said = {"add": "added to", "remove": "removed from", "export": "exported"}
    opened.check_whole(next(word for name, word in said.items() if changes[name] is not None))
    tuned = bool(opened.front)
    # what may be refused is, before anything is changed: a second try would add the codes twice
    more_ids, gone = opt.read_ids(ids), opt.read_ids(changes["remove"])
    if changes["export"] is not None:
        check_export(opened.config.K, changes["export"], force=force)
    with _saying_what_is_done(opened.folder, [f"--{name}" for name in ("add", "remove") if changes[name] is not None]):
        if changes["add"] is not None:
            before = len(opened)
            opened.add(find_codes(changes["add"], store), ids=more_ids, memory=memory, progress=console)
            facts["added"] = len(opened) - before
            console.note(f"added {facts['added']:,} vectors")
        if gone is not None:
            facts["removed"] = opened.remove(gone, memory=memory, progress=console)
            console.note(f"removed {facts['removed']:,} vectors")
        if changes["export"] is not None:
            opened.export_faiss(changes["export"], force=force)
            facts["exported"] = str(changes["export"])
            console.note(f"wrote {changes['export']}")
    if tuned and not opened.front:
        console.note("the operating points were of the index as it was: find new ones with qinco tune")
    return facts


@contextmanager
def _saying_what_is_done(folder: Path, steps: Sequence[str]) -> Iterator[None]:
    """Where someone interrupts or a step fails, say how to continue; every step is a new generation of the index."""
    from qinco_core.errors import QincoError

    before = _generation(folder)
    try:
        yield
    except (KeyboardInterrupt, QincoError) as error:
        done, text = " and ".join(steps[: _generation(folder) - before]), str(error) or "interrupted"
        if done:
            text += f"; {done} is done: go on without it"
        elif isinstance(error, KeyboardInterrupt):
            text += "; nothing was changed: start again with the same command"
        error.args = (text,)
        raise


def _generation(folder: Path) -> int:
    """Of the index; 0 where there is none, or a damaged one."""
    from qinco_core.errors import ArtifactError, InputNotFoundError
    from qinco_core.store import read_header
    from qinco_core.store.index import MANIFEST

    with suppress(InputNotFoundError, ArtifactError):
        return int(read_header(folder / MANIFEST).config.get("generation", 0))
    return 0


def _finish(opened: Index, facts: dict[str, Any], console: Console, as_json: bool) -> None:
    """Say what the index is now."""
    from qinco_cli.console import print_json, size

    N = len(opened)
    total = sum(path.stat().st_size for path in opened.folder.rglob("*") if path.is_file())
    width = opened.bytes_per_entry
    console.note(
        f"{N:,} vectors in {opened.nlist:,} lists, {width:g} bytes each; {size(total)} with centroids and codebooks"
    )
    if as_json:
        described = {"index": str(opened.folder), "fingerprint": opened.header.fingerprint, "vectors": N}
        print_json(described | {"lists": opened.nlist, "bytes": total, "bytes_per_vector": width} | facts)


def _report(
    codec: Codec, source: Path, folder: Path, books: dict[str, Any], ids: str | None, machines: Machines, as_json: bool
) -> None:
    from qinco_cli.console import duration, print_json, print_pairs, size
    from qinco_core.errors import UsageError
    from qinco_core.index.forecast import building_pace
    from qinco_core.scale.costs import Rates, Sizes, indexing
    from qinco_core.store import open_codes

    pairwise, train = books.get("pairwise"), books.get("train")
    with open_codes(source) as codes:
        codec.check_codes(codes.spec, source)
        count, largest = len(codes), (1 << 63) - 1 if codes.with_ids else len(codes) - 1
        numbers = opt.read_ids(ids)
        if numbers is not None and len(numbers) != count:
            raise UsageError(f"{ids} has {len(numbers)} ids, but {source} has {count} codes: give one id a code")
        if numbers is not None:
            largest = int(numbers.max()) if len(numbers) else -1
        read, norms, graph, tables = building_pace(codec, codes, pairwise)
    sizes = Sizes.of(codec.config, largest_id=largest, tables=tables)
    found = indexing(count, sizes, Rates(read=read, norms=norms, graph=graph), machines).as_dict()
    if train is not None:
        fitting = _fitting(codec, train)
        found["seconds"] += fitting["seconds"]
        found["memory_bytes"] = max(found["memory_bytes"], fitting["memory_bytes"])
    if as_json:
        print_json({"input": str(source), "output": str(folder), **found})
        return
    print_pairs(
        [
            ("would read", f"{source}: {count:,} codes, and {pairwise if train is None else train.name}"),
            (
                "would write",
                f"{folder}: {sizes.entry} bytes a vector, {size(found['output_bytes'])} with the lists",
            ),
            ("memory", f"about {size(found['memory_bytes'])}"),
            ("time", f"about {duration(found['seconds'])}; passes over the codes: {found['passes']}"),
        ]
    )


def _fitting(codec: Codec, train: VectorFile) -> dict[str, Any]:
    """What fitting the additive codebooks takes."""
    from qinco_core.index.pairwise_fit import FitConfig
    from qinco_core.index.training_codes import forecast
    from qinco_core.jobs import check_dimension

    check_dimension(codec, train)
    return forecast(codec, len(train), FitConfig(tables=0), encoded=False)
