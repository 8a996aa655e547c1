"""Faiss quantizers at equal bytes: error, recall and speed on SIFT vectors of unseen images.

    python benchmarks/baselines.py --data DIR --bytes 8

Training on all of `learn`; error and speed on the first 20,000 of `base`; recall of the queries
among those, compared exactly with their decoded forms. LSQ takes minutes to train.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from qinco_core.evaluation.baselines import BaselineResult, baseline_names, run_baseline
from qinco_core.evaluation.metrics import recall_at
from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.vectors import open_vectors


def main() -> None:
    """Run the baselines asked for, print them as a table and write them as JSON."""
    options = _parse()
    torch.set_num_threads(options.threads)
    files = common.sift(options.data)
    xt = _read(files.learn, options.train)
    xb = _read(files.base, options.count)
    xq = _read(files.query, None)
    truth, _ = exact_neighbors([xb], xq, 1)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = run_baseline(name, xt, xb, options.bytes, seed=options.seed, threads=options.threads)
        found, _ = exact_neighbors([result.decoded], xq, 100)
        rows.append(_row(result, recall_at(found, truth)))
    common.table([{key: value for key, value in row.items() if key != "note"} for row in rows])
    common.write_json(
        options.out,
        {
            "benchmark": "baselines",
            "machine": common.machine(),
            "data": {
                "learn": files.learn.name,
                "base": files.base.name,
                "train": len(xt),
                "measured": len(xb),
                "queries": len(xq),
                "full": files.full,
            },
            "seed": options.seed,
            "rows": rows,
        },
    )


def _row(result: BaselineResult, recall: dict[int, float]) -> dict[str, Any]:
    return {
        "name": result.name,
        "bytes": result.bytes,
        "mse": result.mse,
        "relative_mse": result.relative_mse,
        **{f"R@{k}": share for k, share in recall.items()},
        "train_s": result.train_seconds,
        "encode/s": result.encode_rate,
        "decode/s": result.decode_rate,
        "note": result.note,
    }


def _read(path: Path, count: int | None) -> np.ndarray:
    with open_vectors(path) as file:
        return file.read(0, len(file) if count is None else min(count, len(file))).astype(np.float32)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--bytes", type=int, default=8, help="bytes per vector (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=baseline_names(), default=list(baseline_names()))
    parser.add_argument("--train", type=int, help="training vectors (default: all)")
    parser.add_argument("--count", type=int, default=20_000, help="vectors measured (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "baselines.json", help="%(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
