"""The kernels of GPUs against the plain forms: on a GPU, or run by Triton's interpreter where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
import torch

from qinco_core.codec import tables
from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.precision import Plan, plan
from qinco_core.config import EncodeConfig, ModelConfig

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when `fused` is imported
if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)
from qinco_core.codec import fused  # noqa: E402 - see above

K = 64
# D beside E: the same, with W_out to fewer and to more dimensions than E; with an IVF; three blocks
MODELS = [
    ModelConfig(D=32, M=3, K=K, L=2, E=32, H=32),
    ModelConfig(D=36, M=3, K=K, L=2, E=64, H=32),
    ModelConfig(D=40, M=3, K=K, L=1, E=16, H=64),
    ModelConfig(D=160, M=2, K=K, L=3, E=16, H=32, ivf_K=4),
    ModelConfig(D=32, M=2, K=16, L=4, E=16, H=128, rank=8),
    ModelConfig(D=32, M=3, K=K, L=2, E=32, H=32, rules="qinco1", preselect=False),
]
Pair = tuple[Engine, Engine]


def network(config: ModelConfig) -> Network:
    torch.manual_seed(0)
    made = Network(config).requires_grad_(False)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    made.std.fill_(1.0)
    return made


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModelConfig], Pair]:
    """The plain engine, and the one with kernels, of a model: in float32, in which the interpreter is exact."""

    def made(config: ModelConfig) -> Pair:
        exact = plan("cuda" if GPU else "cpu", "float32", 1)
        plain = Engine(network(config), exact)
        with monkeypatch.context() as patch:
            patch.setattr(tables, "_kernels", lambda plan, step: fused)
            return plain, Engine(network(config), exact)

    return made


def test_the_models_fit() -> None:
    assert all(fused.fits(config.K, config.L, config.E, config.H, config.D) for config in MODELS)
    few, thin, wide, odd, flat = (8, 2, 32, 32, 32), (64, 2, 48, 32, 32), (64, 2, 512, 32, 512), (64, 2, 32, 33, 32), 24
    for sizes in (few, thin, wide, odd, (64, 9, 32, 32, 32), (64, 2, 32, 16, 32), (64, 2, 32, 32, flat)):
        assert not fused.fits(*sizes)


@pytest.mark.parametrize("config", MODELS, ids=lambda config: f"{config.rules}-{config.D}-{config.E}")
@pytest.mark.parametrize("search", [EncodeConfig(A=8, B=8).fast, EncodeConfig(A=4, B=3), EncodeConfig(A=2, B=1).fast])
def test_codes_are_those_of_the_plain_forms(
    engines: Callable[[ModelConfig], Pair], config: ModelConfig, search: EncodeConfig
) -> None:
    plain, quick = engines(config)
    assert quick._steps[0].kernels is fused
    v = torch.randn(11, config.D)
    codes, lists = plain.encode(v, search)
    found, _ = quick.encode(v, search, lists)
    assert quick.encode(v[:0], search)[0].shape == (0, config.M)
    assert (found == codes).float().mean() > 0.98  # sums in another order part a tie otherwise
    decoded, wanted = quick.decode(codes, lists_N=lists), plain.decode(codes, lists_N=lists)
    torch.testing.assert_close(decoded, wanted, rtol=1e-3, atol=1e-2)


def test_the_least_of_groups_bring_forth_the_best_pairs() -> None:
    torch.manual_seed(0)
    r, g = torch.randn(12, 40, device="cuda" if GPU else "cpu"), torch.randn(K, 40)
    g = g.to(r.device)
    norm = r.square().sum(1)
    score, least = fused.scores(r, norm, -2 * g, g.square().sum(1))
    wanted = torch.cdist(r, g).square()
    torch.testing.assert_close(score, wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(least, score.view(12, K // 32, 32).amin(1))
    for B, T in ((4, 20), (4, 200), (1, 3), (12, 1)):
        pair, value = tables.pairs.best_of_groups(score.view(-1, B, K), least.view(-1, B, 32), T)
        best = score.view(12 // B, B * K).topk(T, dim=1, largest=False)
        torch.testing.assert_close(value.sort(1).values, best.values.sort(1).values)
        assert torch.equal(score.view(12 // B, B * K).gather(1, pair), value)


def test_kernels_are_for_gpus_in_bfloat16() -> None:
    step = network(MODELS[0]).steps[0]
    plans = [plan("cpu", "bfloat16"), Plan(torch.device("cuda"), torch.float32, 1, "")]
    assert all(tables._kernels(each, step) is None for each in plans)  # type: ignore[arg-type]


def test_without_triton_the_plain_forms_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*sizes: int) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused, "rehearse", fails)
    tables.tried_kernels.cache_clear()
    with pytest.warns(UserWarning, match="several times slower: no C compiler"):
        assert tables.tried_kernels(64, 2, 32, 32, 32) is None
    tables.tried_kernels.cache_clear()


@pytest.mark.skipif(not GPU, reason="bfloat16 is only right on a GPU")
@pytest.mark.parametrize("config", MODELS[:4], ids=lambda config: f"{config.D}-{config.E}")
def test_bfloat16_on_a_gpu_is_as_good(config: ModelConfig) -> None:
    made = network(config)
    v = torch.randn(2000, config.D)
    search = EncodeConfig(A=8, B=8).fast
    errors = []
    for precision in ("float32", "bfloat16"):
        engine = Engine(made, plan("cuda", precision))
        assert (engine._steps[0].kernels is not None) == (precision == "bfloat16")
        codes, lists = engine.encode(v, search)
        errors.append((Engine(made, plan("cpu", "float32")).decode(codes, lists_N=lists) - v).square().sum(1).mean())
    assert errors[1] < 1.005 * errors[0]
