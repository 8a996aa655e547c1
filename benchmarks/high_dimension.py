"""What the engine's algebra is worth as the dimension grows: encoding and decoding at D = 128, 768, 1536.

    python benchmarks/high_dimension.py --data DIR

Vectors of a high dimension are made by writing several SIFT vectors one after the other. A qinco2-S of each
dimension is trained for a minute, because what a candidate's forecast is worth can only be told of a trained model.
The engine and the plain path (the reference encoder at A16 B32, the network's own decoding) run in turn, on the same
vectors, in the batches that suit the plain path best of those tried.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
import products
import torch

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.config import EncodeConfig
from qinco_core.vectors import open_vectors

_SEARCH = EncodeConfig(A=16, B=32)


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    rows = [row for D in options.dimensions for row in _rows(D, files, options)]
    common.table(rows)
    common.write_json(
        common.RESULTS / "high_dimension.json",
        {"benchmark": "high_dimension", "machine": common.machine(), "full": files.full, "rows": rows},
    )


def _rows(D: int, files: common.Sift, options: argparse.Namespace) -> list[dict[str, Any]]:
    times = D // 128
    learn, base = _joined(files.learn, times, 120_000), _joined(files.base, times, 4096)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learn.npy"
        np.save(path, learn)
        codec = Codec.train(path, preset_name="qinco2-S", seconds=options.seconds)
    network = codec.network
    few, v = torch.from_numpy(base[: options.count]), torch.from_numpy(base)
    codes = codec.encode(v, search=EncodeConfig(A=4, B=1))
    many = codes.repeat(-(-options.codes // len(codes)), 1)
    encoders = {"engine": lambda: codec.encode(few, search=_SEARCH.fast)}
    encoders |= {f"plain, {size} at a time": (lambda size=size: _plain(codec, few, size)) for size in (16, 64)}
    decoders = {"engine": lambda: codec.decode(many)}
    decoders |= {
        f"plain, {size} at a time": (
            lambda size=size: [network.denormalize(network.decode(part)) for part in many.split(size)]
        )
        for size in (512, 2048)
    }
    rows = []
    for name, fns, count in (("encode", encoders, len(few)), ("decode", decoders, len(many))):
        for fn in fns.values():
            fn()
        with torch.no_grad():
            seconds = common.medians(common.alternate(fns, options.repeats))
        plain = min(taken for label, taken in seconds.items() if label != "engine")
        row = {"D": D, "what": name, "engine/s": count / seconds["engine"], "plain/s": count / plain}
        rows.append(row | {"times": plain / seconds["engine"], "fewer products": _products(codec, name)})
    exact, fast = (
        _mse(codec, few, codes) for codes in (_plain(codec, few, 64), codec.encode(few, search=_SEARCH.fast))
    )
    return [row | {"mse above plain": f"{fast / exact - 1:+.2%}" if row["what"] == "encode" else ""} for row in rows]


def _products(codec: Codec, what: str) -> float:
    """How many times fewer products the engine needs than the plain path."""
    config = codec.config
    if what == "decode":
        return products.plain_decoding(config) / products.engine_decoding(config)
    return products.plain_encoding(config, _SEARCH) / products.engine_encoding(config, _SEARCH.fast)


def _joined(path: Path, times: int, limit: int) -> np.ndarray:
    """Rows of so many vectors one after the other, float32."""
    with open_vectors(path) as file:
        count = min(len(file), times * limit) // times * times
        return file.read(0, count).astype(np.float32).reshape(count // times, -1)


@torch.no_grad()
def _plain(codec: Codec, v: torch.Tensor, size: int) -> torch.Tensor:
    network = codec.network
    return torch.cat([reference.encode(network, network.normalize(part), _SEARCH)[0] for part in v.split(size)])


def _mse(codec: Codec, v: torch.Tensor, codes: torch.Tensor) -> float:
    return float((codec.decode(codes) - v).square().sum(1).double().mean())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 768, 1536], help="multiples of 128")
    parser.add_argument("--seconds", type=float, default=60.0, help="training of each (default %(default)s)")
    parser.add_argument("--count", type=int, default=256, help="vectors encoded (default %(default)s)")
    parser.add_argument("--codes", type=int, default=16_384, help="codes decoded, at least (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
