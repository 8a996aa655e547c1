"""What a GPU makes of it: training in minutes, and encoding and decoding beside the plain path in float16.

    python benchmarks/gpu.py --data DIR [--minutes 1 3 10] [--paper 10]

qinco2-S and -L encode at A16 B32 and decode: the engine, and the plain path (the reference encoder, the network's own
decoding, under autocast to float16, in the batches that suit it best of those tried), both with the vectors' way to
the GPU and back, and with a chunk that is there already. The share of the GPU's matrix rate is of what a large product
in bfloat16 reaches on the same GPU. Then qinco2-S is trained on the learn vectors, once for each number of minutes and
once by the published recipe, and measured on the first base vectors. With `--device cpu` it runs as a rehearsal, whose
figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import products
import torch
from torch import Tensor

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.graph import Graphs
from qinco_core.config import EncodeConfig
from qinco_core.errors import DeviceError
from qinco_core.vectors import open_vectors

_WIDE = EncodeConfig(A=16, B=32)
Work = Callable[[], object]


class Ways(NamedTuple):
    """Ways to do one thing.

    Attributes:
        whole: by name, with how many vectors.
        works: what the engine and the plain path do to a chunk.
        chunk: of the size the engine would take.
        needed: multiplications of a vector in a step, in the plain path and in the engine.
    """

    whole: dict[str, tuple[Work, int]]
    works: dict[str, Callable[[Tensor], Tensor]]
    chunk: Tensor
    needed: tuple[int, int]


def main() -> None:
    """Run it."""
    options = _parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("torch sees no CUDA GPU on this machine; --device cpu rehearses the script")
    files = common.sift(options.data)
    with open_vectors(files.base) as file:
        base = torch.from_numpy(file.read(0, options.count).astype(np.float32))
    rate = _matrix_rate(options.device)
    print(f"large products: {rate / 1e12:.3g} T multiplications/s")
    rows = []
    for preset in options.presets:
        codec = _codec(files, preset, options.seconds, options)
        for what, ways in (("encode", _encoding), ("decode", _decoding)):
            rows += _rows(codec, (preset, what), ways(codec, base, options), rate, options)
    common.table(rows)
    result = {
        "benchmark": "gpu",
        "machine": common.machine(),
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "full": files.full,
        "multiplications/s": rate,
        "rows": rows,
        "training": [],
    }
    common.write_json(options.out, result)  # a GPU may be lent for less than all of this takes
    for recipe, all_minutes in (("fast", options.minutes), ("paper", options.paper)):
        for minutes in all_minutes:
            result["training"].append(_train(files, recipe, minutes, base, options))
            common.write_json(options.out, result)
    common.table(result["training"])


def _train(
    files: common.Sift, recipe: str, minutes: float, base: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    codec = _codec(files, "qinco2-S", 60 * minutes, options, recipe)
    row = {"recipe": recipe, "minutes": minutes, "vectors": codec.training["samples"]}
    row["peak_lr"] = codec.training["peak_lr"]
    for search in (EncodeConfig(A=4, B=4), _WIDE):
        row[f"mse A{search.A} B{search.B}"] = _mse(codec, base, codec.encode(base, search=search.fast))
    return row


def _codec(files: common.Sift, preset: str, seconds: float, options: argparse.Namespace, recipe: str = "fast") -> Codec:
    print(f"training {preset} for {seconds:g} s ...", file=sys.stderr, flush=True)
    training = {"recipe": recipe}
    return Codec.train(files.learn, preset_name=preset, seconds=seconds, device=options.device, training=training)


def _encoding(codec: Codec, base: Tensor, options: argparse.Namespace) -> Ways:
    engine, fast, few = codec.engine, _WIDE.fast, base[: options.plain]
    network = copy.deepcopy(codec.network).to(options.device)
    codec.encode(base[:64], search=fast)  # makes what is made once

    def plain(v: Tensor) -> Tensor:
        return reference.encode(network, network.normalize(v), _WIDE)[0]

    return Ways(
        whole={"engine": (lambda: codec.encode(base, search=fast), len(base))}
        | {f"plain, {size} at a time": (_batches(plain, few, size, options), len(few)) for size in options.batches},
        works={"engine": lambda v: engine._encode_rows(v, search=fast), "plain": plain},
        chunk=base[: max(1, 2 * engine.chunk_rows // fast.T)].to(options.device),
        needed=(products.plain_encoding(codec.config, _WIDE), products.engine_encoding(codec.config, fast)),
    )


def _decoding(codec: Codec, base: Tensor, options: argparse.Namespace) -> Ways:
    engine = codec.engine
    network = copy.deepcopy(codec.network).to(options.device)
    codes = codec.encode(base, search=EncodeConfig(A=4, B=1))
    many = codes.repeat(-(-options.codes // len(codes)), 1)[: options.codes]

    def plain(k: Tensor) -> Tensor:
        return network.denormalize(network.decode(k))

    sizes = [64 * size for size in options.batches]
    return Ways(
        whole={"engine": (lambda: codec.decode(many), len(many))}
        | {f"plain, {size} at a time": (_batches(plain, many, size, options), len(many)) for size in sizes},
        works={"engine": engine.decode_rows, "plain": plain},
        chunk=many[: engine.chunk_rows].to(options.device),
        needed=(products.plain_decoding(codec.config), products.engine_decoding(codec.config)),
    )


def _batches(work: Callable[[Tensor], Tensor], rows: Tensor, size: int, options: argparse.Namespace) -> Work:
    """The plain path as a user of torch would run it: batches, in half precision."""

    def run() -> Tensor:
        with torch.autocast(options.device, _half(options.device)):
            return torch.cat([work(part.to(options.device)).cpu() for part in rows.split(size)])

    return run


def _half(device: str) -> torch.dtype:
    return torch.float16 if device == "cuda" else torch.bfloat16


@torch.no_grad()
def _rows(
    codec: Codec, names: tuple[str, str], ways: Ways, rate: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Vectors per second of every way, and what they come to."""
    fns = {name: (work, count) for name, (work, count) in ways.whole.items()}
    for size in options.batches:
        many = ways.chunk[: size * (64 if names[1] == "decode" else 1)]
        fns[f"plain, {len(many)} on the GPU"] = _on_device(ways.works["plain"], many, options), len(many)
    graphs = Graphs(ways.chunk.device)
    engine = _on_device(lambda chunk: graphs("engine", ways.works["engine"], chunk), ways.chunk, options, half=False)
    fns["engine, a chunk on the GPU"] = engine, len(ways.chunk)
    for fn, _ in fns.values():
        for _ in range(4):  # the engine records its graph at the fourth call
            fn()
    seconds = common.medians(common.alternate({name: fn for name, (fn, _) in fns.items()}, options.repeats))
    rates = {name: count / seconds[name] for name, (_, count) in fns.items()}
    steps = len(codec.network.steps)
    rows = []
    for name, found in rates.items():
        there = name.endswith("on the GPU")
        plain = max(r for other, r in rates.items() if other.startswith("plain") and other.endswith("GPU") == there)
        row = {
            "model": names[0],
            "what": names[1],
            "way": name,
            "vectors/s": found,
            "times the best plain": found / plain,
        }
        needed = ways.needed[not name.startswith("plain")]
        rows.append(row | {"of the matrix rate": f"{found * steps * needed / rate:.1%}"})
    return rows


def _on_device(work: Callable[[Tensor], Tensor], chunk: Tensor, options: argparse.Namespace, half: bool = True) -> Work:
    """The work on what is on the GPU already, whose result stays there."""

    def run() -> Tensor:
        # half precision is for the plain path: the engine's products are in bfloat16 by themselves
        with torch.autocast(options.device, _half(options.device), enabled=half):
            result = work(chunk)
        if options.device == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def _matrix_rate(device: str) -> float:
    """Multiplications per second of a large product in bfloat16 (float32 on a CPU)."""
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    best = np.inf
    for _ in range(10):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return size**3 / best


def _mse(codec: Codec, base: Tensor, codes: Tensor) -> float:
    return float((codec.decode(codes) - base).double().square().sum(1).mean())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 3, 10], help="trainings (default 1 3 10)")
    parser.add_argument("--paper", type=float, nargs="*", default=[10], help="by the published recipe (default 10)")
    parser.add_argument("--presets", nargs="+", default=["qinco2-S", "qinco2-L"], help="default: S and L")
    parser.add_argument("--count", type=int, default=20_000, help="vectors encoded (default %(default)s)")
    parser.add_argument("--plain", type=int, default=8192, help="by the plain path (default %(default)s)")
    parser.add_argument("--codes", type=int, default=1_000_000, help="codes decoded (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096], help="of the plain encoder")
    parser.add_argument("--seconds", type=float, default=10, help="training of the models (default %(default)s)")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "gpu.json", help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
