"""The frozen coarse step of an IVF model: centroids from elsewhere (method §2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qinco_core.errors import DimensionError, UsageError
from qinco_core.store import Parent, load_centroids

Centroids = NDArray[Any] | str | Path


@dataclass(frozen=True)
class CoarseCodebook:
    """Centroids float32 [ivf_K, D], not normalised, and what they are as an artifact."""

    centroids_KD: Tensor
    parent: Parent

    @property
    def ivf_K(self) -> int:
        """Number of lists."""
        return len(self.centroids_KD)


def coarse_codebook(ivf: Centroids, D: int) -> CoarseCodebook:
    """Read coarse centroids, or take an array of them; both have the fingerprint of the artifact.

    Args:
        ivf: a file of centroids (an artifact or .npy), or an array [ivf_K, D].
        D: dimension of the vectors.

    Raises:
        InputNotFoundError, ArtifactError, VectorFileError: the file is not there or damaged.
        DimensionError: the centroids are not of dimension D.
    """
    if isinstance(ivf, np.ndarray):
        if ivf.ndim != 2 or ivf.shape[1] != D:
            raise DimensionError(f"centroids have shape {ivf.shape}, not [ivf_K, {D}]")
        if not np.isfinite(ivf).all():
            raise UsageError("the centroids hold NaN or infinity")
        with TemporaryDirectory(prefix="qinco-") as folder:
            path = Path(folder) / "centroids.npy"
            np.save(path, ivf.astype(np.float32))
            return coarse_codebook(path, D)
    stored = load_centroids(ivf)
    if stored.centroids.shape[1] != D:
        raise DimensionError(
            f"{stored.path} has centroids of dimension {stored.centroids.shape[1]}, but the training vectors have {D}: "
            "make centroids of these vectors with qinco centroids"
        )
    return CoarseCodebook(torch.from_numpy(stored.centroids), Parent(stored.header.kind, stored.header.fingerprint))
