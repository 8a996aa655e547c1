"""Work recorded on a GPU and replayed; on a CPU it is called as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qinco_core.codec.graph import Graphed

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_counts_once(device: str) -> None:
    """Whether it runs as it is, is being recorded or replayed; for inputs of several shapes, and with one missing."""
    total = torch.zeros(3, device=device)

    def work(x: Tensor, more: Tensor | None) -> Tensor:
        total.add_(x.sum(0) if more is None else x.sum(0) + more)
        return x * 2

    graphed = Graphed(work, torch.device(device))
    wanted = torch.zeros(3)
    for call in range(30):
        x, more = torch.full((1 + call % 3, 3), float(call)), torch.ones(3) if call % 2 else None
        wanted += x.sum(0) if more is None else x.sum(0) + more
        found = graphed(x.to(device), None if more is None else more.to(device))
        assert torch.equal(found.cpu(), 2 * x)
        assert torch.equal(total.cpu(), wanted)
