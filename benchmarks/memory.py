"""Peak memory of `qinco encode`, for files of different lengths, as the operating system counts it.

    python benchmarks/memory.py --data DIR

Trains a small model for a few seconds, then encodes the first 50,000 and all base vectors in processes of
their own.
"""

from __future__ import annotations

import argparse
import tempfile
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
        common.measured("train", files.learn, *sizes, "--time", f"{options.seconds:g}s", "-o", model, "--quiet")
        for count in sorted({N // 10, N}):
            out = Path(folder) / f"codes{count}.h5"
            done = common.measured("encode", files.base, "--model", model, "-o", out, "--limit", count, "--quiet")
            rate = count / done.seconds
            rows.append({"vectors": count, "peak MiB": done.peak / 2**20, "seconds": done.seconds, "vectors/s": rate})
    common.table(rows)
    payload = {"benchmark": "memory", "machine": common.machine(), "full": files.full, "rows": rows}
    common.write_json(common.RESULTS / "memory.json", payload)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training the small model (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
