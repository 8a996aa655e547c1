"""Exact neighbours: ours against products in float64 throughout, and against Faiss, in alternation.

    python benchmarks/groundtruth.py --data DIR

All three find the 100 nearest of the whole base for all queries, the base read from its file by blocks (Faiss: whole).
Then ids are compared, and the memory that ours adds to the process is measured on a fifth of the base and on all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch

from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.optional import import_faiss
from qinco_core.vectors import open_vectors

_ROWS = 1 << 14
_K = 100
# the resident memory that a process which does nothing else has at its peak, above that before
_MEMORY = """
import json, re, sys
from pathlib import Path
import torch
from qinco_core.codec.precision import plan
from qinco_core.evaluation.groundtruth import GroundTruth
from qinco_core.vectors import open_vectors
base, query, limit, memory = sys.argv[1:]
warm = torch.ones(512, 512)
(warm @ warm).double() @ warm.double()
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
with open_vectors(base, limit=int(limit)) as xb, open_vectors(query) as xq:
    work = GroundTruth(xb, xq, 100, metric="l2", plan=plan("cpu"), memory=int(memory))
    before = peak()
    for _ in work.batches():
        pass
print(json.dumps({"vectors": int(limit), "memory given": int(memory), "passes": work.passes, "added": peak() - before}))
"""


def main() -> None:
    """Run it."""
    options = _parse()
    files = common.sift(options.data)
    with open_vectors(files.base) as base, open_vectors(files.query) as file:
        xq = file.read(0, len(file))
        fns: dict[str, Callable[[], Any]] = {
            "ours": lambda: exact_neighbors(base.batches(_ROWS), xq, _K),
            "float64 throughout": lambda: _plain(base.batches(_ROWS), xq),
            "Faiss IndexFlatL2": lambda: _faiss(base.read(0, len(base)), xq),
        }
        ids = {name: fn()[0] for name, fn in fns.items()}
        cpu = dict.fromkeys(fns, 0.0)
        clocked = {name: (lambda name=name, fn=fn: _clocked(fn, name, cpu)) for name, fn in fns.items()}
        seconds = common.alternate(clocked, options.repeats)
        pairs = len(base) * len(xq)
        sizes = [len(base) // 5, len(base)]
    medians = common.medians(seconds)
    rows = [
        {
            "search": name,
            "seconds": medians[name],
            "pairs/s": pairs / medians[name],
            "times ours": medians[name] / medians["ours"],
            "cpu seconds": cpu[name] / options.repeats,
            "ids as ours": f"{(found == ids['ours']).mean():.4%}",
        }
        for name, found in ids.items()
    ]
    common.table(rows)
    memory = [_memory(files, size, given) for given in (1 << 30, 1 << 26) for size in sizes]
    common.table(memory)
    payload = {"benchmark": "groundtruth", "machine": common.machine(), "full": files.full, "k": _K, "rows": rows}
    common.write_json(common.RESULTS / "groundtruth.json", payload | {"seconds": seconds, "memory": memory})


def _clocked(fn: Callable[[], Any], name: str, cpu: dict[str, float]) -> None:
    """Add the processor time of a call, which says more than its duration where others use the machine."""
    started = time.process_time()
    fn()
    cpu[name] += time.process_time() - started


def _plain(blocks: Any, xq: Any) -> tuple[Any, Any]:
    """Products in float64 and the nearest of every block, by keys of a distance as float32 and an id."""
    q = torch.from_numpy(xq).double()
    best = torch.full((len(q), _K), torch.iinfo(torch.int64).max)
    first = 0
    for block in blocks:
        x = torch.from_numpy(block).double()
        ids = torch.arange(first, first + len(x))
        norms = x.square().sum(1)
        for start in range(0, len(q), 64):
            part = slice(start, start + 64)
            distances = torch.addmm(norms, q[part], x.T, alpha=-2)
            distances += q[part].square().sum(1, keepdim=True)
            bits = distances.clamp_(min=0).float().view(torch.int32).long()
            keys = bits.bitwise_left_shift_(32).bitwise_or_(ids)
            best[part] = torch.cat([best[part], keys], dim=1).topk(_K, largest=False).values
        first += len(x)
    return (best & 0xFFFFFFFF).numpy(), (best >> 32).int().view(torch.float32).numpy()


def _faiss(xb: Any, xq: Any) -> tuple[Any, Any]:
    faiss = import_faiss()
    index = faiss.IndexFlatL2(xb.shape[1])
    index.add(xb.astype(np.float32))
    distances, ids = index.search(xq.astype(np.float32), _K)
    return ids, distances


def _memory(files: common.Sift, size: int, given: int) -> dict[str, Any]:
    command = [sys.executable, "-c", _MEMORY, files.base, files.query, size, given]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    common.add_data_option(parser)
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    common.run(main)
