"""Small models trained and run with another implementation, with what it made of 1,000 vectors.

The checkpoints are in that implementation's published format; this reads the few names these tests need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.codec.network import Network
from qinco_core.config import EncodeConfig, ModelConfig

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
    saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    given, state = saved["parameters"], saved["model"]
    D = saved["data_dim"]
    config = ModelConfig(
        rules="qinco1" if given.get("qinco1_mode") else "qinco2",
        D=D,
        M=given["M"],
        K=given["K"],
        L=given["L"],
        E=given.get("de") or D,
        H=given["dh"],
        preselect=given["A"] > 0,
        ivf_K=given.get("ivf_K") or 0 if given.get("ivf_in_use") else 0,
    )
    expected = np.load(FOLDER / f"{name}.expected.npz")
    codes = expected["codes"]
    return Golden(
        network=Network.from_arrays(config, arrays(state, config)),
        search=EncodeConfig(A=given["A"], B=given["B"]),
        vectors=np.load(FOLDER / "vectors48.npy"),
        codes=codes[:, 1:] if config.ivf_K else codes,
        lists=codes[:, 0] if config.ivf_K else None,
        decoded=expected["decoded"],
        mse=float(expected["mse"]),
        prefix_mse=expected["prefix_mse"],
    )


def arrays(state: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """The published state dict under the names of `Network`."""
    out = {"mean": state["data_mean"], "std": state["data_std"].reshape(())}
    if config.ivf_K:
        out["centroids"] = state["steps.0.ivf_centroids.weight"]
    else:
        out["codebook0"] = state["steps.0.codebook.weight"]
    renamed = {
        "codebook": "codebook.weight",
        "preselect": "substep.codebook.weight",
        "w_in": "in_proj.weight",
        "w_out": "out_proj.weight",
        "w_cat": "concat.mlp.weight",
        "b_cat": "concat.mlp.bias",
    }
    for m in range(config.M if config.ivf_K else config.M - 1):
        here, there = f"steps.{m}.", f"steps.{m + 1}."  # theirs counts step 0
        for ours, theirs in renamed.items():
            if there + theirs in state:
                out[here + ours] = state[there + theirs]
        for ours, theirs in (("w_up", "up_proj"), ("w_down", "down_proj")):
            blocks = [state[f"{there}residual_blocks.{i}.{theirs}.weight"] for i in range(config.L)]
            out[here + ours] = torch.stack(blocks)
    return {name: tensor.float().numpy() for name, tensor in out.items()}
