"""Every format to every other, what is lost on the way, and ann-benchmarks files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_cases import ELEMENTS, quick
from vector_cases import DATA, ramp, tables

from qinco_core.errors import DimensionError, StorageError, UsageError, VectorFileError
from qinco_core.vectors import FORMATS, open_vectors, open_writer, parquet, read_ids, read_stream, write_vectors
from qinco_core.vectors.convert import convert, pack_benchmark, parse_dtype, unpack_benchmark

NEW = ("npz", "hdf5", "parquet", "arrow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


def others_read(path: Path) -> np.ndarray:
    """What numpy, h5py and pyarrow read."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            (array,) = archive.values()
            return array
    if path.suffix == ".hdf5":
        with h5py.File(path) as file:
            return file["train"][()]
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            content = pa.ipc.open_file(source).read_all()
    else:
        content = pq.read_table(path)
    column = content["embedding"].combine_chunks()
    assert pa.types.is_fixed_size_list(column.type)
    return np.asarray(column.flatten()).reshape(len(column), -1)


@pytest.mark.parametrize("format", NEW)
def test_what_is_written_others_read(format: str, folder: Path) -> None:
    path = folder / f"x.{format}"

    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(ELEMENTS))
        array = data.draw(tables(dtype))
        N, D = array.shape
        count, size = data.draw(st.sampled_from([None, N])), data.draw(st.integers(1, 5))
        with open_writer(path, D=D, dtype=dtype, count=count, force=True) as writer:
            for at in range(0, N, size):
                block = array[at : at + size].copy()
                writer.append(block)
                block[:] = 0  # what was given may be used again
        assert (writer.written, writer.changed) == (N, 0)
        read = others_read(path)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
        with open_vectors(path) as vectors:
            assert vectors.dtype == array.dtype
            np.testing.assert_array_equal(vectors.read(0, N), array)

    check()


@quick
@given(st.data())
def test_every_format_to_every_other(folder: Path, data: st.DataObject) -> None:
    source, target = (data.draw(st.sampled_from([*FORMATS])) for _ in range(2))
    dtype = data.draw(st.sampled_from([t for t in FORMATS[source].holds if t in FORMATS[target].holds] or [None]))
    array = data.draw(tables(str(dtype or FORMATS[source].holds[0])))
    write_vectors(folder / f"in.{source}", array, force=True)
    with open_vectors(folder / f"in.{source}") as vectors:
        try:
            made = convert(vectors, folder / f"out.{target}", force=True)
        except VectorFileError as error:  # beyond the other type
            assert "do not fit" in str(error) or "infinity" in str(error)
            return
    with open_vectors(folder / f"out.{target}") as found:
        assert made.vectors == len(array) and made.dtype == str(found.dtype)
        lost = found.read(0, len(found)) != array
        assert made.changed == lost.sum()
        assert dtype is None or not lost.any()


@pytest.mark.parametrize("format", ["arrow", "parquet", "npz"])
def test_pipes_carry_the_same(format: str, tmp_path: Path) -> None:
    array = ramp(50, 6, "<f2")
    out = io.BytesIO()
    with open_writer(out, D=6, dtype="f2", format=format, count=50) as writer:
        writer.append(array[:20])
        writer.append(array[20:])
    assert not out.closed
    (tmp_path / f"x.{format}").write_bytes(out.getvalue())
    np.testing.assert_array_equal(open_vectors(tmp_path / f"x.{format}").read(0, 50), array)
    if format == "arrow":
        np.testing.assert_array_equal(next(read_stream(io.BytesIO(out.getvalue()), "arrow").batches(50)), array)


def test_names_of_columns_arrays_and_datasets(tmp_path: Path) -> None:
    array = ramp(5, 3, "<f4")
    for format, key in (("npz", "a/b"), ("hdf5", "deep/er"), ("parquet", "v"), ("arrow", "v w")):
        write_vectors(f"{tmp_path}/x.{format}::{key}", array)
        with open_vectors(f"{tmp_path}/x.{format}::{key}") as vectors:
            assert vectors.name == f"{tmp_path}/x.{format}::{key}"
            np.testing.assert_array_equal(vectors.read(0, 5), array)
    for key in ("", "/", "a//b", "."):
        with pytest.raises(UsageError, match="cannot name a dataset"):
            write_vectors(f"{tmp_path}/y.hdf5::{key or '/'}", array)
    with (
        pytest.raises(UsageError, match="the column id is for the ids"),
        open_writer(f"{tmp_path}/y.parquet::id", D=3, dtype="f4", with_ids=True),
    ):
        pass
    assert not list(tmp_path.glob("*y*"))


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_ids_stand_beside_the_vectors(format: str, tmp_path: Path) -> None:
    ids = np.array([5, 1 << 50, 0])
    with open_writer(tmp_path / f"x.{format}", D=2, dtype="f4", with_ids=True) as writer:
        writer.append(ramp(2, 2, "<f4"), ids[:2])
        with pytest.raises(UsageError, match="give all or none"):
            writer.append(ramp(1, 2, "<f4"))
        with pytest.raises(DimensionError, match=r"ids of shape \(2,\) for 1 vectors"):
            writer.append(ramp(1, 2, "<f4"), ids[:2])
        writer.append(ramp(1, 2, "<f4"), ids[2:])
    np.testing.assert_array_equal(read_ids(tmp_path / f"x.{format}"), ids)
    assert open_vectors(tmp_path / f"x.{format}").shape == (3, 2)
    with (
        pytest.raises(UsageError, match="fvecs has no place for ids; write parquet, arrow"),
        open_writer(tmp_path / "x.fvecs", D=2, dtype="f4", with_ids=True),
    ):
        pass


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    for array, target, changed in (
        (np.array([[0.0, 0.5, 255, 256, -3, 7]]), "bvecs", 3),
        (np.array([[1, 1 << 24, (1 << 24) + 1]], "i8"), "fvecs", 1),
        (np.array([[0.1, 0.5]]), "fbin", 1),
        (np.array([[1, 200]], "u1"), "i8bin", 1),
        (np.array([[1.25, 60_000]], "f2"), "ivecs", 1),
        (np.array([[1, 1 << 53, (1 << 53) + 1, (1 << 63) - 1]], "i8"), "npy", 2),
        (np.array([[0, (1 << 31) - 1]], "i4"), "npy", 0),
    ):
        dtype = np.float64 if target == "npy" else array.dtype
        with open_writer(tmp_path / "x", D=array.shape[1], dtype=dtype, format=target, force=True) as writer:
            writer.append(array)
        assert writer.changed == changed


@pytest.mark.parametrize("format", NEW)
def test_a_failure_leaves_nothing(format: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_writer(tmp_path / f"x.{format}", D=5, dtype="f4") as writer:
        writer.append(ramp(4, 5, "<f4"))
        raise KeyError
    with (
        pytest.raises(VectorFileError, match="4 of 5 announced"),
        open_writer(tmp_path / f"x.{format}", D=5, dtype="f4", count=5) as writer,
    ):
        writer.append(ramp(4, 5, "<f4"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["parquet", "arrow", "npz"])
def test_a_full_pipe_is_told_as_such(format: str) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(StorageError, match="no room left"):
        write_vectors(full, ramp(30, 5, "<f4"), format=format)


class Interrupted(io.BytesIO):
    """A pipe during one of whose writes Ctrl-C comes."""

    def __init__(self, write: int) -> None:
        super().__init__()
        self.writes_left = write

    def write(self, data: object) -> int:  # type: ignore[override]
        self.writes_left -= 1
        if self.writes_left == 0:
            raise KeyboardInterrupt
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["parquet", "arrow", "npz"])
def test_what_a_failure_left_in_a_pipe_is_seen_to_be_cut(format: str, tmp_path: Path) -> None:
    def write(pipe: io.BytesIO, *, fail: bool = False) -> None:
        options = {"D": 4, "dtype": "f4", "format": format, "count": 3000}
        with mock.patch.object(parquet, "_GROUP_BYTES", 1000 * 16), open_writer(pipe, **options) as writer:
            for _ in range(2 if fail else 3):
                writer.append(ramp(1000, 4, "<f4"))
            if fail:
                raise KeyError

    whole = Interrupted(0)
    write(whole)
    writes = -whole.writes_left
    failed = io.BytesIO()
    with pytest.raises(KeyError):
        write(failed, fail=True)
    pipes = [failed]
    for number in range(1, writes + 1):
        pipes.append(Interrupted(number))
        with pytest.raises(KeyboardInterrupt):
            write(pipes[-1])
    path = tmp_path / f"x.{format}"
    for pipe in pipes:
        if pipe.getvalue():
            assert len(pipe.getvalue()) < len(whole.getvalue())
            path.write_bytes(pipe.getvalue())
            with pytest.raises(VectorFileError, match=path.name):
                open_vectors(path)


def test_row_groups_are_of_a_size(tmp_path: Path) -> None:
    blocks = [500, 500, 600, 500, 1700, 1000]
    with (
        mock.patch.object(parquet, "_GROUP_BYTES", 1000 * 16),
        open_writer(tmp_path / "x.parquet", D=4, dtype="f4") as writer,
    ):
        for n in blocks:
            writer.append(ramp(n, 4, "<f4"))
    groups = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [1000, 600, 500, 1000, 700, 1000]


def test_dtypes_that_a_format_can_hold() -> None:
    assert parse_dtype("float16", "npy") == np.float16
    with pytest.raises(UsageError, match="no dtype 'float8' for vectors; there are float16"):
        parse_dtype("float8", "npy")
    with pytest.raises(UsageError, match=r"fvecs files hold float32, not uint8; .* write bvecs, npy, u8bin"):
        parse_dtype("uint8", "fvecs")


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as an ann-benchmarks file."""
    path = tmp_path_factory.mktemp("ann") / "sift.hdf5"
    with (
        open_vectors(DATA / "sift_base.u8bin") as base,
        open_vectors(DATA / "sift_query.fvecs") as queries,
        open_vectors(DATA / "sift_groundtruth.ivecs") as truth,
    ):
        pack_benchmark(base, queries, truth, path, distances=True, dtype=np.dtype("float32"))
    return path


def test_an_ann_benchmarks_file(ann: Path) -> None:
    with h5py.File(ann) as file:
        about = {name: value if isinstance(value, str) else int(value) for name, value in file.attrs.items()}
        assert about == {"type": "dense", "distance": "euclidean", "dimension": 128, "point_type": "float"}
        assert {name: d.dtype.name for name, d in file.items()} == {
            "train": "float32",
            "test": "float32",
            "neighbors": "int32",
            "distances": "float32",
        }
        xb, xq, I = file["train"][()], file["test"][()], file["neighbors"][()]
        expected = np.linalg.norm(xb[I].astype("f8") - xq[:, None], axis=-1)
        np.testing.assert_allclose(file["distances"], expected, rtol=1e-6)


@pytest.mark.parametrize(("metric", "name"), [("ip", "ip"), ("cosine", "angular")])
def test_the_other_metrics(metric: str, name: str, tmp_path: Path) -> None:
    xb, I = np.array([[3.0, 4], [0, 2]]), np.array([[1, 0]])
    for file, array in (("b", xb), ("q", np.array([[0.0, 1]])), ("i", I)):
        np.save(tmp_path / f"{file}.npy", array)
    base, queries, truth = (open_vectors(tmp_path / f"{file}.npy") for file in "bqi")
    pack_benchmark(base, queries, truth, tmp_path / "x.hdf5", distances=True, metric=metric)
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert file.attrs["distance"] == name
        expected = [[-2, -4]] if metric == "ip" else [[0, 0.2]]
        np.testing.assert_allclose(file["distances"], expected, atol=1e-7)


def test_the_cosine_of_a_vector_without_length_is_0(tmp_path: Path) -> None:
    for file, array in (("b", np.array([[0.0, 0], [0, 2]])), ("q", np.array([[0.0, 1], [0, 0]]))):
        np.save(tmp_path / f"{file}.npy", array)
    np.save(tmp_path / "i.npy", np.array([[0, 1], [1, 0]]))
    base, queries, truth = (open_vectors(tmp_path / f"{file}.npy") for file in "bqi")
    pack_benchmark(base, queries, truth, tmp_path / "x.hdf5", distances=True, metric="cosine")
    with h5py.File(tmp_path / "x.hdf5") as file:
        np.testing.assert_array_equal(file["distances"], [[1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("fvecs", ["distances.fvecs", "neighbors.ivecs", "test.fvecs", "train.fvecs"]),
        ("u8bin", ["distances.fbin", "neighbors.ibin", "test.u8bin", "train.u8bin"]),
        ("npy", ["distances.npy", "neighbors.npy", "test.npy", "train.npy"]),
    ],
)
def test_an_ann_benchmarks_file_taken_apart(format: str, names: list[str], ann: Path, tmp_path: Path) -> None:
    written = unpack_benchmark(ann, tmp_path / "out", format=format)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [file.changed for file in written] == [0, 0, 0, 0]
    json.dumps([file.as_dict() for file in written])
    sample = {"train": "sift_base.u8bin", "test": "sift_query.fvecs", "neighbors": "sift_groundtruth.ivecs"}
    for name, file in sample.items():
        (path,) = (tmp_path / "out").glob(f"{name}.*")
        with open_vectors(path) as found, open_vectors(DATA / file) as expected:
            np.testing.assert_array_equal(found.read(0, len(found)), expected.read(0, len(expected)))


def test_an_ann_benchmarks_file_by_another_name(ann: Path, tmp_path: Path) -> None:
    (tmp_path / "sift.dat").symlink_to(ann)
    for format in ("fvecs", "npy"):
        assert len(unpack_benchmark(tmp_path / "sift.dat", tmp_path / format, format=format)) == 4
    with pytest.raises(UsageError, match="is one table"):
        unpack_benchmark(f"{tmp_path}/sift.dat::train", tmp_path / "out")


def test_tables_that_make_no_benchmark(tmp_path: Path) -> None:
    arrays = {"b": ramp(9, 3, "<f4"), "q": ramp(2, 3, "<f4"), "i": np.array([[0, 8], [1, 2]])}
    wrong = {
        "q4": ramp(2, 4, "<f4"),
        "i3": np.zeros((3, 2), "i4"),
        "if": np.zeros((2, 2)),
        "big": np.array([[0, 9]] * 2),
    }
    for name, array in (arrays | wrong | {"neg": np.array([[0, -1]] * 2)}).items():
        np.save(tmp_path / f"{name}.npy", array)

    def pack(base: str, queries: str, truth: str, **options: str) -> None:
        opened = [open_vectors(tmp_path / f"{name}.npy") for name in (base, queries, truth)]
        pack_benchmark(*opened, tmp_path / "x.hdf5", **options)

    for parts, error, message in (
        (("b", "q4", "i"), DimensionError, "q4.npy has dimension 4, but .*b.npy has 3"),
        (("b", "q", "i3"), UsageError, "i3.npy has 3 rows for 2 queries"),
        (("b", "q", "if"), UsageError, "holds float64; true neighbours are row numbers"),
        (("b", "q", "big"), UsageError, "names the neighbour 9, but .*b.npy has rows 0 to 8"),
        (("b", "q", "neg"), UsageError, "names the neighbour -1"),
    ):
        with pytest.raises(error, match=message):
            pack(*parts)
    with pytest.raises(UsageError, match="no metric 'l1'; there are l2, ip, cosine"):
        pack("b", "q", "i", metric="l1")
    assert not list(tmp_path.glob("*x.hdf5*"))


def test_files_that_are_no_benchmark(tmp_path: Path, ann: Path) -> None:
    write_vectors(tmp_path / "x.hdf5::vectors", ramp(3, 2, "<f4"))
    with pytest.raises(UsageError, match=r"has no table train, .* convert one of: .*x.hdf5::vectors"):
        unpack_benchmark(tmp_path / "x.hdf5", tmp_path / "out")
    with pytest.raises(UsageError, match="is one table"):
        unpack_benchmark(f"{ann}::train", tmp_path / "out")
    with h5py.File(tmp_path / "nan.hdf5", "w") as file:
        file["train"], file["test"] = ramp(3, 2, "<f4"), np.array([[np.nan, 0]])
    with pytest.raises(VectorFileError, match=r"nan.hdf5::test: row 0 .* NaN"):
        unpack_benchmark(tmp_path / "nan.hdf5", tmp_path / "out" / "of" / "it")
    assert not (tmp_path / "out").exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(VectorFileError, match="NaN"):
        unpack_benchmark(tmp_path / "nan.hdf5", tmp_path / "kept" / "a" / "b")
    assert not list((tmp_path / "kept").iterdir())
