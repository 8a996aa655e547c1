"""Vectors at addresses: equal to those of the same file here, few requests, and clear refusals."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from range_server import Web, serve
from vector_cases import CASES, DATA, ramp, raw, save

from qinco_core.api import Codec
from qinco_core.errors import InputNotFoundError, StorageError, UsageError, VectorFileError
from qinco_core.training import data
from qinco_core.vectors import open_vectors, read_ids, remote, write_vectors
from qinco_core.vectors.formats import detect_format, source_stem


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()


@pytest.mark.parametrize(("format", "dtype"), CASES)
def test_every_format_of_records_reads_as_here(
    web: Web, bucket: fsspec.AbstractFileSystem, tmp_path: Path, format: str, dtype: str
) -> None:
    path = save(tmp_path / f"a.{format}", ramp(50, 7, dtype), format)
    web.files["set/a." + format] = path.read_bytes()
    bucket.pipe(f"/set/a.{format}", path.read_bytes())
    rows = np.array([49, 3, 4, 3, 0])
    with open_vectors(path, skip=2, limit=40) as here:
        for address in (web.url(f"set/a.{format}"), f"memory://set/a.{format}"):
            with open_vectors(address) as there:
                assert (there.shape, there.dtype, there.format) == ((50, 7), here.dtype, format)
                np.testing.assert_array_equal(there.take(rows), ramp(50, 7, dtype)[rows])
            with open_vectors(address, skip=2, limit=40) as there:
                assert there.name == address
                for mine, theirs in zip(here.batches(9), there.batches(9), strict=True):
                    np.testing.assert_array_equal(mine, theirs)
                np.testing.assert_array_equal(here.section(5, 30).read(1, 25), there.section(5, 30).read(1, 25))


def test_a_local_address(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fvecs", ramp(5, 3, "<f4"), "fvecs")
    with open_vectors(f"file://{path}") as there:
        np.testing.assert_array_equal(there.read(0, 5), ramp(5, 3, "<f4"))


@pytest.mark.parametrize("key", ["", "::embedding"])
def test_parquet_reads_as_here(web: Web, tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.parquet"
    write_vectors(path, ramp(3000, 16, "<f4"))
    web.files["a.parquet"] = path.read_bytes()
    with open_vectors(web.url("a.parquet") + key) as there:
        assert there.name == web.url("a.parquet::embedding")
        np.testing.assert_array_equal(np.concatenate(list(there.batches(700))), ramp(3000, 16, "<f4"))
        np.testing.assert_array_equal(there.take(np.array([2999, 5])), ramp(3000, 16, "<f4")[[2999, 5]])


def test_damaged_parquet_and_a_server_that_goes(web: Web, tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.parquet", ramp(3000, 16, "<f4"))
    web.files["a.parquet"] = (tmp_path / "a.parquet").read_bytes()
    web.files["b.parquet"] = web.files["a.parquet"][:-100]
    with pytest.raises(VectorFileError, match=r"b\.parquet cannot be read as Parquet"):
        open_vectors(web.url("b.parquet"))
    with open_vectors(web.url("a.parquet")) as there:
        web.refusals += [503] * 20
        with pytest.raises(StorageError, match="503"):
            there.read(0, 10)


def test_batches_come_in_large_requests_and_ahead(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_REQUEST_BYTES", 1000 * 8)
    web.files["a.u8bin"] = raw(ramp(5000, 8, "u1"), "u8bin")
    with open_vectors(web.url("a.u8bin")) as there:
        web.asked.clear()
        batches = list(there.batches(100))
    np.testing.assert_array_equal(np.concatenate(batches), ramp(5000, 8, "u1"))
    # what is asked for first, then blocks
    assert web.asked == [(8, 808), *((8 + 8 * at, 8 + 8 * min(at + 1000, 5000)) for at in range(100, 5000, 1000))]


def test_rows_near_one_another_come_together(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_GAP_BYTES", 80)
    web.files["a.u8bin"] = raw(ramp(5000, 8, "u1"), "u8bin")
    rows = np.array([4000, 7, 3, 4999, 13, 4000, 2000])
    with open_vectors(web.url("a.u8bin")) as there:
        web.asked.clear()
        np.testing.assert_array_equal(there.take(rows), ramp(5000, 8, "u1")[rows])
    spans = [(3, 14), (2000, 2001), (4000, 4001), (4999, 5000)]
    assert sorted(web.asked) == [(8 + 8 * start, 8 + 8 * stop) for start, stop in spans]


def test_many_rows_in_bounded_requests(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_REQUEST_BYTES", 800)
    web.files["a.bvecs"] = raw(ramp(5000, 4, "u1"), "bvecs")
    rows = np.random.default_rng(0).integers(0, 5000, 3000)
    with open_vectors(web.url("a.bvecs")) as there:
        np.testing.assert_array_equal(there.take(rows), ramp(5000, 4, "u1")[rows])
    assert max(end - start for start, end in web.asked[3:]) <= 800


def test_an_interruption_is_passed_over(web: Web) -> None:
    web.files["a.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    with open_vectors(web.url("a.u8bin")) as there:
        web.refusals += [503, 0]
        np.testing.assert_array_equal(there.read(0, 50), ramp(50, 8, "u1"))
        web.refusals += [500, 0]
        np.testing.assert_array_equal(there.take(np.array([1, 40])), ramp(50, 8, "u1")[[1, 40]])


@pytest.mark.parametrize("refusal", [503, 0])
def test_a_server_that_never_gives_it(web: Web, refusal: int) -> None:
    web.files["a.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    with open_vectors(web.url("a.u8bin")) as there:
        web.refusals += [refusal] * 20
        with pytest.raises(StorageError, match=r"a\.u8bin cannot be read \(.+\); check address and access"):
            there.read(0, 10)


def test_a_refusal_is_not_asked_again(web: Web) -> None:
    web.files["a.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    with open_vectors(web.url("a.u8bin?key=secret")) as there:
        web.refusals += [403, 403]
        with pytest.raises(StorageError, match="403") as refused:
            there.read(0, 10)
        assert len(web.refusals) == 1
        assert "secret" not in str(refused.value) + there.name
        assert "\n" not in str(refused.value)


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/a.u8bin"
        with pytest.raises(StorageError, match=r"a\.u8bin cannot be read"):
            open_vectors(address)


def test_missing_files(web: Web, bucket: fsspec.AbstractFileSystem) -> None:
    for address in (web.url("none.fbin"), "memory://none/none.fbin", "file:///nowhere/none.fbin"):
        with pytest.raises(InputNotFoundError, match=r"none\.fbin does not exist; check the address"):
            open_vectors(address)


def test_a_server_without_ranges(web: Web) -> None:
    web.files["a.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    web.ranges = False
    with pytest.raises(StorageError, match="does not give ranges of it; fetch the file first"):
        open_vectors(web.url("a.u8bin"))


def test_a_server_that_tells_no_size(web: Web) -> None:
    web.files["a.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    web.sizes = False
    with pytest.raises(StorageError, match="does not tell the size; fetch the file first"):
        open_vectors(web.url("a.u8bin"))


def test_a_file_that_shrinks(web: Web) -> None:
    web.files["a.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    with open_vectors(web.url("a.u8bin")) as there:
        web.files["a.u8bin"] = web.files["a.u8bin"][:200]
        for start in (20, 40):  # across the new end, and behind it
            with pytest.raises(VectorFileError, match=r"a\.u8bin became shorter while it was read; run again"):
                there.read(start, 50)


def test_headers_are_checked_as_here(web: Web, tmp_path: Path) -> None:
    web.files["short.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")[:-1]
    web.files["empty.u8bin"] = b""
    web.files["cut.fbin"] = b"12"
    web.files["nan.fbin"] = raw(np.full((4, 2), np.nan, "<f4"), "fbin")
    np.save(tmp_path / "f.npy", np.asfortranarray(ramp(9, 3, "<f4")))
    web.files["f.npy"] = (tmp_path / "f.npy").read_bytes()
    for name, complaint in {
        "short.u8bin": "the header says 50 x 8 uint8, 408 bytes; there are 407",
        "empty.u8bin": "is empty",
        "cut.fbin": "ends inside its header",
        "f.npy": "in Fortran order: its rows lie apart; fetch the file first",
    }.items():
        with pytest.raises(VectorFileError, match=complaint):
            open_vectors(web.url(name))
    with open_vectors(web.url("nan.fbin")) as there, pytest.raises(VectorFileError, match=r"row 2 .* holds NaN"):
        there.read(2, 4)


def test_other_formats_are_to_be_fetched(bucket: fsspec.AbstractFileSystem) -> None:
    for name in ("a.npz", "a.hdf5::train", "a.arrow"):
        with pytest.raises(UsageError, match=r"cannot be read from an address, only fvecs.* can: fetch the file first"):
            open_vectors(f"s3://bucket/{name}")
    with pytest.raises(UsageError, match="has nothing to name with ::"):
        open_vectors("s3://bucket/a.fbin::train")
    with pytest.raises(UsageError, match="nosuch"):
        open_vectors("nosuch://a/b.fbin")
    with pytest.raises(UsageError, match="ids are read from files only"):
        read_ids("s3://bucket/ids.npy")
    with pytest.raises(UsageError, match="only files are written"):
        write_vectors("s3://bucket/a.fbin", ramp(2, 2, "<f4"))
    bucket.mkdir("/folder.fbin")
    with pytest.raises(UsageError, match="is a folder"):
        open_vectors("memory://folder.fbin")


def test_names_and_identity(web: Web) -> None:
    assert source_stem("https://h/x/base.u8bin?sig=a/b.c") == "base"
    assert source_stem("simplecache::s3://bucket/base.fbin") == "base"
    assert source_stem("s3://bucket/base.parquet::embedding") == "base"
    assert detect_format("https://h/x/base.u8bin?sig=a/b.c") == "u8bin"
    web.files["a.u8bin"] = web.files["b.u8bin"] = raw(ramp(50, 8, "u1"), "u8bin")
    a, again, b = (open_vectors(web.url(name)).stamp for name in ("a.u8bin", "a.u8bin?sig=1", "b.u8bin"))
    assert a == again == b
    web.files["b.u8bin"] = raw(ramp(50, 8, "u1")[::-1], "u8bin")
    assert open_vectors(web.url("b.u8bin")).stamp != b


def test_training_from_an_address(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model as from the file, rows drawn from the server."""
    monkeypatch.setattr(data, "_KEPT_BYTES", 0)
    web.files["learn.bvecs"] = (DATA / "sift_learn.bvecs").read_bytes()
    changes = {"M": 2, "K": 8, "E": 8, "H": 16, "A": 2, "B": 2}
    options = {"epochs": 1, "changes": changes, "training": {"val": 200, "kmeans_iterations": 2}, "threads": 1}
    with open_vectors(web.url("learn.bvecs"), limit=1200) as there, open_vectors(DATA / "sift_learn.bvecs") as here:
        models = [Codec.train(v, preset_name="qinco2-XS", **options) for v in (there, here.section(0, 1200))]
        codes = [model.encode(here.read(0, 100)) for model in models]
    np.testing.assert_array_equal(*codes)
