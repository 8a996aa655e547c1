"""Published pairwise decoders in and out, and in a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qinco_core.api import Codec
from qinco_core.config import SearchConfig
from qinco_core.errors import ForeignFileError, LineageError, QincoError, UsageError
from qinco_core.evaluation.metrics import recall_at
from qinco_core.evaluation.neighbors import exact_neighbors
from qinco_core.index.index import Index
from qinco_core.index.pairwise import Pairwise
from qinco_core.interop.codes import import_codes, read_published
from qinco_core.interop.detect import detect
from qinco_core.interop.models import import_model
from qinco_core.interop.pairwise import export_pairwise, import_pairwise
from qinco_core.progress import Silent
from qinco_core.store import load_model, load_pairwise, save_pairwise, verify

HERE, MODELS = Path(__file__).parent / "golden", Path(__file__).parents[1] / "codec" / "golden"
Content = dict[str, Any]


def published() -> Content:
    content = torch.load(HERE / "ivf_pairwise.pt", weights_only=True)
    assert isinstance(content, dict)
    return content


def bring(content: Content, codec: Codec, out: Path) -> None:
    assert codec.header is not None
    import_pairwise(content, Path("pairwise.pt"), codec.config, codec.header, out, force=False)


@pytest.fixture(scope="module")
def imported(ivf_codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairwise") / "pairwise.h5"
    bring(published(), ivf_codec, path)
    return path


@pytest.fixture(scope="module")
def decoder(imported: Path, ivf_codec: Codec) -> Pairwise:
    assert ivf_codec.header is not None
    return Pairwise.load(imported, ivf_codec.header, ivf_codec.centroids)


@pytest.fixture(scope="module")
def codes() -> tuple[np.ndarray, np.ndarray]:
    """Symbols and list numbers of the thousand vectors."""
    found = np.load(MODELS / "ivf_q2.expected.npz")["codes"]
    return found[:, 1:], found[:, 0]


def error(decoded: np.ndarray) -> float:
    vectors = np.load(MODELS / "vectors48.npy")
    return float(np.square(decoded - vectors).sum(1).mean())


def test_it_decodes_as_theirs(decoder: Pairwise, codes: tuple[np.ndarray, np.ndarray]) -> None:
    expected = np.load(HERE / "ivf_pairwise.expected.npz")
    for found, wanted in ((decoder.interactions(*codes), "residual"), (decoder.decode(*codes), "decoded")):
        assert np.abs(found - expected[wanted]).max() <= 1e-3 * np.abs(expected[wanted]).max()
    assert error(decoder.decode(*codes)) == pytest.approx(15541.69, rel=1e-3)


def test_a_round_trip_gives_equal_tensors(imported: Path, tmp_path: Path) -> None:
    assert verify(imported).ok
    export_pairwise(load_pairwise(imported), tmp_path / "again.pt", force=False)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == published().keys()
    for name, tensor in published().items():
        assert tensor.dtype == again[name].dtype
        assert torch.equal(tensor, again[name]), name


def test_for_a_search_it_is_nearly_the_same(decoder: Pairwise, codes: tuple[np.ndarray, np.ndarray]) -> None:
    ready = decoder.for_search()
    assert ready.tables_TRD.dtype == np.int8
    assert ready.for_search() is ready
    plain, kernel = ready.decode(*codes), ready.additive(*codes) + ready.interactions(*codes)
    assert np.allclose(plain, kernel, atol=1e-2)
    assert error(plain) == pytest.approx(error(decoder.decode(*codes)), rel=0.01)


def test_an_index_is_built_and_searched_with_it(imported: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    assert ivf_codec.header is not None
    found = read_published(HERE / "ivf_db.npz")
    import_codes(found, ivf_codec.config, ivf_codec.header, tmp_path / "db.h5", progress=Silent(), force=False)
    xq = np.load(MODELS / "vectors48.npy")[:200]
    everything = SearchConfig(nprobe=300, n_mid=500, n_short=200)
    with Index.build(tmp_path / "index", ivf_codec, tmp_path / "db.h5", pairwise=imported) as index:
        assert index.has_pairwise
        _, found_QK = index.search(xq, k=10, params=everything)
    # of the vectors themselves: the code of a query is nearly always among the nearest
    assert recall_at(found_QK, np.arange(200)[:, None])[10] > 0.9


def test_ours_is_exported_as_a_sum_of_tables(ivf_codec: Codec, tmp_path: Path) -> None:
    assert ivf_codec.header is not None and ivf_codec.centroids is not None
    config, random = ivf_codec.config, np.random.default_rng(0)
    decoder = Pairwise(
        ivf_codec.centroids,
        random.normal(0, 9, (config.M, config.K, config.D)).astype(np.float32),
        np.array([[0, 2, 3], [1, 0, 5]], np.int32),
        random.integers(-127, 128, (3, config.K**2, config.D)).astype(np.int8),
        0.25,
        random.integers(0, config.K, (config.ivf_K, 2)).astype(np.uint16),
    )
    decoder.save(tmp_path / "ours.h5", config, (ivf_codec.identity,))
    export_pairwise(load_pairwise(tmp_path / "ours.h5"), tmp_path / "theirs.pt", force=False)
    bring(torch.load(tmp_path / "theirs.pt", weights_only=True), ivf_codec, tmp_path / "back.h5")
    back = Pairwise.load(tmp_path / "back.h5", ivf_codec.header, ivf_codec.centroids)
    symbols, lists = random.integers(0, config.K, (50, config.M)), random.integers(0, config.ivf_K, 50)
    assert np.allclose(back.decode(symbols, lists), decoder.decode(symbols, lists), atol=1e-3)


def test_an_additive_codebook_without_a_table_has_no_place(ivf_codec: Codec, tmp_path: Path) -> None:
    config = ivf_codec.config
    arrays = {"additive": np.ones((4, 64, 48)), "mean": np.zeros(48), "scale": np.array(1.0)}
    arrays |= {"pairs": np.array([[0], [1]]), "list_symbols": np.zeros((300, 5))}
    path = tmp_path / "few.h5"
    save_pairwise(path, config, arrays, np.zeros((1, 4096, 48), np.int8), training={}, parents=(ivf_codec.identity,))
    with pytest.raises(UsageError, match="no table has symbol 2"):
        export_pairwise(load_pairwise(path), tmp_path / "out.pt", force=False)
    assert not (tmp_path / "out.pt").exists()


def put(name: str, value: object) -> Callable[[Content], None]:
    return lambda content: content.update({name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("ivf_code_map"), "ivf_code_map is missing"),
        (put("codebook_MKD", torch.zeros(8, 4096)), "codebook_MKD has the shape [8, 4096]; it has to be"),
        (put("combine_mvals_m", torch.zeros(2, 7, dtype=torch.int64)), "combine_mvals_m has the shape [2, 7]"),
        (put("combine_mvals_m", torch.full((2, 8), 9)), "combine_mvals_m has numbers from 9 to 9, not 0 to 8"),
        (put("combine_mvals_m", torch.zeros(2, 8)), "combine_mvals_m is of float32, not of integers"),
        (put("ivf_code_map", torch.full((300, 5), 64)), "ivf_code_map has numbers from 64 to 64"),
        (put("codebook_MKD", torch.full((8, 4096, 48), torch.inf)), "codebook_MKD holds NaN or infinity"),
        (put("codebook_MKD", 3), "codebook_MKD is a int, not a tensor"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Content], None], said: str, ivf_codec: Codec, tmp_path: Path) -> None:
    content = published()
    change(content)
    with pytest.raises(ForeignFileError) as caught:
        bring(content, ivf_codec, tmp_path / "pairwise.h5")
    assert str(caught.value).startswith("pairwise.pt: ")
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_decoder_of_another_model_is_refused(ivf_codec: Codec, tmp_path: Path) -> None:
    content = published()
    content["ivf_code_map"] = content["ivf_code_map"][:200]
    with pytest.raises(LineageError, match=r"200 lists, K² = 4096 and D = 48, but the model has 300 lists"):
        bring(content, ivf_codec, tmp_path / "pairwise.h5")
    import_model(detect(MODELS / "q2.pt"), tmp_path / "model.h5")
    model = load_model(tmp_path / "model.h5")
    with pytest.raises(QincoError, match="codes of an IVF model, but this model has none"):
        import_pairwise(published(), Path("p.pt"), model.config, model.header, tmp_path / "p.h5", force=False)


def test_exact_neighbors_agree_that_the_codes_are_of_the_vectors(ivf_codec: Codec) -> None:
    """What the recall of the index above rests on: decoded codes are nearest to their own vectors."""
    found = np.load(HERE / "ivf_db.part_0.npz")["codes"]
    vectors = np.load(MODELS / "vectors48.npy")[:200]
    ids, _ = exact_neighbors([ivf_codec.decode(found)], vectors, 10)
    assert recall_at(ids, np.arange(200)[:, None])[10] > 0.9
