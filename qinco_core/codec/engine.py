"""The fast encoder and decoder: tables, global pre-selection, cache-sized chunks, bfloat16.

Held to `reference` by tests. Method §8.1 gives the algebra, §8.2 the pre-selection, §8.3 the reason for
small chunks. Shapes: N vectors of a chunk, D dimension, B beams, T candidate pairs (beam, codeword),
K codewords, m symbols so far, E embedding width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from qinco_core.codec import pairs
from qinco_core.codec.forecast import Forecast, fit_forecasts
from qinco_core.codec.graph import Graphs
from qinco_core.codec.network import Network, Step
from qinco_core.codec.precision import Plan
from qinco_core.codec.tables import StepTables
from qinco_core.codec.workers import cast, map_rows, one_thread_each, scratch
from qinco_core.config import EncodeConfig

# network rows evaluated at once by one core, in bytes of a hidden layer's column, so that the layer (× 256) stays in
# its cache; a GPU wants as many as fit
_COLUMN_BYTES = {"cpu": 1 << 13, "cuda": 1 << 20}
# an encoder's rows are mostly evaluated in part, so that there may be more of them
_TRIED_ROWS = 2
# vectors and centroids compared at once by one core: 4 MiB of distances
_BLOCK = {"cpu": 1024, "cuda": 1 << 14}


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
        self._graphs, self._fitting = Graphs(device), threading.Lock()
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
        tried = search.B * self.config.K if self._exhaustive(search) else search.T or search.A * search.B
        size = max(1, _TRIED_ROWS * self.chunk_rows // tried)
        if search.full and not self._exhaustive(search):
            with self._fitting:  # before the threads ask for them
                _ = self._forecasts

        def work(*rows: Tensor) -> Tensor:
            return self._graphs(search, lambda *rows: self._encode_rows(*rows, search=search), *rows)

        if not self.config.ivf_K:
            return self._map(work, [v_ND], size), None
        lists = self.assign(v_ND) if lists_N is None else lists_N.long().cpu()
        return self._map(work, [v_ND, lists], size), lists

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

    def _encode_rows(self, v_ND: Tensor, lists_N: Tensor | None = None, *, search: EncodeConfig) -> Tensor:
        x = ((v_ND.float() - self._mean) / self._std).contiguous()
        if lists_N is not None:
            xhat = self._start[lists_N[:, None]]
            codes = lists_N.new_zeros(len(x), 1, 0)
        else:
            distance = torch.addmm(self._start_norm, x, self._start.T, alpha=-2)
            width = min(search.B, self.config.K) if self._steps else 1
            k = distance.topk(width, dim=1, largest=False, sorted=False).indices
            xhat = self._start[k]
            codes = k[..., None]
        for m in range(len(self._steps)):
            xhat, codes = self._extend(m, x, xhat, codes, search)
        return codes[:, 0]

    def _extend(
        self,
        m: int,
        x_ND: Tensor,
        xhat_NBD: Tensor,
        codes_NBm: Tensor,
        search: EncodeConfig,
    ) -> tuple[Tensor, Tensor]:
        """One step of the beam search: the best extensions of the beams, B of them or fewer if there are fewer."""
        last = m == len(self._steps) - 1
        exhaustive = self._exhaustive(search)
        forecast = self._forecasts[m] if search.full and not exhaustive else None
        step = forecast.tables if forecast else self._steps[m]
        N, B, D = xhat_NBD.shape
        K = self.config.K
        xhat_BD = xhat_NBD.flatten(0, 1)
        residual_BD, norm_B = step.residuals(x_ND, xhat_NBD)
        z_BE, h_BH = step.embed_beams(xhat_BD)
        full = 0
        if exhaustive:
            pair_NT = torch.arange(B * K, device=x_ND.device).expand(N, -1)
        else:
            # the last step keeps one of its candidates, so it needs fewer
            T, full = (_fewer(search.T), _fewer(search.full)) if last else (search.T, search.full)
            pair_NT, error_NT = _preselect(step, residual_BD, norm_B.view(N, B), search.A, search.B, T)
        if forecast and full < pair_NT.shape[1]:
            beam, k = pairs.split(pair_NT, B, K)
            error = forecast.errors(error_NT.flatten(), z_BE, h_BH, residual_BD, k, beam)
            pair_NT = pair_NT.gather(1, _smallest(error.view(pair_NT.shape), full))
        beam, k = pairs.split(pair_NT, B, K)
        z, error = step.evaluate(z_BE, h_BH, k, residual_BD, beam)
        error_NT = error.view(pair_NT.shape)
        best = _smallest(error_NT, 1 if last else min(search.B, error_NT.shape[1]))
        row = (best + torch.arange(N, device=x_ND.device)[:, None] * error_NT.shape[1]).flatten()
        k, beam = k[row], beam[row]
        xhat = step.extend(xhat_BD, z, row, k, beam)
        codes = torch.cat([codes_NBm.flatten(0, 1).index_select(0, beam), k[:, None]], dim=1)
        return xhat.view(*best.shape, D), codes.view(*best.shape, codes.shape[1])

    @cached_property
    def _forecasts(self) -> list[Forecast]:
        with one_thread_each():  # so that the sums, and with them symbols, do not depend on how many threads there are
            return fit_forecasts(self._start, self._steps)

    def decode_rows(self, codes_Nm: Tensor) -> Tensor:
        """Decode a few thousand codes at most, on this thread and the plan's device: float32 [N, D].

        Args:
            codes_Nm: symbols, after the list numbers of an IVF model, int64 on the plan's device.
        """
        xhat = self._start.index_select(0, codes_Nm[:, 0])
        row = torch.arange(len(xhat), device=xhat.device)
        for step, k in zip(self._steps, codes_Nm[:, 1:].T, strict=False):
            k = k.contiguous()
            z_BE, h_BH = step.embed_beams(xhat)
            step.refine_(xhat, step.embed(z_BE, h_BH, k, row), k)
        return xhat.mul_(self._std).add_(self._mean)


def _fewer(count: int) -> int:
    return min(count, max(16, count // 4))


def _smallest(value_NT: Tensor, n: int) -> Tensor:
    return value_NT.topk(n, dim=1, largest=False, sorted=False).indices


def _preselect(
    step: StepTables, residual_BD: Tensor, norm_NB: Tensor, A: int, beams: int, T: int
) -> tuple[Tensor, Tensor]:
    """The candidate pairs [N, T], T over all beams or with T = 0, A per beam, and ‖r − G[k]‖² of each."""
    assert step.preselect is not None and step.preselect_norm is not None
    N, B = norm_NB.shape
    K = len(step.preselect)
    # with T the beams of a vector compete, else each is by itself
    rows = (N, B) if T and B > 1 else (N * B, 1)
    # a lone beam must bring forth all the beams there are to be (method §3)
    count = min(T, B * K) if T and B > 1 else min(K, max(A, beams, T) if B == 1 else A)
    if step.kernels is not None:
        score, least = step.kernels.scores(residual_BD, norm_NB, step.preselect, step.preselect_norm)
        pair, error = pairs.best_of_groups(score.view(*rows, K), least.view(*rows, least.shape[1]), count)
    else:
        r = cast("r", residual_BD, step.dtype)
        # ‖r − G[k]‖² without ‖r‖², which is the same for all codewords of a beam
        score = scratch("score", (N * B, K), r.dtype, r.device)
        torch.addmm(step.preselect_norm, r, step.preselect.T, out=score)
        pair, error = pairs.best_pairs(cast("score32", score, torch.float32).view(*rows, K), norm_NB.view(rows), count)
    if rows[1] == B:
        return pair, error
    beam = torch.arange(B, device=pair.device)[:, None] * K
    return (pair.view(N, B, count) + beam).view(N, B * count), error.view(N, B * count)
