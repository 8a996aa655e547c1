"""Pairwise decoders: kernels held to plain numpy, and errors on vectors that were not fitted to."""

from __future__ import annotations

from pathlib import Path

import lookup_models
import numpy as np
import pytest
from lookup_models import Coded

from qinco_core.api import Codec
from qinco_core.codec.precision import plan
from qinco_core.errors import DimensionError, LineageError, UsageError
from qinco_core.index.additive import mean_square
from qinco_core.index.pairwise import Pairwise, quantize
from qinco_core.index.pairwise_fit import FitConfig, Part, check_fit, errors, fit_pairwise, fresh_codes
from qinco_core.index.recode import BOOKS, recode
from qinco_core.index.training_codes import even, fit_to_vectors, training_codes
from qinco_core.progress import Silent
from qinco_core.store import Parent, create_codes, open_codes, read_header
from qinco_core.vectors import open_vectors, write_vectors

CONFIG = FitConfig(sample=20_000)


@pytest.fixture(scope="module", params=["plain", "ivf"])
def coded(
    request: pytest.FixtureRequest, trained: Codec, sift_learn: Path, tmp_path_factory: pytest.TempPathFactory
) -> Coded:
    path = tmp_path_factory.mktemp("pairwise") / "model.h5"
    if request.param == "ivf":
        return lookup_models.with_lists(path)
    return lookup_models.without_lists(trained, sift_learn, path)


@pytest.fixture(scope="module")
def fitted(coded: Coded) -> Pairwise:
    return fit_pairwise(coded.codec, coded.seen.codes, coded.seen, coded.held, CONFIG, Silent())


def share_won(mse: dict[str, float]) -> float:
    """How much of the error between the additive decoder and the network the pairwise one takes away."""
    return (mse["additive"] - mse["pairwise"]) / (mse["additive"] - mse["network"])


def test_errors_fall_from_look_to_look_on_vectors_not_seen(coded: Coded, fitted: Pairwise):
    held = fitted.training["mse"]["held-out"]
    assert held["network"] < held["pairwise"] < held["additive"] < held["centroid"]
    assert share_won(held) > 0.3
    assert held == errors(coded.codec, fitted, coded.held)
    symbols, lists = coded.codec.split(coded.held.codes)
    mse = mean_square(coded.held.vectors - fitted.decode(symbols, lists))
    assert held["pairwise"] == pytest.approx(mse, rel=1e-5)


def test_vectors_that_neither_fit_nor_decided_agree(coded: Coded):
    half = coded.n // 2
    deciding = Part(coded.codes[half : coded.n], coded.vectors[half : coded.n])
    decoder = fit_pairwise(coded.codec, coded.codes[:half], coded.seen, deciding, CONFIG, Silent())
    found = errors(coded.codec, decoder, coded.held)
    assert found["additive"] < found["centroid"]
    assert share_won(found) > 0.2


def test_the_kernels_give_what_plain_numpy_gives(coded: Coded, fitted: Pairwise):
    symbols, lists = coded.codec.split(coded.held.codes[:300])
    plain = fitted.decode(symbols, lists)
    s = fitted.interactions(symbols, lists)
    np.testing.assert_allclose(fitted.additive(symbols, lists) + s, plain, atol=1e-3)


def test_streams_are_the_symbols_and_those_of_the_list(coded: Coded, fitted: Pairwise):
    symbols, lists = coded.codec.split(coded.held.codes)
    streams = fitted.streams(symbols, lists)
    extra = BOOKS if lists is not None else 0
    M = coded.codec.config.M
    assert streams.shape == (len(symbols), M + extra)
    np.testing.assert_array_equal(streams[:, :M], symbols)
    if lists is not None:
        np.testing.assert_array_equal(streams[:, M:], fitted.list_symbols_LX[lists])


def test_pairs_are_of_different_streams_and_none_is_of_lists_alone(coded: Coded, fitted: Pairwise):
    pairs = [tuple(pair) for pair in fitted.pairs_2T.T.tolist()]
    M = coded.codec.config.M
    assert len(set(pairs)) == len(pairs) == 2 * M
    # a list's symbol comes first, and never with another of the list
    assert all(second < M and (first < second or first >= M) for first, second in pairs)


def test_the_same_seed_gives_the_same_decoder(coded: Coded, fitted: Pairwise):
    again = fit_pairwise(coded.codec, coded.seen.codes, coded.seen, coded.held, CONFIG, Silent())
    np.testing.assert_array_equal(again.tables_TRD, fitted.tables_TRD)
    np.testing.assert_array_equal(again.additive_MKD, fitted.additive_MKD)


@pytest.mark.parametrize("n", [2, 40, 200])
def test_few_vectors_cost_nothing(coded: Coded, n: int):
    config = FitConfig(sample=n)  # no fresh codes: a table row has seen next to nothing
    held = Part(coded.held.codes[:100], coded.held.vectors[:100])
    part = Part(coded.codes[:n], coded.vectors[:n])
    found = fit_pairwise(coded.codec, part.codes, part, held, config, Silent()).training["mse"]["held-out"]
    assert found["pairwise"] <= found["additive"] * (1 + 1e-6)


def test_fresh_codes_help_where_vectors_are_few(coded: Coded):
    part = Part(coded.codes[:200], coded.vectors[:200])
    mse = {}
    for sample in (200, 20_000):
        found = fit_pairwise(coded.codec, part.codes, part, coded.held, FitConfig(sample=sample), Silent())
        mse[sample] = found.training["mse"]["held-out"]
        assert found.training["fresh"] == FitConfig(sample=sample).rows(coded.codec.config) - 200
    assert mse[20_000]["additive"] < 0.95 * mse[200]["additive"]
    assert mse[20_000]["pairwise"] < 0.95 * mse[200]["pairwise"]


def test_without_tables_there_is_the_additive_decoder(coded: Coded):
    found = fit_pairwise(coded.codec, coded.seen.codes, coded.seen, coded.held, FitConfig(tables=0), Silent())
    assert found.tables_TRD.shape == (0, 64**2, coded.codec.config.D)
    assert found.training["mse"]["held-out"]["pairwise"] == found.training["mse"]["held-out"]["additive"]
    symbols, lists = coded.codec.split(coded.held.codes)
    np.testing.assert_allclose(found.decode(symbols, lists), found.additive(symbols, lists), atol=1e-3)


def test_saved_and_loaded(coded: Coded, fitted: Pairwise, tmp_path: Path):
    codec = coded.codec
    assert codec.header is not None
    header = fitted.save(tmp_path / "p.h5", codec.config, (codec.identity,))
    loaded = Pairwise.load(tmp_path / "p.h5", codec.header, codec.centroids)
    assert loaded.header == header
    assert isinstance(loaded.tables_TRD, np.memmap)
    symbols, lists = codec.split(coded.held.codes)
    np.testing.assert_array_equal(loaded.decode(symbols, lists), fitted.decode(symbols, lists))
    fitted.save(tmp_path / "q.h5", codec.config, (Parent("model", "0" * 32),))
    with pytest.raises(LineageError, match=f"{'0' * 32}.*{codec.header.fingerprint}; fit it again"):
        Pairwise.load(tmp_path / "q.h5", codec.header, codec.centroids)


def test_columns_of_fresh_codes_are_drawn_by_themselves():
    codes = np.array([[0, 10], [1, 11], [2, 12]])
    fresh = fresh_codes(codes, 300, np.random.default_rng(0))
    assert {tuple(code) for code in fresh.tolist()} == {(a, b) for a in range(3) for b in range(10, 13)}


def test_lists_are_recoded_coarse_to_fine():
    centroids = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    symbols = recode(centroids, np.ones(300), 16, plan("cpu", threads=1), np.random.default_rng(1))
    assert symbols.shape == (300, BOOKS)
    assert symbols.max() == 15
    left = centroids
    errors = [mean_square(left)]
    for column in symbols.T:
        means = np.stack([left[column == k].mean(0) if (column == k).any() else 0 * left[0] for k in range(16)])
        left = left - means[column]
        errors.append(mean_square(left))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_rounding_keeps_all_but_the_extremes():
    tables = np.random.default_rng(0).standard_normal((3, 64, 8)).astype(np.float32)
    small, scale = quantize(tables.copy())
    assert small.dtype == np.int8
    assert np.abs(scale * small - tables).max() < scale
    assert quantize(np.zeros((2, 4, 3), np.float32))[0].any() == np.False_


@pytest.mark.parametrize(
    ("K", "tables", "says"),
    [(2048, 2, r"tables of 2048² rows need .* use fewer"), (4096, 0, r"16 GiB of normal equations.* smaller K")],
)
def test_tables_that_are_too_large_are_refused(coded: Coded, K: int, tables: int, says: str):
    class Large:
        config = coded.codec.config.model_copy(update={"K": K, "M": 8, "D": 128})

    with pytest.raises(UsageError, match=says):
        check_fit(Large(), FitConfig(tables=tables))  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [400, 1000])
def test_no_more_is_encoded_than_the_codes_to_be_searched_leave_room_for(
    coded: Coded, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
):
    rows = coded.codec.pack_rows(coded.codes[:500])
    spec = coded.codec.spec("uint8")
    with create_codes(tmp_path / "base.h5", spec=spec, count=None, with_ids=False, source_stamp="s") as out:
        out.append(*rows)
    encoded: list[int] = []
    monkeypatch.setattr("qinco_core.index.training_codes._SEEN", 300)
    monkeypatch.setattr(type(coded.codec), "encode", lambda _, v: (encoded.append(len(v)), coded.codes[: len(v)])[1])
    with open_vectors(files[0]) as vectors, open_codes(tmp_path / "base.h5") as base:
        found = fit_to_vectors(coded.codec, vectors, None, FitConfig(tables=0, sample=most), Silent(), base)
    assert found.training["vectors"] == most
    assert sum(encoded) == max(300, most - 500) + len(coded.codes) // 10


def test_rows_are_taken_evenly():
    np.testing.assert_array_equal(even(10, 5), [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(even(3, 5), [0, 1, 2])
    assert len(even(0, 5)) == 0


@pytest.fixture
def files(coded: Coded, tmp_path: Path) -> tuple[Path, Path]:
    """The vectors and their codes as files."""
    write_vectors(tmp_path / "learn.npy", coded.vectors)
    rows = coded.codec.pack_rows(coded.codes)
    spec = coded.codec.spec("uint8")
    with create_codes(tmp_path / "c.h5", spec=spec, count=None, with_ids=False, source_stamp="s") as out:
        out.append(*rows)
    return tmp_path / "learn.npy", tmp_path / "c.h5"


def test_stored_codes_and_encoding_here_give_the_same(coded: Coded, files: tuple[Path, Path]):
    with open_vectors(files[0]) as vectors, open_codes(files[1]) as codes:
        known = training_codes(coded.codec, vectors, codes, 500, Silent())
        made = training_codes(coded.codec, vectors, None, 500, Silent())
    N = len(coded.codes)
    n = N - N // 10
    rows = even(n, 500)
    for found, seen, held in (known, made):
        np.testing.assert_array_equal(found, coded.codes[rows])
        np.testing.assert_array_equal(seen.vectors, coded.vectors[rows])
        np.testing.assert_array_equal(held.codes, coded.codes[n:])
        np.testing.assert_array_equal(held.vectors, coded.vectors[n:])


def test_codes_to_be_searched_are_known_best(coded: Coded, files: tuple[Path, Path]):
    config = FitConfig(sample=4 * len(coded.codes))
    symbols, lists = coded.codec.split(coded.codes)
    xhat, gaps = coded.codec.decode(coded.codes), []
    with open_vectors(files[0], limit=800) as some, open_codes(files[1]) as base:
        for searched in (None, base):
            found = fit_to_vectors(coded.codec, some, None, config, Silent(), searched)
            look = found.additive(symbols, lists) + found.interactions(symbols, lists)
            gaps.append(np.square(look - xhat).sum(1).mean())
    assert gaps[1] < 0.9 * gaps[0]


def test_what_does_not_belong_together_is_refused(coded: Coded, files: tuple[Path, Path], tmp_path: Path):
    N, D = coded.vectors.shape

    def fit(codec: Codec = coded.codec, limit: int = N, name: Path = files[0]) -> Pairwise:
        with open_vectors(name, limit=limit) as vectors, open_codes(files[1]) as codes:
            return fit_to_vectors(codec, vectors, codes, CONFIG, Silent())

    with pytest.raises(LineageError, match=f"{N} codes, but .* has {N - 1} vectors"):
        fit(limit=N - 1)
    with pytest.raises(UsageError, match="1 vector"):
        fit(limit=1)
    write_vectors(tmp_path / "short.npy", coded.vectors[:, 1:])
    with pytest.raises(DimensionError, match=f"dimension {D - 1}"):
        fit(name=tmp_path / "short.npy")
    other = Codec(coded.codec.network, coded.codec.search, plan=coded.codec.plan)
    other.header = read_header(files[1])
    with pytest.raises(LineageError, match="were made by the model"):
        fit(codec=other)
