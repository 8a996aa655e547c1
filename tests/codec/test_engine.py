"""The engine against the plain path, on weights trained here."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.codec.tables import StepTables
from qinco_core.codec.workers import one_thread_each
from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import DeviceError, DimensionError, UsageError
from qinco_core.vectors import open_vectors

A8B8 = EncodeConfig(A=8, B=8)


@pytest.fixture(scope="module")
def base(sift_learn) -> torch.Tensor:
    with open_vectors(sift_learn.with_name("sift_base.u8bin")) as file:
        return torch.from_numpy(file.read(0, 1000))


def mse(codec: Codec, v: torch.Tensor, codes: torch.Tensor) -> float:
    network = codec.network
    return float((network.denormalize(network.decode(codes)) - v).square().sum(1).mean())


@pytest.fixture(scope="module")
def plain_mse(trained: Codec, base: torch.Tensor) -> float:
    codes, _ = reference.encode(trained.network, trained.network.normalize(base), A8B8)
    return mse(trained, base, codes)


def test_float32_per_beam_equals_the_reference(trained: Codec, base: torch.Tensor, plain_mse: float) -> None:
    codes, _ = Engine(trained.network, plan("cpu", "float32")).encode(base, A8B8)
    assert mse(trained, base, codes) == pytest.approx(plain_mse, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fast_mode_is_as_good_as_the_reference(
    trained: Codec, base: torch.Tensor, plain_mse: float, precision: str
) -> None:
    codes, _ = Engine(trained.network, plan("cpu", precision)).encode(base, A8B8.fast)
    assert mse(trained, base, codes) <= plain_mse * 1.005


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_decoding_any_prefix(trained: Codec, base: torch.Tensor, steps: int) -> None:
    codes, _ = trained.engine.encode(base, A8B8.fast)
    plain = trained.network.denormalize(trained.network.decode(codes, steps))
    exact = Engine(trained.network, plan("cpu", "float32")).decode(codes, steps)
    torch.testing.assert_close(exact, plain, rtol=1e-4, atol=1e-2)
    fast = Engine(trained.network, plan("cpu", "bfloat16")).decode(codes[:, :steps])
    error, plain_error = ((decoded - base).square().sum(1).mean() for decoded in (fast, plain))
    assert float(error) == pytest.approx(float(plain_error), rel=5e-3)


def test_threads_do_not_change_the_result(trained: Codec, base: torch.Tensor) -> None:
    one, two = (Engine(trained.network, plan("cpu", "float32", threads)) for threads in (1, 3))
    assert torch.equal(one.encode(base, A8B8.fast)[0], two.encode(base, A8B8.fast)[0])


def test_no_vectors(trained: Codec) -> None:
    codes, _ = trained.engine.encode(torch.zeros(0, 128), A8B8.fast)
    assert codes.shape == (0, 8)
    assert trained.engine.decode(codes).shape == (0, 128)


@pytest.mark.parametrize(("D", "E"), [(24, 24), (24, 8), (24, 40)])
@pytest.mark.parametrize("rules", ["qinco1", "qinco2"])
@pytest.mark.parametrize("ivf", [0, 7])
def test_tables_are_exact_algebra(D: int, E: int, rules: str, ivf: int) -> None:
    """Identity, narrower and wider projections, both rules, with and without an IVF."""
    torch.manual_seed(D + E)
    config = ModelConfig(rules=rules, D=D, M=3, K=16, L=2, E=E, H=12, preselect=rules == "qinco2", ivf_K=ivf)
    network = Network(config).requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    network.std.fill_(1.0)
    tables = StepTables(network.steps[0], plan("cpu", "float32"))
    xhat, residual = torch.randn(5, D), torch.randn(5, D)
    k, beam = torch.randint(16, (40,)), torch.randint(5, (40,))
    f = network.steps[0](network.steps[0].codebook[k], xhat[beam])
    z_B, h_B = tables.embed_beams(xhat)
    z = tables.embed(z_B, h_B, k, beam)
    torch.testing.assert_close(tables.refine_(xhat[beam], z, k), xhat[beam] + f, rtol=1e-4, atol=1e-5)
    expected = (residual[beam] - f).square().sum(1)
    torch.testing.assert_close(tables.errors(z, k, residual, beam), expected, rtol=1e-4, atol=1e-4)

    x = torch.randn(50, D)
    search = EncodeConfig(A=4 if rules == "qinco2" else 0, B=3)
    codes, lists = Engine(network, plan("cpu", "float32")).encode(network.denormalize(x), search)
    wanted, wanted_lists = reference.encode(network, x, search)
    assert (codes == wanted).float().mean() > 0.97  # near-ties may fall the other way
    if ivf:
        assert lists is not None and wanted_lists is not None and torch.equal(lists, wanted_lists)


def ivf_network(ivf_K: int) -> Network:
    torch.manual_seed(ivf_K)
    network = Network(ModelConfig(D=12, M=2, K=16, L=1, E=8, H=12, ivf_K=ivf_K)).requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor))
    network.std.fill_(2.0)
    return network


@pytest.mark.parametrize("ivf_K", [1, 2, 1024, 1025, 2500])
def test_the_nearest_centroid_of_any_number_of_them(ivf_K: int) -> None:
    network = ivf_network(ivf_K)
    v = torch.randn(1500, 12) * 2
    found = Engine(network, plan("cpu", "float32", 2)).assign(v)
    distance = torch.cdist(network.normalize(v).double(), network.centroids.double())
    best = distance.min(1).values
    torch.testing.assert_close(distance.gather(1, found[:, None])[:, 0], best, rtol=1e-4, atol=1e-4)
    assert (found == distance.argmin(1)).float().mean() > 0.999


def test_given_lists_are_used() -> None:
    network = ivf_network(9)
    engine, v = Engine(network, plan("cpu", "float32", 2)), torch.randn(300, 12)
    nearest, other = engine.assign(v), torch.arange(300, dtype=torch.int32) % 9
    search = EncodeConfig(A=4, B=4)
    codes, lists = engine.encode(v, search)
    assert torch.equal(lists, nearest)
    assert torch.equal(engine.encode(v, search, nearest)[0], codes)
    codes, lists = engine.encode(v, search, other)
    assert lists.dtype == torch.int64 and torch.equal(lists, other.long())
    # as the plain path does where each list is the only one
    for k in range(9):
        alone = ivf_network(9)
        rows, alone.centroids = other == k, alone.centroids[k : k + 1]
        wanted, _ = reference.encode(alone, alone.normalize(v[rows]), search)
        assert (codes[rows] == wanted).float().mean() > 0.97
    assert engine.encode(v[:0], search)[0].shape == (0, 2)


def test_lists_of_a_codec() -> None:
    v = torch.randn(50, 12)
    codec = Codec(ivf_network(9), EncodeConfig(A=4, B=4), plan=plan("cpu", "float32", 1))
    codes = codec.encode(v.numpy())
    assert codes.shape == (50, 3) and codes.dtype == np.int32
    assert np.array_equal(codec.encode(v).numpy(), codes)
    assert np.array_equal(codec.decode(codec.encode(v)).numpy(), codec.decode(codes))
    assert np.array_equal(codec.decode(codes, steps=1), codec.decode(codes[:, :2], steps=1))
    assert codec.bytes_per_vector == 1 + 4 / 8
    np.testing.assert_allclose(codec.centroids, codec.network.denormalize(codec.network.centroids))
    for bad, error in ((np.zeros(49, int), DimensionError), (np.full(50, 9), UsageError), (np.zeros(50), UsageError)):
        with pytest.raises(error):
            codec.encode(v.numpy(), lists=bad)
    with pytest.raises(UsageError, match="list numbers from 9 to 9 do not fit 9 lists"):
        codec.decode(codes * 0 + [9, 0, 0])
    with pytest.raises(UsageError, match="symbols run from"):
        codec.decode(codes * 0 + [0, 0, 16])
    with pytest.raises(DimensionError, match="or more: a list number and 2 symbols"):
        codec.decode(codes[:, 1:])
    with pytest.raises(DimensionError, match="split the lists off"):
        codec.pack(codes)
    with pytest.raises(UsageError, match="have list numbers"):
        codec.join(codes[:, 1:], None)


def test_models_without_lists_take_none(trained: Codec) -> None:
    v = np.zeros((2, 128), np.float32)
    assert trained.centroids is None and trained.bytes_per_vector == trained.config.code_bytes
    with pytest.raises(UsageError, match="no IVF"):
        trained.encode(v, lists=np.zeros(2, int))
    with pytest.raises(UsageError, match="have list numbers"):
        trained.join(trained.encode(v), np.zeros(2, int))


@pytest.mark.parametrize("search", [EncodeConfig(A=4, B=8), EncodeConfig(A=4, B=8, T=16)])
def test_a_single_symbol_is_the_nearest_codeword(search: EncodeConfig) -> None:
    torch.manual_seed(0)
    network = Network(ModelConfig(D=12, M=1, K=16)).requires_grad_(False)
    network.codebook0.copy_(torch.randn(16, 12))
    x = torch.randn(50, 12)
    codes, _ = Engine(network, plan("cpu", "float32")).encode(x, search)
    assert torch.equal(codes, reference.encode(network, x, search)[0])


def test_overlapping_work_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(2) as pool:
        barrier = threading.Barrier(2)

        def work(_: int) -> None:
            with one_thread_each():
                barrier.wait()
            barrier.wait()

        list(pool.map(work, range(2)))
        assert pool.submit(torch.get_num_threads).result() == before


def test_results_are_ordinary_tensors(trained: Codec, base: torch.Tensor) -> None:
    decoded = trained.decode(trained.encode(base[:300]))
    weight = torch.ones(128, requires_grad=True)
    (decoded * weight).sum().backward()
    decoded += 1


def test_codes_that_are_no_symbols(trained: Codec) -> None:
    with pytest.raises(UsageError, match="symbols are integers"):
        trained.decode(np.zeros((2, 8)))
    with pytest.raises(UsageError, match="symbols run from"):
        trained.decode(np.full((2, 8), 64))
    with pytest.raises(DimensionError):
        trained.decode(np.zeros((2, 3), np.uint8))
    assert np.array_equal(trained.encode(np.ones((1, 128), ">f4")), trained.encode(np.ones((1, 128), np.float32)))


def test_fast_search_of_every_width() -> None:
    for A in (0, 1, 2, 4, 16):
        for B in (1, 2, 4, 32):
            fast = EncodeConfig(A=A, B=B).fast
            assert fast.B >= B
            assert fast.full == 0 or B < fast.full < fast.T
            assert A * B >= fast.T


def test_devices_that_are_not_there() -> None:
    with pytest.raises(DeviceError, match="no device 'tpu'"):
        plan("tpu")
    with pytest.raises(DeviceError, match="no precision"):
        plan("cpu", "float8")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cpu"):
            plan("cuda")


def test_codec_takes_numpy_and_torch_alike(trained: Codec, base: torch.Tensor) -> None:
    codes = trained.encode(base[:100].numpy())
    assert codes.dtype == np.uint8 and codes.shape == (100, 8)
    same = trained.encode(base[:100])
    assert np.array_equal(same.numpy(), codes)
    decoded = trained.decode(codes)
    assert decoded.dtype == np.float32
    assert np.array_equal(trained.decode(same).numpy(), decoded)
    assert np.array_equal(trained.unpack(trained.pack(codes)), codes)
    prefix = trained.decode(codes, steps=3)
    assert np.array_equal(trained.decode(codes[:, :3], steps=3), prefix)
