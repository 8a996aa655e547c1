"""Encoding: the engine against the reference encoder, same model, same vectors, same run.

    python benchmarks/encoding.py --data DIR [--model FILE]

Both at A16 B32; they run in turn, several times, and the medians are compared. The reference encoder runs twice: in
one call, as it is, and 64 vectors at a time, which suits its caches best. The error of each is measured on the same
vectors. Needs a trained qinco2-S: `benchmarks/training.py` leaves one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import torch

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.engine import Engine
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig
from qinco_core.vectors import open_vectors


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    codec = Codec.load(options.model)
    network = codec.network
    search = EncodeConfig(A=options.A, B=options.B)
    with open_vectors(files.base) as file:
        v = torch.from_numpy(file.read(0, options.count))
    few = v[: options.reference]
    engines = {
        "engine, bfloat16, fast": (Engine(network, plan(precision="bfloat16")), search.fast, v),
        "engine, float32, fast": (Engine(network, plan(precision="float32")), search.fast, v),
        "engine, float32, per beam": (Engine(network, plan(precision="float32")), search, few),
    }
    if codec.plan.precision == "float32":
        del engines["engine, bfloat16, fast"]
    fns = {name: (lambda e=e, s=s, x=x: e.encode(x, s)) for name, (e, s, x) in engines.items()}
    references = {"reference": len(few), "reference, 64 at a time": 64}
    fns |= {name: (lambda size=size: _reference(network, few, search, size)) for name, size in references.items()}
    counts = {name: len(x) for name, (_, _, x) in engines.items()} | dict.fromkeys(references, len(few))
    for fn in fns.values():
        fn()
    seconds = common.medians(common.alternate(fns, options.repeats))
    rates = {name: counts[name] / seconds[name] for name in fns}
    errors = {name: _mse(network, few, e.encode(few, s)[0]) for name, (e, s, _) in engines.items()}
    errors |= dict.fromkeys(references, _mse(network, few, _reference(network, few, search, 64)))
    rows = [
        {
            "encoder": name,
            "vectors/s": rates[name],
            "times the reference": rates[name] / rates["reference"],
            "times its best": rates[name] / rates["reference, 64 at a time"],
            "mse": errors[name],
            "above the reference": f"{errors[name] / errors['reference'] - 1:+.2%}",
        }
        for name in fns
    ]
    common.table(rows)
    common.write_json(
        common.RESULTS / "encoding.json",
        {
            "benchmark": "encoding",
            "machine": common.machine(),
            "full": files.full,
            "A": search.A,
            "B": search.B,
            "fast": search.fast.model_dump(),
            "model": codec.config.model_dump(),
            "rows": rows,
        },
    )


def _reference(network, v, search, size):
    parts = [reference.encode(network, network.normalize(part), search)[0] for part in v.split(size)]
    return torch.cat(parts)


def _mse(network, v, codes) -> float:
    return float((network.denormalize(network.decode(codes)) - v).double().square().sum(1).mean())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--model", type=Path, default=common.MODEL, help="a trained model (default %(default)s)")
    parser.add_argument("-A", type=int, default=16, help="default %(default)s")
    parser.add_argument("-B", type=int, default=32, help="default %(default)s")
    parser.add_argument("--count", type=int, default=8192, help="vectors for the engine (default %(default)s)")
    parser.add_argument("--reference", type=int, default=1024, help="for the reference (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
