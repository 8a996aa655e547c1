"""The fast encoder and decoder: tables, global pre-selection, cache-sized chunks, bfloat16.

Held to `reference` by tests. Method §8.1 gives the algebra, §8.2 the pre-selection, §8.3 the reason for
small chunks. Shapes: N vectors of a chunk, D dimension, B beams, T candidate pairs (beam, codeword),
K codewords, m symbols so far, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec.network import Network, Step
from qinco_core.codec.precision import Plan
from qinco_core.codec.tables import StepTables
from qinco_core.codec.workers import map_rows
from qinco_core.config import EncodeConfig

# network rows evaluated at once by one core, in bytes of a hidden layer's column, so that the layer (× 256) stays in
# its cache; a GPU wants as many as fit
_COLUMN_BYTES = {"cpu": 1 << 13, "cuda": 1 << 20}
# vectors and centroids compared at once by one core: 4 MiB of distances
_BLOCK = {"cpu": 1024, "cuda": 1 << 14}
# codewords whose scores are first looked at together when the best pairs are picked
_GROUP = 16


class Engine:
    """Encodes and decodes with one network on one device, in one precision; safe to share by threads.

    Attributes:
        config: what the model is.
        plan: device, precision and threads.
        chunk_rows: network rows that are evaluated together.
    """

    def __init__(self, network: Network, plan: Plan) -> None:
        """Make the tables; the engine keeps no reference to `network`'s parameters but copies.

        Args:
            network: the model, on any device.
            plan: device, precision and threads.
        """
        self.config = network.config
        self.plan = plan
        device = plan.device
        self.chunk_rows = _COLUMN_BYTES[device.type] // plan.dtype.itemsize
        self._mean, self._std = network.mean.to(device), network.std.to(device)
        start = network.centroids if network.codebook0 is None else network.codebook0
        assert start is not None
        self._start = start.detach().float().to(device)
        self._steps = [StepTables(step, plan) for step in network.steps if isinstance(step, Step)]

    @cached_property
    def _start_norm(self) -> Tensor:
        return self._start.square().sum(1)

    @torch.no_grad()
    def encode(self, v_ND: Tensor, search: EncodeConfig, lists_N: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode vectors by pre-selection and beam search (method §3, §8.2).

        Args:
            v_ND: vectors, not normalised, any real dtype [N, D].
            search: A, B and T. With T > 0 the T best (beam, codeword) pairs of all beams are evaluated.
            lists_N: for an IVF model, list numbers [N] to encode with; the nearest centroids by default.

        Returns:
            Symbols int64 [N, M] on the CPU, and list numbers int64 [N] for an IVF model (else None).
        """
        pairs = search.B * self.config.K if self._exhaustive(search) else search.T or search.A * search.B
        size = max(1, self.chunk_rows // pairs)
        if not self.config.ivf_K:
            return self._map(lambda v: self._encode_rows(v, search), [v_ND], size), None
        lists = self.assign(v_ND) if lists_N is None else lists_N.long().cpu()
        return self._map(lambda v, k: self._encode_rows(v, search, k), [v_ND, lists], size), lists

    @torch.no_grad()
    def assign(self, v_ND: Tensor) -> Tensor:
        """The nearest coarse centroid of vectors [N, D], not normalised: list numbers int64 [N] on the CPU."""
        block = _BLOCK[self.plan.device.type]
        return self._map(lambda v: self._nearest(v, block), [v_ND], block)

    @torch.no_grad()
    def decode(self, codes_NM: Tensor, steps: int | None = None, lists_N: Tensor | None = None) -> Tensor:
        """Decode the first `steps` symbols (all by default) to vectors, float32 [N, D] on the CPU.

        Args:
            codes_NM: symbols, any integer dtype [N, ≥ steps].
            steps: symbols to use; any prefix is a valid, coarser code.
            lists_N: list numbers [N] of an IVF model.
        """
        codes = codes_NM[:, :steps].long()
        if lists_N is not None:
            codes = torch.cat([lists_N.to(codes)[:, None], codes], dim=1)
        return self._map(self.decode_rows, [codes], self.chunk_rows)

    def _map(self, work: Callable[..., Tensor], rows: list[Tensor], size: int) -> Tensor:
        return map_rows(work, rows, size, self.plan)

    def _nearest(self, v_ND: Tensor, block: int) -> Tensor:
        x = (v_ND.float() - self._mean) / self._std
        least, nearest = x.new_full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for first in range(0, self.config.ivf_K, block):
            centroids, norm = self._start[first : first + block], self._start_norm[first : first + block]
            distance, k = torch.addmm(norm, x, centroids.T, alpha=-2).min(1)
            nearest = torch.where(distance < least, k + first, nearest)
            least = torch.minimum(distance, least)
        return nearest

    def _exhaustive(self, search: EncodeConfig) -> bool:
        return search.A == 0 or not self.config.preselect

    def _encode_rows(self, v_ND: Tensor, search: EncodeConfig, lists_N: Tensor | None = None) -> Tensor:
        x = (v_ND.float() - self._mean) / self._std
        if lists_N is not None:
            xhat = self._start[lists_N[:, None]]
            codes = lists_N.new_zeros(len(x), 1, 0)
        else:
            distance = torch.addmm(self._start_norm, x, self._start.T, alpha=-2)
            width = min(search.B, self.config.K) if self._steps else 1
            k = distance.topk(width, dim=1, largest=False, sorted=False).indices
            xhat = self._start[k]
            codes = k[..., None]
        for m, step in enumerate(self._steps, start=1):
            keep = search.B if m < len(self._steps) else 1
            xhat, codes = self._extend(step, x, xhat, codes, search, keep)
        return codes[:, 0]

    def _extend(
        self,
        step: StepTables,
        x_ND: Tensor,
        xhat_NBD: Tensor,
        codes_NBm: Tensor,
        search: EncodeConfig,
        keep: int,
    ) -> tuple[Tensor, Tensor]:
        """One step of the beam search: the `keep` best extensions of the beams, or fewer if there are fewer."""
        N, B, _ = xhat_NBD.shape
        residual_NBD = x_ND[:, None] - xhat_NBD
        if self._exhaustive(search):
            pair_NT = torch.arange(B * self.config.K, device=x_ND.device).expand(N, -1)
        else:
            # the last step keeps one of its candidates, so it needs fewer
            T = min(search.T, max(16, search.T // 4)) if keep == 1 else search.T
            pair_NT = _preselect(step, residual_NBD, search.A, search.B, T)
        T = pair_NT.shape[1]
        # flat rows: which of the N·B beams, which codeword
        k = (pair_NT % self.config.K).flatten()
        beam = (pair_NT // self.config.K + torch.arange(N, device=x_ND.device)[:, None] * B).flatten()
        z = step.embed(k, xhat_NBD.flatten(0, 1).to(step.dtype), beam)
        error_NT = step.errors(z, k, residual_NBD.flatten(0, 1), beam).view(N, T)
        best = error_NT.topk(min(keep, T), dim=1, largest=False, sorted=False).indices
        keep = best.shape[1]
        row = (best + torch.arange(N, device=x_ND.device)[:, None] * T).flatten()
        k, beam = k[row], beam[row]
        xhat = xhat_NBD.flatten(0, 1).index_select(0, beam) + step.refine(z.index_select(0, row), k)
        codes = torch.cat([codes_NBm.flatten(0, 1).index_select(0, beam), k[:, None]], dim=1)
        return xhat.view(N, keep, xhat.shape[1]), codes.view(N, keep, codes.shape[1])

    def decode_rows(self, codes_Nm: Tensor) -> Tensor:
        """Decode a few thousand codes at most, on this thread and the plan's device: float32 [N, D].

        Args:
            codes_Nm: symbols, after the list numbers of an IVF model, int64 on the plan's device.
        """
        xhat = self._start.index_select(0, codes_Nm[:, 0])
        for step, k in zip(self._steps, codes_Nm[:, 1:].T, strict=False):
            k = k.contiguous()
            xhat = xhat + step.refine(step.embed(k, xhat.to(step.dtype)), k)
        return xhat * self._std + self._mean


def _preselect(step: StepTables, residual_NBD: Tensor, A: int, beams: int, T: int) -> Tensor:
    """The candidate pairs to evaluate, as beam · K + codeword: T over all beams, or with T = 0, A per beam."""
    N, B, _ = residual_NBD.shape
    assert step.preselect is not None
    # ‖r − G[k]‖² without ‖r‖², which is the same for all codewords of a beam
    score_RK = F.linear(residual_NBD.flatten(0, 1).to(step.dtype), step.preselect, step.preselect_norm)
    K = score_RK.shape[1]
    if T and B > 1:
        return _best_pairs(score_RK.view(N, B, K), residual_NBD.square().sum(-1), min(T, B * K))
    # a lone beam must bring forth all the beams there are to be (method §3)
    A = min(K, max(A, beams, T) if B == 1 else A)
    k_RA = score_RK.topk(A, dim=1, largest=False, sorted=False).indices
    return (k_RA.view(N, B, A) + torch.arange(B, device=k_RA.device)[:, None] * K).flatten(1)


def _best_pairs(score_NBK: Tensor, norm_NB: Tensor, T: int) -> Tensor:
    """The T smallest of score + norm over all (beam, codeword), as beam · K + codeword.

    The T smallest lie in the T groups with the smallest minima, so only those are searched: exact, and
    several times faster than one selection over B · K.
    """
    N, B, K = score_NBK.shape
    groups = K // _GROUP
    if B * groups <= T or groups == 0:
        return (score_NBK + norm_NB[..., None]).flatten(1).topk(T, dim=1, largest=False, sorted=False).indices
    # group g holds the codewords g, g + groups, g + 2·groups, ...: minima of halves, again and again
    low = score_NBK
    while low.shape[2] > groups:
        half = low.shape[2] // 2
        low = torch.minimum(low[..., :half], low[..., half:])
    low_NG = (low + norm_NB[..., None]).flatten(1)
    group_NT = low_NG.topk(T, dim=1, largest=False, sorted=False).indices
    beam_NT = group_NT // groups
    first = group_NT + beam_NT * (K - groups)
    pair_NC = (first[..., None] + torch.arange(0, K, groups, device=first.device)).flatten(1)
    score_NC = score_NBK.flatten(1).gather(1, pair_NC).view(N, T, K // groups) + norm_NB.gather(1, beam_NT)[..., None]
    best_NT = score_NC.flatten(1).topk(T, dim=1, largest=False, sorted=False).indices
    return pair_NC.gather(1, best_NT)
