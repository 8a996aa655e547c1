"""Gradients of a batch, shared by threads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec.network import Network, Step, product
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import run_parallel
from qinco_core.training.chain import StepWeights, chain_gradient

# rows that go through the chain together: what they leave behind on a CPU is to stay in its caches
_ROWS = {"cpu": 512, "cuda": 1 << 16}


class Gradients:
    """The gradients of a network's parameters, in memory that is used from batch to batch.

    Each thread takes a share of the rows and adds to sums of its own, which are added in order: the result depends on
    the number of threads but not on their timing.
    """

    def __init__(self, network: Network, plan: Plan) -> None:
        """Give the parameters of `network` gradients of zero.

        Args:
            network: the model, on the plan's device.
            plan: device, precision, threads.
        """
        self._network, self._plan = network, plan
        config = network.config
        shares = plan.threads if plan.device.type == "cpu" else 1
        # networks of zeros hold the sums; centroids have none
        like = config.model_copy(update={"ivf_K": min(1, config.ivf_K)})
        self._sums = [Network(like).requires_grad_(False).to(plan.device) for _ in range(shares)]
        for parameter, total in zip(network.parameters(), self._sums[0].parameters(), strict=True):
            parameter.grad = total
        tables = [torch.zeros(config.K, config.E, device=plan.device) for _ in range(shares * len(network.steps))]
        self._shares = [
            [StepWeights.of(step, table) for step, table in zip(_steps(total), tables[i::shares], strict=True)]
            for i, total in enumerate(self._sums)
        ]

    def zero(self) -> None:
        """Forget what was added."""
        for total in self._sums[0].parameters():
            total.zero_()

    def add(self, batch: tuple[Tensor, Tensor, Tensor | None], scale: float) -> tuple[float, float]:
        """Add the gradients of scale × `loss.chain_loss`.

        Args:
            batch: normalised vectors [N, D], symbols int64 [N, M], list numbers int64 [N] or None.
            scale: 1 / (vectors of the optimizer step).

        Returns:
            The loss and the final step's error of this batch, scaled.
        """
        x, codes, lists = batch
        network, plan = self._network, self._plan
        if lists is not None:
            codes = torch.cat([lists[:, None], codes], dim=1)
        steps = _steps(network)
        tables = run_parallel(_table, steps, plan)
        with torch.no_grad():
            weights = [StepWeights.of(s, table).to(plan.dtype) for s, table in zip(steps, tables, strict=True)]
        blocks = list(zip(x.split(_ROWS[plan.device.type]), codes.split(_ROWS[plan.device.type]), strict=True))
        shares = [i for i in range(len(self._shares)) if i < len(blocks)]

        @torch.no_grad()
        def share(i: int) -> Tensor:
            total, sums = self._sums[i], self._shares[i]
            if i:
                for parameter in total.parameters():
                    parameter.zero_()
            for gradient in sums:
                gradient.table.zero_()
            if network.codebook0 is None:
                start = network.centroids, None
            else:
                start = network.codebook0, total.codebook0
            losses = [chain_gradient(weights, sums, start, b, scale) for b in blocks[i :: len(shares)]]
            return torch.stack(losses).sum(0)

        @torch.no_grad()
        def join(tensors: tuple[Tensor, ...]) -> None:
            for other in tensors[1:]:
                tensors[0].add_(other)

        losses = run_parallel(share, shares, plan)
        parts = [[*self._sums[i].parameters(), *(gradient.table for gradient in self._shares[i])] for i in shares]
        run_parallel(join, list(zip(*parts, strict=True)), plan)

        # autograd takes the tables' gradients on to the parameters they are made of
        def take_on(m: int) -> None:
            tables[m].backward(self._shares[0][m].table)

        run_parallel(take_on, range(len(tables)), plan)
        loss, error = sum(losses).tolist()
        return loss, error


def _steps(network: Network) -> list[Step]:
    return [step for step in network.steps if isinstance(step, Step)]


def _table(step: Step) -> Tensor:
    """The table of `chain.StepWeights`, with what autograd needs to know of it."""
    with torch.enable_grad():
        z = step.codebook if step.w_in is None else F.linear(step.codebook, step.w_in)
        return z + product(z, step.concatenation_parts[0], step.b_cat)
