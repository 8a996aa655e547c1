"""What a search finds, and what it is asked.

Shapes: nq queries, D dimension, k results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.errors import DimensionError, UsageError, VectorFileError


@dataclass(frozen=True)
class Stage:
    """A stage of the cascade.

    Attributes:
        name: "scan", "pairwise", "qinco" or "exact".
        seconds: spent in it.
        ids: the ranking after it, int64 [nq, k], -1 where a result is missing.
    """

    name: str
    seconds: float
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Results of a search.

    Attributes:
        distances: float32 [nq, k]: squared and ascending for "l2", similarities and descending for "ip" and
            "cosine"; inf or -inf where a result is missing.
        ids: int64 [nq, k], -1 there.
        stages: in the order they ran.
    """

    distances: NDArray[np.float32]
    ids: NDArray[np.int64]
    stages: tuple[Stage, ...]


def check_queries(xq: NDArray[Any], k: int, *, dim: int, count: int) -> NDArray[np.float32]:
    """The queries as float32 [nq, D], in C order.

    Raises:
        DimensionError: they are not [nq, dim].
        UsageError: k is below 1 or above `count`, the number of vectors.
        VectorFileError: one holds NaN or infinity.
    """
    if xq.ndim != 2 or xq.shape[1] != dim:
        raise DimensionError(f"queries have shape {xq.shape}, but the vectors searched have dimension {dim}")
    if not 1 <= k <= count:
        raise UsageError(f"k = {k}, but {count} vectors are searched: ask for 1 to {count}")
    queries = np.ascontiguousarray(xq, dtype=np.float32)
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise VectorFileError(f"query {row} (counted from 0) holds NaN or infinity; remove it and search again")
    return queries
