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
        left, right = _cheaper(from_xhat, len(step.w_up[0]))
        first = step.w_up[0]
        self.dtype = plan.dtype
        self.codebook = (c if step.residual_output else torch.zeros_like(c)).to(plan.device)
        self.preselect = self.preselect_norm = None
        if step.preselect is not None:
            self.preselect = ready(-2 * step.preselect)
            self.preselect_norm = ready(step.preselect.float().square().sum(1))
        self._a, self._u = a.to(plan.device), F.linear(a, first).to(plan.device)
        self._to_z, self._to_h = ready(left), ready(first @ left)
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

    @property
    def width(self) -> int:
        """H."""
        return len(self._to_h)

    def input(self, xhat_BD: Tensor) -> Tensor:
        """What P and V multiply, in `dtype`: x̂, or W_in' x̂."""
        x = cast("x", xhat_BD, self.dtype)
        return x if self._xhat_in is None else multiply("xhat_in", x, self._xhat_in.T)

    def hidden(self, input_B: Tensor) -> Tensor:
        """V x̂ of every reconstruction, float32 [B, H]."""
        return cast("hidden32", multiply("hidden", input_B, self._to_h.T), torch.float32)

    def activate(self, hidden_BH: Tensor, k_R: Tensor, beam_R: Tensor, width: int | None = None) -> Tensor:
        """relu(u[k] + V x̂), the first `width` units of the hidden layer of every row, in `dtype` [R, width or H]."""
        h = pairs.add_relu("h32", self._u, k_R, hidden_BH, beam_R, width or self.width)
        return cast("h", h, self.dtype)

    def order_hidden(self, order_H: Tensor) -> None:
        """Put the units of the first hidden layer into another order, which changes nothing of what the step does."""
        self._u, self._to_h = self._u[:, order_H].contiguous(), self._to_h[order_H].contiguous()
        self._downs[0] = self._downs[0][:, order_H].contiguous()

    def embed(self, input_B: Tensor, h_RH: Tensor, k_R: Tensor, beam_R: Tensor) -> Tensor:
        """The embedding z after the residual blocks, in `dtype` [R, E]; like all results here in this thread's scratch.

        Args:
            input_B: of the reconstructions, from `input`.
            h_RH: of the rows, from `activate`; overwritten.
            k_R: codewords.
            beam_R: the reconstruction that goes with each.
        """
        z_B = cast("z_B32", multiply("z_B", input_B, self._to_z.T), torch.float32)
        z = cast("z", pairs.add("z32", self._a, k_R, z_B, beam_R), self.dtype)
        z.addmm_(h_RH, self._downs[0].T)
        for up, down in zip(self._ups, self._downs[1:], strict=True):
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
        inside_BE = residual_BD @ self._basis.T
        whole = pairs.squared_gaps(residual_BD, beam_R, self.codebook, k_R)
        outside = whole.sub_(pairs.squared_gaps(inside_BE, beam_R, self._codebook_in, k_R))
        z = cast("out32", multiply("out", z_RE, self._shape.T), torch.float32)
        return outside.add_(pairs.squared_gaps(inside_BE, beam_R, self._codebook_in, k_R, z))


def _cheaper(factors: Factors, H: int) -> tuple[Tensor, Tensor | None]:
    """W_cat,x as one matrix and None, or as two where E + H outputs cost fewer products through them."""
    if len(factors) == 1:
        return factors[0], None
    left, right = factors
    (E, R), D = left.shape, right.shape[1]
    return (left, right) if R * (D + E + H) < (E + H) * D else (left @ right, None)


def _relu_(h: Tensor) -> Tensor:
    """ReLU in place; a bfloat16 is negative where its bits, read as an integer, are."""
    if h.dtype == torch.bfloat16:
        h.view(torch.int16).clamp_min_(0)
        return h
    return h.relu_()
