"""Opening and reading files: every format, every window, every kind of bad file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import CASES, DATA, FIXED, quick, ramp, raw, save, tables

from qinco_core.errors import InputNotFoundError, UsageError, VectorFileError
from qinco_core.vectors import FORMATS, VectorSource, detect_format, mapped, open_vectors

VECS = [(f, t) for f, t in FIXED.items() if f.endswith("vecs")]
BIN = [(f, t) for f, t in FIXED.items() if f.endswith("bin")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize(("format", "dtype"), CASES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_what_was_saved(format: str, dtype: str, order: str, folder: Path) -> None:
    path = folder / f"x.{format}"

    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        array = np.asarray(data.draw(tables(dtype)), order=order)
        N, D = array.shape
        save(path, array, format)
        skip = data.draw(st.integers(0, N - 1))
        limit = data.draw(st.none() | st.integers(1, N + 2))
        expected = array[skip:][:limit]
        with open_vectors(path, skip=skip, limit=limit) as vectors:
            assert (vectors.shape, vectors.dtype) == (expected.shape, array.dtype.newbyteorder("="))
            assert (len(vectors), vectors.count, vectors.dim) == (len(expected), len(expected), D)
            size = data.draw(st.integers(1, N + 1))
            batches = list(vectors.batches(size))
            assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
            np.testing.assert_array_equal(np.concatenate(batches), expected)

            start = data.draw(st.integers(0, len(expected)))
            stop = data.draw(st.integers(start, len(expected)))
            np.testing.assert_array_equal(vectors.read(start, stop), expected[start:stop])
            section = vectors.section(start, stop)
            np.testing.assert_array_equal(section.read(0, len(section)), expected[start:stop])

            rows = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1))), dtype=np.int64)
            np.testing.assert_array_equal(vectors.take(rows), expected[rows])

    check()


@pytest.mark.parametrize("limit", [1, 100, 1 << 20])
def test_rows_that_follow_one_another_come_at_once(limit: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_READ_BYTES", limit)
    array = np.arange(600, dtype="f4").reshape(100, 6)
    save(folder / "runs.fvecs", array, "fvecs")
    rows = np.array([7, *range(20, 60), 99, 98, *range(5, 30), 0])
    with open_vectors(folder / "runs.fvecs") as vectors:
        np.testing.assert_array_equal(vectors.take(rows), array[rows])


def test_blocks_are_native_contiguous_and_the_callers_own(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.asfortranarray(ramp(9, 4, ">f4")), "npy")
    before = path.read_bytes()
    with open_vectors(path) as vectors:
        for block in (vectors.read(2, 7), vectors.take(np.array([5, 1]))):
            assert block.flags.c_contiguous and block.dtype.isnative
            block += 1
        assert vectors.read(2, 3)[0, 0] == 8
    assert path.read_bytes() == before


def test_sections_nest_and_outlive_their_file(tmp_path: Path) -> None:
    array = ramp(20, 3, "<f4")
    path = save(tmp_path / "x.fvecs", array, "fvecs")
    with open_vectors(path, skip=2) as vectors:
        inner = vectors.section(3, 15).section(1, 5)
    np.testing.assert_array_equal(inner.take(np.array([3, 0])), array[[9, 6]])
    with pytest.raises(UsageError, match="closed"):
        vectors.read(0, 1)


def test_sample_files_agree_with_each_other() -> None:
    with (
        open_vectors(DATA / "sift_base.u8bin") as base,
        open_vectors(DATA / "sift_query.fvecs", limit=20) as queries,
        open_vectors(DATA / "sift_groundtruth.ivecs") as truth,
    ):
        assert (base.shape, queries.shape, truth.shape) == ((10_000, 128), (20, 128), (500, 100))
        xq, ids = queries.read(0, 20).astype(np.int64), truth.read(0, 20)
        near = ((base.take(ids.ravel()).reshape(20, 100, 128) - xq[:, None]) ** 2).sum(2)
        assert (np.diff(near, axis=1) >= 0).all()
        xb = base.read(0, len(base)).astype(np.int64)
        for x, distances in zip(xq, near, strict=True):
            assert ((((xb - x) ** 2).sum(1)) < distances[-1]).sum() < 100


def test_is_a_vector_source(tmp_path: Path) -> None:
    source: VectorSource = open_vectors(save(tmp_path / "x.fvecs", ramp(5, 3, "<f4"), "fvecs"))
    assert (source.dim, source.count, source.dtype) == (3, 5, np.dtype("float32"))


def test_stamp_follows_the_rows_and_not_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "x.fvecs", ramp(9, 3, "<f4"), "fvecs")
    stamp = open_vectors(path).stamp
    assert open_vectors(path).stamp == open_vectors(path).section(0, 9).stamp == stamp
    others = {open_vectors(path, skip=1).stamp, open_vectors(path, limit=8).stamp}
    others |= {open_vectors(path).section(1, 9).section(0, 7).stamp, open_vectors(path, format="ivecs").stamp}
    moved = path.rename(tmp_path / "y.fvecs")
    assert open_vectors(moved).stamp == stamp
    os.utime(moved, ns=(1, 1))
    assert len(others | {stamp, open_vectors(moved).stamp}) == 6


def test_formats_are_told_by_extension_or_name() -> None:
    assert detect_format("a/b.U8BIN") == "u8bin"
    assert detect_format("a/b.h5") == "hdf5"
    assert detect_format("whatever", "fvecs") == "fvecs"
    for name, format in FORMATS.items():
        assert format.streamable == (name not in ("hdf5", "npz", "parquet"))
        assert all(detect_format(f"x{e}") == name for e in format.extensions)


@pytest.mark.parametrize(("path", "format"), [("x.txt", None), ("x", None), ("x.fvecs.gz", None), ("x.npy", "csv")])
def test_unknown_formats_list_the_known(path: str, format: str | None) -> None:
    with pytest.raises(UsageError, match=r"fvecs, bvecs, ivecs, npy, .*, hdf5, npz, parquet, arrow") as caught:
        open_vectors(path, format=format)
    assert format or "--format" in str(caught.value)


def test_an_explicit_format_wins_over_the_extension(tmp_path: Path) -> None:
    array = ramp(4, 3, "<f4")
    path = save(tmp_path / "x.npy", array, "fbin")
    np.testing.assert_array_equal(open_vectors(path, format="fbin").read(0, 4), array)


def test_missing_directory_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="does not exist"):
        open_vectors(tmp_path / "no.fvecs")
    with pytest.raises(InputNotFoundError, match="directory"):
        open_vectors(tmp_path, format="fvecs")
    os.mkfifo(tmp_path / "pipe.fvecs")
    with pytest.raises(UsageError, match="not a regular file"):
        open_vectors(tmp_path / "pipe.fvecs")


@pytest.mark.parametrize("format", [*FORMATS])
def test_an_empty_file(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{format}"
    path.touch()
    with pytest.raises(VectorFileError, match=r"x\.\w+ is empty"):
        open_vectors(path)


@pytest.mark.parametrize("format", [*FIXED, "npy"])
def test_every_truncation_and_any_excess(format: str, tmp_path: Path) -> None:
    array = ramp(3, 5, FIXED.get(format, "<f4"))
    path = save(tmp_path / f"x.{format}", array, format)
    data = path.read_bytes()
    row = len(data) // 3
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        if format.endswith("vecs") and length % row == 0:
            assert len(open_vectors(path)) == length // row  # such a file is whole
            continue
        with pytest.raises(VectorFileError, match=path.name):
            open_vectors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(VectorFileError, match=path.name):
        open_vectors(path)


@pytest.mark.parametrize(("format", "dtype"), VECS)
@pytest.mark.parametrize("row", [1, 7, 10])
def test_a_damaged_row_header_is_met_when_its_row_is(format: str, dtype: str, row: int, tmp_path: Path) -> None:
    data = bytearray(raw(ramp(11, 5, dtype), format))
    data[row * (len(data) // 11)] = 6
    path = tmp_path / f"x.{format}"
    path.write_bytes(data)
    message = rf"row {row} \(counted from 0\) says it has 6 dimensions where the first row has 5"
    if row == 10:
        with pytest.raises(VectorFileError, match=message):  # the last row is looked at when opening
            open_vectors(path)
        return
    vectors = open_vectors(path, skip=1)
    assert len(vectors.read(row, 10)) == 10 - row
    for read in (lambda: list(vectors.batches(2)), lambda: vectors.take(np.array([3, row - 1]))):
        with pytest.raises(VectorFileError, match=message):
            read()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("format", "dtype"), [c for c in CASES if np.dtype(c[1]).kind == "f"])
def test_nan_and_infinity_name_the_row_of_the_file(format: str, dtype: str, value: float, tmp_path: Path) -> None:
    array = ramp(30, 4, dtype)
    array[17, 2] = value
    array[23, 0] = value
    vectors = open_vectors(save(tmp_path / f"x.{format}", array, format), skip=10).section(2, 20)
    assert len(vectors.read(0, 5)) == 5
    with pytest.raises(VectorFileError, match=r"row 17 \(counted from 0\) holds NaN or infinity"):
        list(vectors.batches(4))
    with pytest.raises(VectorFileError, match="row 23 "):
        vectors.take(np.array([0, 11, 5]))


@pytest.mark.parametrize(("format", "dtype"), BIN)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 1 << 31)])
def test_bin_headers_that_cannot_be(format: str, dtype: str, shape: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / f"x.{format}"
    path.write_bytes(np.array(shape, "<u4").tobytes() + bytes(16))
    with pytest.raises(VectorFileError, match=r"holds no vectors|cannot be"):
        open_vectors(path)


@pytest.mark.parametrize("D", [0, -1, 1 << 30])
def test_vecs_headers_that_cannot_be(D: int, tmp_path: Path) -> None:
    path = tmp_path / "x.fvecs"
    path.write_bytes(np.array([D], "<i4").tobytes() + bytes(16))
    with pytest.raises(VectorFileError, match=r"holds no vectors|cannot be"):
        open_vectors(path)


@pytest.mark.parametrize("named", [*FIXED, "hdf5"])
def test_npy_contents_under_another_name(named: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"x.{named}", ramp(8, 8, "<f4"), "npy")
    with pytest.raises(VectorFileError, match="--format"):
        open_vectors(path)
    assert open_vectors(path, format="npy").shape == (8, 8)


@pytest.mark.parametrize(
    ("named", "actual"), [("bvecs", "fvecs"), ("fvecs", "bvecs"), ("u8bin", "fbin"), ("npy", "fvecs")]
)
def test_contents_of_another_format(named: str, actual: str, tmp_path: Path) -> None:
    with open_vectors(DATA / "sift_query.fvecs") as queries:  # 33 rows of each make a whole number of the other's
        array = queries.read(0, 132 * 3).astype(FIXED[actual])
    path = save(tmp_path / f"x.{named}", array, actual)
    with pytest.raises(VectorFileError, match="--format"):
        open_vectors(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(7, "f4"), r"shape \(7,\)"),
        (np.zeros((2, 3, 4), "f4"), r"shape \(2, 3, 4\)"),
        (np.zeros((0, 4), "f4"), "no vectors"),
        (np.zeros((4, 0), "f4"), "no vectors"),
        (np.zeros((4, 2), "c8"), "dtype '<c8'"),
        (np.zeros((4, 2), "?"), "convert it to one of float16"),
        (np.zeros((4, 2), "<u2"), "dtype"),
        (np.array([["a", "b"]]), "dtype"),
        (np.array([[{}, None]], dtype=object), r"dtype '\|O'"),
        (np.zeros((4, 2), [("a", "f4"), ("b", "f4")]), "dtype"),
    ],
)
def test_npy_arrays_that_are_no_vectors(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(VectorFileError, match=message):
        open_vectors(tmp_path / "x.npy")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(version: tuple[int, int], tmp_path: Path) -> None:
    array = ramp(4, 3, "<f4")
    with (tmp_path / "x.npy").open("wb") as handle:
        np.lib.format.write_array(handle, array, version=version)
    np.testing.assert_array_equal(open_vectors(tmp_path / "x.npy").read(0, 4), array)


@quick
@given(st.data())
def test_damaged_headers_never_escape_as_other_errors(folder: Path, data: st.DataObject) -> None:
    format = data.draw(st.sampled_from([*FIXED, "npy"]))
    path = save(folder / f"damaged.{format}", ramp(3, 5, FIXED.get(format, "<f4")), format)
    contents = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, min(80, len(contents) - 1)), min_size=1, max_size=3)):
        contents[at] = data.draw(st.integers(0, 255))
    path.write_bytes(contents)
    try:
        vectors = open_vectors(path)
        assert vectors.read(0, len(vectors)).shape == vectors.shape
    except VectorFileError as error:
        assert path.name in str(error)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: open_vectors(p, skip=5),
        lambda p: open_vectors(p, skip=-1),
        lambda p: open_vectors(p, limit=0),
        lambda p: open_vectors(p).read(-1, 2),
        lambda p: open_vectors(p).read(2, 1),
        lambda p: open_vectors(p).read(0, 6),
        lambda p: open_vectors(p, limit=2).take(np.array([0, 2])),
        lambda p: open_vectors(p).take(np.array([-1])),
        lambda p: open_vectors(p).section(0, 6),
        lambda p: open_vectors(p).batches(0),
        lambda p: open_vectors(f"{p}::train"),
    ],
)
def test_windows_outside_the_file(call: object, tmp_path: Path) -> None:
    path = save(tmp_path / "x.fvecs", ramp(5, 3, "<f4"), "fvecs")
    with pytest.raises(UsageError, match=r"skip|limit|inside|batch size|nothing to name"):
        call(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.fbin", ramp(100, 8, "<f4"), "fbin")
    vectors = open_vectors(path)
    os.truncate(path, 50)
    with pytest.raises(VectorFileError, match="became shorter"):
        vectors.read(90, 100)


def test_a_path_with_the_separator_of_keys_in_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a::b.fvecs", ramp(5, 3, "<f4"), "fvecs")
    assert len(open_vectors(path)) == 5


_MEASURE = """
import resource, sys
import numpy as np
from qinco_core.vectors import open_vectors
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with open_vectors(sys.argv[1]) as vectors:
    vectors.read(0, 4096), vectors.take(np.arange(10))
    before = peak()
    for block in vectors.batches(4096):
        pass
    vectors.take(np.arange(0, len(vectors), 1 << 12))
    print(peak() - before)
"""


@pytest.mark.parametrize("order", ["C", "F"])
def test_resident_memory_does_not_follow_the_file(order: str, tmp_path: Path) -> None:
    N, D = 1 << 20, 128
    path = tmp_path / "x.npy"
    header = {"descr": "|u1", "fortran_order": order == "F", "shape": (N, D)}
    with path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        handle.truncate(handle.tell() + N * D)  # sparse: takes no disk
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40  # MB, of 128
