"""The training loss of method §4, with the tables of §8.1 so that gradients cost less too.

Shapes: N vectors, D dimension, M steps, K codewords, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec.network import Network, Step, product


def chain_loss(
    network: Network, x_ND: Tensor, codes_NM: Tensor, lists_N: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Σₘ ‖x̂ᵐ − x‖² over all steps, and for pre-selection Σₘ ‖x̂ᵐ⁻¹ + Gᵐ[kₘ] − x‖² with x̂ᵐ⁻¹ detached.

    Args:
        network: the model; gradients flow into its parameters through the whole chain.
        x_ND: normalised vectors.
        codes_NM: the symbols the encoder found, int64.
        lists_N: list numbers for an IVF model.
        dtype: what the products run in; sums stay float32.

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
        k = k.contiguous()
        if step.preselect is not None:
            target = (x_ND - xhat).detach()
            loss = loss + F.mse_loss(step.preselect.index_select(0, k), target, reduction="sum")
        xhat = xhat + _step_output(step, k, xhat, dtype)
        error = F.mse_loss(xhat, x_ND, reduction="sum")
        loss = loss + error
    return loss / D, error.detach() / D


def _step_output(step: Step, k_N: Tensor, xhat_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """f(C[k], x̂) of method §2, [N, D]."""
    c = step.codebook if step.w_in is None else F.linear(step.codebook, step.w_in)
    # the part of z₀ that depends on the codeword alone: K rows instead of N
    from_z, from_xhat = step.concatenation_parts
    a = c + product(c, from_z, step.b_cat)
    z = a.to(dtype).index_select(0, k_N) + product(xhat_ND.to(dtype), from_xhat)
    for up, down in zip(step.w_up.to(dtype), step.w_down.to(dtype), strict=True):
        z = z + F.linear(F.relu(F.linear(z, up)), down)
    out = (z if step.w_out is None else F.linear(z, step.w_out.to(dtype))).float()
    return out + step.codebook.index_select(0, k_N) if step.residual_output else out
