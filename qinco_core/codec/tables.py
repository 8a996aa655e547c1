"""A step's network rewritten so that no work is done twice (method §8.1).

Everything before the first ReLU is a sum of a part that depends only on the codeword and one that
depends only on the reconstruction:

    z₀        = a[k] + P x̂        a = W_in C + W_cat,z W_in C + b      P = W_cat,x
    W_up₁ z₀  = u[k] + V x̂        u = W_up₁ a                          V = W_up₁ W_cat,x

The first parts are tables of K rows; the second cost two small products per reconstruction, P x̂ and from it
W_up₁ P x̂, instead of one per candidate. A W_cat of low rank is the product of two factors, and P of the same two where
that costs less. Shapes: R rows (candidates), B reconstructions, D dimension, K codewords, E embedding width, H hidden
width, L blocks.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec import pairs
from qinco_core.codec.network import Factors, Step, product
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import cast, multiply, select


class StepTables:
    """The tables of one step, in the precision its products run in; what is only added is float32.

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
        first = step.w_up[0]
        self.dtype = plan.dtype
        self.codebook = (c if step.residual_output else torch.zeros_like(c)).to(plan.device)
        self.preselect = self.preselect_norm = None
        if step.preselect is not None:
            self.preselect = ready(-2 * step.preselect)
            self.preselect_norm = ready(step.preselect.float().square().sum(1))
        self._a, self._u = a.to(plan.device), F.linear(a, first).to(plan.device)
        self._from_xhat = [ready(factor) for factor in _cheaper(from_xhat)]
        self._ups = [ready(up) for up in step.w_up]
        self._downs = [ready(down) for down in step.w_down]
        self._out = None if step.w_out is None else ready(step.w_out)
        self._basis = None
        if step.w_out is not None and step.w_out.shape[0] > E:
            # W_out = basis · shape with orthonormal columns: errors can be told in E dimensions
            basis, shape = torch.linalg.qr(step.w_out.detach().float())
            self._basis = basis.T.contiguous().to(plan.device)
            self._shape = ready(shape)
            self._codebook_in = F.linear(self.codebook, self._basis)

    @property
    def sizes(self) -> tuple[int, int]:
        """E and H."""
        E, H = self._downs[0].shape
        return E, H

    def embed_beams(self, xhat_BD: Tensor) -> tuple[Tensor, Tensor]:
        """P x̂ and W_up₁ P x̂ of every reconstruction, float32 [B, E] and [B, H].

        These and other results of a step's tables are in this thread's scratch: good until the next call.
        """
        z = cast("xhat", xhat_BD, self.dtype)
        for i, factor in enumerate(reversed(self._from_xhat)):
            z = multiply(f"z_B{i}", z, factor.T)
        h = multiply("h_B", z, self._ups[0].T)
        return cast("z_B32", z, torch.float32), cast("h_B32", h, torch.float32)

    def activate(self, h_BH: Tensor, k_R: Tensor, beam_R: Tensor, width: int | None = None) -> Tensor:
        """relu(u[k] + V x̂), the first `width` units of the hidden layer of every row, in `dtype` [R, width or H]."""
        h = pairs.add_relu("h32", self._u, k_R, h_BH, beam_R, width or self.sizes[1])
        return cast("h", h, self.dtype)

    def with_hidden_in_order(self, order_H: Tensor) -> StepTables:
        """These tables with the units of the first hidden layer in another order, which gives the same results."""
        other = copy.copy(self)
        other._u = self._u[:, order_H].contiguous()
        other._ups = [self._ups[0][order_H].contiguous(), *self._ups[1:]]
        other._downs = [self._downs[0][:, order_H].contiguous(), *self._downs[1:]]
        return other

    def embed(self, z_BE: Tensor, h_RH: Tensor, k_R: Tensor, beam_R: Tensor) -> Tensor:
        """The embedding z after the residual blocks, in `dtype` [R, E].

        Args:
            z_BE: of the reconstructions, from `embed_beams`.
            h_RH: of the rows, from `activate`; overwritten.
            k_R: codewords.
            beam_R: the reconstruction that goes with each.
        """
        z = cast("z", pairs.add("z32", self._a, k_R, z_BE, beam_R), self.dtype)
        z.addmm_(h_RH, self._downs[0].T)
        for up, down in zip(self._ups[1:], self._downs[1:], strict=True):
            z.addmm_(_relu_(multiply("h", z, up.T)), down.T)
        return z

    def refine_(self, xhat_RD: Tensor, z_RE: Tensor, k_R: Tensor) -> Tensor:
        """Add the output f of method §2, made from the embedding, to reconstructions, float32 [R, D]; returns them."""
        xhat_RD += z_RE if self._out is None else multiply("out", z_RE, self._out.T)
        xhat_RD += select("c", self.codebook, k_R)
        return xhat_RD

    def errors(self, z_RE: Tensor, k_R: Tensor, residual_BD: Tensor, beam_R: Tensor) -> Tensor:
        """‖r − f‖² of every candidate, float32 [R], r being its beam's residual."""
        if self._basis is None:
            out = z_RE if self._out is None else multiply("out", z_RE, self._out.T)
            return pairs.squared_gaps(residual_BD, beam_R, self.codebook, k_R, cast("out32", out, torch.float32))
        # f = c + basis · shape · z: the part of r − c outside the basis does not depend on z
        inside_BE = multiply("inside", residual_BD, self._basis.T)
        whole = pairs.squared_gaps(residual_BD, beam_R, self.codebook, k_R)
        outside = whole.sub_(pairs.squared_gaps(inside_BE, beam_R, self._codebook_in, k_R))
        z = cast("out32", multiply("out", z_RE, self._shape.T), torch.float32)
        return outside.add_(pairs.squared_gaps(inside_BE, beam_R, self._codebook_in, k_R, z))


def _cheaper(factors: Factors) -> Factors:
    """A matrix as the factors it has, or as one where that costs fewer products."""
    if len(factors) == 1:
        return factors
    left, right = factors
    (E, R), D = left.shape, right.shape[1]
    return factors if R * (D + E) < E * D else (left @ right,)


def _relu_(h: Tensor) -> Tensor:
    """ReLU in place; a bfloat16 is negative where its bits, read as an integer, are."""
    if h.dtype == torch.bfloat16:
        h.view(torch.int16).clamp_min_(0)
        return h
    return h.relu_()
