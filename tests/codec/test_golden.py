"""The network, the reference encoder and the engine against another implementation's outputs."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest
import torch
from golden_models import Golden

from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.engine import Engine
from qinco_core.codec.precision import plan


@pytest.fixture(params=golden_models.NAMES, scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return golden_models.load(request.param)


def mse(golden: Golden, codes: torch.Tensor, lists: torch.Tensor | None, steps: int | None = None) -> float:
    network = golden.network
    decoded = network.denormalize(network.decode(codes, steps, lists)).double()
    return float((decoded - torch.from_numpy(golden.vectors)).square().sum(1).mean())


def given(golden: Golden) -> tuple[torch.Tensor, torch.Tensor | None]:
    lists = None if golden.lists is None else torch.from_numpy(golden.lists)
    return torch.from_numpy(golden.codes), lists


def test_plain_decoding_is_theirs(golden: Golden) -> None:
    codes, lists = given(golden)
    decoded = golden.network.denormalize(golden.network.decode(codes, lists_N=lists)).numpy()
    assert np.abs(decoded - golden.decoded).max() <= 1e-3 * np.abs(golden.decoded).max()


def test_every_prefix_has_their_error(golden: Golden) -> None:
    codes, lists = given(golden)
    ours = [mse(golden, codes, lists, steps) for steps in range(1, golden.network.config.M + 1)]
    assert ours == pytest.approx(golden.prefix_mse.tolist()[-len(ours) :], rel=5e-4)


def test_reference_finds_their_symbols(golden: Golden) -> None:
    x = golden.network.normalize(torch.from_numpy(golden.vectors))
    codes, lists = reference.encode(golden.network, x, golden.search)
    assert (codes.numpy() == golden.codes).mean() >= 0.999
    if golden.lists is not None:
        assert lists is not None
        assert (lists.numpy() == golden.lists).mean() >= 0.999
    assert mse(golden, codes, lists) == pytest.approx(golden.mse, rel=5e-4)


def test_engine_in_float32_finds_their_symbols(golden: Golden) -> None:
    engine = Engine(golden.network, plan("cpu", "float32", 2))
    codes, lists = engine.encode(torch.from_numpy(golden.vectors), golden.search)
    assert (codes.numpy() == golden.codes).mean() >= 0.999
    assert mse(golden, codes, lists) == pytest.approx(golden.mse, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fast_mode_is_as_good(golden: Golden, precision: str) -> None:
    engine = Engine(golden.network, plan("cpu", precision, 2))
    codes, lists = engine.encode(torch.from_numpy(golden.vectors), golden.search.fast)
    assert mse(golden, codes, lists) <= golden.mse * 1.005


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engine_decodes_as_they_do(golden: Golden, precision: str) -> None:
    codes, lists = given(golden)
    engine = Engine(golden.network, plan("cpu", precision, 2))
    decoded = engine.decode(codes, lists_N=lists)
    if precision == "float32":
        assert np.abs(decoded.numpy() - golden.decoded).max() <= 1e-3 * np.abs(golden.decoded).max()
    error = float((decoded.double() - torch.from_numpy(golden.vectors)).square().sum(1).mean())
    assert error == pytest.approx(golden.mse, rel=5e-4 if precision == "float32" else 5e-3)


def test_a_codec_gives_their_codes_and_vectors(golden: Golden) -> None:
    codec = Codec(golden.network, golden.search, plan=plan("cpu", "float32", 2))
    codes = codec.encode(golden.vectors, search=golden.search)
    symbols, lists = codec.split(codes)
    assert (symbols == golden.codes).mean() >= 0.999
    if golden.lists is None:
        assert lists is None and codes.dtype == np.uint8
    else:
        assert codes.dtype == np.int32 and (lists == golden.lists).mean() >= 0.999
        again = codec.encode(golden.vectors, search=golden.search, lists=golden.lists)
        assert np.array_equal(again[:, 0], golden.lists)
    theirs = codec.join(golden.codes, golden.lists)
    decoded = codec.decode(theirs)
    assert np.abs(decoded - golden.decoded).max() <= 1e-3 * np.abs(golden.decoded).max()
    rows = codec.pack_rows(theirs)
    assert rows.codes.shape == (1000, codec.config.code_bytes)
    assert np.array_equal(codec.unpack_rows(rows), theirs)
    errors = [np.square(codec.decode(theirs, steps=m) - golden.vectors).sum(1).mean() for m in range(1, 3)]
    assert errors[1] < errors[0]
