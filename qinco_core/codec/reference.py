"""The encoder as method §3 states it: short, plain and slow. The engine is held to it by tests.

Shapes: N vectors, D dimension, B beams, A candidates per beam, C = B·A candidates in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qinco_core.codec.network import Step
from qinco_core.codec.product import AnyNetwork, ProductNetwork
from qinco_core.config import EncodeConfig


@torch.no_grad()
def encode(network: AnyNetwork, x_ND: Tensor, search: EncodeConfig) -> tuple[Tensor, Tensor | None]:
    """Encode normalised vectors by pre-selection and beam search.

    Args:
        network: the model; a product model is encoded group by group.
        x_ND: normalised vectors, float32 [N, D].
        search: A and B; T is not used here.

    Returns:
        Symbols int64 [N, M], and list numbers int64 [N] for an IVF model (else None).
    """
    if isinstance(network, ProductNetwork):
        xs = zip(network.networks, x_ND.split(network.config.part.D, dim=1), strict=True)
        return torch.stack([encode(part, x, search)[0] for part, x in xs], dim=2).flatten(1), None
    lists_N = None
    if network.codebook0 is not None:
        distance_NK = torch.cdist(x_ND, network.codebook0)
        first_NB = distance_NK.topk(min(search.B, network.config.K), largest=False).indices
        xhat_NBD = network.codebook0[first_NB]
        codes_NBm = first_NB[..., None]
    else:
        assert network.centroids is not None
        lists_N = torch.cdist(x_ND, network.centroids).argmin(dim=1)
        xhat_NBD = network.centroids[lists_N][:, None]
        codes_NBm = lists_N.new_zeros(len(x_ND), 1, 0)

    for m, step in enumerate(network.steps, start=1):
        assert isinstance(step, Step)
        B = search.B if m < len(network.steps) else 1
        # a lone beam at the first step of an IVF must bring forth B of them
        A = max(search.A, search.B) if xhat_NBD.shape[1] == 1 and search.A else search.A
        k_NBA = candidates(step, x_ND[:, None] - xhat_NBD, A)
        tried_NBAD = xhat_NBD[:, :, None] + step(step.codebook[k_NBA], xhat_NBD[:, :, None].expand(*k_NBA.shape, -1))
        error_NC = (x_ND[:, None, None] - tried_NBAD).square().sum(-1).flatten(1)
        best_NB = error_NC.topk(min(B, error_NC.shape[1]), largest=False).indices
        xhat_NBD = take(tried_NBAD.flatten(1, 2), best_NB)
        parents_NBm = take(codes_NBm, best_NB // k_NBA.shape[2])
        codes_NBm = torch.cat([parents_NBm, take(k_NBA.flatten(1)[..., None], best_NB)], dim=-1)
    return codes_NBm[:, 0], lists_N


def candidates(step: Step, residual_NBD: Tensor, A: int) -> Tensor:
    """The A codewords of G nearest to each residual; all K of them when A is 0. Returns [N, B, A]."""
    if step.preselect is None or A == 0:
        k_K = torch.arange(len(step.codebook), device=residual_NBD.device)
        return k_K.expand(*residual_NBD.shape[:2], -1)
    return torch.cdist(residual_NBD, step.preselect).topk(min(A, len(step.preselect)), largest=False).indices


def take(values_NCX: Tensor, index_NB: Tensor) -> Tensor:
    """Row n, entry index[n, b] of `values` [N, C, X], for all n and b: [N, B, X]."""
    return values_NCX.gather(1, index_NB[..., None].expand(-1, -1, values_NCX.shape[-1]))
