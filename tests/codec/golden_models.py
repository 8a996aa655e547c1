"""Small models trained and run with another implementation, with what it made of 1,000 vectors.

The checkpoints are in that implementation's published format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.network import Network
from qinco_core.config import EncodeConfig
from qinco_core.interop.checkpoint import read_checkpoint

FOLDER = Path(__file__).parent / "golden"
NAMES = ("q2", "q2_noA", "q1", "ivf_q2")


@dataclass(frozen=True)
class Golden:
    network: Network
    search: EncodeConfig
    vectors: NDArray[np.float32]
    codes: NDArray[np.int32]
    lists: NDArray[np.int32] | None
    decoded: NDArray[np.float32]
    mse: float
    prefix_mse: NDArray[np.float64]


def load(name: str) -> Golden:
    model = read_checkpoint(FOLDER / f"{name}.pt")
    expected = np.load(FOLDER / f"{name}.expected.npz")
    codes, ivf = expected["codes"], model.config.ivf_K > 0
    return Golden(
        network=Network.from_arrays(model.config, model.tensors),
        search=model.search,
        vectors=np.load(FOLDER / "vectors48.npy"),
        codes=codes[:, 1:] if ivf else codes,
        lists=codes[:, 0] if ivf else None,
        decoded=expected["decoded"],
        mse=float(expected["mse"]),
        prefix_mse=expected["prefix_mse"],
    )
