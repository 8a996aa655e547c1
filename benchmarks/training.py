"""What a training budget buys: the error on other images after 330 s, beside Faiss RQ and LSQ.

    python benchmarks/training.py --data DIR [--seconds 330] [--lsq]

Trains qinco2-S at A = 4, B = 4 on the learn vectors (the budget counts after the initialisation), measures
the first 20,000 base vectors at A4 B4 and A16 B32, and trains Faiss RQ (and LSQ, which takes minutes) of as
many bytes on the same vectors. The model is kept for the encoding and decoding benchmarks.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

from qinco_core.api import Codec
from qinco_core.config import EncodeConfig
from qinco_core.evaluation.baselines import run_baseline
from qinco_core.vectors import open_vectors


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    with open_vectors(files.base, limit=options.count) as file:
        xb = file.read(0, len(file))
    started = time.perf_counter()
    codec = Codec.train(
        files.learn,
        preset_name=options.preset,
        seconds=options.seconds,
        changes={"A": 4, "B": 4},
        training={"seed": options.seed, "val": 10_000 if files.full else 2000},
        progress=_Notes(),
    )
    total = time.perf_counter() - started
    codec.save(options.model, force=True)
    rows = [
        _row(f"{options.preset} A4 B4", mse(codec, xb, EncodeConfig(A=4, B=4)), codec.training["seconds"]),
        _row(f"{options.preset} A16 B32", mse(codec, xb, EncodeConfig(A=16, B=32)), codec.training["seconds"]),
    ]
    with open_vectors(files.learn) as file:
        xt = file.read(0, len(file)).astype(np.float32)
    for name in ["RQ", "LSQ"] if options.lsq else ["RQ"]:
        result = run_baseline(name, xt, xb.astype(np.float32), codec.config.code_bytes, seed=options.seed)
        rows.append(_row(f"Faiss {name}", result.mse, result.train_seconds))
    for row in rows:
        for other in rows[2:]:
            row[f"below {other['quantizer']}"] = f"{1 - row['mse'] / other['mse']:+.1%}"
    common.table(rows)
    common.write_json(
        common.RESULTS / f"training-{options.preset}-{options.seconds:g}s.json",
        {
            "benchmark": "training",
            "machine": common.machine(),
            "full": files.full,
            "seconds_with_initialisation": total,
            "training": codec.training,
            "rows": rows,
        },
    )


def mse(codec: Codec, xb: np.ndarray, search: EncodeConfig) -> float:
    """Mean squared error of the vectors, by the default engine."""
    decoded = codec.decode(codec.encode(xb, search=search.fast))
    return float(np.square(decoded - xb, dtype=np.float64).sum(1).mean())


def _row(name: str, error: float, seconds: float) -> dict[str, Any]:
    return {"quantizer": name, "mse": error, "train_s": seconds}


class _Notes:
    """Progress as lines on stderr."""

    def begin(self, title: str, total: float | None, unit: str) -> None:
        print(title, file=sys.stderr, flush=True)

    def advance(self, amount: float, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        pass


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=330.0, help="training budget (default %(default)s)")
    parser.add_argument("--preset", default="qinco2-S", help="default %(default)s")
    parser.add_argument("--count", type=int, default=20_000, help="vectors measured (default %(default)s)")
    parser.add_argument("--lsq", action="store_true", help="train Faiss LSQ too")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--model", type=Path, default=common.MODEL, help="where to keep the model (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
