"""`qinco index`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_cli.console import Console
    from qinco_core.api import Codec
    from qinco_core.index.index import Index


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
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory to sort in, like 512M or 2G.")] = "1G",
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
    from qinco_core.index.index import Index
    from qinco_core.store import Store
    from qinco_core.vectors import open_vectors

    folder = out or Store.locate(store).index
    hardware: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    changes = {"add": add, "remove": remove, "export": export}
    building = {"CODES": codes, "--train": train, "--dry-run": dry_run or None}
    _check_options(changes, building | ({} if add else {"--ids": ids}))
    budget = opt.parse_size(memory)
    if any(value is not None for value in changes.values()):
        with Console(quiet) as console, Index.open(folder, model=model, pairwise=pairwise, **hardware) as opened:
            _finish(opened, _change(opened, changes, ids, store, budget, force, console), console, json_)
        return
    books = _codebooks(pairwise, train, store)
    source = find_codes(codes, store) if codes else opt.store_codes(store)
    codec = opt.open_codec(model, store, **hardware)
    if dry_run:
        _report(codec, source, folder, books, ids, budget, json_)
        return
    with ExitStack() as stack:
        console = stack.enter_context(Console(quiet))
        if train is not None:
            books = {"train": stack.enter_context(open_vectors(train))}
        started = time.perf_counter()
        build = {"ids": opt.read_ids(ids), "memory": budget, "force": force, "progress": console}
        opened = stack.enter_context(Index.build(folder, codec, source, **books, **build))
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

    facts: dict[str, Any] = {}
    tuned = bool(opened.front)
    if changes["add"] is not None:
        before = len(opened)
        opened.add(find_codes(changes["add"], store), ids=opt.read_ids(ids), memory=memory, progress=console)
        facts["added"] = len(opened) - before
        console.note(f"added {facts['added']:,} vectors")
    if changes["remove"] is not None:
        facts["removed"] = opened.remove(opt.read_ids(changes["remove"]), memory=memory, progress=console)
        console.note(f"removed {facts['removed']:,} vectors")
    if changes["export"] is not None:
        opened.export_faiss(changes["export"], force=force)
        facts["exported"] = str(changes["export"])
        console.note(f"wrote {changes['export']}")
    if tuned and not opened.front:
        console.note("the operating points were of the index as it was: find new ones with qinco tune")
    return facts


def _finish(opened: Index, facts: dict[str, Any], console: Console, as_json: bool) -> None:
    """Say what the index is now."""
    from qinco_cli.console import print_json, size
    from qinco_core.store.index import load_index

    N = len(opened)
    total = sum(path.stat().st_size for path in opened.folder.iterdir())
    width = sum(array.nbytes for array in load_index(opened.folder).flat.values()) / max(N, 1)
    console.note(
        f"{N:,} vectors in {opened.nlist:,} lists, {width:g} bytes each; {size(total)} with centroids and codebooks"
    )
    if as_json:
        described = {"index": str(opened.folder), "fingerprint": opened.header.fingerprint, "vectors": N}
        print_json(described | {"lists": opened.nlist, "bytes": total, "bytes_per_vector": width} | facts)


def _report(
    codec: Codec, source: Path, folder: Path, books: dict[str, Any], ids: str | None, memory: int, as_json: bool
) -> None:
    from qinco_cli.console import duration, print_json, print_pairs, size
    from qinco_core.errors import UsageError
    from qinco_core.index.forecast import bytes_per_entry
    from qinco_core.jobs import check_codes, estimate
    from qinco_core.store import open_codes

    with open_codes(source) as codes:
        check_codes(codec, codes.spec, str(source))
        count, largest = len(codes), (1 << 63) - 1 if codes.with_ids else len(codes) - 1
    numbers = opt.read_ids(ids)
    if numbers is not None and len(numbers) != count:
        raise UsageError(f"{ids} has {len(numbers)} ids, but {source} has {count} codes: give one id a code")
    if numbers is not None:
        largest = int(numbers.max()) if len(numbers) else -1
    width = bytes_per_entry(codec, books.get("pairwise"), largest)
    rows = codec.encode(codec.network.mean.numpy()[None].repeat(256, 0))

    def work(n: int) -> float:
        started = time.perf_counter()
        codec.decode(rows[:n])
        return time.perf_counter() - started

    sorting = min(memory, 2 * count * width)
    found = estimate(work, count, width, codec, sorting // (16 * codec.config.D))
    if as_json:
        print_json({"input": str(source), "output": str(folder), **found.as_dict()})
        return
    print_pairs(
        [
            ("would read", f"{source}: {count:,} codes, and {' '.join(map(str, books.values()))}"),
            (
                "would write",
                f"{folder}: {width} bytes a vector, {size(found.output_bytes or 0)}, and the lists",
            ),
            ("memory", f"about {size(found.memory_bytes)}"),
            ("time", f"about {duration(found.seconds or 0)} on {codec.plan}"),
        ]
    )
