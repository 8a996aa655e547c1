"""Codewords that no vector uses, put to work again (method §4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qinco_core.codec.network import Network, Step

# of the codebook's standard deviation: enough to part the twins, too little to lose their vectors
_SPLIT = 0.05


@torch.no_grad()
def replace_unused(
    network: Network, optimizer: torch.optim.Optimizer, usage_MK: Tensor, generator: torch.Generator
) -> None:
    """Replace each unused codeword by a noisy twin of one drawn by how often it is used.

    Args:
        network: changed in place; where a codeword of C moves, its partner in G moves too.
        optimizer: forgets its moments of the codewords that moved.
        usage_MK: how often each codeword was chosen, int64 [M, K], on the CPU.
        generator: the source of randomness, on the CPU.
    """
    books: list[list[nn.Parameter]] = [] if network.codebook0 is None else [[network.codebook0]]
    for step in network.steps:
        assert isinstance(step, Step)
        books.append([step.codebook] if step.preselect is None else [step.codebook, step.preselect])
    for used_K, codebooks in zip(usage_MK, books, strict=True):
        unused = (used_K == 0).nonzero()[:, 0]
        if not len(unused) or not used_K.any():
            continue
        twins = torch.multinomial(used_K.double(), len(unused), replacement=True, generator=generator)
        for book in codebooks:
            noise = torch.randn(len(unused), book.shape[1], generator=generator).to(book)
            book[unused] = book[twins] + _SPLIT * book.std() * noise
            for name, moment in optimizer.state.get(book, {}).items():
                if name != "step":
                    moment[unused] = 0
