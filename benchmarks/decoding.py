"""Decoding: the engine against the plain network, same model, same codes, same run.

    python benchmarks/decoding.py --data DIR [--model FILE]

Needs a trained qinco2-S: `benchmarks/training.py` leaves one. The plain network decodes in batches of the
size that suits it best of those tried.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import torch

from qinco_core.api import Codec
from qinco_core.codec.engine import Engine
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig
from qinco_core.vectors import open_vectors


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    codec = Codec.load(options.model)
    with open_vectors(files.base) as file:
        v = torch.from_numpy(file.read(0, 8192))
    codes = codec.encode(v, search=EncodeConfig(A=4, B=1))
    many = codes.repeat(-(-options.count // len(codes)), 1)[: options.count]
    engines = {"engine, float32": Engine(codec.network, plan(precision="float32"))}
    if codec.plan.precision == "bfloat16":
        engines["engine, bfloat16"] = Engine(codec.network, plan(precision="bfloat16"))
    fns = {name: (lambda e=e: e.decode(many)) for name, e in engines.items()}
    fns |= {f"plain, batches of {size}": (lambda s=size: _plain(codec, many, s)) for size in (512, 2048, 8192, 65536)}
    for fn in fns.values():
        fn()
    seconds = common.medians(common.alternate(fns, options.repeats))
    plain = min((s for name, s in seconds.items() if name.startswith("plain")))
    errors = {name: float((e.decode(codes) - v).double().square().sum(1).mean()) for name, e in engines.items()}
    reference = float((_plain(codec, codes, 2048) - v).double().square().sum(1).mean())
    rows = [
        {
            "decoder": name,
            "vectors/s": len(many) / seconds[name],
            "times the best plain": plain / seconds[name],
            "mse above plain": f"{errors.get(name, reference) / reference - 1:+.3%}",
        }
        for name in fns
    ]
    common.table(rows)
    payload = {"benchmark": "decoding", "machine": common.machine(), "full": files.full, "rows": rows}
    common.write_json(common.RESULTS / "decoding.json", payload | {"model": codec.config.model_dump()})


@torch.inference_mode()
def _plain(codec: Codec, codes: torch.Tensor, size: int) -> torch.Tensor:
    network = codec.network
    return torch.cat([network.denormalize(network.decode(part)) for part in codes.split(size)])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--model", type=Path, default=common.MODEL, help="a trained model (default %(default)s)")
    parser.add_argument("--count", type=int, default=65536, help="codes (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
