"""Gradients of a batch, shared by threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qinco_core.codec.network import Network
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import run_parallel
from qinco_core.training.loss import chain_loss

# below this many rows a thread's share is not worth its own graph
_SHARD_ROWS = 256


def accumulate_gradients(
    network: Network,
    parameters: Sequence[nn.Parameter],
    batch: tuple[Tensor, Tensor, Tensor | None],
    scale: float,
    plan: Plan,
) -> tuple[float, float]:
    """Add the gradients of scale × loss to `parameters`.

    Each thread takes a share of the rows through a graph of its own, and the shares are added in order:
    the result depends on the number of threads but not on their timing.

    Args:
        network: the model.
        parameters: those of its parameters that are trained.
        batch: normalised vectors [N, D], symbols int64 [N, M], list numbers int64 [N] or None.
        scale: 1 / (vectors of the optimizer step).
        plan: device, precision, threads.

    Returns:
        The loss and the final step's error of this batch, scaled.
    """
    x, codes, lists = batch
    shards = max(1, min(plan.threads if plan.device.type == "cpu" else 1, len(x) // _SHARD_ROWS))
    rows = torch.arange(len(x)).tensor_split(shards)

    def shard_gradients(part: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        shard_lists = None if lists is None else lists[part]
        loss, error = chain_loss(network, x[part], codes[part], shard_lists, plan.dtype)
        loss = loss * scale
        return loss.detach(), error * scale, torch.autograd.grad(loss, parameters, allow_unused=True)

    losses, errors, gradients = zip(*run_parallel(shard_gradients, rows, plan), strict=True)
    for parameter, *shares in zip(parameters, *gradients, strict=True):
        for share in shares:
            if share is not None:
                parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)
    return float(sum(losses)), float(sum(errors))
