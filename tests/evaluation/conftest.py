"""The sample SIFT vectors that come with the project, as float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qinco_core.vectors import open_vectors

_DATA = Path(__file__).parents[2] / "examples" / "data"


def _read(name: str, count: int) -> npt.NDArray[np.float32]:
    with open_vectors(_DATA / name) as file:
        return file.read(0, min(count, len(file))).astype(np.float32)


@pytest.fixture(scope="session")
def learn() -> npt.NDArray[np.float32]:
    return _read("sift_learn.bvecs", 2000)


@pytest.fixture(scope="session")
def base() -> npt.NDArray[np.float32]:
    return _read("sift_base.u8bin", 1 << 40)


@pytest.fixture(scope="session")
def queries() -> npt.NDArray[np.float32]:
    return _read("sift_query.fvecs", 200)


@pytest.fixture(scope="session")
def truth() -> npt.NDArray[np.int64]:
    with open_vectors(_DATA / "sift_groundtruth.ivecs") as file:
        return file.read(0, 200).astype(np.int64)
