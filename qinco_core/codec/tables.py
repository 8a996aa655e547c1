"""A step's network rewritten so that no work is done twice (method §8.1).

Everything before the first ReLU is a sum of a part that depends only on the codeword and one that
depends only on the reconstruction:

    z₀        = a[k] + P x̂        a = W_in C + W_cat,z W_in C + b      P = W_cat,x
    W_up₁ z₀  = u[k] + V x̂        u = W_up₁ a                          V = W_up₁ W_cat,x

The first parts are tables of K rows; the second cost one small product per reconstruction instead of one
per candidate. A W_cat of low rank is the product of two factors, W_cat,x = W_out' W_in': P and V are then
W_out' and W_up₁ W_out', applied to W_in' x̂, where that costs less. Shapes: R rows (candidates),
B reconstructions, D dimension, K codewords, E embedding width, H hidden width, L blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec.network import Factors, Step, product
from qinco_core.codec.precision import Plan


class StepTables:
    """The tables of one step, in the precision its products run in.

    Attributes:
        codebook: what f adds besides W_out z, float32 [K, D]: C, or zeros under QINCo1 rules.
        preselect, preselect_norm: −2 G [K, D] and ‖G‖² [K]; None without pre-selection.
        dtype: the precision of the products.
    """

    @torch.no_grad()
    def __init__(self, step: Step, plan: Plan) -> None:
        def ready(tensor: Tensor) -> Tensor:
            return tensor.detach().to(plan.device, plan.dtype).contiguous()

        E = len(step.b_cat)
        c = step.codebook.detach().float()
        z = c if step.w_in is None else F.linear(c, step.w_in)
        from_z, from_xhat = step.concatenation_parts
        a = z + product(z, from_z, step.b_cat)
        left, right = _cheaper(from_xhat, len(step.w_up[0]))
        first = step.w_up[0]
        self.dtype = plan.dtype
        self.codebook = (c if step.residual_output else torch.zeros_like(c)).to(plan.device)
        self.preselect = self.preselect_norm = None
        if step.preselect is not None:
            self.preselect = ready(-2 * step.preselect)
            self.preselect_norm = ready(step.preselect.float().square().sum(1))
        # a beside u, P above V: what goes together in `embed` is one table and one product
        self._codewords = ready(torch.cat([a, F.linear(a, first)], dim=1))
        self._beams = ready(torch.cat([left, first @ left]))
        self._xhat_in = None if right is None else ready(right)
        self._ups = [ready(up) for up in step.w_up[1:]]
        self._downs = [ready(down) for down in step.w_down]
        self._out = None if step.w_out is None else ready(step.w_out)
        self._basis = None
        if step.w_out is not None and step.w_out.shape[0] > E:
            # W_out = basis · shape with orthonormal columns: errors can be told in E dimensions
            basis, shape = torch.linalg.qr(step.w_out.detach().float())
            self._basis = basis.T.contiguous().to(plan.device)
            self._shape = ready(shape)
            self._codebook_in = F.linear(self.codebook, self._basis)

    def embed(self, k_R: Tensor, xhat_BD: Tensor, beam_R: Tensor | None = None) -> Tensor:
        """The embedding z after the residual blocks, in `dtype` [R, E].

        Args:
            k_R: codewords.
            xhat_BD: reconstructions in `dtype`.
            beam_R: the reconstruction that goes with each codeword; None: row r goes with row r.
        """
        E = self._downs[0].shape[0]
        if self._xhat_in is not None:
            xhat_BD = F.linear(xhat_BD, self._xhat_in)
        both = _sum_rows(self._codewords, k_R, xhat_BD, self._beams, beam_R)
        z, h = both[:, :E], both[:, E:]
        z = torch.addmm(z, _relu_(h), self._downs[0].T)
        for up, down in zip(self._ups, self._downs[1:], strict=True):
            z.addmm_(_relu_(F.linear(z, up)), down.T)
        return z

    def refine(self, z_RE: Tensor, k_R: Tensor) -> Tensor:
        """The output f of method §2 from the embedding: what to add to the reconstruction, float32 [R, D]."""
        out = z_RE if self._out is None else F.linear(z_RE, self._out)
        return self.codebook.index_select(0, k_R).add_(out)

    def errors(self, z_RE: Tensor, k_R: Tensor, residual_BD: Tensor, beam_R: Tensor) -> Tensor:
        """‖r − f‖² of every candidate, float32 [R], r being its beam's residual."""
        if self._basis is None:
            gap = residual_BD.index_select(0, beam_R).sub_(self.refine(z_RE, k_R))
            distance: Tensor = torch.linalg.vector_norm(gap, dim=1)
            return distance.square_()
        # f = c + basis · shape · z: the part of r − c outside the basis does not depend on z
        c = self.codebook.index_select(0, k_R)
        gap = residual_BD.index_select(0, beam_R).sub_(c)
        inside = F.linear(residual_BD, self._basis).index_select(0, beam_R)
        inside.sub_(self._codebook_in.index_select(0, k_R))
        outside = gap.square_().sum(1) - inside.square().sum(1)
        return outside + inside.sub_(F.linear(z_RE, self._shape)).square_().sum(1)


def _cheaper(factors: Factors, H: int) -> tuple[Tensor, Tensor | None]:
    """W_cat,x as one matrix and None, or as two where E + H outputs cost fewer products through them."""
    if len(factors) == 1:
        return factors[0], None
    left, right = factors
    (E, R), D = left.shape, right.shape[1]
    return (left, right) if R * (D + E + H) < (E + H) * D else (left @ right, None)


def _sum_rows(table_KX: Tensor, k_R: Tensor, xhat_BD: Tensor, weight_XD: Tensor, beam_R: Tensor | None) -> Tensor:
    """table[k] + (weight x̂)[beam] for every r."""
    if beam_R is None:
        return F.linear(xhat_BD, weight_XD).add_(table_KX.index_select(0, k_R))
    # both in one table, so that the two gathers and the sum are one pass over memory
    K = len(table_KX)
    rows = table_KX.new_empty(K + len(xhat_BD), table_KX.shape[1])
    rows[:K] = table_KX
    torch.mm(xhat_BD, weight_XD.T, out=rows[K:])
    return F.embedding_bag(torch.stack([k_R, beam_R + K], dim=1), rows, mode="sum")


def _relu_(h: Tensor) -> Tensor:
    """ReLU in place; a bfloat16 is negative where its bits, read as an integer, are."""
    if h.dtype == torch.bfloat16:
        h.view(torch.int16).clamp_min_(0)
        return h
    return h.relu_()
