"""Writing vectors: what is written reads back, and a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import DATA, FIXED, quick, ramp, raw, tables

from qinco_core.errors import DimensionError, OutputExistsError, StorageError, UsageError, VectorFileError
from qinco_core.files import atomic_output
from qinco_core.vectors import open_vectors, open_writer, read_stream, write_vectors

WRITTEN = [*FIXED.items(), *(("npy", t) for t in ("<f2", "<f4", "<f8", "u1", "i1", "<i4", "<i8"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.mark.parametrize(("format", "dtype"), WRITTEN)
def test_round_trip_by_blocks(format: str, dtype: str, folder: Path) -> None:
    path = folder / f"x.{format}"

    @quick
    @given(tables(dtype), st.integers(1, 5), st.booleans())
    def check(array: np.ndarray, size: int, counted: bool) -> None:
        N, D = array.shape
        with open_writer(path, D=D, dtype=dtype, count=N if counted else None, force=True) as writer:
            for at in range(0, N, size):
                writer.append(array[at : at + size])
            assert writer.written == N
        with open_vectors(path) as vectors:
            np.testing.assert_array_equal(vectors.read(0, N), array)
        if format == "npy":
            np.testing.assert_array_equal(np.load(path, allow_pickle=False), array)
        else:
            assert path.read_bytes() == raw(array, format)
        out = io.BytesIO()
        with open_writer(out, D=D, dtype=dtype, format=format, count=N) as writer:
            writer.append(np.asfortranarray(array))
        assert out.getvalue() == path.read_bytes()
        np.testing.assert_array_equal(next(read_stream(io.BytesIO(out.getvalue()), format).batches(N)), array)

    check()


def test_sift_survives_every_format_that_holds_it(tmp_path: Path) -> None:
    with open_vectors(DATA / "sift_query.fvecs") as queries:
        array = queries.read(0, len(queries))
    for format in ("fvecs", "bvecs", "ivecs", "fbin", "u8bin", "ibin", "npy"):
        write_vectors(tmp_path / f"x.{format}", array)
        with open_vectors(tmp_path / f"x.{format}") as vectors:
            np.testing.assert_array_equal(vectors.read(0, 500), array)


@pytest.mark.parametrize(
    ("format", "given_values", "expected"),
    [
        ("bvecs", np.array([[-3.0, 0.4, 0.6, 254.7, 1e30]]), [0, 0, 1, 255, 255]),
        ("u8bin", np.array([[-3, 0, 7, 300, 1 << 40]]), [0, 0, 7, 255, 255]),
        ("u8bin", np.array([[-128, 127]], "i1"), [0, 127]),
        ("i8bin", np.array([[0, 200]], "u1"), [0, 127]),
        ("i8bin", np.array([[-500.0, -0.6]], "f2"), [-128, -1]),
        ("ivecs", np.array([[1.4, -2.6]]), [1, -3]),
        ("ibin", np.array([[-(1 << 31), (1 << 31) - 1]]), [-(1 << 31), (1 << 31) - 1]),
        ("fbin", np.array([[1 / 3, 1e-60]]), [np.float32(1 / 3), 0]),
        ("fvecs", np.array([[7, 300]], "i4"), [7, 300]),
    ],
)
def test_conversions(format: str, given_values: np.ndarray, expected: list[float], tmp_path: Path) -> None:
    write_vectors(tmp_path / "x", given_values, format=format)
    with open_vectors(tmp_path / "x", format=format) as vectors:
        assert vectors.read(0, 1)[0].tolist() == expected


@pytest.mark.parametrize(
    ("format", "bad", "message"),
    [
        ("ivecs", np.array([[1 << 31]]), "do not fit int32"),
        ("ivecs", np.array([[-3e9]]), "do not fit int32"),
        ("ibin", np.array([[2147483648.0]], "f4"), "do not fit int32"),
        ("fvecs", np.array([[1e39]]), "row 0 .*infinity"),
        ("bvecs", np.array([[0.0], [np.nan]]), "row 1 .*NaN"),
        ("npy", np.array([[np.inf]]), "row 0 "),
        ("fvecs", np.array([["a"]]), "convert it"),
        ("ivecs", np.array([[1]], "u8"), "uint64; convert it"),
    ],
)
def test_values_that_cannot_be_written(format: str, bad: np.ndarray, message: str, tmp_path: Path) -> None:
    with (
        pytest.raises(VectorFileError, match=message),
        open_writer(tmp_path / "x", D=1, dtype="f4", format=format) as writer,
    ):
        writer.append(bad)
    assert list(tmp_path.iterdir()) == []


def test_npy_keeps_the_dtype_of_the_writer(tmp_path: Path) -> None:
    with open_writer(tmp_path / "x.npy", D=2, dtype=">f2") as writer:
        writer.append(np.ones((3, 2)))
        writer.append(np.zeros((0, 2)))
    loaded = np.load(tmp_path / "x.npy")
    assert (loaded.dtype, loaded.shape) == (np.dtype("<f2"), (3, 2))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("format", [*FIXED, "npy"])
def test_another_number_than_announced(format: str, count: int, tmp_path: Path) -> None:
    with (
        pytest.raises(VectorFileError, match=f"{count} .*announced"),
        open_writer(tmp_path / "x", D=5, dtype="f4", format=format, count=count) as writer,
    ):
        writer.append(ramp(3, 5, "<f4"))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.fbin"
    write_vectors(path, ramp(3, 5, "<f4"))
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        write_vectors(path, ramp(4, 5, "<f4"))
    with pytest.raises(KeyError), open_writer(path, D=5, dtype="f4", force=True) as writer:
        writer.append(ramp(4, 5, "<f4"))
        assert path.read_bytes() == before
        raise KeyError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write_vectors(path, ramp(4, 5, "<f4"), force=True)
    assert len(open_vectors(path)) == 4


def test_nothing_written(tmp_path: Path) -> None:
    with (
        pytest.raises(VectorFileError, match="0 vectors were written"),
        open_writer(tmp_path / "x.fvecs", D=3, dtype="f4"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 5, 1)])
def test_blocks_of_another_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    with (
        pytest.raises(DimensionError, match="5 dimensions"),
        open_writer(tmp_path / "x.npy", D=5, dtype="f4") as writer,
    ):
        writer.append(np.zeros(shape, "f4"))
    with pytest.raises(DimensionError, match=r"\[N, D\]"):
        write_vectors(tmp_path / "x.npy", np.zeros(5, "f4"))


@pytest.mark.parametrize("format", ["npy", "fbin", "u8bin", "i8bin", "ibin"])
def test_a_pipe_needs_the_count_where_the_header_holds_it(format: str) -> None:
    out = io.BytesIO()
    with pytest.raises(UsageError, match="write fvecs"), open_writer(out, D=5, dtype="f4", format=format):
        pass
    assert out.getvalue() == b""


def test_a_pipe_of_vecs_needs_no_count() -> None:
    out = io.BytesIO()
    with open_writer(out, D=5, dtype="f4", format="fvecs") as writer:
        writer.append(ramp(3, 5, "<f4"))
    assert out.getvalue() == raw(ramp(3, 5, "<f4"), "fvecs")


def test_an_unbuffered_pipe_may_take_little_at_a_time() -> None:
    class Narrow(io.BytesIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:7])

    out = Narrow()
    write_vectors(out, ramp(30, 5, "<f4"), format="fbin")
    assert out.getvalue() == raw(ramp(30, 5, "<f4"), "fbin")


@pytest.mark.parametrize(
    "options",
    [
        {"D": 0},
        {"D": 1 << 21},
        {"count": 0},
        {"format": "csv"},
        {"format": "npy", "dtype": "c8"},
        {"format": None},
    ],
)
def test_wrong_calls(options: dict[str, object], tmp_path: Path) -> None:
    options = {"D": 4, "dtype": "f4", "format": "fvecs"} | options
    for target in (tmp_path / "x", io.BytesIO()):
        with pytest.raises(UsageError), open_writer(target, **options):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(StorageError, match="no room left"):
        write_vectors(full, ramp(3, 5, "<f4"), format="fvecs")


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    array = ramp(3, 2, "<f4")
    for name in ("n" * 251 + ".npy", "ü" * 125 + ".npy"):
        write_vectors(tmp_path / name, array)
        np.testing.assert_array_equal(np.load(tmp_path / name), array)
    with pytest.raises(StorageError, match=r"File name too long.*choose another output"):
        write_vectors(tmp_path / ("n" * 252 + ".npy"), array)


def test_a_read_only_disk_is_said_although_it_refuses_to_tidy_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match=r"x\.npy cannot be written here"), atomic_output(tmp_path / "x.npy"):
        refuse()
