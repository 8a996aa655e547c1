"""What the benchmark scripts share: the data, the machine, timing in alternation, tables and JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qinco_core.errors import InputNotFoundError, QincoError
from qinco_core.files import atomic_output

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLES = ROOT / "examples" / "data"
# the trained model that one benchmark leaves for others
MODEL = RESULTS / "qinco2-S.h5"

_FULL = {
    "learn": "sift/learn200k.bvecs",
    "base": "sift/base500k.u8bin",
    "query": "sift/query2k.fvecs",
    "groundtruth": "sift/groundtruth500k.ivecs",
    "groundtruth100k": "sift/groundtruth100k.ivecs",
}
_SAMPLE = {
    "learn": "sift_learn.bvecs",
    "base": "sift_base.u8bin",
    "query": "sift_query.fvecs",
    "groundtruth": "sift_groundtruth.ivecs",
}

# runs a command and adds a line to its stdout: seconds, seconds of its cores, most resident bytes
_COUNTED = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.call(sys.argv[1:])
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
print()
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
sys.exit(code)
"""


@dataclass(frozen=True)
class Sift:
    """The SIFT files of a benchmark.

    Attributes:
        learn: training vectors.
        base: vectors to compress, of other images.
        query: queries, of yet other images.
        groundtruth: exact neighbours of the queries in the whole base.
        full: whether these are the large files; results on the sample compare with nothing.
        groundtruth100k: the neighbours in its first 100,000; None with the shipped sample.
    """

    learn: Path
    base: Path
    query: Path
    groundtruth: Path
    full: bool
    groundtruth100k: Path | None = None


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add `--data DIR`, by default the environment's QINCO_DATA, else the shipped sample."""
    default = os.environ.get("QINCO_DATA", str(EXAMPLES))
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help="folder that holds sift/ (default: $QINCO_DATA, else examples/data; now %(default)s)",
    )


def sift(folder: str | Path) -> Sift:
    """The SIFT files below a folder, large or sample; a note on stderr tells of the sample.

    Raises:
        InputNotFoundError: some file is missing; the message names it.
    """
    folder = Path(folder)
    full = (folder / "sift").is_dir()
    paths = {key: folder / name for key, name in (_FULL if full else _SAMPLE).items()}
    for path in paths.values():
        if not path.is_file():
            raise InputNotFoundError(f"{path} does not exist; give --data DIR, the folder that holds sift/")
    if not full:
        print(f"note: small sample of {folder}; these figures compare with nothing else", file=sys.stderr)
    return Sift(**paths, full=full)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, memory, versions, threads, date and commit."""
    return {
        "cpu": _first_field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "faiss": _faiss_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def run(main: Callable[[], None]) -> None:
    """Run a script; what this project understands ends it with a message instead of a traceback."""
    try:
        main()
    except QincoError as error:
        sys.exit(f"error: {error}")


def alternate(fns: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function, run A B A B ... so that ratios hold while the machine drifts.

    Warm up before: every call is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for _ in range(repeats):
        for name, fn in fns.items():
            start = time.perf_counter()
            fn()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each function's seconds."""
    return {name: statistics.median(runs) for name, runs in seconds.items()}


@dataclass(frozen=True)
class Measured:
    """How a command ran.

    Attributes:
        seconds: of wall-clock time, its start included.
        cpu: seconds of all its cores.
        peak: resident bytes at most.
        out: what it wrote to stdout.
    """

    seconds: float
    cpu: float
    peak: int
    out: str

    @property
    def json(self) -> dict[str, Any]:
        """Its `--json`."""
        return dict(json.loads(self.out))


def measured(*arguments: object, module: str = "qinco_cli", launcher: Sequence[str] = ()) -> Measured:
    """Run a command line of this checkout as a process; a failure ends the script."""
    command = [sys.executable, *launcher, "-m", module, *map(str, arguments)]
    # a child is counted with the memory of who started it, so a small process does
    done = subprocess.run([sys.executable, "-S", "-c", _COUNTED, *command], stdout=subprocess.PIPE, text=True)
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    if done.returncode:
        sys.exit(f"error: qinco {' '.join(map(str, arguments))} failed with {done.returncode}")
    seconds, cpu, peak = json.loads(last)
    return Measured(seconds, cpu, peak, out)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of one set of columns to stdout, aligned: text left, numbers right."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    numeric = [all(isinstance(row[column], (int, float)) for row in rows) for column in columns]
    widths = [max(map(len, (column, *texts))) for column, *texts in zip(columns, *cells, strict=True)]
    for line in (columns, ["-" * width for width in widths], *cells):
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(aligned).rstrip())


def write_json(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write a result, replacing an older one, and say on stderr where it went."""
    text = json.dumps(payload, indent=2, allow_nan=False)
    with atomic_output(path, force=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _first_field(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), None)


def _faiss_version() -> str | None:
    for package in ("faiss-cpu", "faiss-gpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _commit() -> str | None:
    """The commit of this checkout, with a + where the working tree differs from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
