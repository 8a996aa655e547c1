"""The cost model against runs: encoding, index building and search of more and more vectors, in processes of their own.

    python benchmarks/scale.py --data DIR [--counts 100000 1000000 5000000] [--model FILE] [--threads 1]

The vectors are real base vectors, each with a share of the difference of two others added, the same in every run. A
small IVF model is trained for some seconds, unless one is given. What `--dry-run` foretells stands beside what each
command took: seconds of the work, and wall-clock ones with the start of the process; peak memory, as the operating
system counts it (with the pages of the index that a search has mapped); bytes on the disk. From the largest run come
the rates of one core, and from these the costs of 10^8 to 10^10 vectors. A run's files are removed when the next one
begins; the largest needs some 250 bytes a vector in --folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import numpy as np

from qinco_core.config import ModelConfig
from qinco_core.index.coarse import Coarse
from qinco_core.scale.costs import Cost, Machines, Rates, Sizes, encoding, indexing, searching
from qinco_core.store import load_model
from qinco_core.vectors import open_vectors, open_writer

_ROWS, _SHARE, _NPROBE = 1 << 16, 0.3, 16
_PASSES = 4  # of the index that is built once more in little memory
FUTURE = (10**8, 10**9, 10**10)
# lists of an index of so many
LISTS = 65536


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = options.model or _train(folder, files, options)
        common.measured(
            "pairwise", files.learn, *_of(model, options), "--tables", 0, "-o", folder / "pairwise.h5", "-q"
        )
        rows: list[dict[str, Any]] = []
        queries: list[tuple[float, float]] = []
        for count in sorted(options.counts):
            rows += _jobs(folder, files, model, count, options)
            queries.append(_search(folder, files, model, count, options, rows))
            common.table(rows[-3:])
        again = _index(folder, model, options, max(rows[-2]["bytes"] // _PASSES, 1 << 20))
        config = load_model(model).config
        rates = _rates(rows, again, queries, config, options)
    future = [row for N in FUTURE for machines in _machines(options) for row in _foretold(N, machines, config, rates)]
    print()
    common.table(rows)
    print()
    common.table(future)
    payload = {
        "benchmark": "scale",
        "machine": common.machine(),
        "full": files.full,
        "model": config.model_dump(),
        "threads": options.threads,
        "rates": asdict(rates),
        "rows": rows,
        "foretold": future,
    }
    common.write_json(common.RESULTS / "scale.json" if files.full else Path("scale.json"), payload)


def perturbed(source: Path, out: Path, count: int) -> None:
    """Write so many vectors: each a real one, with a share of the difference of two others."""
    with open_vectors(source) as file:
        x = file.read(0, len(file)).astype(np.float32)
    rng = np.random.default_rng(0)
    with open_writer(out, D=x.shape[1], dtype=np.uint8, count=count) as writer:
        for at in range(0, count, _ROWS):
            of, one, other = rng.integers(0, len(x), (3, _ROWS))[:, : count - at]
            writer.append(x[of] + np.float32(_SHARE) * (x[one] - x[other]))


def _train(folder: Path, files: common.Sift, options: argparse.Namespace) -> Path:
    """A small model behind lists."""
    model, threads = folder / "model.h5", ("--threads", options.threads, "-q")
    common.measured("centroids", files.learn, "--k", options.lists, "-o", folder / "centroids.h5", *threads)
    sizes = ("--preset", "qinco2-XS", "-A", 4, "-B", 4, "--ivf", folder / "centroids.h5")
    common.measured("train", files.learn, *sizes, "--time", f"{options.seconds:g}s", "-o", model, *threads)
    return model


def _of(model: Path, options: argparse.Namespace) -> tuple[object, ...]:
    return ("--model", model, "--threads", options.threads)


def _jobs(
    folder: Path, files: common.Sift, model: Path, count: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Encoding and index building of so many vectors, foretold and done."""
    base, codes = folder / "base.u8bin", folder / "codes.h5"
    for old in (base, codes):
        old.unlink(missing_ok=True)
    perturbed(files.base, base, count)
    how = ("encode", base, *_of(model, options), "-o", codes, "--json", "-q")
    foretold = common.measured(*how, "--dry-run").json
    encoded = _row("encode", count, foretold, common.measured(*how), codes.stat().st_size)
    base.unlink()
    return [encoded, _index(folder, model, options, None)]


def _index(folder: Path, model: Path, options: argparse.Namespace, memory: int | None) -> dict[str, Any]:
    """Build an index of the codes that are there."""
    index, more = folder / "index", () if memory is None else ("--memory", memory)
    how = ("index", folder / "codes.h5", *_of(model, options), "-o", index, "--pairwise", folder / "pairwise.h5")
    how = (*how, *more, "--force", "--json", "-q")
    foretold = common.measured(*how, "--dry-run").json
    done = common.measured(*how)
    row = _row("index", foretold["vectors"], foretold, done, sum(path.stat().st_size for path in index.iterdir()))
    return row | {"passes": foretold["passes"]}


def _search(
    folder: Path, files: common.Sift, model: Path, count: int, options: argparse.Namespace, rows: list[dict[str, Any]]
) -> tuple[float, float]:
    """Search the index; gives the entries that a query scans, about, and its seconds."""
    config = load_model(model).config
    nprobe = min(_NPROBE, max(1, config.ivf_K))
    how = (*_of(model, options), "--index", folder / "index", "--nprobe", nprobe, "-k", 10, "--json", "-q")
    done = common.measured("search", files.query, *how)
    said, share = done.json, nprobe / max(1, config.ivf_K)
    cost = searching(count, said["queries"], Sizes.of(config), Rates(), Machines(cores=options.threads), share=share)
    row = _row("search", count, cost.as_dict() | {"seconds": None, "output_bytes": cost.disk_bytes}, done, 0)
    rows.append(row | {"bytes": rows[-1]["bytes"]})
    return count * share, options.threads * said["seconds"] / said["queries"]


def _row(job: str, count: int, foretold: dict[str, Any], done: common.Measured, size: int) -> dict[str, Any]:
    return {
        "job": job,
        "vectors": count,
        "foretold s": foretold["seconds"] or "",
        "seconds": done.json["seconds"],
        "wall s": done.seconds,
        "cpu s": done.cpu,
        "foretold MiB": foretold["memory_bytes"] / 2**20,
        "peak MiB": done.peak / 2**20,
        "foretold bytes": foretold["output_bytes"],
        "bytes": size,
        "passes": 1,
    }


def _rates(
    rows: list[dict[str, Any]],
    again: dict[str, Any],
    queries: list[tuple[float, float]],
    config: ModelConfig,
    options: argparse.Namespace,
) -> Rates:
    """What a core takes: by the largest run, the one with more passes, and a line through all searches."""
    encoded, indexed = rows[-3], rows[-2]
    N = indexed["vectors"]
    read = (again["seconds"] - indexed["seconds"]) / (N * max(1, again["passes"] - indexed["passes"]))
    norms = indexed["seconds"] / N - (1 + indexed["passes"]) * read
    scan, query = np.polyfit(*np.array(queries).T, 1) if len(queries) > 1 else (0.0, queries[0][1])
    return Rates(
        encode=options.threads * encoded["seconds"] / N,
        read=max(read, 0.0),
        norms=max(norms, 0.0),
        graph=_graph_seconds(config.D) * LISTS,
        query=float(query),
        scan=max(float(scan), 0.0),
    )


def _graph_seconds(D: int, L: int = 8192) -> float:
    """Seconds for a centroid of a graph, by one of so many random ones."""
    coarse = Coarse(np.random.default_rng(0).standard_normal((L, D)).astype(np.float32), threads=1, device="cpu")
    started = time.perf_counter()
    coarse.nearest(coarse.centroids[:1], 1, ef=1)  # builds it
    return (time.perf_counter() - started) / L


def _machines(options: argparse.Namespace) -> list[Machines]:
    return [Machines(count, cores, 64 << 30) for count, cores in ((1, 2), (1, 64), (16, 64))]


def _foretold(N: int, machines: Machines, config: ModelConfig, rates: Rates) -> list[dict[str, Any]]:
    """What so many vectors cost on these machines."""
    sizes = Sizes.of(config.model_copy(update={"ivf_K": LISTS}), largest_id=N)
    costs: dict[str, Cost] = {
        "encode": encoding(N, sizes, rates, machines, parts=N),
        "index": indexing(N, sizes, rates, machines),
        "1,000 queries": searching(N, 1000, sizes, rates, machines, share=_NPROBE / LISTS),
    }
    return [
        {
            "vectors": N,
            "machines": f"{machines.count} of {machines.cores} cores",
            "job": job,
            "hours": (cost.seconds or 0.0) / 3600,
            "GiB of memory each": cost.memory_bytes / 2**30,
            "GiB of disk": (cost.disk_bytes or 0) / 2**30,
        }
        for job, cost in costs.items()
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[10**5, 10**6, 5 * 10**6], help="vectors (default %(default)s)"
    )
    parser.add_argument("--model", type=Path, help="a trained model (default: one is trained here)")
    parser.add_argument("--lists", type=int, default=256, help="of the model that is trained (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of its training (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of every command (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are kept meanwhile (default: $TMPDIR)")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
