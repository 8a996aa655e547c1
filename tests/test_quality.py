"""What the project promises, at the size it promises it: qinco2-S on the sample, minutes of work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.engine import Engine
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig
from qinco_core.evaluation.baselines import run_baseline
from qinco_core.vectors import open_vectors

pytestmark = pytest.mark.slow

PUBLISHED = EncodeConfig(A=16, B=32)


@pytest.fixture(scope="module")
def model(sift_learn: Path) -> Codec:
    """Some 90 seconds on two cores."""
    return Codec.train(sift_learn, preset_name="qinco2-S", training={"samples": 1_200_000, "epoch_size": 300_000})


@pytest.fixture(scope="module")
def base(sift_learn: Path) -> torch.Tensor:
    with open_vectors(sift_learn.with_name("sift_base.u8bin")) as file:
        return torch.from_numpy(file.read(0, 1500))


def error(model: Codec, v: torch.Tensor, codes: torch.Tensor) -> float:
    network = model.network
    return float((network.denormalize(network.decode(codes)) - v).double().square().sum(1).mean())


def test_every_mode_of_the_engine_is_as_good_as_the_reference(model: Codec, base: torch.Tensor) -> None:
    network = model.network
    wanted = error(model, base, reference.encode(network, network.normalize(base), PUBLISHED)[0])
    exact = Engine(network, plan("cpu", "float32")).encode(base, PUBLISHED)[0]
    assert error(model, base, exact) == pytest.approx(wanted, rel=1e-3)
    for precision in ("float32", "bfloat16"):
        fast = Engine(network, plan("cpu", precision)).encode(base, PUBLISHED.fast)[0]
        assert error(model, base, fast) <= wanted * 1.005, precision


def test_it_beats_what_faiss_has_at_the_same_bytes(model: Codec, base: torch.Tensor, sift_learn: Path) -> None:
    with open_vectors(sift_learn) as file:
        xt = file.read(0, len(file)).astype(np.float32)
    xb = base.numpy().astype(np.float32)
    ours = error(model, base, model.encode(base))
    for name in ("PQ", "RQ"):
        assert ours < 0.85 * run_baseline(name, xt, xb, 8, seed=0).mse, name
