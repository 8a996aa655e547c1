"""Peak memory of `qinco encode`, for files of different lengths, as the operating system counts it.

    python benchmarks/memory.py --data DIR

Trains a small model for a few seconds, then encodes the first 50,000 and all base vectors in processes of
their own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

from qinco_core.vectors import open_vectors


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    with open_vectors(files.base) as file:
        N = len(file)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.h5"
        sizes = ["--preset", "qinco2-XS", "-A", "4", "-B", "1"]
        _run("train", str(files.learn), *sizes, "--time", f"{options.seconds:g}s", "-o", str(model), "--quiet")
        for count in sorted({N // 10, N}):
            out = Path(folder) / f"codes{count}.h5"
            peak, seconds = _run(
                "encode", str(files.base), "--model", str(model), "-o", str(out), "--limit", str(count), "--quiet"
            )
            rows.append({"vectors": count, "peak MiB": peak / 2**20, "seconds": seconds, "vectors/s": count / seconds})
    common.table(rows)
    payload = {"benchmark": "memory", "machine": common.machine(), "full": files.full, "rows": rows}
    common.write_json(common.RESULTS / "memory.json", payload)


def _run(*arguments: str) -> tuple[int, float]:
    """Peak resident bytes and seconds of one run of the command line."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "qinco_cli", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: qinco {arguments[0]} failed with {process.returncode}")
    return usage.ru_maxrss * 1024, time.perf_counter() - started


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training the small model (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
