"""What a GPU would run, on the CPU: the torch forms of everything, traced as one graph.

A chunk that waited for a value of the GPU (a number read back, a shape that depends on data) would break the graph.
"""

from __future__ import annotations

import pytest
import torch

from qinco_core.codec import engine, forecast, pairs, tables, workers
from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig, ModelConfig


@pytest.fixture
def gpu_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that asks where a tensor is goes the way of GPUs."""
    forms = {
        "best_pairs": pairs.torch_best_pairs,
        "add": lambda _, *rows: pairs.torch_add(*rows),
        "add_relu": lambda _, book, k, rows, beam, width: pairs.torch_add(
            book[:, :width], k, rows[:, :width], beam
        ).relu_(),
        "squared_gaps": lambda r, beam, c, k, z=None: pairs.torch_squared_gaps(r, beam, c, k, z),
    }
    for name, form in forms.items():
        monkeypatch.setattr(pairs, name, form)
    for module in (workers, tables, engine, forecast):
        if hasattr(module, "scratch"):
            monkeypatch.setattr(
                module, "scratch", lambda _, shape, dtype=torch.float32, device=None: torch.empty(shape, dtype=dtype)
            )


@pytest.mark.usefixtures("gpu_forms")
def test_a_chunk_is_one_graph() -> None:
    torch.manual_seed(0)
    network = Network(ModelConfig(D=16, M=3, K=32, L=2, E=8, H=16))
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    fast = EncodeConfig(A=16, B=8).fast
    assert fast.full  # forecasts take part
    found = Engine(network, plan("cpu", "float32", 1))
    v = torch.randn(40, 16)
    codes = found.encode(v, fast)[0]
    with torch.no_grad():
        encode, decode = (
            torch.compile(work, fullgraph=True, dynamic=False, backend="eager")
            for work in (lambda v: found._encode_rows(v, search=fast), found.decode_rows)
        )
        assert torch.equal(encode(v), codes)
        torch.testing.assert_close(decode(codes), found.decode(codes))
