"""Gradients of a batch, shared by threads."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qinco_core.codec.network import Network, Step
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import run_parallel
from qinco_core.training.chain import Chain, StepWeights, add_table_gradient, table_of

# rows that go through the chain together, at most: on a CPU, what they leave behind is to stay in its caches
_MOST = {"cpu": 1024, "cuda": 1 << 16}
# below this many rows a thread's share is not worth its own chain
_LEAST = 256


class Gradients:
    """The gradients of a network's parameters, in memory that is used from batch to batch.

    Each thread takes a share of the rows and adds to sums of its own, which are added in order: the result depends on
    the number of threads but not on their timing.

    Attributes:
        all: every gradient, one after the other in one piece of memory.
    """

    def __init__(self, network: Network, plan: Plan) -> None:
        """Give the parameters of `network` gradients of zero.

        Args:
            network: the model, on the plan's device, where it must stay.
            plan: device, precision, threads.
        """
        self._network, self._plan = network, plan
        self._steps = [step for step in network.steps if isinstance(step, Step)]
        shares = plan.threads if plan.device.type == "cpu" else 1
        self._sums = [_Sums(network, plan.device) for _ in range(shares)]
        self.all = self._sums[0].memory
        for parameter, total in zip(network.parameters(), self._sums[0].network.parameters(), strict=True):
            parameter.grad = total

    def zero(self) -> None:
        """Forget what was added."""
        self.all.zero_()

    @torch.no_grad()
    def add(self, batch: tuple[Tensor, Tensor, Tensor | None], scale: float) -> Tensor:
        """Add the gradients of scale × `loss.chain_loss`.

        Args:
            batch: normalised vectors [N, D], symbols int64 [N, M], list numbers int64 [N] or None.
            scale: 1 / (vectors of the optimizer step).

        Returns:
            The loss and the final step's error of this batch, scaled [2].
        """
        x, codes, lists = batch
        if lists is not None:
            codes = torch.cat([lists[:, None], codes], dim=1)
        sums = self._sums[: max(1, len(x) // _LEAST)]
        rows = min(_MOST[self._plan.device.type], -(-len(x) // len(sums)))
        blocks = list(zip(x.split(rows), codes.split(rows), strict=True))
        weights = run_parallel(self._weights, self._steps, self._plan)
        # the first share's sums of what parameters have gradients of are those gradients: they go on
        for i, share in enumerate(sums):
            _zero(share.tensors if i else share.tables)
        losses = run_parallel(
            lambda i: sums[i].add(self._network, weights, blocks[i :: len(sums)], scale),
            range(len(sums)),
            self._plan,
        )
        run_parallel(lambda part: _join(sums, part), range(len(sums)), self._plan)
        ends = list(zip(self._steps, sums[0].steps, sums[0].tables, strict=True))
        run_parallel(lambda end: add_table_gradient(*end), ends, self._plan)
        return torch.stack(losses).sum(0)

    @torch.no_grad()
    def _weights(self, step: Step) -> StepWeights:
        return StepWeights.of(step, table_of(step)).to(self._plan.dtype)


class _Sums:
    """One share's sums of gradients.

    Attributes:
        network: zeros of the network's shapes, but for centroids, that gradients are added to.
        memory: what its parameters lie in, one after the other.
        steps: its steps.
        tables: the same for the steps' tables.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        config = network.config
        like = config.model_copy(update={"ivf_K": min(1, config.ivf_K)})
        self.network = Network(like).requires_grad_(False).to(device)
        self.memory = _in_one(list(self.network.parameters()))
        self.tables = [torch.zeros(config.K, config.E, device=device) for _ in network.steps]
        self.steps = [step for step in self.network.steps if isinstance(step, Step)]
        self._weights = [StepWeights.of(step, table) for step, table in zip(self.steps, self.tables, strict=True)]
        self._chains: dict[int, Chain] = {}

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.tables]

    @torch.no_grad()
    def add(
        self, network: Network, weights: list[StepWeights], blocks: list[tuple[Tensor, Tensor]], scale: float
    ) -> Tensor:
        """Add the gradients of blocks of rows; returns the loss and the last step's part of it [2]."""
        book = network.centroids if network.codebook0 is None else network.codebook0
        assert book is not None
        losses = []
        for x, codes in blocks:
            if len(x) not in self._chains:
                N, D = x.shape
                self._chains[N] = Chain(weights, N, D, x.device)
            start = book, self.network.codebook0
            losses.append(self._chains[len(x)].gradient(weights, self._weights, start, (x, codes), scale))
        return torch.stack(losses).sum(0)


def _in_one(parameters: list[nn.Parameter]) -> Tensor:
    """Move parameters into one piece of memory, of zeros; returns it."""
    sizes = [parameter.numel() for parameter in parameters]
    memory = torch.zeros(sum(sizes), device=parameters[0].device)
    for parameter, part in zip(parameters, memory.split(sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    return memory


def _zero(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        tensor.zero_()


@torch.no_grad()
def _join(sums: list[_Sums], part: int) -> None:
    """Add what the other shares have to the first, of every n-th tensor for n shares."""
    total, *others = (share.tensors[part :: len(sums)] for share in sums)
    for other in others:
        torch._foreach_add_(total, other)
