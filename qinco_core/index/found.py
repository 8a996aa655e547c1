"""What a search finds, and what it is asked.

Shapes: nq queries, D dimension, k results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qinco_core.errors import DimensionError, UsageError, VectorFileError
from qinco_core.index.kernels import Chosen


@dataclass(frozen=True)
class Stage:
    """A stage of the cascade.

    Attributes:
        name: "scan", "pairwise", "qinco" or "exact".
        seconds: spent in it.
        ids: the ranking after it, int64 [nq, k], -1 where a result is missing; empty [0, k] if nobody asked for it.
    """

    name: str
    seconds: float
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Results of a search.

    Attributes:
        distances: float32 [nq, k]: squared and ascending for "l2", similarities and descending for "ip" and
            "cosine", as far as the last stage scored them, then likewise those of the stage before; inf or -inf
            where a result is missing.
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
    if count == 0:
        raise UsageError("there are no vectors to search: add some with qinco index --add")
    if not 1 <= k <= count:
        raise UsageError(f"k = {k}, but {count} vectors are searched: ask for 1 to {count}")
    # writable too: torch and numba treat memory that is not as something else
    queries = np.require(xq, np.float32, ["C_CONTIGUOUS", "WRITEABLE"])
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise VectorFileError(f"query {row} (counted from 0) holds NaN or infinity; remove it and search again")
    return queries


def chosen_ids(allow: ArrayLike | Chosen | None, deny: ArrayLike | None) -> Chosen:
    """What `allow` and `deny` ask for; with both, what is allowed and not denied.

    Long lists are sorted here, so that many searches for the same ids may do it once and give the result as `allow`.

    Raises:
        UsageError: one is no row of integers.
    """
    if isinstance(allow, Chosen):
        return allow
    allowed = None if allow is None else sorted_ids(allow, "allow")
    denied = None if deny is None else sorted_ids(deny, "deny")
    if allowed is None:
        return Chosen(0, np.empty(0, np.int64)) if denied is None else Chosen(2, denied)
    return Chosen(1, allowed if denied is None else np.setdiff1d(allowed, denied))


def is_chosen(ids: NDArray[Any], chosen: Chosen) -> NDArray[np.bool_]:
    """Which ids may be found."""
    return np.ones(len(ids), np.bool_) if chosen.mode == 0 else contains(chosen.ids, ids) == (chosen.mode == 1)


def contains(members: NDArray[np.int64], ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Which ids are among the members, which are sorted."""
    if not len(members):
        return np.zeros(len(ids), np.bool_)
    place = np.searchsorted(members, ids)
    return np.asarray(members[np.minimum(place, len(members) - 1)] == ids)


def sorted_ids(given: ArrayLike, purpose: str) -> NDArray[np.int64]:
    """Ids in ascending order, each once.

    Raises:
        UsageError: they are no row of integers, or one cannot be an id; `purpose` says what they are for.
    """
    ids = np.asarray(given)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise UsageError(f"ids to {purpose} are integers in one dimension, not {ids.dtype} {ids.shape}")
    ids = np.unique(ids.astype(np.int64))
    if ids.size and ids[0] < 0:
        raise UsageError(f"ids to {purpose} are 0 to 2^63 - 1, and {ids[0]} is among them")
    return ids
