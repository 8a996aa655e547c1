"""The gradient of the training loss by hand: what autograd makes of `loss.chain_loss`, without its copies.

Method §4 gives the loss, §8.1 the table that stands for the codeword's part of z₀. Memory is used again and again: a
page that a process sees for the first time costs as much as its share of a product. Shapes: N vectors, D dimension, M
steps, K codewords, E embedding width, H hidden width, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from qinco_core.codec.network import Factors, Step, product

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
        """A step's own tensors, or views of them, beside its table."""
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


def table_of(step: Step) -> Tensor:
    """The table of a step's `StepWeights`, float32 [K, E]."""
    z = _embedded(step)
    return z + product(z, step.concatenation_parts[0], step.b_cat)


@torch.no_grad()
def add_table_gradient(step: Step, gradient: Step, g_KE: Tensor) -> None:
    """Take the gradient of a step's table on to what the table is made of.

    Args:
        step: the step.
        gradient: what to add to, in the step's shapes.
        g_KE: the gradient of its table.
    """
    factors, _ = step.concatenation_parts
    sums, _ = gradient.concatenation_parts
    inputs = [_embedded(step)]
    for factor in factors[:0:-1]:
        inputs.insert(0, F.linear(inputs[0], factor))
    gradient.b_cat.add_(g_KE.sum(0))
    dz = g_KE
    for factor, total, z in zip(factors, sums, inputs, strict=True):
        total.addmm_(dz.T, z)
        dz = dz @ factor
    dz = dz + g_KE
    if step.w_in is None or gradient.w_in is None:
        gradient.codebook.add_(dz)
    else:
        gradient.w_in.addmm_(dz.T, step.codebook)
        gradient.codebook.addmm_(dz, step.w_in)


def _embedded(step: Step) -> Tensor:
    return step.codebook if step.w_in is None else F.linear(step.codebook, step.w_in)


class Chain:
    """The rows of a batch that one thread takes together, and the memory for all that they go through.

    The parts of it that are named after a step have one entry for each.
    """

    def __init__(self, weights: Sequence[StepWeights], N: int, D: int, device: torch.device) -> None:
        """Make room.

        Args:
            weights: of every step, for their shapes and the dtype of products.
            N: rows.
            D: dimension.
            device: where.
        """

        def room(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(N, width, dtype=dtype, device=device)

        self._offs = [room(D) for _ in range(len(weights) + 1)]
        self._g = room(D)
        if not weights:  # a model of one symbol is one codebook
            return
        step = weights[0]
        dtype = step.table.dtype
        E, H = step.downs[0].shape
        L = len(step.ups)
        # what each factor of W_cat,x multiplies, the one that multiplies first at the end
        self._inputs = [[room(factor.shape[1], dtype) for factor in step.factors] for step in weights]
        self._z = [[room(E, dtype) for _ in range(L + 1)] for _ in weights]
        self._h = [[room(H, dtype) for _ in range(L)] for _ in weights]
        self._rows = room(D)
        self._g_cast, self._out = (self._g, self._rows) if dtype == torch.float32 else (room(D, dtype), room(D, dtype))
        self._dh, self._dz = room(H, dtype), room(E, dtype)
        self._dz_cast = self._dz if dtype == torch.float32 else room(E)
        self._d_inputs = [room(factor.shape[1], dtype) for factor in step.factors]

    def gradient(
        self,
        weights: Sequence[StepWeights],
        gradients: Sequence[StepWeights],
        start: tuple[Tensor, Tensor | None],
        batch: tuple[Tensor, Tensor],
        scale: float,
    ) -> Tensor:
        """Add the gradient of `scale` × `loss.chain_loss` of N rows.

        Args:
            weights: of every step, in the dtype of its products.
            gradients: what to add to, float32.
            start: the codebook of step 0 and what to add its gradient to, or frozen centroids and None.
            batch: normalised vectors, float32 [N, D], and symbols, after the list numbers of an IVF model, int64.
            scale: of the loss.

        Returns:
            The loss and the last step's part of it, times `scale` [2].
        """
        x_ND, codes = batch
        scale /= x_ND.shape[1]
        book_KD, book_gradient = start
        k_MN = codes.T.contiguous()
        # how far x̂ is off before the first step and after each
        torch.index_select(book_KD, 0, k_MN[0], out=self._offs[0]).sub_(x_ND)
        for m, step in enumerate(weights):
            self._forward(m, step, k_MN[m + 1], x_ND)
        losses = [_square(off) for off in self._offs[0 if book_gradient is not None else 1 :]]
        self._g.zero_()
        for m in reversed(range(len(weights))):
            self._g.add_(self._offs[m + 1], alpha=2 * scale)
            losses += self._backward(m, weights[m], gradients[m], k_MN[m + 1], 2 * scale)
        if book_gradient is not None:
            book_gradient.index_add_(0, k_MN[0], self._g.add_(self._offs[0], alpha=2 * scale))
        return torch.stack([torch.stack(losses).sum(), _square(self._offs[-1])]) * scale

    def _forward(self, m: int, weights: StepWeights, k_N: Tensor, x_ND: Tensor) -> None:
        """How far x̂ + f(C[k], x̂) is off x, from how far x̂ is."""
        off, z, h, inputs = self._offs[m], self._z[m], self._h[m], self._inputs[m]
        torch.add(off, x_ND, out=inputs[-1])
        for i in reversed(range(1, len(inputs))):
            torch.mm(inputs[i], weights.factors[i].T, out=inputs[i - 1])
        torch.index_select(weights.table, 0, k_N, out=z[0]).addmm_(inputs[0], weights.factors[0].T)
        for i, (up, down) in enumerate(zip(weights.ups, weights.downs, strict=True)):
            torch.mm(z[i], up.T, out=h[i]).relu_()
            torch.addmm(z[i], h[i], down.T, out=z[i + 1])
        out = z[-1] if weights.out is None else torch.mm(z[-1], weights.out.T, out=self._out)
        torch.add(off, out, out=self._offs[m + 1])
        if weights.codebook is not None:
            self._offs[m + 1] += torch.index_select(weights.codebook, 0, k_N, out=self._rows)

    def _backward(self, m: int, weights: StepWeights, gradient: StepWeights, k_N: Tensor, scale: float) -> list[Tensor]:
        """Add the step's gradients, and turn g, the gradient by x̂ + f, into that by x̂; returns the loss of G."""
        z, h, dz, dh = self._z[m], self._h[m], self._dz, self._dh
        if gradient.codebook is not None:
            gradient.codebook.index_add_(0, k_N, self._g)
        g = _cast(self._g, self._g_cast)
        if weights.out is None or gradient.out is None:
            dz.copy_(g)
        else:
            _accumulate(gradient.out, g, z[-1])
            torch.mm(g, weights.out, out=dz)
        for i in reversed(range(len(weights.ups))):
            _accumulate(gradient.downs[i], dz, h[i])
            torch.mm(dz, weights.downs[i], out=dh)
            _threshold_backward(dh, h[i], 0, grad_input=dh)
            _accumulate(gradient.ups[i], dh, z[i])
            dz.addmm_(dh, weights.ups[i])
        gradient.table.index_add_(0, k_N, _cast(dz, self._dz_cast))
        for i, factor in enumerate(weights.factors):
            _accumulate(gradient.factors[i], dz, self._inputs[m][i])
            dz = torch.mm(dz, factor, out=self._d_inputs[i])
        self._g += dz
        if weights.preselect is None or gradient.preselect is None:
            return []
        gap = torch.index_select(weights.preselect, 0, k_N, out=self._rows).add_(self._offs[m])
        loss = _square(gap)
        gradient.preselect.index_add_(0, k_N, gap.mul_(scale))
        return [loss]


def _cast(x: Tensor, out: Tensor) -> Tensor:
    return x if x is out else out.copy_(x)


def _accumulate(gradient: Tensor, out_gradient: Tensor, inputs: Tensor) -> None:
    """Add out_gradientᵀ inputs, summed in float32."""
    if gradient.dtype == inputs.dtype:
        gradient.addmm_(out_gradient.T, inputs)
    else:
        gradient += out_gradient.T @ inputs


def _square(x_ND: Tensor) -> Tensor:
    return torch.dot(x_ND.view(-1), x_ND.view(-1))
