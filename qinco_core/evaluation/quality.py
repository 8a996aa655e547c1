"""How good a codec is on given vectors: errors, rates, recall.

Shapes: N vectors, D dimension, M symbols, Q queries, T true neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import UsageError
from qinco_core.evaluation.metrics import ErrorSum, check_id_type, recall_at
from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.progress import Progress
from qinco_core.vectors import VectorFile

Array = NDArray[Any]
_ROWS = 4096


class Coder(Protocol):
    """What evaluation asks of a codec."""

    config: ModelConfig

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of a code, with its list number if it has one."""

    def encode(self, vectors: Array, *, search: EncodeConfig | None = None) -> Array:
        """Symbols of vectors [N, D]: [N, M], or with an IVF [N, 1 + M], list number first."""

    def decode(self, codes: Array, *, steps: int | None = None) -> Array:
        """Vectors float32 [N, D] of symbols."""


@dataclass(frozen=True)
class Quality:
    """The figures of one quantizer on one set of vectors.

    Attributes:
        name: of the quantizer.
        bytes: of a code, with its list number if it has one.
        mse: mean over vectors of the squared error, summed over dimensions.
        relative_mse: mse over the same of the mean vector.
        prefix_mse: mse after 1, 2, ... symbols.
        encode_rate, decode_rate: vectors per second; None where nothing was encoded.
        recall: R@k by k.
        train_seconds: of baselines.
        note: what is particular.
    """

    name: str
    bytes: float
    mse: float
    relative_mse: float
    prefix_mse: list[float] = field(default_factory=list)
    encode_rate: float | None = None
    decode_rate: float | None = None
    recall: dict[int, float] = field(default_factory=dict)
    train_seconds: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Queries:
    """Queries [Q, D] with the ids of their true neighbours [Q, T]."""

    xq: Array
    truth: Array

    def recall(self, blocks: Iterator[Array]) -> dict[int, float]:
        """R@1, 10, 100 of an exhaustive search through decoded vectors."""
        found, _ = exact_neighbors(blocks, self.xq, 100)
        return recall_at(found, self.truth)


def true_neighbors(vectors: VectorFile, xq: Array, k: int = 100) -> Array:
    """Exact nearest neighbours (L2) of the queries among the vectors, int64 [Q, k]."""
    return exact_neighbors(vectors.batches(_ROWS), xq, k)[0]


def check_truth(truth: Array, queries: int, vectors: VectorFile) -> None:
    """Check that ground truth is of these queries and vectors.

    Raises:
        UsageError: no ids, another number of rows, or ids that are not there.
    """
    check_id_type(truth.dtype, "the ground truth")
    if len(truth) != queries:
        raise UsageError(f"ground truth has {len(truth)} rows for {queries} queries: they must be of the same file")
    if truth[:, 0].max() >= len(vectors):
        raise UsageError(
            f"ground truth names vector {truth[:, 0].max()}, but only {len(vectors)} of {vectors.name} are "
            "looked at: leave --groundtruth out, and it is computed"
        )


def measure(
    codec: Coder,
    vectors: VectorFile,
    *,
    name: str,
    search: EncodeConfig | None,
    progress: Progress,
    codes: Iterator[Array] | None = None,
    queries: Queries | None = None,
) -> Quality:
    """Encode and decode vectors, and compare.

    Args:
        codec: the model.
        vectors: what to encode, or what the codes were made from.
        name: for the figures.
        search: A, B, T; None: the codec's own.
        progress: told of every batch.
        codes: symbols by batches, as `Coder.encode` gives them, in place of encoding.
        queries: for recall.

    Raises:
        UsageError: there are not as many codes as vectors.
    """
    M = codec.config.M
    errors = [ErrorSum() for _ in range(M)]
    seconds = {"encode": 0.0, "decode": 0.0}
    kept: list[Array] = []
    progress.begin("evaluating", len(vectors), "vectors")
    codec.decode(codec.encode(vectors.read(0, min(len(vectors), 64)), search=search))  # rates are of warm engines
    for v, found in _with_codes(codec, vectors, codes, search, seconds):
        started = time.perf_counter()
        decoded = codec.decode(found)
        seconds["decode"] += time.perf_counter() - started
        for m in range(1, M):
            errors[m - 1].add(v, codec.decode(found, steps=m))
        errors[-1].add(v, decoded)
        kept.append(found)
        progress.advance(len(v))
    progress.end()
    return Quality(
        name=name,
        bytes=codec.bytes_per_vector,
        mse=errors[-1].mse,
        relative_mse=errors[-1].relative,
        prefix_mse=[error.mse for error in errors],
        encode_rate=len(vectors) / seconds["encode"] if codes is None else None,
        decode_rate=len(vectors) / seconds["decode"],
        recall=queries.recall(codec.decode(part) for part in kept) if queries else {},
    )


def _with_codes(
    codec: Coder,
    vectors: VectorFile,
    codes: Iterator[Array] | None,
    search: EncodeConfig | None,
    seconds: dict[str, float],
) -> Iterator[tuple[Array, Array]]:
    """Batches of vectors with their symbols."""
    if codes is None:
        for v in vectors.batches(_ROWS):
            started = time.perf_counter()
            found = codec.encode(v, search=search)
            seconds["encode"] += time.perf_counter() - started
            yield v, found
        return
    row = 0
    for found in codes:
        if row + len(found) > len(vectors):
            row += len(found)
            break
        yield vectors.read(row, row + len(found)), found
        row += len(found)
    if row != len(vectors):
        raise UsageError(f"there are {row} or more codes, but {len(vectors)} vectors in {vectors.name}")


def measure_baseline(
    name: str, xt: Array, vectors: VectorFile, code_bytes: int, *, seed: int, queries: Queries | None
) -> Quality:
    """Train a Faiss quantizer of `code_bytes` bytes on xt [N, D] and measure it on the vectors."""
    from qinco_core.evaluation.baselines import run_baseline

    xb = vectors.read(0, len(vectors)).astype(np.float32)
    result = run_baseline(name, xt, xb, code_bytes, seed=seed)
    recall = queries.recall(iter(np.array_split(result.decoded, -(-len(xb) // _ROWS)))) if queries else {}
    return Quality(
        name=name,
        bytes=result.bytes,
        mse=result.mse,
        relative_mse=result.relative_mse,
        encode_rate=result.encode_rate,
        decode_rate=result.decode_rate,
        recall=recall,
        train_seconds=result.train_seconds,
        note=result.note,
    )
