"""The gradient of the training loss by hand: what autograd makes of `loss.chain_loss`, without its copies.

Method §4 gives the loss, §8.1 the table that stands for the codeword's part of z₀. Memory is used again and again:
a page that a process sees for the first time costs as much as its share of a product. Shapes: N vectors, D dimension,
M steps, K codewords, E embedding width, H hidden width, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from qinco_core.codec.network import Factors, Step
from qinco_core.codec.workers import cast, multiply, scratch, select

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class StepWeights(NamedTuple):
    """What the rows of a batch are multiplied by in one step, or the gradients of it.

    Attributes:
        table: a = z + W_cat,z z + b with z = W_in C, the part of z₀ that depends on the codeword alone [K, E].
        factors: W_cat,x; see `network.Factors`.
        ups, downs: L matrices [H, E] and [E, H].
        out: W_out [D, E], where there is one.
        codebook: C [K, D], where f adds it (not under QINCo1 rules).
        preselect: G [K, D], where there is one.
    """

    table: Tensor
    factors: Factors
    ups: Factors
    downs: Factors
    out: Tensor | None
    codebook: Tensor | None
    preselect: Tensor | None

    @classmethod
    def of(cls, step: Step, table: Tensor) -> Self:
        """A step's own tensors, or views of them, around its table."""
        codebook = step.codebook if step.residual_output else None
        _, from_xhat = step.concatenation_parts
        return cls(table, from_xhat, step.w_up.unbind(), step.w_down.unbind(), step.w_out, codebook, step.preselect)

    def to(self, dtype: torch.dtype) -> Self:
        """In the dtype of products; the codebooks, which are only added, stay as they are."""

        def cast(tensors: Factors) -> Factors:
            return tuple(tensor.to(dtype) for tensor in tensors)

        out = None if self.out is None else self.out.to(dtype)
        return self._replace(
            table=self.table.to(dtype),
            factors=cast(self.factors),
            ups=cast(self.ups),
            downs=cast(self.downs),
            out=out,
        )


@torch.no_grad()
def chain_gradient(
    weights: Sequence[StepWeights],
    gradients: Sequence[StepWeights],
    start: tuple[Tensor, Tensor | None],
    batch: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Add the gradient of `scale` × `loss.chain_loss` of a few hundred vectors.

    Args:
        weights: of every step, in the dtype of its products.
        gradients: what to add to, float32.
        start: the codebook of step 0 and what to add its gradient to, or frozen centroids and None.
        batch: normalised vectors, float32 [N, D], and symbols, after the list numbers of an IVF model, int64 [N, ≥ M].
        scale: of the loss.

    Returns:
        The loss and the last step's part of it, times `scale` [2].
    """
    x_ND, codes = batch
    scale /= x_ND.shape[1]
    book_KD, book_gradient = start
    k_MN = codes.T.contiguous()
    # how far x̂ is off before the first step and after each
    offs = [select("chain.off", book_KD, k_MN[0]).sub_(x_ND)]
    steps = []
    for m, (step, k) in enumerate(zip(weights, k_MN[1:], strict=True)):
        steps.append(_StepChain(m, step, k))
        offs.append(steps[-1].forward(offs[-1], x_ND))
    counted = offs[0 if book_gradient is not None else 1 :]
    loss = sum((_square(off) for off in counted), start=torch.zeros((), device=x_ND.device))
    g_ND = _like("g", x_ND).zero_()
    for step, gradient, off in zip(reversed(steps), reversed(gradients), reversed(offs[1:]), strict=True):
        loss += step.backward(g_ND.add_(off, alpha=2 * scale), gradient, 2 * scale)
    if book_gradient is not None:
        book_gradient.index_add_(0, k_MN[0], g_ND.add_(offs[0], alpha=2 * scale))
    return torch.stack([loss, _square(offs[-1])]) * scale


class _StepChain:
    """One step's rows, forth and back."""

    def __init__(self, m: int, weights: StepWeights, k_N: Tensor) -> None:
        self.m, self.weights, self.k_N = m, weights, k_N

    def forward(self, off_ND: Tensor, x_ND: Tensor) -> Tensor:
        """How far x̂ + f(C[k], x̂) is off x, from how far x̂ is."""
        m, weights, k_N = self.m, self.weights, self.k_N
        dtype = weights.table.dtype
        self._off = off_ND
        xhat = torch.add(off_ND, x_ND, out=_like(f"xhat{m}", x_ND))
        # what each factor of W_cat,x multiplies, the one that multiplies first at the end
        self._inputs = [cast(f"chain.input{m}", xhat, dtype)]
        for i, factor in enumerate(weights.factors[:0:-1]):
            self._inputs.insert(0, multiply(f"chain.input{m}.{i}", self._inputs[0], factor.T))
        z = select(f"chain.z{m}", weights.table, k_N).addmm_(self._inputs[0], weights.factors[0].T)
        self._z, self._h = [z], []
        for i, (up, down) in enumerate(zip(weights.ups, weights.downs, strict=True)):
            h = multiply(f"chain.h{m}.{i}", z, up.T).relu_()
            z = torch.addmm(z, h, down.T, out=_like(f"z{m}.{i}", z))
            self._z.append(z)
            self._h.append(h)
        out = z if weights.out is None else multiply("chain.out", z, weights.out.T)
        off = torch.add(off_ND, out, out=_like(f"off{m}", x_ND))
        return off if weights.codebook is None else off.add_(select("chain.c", weights.codebook, k_N))

    def backward(self, g_ND: Tensor, gradient: StepWeights, scale: float) -> Tensor:
        """Add the step's gradients, turn g, the gradient by x̂ + f, into that by x̂; returns the loss of G."""
        weights, k_N = self.weights, self.k_N
        if gradient.codebook is not None:
            gradient.codebook.index_add_(0, k_N, g_ND)
        g = cast("chain.g_cast", g_ND, weights.table.dtype)
        if weights.out is None or gradient.out is None:
            dz = _like("dz", g).copy_(g)
        else:
            _accumulate(gradient.out, g, self._z[-1])
            dz = multiply("chain.dz", g, weights.out)
        for i in reversed(range(len(weights.ups))):
            _accumulate(gradient.downs[i], dz, self._h[i])
            dh = multiply("chain.dh", dz, weights.downs[i])
            _threshold_backward(dh, self._h[i], 0, grad_input=dh)
            _accumulate(gradient.ups[i], dh, self._z[i])
            dz.addmm_(dh, weights.ups[i])
        gradient.table.index_add_(0, k_N, cast("chain.dz_cast", dz, torch.float32))
        for i, (factor, inputs) in enumerate(zip(weights.factors, self._inputs, strict=True)):
            _accumulate(gradient.factors[i], dz, inputs)
            dz = multiply(f"chain.dz{i}", dz, factor)
        g_ND += dz
        if weights.preselect is None or gradient.preselect is None:
            return g_ND.new_zeros(())
        gap = select("chain.gap", weights.preselect, k_N).add_(self._off)
        loss = _square(gap)
        gradient.preselect.index_add_(0, k_N, gap.mul_(scale))
        return loss


def _like(name: str, x: Tensor) -> Tensor:
    return scratch(f"chain.{name}", tuple(x.shape), x.dtype, x.device)


def _accumulate(gradient: Tensor, out_gradient: Tensor, inputs: Tensor) -> None:
    """gradient += out_gradientᵀ inputs, summed in float32."""
    if gradient.dtype == inputs.dtype:
        gradient.addmm_(out_gradient.T, inputs)
    else:
        gradient += out_gradient.T @ inputs


def _square(x_ND: Tensor) -> Tensor:
    return torch.dot(x_ND.view(-1), x_ND.view(-1))
