"""Product models: every group by itself, side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.codec.product import ProductNetwork, engine_of, network_of
from qinco_core.config import PRESETS, EncodeConfig, ModelConfig
from qinco_core.errors import ArtifactError, UsageError

SEARCH = EncodeConfig(A=4, B=3)
D, M, N = 24, 6, 3


@pytest.fixture(params=[False, True], ids=["plain", "rotated"])
def network(request: pytest.FixtureRequest) -> ProductNetwork:
    torch.manual_seed(1)
    network = ProductNetwork(ModelConfig(D=D, M=M, K=16, L=2, E=8, H=12, groups=N, opq=request.param))
    network.requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    for g, part in enumerate(network.networks):
        part.std.fill_(g + 1)
    if network.rotation is not None:
        network.rotation.copy_(torch.linalg.qr(torch.randn(D, D))[0])
    return network


@pytest.fixture
def v() -> Tensor:
    return torch.randn(70, D, generator=torch.Generator().manual_seed(5)) * 2


def groups_of(network: ProductNetwork, v: Tensor) -> list[Tensor]:
    return list((v if network.rotation is None else v @ network.rotation).split(D // N, dim=1))


def middle(part: Network) -> Tensor:
    assert part.codebook0 is not None
    return part.denormalize(part.codebook0.mean(0))


def test_normalisation_is_undone(network: ProductNetwork, v: Tensor) -> None:
    x = network.normalize(v)
    torch.testing.assert_close(network.denormalize(x), v, rtol=1e-4, atol=1e-5)
    for part, seen, mine in zip(network.networks, groups_of(network, v), x.split(D // N, dim=1), strict=True):
        torch.testing.assert_close(part.normalize(seen), mine)


@pytest.mark.parametrize("steps", range(1, M + 1))
def test_every_prefix_is_a_code_of_every_group(network: ProductNetwork, v: Tensor, steps: int) -> None:
    codes, lists = reference.encode(network, network.normalize(v), SEARCH)
    assert lists is None and codes.shape == (len(v), M)
    decoded = network.denormalize(network.decode(codes, steps))
    for g, (part, mine) in enumerate(zip(network.networks, groups_of(network, decoded), strict=True)):
        used = (steps - g + N - 1) // N  # symbols of this group in the prefix
        wanted = part.denormalize(part.decode(codes[:, g::N], used)) if used else middle(part).expand(len(v), -1)
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    engine = engine_of(network, plan("cpu", "float32", 2))
    torch.testing.assert_close(engine.decode(codes, steps), decoded, rtol=1e-4, atol=1e-4)
    assert torch.equal(engine.decode(codes[:, :steps]), engine.decode(codes, steps))
    torch.testing.assert_close(engine.decode_rows(codes[:, :steps]), decoded, rtol=1e-4, atol=1e-4)


def test_each_group_is_encoded_by_its_network(network: ProductNetwork, v: Tensor) -> None:
    codes, _ = engine_of(network, plan("cpu", "float32", 2)).encode(v, SEARCH)
    wanted, _ = reference.encode(network, network.normalize(v), SEARCH)
    assert codes.dtype == torch.int64 and (codes == wanted).float().mean() > 0.97  # near-ties
    for g, (part, seen) in enumerate(zip(network.networks, groups_of(network, v), strict=True)):
        alone, _ = engine_of(part, plan("cpu", "float32", 2)).encode(seen, SEARCH)
        assert (codes[:, g::N] == alone).float().mean() > 0.97


def test_bfloat16(network: ProductNetwork, v: Tensor) -> None:
    exact, rough = (engine_of(network, plan("cpu", name, 2)) for name in ("float32", "bfloat16"))
    errors = [(exact.decode(engine.encode(v, SEARCH)[0]) - v).square().sum() for engine in (exact, rough)]
    assert errors[1] < 1.02 * errors[0]


def test_a_codec_of_a_product(network: ProductNetwork, v: Tensor) -> None:
    codec = Codec(network, SEARCH, plan=plan("cpu", "float32", 2))
    codes = codec.encode(v.numpy())
    assert codes.shape == (len(v), M) and codes.dtype == np.uint8
    assert codec.centroids is None and codec.bytes_per_vector == 3
    assert np.array_equal(codec.decode(codec.unpack(codec.pack(codes))), codec.decode(codes))
    cut = codec.truncate(codec.pack(codes), 4)
    assert np.array_equal(cut, codec.pack(codes)[:, :2])
    assert codec.encode(v.numpy()[:0]).shape == (0, M) and codec.decode(codes[:0]).shape == (0, D)
    start = torch.cat([middle(part) for part in network.networks])
    torch.testing.assert_close(network.mean, start if network.rotation is None else network.rotation @ start)


def test_tensors_by_name(network: ProductNetwork, v: Tensor) -> None:
    arrays = network.to_arrays()
    assert ("rotation" in arrays) == network.config.opq and "parts.2.steps.0.w_up" in arrays
    again = network_of(network.config, arrays)
    assert isinstance(again, ProductNetwork)
    assert torch.equal(again.normalize(v), network.normalize(v))
    numbers = sum(array.size for array in arrays.values()) - N * (D // N + 1)  # mean and std are not trained
    assert network.config.parameters == numbers
    arrays.pop("parts.1.codebook0")
    with pytest.raises(ArtifactError, match=r"tensor parts\.1\.codebook0 is missing"):
        network_of(network.config, arrays)
    assert isinstance(network_of(network.config.part, network.networks[0].to_arrays()), Network)


def test_sizes_of_presets_are_those_of_a_group() -> None:
    model = PRESETS["qinco1-LR"].model(256, groups=4, M=16, opq=True)
    assert (model.E, model.rank) == (64, 64) and not model.projects
    assert (model.part.D, model.part.M, model.part.groups, model.part.opq) == (64, 4, 1, False)
    assert model.part.part == model.part and model.code_bytes == 16


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"groups": 5}, "5 groups do not divide D = 24"),
        ({"groups": 3, "M": 8}, "3 groups do not divide M = 8"),
        ({"groups": 0}, "groups: "),
        ({"opq": True}, "2 groups or more, or no OPQ"),
        ({"groups": 2, "ivf_K": 8}, "without groups, or without an IVF"),
    ],
)
def test_products_that_cannot_be(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ModelConfig.parse({"D": 24, "M": 6} | sizes)
