"""The parts of training by themselves: loss, gradients, schedule, normalisation, codewords."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qinco_core.api import Codec
from qinco_core.codec.network import Network, Step
from qinco_core.codec.precision import plan
from qinco_core.config import PRESETS, ModelConfig, TrainConfig
from qinco_core.errors import UsageError
from qinco_core.progress import Silent
from qinco_core.training.codewords import replace_unused
from qinco_core.training.data import TrainingData, normalisation
from qinco_core.training.gradients import Gradients
from qinco_core.training.initialise import initialise_weights, kmeans, nearest
from qinco_core.training.loss import chain_loss
from qinco_core.training.recipes import model_and_search, recipe
from qinco_core.training.schedule import Budget, peak_rate, rate
from qinco_core.training.state import new_state
from qinco_core.vectors import open_vectors

VARIANTS = pytest.mark.parametrize(
    ("rules", "E", "ivf", "rank"), list(itertools.product(("qinco1", "qinco2"), (8, 12), (0, 5), (0, 3)))
)


def random_network(rules: str = "qinco2", E: int = 8, ivf: int = 0, rank: int = 0) -> Network:
    torch.manual_seed(3)
    config = ModelConfig(rules=rules, D=12, M=4, K=8, L=2, E=E, H=16, preselect=rules == "qinco2", ivf_K=ivf, rank=rank)
    network = Network(config)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    return network


@VARIANTS
def test_loss_is_the_sum_of_method_4(rules: str, E: int, ivf: int, rank: int) -> None:
    """Against the formula, written with the plain network."""
    network = random_network(rules, E, ivf, rank)
    x, codes = torch.randn(30, 12), torch.randint(8, (30, 4))
    lists = torch.randint(5, (30,)) if ivf else None
    expected = torch.zeros(())
    used = 0 if ivf else 1
    for m in range(1, 5):
        xhat = network.decode(codes, m, lists)
        expected = expected + (xhat - x).square().mean()
        if m > used and rules == "qinco2":
            before = network.decode(codes, m - 1, lists) if m > 1 else network.start(codes, lists)[0]
            guess = network.steps[m - 1 - used].preselect[codes[:, m - 1]]
            expected = expected + (before.detach() + guess - x).square().mean()
    loss, error = chain_loss(network, x, codes, lists)
    torch.testing.assert_close(loss / 30, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(error / 30, (network.decode(codes, 4, lists) - x).square().mean(), rtol=1e-4, atol=1e-5)


@VARIANTS
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_by_hand_are_those_of_autograd(rules: str, E: int, ivf: int, rank: int, threads: int) -> None:
    """Of every parameter, whatever the model and the number of threads, added up over batches."""
    network = random_network(rules, E, ivf, rank)
    x, codes = torch.randn(1300, 12), torch.randint(8, (1300, 4))
    lists = torch.randint(5, (1300,)) if ivf else None
    loss, error = chain_loss(network, x, codes, lists)
    expected = torch.autograd.grad(loss / 1300, list(network.parameters()))
    sums = float(loss.detach()) / 1300, float(error) / 1300
    gradients = Gradients(network, plan("cpu", "float32", threads))
    for _ in range(2):  # the second time from memory that has been used
        gradients.zero()
        found = [
            gradients.add((x[rows], codes[rows], None if lists is None else lists[rows]), 1 / 1300)
            for rows in (slice(0, 700), slice(700, 1300))
        ]
        assert tuple(map(sum, zip(*found, strict=True))) == pytest.approx(sums, rel=1e-5)
        for parameter, wanted in zip(network.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-6)


def test_gradients_of_one_codebook_alone() -> None:
    network = Network(ModelConfig(D=4, M=1, K=8))
    codes = torch.tensor([[3], [3], [5]])
    gradients = Gradients(network, plan("cpu", "float32", 2))
    loss, error = gradients.add((torch.ones(3, 4), codes, None), 1 / 3)
    assert loss == error == pytest.approx(1)
    assert network.codebook0 is not None and network.codebook0.grad is not None
    assert network.codebook0.grad[:, 0].tolist() == pytest.approx([0, 0, 0, -1 / 3, 0, -1 / 6, 0, 0])


def test_gradients_in_bfloat16_are_near_those_in_float32() -> None:
    network = random_network()
    batch = torch.randn(600, 12), torch.randint(8, (600, 4)), None
    both = []
    for precision in ("float32", "bfloat16"):
        Gradients(network, plan("cpu", precision, 2)).add(batch, 1 / 600)
        both.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).clone())
    assert 0 < (both[1] - both[0]).norm() < 0.02 * both[0].norm()


@pytest.mark.parametrize("rank", [0, 3])
def test_where_networks_start(rank: int) -> None:
    """QINCo2: W_cat and W_down zero, so f(c, x̂) = c + W_out W_in c. QINCo1: nothing zero, as PyTorch fills layers."""
    for rules in ("qinco2", "qinco1"):
        step = random_network(rules, rank=rank).steps[0]
        assert isinstance(step, Step)
        step.b_cat.data.zero_()
        step.w_down.data.zero_()
        for matrix in step.concatenation:
            matrix.data.zero_()
        initialise_weights(step, torch.Generator().manual_seed(0))
        c, xhat = torch.randn(5, 12), torch.randn(5, 12)
        changes = (step(c, xhat) - step(c, 0 * xhat)).abs().max()
        if rules == "qinco2":
            assert changes == 0
            torch.testing.assert_close(step(c, xhat), c + c @ step.w_in.T @ step.w_out.T)
            assert [bool(matrix.any()) for matrix in step.concatenation] == [False, True][: len(step.concatenation)]
        else:
            assert changes > 0
            fan_in = rank or 8 + 12
            assert 0.5 / fan_in**0.5 < step.b_cat.abs().max() <= 1 / fan_in**0.5
            for matrix in (*step.concatenation, *step.w_down):
                assert 0.5 / matrix.shape[1] ** 0.5 < matrix.abs().max() <= 1 / matrix.shape[1] ** 0.5


def test_learning_rate() -> None:
    config = TrainConfig(samples=1000, warmup=0.1)
    assert rate(config, 2.0, 0.0) == 0.0
    assert rate(config, 2.0, 0.05) == pytest.approx(1.0)
    assert rate(config, 2.0, 0.1) == pytest.approx(2.0)
    assert rate(config, 2.0, 0.55) == pytest.approx(2.0 * math.cos(math.pi / 4))
    assert rate(config, 2.0, 1.0) == pytest.approx(2e-3)
    small, *large = (ModelConfig(D=D, E=E, L=L, H=E) for D, E, L in [(128, 128, 2), (768, 128, 2), (128, 384, 4)])
    assert peak_rate(config, 100, small) > peak_rate(config, 100_000, small)
    assert peak_rate(TrainConfig(samples=1, lr=0.5), 100, large[0]) == 0.5
    assert peak_rate(config, 100, small) == peak_rate(config, 100, ModelConfig(D=384, E=64, L=1, H=64))
    # as measured: docs/log.md
    assert peak_rate(config, 100, large[0]) == pytest.approx(3.2e-3)
    assert peak_rate(config, 100, large[1]) == pytest.approx(1.5e-3, rel=0.02)
    assert peak_rate(config, 100, PRESETS["qinco2-L"].model(128)) == pytest.approx(7.5e-4, rel=0.02)
    long = [PRESETS[name].model(128, M=M) for name, M in (("qinco2-S", 16), ("qinco2-S", 32), ("qinco2-XS", 32))]
    assert [peak_rate(config, 100, model) for model in long] == pytest.approx([4.5e-3, 3.2e-3, 4.5e-3], rel=0.02)


def test_what_a_run_on_a_gpu_does_otherwise() -> None:
    """It looks wider, and with a time budget takes larger steps; not with large models, nor by the paper's recipe."""

    def chosen(preset: str, **options: Any) -> tuple[int, ...]:
        config = recipe(*model_and_search(preset, 128, {}), 200_000, **options)
        return config.batch, config.encode_batch, config.A, config.B, config.late_A, config.late_B

    usual = (1024, 4096, 2, 1, 4, 2)
    assert chosen("qinco2-S", seconds=60.0) == chosen("qinco2-S", epochs=3) == usual
    assert chosen("qinco2-S", seconds=60.0, device="cuda") == (4096, 16384, 4, 2, 8, 4)
    assert chosen("qinco2-S", epochs=3, device="cuda") == (1024, 4096, 4, 2, 8, 4)
    assert chosen("qinco2-S", seconds=60.0, device="cuda", changes={"batch": 512, "A": 3})[:3] == (512, 16384, 3)
    large, paper = {"seconds": 60.0}, {"seconds": 60.0, "changes": {"recipe": "paper"}}
    assert chosen("qinco2-L", **large, device="cuda") == chosen("qinco2-L", **large)
    assert chosen("qinco2-S", **paper, device="cuda") == chosen("qinco2-S", **paper)
    with pytest.raises(UsageError, match="device"):
        chosen("qinco2-S", seconds=60.0, device="tpu")


def test_budgets() -> None:
    work = Budget.of(TrainConfig(samples=1000, epoch_size=250), 5000)
    assert [work.rounds(n, 1e9) for n in (0, 249, 250, 1000)] == [0, 0, 1, 4]
    assert work.fraction(500, 0) == 0.5 and work.fraction(2000, 0) == 1.0
    timed = Budget.of(TrainConfig(seconds=320), 5000)
    assert [timed.rounds(0, s) for s in (0, 19.9, 20, 320)] == [0, 0, 1, 16]
    assert timed.fraction(10**9, 80) == 0.25
    short = Budget.of(TrainConfig(seconds=28), 5000)  # too short for two rounds: one, not one and a stub
    assert [short.rounds(0, s) for s in (15, 27.9, 28)] == [0, 0, 1]


def test_normalisation(sift_learn: Path) -> None:
    with open_vectors(sift_learn, limit=3000) as file:
        v = file.read(0, 3000).astype(np.float64)
        mean, std = normalisation(file, "qinco2")
        low, half = normalisation(file, "qinco1")
    np.testing.assert_allclose(mean, v.mean(0), rtol=1e-6)
    assert float(std) == pytest.approx(v.std(), rel=1e-6)
    assert set(low.tolist()) == {v.min() + 1} and float(half) == (v.max() - v.min()) / 2


def test_an_epoch_draws_every_vector_once(sift_learn: Path) -> None:
    with open_vectors(sift_learn, limit=1100) as file:
        data = TrainingData(file, ModelConfig(D=128, K=16), TrainConfig(samples=1, encode_batch=250, val=100))
        v = file.read(0, 1000)
        first = np.concatenate([data.draw(i)[0].numpy() for i in range(4)])
        again = np.concatenate([data.draw(i)[0].numpy() for i in range(4, 8)])
        assert np.array_equal(data.draw(2)[0], first[500:750])
    assert not np.array_equal(first, again)
    for drawn in (first, again):
        assert np.array_equal(v[np.lexsort(v.T)], drawn[np.lexsort(drawn.T)])


def test_kmeans_repairs_empty_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(200, 4, generator=generator), torch.randn(200, 4, generator=generator) + 50])
    centroids = kmeans(x, 8, 20, generator, plan("cpu"), Silent(), lambda: False)
    assert torch.bincount(nearest(x, centroids, plan("cpu")), minlength=8).min() > 0
    with pytest.raises(KeyboardInterrupt):
        kmeans(x, 8, 20, generator, plan("cpu"), Silent(), lambda: True)


def test_unused_codewords_come_back(trained: Codec) -> None:
    network = Network.from_arrays(trained.config, trained.network.to_arrays()).requires_grad_()
    state = new_state(network, TrainConfig(samples=1))
    loss, _ = chain_loss(network, torch.randn(64, 128), torch.randint(64, (64, 8)), None)
    loss.backward()
    state.optimizer.step()
    before = network.steps[2].codebook.detach().clone()
    usage = torch.ones(8, 64, dtype=torch.int64)
    usage[3, 5] = 0
    usage[3, 9] = 1000
    replace_unused(network, state.optimizer, usage, torch.Generator().manual_seed(0))
    book = network.steps[2].codebook.detach()
    moved = (book != before).any(1).nonzero()[:, 0].tolist()
    assert moved == [5]
    assert (book[5] - book[9]).norm() < 0.1 * (before[5] - before[9]).norm() + book.std() * 2
    assert state.optimizer.state[network.steps[2].codebook]["exp_avg"][5].abs().max() == 0
