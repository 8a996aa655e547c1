"""Work recorded on a GPU and replayed; on a CPU it is called as it is."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from qinco_core.api import Codec
from qinco_core.codec.engine import Engine
from qinco_core.codec.graph import Graphs
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig, ModelConfig

GPU = torch.cuda.is_available()
on_gpu = pytest.mark.skipif(not GPU, reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
SEARCH = EncodeConfig(A=8, B=8).fast


def engine(precision: str = "auto") -> Engine:
    torch.manual_seed(0)
    network = Network(ModelConfig(D=32, M=3, K=64, L=2, E=32, H=32)).requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    network.std.fill_(1.0)
    return Engine(network, plan("cuda" if GPU else "cpu", precision, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_every_call_counts_once(device: str, kinds: int) -> None:
    """Whether it runs as it is, is being recorded or replayed; as many kinds as are kept, and one more."""
    total = torch.zeros(3, device=device)

    def work(x: Tensor, more: Tensor | None) -> Tensor:
        total.add_(x.sum(0) if more is None else x.sum(0) + more)
        return x * 2

    graphs, wanted = Graphs(torch.device(device)), torch.zeros(3)
    for call in range(40):
        kind = call % kinds
        x = torch.full((2, 3), call + 0.5).to(torch.float64 if kind == 2 else torch.float32)
        more = torch.full((3,), float(call)) if kind == 1 else None
        wanted += x.sum(0) if more is None else x.sum(0) + more
        found = graphs("work", work, x.to(device), None if more is None else more.to(device))
        assert torch.equal(found.cpu(), 2 * x)
        assert torch.equal(total.cpu(), wanted)


def test_an_engine_is_freed_at_once() -> None:
    gc.disable()
    try:
        made = engine()
        made.encode(torch.randn(50, 32), SEARCH)
        seen = weakref.ref(made)
        del made
        assert seen() is None
    finally:
        gc.enable()


def test_the_layout_and_dtype_of_vectors_do_not_matter() -> None:
    """Nor whether vectors of another kind were encoded before."""
    made = engine()
    v = torch.randint(-4, 4, (60, 32)).float()
    codes, _ = made.encode(v, SEARCH)
    for _ in range(3):
        for same in (v.T.contiguous().T, v.double(), v.to(torch.int8), torch.cat([v, v], dim=1)[:, :32], v):
            assert torch.equal(made.encode(same, SEARCH)[0], codes)


def test_no_vectors_are_no_codes() -> None:
    made = engine()
    for search in (SEARCH, EncodeConfig(A=4, B=8), EncodeConfig(A=4, B=1)):
        assert made.encode(torch.empty(0, 32), search)[0].shape == (0, 3)
    assert made.decode(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 32)


@on_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_chunks_are_those_that_ran(precision: str) -> None:
    made = engine(precision)
    made.chunk_rows = 48 * 10
    v = torch.randn(333, 32)
    with torch.no_grad():
        wanted = made._encode_rows(v.cuda(), search=SEARCH).cpu()
    for _ in range(4):
        assert (made.encode(v, SEARCH)[0] == wanted).float().mean() > 0.98
        v, wanted = v.flip(0), wanted.flip(0)


@on_gpu
def test_recorded_steps_train_like_those_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)

    def val_mse() -> float:
        small = {"M": 4, "K": 16, "E": 16, "H": 32, "A": 4, "B": 4}
        short = {"epoch_size": 1536, "encode_batch": 512, "batch": 256, "val": 500, "kmeans_iterations": 3}
        how = {"preset_name": "qinco2-XS", "device": "cuda", "precision": "float32"}
        return Codec.train(vectors, changes=small, epochs=3, training=short, **how).training["val_mse"]

    recorded = val_mse()
    monkeypatch.setattr(Graphs, "__call__", lambda _, name, work, *inputs: work(*inputs))
    assert recorded == pytest.approx(val_mse(), rel=0.02)
