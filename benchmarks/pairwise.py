"""Look-up decoders of an IVF model: their error on vectors not seen, and the time to fit them.

    python benchmarks/pairwise.py --data DIR [--model FILE] [--codes FILE]

Without a model it trains an IVF-qinco2-S for a while. Compared with them: residual quantization of the same bytes
behind the same centroids (Faiss), and the model's codes decoded by sequential means, each step's of what the
steps before leave, which is how the codebooks of plain residual quantization come about.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.index.additive import mean_square
from qinco_core.index.centroids import train_centroids
from qinco_core.index.pairwise_fit import FitConfig, Part, errors, fit_pairwise
from qinco_core.index.training_codes import training_codes
from qinco_core.optional import import_faiss
from qinco_core.progress import Silent
from qinco_core.store import open_codes
from qinco_core.vectors import open_vectors

Array = NDArray[Any]


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    with tempfile.TemporaryDirectory() as folder:
        codec = Codec.load(options.model or _train(files, Path(folder) / "model.h5", options.seconds))
        payload = {"benchmark": "pairwise", "machine": common.machine(), "full": files.full}
        payload["rows"] = rows = _measure(files, codec, options)
    common.table(rows)
    common.write_json(common.RESULTS / "pairwise.json", payload)


def _train(files: common.Sift, path: Path, seconds: float) -> Path:
    with open_vectors(files.learn) as learn:
        K = 4096 if files.full else 256
        print(f"training an IVF model of {K} lists for {seconds:g} s", file=sys.stderr)
        centroids = train_centroids(learn, K).centroids
        Codec.train(learn, preset_name="qinco2-S", seconds=seconds, ivf=centroids).save(path)
    return path


def _measure(files: common.Sift, codec: Codec, options: argparse.Namespace) -> list[dict[str, Any]]:
    with open_vectors(files.base, limit=options.base) as base:
        v = base.read(0, len(base))
    test = Part(codec.encode(v), v)
    rows = []
    with open_vectors(files.learn) as learn:
        for tables in options.tables:
            config = FitConfig(tables=tables)
            if options.codes is None:
                codes, seen, held = training_codes(codec, learn, None, config.rows(codec.config), Silent())
            else:
                with open_codes(options.codes) as stored:
                    codes, seen, held = training_codes(codec, learn, stored, config.rows(codec.config), Silent())
            started = time.perf_counter()
            found = fit_pairwise(codec, codes, seen, held, config, Silent())
            seconds = time.perf_counter() - started
            mse = {**found.training["mse"], "base": errors(codec, found, test)}
            if not rows:
                rows = [_row(name, mse, 0.0) for name in ("centroid", "network", "additive")]
                rows[-1]["seconds"] = 0.0 if tables else seconds
            if tables:
                rows.append(_row("pairwise", mse, seconds) | {"decoder": f"pairwise, {tables} per step"})
        # the files are small enough that all codes are used, in order
        xt = Part(codes, learn.read(0, len(codes)))
    return rows + _others(codec, xt, {"training": seen, "held-out": held, "base": test}, options.beam)


def _row(name: str, mse: dict[str, dict[str, float]], seconds: float) -> dict[str, Any]:
    return {"decoder": name, **{part: found[name] for part, found in mse.items()}, "seconds": seconds}


def _others(codec: Codec, xt: Part, parts: dict[str, Part], beams: list[int]) -> list[dict[str, Any]]:
    """Sequential means of the same codes, and Faiss's residual quantization behind the same centroids."""
    left = {name: _residual(codec, part.codes, part.vectors) for name, part in parts.items()}
    started = time.perf_counter()
    mse = _sequential_means(codec, xt.codes, parts, left)
    rows = [{"decoder": "sequential means", **mse, "seconds": time.perf_counter() - started}]
    faiss = import_faiss()
    for beam in beams:
        rq = faiss.ResidualQuantizer(codec.config.D, codec.config.M, codec.config.bits)
        rq.max_beam_size = beam
        started = time.perf_counter()
        rq.train(_residual(codec, xt.codes, xt.vectors))
        seconds = time.perf_counter() - started
        mse = {name: mean_square(gap - rq.decode(rq.compute_codes(gap))) for name, gap in left.items()}
        rows.append({"decoder": f"Faiss RQ, beam {beam}", **mse, "seconds": seconds})
    return rows


def _sequential_means(codec: Codec, codes: Array, parts: dict[str, Part], left: dict[str, Array]) -> dict[str, float]:
    targets, K = _residual(codec, codes, codec.decode(codes)), codec.config.K
    for m in range(codes.shape[1] - codec.config.M, codes.shape[1]):
        k = codes[:, m].astype(np.int64)
        sums = np.stack([np.bincount(k, column, K) for column in targets.T], axis=1)
        means = (sums / np.maximum(np.bincount(k, minlength=K), 1)[:, None]).astype(np.float32)
        targets = targets - means[k]
        left = {name: gap - means[parts[name].codes[:, m].astype(np.int64)] for name, gap in left.items()}
    return {name: mean_square(gap) for name, gap in left.items()}


def _residual(codec: Codec, codes: Array, vectors: Array) -> Array:
    """What the coarse centroids leave, float32 [n, D]; all but the mean without an IVF."""
    centroids = codec.centroids
    start = codec.network.mean.numpy()[None] if centroids is None else centroids[codes[:, 0]]
    return np.ascontiguousarray(vectors - start, np.float32)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--model", type=Path, help="an IVF model (default: one is trained)")
    parser.add_argument("--codes", type=Path, help="codes of the training vectors (default: they are encoded)")
    parser.add_argument(
        "--seconds", type=float, default=330.0, help="of training, without --model (default %(default)s)"
    )
    parser.add_argument("--tables", type=int, nargs="+", default=[0, 1, 2, 4], help="per step (default 0 1 2 4)")
    parser.add_argument("--beam", type=int, nargs="*", default=[1], help="of Faiss RQ; 5 takes minutes (default 1)")
    parser.add_argument("--base", type=int, default=20_000, help="base vectors to test on (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
