"""Lloyd's k-means over vectors of any dtype, block by block.

Shapes: N training vectors, K centroids, D dimension, n vectors of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.index.coarse import Coarse, Floats, Lists
from qinco_core.progress import Progress, Silent

Vectors = NDArray[Any]

# comparisons and entries of a block: a second of work of a thread, and 64 MiB as float64
_BLOCK_PAIRS, _BLOCK_ENTRIES, _BLOCK_ROWS = 1 << 28, 1 << 23, 1 << 16


def never() -> bool:
    """Never stop."""
    return False


@dataclass(frozen=True)
class Machine:
    """Where k-means runs, whom it tells, and when it has to stop (then it raises KeyboardInterrupt)."""

    threads: int | None = None
    device: str = "auto"
    progress: Progress = field(default_factory=Silent)
    stop: Callable[[], bool] = never


@dataclass(frozen=True)
class Assignment:
    """The vectors at their nearest centroids.

    Attributes:
        lists_N: number of each vector's nearest centroid, int32 [N].
        gaps_N: squared distances to the nearest centroids, float32 [N].
        counts_K: vectors of each centroid, int64 [K].
        means_KD: their mean, float32 [K, D]; the centroid itself where there are none.
        mse: mean of `gaps_N`.
    """

    lists_N: Lists
    gaps_N: Floats
    counts_K: NDArray[np.int64]
    means_KD: Floats
    mse: float


def assign(x_ND: Vectors, centroids_KD: Floats, machine: Machine) -> Assignment:
    """One pass over all vectors; tells progress of every vector."""
    (N, D), K = x_ND.shape, len(centroids_KD)
    coarse = Coarse(centroids_KD, threads=machine.threads, device=machine.device)
    device = coarse.device
    size = max(coarse.batch, min(_BLOCK_ROWS, _BLOCK_PAIRS // K, _BLOCK_ENTRIES // D))
    lists_N, gaps_N = np.empty(N, np.int32), np.empty(N, np.float32)
    # sums in float64: a centroid may have millions of vectors
    sums_KD, error = torch.zeros(K, D, dtype=torch.float64, device=device), 0.0
    for at in range(0, N, size):
        if machine.stop():
            raise KeyboardInterrupt
        block = x_ND[at : at + size]
        lists, gaps = coarse.nearest(block, 1)
        lists_N[at : at + size], gaps_N[at : at + size] = lists[:, 0], gaps[:, 0]
        error += float(gaps.sum(dtype=np.float64))  # for the progress; its rounding depends on the block
        rows = torch.from_numpy(block).to(device, torch.float64)
        sums_KD.index_add_(0, torch.from_numpy(lists[:, 0]).to(device, torch.int64), rows)
        machine.progress.advance(len(block), mse=error / min(at + size, N))
    counts_K = np.bincount(lists_N, minlength=K)
    means_KD = (sums_KD.cpu().numpy() / np.maximum(counts_K, 1)[:, None]).astype(np.float32)
    means_KD[counts_K == 0] = centroids_KD[counts_K == 0]
    return Assignment(lists_N, gaps_N, counts_K, means_KD, float(gaps_N.mean(dtype=np.float64)))


def kmeans(x_ND: Vectors, K: int, iterations: int, rng: np.random.Generator, machine: Machine) -> tuple[Floats, int]:
    """Centroids float32 [K, D] from K of the vectors on, and how many empty clusters were repaired on the way."""
    start = rng.choice(len(x_ND), K, replace=False, shuffle=False)
    return lloyd(x_ND, x_ND[start].astype(np.float32), iterations, rng, machine)


def lloyd(
    x_ND: Vectors, centroids_KD: Floats, iterations: int, rng: np.random.Generator, machine: Machine
) -> tuple[Floats, int]:
    """Lloyd iterations from given centroids; returns new ones, and how many empty clusters were repaired."""
    repaired = 0
    for _ in range(iterations):
        found = assign(x_ND, centroids_KD, machine)
        centroids_KD = found.means_KD
        repaired += repair(x_ND, found, centroids_KD, rng)
    return centroids_KD, repaired


def repair(x_ND: Vectors, found: Assignment, centroids_KD: Floats, rng: np.random.Generator) -> int:
    """Give empty clusters random vectors for centroids, drawn by their squared distances to their own centroids.

    So the clusters with the largest errors are split, and those of equal vectors are not. Changes `centroids_KD`
    in place and returns how many; fewer than are empty where all other vectors lie at their centroids.
    """
    empty = np.flatnonzero(found.counts_K == 0)
    if not empty.size:
        return 0
    away = np.flatnonzero(found.gaps_N > 0)
    # the smallest of such waiting times are a draw without replacement in proportion to the gaps
    waits = rng.exponential(size=len(away)) / found.gaps_N[away]
    drawn = away[np.argsort(waits, kind="stable")[: len(empty)]]
    centroids_KD[empty[: len(drawn)]] = x_ND[drawn]
    return len(drawn)
