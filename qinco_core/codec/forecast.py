"""What a step's network will say of a candidate, forecast from its first hidden layer.

Evaluating a network in full is most of an encoder's work, and most candidates do not survive. Their order can be told
well enough from h = relu(W_up₁ z₀), which the tables of method §8.1 give for next to nothing: f − G[k] is
predicted by least squares from the units of h that say most, P x̂ and the codeword, in the few dimensions in which the
prediction varies most,

    basisᵀ (f − G[k]) ≈ y = t[k] + X P x̂ + W h
    ‖r − f‖² ≈ ‖r − G[k]‖² − ‖basisᵀ(r − G[k])‖² + ‖basisᵀ(r − G[k]) − y‖²

It is fitted to random codes of the model itself, so it needs no vectors. Shapes: R rows (candidates), B
reconstructions, D dimension, K codewords, H hidden width, d dimensions of the forecast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qinco_core.codec import pairs
from qinco_core.codec.tables import StepTables
from qinco_core.codec.workers import multiply

# dimensions of a forecast; codes to fit it to, at least and per codeword; the ridge, in codes
_RANK, _CODES, _CODES_PER_K, _RIDGE = 32, 8192, 16, 1.0
_BLOCK = 2048


class Forecast:
    """The forecast of one step.

    Attributes:
        tables: of the step, with the units of the hidden layer in the order of how much they say.
        units: so many of them, the first ones, are needed.
    """

    def __init__(self, tables: StepTables, fit: _Fit) -> None:
        """Solve for the best one.

        Args:
            tables: of the step; it has a pre-selection codebook.
            fit: sums over random codes.
        """
        assert tables.preselect is not None
        _, H = tables.sizes
        order = fit.importance().argsort(descending=True)
        self.tables = tables.with_hidden_in_order(order)
        self.units = -(-H // 2)
        weight, mean_x, mean_y, spread = fit.solve(torch.cat([order[: self.units], fit.rest]))
        # the directions in which the predictions vary most
        basis = torch.linalg.eigh(spread).eigenvectors[:, -_RANK:]

        def ready(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            return tensor.to(basis.device, dtype).contiguous()

        self._basis = ready(basis.T, tables.partial)
        self._books = ready(tables.preselect.double() @ basis / -2)
        self._codewords = ready((mean_y - mean_x @ weight) @ basis)
        self._hidden = ready((weight[: self.units] @ basis).T, tables.dtype)
        self._z = ready((weight[self.units :] @ basis).T, tables.partial)

    def errors(
        self, error_R: Tensor, z_BE: Tensor, h_BH: Tensor, residual_BD: Tensor, k_R: Tensor, beam_R: Tensor
    ) -> Tensor:
        """‖r − f‖² of every candidate, about, float32 [R].

        Args:
            error_R: ‖r − G[k]‖², r being the residual of its beam.
            z_BE: P x̂ of the reconstructions, from `tables.embed_beams`.
            h_BH: likewise.
            residual_BD: x − x̂ of each reconstruction, from `tables.residuals`.
            k_R: codewords.
            beam_R: the reconstruction that goes with each.
        """
        y_B = multiply("y_B", z_BE, self._z.T)
        r_B = multiply("r_B", residual_BD, self._basis.T)
        tables = self.tables
        if tables.kernels is not None:
            books, beams = (self._codewords, self._books), (y_B, r_B)
            found: Tensor = tables.kernels.forecast(error_R, tables.u, h_BH, self._hidden, books, beams, (k_R, beam_R))
            return found
        y = pairs.add("y", self._codewords, k_R, y_B, beam_R)
        y.add_(multiply("hidden_y", tables.activate(h_BH, k_R, beam_R, self.units), self._hidden.T))
        outside = error_R - pairs.squared_gaps(r_B, beam_R, self._books, k_R)
        return outside.add_(pairs.squared_gaps(r_B, beam_R, self._books, k_R, y))


@torch.no_grad()
def fit_forecasts(start_KD: Tensor, steps: Sequence[StepTables]) -> list[Forecast]:
    """The forecasts of every step, which all have pre-selection codebooks.

    Args:
        start_KD: where decoding starts: the plain codebook of step 0, or coarse centroids.
        steps: tables of the steps.
    """
    K = len(steps[0].codebook)
    n = max(_CODES, _CODES_PER_K * K)
    generator = torch.Generator().manual_seed(0)
    device = start_KD.device
    xhat = start_KD[torch.randint(len(start_KD), (n,), generator=generator).to(device)]
    forecasts = []
    for tables in steps:
        codes = torch.randint(K, (n,), generator=generator).to(device)
        fit = _Fit(tables)
        for x, k in zip(xhat.split(_BLOCK), codes.split(_BLOCK), strict=True):
            fit.add(x, k)
        forecasts.append(Forecast(tables, fit))
    return forecasts


class _Fit:
    """Sums over codes for the least squares of (f − G[k]) from (h, P x̂), both about their means per codeword."""

    def __init__(self, tables: StepTables) -> None:
        K, D = tables.codebook.shape
        X = sum(tables.sizes)
        self._tables = tables
        self._count, self._x, self._y, self._xx, self._xy = (
            torch.zeros(shape, dtype=torch.float64, device=tables.codebook.device)
            for shape in ((K,), (K, X), (K, D), (X, X), (X, D))
        )

    def add(self, xhat_ND: Tensor, k_N: Tensor) -> None:
        """Add codes: reconstructions, which become those of the next step, and the codeword of each."""
        tables = self._tables
        assert tables.preselect is not None
        row = torch.arange(len(k_N), device=k_N.device)
        z_NE, h_NH = tables.embed_beams(xhat_ND)
        h = tables.activate(h_NH, k_N, row)
        x = torch.cat([h.float(), z_NE.float()], dim=1)
        y = xhat_ND.neg()
        tables.refine_(xhat_ND, tables.embed(z_NE, h_NH, k_N, row), k_N)
        y += xhat_ND
        y += tables.preselect.index_select(0, k_N) / 2
        self._count += torch.bincount(k_N, minlength=len(self._count))
        self._x.index_add_(0, k_N, x.double())
        self._y.index_add_(0, k_N, y.double())
        self._xx += x.T @ x
        self._xy += x.T @ y

    @property
    def rest(self) -> Tensor:
        """The columns that are not of h."""
        return torch.arange(self._tables.sizes[1], len(self._xx), device=self._xx.device)

    def importance(self) -> Tensor:
        """How much each unit of h moves the predictions made from all of them: weight times standard deviation [H]."""
        _, H = self._tables.sizes
        weight, mean_x, *_ = self.solve(torch.arange(len(self._xx), device=self._xx.device))
        variance = self._xx.diagonal() - (mean_x * self._x).sum(0)
        moved: Tensor = torch.linalg.vector_norm(weight[:H], dim=1) * variance[:H].clamp(min=0).sqrt()
        return moved

    def solve(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights of these columns of (h, P x̂), the means per codeword of both sides, the predictions' squares."""
        count = self._count.clamp(min=1)[:, None]
        x = self._x[:, columns]
        mean_x, mean_y = x / count, self._y / count
        xx = self._xx[columns][:, columns] - mean_x.T @ x
        xx.diagonal().add_(_RIDGE)
        weight = torch.linalg.solve(xx, self._xy[columns] - mean_x.T @ self._y)
        return weight, mean_x, mean_y, weight.T @ xx @ weight + mean_y.T @ self._y
