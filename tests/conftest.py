"""The sample of real vectors, and one model trained on it for all tests that need trained weights."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from qinco_core.api import Codec
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.index.centroids import train_centroids
from qinco_core.index.index import Index
from qinco_core.index.pairwise_fit import FitConfig, Part, fit_pairwise
from qinco_core.jobs import Rows, encode_to_artifact
from qinco_core.progress import Silent
from qinco_core.store import Store, load_model, save_centroids
from qinco_core.vectors import open_vectors

DATA = Path(__file__).parent.parent / "examples" / "data"


@pytest.fixture(scope="session")
def sift_learn() -> Path:
    return DATA / "sift_learn.bvecs"


@pytest.fixture(scope="session")
def trained(sift_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A qinco2-XS with 8 symbols of 64 codewords, after half a minute of training by one of the tests' processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = shared / "trained.h5"
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with open_vectors(sift_learn, limit=22_000) as vectors:
                Codec.train(
                    vectors,
                    preset_name="qinco2-XS",
                    epochs=6,
                    changes={"K": 64, "A": 8, "B": 8},
                    training={"val": 2000, "kmeans_iterations": 5},
                ).save(path)
    stored = load_model(path)
    network = Network.from_arrays(stored.config, stored.tensors)
    return Codec(network, stored.encode, plan=plan("auto", "auto", None), training=stored.training)


@pytest.fixture(scope="session")
def ivf_store(sift_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a tiny IVF model of 64 lists and the codes of the 10,000 base vectors, called base; only read."""
    store = Store(tmp_path_factory.mktemp("ivf") / "store")
    with open_vectors(sift_learn, limit=4000) as vectors:
        found = train_centroids(vectors, 64, iterations=5, threads=1)
        save_centroids(store.centroids, found.centroids, training={})
        Codec.train(
            vectors,
            preset_name="qinco2-XS",
            epochs=1,
            changes={"M": 8, "K": 16, "E": 16, "H": 32, "A": 4, "B": 4},
            training={"val": 500, "kmeans_iterations": 3},
            ivf=store.centroids,
            threads=1,
        ).save(store.model)
    codec = Codec.load(store.model, precision="float32", threads=1)
    with open_vectors(sift_learn.with_name("sift_base.u8bin")) as base:
        encode_to_artifact(codec, Rows(base), store.codes("base"), search=codec.search, progress=Silent())
    return store


@pytest.fixture(scope="session")
def index_store(ivf_store: Store, sift_learn: Path) -> Store:
    """The same store with a pairwise decoder and an index of the codes; only read."""
    codec = Codec.load(ivf_store.model, precision="float32", threads=1)
    with open_vectors(sift_learn, limit=5000) as learn:
        v = learn.read(0, len(learn))
    codes = codec.encode(v)
    held = Part(codes[4000:], v[4000:])
    config = FitConfig(tables=1, sample=4000, sweeps=1)
    fitted = fit_pairwise(codec, codes[:4000], Part(codes[:500], v[:500]), held, config, Silent())
    fitted.save(ivf_store.pairwise, codec.config, (codec.identity,))
    Index.build(ivf_store.index, codec, ivf_store.codes("base"), pairwise=ivf_store.pairwise).close()
    return ivf_store
