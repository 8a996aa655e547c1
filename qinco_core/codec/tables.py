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
import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec import pairs
from qinco_core.codec.network import Factors, Step, product
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import cast, multiply, select


class StepTables:
    """The tables of one step, in the precision its products run in; what is only added is float32, or `partial`.

    Attributes:
        u: the part of the first hidden layer that depends on the codeword alone, in `partial` [K, H].
        kernels: the module `fused`, where the device has the kernels and they take these sizes; else None.
        partial: the dtype of what belongs to a reconstruction: float32, or that of products with kernels.
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
        self.kernels = _kernels(plan, step)
        self.partial = plan.dtype if self.kernels else torch.float32
        self.preselect = self.preselect_norm = None
        if step.preselect is not None:
            self.preselect = ready(-2 * step.preselect)
            self.preselect_norm = ready(step.preselect.float().square().sum(1))
        self._a, self.u = a.to(plan.device), F.linear(a, first).to(plan.device, self.partial)
        self._from_xhat = [ready(factor) for factor in _cheaper(from_xhat)]
        self._up, self._down = ready(first), ready(step.w_down[0])
        self._ups, self._downs = ready(step.w_up[1:]), ready(step.w_down[1:])
        self._out = None if step.w_out is None else ready(step.w_out)
        self._basis = None
        if step.w_out is not None and step.w_out.shape[0] > E:
            # W_out = basis · shape with orthonormal columns: errors can be told in E dimensions
            basis, shape = torch.linalg.qr(step.w_out.detach().float())
            self._basis = basis.T.contiguous().to(plan.device, self.partial)
            self._shape = ready(shape)
            self._codebook_in = F.linear(self.codebook, basis.T.to(plan.device))

    @property
    def sizes(self) -> tuple[int, int]:
        """E and H."""
        E, H = self._down.shape
        return E, H

    def residuals(self, x_ND: Tensor, xhat_NBD: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals x − x̂ of all reconstructions, in `partial` [N·B, D], and their squared norms, float32 [N·B]."""
        if self.kernels is None:
            r_BD = (x_ND[:, None] - xhat_NBD).flatten(0, 1)
            return r_BD, r_BD.square().sum(1)
        found: tuple[Tensor, Tensor] = self.kernels.residuals(x_ND, xhat_NBD.flatten(0, 1), self.partial)
        return found

    def embed_beams(self, xhat_BD: Tensor) -> tuple[Tensor, Tensor]:
        """P x̂ and W_up₁ P x̂ of every reconstruction, in `partial` [B, E] and [B, H].

        These and other results of a step's tables are in this thread's scratch: good until the next call.
        """
        z = cast("xhat", xhat_BD, self.dtype)
        for i, factor in enumerate(reversed(self._from_xhat)):
            z = multiply(f"z_B{i}", z, factor.T)
        h = multiply("h_B", z, self._up.T)
        return cast("z_B32", z, self.partial), cast("h_B32", h, self.partial)

    def activate(self, h_BH: Tensor, k_R: Tensor, beam_R: Tensor, width: int | None = None) -> Tensor:
        """relu(u[k] + V x̂), the first `width` units of the hidden layer of every row, in `dtype` [R, width or H]."""
        h = pairs.add_relu("h32", self.u, k_R, h_BH, beam_R, width or self.sizes[1])
        return cast("h", h, self.dtype)

    def with_hidden_in_order(self, order_H: Tensor) -> StepTables:
        """These tables with the units of the first hidden layer in another order, which gives the same results."""
        other = copy.copy(self)
        other.u = self.u[:, order_H].contiguous()
        other._up, other._down = self._up[order_H].contiguous(), self._down[:, order_H].contiguous()
        return other

    def evaluate(
        self, z_BE: Tensor, h_BH: Tensor, k_R: Tensor, residual_BD: Tensor, beam_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`embed` and `errors` of the same rows."""
        if self.kernels is None:
            z = self.embed(z_BE, h_BH, k_R, beam_R)
            return z, self.errors(z, k_R, residual_BD, beam_R)
        if self._basis is None:
            return self._fused(z_BE, h_BH, k_R, beam_R, (residual_BD, self.codebook, self._out))
        inside_BE, outside = self._parts(residual_BD, k_R, beam_R)
        z, error = self._fused(z_BE, h_BH, k_R, beam_R, (inside_BE, self._codebook_in, self._shape))
        return z, outside.add_(error)

    def embed(self, z_BE: Tensor, h_BH: Tensor, k_R: Tensor, beam_R: Tensor) -> Tensor:
        """The embedding z after the residual blocks, in `dtype` [R, E].

        Args:
            z_BE: of the reconstructions, from `embed_beams`.
            h_BH: likewise.
            k_R: codewords.
            beam_R: the reconstruction that goes with each.
        """
        if self.kernels is not None:
            return self._fused(z_BE, h_BH, k_R, beam_R)[0]
        z = cast("z", pairs.add("z32", self._a, k_R, z_BE, beam_R), self.dtype)
        z.addmm_(self.activate(h_BH, k_R, beam_R), self._down.T)
        for up, down in zip(self._ups, self._downs, strict=True):
            z.addmm_(_relu_(multiply("h", z, up.T)), down.T)
        return z

    def extend(self, xhat_BD: Tensor, z_XE: Tensor, row_R: Tensor, k_R: Tensor, beam_R: Tensor) -> Tensor:
        """x̂[beam] + f of every row, float32 [R, D], f being made from the embedding z[row]."""
        if self.kernels is None or self._out is not None:
            return self.refine_(xhat_BD.index_select(0, beam_R), z_XE.index_select(0, row_R), k_R)
        found: Tensor = self.kernels.refine(xhat_BD, z_XE, row_R, self.codebook, (k_R, beam_R))
        return found

    def refine_(self, xhat_RD: Tensor, z_RE: Tensor, k_R: Tensor) -> Tensor:
        """Add the output f of method §2, made from the embedding, to reconstructions, float32 [R, D]; returns them."""
        if self.kernels is not None and self._out is None:
            row = torch.arange(len(k_R), device=k_R.device)
            self.kernels.refine(xhat_RD, z_RE, row, self.codebook, (k_R, row), xhat_RD)
            return xhat_RD
        xhat_RD += z_RE if self._out is None else multiply("out", z_RE, self._out.T)
        xhat_RD += select("c", self.codebook, k_R)
        return xhat_RD

    def errors(self, z_RE: Tensor, k_R: Tensor, residual_BD: Tensor, beam_R: Tensor) -> Tensor:
        """‖r − f‖² of every candidate, float32 [R], r being its beam's residual."""
        if self._basis is None:
            out = z_RE if self._out is None else multiply("out", z_RE, self._out.T)
            return pairs.squared_gaps(residual_BD, beam_R, self.codebook, k_R, cast("out32", out, torch.float32))
        inside_BE, outside = self._parts(residual_BD, k_R, beam_R)
        z = cast("out32", multiply("out", z_RE, self._shape.T), torch.float32)
        return outside.add_(pairs.squared_gaps(inside_BE, beam_R, self._codebook_in, k_R, z))

    def _parts(self, residual_BD: Tensor, k_R: Tensor, beam_R: Tensor) -> tuple[Tensor, Tensor]:
        """Of f = c + basis · shape · z: r in the basis [B, E], and ‖r − c‖² outside it [R], where z does not matter."""
        assert self._basis is not None
        inside_BE = multiply("inside", residual_BD, self._basis.T)
        gaps = self.kernels.gaps if self.kernels else _gaps
        whole: Tensor = gaps(residual_BD, self.codebook, (k_R, beam_R))
        return inside_BE, whole.sub_(gaps(inside_BE, self._codebook_in, (k_R, beam_R)))

    def _fused(
        self,
        z_BE: Tensor,
        h_BH: Tensor,
        k_R: Tensor,
        beam_R: Tensor,
        target: tuple[Tensor, Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        tables, blocks = (self._a, self.u), (self._down, self._ups, self._downs)
        found: tuple[Tensor, Tensor] = self.kernels.evaluate(tables, (z_BE, h_BH), blocks, (k_R, beam_R), target)
        return found


def _kernels(plan: Plan, step: Step) -> Any:
    """The module `fused`, or None where it is not for this device, precision or network."""
    if plan.device.type != "cuda" or plan.dtype != torch.bfloat16:
        return None
    (L, E, H), (K, D) = step.w_down.shape, step.codebook.shape
    return tried_kernels(K, L, E, H, D)


@functools.cache
def tried_kernels(K: int, L: int, E: int, H: int, D: int) -> Any:
    """The module `fused`, if its kernels are for these sizes; None, with a warning, where they do not work."""
    try:
        from qinco_core.codec import fused

        if not fused.fits(K, L, E, H, D):
            return None
        fused.rehearse(K, L, E, H, D)
    except Exception as error:  # Triton raises what its compiler, the linker or the driver happen to
        warnings.warn(f"Triton does not work here, so that encoding is several times slower: {error}", stacklevel=2)
        return None
    return fused


def _gaps(r_BD: Tensor, c_KD: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
    k_R, beam_R = rows
    return pairs.squared_gaps(r_BD, beam_R, c_KD, k_R)


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
