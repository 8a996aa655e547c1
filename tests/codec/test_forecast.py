"""The forecast of a candidate's error against the error that its network gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qinco_core.api import Codec
from qinco_core.codec.engine import Engine
from qinco_core.codec.forecast import fit_forecasts
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.codec.tables import StepTables
from qinco_core.config import EncodeConfig, ModelConfig

PLAN = plan("cpu", "float32", 1)


def candidates(tables: StepTables, xhat: Tensor, residual: Tensor, k: Tensor, beam: Tensor) -> tuple[Tensor, ...]:
    """‖r − G[k]‖², the inputs of a forecast, and ‖r − f‖² of some candidates."""
    z, h_B = (part.clone() for part in tables.embed_beams(xhat))
    f = tables.refine_(torch.zeros(len(k), xhat.shape[1]), tables.embed(z, h_B, k, beam), k)
    rough = (residual[beam] + tables.preselect[k] / 2).square().sum(1)
    return rough, z, h_B, (residual[beam] - f).square().sum(1)


@pytest.mark.parametrize(("D", "E"), [(12, 12), (12, 8), (8, 12)])
def test_what_is_linear_is_forecast_exactly(D: int, E: int) -> None:
    """Without residual blocks f is linear in x̂ for every codeword."""
    torch.manual_seed(0)
    network = Network(ModelConfig(D=D, M=3, K=16, L=2, E=E, H=20)).requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    for step in network.steps:
        step.w_down.zero_()
    steps = [StepTables(step, PLAN) for step in network.steps]
    forecasts = fit_forecasts(network.codebook0, steps)
    residual = torch.randn(6, D)
    k, beam = torch.randint(16, (50,)), torch.randint(6, (50,))
    for m, forecast in enumerate(forecasts, start=1):
        xhat = network.decode(torch.randint(16, (6, 3)), m)
        rough, z, h_B, error = candidates(forecast.tables, xhat, residual, k, beam)
        found = forecast.errors(rough, z, h_B, residual, k, beam)
        torch.testing.assert_close(found, error, rtol=1e-2, atol=1e-2)
        assert (rough - error).abs().mean() > 0.5


def test_forecasts_are_much_nearer_than_the_pre_selection(trained: Codec) -> None:
    network = trained.network
    engine = Engine(network, PLAN)
    x = network.normalize(torch.randn(40, 128) * network.std + network.mean)
    for forecast in engine._forecasts:
        xhat = network.codebook0[torch.randint(len(network.codebook0), (40,))]
        k, beam = torch.randint(64, (400,)), torch.randint(40, (400,))
        rough, z, h_B, error = candidates(forecast.tables, xhat, x - xhat, k, beam)
        found = forecast.errors(rough, z, h_B, x - xhat, k, beam)
        assert (found - error).square().mean() < 0.5 * (rough - error).square().mean()


def test_the_order_of_hidden_units_changes_nothing(trained: Codec) -> None:
    tables = StepTables(trained.network.steps[3], PLAN)
    other = tables.with_hidden_in_order(torch.arange(tables.sizes[1]).flip(0))
    xhat, residual = torch.randn(6, 128), torch.randn(6, 128)
    k, beam = torch.randint(64, (50,)), torch.randint(6, (50,))
    found = [candidates(each, xhat, residual, k, beam)[3].clone() for each in (tables, other)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_evaluating_all_of_them_needs_no_forecast(trained: Codec) -> None:
    engine = Engine(trained.network, PLAN)
    v = engine.decode(torch.randint(64, (50, 8))) + torch.randn(50, 128)
    codes = [engine.encode(v, EncodeConfig(A=8, B=8, T=32, full=full))[0] for full in (0, 32, 99)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
