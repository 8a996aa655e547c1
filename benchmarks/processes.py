"""Two processes of one thread beside one: encoding in shards, and training under torchrun.

    python benchmarks/processes.py --data DIR [--count 20000] [--seconds 30] [--repeats 5]

Each is done in turn, several times, and the median of the ratios counts. Encoding: the wall-clock time of the work
(as every command says it, without the start of its process) of `--shard 0/2` and `1/2` side by side against that of
`--shard 0/1`. Training: vectors a second of two ranks together against those of one process, for equal seconds, from
the last round in the training log.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common

from qinco_core.vectors import open_vectors, open_writer

_THREAD = ("--threads", 1, "--device", "cpu", "-q")


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = ("--preset", options.preset)
        model = folder / "model.h5"
        common.measured("train", files.learn, *sizes, "--time", "5s", "-o", model, *_THREAD)
        base = _base(files.base, folder / "base.u8bin", options.count)
        encoded: dict[int, list[float]] = {1: [], 2: []}
        trained: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.repeats):
            for processes in (1, 2):
                encoded[processes].append(options.count / _encode(base, model, folder / "codes", processes))
                trained[processes].append(_train(files.learn, sizes, options.seconds, folder / "run", processes))
    rows = [_row("encode", encoded), _row("train", trained)]
    common.table(rows)
    payload = {
        "benchmark": "processes",
        "machine": common.machine(),
        "full": files.full,
        "preset": options.preset,
        "count": options.count,
        "seconds": options.seconds,
        "runs": {"encode": encoded, "train": trained},
        "rows": rows,
    }
    common.write_json(common.RESULTS / "processes.json" if files.full else Path("processes.json"), payload)


def _base(source: Path, out: Path, count: int) -> Path:
    """So many base vectors, again and again where there are fewer."""
    with open_vectors(source, limit=count) as file, open_writer(out, D=file.dim, dtype=file.dtype, count=count) as sink:
        left = count
        while left:
            for x in file.batches(1 << 16):
                sink.append(x[:left])
                left -= min(left, len(x))
    return out


def _encode(base: Path, model: Path, folder: Path, processes: int) -> float:
    """Seconds until the last of so many shards is done."""
    shutil.rmtree(folder, ignore_errors=True)

    def shard(i: int) -> float:
        how = ("--model", model, "-o", folder, "--shard", f"{i}/{processes}", "--json")
        return float(common.measured("encode", base, *how, *_THREAD).json["seconds"])

    with ThreadPoolExecutor(processes) as pool:
        return max(pool.map(shard, range(processes)))


def _train(learn: Path, sizes: tuple[object, ...], seconds: float, folder: Path, processes: int) -> float:
    """Vectors a second, of all processes together."""
    shutil.rmtree(folder, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    how = (*sizes, "--time", f"{seconds:g}s", "-o", folder / "model.h5")
    common.measured("train", learn, *how, *_THREAD, launcher=launcher)
    lines = (folder / "model.training.jsonl").read_text("utf-8").splitlines()
    rounds = [event for event in map(json.loads, lines) if event["event"] == "round"]
    return float(rounds[-1]["vectors/s"])


def _row(job: str, rates: dict[int, list[float]]) -> dict[str, Any]:
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "job": job,
        "vectors/s of one": statistics.median(rates[1]),
        "vectors/s of two": statistics.median(rates[2]),
        "times": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--preset", default="qinco2-S", help="default %(default)s")
    parser.add_argument(
        "--count",
        type=int,
        default=65_536,
        help="vectors to encode: whole parts, a multiple of 32,768 (default %(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each training (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
