"""Error and recall over bytes: QINCo2 of two sizes beside Faiss's quantizers, at 4 to 32 bytes, on SIFT and text.

    python benchmarks/rate_distortion.py --data DIR

Everything is trained on all learn vectors (LSQ, which takes hours on them, on the first of them), QINCo2 for a time
that grows with the bytes; all compress the same 20,000 base vectors, QINCo2 through 48 beams. Recall is of exact
neighbours among those, searched for by the distance to what was decoded. That is hours of work: every figure is kept
as soon as it is there, and the script goes on where it was ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from qinco_core.api import Codec
from qinco_core.config import EncodeConfig
from qinco_core.errors import UsageError
from qinco_core.evaluation.baselines import baseline_names, run_baseline
from qinco_core.evaluation.metrics import recall_at
from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.vectors import open_vectors

_FILES = {
    "sift": ("sift/learn200k.bvecs", "sift/base500k.u8bin", "sift/query2k.fvecs"),
    "text": ("text/learn32k.npy", "text/base20k.npy", "text/query1k.npy"),
    "sample": ("sift_learn.bvecs", "sift_base.u8bin", "sift_query.fvecs"),
}
# somewhat wider than the fast mode of A16 B32
_SEARCH = EncodeConfig(A=16, B=48, T=192, full=96)
_MODELS = ("qinco2-XS", "qinco2-S")
_OUT = common.RESULTS / "rate_distortion.json"
_CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "MSE": lambda row: f"{row['mse']:,.0f}" if row["mse"] >= 100 else f"{row['mse']:.4f}",
    "R@1, R@10, R@100": lambda row: ", ".join(f"{row[f'R@{k}']:.3f}" for k in (1, 10, 100)),
    "training, encoding": lambda row: f"{row['train_s']:,.0f} s, {row['encode/s']:,.0f}/s",
}


def main() -> None:
    """Run what is missing, then print tables of each data set."""
    options = _parse()
    rows = _kept(options.out)
    for name in options.sets:
        data = _Data(name, options)
        for code_bytes in options.bytes:
            for quantizer in options.only:
                if any(_key(row) == (name, code_bytes, quantizer, _settings(options)) for row in rows):
                    continue
                print(f"{name}, {code_bytes} bytes, {quantizer} ...", file=sys.stderr, flush=True)
                rows.append(_measure(data, code_bytes, quantizer, options))
                common.write_json(options.out, {"benchmark": "rate_distortion", "rows": rows})
    found = {_key(row)[:3]: row for row in rows if row["settings"] == _settings(options) and row["mse"] is not None}
    for name in options.sets:
        for title, cell in _CELLS.items():
            print(f"\n{name}: {title}\n")
            _print_table({key[1:]: cell(row) for key, row in found.items() if key[0] == name}, options)


def _print_table(cells: dict[tuple[int, str], str], options: argparse.Namespace) -> None:
    """Quantizers by bytes, as Markdown."""
    print(f"| | {' | '.join(f'{size} bytes' for size in options.bytes)} |\n{'|---' * (1 + len(options.bytes))}|")
    for quantizer in options.only:
        line = [cells.get((size, quantizer), "") for size in options.bytes]
        if any(line):
            print(f"| {quantizer} | {' | '.join(line)} |")


class _Data:
    """The vectors of one data set."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        learn, base, query = (options.data / file for file in _FILES[name])
        self.name, self.learn = name, learn
        self.xt, self.xb, self.xq = _read(learn), _read(base, options.count), _read(query)
        self.truth = exact_neighbors([self.xb], self.xq, 1)[0]


def _measure(data: _Data, code_bytes: int, quantizer: str, options: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"data": data.name, "bytes": code_bytes, "quantizer": quantizer}
    row["settings"] = _settings(options)
    measure: Callable[..., tuple[dict[str, Any], np.ndarray]] = _qinco if quantizer in _MODELS else _faiss
    try:
        figures, decoded = measure(data, code_bytes, quantizer, options)
    except UsageError as error:  # there is no such quantizer of that size
        return row | {"mse": None, "note": str(error)}
    recall = recall_at(exact_neighbors([decoded], data.xq, 100)[0], data.truth)
    error = float(np.square(decoded - data.xb, dtype=np.float64).sum(1).mean())
    found = {f"R@{k}": share for k, share in recall.items()}
    return row | {"mse": error, **found, **figures, "machine": common.machine(), "full": data.name != "sample"}


def _qinco(data: _Data, code_bytes: int, preset: str, options: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    seconds = options.seconds * code_bytes / 8
    started = time.perf_counter()
    codec = Codec.train(data.learn, preset_name=preset, seconds=seconds, changes={"M": code_bytes})
    taken = time.perf_counter() - started
    codec.encode(data.xb[:64], search=_SEARCH)
    started = time.perf_counter()
    codes = codec.encode(data.xb, search=_SEARCH)
    encoding = time.perf_counter() - started
    started = time.perf_counter()
    decoded = codec.decode(codes)
    figures = _figures(taken, len(codes) / encoding, len(codes) / (time.perf_counter() - started))
    narrow = codec.decode(codec.encode(data.xb, search=EncodeConfig(A=4, B=4).fast))
    error = float(np.square(narrow - data.xb, dtype=np.float64).sum(1).mean())
    return figures | {"trained on": len(data.xt), "note": f"{seconds:g} s; at A4 B4 MSE {error:.6g}"}, decoded


def _faiss(data: _Data, code_bytes: int, name: str, options: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    xt = data.xt[: options.lsq * 8 // code_bytes] if name == "LSQ" else data.xt
    result = run_baseline(name, xt, data.xb, code_bytes, seed=1)
    figures = _figures(result.train_seconds, result.encode_rate, result.decode_rate)
    return figures | {"trained on": len(xt), "note": result.note}, result.decoded


def _figures(training: float, encoding: float, decoding: float) -> dict[str, float]:
    return {"train_s": training, "encode/s": encoding, "decode/s": decoding}


def _key(row: dict[str, Any]) -> tuple[str, int, str, dict[str, float]]:
    return row["data"], row["bytes"], row["quantizer"], row["settings"]


def _settings(options: argparse.Namespace) -> dict[str, float]:
    """What figures depend on: those of other settings are not taken for these."""
    return {"seconds": options.seconds, "lsq": options.lsq, "count": options.count}


def _kept(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []


def _read(path: Path, count: int | None = None) -> np.ndarray:
    with open_vectors(path) as file:
        return file.read(0, min(len(file), count or len(file))).astype(np.float32)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--sets", nargs="+", choices=list(_FILES), default=["sift", "text"], help="default: both")
    parser.add_argument("--bytes", type=int, nargs="+", default=[4, 8, 16, 32], help="default: %(default)s")
    every = [*_MODELS, *baseline_names()]
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="quantizers (default: all)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=330.0,
        help="training of a model of 8 bytes; of others in proportion (default %(default)s)",
    )
    parser.add_argument(
        "--lsq",
        type=int,
        default=50_000,
        help="vectors LSQ of 8 bytes trains on; others fewer in proportion (default %(default)s)",
    )
    parser.add_argument("--count", type=int, default=20_000, help="vectors measured (default %(default)s)")
    parser.add_argument("--out", type=Path, default=_OUT, help="figures that are there are kept (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
