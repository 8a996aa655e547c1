"""Make the sample data in examples/data from a folder with larger files.

    python examples/make_sample.py FOLDER

FOLDER holds sift/learn200k.bvecs, sift/base500k.u8bin, sift/query2k.fvecs and text/base20k.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qinco_core.vectors import open_vectors, write_vectors

DATA = Path(__file__).parent / "data"
NEIGHBORS = 100


def head(source: Path, count: int) -> npt.NDArray[np.generic]:
    """The first `count` vectors of a file."""
    with open_vectors(source, limit=count) as vectors:
        return vectors.read(0, len(vectors))


def exact_neighbors(xq: npt.NDArray[np.generic], xb: npt.NDArray[np.generic], k: int) -> npt.NDArray[np.int32]:
    """The k nearest of xb [N, D] to each of xq [nq, D] in L2, ties by lower id: int32 [nq, k].

    SIFT descriptors are small integers, so float64 is exact here.
    """
    q, b = xq.astype(np.float64), xb.astype(np.float64)
    distances = (q**2).sum(1)[:, None] - 2 * q @ b.T + (b**2).sum(1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k].astype(np.int32)


def main(folder: Path) -> None:
    """Write the files."""
    base, queries = head(folder / "sift/base500k.u8bin", 10_000), head(folder / "sift/query2k.fvecs", 500)
    outputs = {
        "sift_learn.bvecs": head(folder / "sift/learn200k.bvecs", 40_000),
        "sift_base.u8bin": base,
        "sift_query.fvecs": queries,
        "sift_groundtruth.ivecs": exact_neighbors(queries, base, NEIGHBORS),
        "text_base.npy": head(folder / "text/base20k.npy", 800),
    }
    for name, array in outputs.items():
        write_vectors(DATA / name, array, force=True)
        print(f"{name}: {array.shape[0]} x {array.shape[1]} {array.dtype}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
