"""What an encoder does to its candidates on a GPU, a kernel each, so that next to nothing goes through its memory.

The plain operations write every hidden layer, sum and copy out and read it again, which takes much longer than their
arithmetic. A program here takes a few rows through all of it; what they are multiplied by stays in the GPU's cache.
Products are in the dtype of the tables, sums in float32. Held to the plain forms in `tables`, `forecast` and `pairs` by
tests, which Triton's interpreter runs without a GPU. Shapes: N vectors, R rows (candidates), B reconstructions, D
dimension, K codewords, E embedding width, H hidden width, L blocks, O width of what errors are told in, d of forecasts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# wider layers do not fit a program's registers, more blocks make long programs; of fewer dimensions a forecast
# has as many as there are, which need not be a power of two
_WIDEST, _LONGEST, _FEWEST = 256, 4, 32
# groups of a beam's codewords whose least scores are told; columns taken at a time
_GROUPS, _COLUMNS = 32, 128

Rows = tuple[Tensor, Tensor]
"""Codewords, and the reconstruction that goes with each: int64 [R] both."""


def fits(K: int, L: int, E: int, H: int, D: int) -> bool:
    """Whether the kernels take a network of these sizes."""
    layers = all(width <= _WIDEST and width & (width - 1) == 0 for width in (E, H))
    return layers and E >= 16 and H >= 32 and L <= _LONGEST and K >= 16 and D >= _FEWEST


def rehearse(K: int, L: int, E: int, H: int, D: int) -> None:
    """Run every kernel once at these sizes, on zeros: raises whatever there is that Triton lacks here."""

    def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="cuda")

    single, whole, O, U = torch.float32, torch.int64, min(D, E), -(-H // 2)
    rows = zeros(1, dtype=whole), zeros(1, dtype=whole)
    r, norm = residuals(zeros(1, D, dtype=single), zeros(1, D, dtype=single), torch.bfloat16)
    scores(r, norm, zeros(K, D), zeros(K))
    books, beams = (zeros(K, _FEWEST, dtype=single),) * 2, (zeros(1, _FEWEST),) * 2
    forecast(norm, zeros(K, H), zeros(1, H), zeros(_FEWEST, U), books, beams, rows)
    tables, blocks = (zeros(K, E, dtype=single), zeros(K, H)), (zeros(E, H), zeros(L - 1, H, E), zeros(L - 1, E, H))
    target = zeros(1, O), zeros(K, O, dtype=single), None if D == E else zeros(O, E)
    z, _ = evaluate(tables, (zeros(1, E), zeros(1, H)), blocks, rows, target)
    gaps(r, zeros(K, D, dtype=single), rows)
    refine(zeros(1, E, dtype=single), z, rows[0], zeros(K, E, dtype=single), rows)
    torch.cuda.synchronize()


def residuals(x_ND: Tensor, xhat_BD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Residuals x − x̂, as many for every vector, in that dtype [B, D], and their squared norms, float32 [B]."""
    B, D = xhat_BD.shape
    r, norm = xhat_BD.new_empty(B, D, dtype=dtype), xhat_BD.new_empty(B)
    per = B // max(1, len(x_ND))
    _residuals[_grid(B, 16)](x_ND, xhat_BD, r, norm, B, per, D=D, SIZE=16, COLUMNS=_COLUMNS, num_warps=4)
    return r, norm


def scores(r_BD: Tensor, norm_B: Tensor, g_KD: Tensor, g_norm_K: Tensor) -> tuple[Tensor, Tensor]:
    """‖r − G[k]‖² of all codewords [B, K], and the least of every group: group g is of the k with k % groups = g.

    Args:
        r_BD: residuals, in the dtype of g.
        norm_B: their squared norms.
        g_KD: −2 G.
        g_norm_K: ‖G‖².
    """
    B, D = r_BD.shape
    K, groups = len(g_KD), min(_GROUPS, len(g_KD))
    score, least = norm_B.new_empty(B, K), norm_B.new_empty(B, groups)
    sizes = {"D": D, "K": K, "GROUPS": groups, "SIZE": 64, "COLUMNS": min(_COLUMNS, triton.next_power_of_2(max(16, D)))}
    _scores[_grid(B, 64)](r_BD, norm_B, g_KD, g_norm_K, score, least, B, **sizes, num_warps=4)
    return score, least


def forecast(
    error_R: Tensor, u_KH: Tensor, h_BH: Tensor, hidden_dU: Tensor, books: Rows, beams: Rows, rows: Rows
) -> Tensor:
    """‖r − f‖² of every row, about, float32 [R]; see `forecast.Forecast`.

    Args:
        error_R: ‖r − G[k]‖².
        u_KH: the part of the hidden layer that belongs to a codeword.
        h_BH: the part that belongs to a reconstruction.
        hidden_dU: what its first U units are multiplied by, in the dtype of products.
        books: what a codeword adds to y, and takes from the residual [K, d].
        beams: what a reconstruction adds to y, and the residual [B, d].
        rows: what to forecast.
    """
    error = torch.empty_like(error_R)
    d, U = hidden_dU.shape
    sizes = {"H": u_KH.shape[1], "U": U, "d": d, "SIZE": 128}
    tensors = (error_R, u_KH, h_BH, hidden_dU, *books, *beams, *rows, error)
    _forecast[_grid(len(error), 128)](*tensors, len(error), **sizes, num_warps=4, num_stages=2)
    return error


def evaluate(
    tables: tuple[Tensor, Tensor],
    beams: tuple[Tensor, Tensor],
    blocks: tuple[Tensor, Tensor, Tensor],
    rows: Rows,
    target: tuple[Tensor, Tensor, Tensor | None] | None,
) -> tuple[Tensor, Tensor]:
    """The embedding after all blocks, in the dtype of products [R, E], and the errors float32 [R].

    Args:
        tables: a [K, E] and u [K, H] of `tables`.
        beams: P x̂ [B, E] and W_up₁ P x̂ [B, H].
        blocks: W_down of the first [E, H], W_up [L − 1, H, E] and W_down [L − 1, E, H] of the others.
        rows: what to evaluate.
        target: errors are ‖r[beam] − c[k] − shape z‖²: r [B, O], c [K, O], and shape [O, E] or None for z itself.
            Without a target there are no errors.
    """
    R, (E, H), L = len(rows[0]), blocks[0].shape, 1 + len(blocks[1])
    z = blocks[0].new_empty(R, E)
    error = torch.empty(R if target else 0, device=z.device)
    r, c, shape = target or (*tables, None)
    sizes = {"L": L, "E": E, "H": H, "O": r.shape[1], "O_PADDED": max(16, triton.next_power_of_2(r.shape[1]))}
    choices = {"SHAPED": shape is not None, "TOLD": target is not None, "SIZE": 64, "UNITS": min(64, H)}
    tensors = (*tables, *beams, *blocks, *rows, z, r, c, z if shape is None else shape, error)
    _evaluate[_grid(R, 64)](*tensors, R, **sizes, **choices, num_warps=4, num_stages=3)
    return z, error


def gaps(r_BD: Tensor, c_KD: Tensor, rows: Rows) -> Tensor:
    """‖r[beam] − c[k]‖² of every row, float32 [R]."""
    R, D = len(rows[0]), r_BD.shape[1]
    error = torch.empty(R, device=r_BD.device)
    _gaps[_grid(R, 16)](r_BD, c_KD, *rows, error, R, D=D, SIZE=16, COLUMNS=_COLUMNS, num_warps=4)
    return error


def refine(
    xhat_BD: Tensor, out_XD: Tensor, row_R: Tensor, c_KD: Tensor, rows: Rows, refined: Tensor | None = None
) -> Tensor:
    """x̂[beam] + out[row] + c[k] of every row, float32 [R, D]; in `refined`, which is x̂ where row r is of beam r."""
    R, D = len(row_R), xhat_BD.shape[1]
    refined = xhat_BD.new_empty(R, D) if refined is None else refined
    tensors = (xhat_BD, out_XD, row_R, c_KD, *rows, refined)
    _refine[_grid(R, 16)](*tensors, R, D=D, SIZE=16, COLUMNS=_COLUMNS, num_warps=4)
    return refined


def _grid(count: int, size: int) -> tuple[int]:
    return (triton.cdiv(count, size),)


@triton.jit
def _residuals(x, xhat, r_B, norm_B, B, per, D: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    norm = tl.zeros([SIZE], tl.float32)
    for first in range(0, D, COLUMNS):
        i = first + tl.arange(0, COLUMNS)
        inside = (row < B)[:, None] & (i < D)[None, :]
        gap = tl.load(x + (row // per)[:, None] * D + i[None, :], inside, 0.0)
        gap -= tl.load(xhat + row[:, None] * D + i[None, :], inside, 0.0)
        tl.store(r_B + row[:, None] * D + i[None, :], gap.to(r_B.dtype.element_ty), inside)
        norm += tl.sum(gap * gap, axis=1)
    tl.store(norm_B + row, norm, row < B)


@triton.jit
def _scores(
    r_B,
    norm_B,
    g,
    g_norm,
    score,
    least_B,
    B,
    D: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = row < B
    norm = tl.load(norm_B + row, inside, 0.0)
    group = tl.arange(0, GROUPS)
    least = tl.full([SIZE, GROUPS], float("inf"), tl.float32)
    for member in range(0, K, GROUPS):
        k = member + group
        total = tl.zeros([SIZE, GROUPS], tl.float32)
        for first in range(0, D, COLUMNS):
            i = first + tl.arange(0, COLUMNS)
            r = tl.load(r_B + row[:, None] * D + i[None, :], inside[:, None] & (i < D)[None, :], 0.0)
            book = tl.load(g + k[None, :] * D + i[:, None], (i < D)[:, None], 0.0)
            total = tl.dot(r, book, total, input_precision="ieee")
        total += norm[:, None] + tl.load(g_norm + k).to(tl.float32)[None, :]
        tl.store(score + row[:, None] * K + k[None, :], total, inside[:, None])
        least = tl.minimum(least, total)
    tl.store(least_B + row[:, None] * GROUPS + group[None, :], least, inside[:, None])


@triton.jit
def _forecast(
    before_R,
    u,
    h_B,
    hidden,
    y_K,
    c_K,
    y_B,
    r_B,
    k_R,
    beam_R,
    error_R,
    R,
    H: tl.constexpr,
    U: tl.constexpr,
    d: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = row < R
    k = tl.load(k_R + row, inside, 0)[:, None]
    beam = tl.load(beam_R + row, inside, 0)[:, None]
    unit = tl.arange(0, U)[None, :]
    i = tl.arange(0, d)[None, :]
    h = tl.load(u + k * H + unit).to(tl.float32) + tl.load(h_B + beam * H + unit).to(tl.float32)
    y = tl.load(y_K + k * d + i) + tl.load(y_B + beam * d + i).to(tl.float32)
    weight = tl.load(hidden + tl.arange(0, d)[None, :] * U + tl.arange(0, U)[:, None])
    y = tl.dot(tl.maximum(h, 0.0).to(hidden.dtype.element_ty), weight, y, input_precision="ieee")
    r = tl.load(r_B + beam * d + i).to(tl.float32) - tl.load(c_K + k * d + i)
    # ‖r − y‖² − ‖r‖²
    change = tl.sum(y * (y - 2 * r), axis=1)
    tl.store(error_R + row, tl.load(before_R + row, inside, 0.0) + change, inside)


@triton.jit
def _evaluate(
    a,
    u,
    z_B,
    h_B,
    first_down,
    ups,
    downs,
    k_R,
    beam_R,
    z_R,
    r_B,
    c_K,
    shape,
    error_R,
    R,
    L: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    O: tl.constexpr,
    O_PADDED: tl.constexpr,
    SHAPED: tl.constexpr,
    TOLD: tl.constexpr,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = row < R
    k = tl.load(k_R + row, inside, 0)[:, None]
    beam = tl.load(beam_R + row, inside, 0)[:, None]
    e = tl.arange(0, E)
    unit = tl.arange(0, UNITS)
    kind = first_down.dtype.element_ty
    z = tl.load(a + k * E + e[None, :]).to(tl.float32) + tl.load(z_B + beam * E + e[None, :]).to(tl.float32)
    for first in range(0, H, UNITS):
        j = (first + unit)[None, :]
        h = tl.load(u + k * H + j).to(tl.float32) + tl.load(h_B + beam * H + j).to(tl.float32)
        down = tl.load(first_down + e[None, :] * H + (first + unit)[:, None])
        z = tl.dot(tl.maximum(h, 0.0).to(kind), down, z, input_precision="ieee")
    for block in tl.static_range(0, L - 1):
        rounded = z.to(kind)
        for first in range(0, H, UNITS):
            up = tl.load(ups + (block * H + first + unit)[None, :] * E + e[:, None])
            h = tl.dot(rounded, up, input_precision="ieee")
            down = tl.load(downs + block * E * H + e[None, :] * H + (first + unit)[:, None])
            z = tl.dot(tl.maximum(h, 0.0).to(kind), down, z, input_precision="ieee")
    rounded = z.to(kind)
    tl.store(z_R + row[:, None] * E + e[None, :], rounded, inside[:, None])
    if TOLD:
        o = tl.arange(0, O_PADDED)
        there = (o < O)[None, :]
        if SHAPED:
            weight = tl.load(shape + o[None, :] * E + e[:, None], there, 0.0)
            z = tl.dot(rounded, weight, input_precision="ieee")
        gap = tl.load(r_B + beam * O + o[None, :], there, 0.0).to(tl.float32)
        gap -= tl.load(c_K + k * O + o[None, :], there, 0.0) + z
        tl.store(error_R + row, tl.sum(gap * gap, axis=1), inside)


@triton.jit
def _gaps(r_B, c_K, k_R, beam_R, error_R, R, D: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = row < R
    k = tl.load(k_R + row, inside, 0)[:, None]
    beam = tl.load(beam_R + row, inside, 0)[:, None]
    error = tl.zeros([SIZE], tl.float32)
    for first in range(0, D, COLUMNS):
        i = (first + tl.arange(0, COLUMNS))[None, :]
        gap = tl.load(r_B + beam * D + i, i < D, 0.0).to(tl.float32) - tl.load(c_K + k * D + i, i < D, 0.0)
        error += tl.sum(gap * gap, axis=1)
    tl.store(error_R + row, error, inside)


@triton.jit
def _refine(xhat, out, row_R, c_K, k_R, beam_R, refined, R, D: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < R
    row = tl.load(row_R + place, inside, 0)[:, None]
    k = tl.load(k_R + place, inside, 0)[:, None]
    beam = tl.load(beam_R + place, inside, 0)[:, None]
    for first in range(0, D, COLUMNS):
        i = (first + tl.arange(0, COLUMNS))[None, :]
        there = inside[:, None] & (i < D)
        total = tl.load(xhat + beam * D + i, there, 0.0) + tl.load(c_K + k * D + i, there, 0.0)
        total += tl.load(out + row * D + i, there, 0.0).to(tl.float32)
        tl.store(refined + place[:, None] * D + i, total, there)
