"""Reconstruction error and recall.

Symbols: N vectors of dimension D; Q queries with K results and T true neighbours each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from qinco_core.errors import DimensionError, UsageError

_ENTRIES = 1 << 20  # entries converted to float64 at a time


class ErrorSum:
    """The reconstruction error of vectors that arrive block by block, accumulated in float64.

    Attributes:
        count: vectors added so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._error = 0.0
        self._deviation = 0.0  # sum of squared deviations from the mean
        self._mean: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, x_ND: npt.NDArray[np.generic], xhat_ND: npt.NDArray[np.generic]) -> None:
        """Account for vectors and their reconstructions, both [N, D] of any real dtype.

        Raises:
            DimensionError: the shapes differ from each other, or D from earlier blocks.
        """
        if x_ND.ndim != 2 or x_ND.shape != xhat_ND.shape:
            raise DimensionError(f"vectors {x_ND.shape} and reconstructions {xhat_ND.shape} must have one shape [N, D]")
        D = x_ND.shape[1]
        if self.count and len(self._mean) != D:
            raise DimensionError(f"vectors of dimension {D} after vectors of dimension {len(self._mean)}")
        rows = max(1, _ENTRIES // max(1, D))
        for start in range(0, len(x_ND), rows):
            x = x_ND[start : start + rows].astype(np.float64)
            self._error += float(np.square(x - xhat_ND[start : start + rows].astype(np.float64)).sum())
            self._merge(x)

    def _merge(self, x_ND: npt.NDArray[np.float64]) -> None:
        # Chan, Golub, LeVeque 1983: stable where the sum of squares minus the squared sum is not
        n, mean = len(x_ND), x_ND.mean(axis=0)
        if self.count == 0:
            self._mean = np.zeros_like(mean)
        shift = mean - self._mean
        total = self.count + n
        self._deviation += float(np.square(x_ND - mean).sum() + shift @ shift * (self.count * n / total))
        self._mean = self._mean + shift * (n / total)
        self.count = total

    @property
    def mse(self) -> float:
        """Mean over vectors of the squared error summed over dimensions (method §6, Metrics).

        Raises:
            UsageError: no vector was added.
        """
        if self.count == 0:
            raise UsageError("no vectors to measure an error on; add some first")
        return self._error / self.count

    @property
    def relative(self) -> float:
        """The squared error as a share of the vectors' variance: 1 is no better than their mean.

        Infinity where the vectors are all equal and the reconstructions are not.

        Raises:
            UsageError: no vector was added.
        """
        if self.mse == 0:
            return 0.0
        return self._error / self._deviation if self._deviation else float("inf")


def check_id_type(dtype: np.dtype[Any], name: str) -> None:
    """Check that ground truth can be ids.

    Raises:
        UsageError: it is of another type; bytes are vectors.
    """
    if dtype.kind not in "iu" or dtype.itemsize < 4:
        raise UsageError(f"{name} holds {dtype}; ground truth is ids, int32 or int64")


def recall_at(
    found_QK: npt.NDArray[np.integer],
    truth_QT: npt.NDArray[np.integer],
    ks: Iterable[int] = (1, 10, 100),
) -> dict[int, float]:
    """R@k: the share of queries whose true nearest neighbour is among their first k results.

    The true neighbour is the first column of the ground truth: where several vectors are equally near,
    the ground truth's choice is the one that counts.

    Args:
        found_QK: ids of the results, nearest first, -1 where one is missing.
        truth_QT: ids of the true neighbours, nearest first.
        ks: the k to measure; those above K cannot be known and are left out.

    Raises:
        DimensionError: the two speak of different numbers of queries, or are not matrices.
        UsageError: there are no queries, or a k is below 1.
    """
    if found_QK.ndim != 2 or truth_QT.ndim != 2 or len(found_QK) != len(truth_QT):
        raise DimensionError(
            f"results {found_QK.shape} and ground truth {truth_QT.shape} must be [queries, ids], "
            "one row a query in both"
        )
    ks = tuple(ks)
    if min(ks, default=1) < 1:
        raise UsageError(f"recall at {min(ks)} results has no meaning; use k of 1 or more")
    if len(found_QK) == 0 or truth_QT.shape[1] == 0:
        raise UsageError("recall needs at least one query and one true neighbour")
    hit_QK = (found_QK == truth_QT[:, :1]) & (found_QK >= 0)
    return {k: float(hit_QK[:, :k].any(axis=1).mean()) for k in ks if k <= found_QK.shape[1]}
