"""What a GPU makes of it: training in minutes, and encoding and decoding beside the plain path in float16.

    python benchmarks/gpu.py --data DIR [--minutes 1 3 10]

Trains qinco2-S on the learn vectors once for each number of minutes, and measures the first 20,000 base vectors. Then
qinco2-S and -L encode at A16 B32 and decode: the plain path (the reference encoder, the network's own decoding, under
autocast to float16, in the batches that suit it best of those tried), the engine as it is, its chunks compiled by
torch.compile, and its chunks as CUDA graphs. The share of the GPU's matrix rate is of what a large product in the same
precision reaches on the same GPU. With `--device cpu` it runs as a rehearsal, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import numpy as np
import products
import torch
from torch import Tensor

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.config import EncodeConfig
from qinco_core.errors import DeviceError
from qinco_core.vectors import open_vectors

_WIDE = EncodeConfig(A=16, B=32)
Work = Callable[[], object]


class Ways(NamedTuple):
    """Ways to do one thing.

    Attributes:
        whole: by name, with how many vectors.
        work: what the engine does to a chunk.
        chunk: of the size it would take.
        needed: multiplications of a vector in a step, in the plain path and in the engine.
    """

    whole: dict[str, tuple[Work, int]]
    work: Callable[[Tensor], Tensor]
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
    trained = [_train(files, minutes, base, options) for minutes in options.minutes]
    common.table([row for row, _ in trained])
    rate = _matrix_rate(options.device)
    print(f"\nlarge products: {rate / 1e12:.3g} T multiplications/s")
    rows = []
    for preset in options.presets:
        codec = next((codec for row, codec in trained[::-1] if row["model"] == preset), None)
        codec = codec or _codec(files, preset, options.untrained, options)
        for what, ways in (("encode", _encoding), ("decode", _decoding)):
            rows += _rows(codec, (preset, what), ways(codec, base, options), rate, options)
    common.table(rows)
    common.write_json(
        common.RESULTS / "gpu.json",
        {
            "benchmark": "gpu",
            "machine": common.machine(),
            "full": files.full,
            "multiplications/s": rate,
            "training": [row for row, _ in trained],
            "rows": rows,
        },
    )


def _train(
    files: common.Sift, minutes: float, base: Tensor, options: argparse.Namespace
) -> tuple[dict[str, Any], Codec]:
    codec = _codec(files, "qinco2-S", 60 * minutes, options)
    row = {"model": "qinco2-S", "minutes": minutes, "samples": codec.training["samples"]}
    for search in (EncodeConfig(A=4, B=4), _WIDE):
        row[f"mse A{search.A} B{search.B}"] = _mse(codec, base, codec.encode(base, search=search.fast))
    return row, codec


def _codec(files: common.Sift, preset: str, seconds: float, options: argparse.Namespace) -> Codec:
    print(f"training {preset} for {seconds:g} s ...", file=sys.stderr, flush=True)
    return Codec.train(files.learn, preset_name=preset, seconds=seconds, device=options.device)


def _encoding(codec: Codec, base: Tensor, options: argparse.Namespace) -> Ways:
    engine, fast, few = codec.engine, _WIDE.fast, base[: options.plain]
    network = copy.deepcopy(codec.network).to(options.device)
    codec.encode(base[:64], search=fast)  # makes what is made once

    def plain(v: Tensor) -> Tensor:
        return reference.encode(network, network.normalize(v), _WIDE)[0]

    return Ways(
        whole={"engine": (lambda: codec.encode(base, search=fast), len(base))}
        | {f"plain, {size} at a time": (_batches(plain, few, size, options), len(few)) for size in options.batches},
        work=lambda v: engine._encode_rows(v, fast),
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
        work=engine.decode_rows,
        chunk=many[: engine.chunk_rows].to(options.device),
        needed=(products.plain_decoding(codec.config), products.engine_decoding(codec.config)),
    )


def _batches(work: Callable[[Tensor], Tensor], rows: Tensor, size: int, options: argparse.Namespace) -> Work:
    """The plain path as a user of torch would run it: batches, in half precision."""
    half = torch.float16 if options.device == "cuda" else torch.bfloat16

    def run() -> Tensor:
        with torch.autocast(options.device, half):
            return torch.cat([work(part.to(options.device)).cpu() for part in rows.split(size)])

    return run


@torch.no_grad()
def _rows(
    codec: Codec, names: tuple[str, str], ways: Ways, rate: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Vectors per second of every way, and what they come to."""
    gpu = options.device == "cuda"
    compiled = torch.compile(ways.work, dynamic=False, fullgraph=gpu, backend="inductor" if gpu else "eager")
    chunks = {"a chunk": lambda: ways.work(ways.chunk), "a chunk, compiled": lambda: compiled(ways.chunk)}
    if gpu:
        chunks["a chunk, CUDA graph"] = _captured(ways.work, ways.chunk)
    fns = {name: work for name, (work, _) in ways.whole.items()}
    fns |= {name: _synchronized(work, options) for name, work in chunks.items()}
    for fn in fns.values():
        fn()
    seconds = common.medians(common.alternate(fns, options.repeats))
    counts = {name: count for name, (_, count) in ways.whole.items()} | dict.fromkeys(chunks, len(ways.chunk))
    rates = {name: counts[name] / seconds[name] for name in fns}
    plain = max(found for name, found in rates.items() if name.startswith("plain"))
    steps = len(codec.network.steps)
    return [
        {
            "model": names[0],
            "what": names[1],
            "way": name,
            "vectors/s": found,
            "times the best plain": found / plain,
            "of the matrix rate": f"{found * steps * ways.needed[not name.startswith('plain')] / rate:.1%}",
        }
        for name, found in rates.items()
    ]


def _synchronized(work: Work, options: argparse.Namespace) -> Work:
    def run() -> object:
        result = work()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def _captured(work: Callable[[Tensor], Tensor], chunk: Tensor) -> Work:
    """The work on this chunk as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work(chunk)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(chunk)
    return graph.replay


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
    parser.add_argument("--presets", nargs="+", default=["qinco2-S", "qinco2-L"], help="default: S and L")
    parser.add_argument("--count", type=int, default=20_000, help="vectors encoded (default %(default)s)")
    parser.add_argument("--plain", type=int, default=8192, help="by the plain path (default %(default)s)")
    parser.add_argument("--codes", type=int, default=1_000_000, help="codes decoded (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096], help="of the plain encoder")
    parser.add_argument("--untrained", type=float, default=20, help="seconds for other models (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
