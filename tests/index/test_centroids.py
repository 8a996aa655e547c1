"""K-means: what it reaches on real vectors, both levels, repaired clusters, bad input."""

from __future__ import annotations

import faiss
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qinco_core.errors import UsageError, VectorFileError
from qinco_core.index.centroids import CentroidsConfig, _shares, forecast, train_centroids
from qinco_core.index.coarse import Coarse
from qinco_core.index.kmeans import Machine, assign, lloyd, repair
from qinco_core.vectors import open_vectors

MACHINE = Machine(threads=1, device="cpu")


def train(file, K, **options):
    return train_centroids(file, K, **({"threads": 1, "device": "cpu"} | options))


class Witness:
    """Keeps what it is told."""

    def __init__(self):
        self.tasks, self.notes = [], []

    def begin(self, title, total, unit):
        self.tasks.append([title, total, 0, None])

    def advance(self, amount, **figures):
        self.tasks[-1][2] += amount
        self.tasks[-1][3] = figures.get("mse")

    def note(self, text):
        self.notes.append(text)

    def end(self):
        pass


@pytest.fixture(scope="module")
def learn(sift_learn):
    with open_vectors(sift_learn, limit=12_000) as file:
        yield file


@pytest.fixture(scope="module")
def others(sift_learn):
    """Vectors that no centroid was trained on."""
    with open_vectors(sift_learn, skip=12_000, limit=6000) as file:
        return file.read(0, 6000)


@pytest.fixture(scope="module")
def one_level(learn):
    return train(learn, 256, levels=1)


def mse(centroids, x):
    return float(Coarse(centroids, threads=1).nearest(x, 1)[1].mean())


def test_as_good_as_faiss(one_level, learn, others):
    plain = faiss.Clustering(128, 256)
    plain.niter, plain.seed = 20, 1
    plain.train(learn.read(0, 12_000).astype(np.float32), faiss.IndexFlatL2(128))
    centroids = faiss.vector_to_array(plain.centroids).reshape(256, 128)
    assert mse(one_level.centroids, others) == pytest.approx(mse(centroids, others), rel=0.01)


def test_figures(one_level, learn):
    x = learn.read(0, 12_000).astype(np.float64)
    c = one_level.centroids.astype(np.float64)
    distances = np.square(x).sum(1)[:, None] - 2 * x @ c.T + np.square(c).sum(1)
    counts = np.bincount(distances.argmin(1), minlength=256)
    figures = one_level.training
    assert figures["mse"] == pytest.approx(distances.min(1).mean(), rel=1e-5)
    assert figures["imbalance"] == pytest.approx(256 * np.square(counts).sum() / 12_000**2, rel=1e-3)
    assert (figures["empty"], figures["levels"], figures["vectors"]) == (0, 1, 12_000)
    assert one_level.centroids.dtype == np.float32 and one_level.centroids.shape == (256, 128)


def test_two_levels_are_nearly_as_good_as_one(one_level, learn, others):
    """K = 1024 and 40,000 vectors, on 10,000 others: 71,068 in one level; in two, refined 0, 1, 2, 4 times,
    71,367, 71,148, 71,085, 71,032. On the training vectors: 66,047; 67,639, 66,840, 66,546, 66,253."""
    error = {refine: mse(train(learn, 256, levels=2, refine=refine).centroids, others) for refine in (0, 2)}
    single = mse(one_level.centroids, others)
    assert single * 0.99 < error[2] < single * 1.005
    assert error[2] < error[0] < single * 1.02


@pytest.mark.parametrize("levels", [1, 2])
def test_the_seed_decides_and_the_threads_do_not(learn, levels):
    options = {"levels": levels, "iterations": 4}
    first = train(learn, 100, **options, seed=5)
    again = train(learn, 100, **options, seed=5, threads=2)
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.centroids, train(learn, 100, **options, seed=6).centroids)


def test_each_iteration_is_no_worse(learn):
    x = learn.read(0, 5000)
    centroids, errors = x[:50].astype(np.float32), []
    for _ in range(6):
        errors.append(assign(x, centroids, MACHINE).mse)
        centroids, repaired = lloyd(x, centroids, 1, np.random.default_rng(0), MACHINE)
        assert repaired == 0
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.data())
def test_shares_are_exact_and_by_size(counts, data):
    counts = np.array(counts)
    K = data.draw(st.integers(1, int(counts.sum())))
    shares = _shares(counts, K)
    assert shares.sum() == K and (shares <= counts).all() and (shares >= 0).all()
    assert (np.abs(shares - counts * K / counts.sum()) < 1).all()


def test_repair_draws_by_squared_distance():
    rng = np.random.default_rng(0)
    x = np.array([[0], [0], [1], [3], [10], [12]], np.float32)
    centroids = np.array([[0], [1], [2], [99], [11]], np.float32)
    found = assign(x, centroids, MACHINE)  # vector 3 is 1 away from centroid 2, the last two from centroid 4
    assert found.counts_K.tolist() == [2, 1, 1, 0, 2] and found.gaps_N.tolist() == [0, 0, 0, 1, 1, 1]
    drawn = []
    for _ in range(300):
        means = found.means_KD.copy()
        assert repair(x, found, means, rng) == 1
        np.testing.assert_array_equal(np.delete(means, 3, 0), np.delete(found.means_KD, 3, 0))
        drawn.append(means[3, 0])
    assert set(drawn) == {3, 10, 12} and all(70 < drawn.count(value) < 130 for value in (3, 10, 12))


def test_repair_where_nothing_can_be_split():
    x = np.array([[0], [5]], np.float32)
    found = assign(x, np.array([[0], [5], [7], [8]], np.float32), MACHINE)
    assert repair(x, found, found.means_KD, np.random.default_rng(0)) == 0
    assert found.means_KD[:, 0].tolist() == [0, 5, 7, 8]


def test_empty_clusters_are_repaired_and_reported(learn, tmp_path):
    """Half of the vectors are one and the same, so most of the first centroids are too."""
    x = learn.read(0, 400)
    np.save(tmp_path / "x.npy", np.concatenate([x, np.repeat(x[:1], 2000, axis=0)]))
    with open_vectors(tmp_path / "x.npy") as file:
        found = train(file, 100, iterations=10)
        assert found.training["repaired"] >= 50
        assert found.training["empty"] <= 2
        assert len(np.unique(found.centroids, axis=0)) >= 95


def test_more_centroids_than_different_vectors(tmp_path):
    np.save(tmp_path / "x.npy", np.repeat(np.eye(3, dtype=np.float32), 20, axis=0))
    with open_vectors(tmp_path / "x.npy") as file:
        for levels in (1, 2):
            found = train(file, 10, levels=levels)
            assert found.training["empty"] == 7 and found.training["mse"] == pytest.approx(0, abs=1e-6)
            assert np.isfinite(found.centroids).all()


def test_as_many_centroids_as_vectors(learn):
    for levels in (1, 2):
        found = train(learn.section(0, 60), 60, levels=levels, iterations=3)
        assert found.training["mse"] == pytest.approx(0, abs=0.1)
    single = train(learn, 1, levels=2, per_centroid=12_000).centroids
    assert single == pytest.approx(learn.read(0, 12_000).mean(0)[None], rel=1e-4)


def test_the_sample_is_bounded_and_spread(learn):
    found = train(learn, 10, per_centroid=100, iterations=5)
    assert found.training["vectors"] == 1000
    full = train(learn, 10, iterations=5, per_centroid=5000)
    assert full.training["vectors"] == 12_000
    x = learn.read(0, 12_000)
    assert mse(found.centroids, x) < 1.03 * mse(full.centroids, x)


def test_progress_comes_to_its_end(learn):
    for levels, titles in ((1, ["k-means"]), (2, ["first level", "second level", "all centroids"])):
        witness = Witness()
        train(learn, 400, levels=levels, iterations=3, progress=witness)
        assert [task[0] for task in witness.tasks] == ["reading", *titles, "measuring"]
        assert all(done == total for _, total, done, _ in witness.tasks)
        assert all(task[3] > 0 for task in witness.tasks[1:])
        assert "only 30 training vectors per centroid" in witness.notes[0]


def test_a_stop_is_soon(learn):
    for patience in (0, 1, 5):
        asked = iter(range(100))
        with pytest.raises(KeyboardInterrupt):
            train(learn, 20, stop=lambda asked=asked, patience=patience: next(asked) >= patience)


def test_a_forecast(learn):
    small, large = (forecast(learn, K, threads=1, device="cpu") for K in (10, 1000))
    assert (small.sample, large.sample, small.levels) == (2560, 12_000, 1)
    assert large.output_bytes == 1000 * 128 * 4 and large.memory_bytes > small.memory_bytes
    assert large.seconds > small.seconds > 0
    assert forecast(learn, 1000, levels=2, threads=1, device="cpu").seconds < large.seconds
    assert CentroidsConfig(K=65_535).depth == 1 and CentroidsConfig(K=65_536).depth == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"K": 0}, "K"),
        ({"K": 12_001}, "12000 vectors, too few for 12001"),
        ({"K": 2, "iterations": 0}, "iterations"),
        ({"K": 2, "levels": 3}, "levels"),
        ({"K": 2, "refine": -1}, "refine"),
        ({"K": 2, "per_centroid": 0}, "per_centroid"),
        ({"K": 2, "seed": -1}, "seed"),
        ({"K": 2, "spherical": True}, "spherical"),
        ({"K": 2, "threads": 0}, "threads"),
    ],
)
def test_settings_that_cannot_be(learn, settings, says):
    with pytest.raises(UsageError, match=says):
        train(learn, **settings)
    with pytest.raises(UsageError, match=says):
        forecast(learn, **({"threads": 1} | settings))


def test_nan_is_refused(tmp_path):
    x = np.ones((100, 4), np.float32)
    x[77, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    with open_vectors(tmp_path / "x.npy") as file, pytest.raises(VectorFileError, match="row 77"):
        train(file, 5)
