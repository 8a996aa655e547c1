"""A concatenation matrix of low rank: the same model as with the product of its factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qinco_core.codec import reference
from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.codec.tables import StepTables
from qinco_core.config import PRESETS, EncodeConfig, ModelConfig
from qinco_core.errors import UsageError

D, K, H = 24, 16, 12


def pair(rules: str, E: int, rank: int, ivf: int = 0) -> tuple[Network, Network]:
    """A network of that rank, and the one that has the product for its W_cat."""
    torch.manual_seed(rank)
    sizes = {"rules": rules, "D": D, "M": 4, "K": K, "L": 2, "E": E, "H": H, "ivf_K": ivf}
    sizes["preselect"] = rules == "qinco2"
    low, whole = Network(ModelConfig.parse(sizes | {"rank": rank})), Network(ModelConfig.parse(sizes))
    state = {name: torch.randn_like(tensor) * 0.3 for name, tensor in low.state_dict().items()}
    state["std"] = torch.tensor(2.0)
    low.load_state_dict(state)
    for name in [name for name in state if name.endswith("w_cat_in")]:
        step = name.removesuffix("w_cat_in")
        state[step + "w_cat"] = state.pop(step + "w_cat_out") @ state.pop(name)
    whole.load_state_dict(state)
    return low.requires_grad_(False), whole.requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(60, D, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rank", [1, 4, 16])  # the engine has the factors, the factors, their product
@pytest.mark.parametrize("rules", ["qinco1", "qinco2"])
@pytest.mark.parametrize("E", [16, 24])
@pytest.mark.parametrize("ivf", [0, 5])
def test_it_equals_the_dense_network(rank: int, rules: str, E: int, ivf: int, x: Tensor) -> None:
    low, whole = pair(rules, E, rank, ivf)
    search = EncodeConfig(A=4 if rules == "qinco2" else 0, B=3)
    codes, lists = reference.encode(whole, x, search)
    found, _ = reference.encode(low, x, search)
    assert (found == codes).float().mean() > 0.97  # near-ties may fall the other way
    for steps in (1, 2, 4):
        wanted = whole.decode(codes, steps, lists)
        torch.testing.assert_close(low.decode(codes, steps, lists), wanted, rtol=1e-3, atol=1e-3)

    engine = Engine(low, plan("cpu", "float32", 1))
    fast, _ = engine.encode(low.denormalize(x), search)
    assert (fast == codes).float().mean() > 0.97
    wanted = low.denormalize(whole.decode(codes, lists_N=lists))
    torch.testing.assert_close(engine.decode(codes, lists_N=lists), wanted, rtol=1e-3, atol=1e-2)
    rough = Engine(low, plan("cpu", "bfloat16", 1)).decode(codes, lists_N=lists)
    assert (rough - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize(("rank", "factors"), [(4, True), (16, False)])
def test_the_engine_takes_what_costs_less(rank: int, factors: bool) -> None:
    tables = StepTables(pair("qinco2", 16, rank)[0].steps[0], plan("cpu", "float32"))  # type: ignore[arg-type]
    assert (len(tables._from_xhat) == 2) == factors == (rank * (D + 16) < 16 * D)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("E", [16, 24])
def test_parameters_are_counted(rank: int, E: int) -> None:
    network = Network(ModelConfig(D=D, M=4, K=K, L=2, E=E, H=H, rank=rank))
    assert network.config.parameters == sum(tensor.numel() for tensor in network.parameters())


def test_the_preset_has_rank_dh() -> None:
    low, whole = (PRESETS[name].model(768) for name in ("qinco1-LR", "qinco1"))
    assert (low.rank, whole.rank) == (256, 0)
    assert whole.parameters - low.parameters == 7 * (768 * 1536 - 256 * (768 + 1536))
    assert PRESETS["qinco1-LR"].model(768, H=100).rank == 100
    assert PRESETS["qinco1-LR"].model(128).rank == 128  # no more than W_cat has
    assert PRESETS["qinco1-LR"].model(768, rank=0) == whole


@pytest.mark.parametrize(("rank", "says"), [(-1, "rank: "), (17, "rank = 17 is above that of W_cat, E = 16")])
def test_ranks_that_cannot_be(rank: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ModelConfig.parse({"D": D, "E": 16, "rank": rank})
