"""Parquet, Arrow and npz files that others wrote: the same vectors in every order they are asked for."""

from __future__ import annotations

import io
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import ELEMENTS, LISTS, STORAGES, lists, quick, save_table, table
from vector_cases import DATA, ramp, tables

from qinco_core.errors import InputNotFoundError, StorageError, UsageError, VectorFileError
from qinco_core.vectors import arrow, open_vectors, parquet, read_stream

few = settings(max_examples=6, deadline=None)  # each example writes a folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def check_reading(source: object, expected: np.ndarray, data: st.DataObject) -> None:
    """Batches, ranges and scattered rows, after a skip and a limit, are those of the array."""
    N = len(expected)
    skip, limit = data.draw(st.integers(0, N - 1)), data.draw(st.none() | st.integers(1, N + 2))
    expected = expected[skip:][:limit]
    with open_vectors(source, skip=skip, limit=limit) as vectors:
        assert (vectors.shape, vectors.dtype) == (expected.shape, expected.dtype)
        for _ in range(2):
            got = np.concatenate(list(vectors.batches(data.draw(st.integers(1, N + 1)))))
            np.testing.assert_array_equal(got, expected)
            start = data.draw(st.integers(0, len(expected)))
            stop = data.draw(st.integers(start, len(expected)))
            block = vectors.read(start, stop)
            np.testing.assert_array_equal(block, expected[start:stop])
            assert block.flags.c_contiguous and block.flags.writeable and block.dtype.isnative
            rows = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1))), dtype=np.int64)
            np.testing.assert_array_equal(vectors.take(rows), expected[rows])


@pytest.mark.parametrize("storage", STORAGES)
def test_columns_read_as_they_were_written(storage: str, folder: Path) -> None:
    path = folder / f"x.{storage}"

    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        array = data.draw(tables(data.draw(st.sampled_from(ELEMENTS))))
        save_table(path, table(array, data.draw(st.sampled_from(LISTS))), data.draw(st.integers(1, 13)))
        check_reading(data.draw(st.sampled_from([str(path), f"{path}::vector"])), array, data)

    check()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_folder_is_one_table(storage: str, tmp_path: Path) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        array = data.draw(tables("float32"))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), min_size=11, max_size=11)))
        for number, part in enumerate(np.split(array, cuts)):  # part-2 comes before part-10, some are empty
            save_table(tmp_path / f"part-{number}.{storage}", table(part, data.draw(st.sampled_from(LISTS[:1]))), 3)
        for name in ("_SUCCESS", f".hidden.{storage}", f"_metadata.{storage}", "dataset_info.json"):
            (tmp_path / name).write_text("{}")
        with mock.patch.object(arrow, "_MOST_OPEN", 2):
            check_reading(data.draw(st.sampled_from([f"{tmp_path}/", f"{tmp_path}::vector"])), array, data)

    check()


def test_parts_of_variable_lists_and_where_a_row_is(tmp_path: Path) -> None:
    array = ramp(30, 4, "<f4")
    array[23, 1] = np.nan
    for storage in STORAGES:
        (tmp_path / storage).mkdir()
        for number, part in enumerate(np.split(array, [10, 20])):
            save_table(tmp_path / storage / f"{number}.{storage}", table(part))
        with open_vectors(tmp_path / storage) as vectors:
            assert vectors.name == f"{tmp_path / storage}::vector"
            np.testing.assert_array_equal(vectors.read(5, 23), array[5:23])
            for read in (lambda: vectors.read(20, 30), lambda: vectors.take(np.array([4, 23, 9]))):
                with pytest.raises(VectorFileError, match=rf"2\.{storage}::vector: row 3 \(counted from 0\) holds NaN"):
                    read()


def test_the_stamp_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    for number in range(2):
        save_table(tmp_path / f"{number}.parquet", table(ramp(5, 3, "<f4")))
    stamp = open_vectors(tmp_path).stamp
    assert open_vectors(f"{tmp_path}::vector").stamp == stamp
    save_table(tmp_path / "1.parquet", table(ramp(6, 3, "<f4")))
    assert open_vectors(tmp_path).stamp != stamp


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_arrays(compressed: bool, folder: Path) -> None:
    save = np.savez_compressed if compressed else np.savez
    path = folder / f"{compressed}.npz"

    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        array = data.draw(tables(data.draw(st.sampled_from(ELEMENTS))))
        array = np.asarray(array, order=data.draw(st.sampled_from("CF")))
        save(path, ids=np.arange(3), vectors=array, names=np.array(["a"]))
        check_reading(data.draw(st.sampled_from([str(path), f"{path}::vectors"])), array, data)

    check()


def test_extension_types_are_their_storage(tmp_path: Path) -> None:
    array = ramp(9, 4, "<f4")
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [4]), lists(array, "fixed"))
    for storage in STORAGES:
        path = save_table(tmp_path / f"x.{storage}", pa.table({"x": tensors}), 4)
        np.testing.assert_array_equal(open_vectors(path).take(np.arange(9)), array)


def test_slices_begin_where_they_say(tmp_path: Path) -> None:
    """Arrow writes a slice of a list with offsets that do not begin at 0."""
    array = ramp(20, 4, "<f4")
    for kind in LISTS:
        for storage in STORAGES:
            path = save_table(tmp_path / f"{kind}.{storage}", table(array, kind).slice(3, 11), 5)
            np.testing.assert_array_equal(open_vectors(path).read(0, 11), array[3:14])


def test_dictionaries_beside_the_vectors(tmp_path: Path) -> None:
    """Columns that a batch alone cannot tell are no hindrance."""
    array = ramp(20, 4, "<f4")
    words = pa.array(["a", "b"] * 10).dictionary_encode()
    for storage in STORAGES:
        path = save_table(tmp_path / f"x.{storage}", pa.table({"word": words, "x": lists(array, "list")}), 6)
        np.testing.assert_array_equal(open_vectors(path).take(np.arange(20)), array)


def test_every_row_group_is_decoded_once_in_order_and_once_for_draws(tmp_path: Path) -> None:
    array = ramp(60, 4, "<f4")
    path = save_table(tmp_path / "x.parquet", table(array, "fixed"), 10)
    decoded: list[int] = []
    decode = parquet.ParquetRows._decode

    def counting(rows: parquet.ParquetRows, group: int, end: int) -> object:
        decoded.extend(range(group, end))
        return decode(rows, group, end)

    with mock.patch.object(parquet.ParquetRows, "_decode", counting), open_vectors(path) as vectors:
        np.testing.assert_array_equal(np.concatenate(list(vectors.batches(7))), array)
        assert decoded == [0, 1, 2, 3, 4, 5]
        decoded.clear()
        rng = np.random.default_rng(0)
        for _ in range(5):
            rows = rng.integers(20, 50, 30)
            np.testing.assert_array_equal(vectors.take(rows), array[rows])
        assert decoded == [2, 3, 4]


def test_ranges_that_go_back_do_not_decode_a_row_group_each_time(tmp_path: Path) -> None:
    array = ramp(60, 4, "<f4")
    path = save_table(tmp_path / "x.parquet", table(array, "fixed"), 20)
    decoded: list[int] = []
    decode = parquet.ParquetRows._decode

    def counting(rows: parquet.ParquetRows, group: int, end: int) -> object:
        for piece in decode(rows, group, end):
            decoded.append(len(piece))
            yield piece

    with (
        mock.patch.object(parquet, "_PIECE_BYTES", 16),
        mock.patch.object(parquet.ParquetRows, "_decode", counting),
        open_vectors(path) as vectors,
    ):
        for start in range(59, -1, -1):
            np.testing.assert_array_equal(vectors.read(start, start + 1), array[start : start + 1])
        # each group once up to the first range, once into the temporary file, and its first piece
        assert sum(decoded) <= 2 * len(array) + 3
        for start, stop in ((15, 45), (30, 60), (0, 60)):
            np.testing.assert_array_equal(vectors.read(start, stop), array[start:stop])


def test_a_failure_on_the_way_to_a_range_leaves_no_place_to_read_on_from(tmp_path: Path) -> None:
    array = ramp(60, 4, "<f4")
    path = save_table(tmp_path / "x.parquet", table(array, "fixed"), 20)
    with open_vectors(path) as vectors:
        vectors.read(0, 7)
        with (
            mock.patch.object(parquet.ParquetRows, "_decode", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            vectors.read(25, 30)
        np.testing.assert_array_equal(vectors.read(7, 30), array[7:30])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_file_that_is_replaced_while_it_is_open(storage: str, tmp_path: Path) -> None:
    array = ramp(30, 4, "<f4")
    path = save_table(tmp_path / f"x.{storage}", table(array, "fixed"))
    with open_vectors(path) as vectors:
        facts = path.stat()
        path.unlink()
        save_table(path, table(array[::-1], "fixed"))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        for read in (lambda: vectors.read(3, 9), lambda: vectors.take(np.array([4, 1]))) * 2:
            if "lz4" in storage:  # unpacked when it was opened
                assert read()[0, 0] in (array[3, 0], array[4, 0])
                continue
            with pytest.raises(VectorFileError, match=rf"x\.{storage} was replaced while it was read; run again"):
                read()


def test_several_columns_in_a_pipe(tmp_path: Path) -> None:
    content = pa.table({"a": lists(ramp(3, 2, "<f4"), "list"), "b": lists(ramp(3, 4, "<i4"), "fixed")})
    raw = save_table(tmp_path / "x.arrow", content).read_bytes()
    with pytest.raises(
        UsageError, match=r"<stdin> has several .*, a list<.*>, b fixed.*: send one of them alone"
    ) as told:
        read_stream(io.BytesIO(raw), "arrow")
    assert "::" not in str(told.value)


@pytest.mark.parametrize("storage", ["arrow", "feather"])
def test_arrow_through_a_pipe(storage: str, folder: Path) -> None:
    path = folder / f"pipe.{storage}"

    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        array = data.draw(tables("float32"))
        content = table(array, data.draw(st.sampled_from(LISTS)))
        raw = save_table(path, content, data.draw(st.integers(1, 13))).read_bytes()
        skip, limit = data.draw(st.integers(0, len(array) - 1)), data.draw(st.none() | st.integers(1, 20))
        stream = read_stream(io.BytesIO(raw), "arrow", skip=skip, limit=limit)
        assert (stream.count, stream.dim) == (None, array.shape[1])
        blocks = list(stream.batches(data.draw(st.integers(1, 13))))
        np.testing.assert_array_equal(np.concatenate(blocks), array[skip:][:limit])

    check()


@pytest.mark.parametrize("storage", ["arrow", "feather"])
def test_an_arrow_pipe_cut_anywhere_is_an_error(storage: str, tmp_path: Path) -> None:
    raw = save_table(tmp_path / f"x.{storage}", table(ramp(9, 3, "<f4")), 4).read_bytes()
    for length in range(0, len(raw), 7):
        with pytest.raises(VectorFileError, match="<stdin>"):
            list(read_stream(io.BytesIO(raw[:length]), "arrow").batches(4))


def test_sample_vectors_through_others_hands(tmp_path: Path) -> None:
    array = np.load(DATA / "text_base.npy")
    pq.write_table(pa.table({"embedding": [row.tolist() for row in array.astype("f4")]}), tmp_path / "x.pq")
    with open_vectors(tmp_path / "x.pq") as vectors:
        np.testing.assert_array_equal(vectors.read(0, len(array)).astype(array.dtype), array)


@pytest.mark.parametrize("storage", ["parquet", "lz4.feather", "npz"])
def test_no_room_to_unpack(storage: str, tmp_path: Path) -> None:
    array = ramp(20, 3, "<f4")
    if storage == "npz":
        np.savez_compressed(tmp_path / "x.npz", x=array)
    else:
        save_table(tmp_path / f"x.{storage}", table(array))
    full = mock.patch("tempfile.TemporaryFile", lambda **_: io.FileIO("/dev/full", "rb+"))
    with (
        full,
        pytest.raises(StorageError, match=rf"no room left to write the unpacked rows of .*x\.{storage}::.*TMPDIR"),
    ):
        open_vectors(tmp_path / f"x.{storage}").take(np.arange(20))


# what is wrong with a table, and what the message says of it
def _uneven() -> object:
    return pa.table({"vector": [[1.0, 2.0]] * 9 + [[1.0]]})


def _null_row() -> object:
    return pa.table({"vector": [[1.0, 2.0]] * 9 + [None]})


def _null_element() -> object:
    return pa.table({"vector": [[1.0, 2.0]] * 9 + [[1.0, None]]})


def _null_first() -> object:
    return pa.table({"vector": pa.array([None, [1.0]], pa.list_(pa.float32()))})


def _no_dimensions() -> object:
    return pa.table({"vector": pa.array([[], []], pa.list_(pa.float32()))})


def _no_rows() -> object:
    return pa.table({"vector": pa.array([], pa.list_(pa.float32()))})


def _no_lists() -> object:
    return pa.table({"text": ["a"], "words": [["b"]], "x": [1.0]})


def _unsigned() -> object:
    return pa.table({"vector": pa.array([[1, 2]], pa.list_(pa.uint16()))})


TABLES = [
    (_uneven, r"::vector: row 9 \(counted from 0\) has 1 dimensions where the first row has 2"),
    (_null_row, r"::vector: row 9 \(counted from 0\) is null"),
    (_null_element, r"::vector: row 9 \(counted from 0\) holds a null"),
    (_null_first, "::vector: row 0 .* is null"),
    (_no_dimensions, r"::vector holds no vectors \(D = 0\)"),
    (_no_rows, r"::vector holds no vectors \(N = 0\)"),
    (_no_lists, r"no column of vectors .*; there are text string, words list<.*>, x double"),
    (_unsigned, "::vector holds uint16; convert it to one of float16"),
]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("make", "message"), TABLES, ids=lambda v: getattr(v, "__name__", None))
def test_tables_that_are_no_vectors(storage: str, make: object, message: str, tmp_path: Path) -> None:
    path = save_table(tmp_path / f"x.{storage}", make())
    for read in (lambda v: list(v.batches(4)), lambda v: v.take(np.array([len(v) - 1]))):
        with pytest.raises(VectorFileError, match=rf"x\.{storage}.*{message}|{message}"):
            read(open_vectors(path))


@pytest.mark.parametrize("storage", STORAGES)
def test_choosing_a_column(storage: str, tmp_path: Path) -> None:
    content = pa.table({"a": lists(ramp(3, 2, "<f4"), "list"), "b": lists(ramp(3, 4, "<i4"), "fixed"), "n": [1, 2, 3]})
    path = save_table(tmp_path / f"x.{storage}", content)
    with pytest.raises(UsageError, match=rf"name one: \S*x\.{storage}::a list<.*>, \S*x\.{storage}::b fixed"):
        open_vectors(path)
    with pytest.raises(UsageError, match="no column 'c'; there are a list"):
        open_vectors(f"{path}::c")
    with pytest.raises(VectorFileError, match="::n holds int64; vectors are lists"):
        open_vectors(f"{path}::n")
    assert open_vectors(f"{path}::b").shape == (3, 4)
    twice = pa.Table.from_arrays([content["a"], content["a"]], names=["a", "a"])
    if storage != "parquet" and "lz4" not in storage:  # Parquet and Feather refuse to write it
        save_table(tmp_path / "twice.arrow", twice)
        with pytest.raises(UsageError, match="several columns 'a'"):
            open_vectors(f"{tmp_path}/twice.arrow::a")


@pytest.mark.parametrize("storage", STORAGES)
def test_contents_that_are_foreign(storage: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{storage}"
    path.write_bytes(b"this is no table at all, but it is long enough to look at")
    with pytest.raises(VectorFileError, match=rf"x\.{storage}.* cannot be read as (Parquet|Arrow) .*--format"):
        open_vectors(path)
    other = "arrow" if storage == "parquet" else "parquet"
    made = save_table(tmp_path / f"y.{'feather' if other == 'arrow' else other}", table(ramp(4, 3, "<f4")))
    made.rename(path)
    with pytest.raises(VectorFileError, match=f"holds {other}; read it with --format {other}"):
        open_vectors(path)
    assert open_vectors(path, format=other).shape == (4, 3)


@pytest.mark.parametrize("storage", STORAGES)
def test_truncated_tables(storage: str, tmp_path: Path) -> None:
    path = save_table(tmp_path / f"x.{storage}", table(ramp(20, 3, "<f4")))
    raw = path.read_bytes()
    for length in range(1, len(raw), 23):
        path.write_bytes(raw[:length])
        with pytest.raises(VectorFileError, match=path.name):
            list(open_vectors(path).batches(5))


def test_feather_of_the_first_kind(tmp_path: Path) -> None:
    (tmp_path / "x.feather").write_bytes(b"FEA1" + bytes(60) + b"FEA1")
    with pytest.raises(VectorFileError, match="Feather of version 1; write it again"):
        open_vectors(tmp_path / "x.feather")


def test_folders_that_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.npz").touch()
    with pytest.raises(InputNotFoundError, match=r"directory without files of vectors \(.fvecs, .*, .parquet, .pq, "):
        open_vectors(tmp_path)
    save_table(tmp_path / "a.parquet", table(ramp(4, 3, "<f4"), "fixed"))
    save_table(tmp_path / "b.feather", table(ramp(4, 3, "<f4")))
    with pytest.raises(UsageError, match="files of arrow and parquet; choose with --format"):
        open_vectors(tmp_path)
    assert len(open_vectors(tmp_path, format="arrow")) == 4
    for other, kind, message in (
        (ramp(4, 2, "<f4"), "fixed", r"b\.parquet::vector holds float32 of dimension 2, but \S*a\.parquet"),
        (ramp(4, 3, "<f8"), "fixed", r"b\.parquet::vector holds float64 of dimension 3, but \S*a\.parquet"),
    ):
        save_table(tmp_path / "b.parquet", table(other, kind))
        with pytest.raises(VectorFileError, match=message):
            open_vectors(tmp_path, format="parquet")
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(VectorFileError, match=r"b\.parquet is empty"):
        open_vectors(tmp_path, format="parquet")


@quick
@given(st.data())
def test_damage_never_escapes_as_other_errors(folder: Path, data: st.DataObject) -> None:
    storage = data.draw(st.sampled_from(STORAGES))
    path = save_table(folder / f"damaged.{storage}", table(ramp(20, 3, "<f4"), data.draw(st.sampled_from(LISTS))))
    contents = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(contents) - 1), min_size=1, max_size=5)):
        contents[at] = data.draw(st.integers(0, 255))
    path.write_bytes(contents)
    try:
        with open_vectors(path) as vectors:
            assert vectors.take(np.arange(len(vectors))).shape == vectors.shape
    except (VectorFileError, UsageError) as error:
        assert path.name in str(error)
