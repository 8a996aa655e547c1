"""Data sets by name: which part, which rows, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from servers import Surroundings, Web

from qinco_core.datasets import cache_root, dataset, fetch, find_dataset, open_named, published_file
from qinco_core.errors import ChecksumError, DimensionError, InputNotFoundError, UsageError, VectorFileError
from qinco_core.vectors import open_vectors, write_vectors

DATA = Path(__file__).parents[2] / "examples" / "data"
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)
SIFT = f"""
[datasets.sift]
dim = 128
limit = 5000
train = "{DATA}/sift_learn.bvecs"
base = "{DATA}/sift_base.u8bin"
queries = {{ source = "{DATA}/sift_query.fvecs", skip = 10, limit = 50 }}
groundtruth = "{DATA}/sift_groundtruth.ivecs"
"""


@pytest.fixture(autouse=True)
def sift(here: Surroundings) -> None:
    here.register(SIFT)


def rows(name: str, start: int, stop: int) -> np.ndarray:
    with open_vectors(DATA / name) as file:
        return file.read(start, stop)


def test_parts_open_as_files() -> None:
    sift = dataset("sift")
    assert sift.parts == ("train", "base", "queries", "groundtruth")
    with sift.train(skip=3, limit=4) as file:
        assert file.shape == (4, 128)
        np.testing.assert_array_equal(file.read(0, 4), rows("sift_learn.bvecs", 3, 7))
    with sift.groundtruth() as file:
        assert file.dtype == np.int32


def test_the_limit_of_the_set_is_of_the_base() -> None:
    sift = dataset("sift")
    assert len(sift.base()) == 5000
    assert len(sift.base(skip=4990)) == 10
    assert len(sift.base(limit=9000)) == 5000
    with pytest.raises(UsageError, match="sift::base has 5000 vectors; skipping 5000 leaves none"):
        sift.base(skip=5000)


def test_skip_and_limit_of_a_part_count_before_the_users() -> None:
    with dataset("sift").queries() as file:
        assert len(file) == 50
        np.testing.assert_array_equal(file.read(0, 1), rows("sift_query.fvecs", 10, 11))
    with dataset("sift").queries(skip=45, limit=20) as file:
        assert len(file) == 5
        np.testing.assert_array_equal(file.read(0, 1), rows("sift_query.fvecs", 55, 56))


def test_a_name_stands_for_the_part_that_is_asked_for() -> None:
    for part, shape in {"train": (25000, 128), "base": (5000, 128), "queries": (50, 128)}.items():
        assert open_named("sift", part).shape[1] == shape[1]  # type: ignore[arg-type]
        assert open_named(f"sift::{part}", "base").shape == open_named("sift", part).shape  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no part 'learn' of a data set"):
        open_named("sift::learn", "base")


def test_an_existing_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_vectors(tmp_path / "x.fvecs", np.zeros((2, 3), np.float32))
    (tmp_path / "x.fvecs").rename(tmp_path / "sift")
    assert open_named("sift", "base", format="fvecs").shape == (2, 3)
    assert find_dataset("sift") is None
    with pytest.raises(InputNotFoundError, match="does not exist"):
        open_named("./deep1M.fvecs", "base")


def test_an_existing_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sift", "deep10M"):  # a data set, and nearly one
        write_vectors(tmp_path / name / "part-0.parquet", np.zeros((2, 3), np.float32))
        assert open_named(name, "base").shape == (2, 3)
        assert open_named(f"{name}::embedding", "base").shape == (2, 3)
        assert find_dataset(name) is None


def test_a_data_set_can_be_a_folder(here: Surroundings, tmp_path: Path) -> None:
    for name, rows in {"a": ROWS[:3], "b": ROWS[3:]}.items():
        write_vectors(tmp_path / "products" / f"part-{name}.parquet", rows)
    here.register("[datasets.mine]\ndim = 4\nbase = { source = 'products', key = 'embedding', limit = 5 }")
    np.testing.assert_array_equal(dataset("mine").base().read(0, 5), ROWS[:5])
    (one,) = fetch("mine")
    assert (one.path, one.state) == (tmp_path / "products", "local")


def test_a_negative_skip_is_refused() -> None:
    for part in ("base", "queries"):
        with pytest.raises(UsageError, match="skip = -5; skip 0 or more vectors"):
            dataset("sift").open(part, skip=-5)  # type: ignore[arg-type]


def test_words_that_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFoundError, match="sfit does not exist; did you mean the data set sift"):
        open_named("sfit", "base")
    with pytest.raises(InputNotFoundError, match=r"elephant.fvecs does not exist; check the path"):
        open_named("elephant.fvecs", "base")
    with pytest.raises(UsageError, match="nothing is called 'sfit'"):
        dataset("sfit")
    with pytest.raises(UsageError, match="a file of the kind model, not a data set"):
        dataset("qinco2_L-deep1M-8x8")
    with pytest.raises(UsageError, match="of the kind model, not a data set: it has no parts"):
        open_named("qinco2_L-deep1M-8x8", "base")


def test_what_is_not_fetched_says_how_with_its_size() -> None:
    with pytest.raises(
        InputNotFoundError,
        match=r"the part base of the data set bigann1M .*qinco fetch bigann1M --part base \(132,000,000",
    ):
        open_named("bigann1M", "base")
    with pytest.raises(InputNotFoundError, match=r"qinco fetch ivf_centroids_deep1B_1048576$"):
        published_file("ivf_centroids_deep1B_1048576")
    assert published_file("some/model.pt") == Path("some/model.pt")
    assert published_file("sift") == Path("sift")


def test_a_users_file_that_is_not_there(here: Surroundings, tmp_path: Path) -> None:
    here.register("[datasets.mine]\ndim = 4\nbase = 'b.fvecs'")
    for attempt in (lambda: open_named("mine", "base"), lambda: fetch("mine")):
        with pytest.raises(InputNotFoundError, match=f"{tmp_path}/b.fvecs does not exist"):
            attempt()


def test_the_dimension_is_checked(here: Surroundings) -> None:
    here.register(SIFT.replace("dim = 128", "dim = 96"))
    with pytest.raises(DimensionError, match=r"sift_base.u8bin has dimension 128, but the data set sift has 96 by"):
        open_named("sift", "base")
    assert open_named("sift", "groundtruth").dim == 100


def test_local_files_need_no_fetching() -> None:
    assert {one.state for one in fetch("sift")} == {"local"}
    (one,) = fetch("sift", parts=["base"])
    assert (one.path, one.parts) == (DATA / "sift_base.u8bin", ("base",))


def test_a_fetched_file_whose_size_has_changed_is_not_used(here: Surroundings, web: Web) -> None:
    web.files["b.fvecs"] = (DATA / "sift_query.fvecs").read_bytes()
    here.register(f"[datasets.mine]\ndim = 128\nbase = '{web.url('b.fvecs')}'")
    (one,) = fetch("mine")
    np.testing.assert_array_equal(dataset("mine").base().read(0, 5), rows("sift_query.fvecs", 0, 5))
    with one.path.open("ab") as handle:
        handle.write(bytes(516))
    with pytest.raises(ChecksumError, match=r"b.fvecs has [\d,]+ bytes, but [\d,]+ when it was fetched: .* --force"):
        open_named("mine", "base")


def test_the_cache_of_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QINCO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "qinco"


@pytest.fixture
def ann(tmp_path: Path) -> Path:
    """A file as ann-benchmarks has them."""
    path = tmp_path / "sift-128-euclidean.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"] = rows("sift_base.u8bin", 0, 500).astype(np.float32)
        file["test"] = rows("sift_query.fvecs", 0, 20)
        file["neighbors"] = np.zeros((20, 5), np.int32)
        file["distances"] = np.zeros((20, 5), np.float32)
    return path


def test_a_file_of_ann_benchmarks_is_a_data_set(ann: Path) -> None:
    found = dataset(ann)
    assert found.parts == ("base", "queries", "groundtruth")
    assert (found.spec.dim, found.spec.metric, found.spec.mse_scale) == (128, "l2", 1)
    assert found.base().shape == (500, 128)
    assert found.queries().shape == (20, 128)
    assert found.groundtruth().shape == (20, 5)
    assert found.queries().name == f"{ann}::test"
    with pytest.raises(UsageError, match="has no part 'train'"):
        found.train()


def test_several_parts_of_one_fetched_hdf5_file(ann: Path, here: Surroundings, web: Web) -> None:
    web.files["x.hdf5"] = ann.read_bytes()
    url = web.url("x.hdf5")
    here.register(
        "[datasets.mine]\ndim = 128\n"
        f"base = {{ source = '{url}', key = 'train' }}\nqueries = {{ source = '{url}', key = 'test' }}"
    )
    (one,) = fetch("mine", parts=["base"])
    assert one.parts == ("base", "queries")
    assert dataset("mine").queries().shape == (20, 128)
    assert len(web.requests) == 1


def test_files_of_one_name_in_two_folders_do_not_meet(here: Surroundings, web: Web) -> None:
    web.files["base/x.fvecs"] = (DATA / "sift_query.fvecs").read_bytes()
    web.files["query/x.fvecs"] = web.files["base/x.fvecs"][: 516 * 7]
    here.register(
        f"[datasets.mine]\ndim = 128\nbase = '{web.url('base/x.fvecs')}'\nqueries = '{web.url('query/x.fvecs')}'"
    )
    assert [one.path.name for one in fetch("mine")] == ["base-x.fvecs", "queries-x.fvecs"]
    assert len(dataset("mine").queries()) == 7
    assert [one.state for one in fetch("mine")] == ["checked", "checked"]


@pytest.mark.parametrize(
    ("distance", "metric"),
    [("angular", "cosine"), ("dot", "ip"), ("euclidean", "l2"), (b"Euclidean", "l2"), (np.bytes_("dot"), "ip")],
)
def test_distances_of_ann_benchmarks(distance: str, metric: str, ann: Path) -> None:
    with h5py.File(ann, "r+") as file:
        file.attrs["distance"] = distance
    assert dataset(ann).spec.metric == metric


def test_hdf5_files_that_are_no_data_set(ann: Path, tmp_path: Path) -> None:
    with h5py.File(ann, "r+") as file:
        file.attrs["distance"] = "jaccard"
    with pytest.raises(VectorFileError, match="is of the distance 'jaccard'; there are euclidean"):
        dataset(ann)
    with h5py.File(ann, "r+") as file:
        del file["test"]
    with pytest.raises(VectorFileError, match="has no datasets train and test"):
        dataset(ann)
    for shape in ((5, 0), (0, 5), (5,)):
        with h5py.File(ann, "w") as file:
            file["train"] = file["test"] = np.zeros(shape, np.float32)
        with pytest.raises(VectorFileError, match="has no datasets train and test of vectors"):
            dataset(ann)
    ann.write_bytes(b"nothing")
    with pytest.raises(VectorFileError, match="cannot be read as an HDF5 file of ann-benchmarks"):
        dataset(ann)
    with pytest.raises(InputNotFoundError, match=r"none.hdf5 does not exist"):
        dataset(tmp_path / "none.hdf5")
