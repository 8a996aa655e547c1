"""The index for Faiss alone: its distances are those to the additive decoder's vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qinco_core import Index, SearchConfig
from qinco_core.api import Codec
from qinco_core.codec.packing import pack, unpack
from qinco_core.errors import OutputExistsError, UsageError
from qinco_core.index.additive import additive_sums
from qinco_core.index.faiss_export import export_faiss
from qinco_core.optional import import_faiss
from qinco_core.store import Header, Store
from qinco_core.store.index import StoredIndex, load_index
from qinco_core.vectors import open_vectors

N, D = 3000, 24


def made_up(folder: Path, *, L: int, M: int, K: int) -> StoredIndex:
    """An index in memory, of random codes and books; ids are beyond 32 bits."""
    rng = np.random.default_rng(L + M + K)
    offsets = np.concatenate([[0], np.sort(rng.integers(0, N, L - 1)), [N]]).astype(np.int64)
    symbols = rng.integers(0, K, (N, M))
    additive = (rng.standard_normal((M, K, D)) / np.arange(1, M + 1)[:, None, None]).astype(np.float32)
    arrays = {"offsets": offsets, "additive": additive, "centroids": rng.standard_normal((L, D)).astype(np.float32)}
    arrays["centroids"] *= 4
    flat = {"codes": pack(symbols, K), "ids": rng.permutation(N) + (1 << 40)}
    header = Header("index", 1, "", "", "", {}, ())
    return StoredIndex(folder, header, {"files": {}}, arrays, flat, [])


def vectors(stored: StoredIndex) -> np.ndarray:
    additive, centroids = stored.arrays["additive"], stored.arrays["centroids"]
    M, K, _ = additive.shape
    lists = np.repeat(np.arange(len(centroids)), np.diff(stored.arrays["offsets"]))
    return centroids[lists] + additive_sums(additive, unpack(np.asarray(stored.flat["codes"]), M, K))


@pytest.mark.parametrize(("L", "M", "K"), [(1, 8, 256), (20, 8, 256), (300, 4, 256), (20, 5, 64), (20, 3, 16)])
def test_distances_are_those_to_the_decoded_vectors(L, M, K, tmp_path):
    faiss = import_faiss()
    stored = made_up(tmp_path, L=L, M=M, K=K)
    export_faiss(stored, tmp_path / "x.faiss")
    plain = faiss.read_index(str(tmp_path / "x.faiss"))
    assert (plain.ntotal, plain.nlist) == (N, L)
    graph = isinstance(faiss.downcast_index(plain.quantizer), faiss.IndexHNSWFlat)
    assert graph == (L >= 256)
    plain.nprobe = L
    if graph:
        faiss.downcast_index(plain.quantizer).hnsw.efSearch = L
    q, x = np.random.default_rng(9).standard_normal((6, D)).astype(np.float32), vectors(stored)
    found, ids = plain.search(q, 200)
    exact = np.square(q[:, None].astype(float) - x).sum(2)
    place = np.argsort(stored.flat["ids"])[ids - (1 << 40)]
    r = x - np.repeat(stored.arrays["centroids"], np.diff(stored.arrays["offsets"]), axis=0)
    norms = np.square(r).sum(1)
    # the norm of an entry is rounded to one of 256 even steps
    np.testing.assert_allclose(found, np.take_along_axis(exact, place, 1), atol=1.01 * np.ptp(norms) / 255 + 1e-3)


def test_the_ranking_is_that_of_our_scan(index_store: Store, sift_learn, tmp_path):
    codec = Codec.load(index_store.model, precision="float32", threads=1)
    with open_vectors(sift_learn.with_name("sift_query.fvecs")) as file:
        xq = file.read(0, 40).astype(np.float32)
    with Index.open(index_store.index, model=codec) as index:
        D, _ = index.search(xq, 10, SearchConfig(nprobe=64, rerank="none"))
        index.export_faiss(tmp_path / "base.faiss")
    plain = import_faiss().read_index(str(tmp_path / "base.faiss"))
    plain.nprobe = 64
    exact = np.square(xq[:, None] - vectors(load_index(index_store.index))).sum(2)
    best = np.sort(exact, axis=1)[:, :10]
    theirs = plain.search(xq, 10)[0]
    assert np.abs(D - best).mean() < 0.02 * best.mean()
    assert np.abs(theirs - best).mean() < 0.02 * best.mean()


def test_what_faiss_cannot_hold_and_what_is_there_already(tmp_path):
    with pytest.raises(UsageError, match="K = 512 codewords"):
        export_faiss(made_up(tmp_path, L=2, M=2, K=512), tmp_path / "x.faiss")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.faiss").write_bytes(b"mine")
    stored = made_up(tmp_path, L=2, M=2, K=16)
    with pytest.raises(OutputExistsError, match="--force"):
        export_faiss(stored, tmp_path / "x.faiss")
    assert (tmp_path / "x.faiss").read_bytes() == b"mine"
    export_faiss(stored, tmp_path / "x.faiss", force=True)
    assert import_faiss().read_index(str(tmp_path / "x.faiss")).ntotal == N
