"""The sample of real vectors, and one model trained on it for all tests that need trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from qinco_core.api import Codec
from qinco_core.vectors import open_vectors

DATA = Path(__file__).parent.parent / "examples" / "data"


@pytest.fixture(scope="session")
def sift_learn() -> Path:
    return DATA / "sift_learn.bvecs"


@pytest.fixture(scope="session")
def trained(sift_learn: Path) -> Codec:
    """A qinco2-XS with 8 symbols of 64 codewords, after a few seconds of training."""
    with open_vectors(sift_learn, limit=22_000) as vectors:
        return Codec.train(
            vectors,
            preset_name="qinco2-XS",
            epochs=8,
            changes={"K": 64, "A": 8, "B": 8},
            training={"val": 2000, "kmeans_iterations": 5},
        )
