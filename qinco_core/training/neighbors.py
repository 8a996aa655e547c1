"""Differences of near vectors, which are added to training vectors that would otherwise be learned by heart.

Shapes: N training vectors, D dimension, n of them asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qinco_core.codec.precision import Plan
from qinco_core.training.initialise import nearest
from qinco_core.vectors.base import Array

# vectors near each vector, itself among them
_NEAR = 10
# vectors for each cell, and the entries of a block of vectors or distances
_SIZE, _BLOCK = 500, 1 << 24


class Neighbors:
    """The nearest vectors of each vector in its cell, which is that of the nearest of some vectors drawn at random.

    They follow from the vectors and the seed, so that a run that goes on has the same.
    """

    def __init__(self, vectors_ND: Array, seed: int, plan: Plan) -> None:
        """Find them; vectors of any real dtype [N, D]."""
        N, D = vectors_ND.shape
        self._vectors_ND = vectors_ND
        drawn = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[: max(1, N // _SIZE)]
        centres = self._take(drawn).to(plan.device)
        blocks = torch.arange(N).split(max(1, _BLOCK // D))
        cells = torch.cat([nearest(self._take(rows).to(plan.device), centres, plan) for rows in blocks]).cpu()
        self._near = torch.empty(N, _NEAR, dtype=torch.int32)
        sizes = torch.bincount(cells, minlength=len(drawn))
        for members in cells.argsort(stable=True).split(sizes[sizes > 0].tolist()):
            self._near[members] = members[self._nearest(members, plan)].int()

    @staticmethod
    def draw(n: int, generator: torch.Generator) -> Tensor:
        """Which two of the vectors near each of n, int64 [n, 2]."""
        return torch.randint(_NEAR, (n, 2), generator=generator)

    def differences(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """For each of these vectors, int64 [n], the difference of the two drawn from those near it, float32 [n, D]."""
        a, b = self._near[rows].gather(1, drawn).T
        return self._take(a) - self._take(b)

    def _nearest(self, members: Tensor, plan: Plan) -> Tensor:
        """Positions of the nearest members of a cell to each of them, int64 [n, 10]; repeated where there are fewer."""
        x = self._take(members).to(plan.device)
        norms = x.square().sum(1)
        found = [
            torch.addmm(norms, rows, x.T, alpha=-2).topk(min(_NEAR, len(x)), largest=False).indices
            for rows in x.split(max(1, _BLOCK // len(x)))
        ]
        return torch.cat(found).cpu()[:, torch.arange(_NEAR) % min(_NEAR, len(x))]

    def _take(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._vectors_ND[rows.numpy()]).float()
