"""The training loss of method §4 as it stands there; `chain` is held to it by tests.

Shapes: N vectors, D dimension, M steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec.network import Network, Step


def chain_loss(network: Network, x_ND: Tensor, codes_NM: Tensor, lists_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Σₘ ‖x̂ᵐ − x‖² over all steps, and for pre-selection Σₘ ‖x̂ᵐ⁻¹ + Gᵐ[kₘ] − x‖² with x̂ᵐ⁻¹ detached.

    Args:
        network: the model; gradients flow into its parameters through the whole chain.
        x_ND: normalised vectors.
        codes_NM: the symbols the encoder found, int64.
        lists_N: list numbers for an IVF model.

    Returns:
        The loss and, detached, the last step's part of it: both summed over vectors and averaged over
        dimensions.
    """
    D = x_ND.shape[1]
    xhat, used = network.start(codes_NM, lists_N)
    error = F.mse_loss(xhat, x_ND, reduction="sum")
    loss = error if used else torch.zeros_like(error)
    for step, k in zip(network.steps, codes_NM[:, used:].T, strict=True):
        assert isinstance(step, Step)
        if step.preselect is not None:
            loss = loss + F.mse_loss(step.preselect[k], (x_ND - xhat).detach(), reduction="sum")
        xhat = xhat + step(step.codebook[k], xhat)
        error = F.mse_loss(xhat, x_ND, reduction="sum")
        loss = loss + error
    return loss / D, error.detach() / D
