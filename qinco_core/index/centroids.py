"""Coarse centroids of training vectors: a sample of them, one or two levels of k-means, and how good they are.

In memory are the sample (`per_centroid` vectors a centroid at most, of the file's own type) and about 20 bytes
for each of the K·D numbers of the centroids.

Shapes: N training vectors, K centroids, D dimension.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qinco_core.config import Frozen
from qinco_core.errors import UsageError
from qinco_core.index.coarse import Coarse, Floats
from qinco_core.index.kmeans import Assignment, Machine, Vectors, assign, kmeans, lloyd, never
from qinco_core.memory import share
from qinco_core.progress import Progress, Silent
from qinco_core.vectors import VectorFile

_TWO_LEVELS = 1 << 16  # centroids from which on two levels are the default
_READ_BYTES = 64 << 20
# training vectors per centroid below which Faiss warns too
_ENOUGH = 39


class CentroidsConfig(Frozen):
    """How centroids are trained.

    Attributes:
        K: how many.
        iterations: of every k-means.
        levels: 1, or 2: k-means into √K clusters, then k-means in each of them. None: 2 from 65,536 centroids on.
        refine: iterations over all centroids that end a training in two levels.
        per_centroid: training vectors used per centroid, at most.
        seed: of all randomness.
    """

    K: int = Field(ge=1, le=1 << 30)
    iterations: int = Field(default=20, ge=1, le=10_000)
    levels: Literal[1, 2] | None = None
    refine: int = Field(default=2, ge=0, le=10_000)
    per_centroid: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0)

    @property
    def depth(self) -> int:
        """Levels, chosen where none were asked for."""
        return self.levels or (2 if self.K >= _TWO_LEVELS else 1)

    def sample(self, vectors: VectorFile) -> int:
        """How many vectors are used: no more than fill half of the memory that there is, but K at least."""
        n = min(len(vectors), self.K * self.per_centroid)
        row_bytes = vectors.dim * vectors.dtype.itemsize
        return max(min(n, self.K), share(n * row_bytes, 2) // row_bytes)


@dataclass(frozen=True)
class TrainedCentroids:
    """Centroids float32 [K, D], not normalised, and the figures of their training."""

    centroids: Floats
    training: dict[str, Any]


@dataclass(frozen=True)
class Forecast:
    """What a training would take; seconds from a short measurement."""

    K: int
    levels: int
    vectors: int
    sample: int
    output_bytes: int
    memory_bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def train_centroids(
    vectors: VectorFile,
    K: int,
    *,
    threads: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    stop: Callable[[], bool] = never,
    **settings: Any,
) -> TrainedCentroids:
    """Train K centroids on a file of vectors.

    The same seed gives the same centroids on the same machine, on a CPU whatever the number of threads.

    Args:
        vectors: at least K of them.
        K: how many centroids.
        threads: CPU threads.
        device: "auto" (a GPU if torch sees one), "cpu" or "cuda".
        progress: told of every pass.
        stop: asked about every second; true raises KeyboardInterrupt.
        settings: other fields of `CentroidsConfig`.

    Raises:
        UsageError: a setting cannot be, or there are fewer vectors than K.
        VectorFileError: a vector that is read is damaged or holds NaN or infinity.
    """
    config = CentroidsConfig.parse({"K": K, **settings})
    check_vectors(vectors, config)
    machine = Machine(threads, device, progress or Silent(), stop)
    started = time.perf_counter()
    rng = np.random.default_rng(config.seed)
    x_ND = _sample(vectors, config.sample(vectors), rng, machine)
    levels = _one_level if config.depth == 1 else _two_levels
    centroids_KD, repaired = levels(x_ND, config, rng, machine)
    machine.progress.begin("measuring", len(x_ND), "vectors")
    figures = _figures(assign(x_ND, centroids_KD, machine))
    machine.progress.end()
    training = config.model_dump(mode="json") | {"levels": config.depth, "vectors": len(x_ND), "repaired": repaired}
    return TrainedCentroids(centroids_KD, training | figures | {"seconds": round(time.perf_counter() - started, 3)})


def check_vectors(vectors: VectorFile, config: CentroidsConfig) -> None:
    """Check that there are enough vectors.

    Raises:
        UsageError: there are not.
    """
    if len(vectors) < config.K:
        raise UsageError(
            f"{vectors.name} has {len(vectors)} vectors, too few for {config.K} centroids: "
            "give more vectors or fewer centroids"
        )


def forecast(
    vectors: VectorFile, K: int, *, threads: int | None = None, device: str = "auto", **settings: Any
) -> Forecast:
    """What `train_centroids` with the same arguments would take; nothing of the file but its shape is read.

    Raises:
        UsageError: as `train_centroids`.
    """
    config = CentroidsConfig.parse({"K": K, **settings})
    check_vectors(vectors, config)
    n, D = config.sample(vectors), vectors.dim
    pairs = n * K  # the closing measurement
    if config.depth == 1:
        pairs += config.iterations * n * K
    else:
        first = _first_level(K)
        own = min(n, first * config.per_centroid)
        pairs += config.iterations * own * first + n * first + config.refine * n * K
        pairs += config.iterations * n * K // first
    rate = _pairs_per_second(min(K, 4096), D, threads, device)
    memory = (300 << 20) + n * D * vectors.dtype.itemsize + 24 * K * D
    return Forecast(K, config.depth, len(vectors), n, 4 * K * D, memory, pairs / rate)


def _pairs_per_second(K: int, D: int, threads: int | None, device: str) -> float:
    noise = np.random.default_rng(0).standard_normal((max(K, 2048), D), dtype=np.float32)
    coarse = Coarse(noise[:K], threads=threads, device=device)
    coarse.nearest(noise[:64], 1)  # the first call also loads libraries
    started = time.perf_counter()
    coarse.nearest(noise[:2048], 1)
    return 2048 * K / (time.perf_counter() - started)


def _sample(vectors: VectorFile, n: int, rng: np.random.Generator, machine: Machine) -> Vectors:
    """Vectors [n, D] of the file's dtype: one at random out of each of n equal parts of the file."""
    edges = np.arange(n + 1, dtype=np.int64) * len(vectors) // n
    rows = rng.integers(edges[:-1], edges[1:])
    x_ND = np.empty((n, vectors.dim), vectors.dtype)
    step = max(1, _READ_BYTES // (vectors.dim * vectors.dtype.itemsize))
    machine.progress.begin("reading", n, "vectors")
    for at in range(0, n, step):
        if machine.stop():
            raise KeyboardInterrupt
        end = min(at + step, n)
        x_ND[at:end] = vectors.read(at, end) if n == len(vectors) else vectors.take(rows[at:end])
        machine.progress.advance(end - at)
    machine.progress.end()
    return x_ND


def _one_level(
    x_ND: Vectors, config: CentroidsConfig, rng: np.random.Generator, machine: Machine
) -> tuple[Floats, int]:
    _warn_of_few(len(x_ND), config.K, machine)
    machine.progress.begin("k-means", config.iterations * len(x_ND), "vectors")
    return kmeans(x_ND, config.K, config.iterations, rng, machine)


def _two_levels(
    x_ND: Vectors, config: CentroidsConfig, rng: np.random.Generator, machine: Machine
) -> tuple[Floats, int]:
    """K-means into √K clusters, k-means in each with a share of K by its size, then `refine` iterations over all."""
    _warn_of_few(len(x_ND), config.K, machine)
    N, D = x_ND.shape
    first = _first_level(config.K)
    some = np.sort(rng.choice(N, min(N, first * config.per_centroid), replace=False, shuffle=False))
    machine.progress.begin("first level", config.iterations * len(some) + N, "vectors")
    tops, _ = kmeans(x_ND[some], first, config.iterations, rng, machine)
    top = assign(x_ND, tops, machine)
    members = np.split(np.argsort(top.lists_N, kind="stable"), np.cumsum(top.counts_K)[:-1])

    centroids_KD, repaired, at = np.empty((config.K, D), np.float32), 0, 0
    machine.progress.begin("second level", config.iterations * N, "vectors")
    for rows, own in zip(members, _shares(top.counts_K, config.K), strict=True):
        if own:
            part, fixed = kmeans(x_ND[rows], int(own), config.iterations, rng, machine)
            centroids_KD[at : at + own] = part
            at, repaired = at + int(own), repaired + fixed
    machine.progress.begin("all centroids", config.refine * N, "vectors")
    centroids_KD, fixed = lloyd(x_ND, centroids_KD, config.refine, rng, machine)
    return centroids_KD, repaired + fixed


def _first_level(K: int) -> int:
    return max(1, round(math.sqrt(K)))


def _shares(counts: NDArray[np.int64], K: int) -> NDArray[np.int64]:
    """K centroids shared out among clusters by their numbers of vectors, by largest remainders; none gets more."""
    shares, rest = np.divmod(counts * K, counts.sum())
    largest = np.argsort(-rest, kind="stable")
    shares[largest[: K - int(shares.sum())]] += 1
    return shares


def _warn_of_few(N: int, K: int, machine: Machine) -> None:
    if N < _ENOUGH * K:
        machine.progress.note(
            f"only {N / K:.3g} training vectors per centroid: with fewer than {_ENOUGH} the centroids fit them "
            "better than others; give more vectors or fewer centroids"
        )


def _figures(found: Assignment) -> dict[str, Any]:
    counts = found.counts_K.astype(np.float64)
    imbalance = len(counts) * float(np.square(counts).sum()) / float(counts.sum()) ** 2
    return {"mse": found.mse, "imbalance": imbalance, "empty": int((counts == 0).sum())}
