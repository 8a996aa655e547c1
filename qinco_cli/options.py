"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from qinco_core.api import Codec
    from qinco_core.config import EncodeConfig, Metric
    from qinco_core.datasets import Part
    from qinco_core.vectors import VectorSource

# where Slurm says which task this is, the number of the first and from one to the next, and how many there are: of an
# array, else of a step
_SLURM = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "", "", "SLURM_NTASKS"),
)

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="DIR", help="Artifact directory. [default: $QINCO_STORE or qinco.store]"),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="FILE", help="Model artifact. [default: model.h5 in the store]"),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="Format of the vectors. [default: by extension]"),
]
SkipOption = Annotated[int, typer.Option("--skip", metavar="N", help="Vectors to pass over at the start.")]
LimitOption = Annotated[int | None, typer.Option("--limit", metavar="N", help="Vectors to use at most. [default: all]")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be read and written, how large, how long; do nothing."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", metavar="auto|bfloat16|float32", help="Number format of the products.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="CPU threads. [default: $QINCO_THREADS, or all cores]"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
AOption = Annotated[
    int | None,
    typer.Option("-A", metavar="N", help="Candidates pre-selected per beam; 0: all. [default: the model's]"),
]
BOption = Annotated[int | None, typer.Option("-B", metavar="N", help="Beam width. [default: the model's]")]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="Pre-select A per beam, as published, not the best of all beams together."),
]
IndexOption = Annotated[
    Path | None, typer.Option("--index", metavar="DIR", help="Folder of the index. [default: index in the store]")
]
PairwiseOption = Annotated[
    Path | None,
    typer.Option("--pairwise", metavar="FILE", help="Pairwise decoder. [default: the index's, or the store's]"),
]
MetricOption = Annotated[str, typer.Option("--metric", metavar="l2|ip|cosine", help="What makes a vector near.")]
AtOption = Annotated[
    int, typer.Option("--at", metavar="K", help="Results among which the true neighbour counts, for --recall.")
]

EngineOption = Annotated[
    str, typer.Option("--engine", metavar="local|ray", help="Where the work is done: here, or on a Ray cluster.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="auto|ADDRESS",
        help="The Ray cluster. [default: $RAY_ADDRESS, or one started on this machine for as long as it takes]",
    ),
]


def example(text: str) -> str:
    """The end of a command's help; the mark keeps it in one line, to be copied."""
    return f"\b\nExample:\n  {text}"


def parse_duration(text: str) -> float:
    """Seconds of a duration like 90, 90s, 5m, 1h30m, 20ms.

    Raises:
        UsageError: it is none.
    """
    from qinco_core.errors import UsageError

    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[hms]?)", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        raise UsageError(f"{text!r} is no duration: write it like 90s, 5m, 1h30m or 20ms")
    seconds = sum(float(number) * units[unit or "s"] for number, unit in parts)
    if seconds <= 0:
        raise UsageError(f"a duration of {text!r} leaves no time to work")
    return seconds


def parse_size(text: str) -> int:
    """Bytes of a size like 1000000, 512M, 1.5G, 2GiB; the units are powers of 1024.

    Raises:
        UsageError: it is none.
    """
    from qinco_core.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise UsageError(f"{text!r} is no size: write it like 512M or 2G")
    return size


def room(text: str | None) -> int:
    """Bytes of a size, by default 1 GiB, or a quarter of the memory there is where that is less.

    Raises:
        UsageError: it is none.
    """
    from qinco_core.memory import share

    return share(1 << 30) if text is None else parse_size(text)


def shard(text: str | None) -> tuple[int, int] | None:
    """Which of how many shards to do: i and n of "i/n", or as the environment of Slurm ("slurm") or torchrun says.

    None where nobody says anything.

    Raises:
        UsageError: it is none, or there is no such environment.
    """
    from qinco_core.errors import UsageError

    if text is None:
        rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
        return None if rank is None or size == "1" else (int(rank), int(size))
    if text == "slurm":
        for i, first, step, n in _SLURM:
            if i in os.environ and n in os.environ:
                behind = int(os.environ[i]) - int(os.environ.get(first, "0"))
                return behind // int(os.environ.get(step, "1")), int(os.environ[n])
        raise UsageError("--shard slurm: this is no task of Slurm's (no SLURM_ARRAY_TASK_ID and no SLURM_PROCID)")
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"{text!r} is no shard: write I/N, from 0/N to N-1/N")
    return int(match[1]), int(match[2])


def on_ray(engine: str, address: str | None) -> bool:
    """Whether a Ray cluster is to do the work.

    Raises:
        UsageError: there is no such engine, or an address of none.
    """
    from qinco_core.errors import UsageError

    if engine not in ("local", "ray"):
        raise UsageError(f"no engine {engine!r}; there are local and ray")
    if engine == "local" and address is not None:
        raise UsageError("--address is of a Ray cluster: add --engine ray, or leave it out")
    return engine == "ray"


def check_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UsageError: there is none.
    """
    from typing import get_args

    from qinco_core.config import Metric
    from qinco_core.errors import UsageError

    if name not in get_args(Metric):
        raise UsageError(f"no metric {name!r}; there are {', '.join(get_args(Metric))}")
    return cast("Metric", name)


def read_ids(source: str | None) -> Any:
    """The ids of an .npy file, or of `file.parquet::column` and the like, int64 [n]; None for None.

    Raises:
        UsageError, VectorFileError: it holds something else.
    """
    from qinco_core.vectors import read_ids

    return None if source is None else read_ids(source)


def store_codes(store: str | None) -> Path:
    """The codes in the store, where there is one set of them.

    Raises:
        UsageError: there are none, or several, which the message lists.
    """
    from qinco_core.errors import UsageError
    from qinco_core.store import Store

    place = Store.locate(store)
    files = place.code_files
    if not files:
        raise UsageError(f"{place.root} holds no codes: make some with qinco encode XB, or name a file of codes")
    if len(files) > 1:
        names = ", ".join(path.stem for path in files)
        raise UsageError(f"{place.root} holds several sets of codes: name one of {names}")
    return files[0]


def open_codec(model: Path | None, store: str | None, *, device: str, precision: str, threads: int | None) -> Codec:
    """The model that the options name."""
    from qinco_core.api import Codec
    from qinco_core.store import Store

    path = model or Store.locate(store).model
    return Codec.load(path, device=device, precision=precision, threads=threads)


def search_options(codec: Codec, A: int | None, B: int | None, exact: bool) -> EncodeConfig:
    """The encoder that -A, -B and --exact ask for."""
    from qinco_core.config import EncodeConfig
    from qinco_core.errors import UsageError

    search = EncodeConfig.parse({"A": codec.search.A if A is None else A, "B": codec.search.B if B is None else B})
    if search.A > 0 and not codec.config.preselect:
        raise UsageError("this model has no pre-selection codebooks: use -A 0")
    if search.A > codec.config.K:
        raise UsageError(f"-A {search.A} is more than the model's K = {codec.config.K} codewords")
    return search if exact else search.fast


@contextmanager
def open_source(
    path: str, format: str | None, skip: int, limit: int | None, part: Part = "base"
) -> Iterator[VectorSource]:
    """Vectors from a file, that part of a data set by its name, or from stdin for "-"."""
    from qinco_core.datasets import open_named
    from qinco_core.errors import UsageError
    from qinco_core.vectors import read_stream

    if path != "-":
        with open_named(path, part, format=format, skip=skip, limit=limit) as file:
            yield file
        return
    if format is None:
        raise UsageError("vectors from stdin need --format, for example --format fvecs")
    yield read_stream(sys.stdin.buffer, format, skip=skip, limit=limit)


@contextmanager
def stop_on_signal() -> Iterator[Any]:
    """A function that says whether Ctrl-C or SIGTERM has come; a second one interrupts at once."""
    asked: list[int] = []

    def handle(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
