"""Ids from every kind of file that can have some."""

from __future__ import annotations

import zipfile
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pyarrow as pa
import pytest
from table_cases import STORAGES, save_table, table
from vector_cases import ramp

from qinco_core.errors import InputNotFoundError, UsageError, VectorFileError
from qinco_core.vectors import arrow, columns, read_ids

IDS = np.array([7, 1 << 40, 0, 3, 3])
COLUMNS = {"id": IDS, "x": np.ones(5), "more": IDS.astype("u1"), "text": ["a"] * 5}


def expect(source: object, expected: np.ndarray = IDS) -> None:
    found = read_ids(source)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_npy_files_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("ids.npy", "ids", "ids.bin"):
        with (tmp_path / name).open("wb") as handle:
            np.save(handle, IDS)
        expect(tmp_path / name)
    assert isinstance(read_ids(tmp_path / "ids.npy"), np.memmap)
    np.save(tmp_path / "small.npy", IDS[2:].astype(">u2"))
    expect(tmp_path / "small.npy", IDS[2:])


@pytest.mark.parametrize("storage", STORAGES)
def test_columns(storage: str, tmp_path: Path) -> None:
    path = save_table(tmp_path / f"x.{storage}", table(ramp(5, 3, "<f4"), ids=IDS), 2)
    for source in (path, f"{path}::id", tmp_path, f"{tmp_path}::id"):
        expect(source)
    save_table(tmp_path / f"y.{storage}", table(ramp(5, 3, "<f4"), ids=IDS[::-1]), 2)
    expect(f"{tmp_path}/", np.concatenate([IDS, IDS[::-1]]))
    several = save_table(tmp_path / f"z.{storage}", pa.table(COLUMNS), 2)
    expect(several)
    expect(f"{several}::more", IDS.astype("u1").astype("i8"))


def test_arrays_and_datasets(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", vectors=np.ones((5, 2)), ids=IDS)
    np.savez_compressed(tmp_path / "y.npz", a=IDS, b=IDS)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train"], file["ids"], file["weights"] = np.ones((5, 2)), IDS, np.ones(5)
    for source in ("x.npz", "x.npz::ids", "y.npz::b", "x.h5", "x.h5::ids"):
        expect(tmp_path / source)
    with pytest.raises(UsageError, match=r"name one: .*y\.npz::a .*, .*y\.npz::b"):
        read_ids(tmp_path / "y.npz")
    for source in ("x.npz::vectors", "x.h5::train", "x.h5::weights"):
        with pytest.raises(UsageError, match="ids are integers in one dimension"):
            read_ids(tmp_path / source)


@pytest.mark.parametrize("storage", STORAGES)
def test_columns_that_are_no_ids(storage: str, tmp_path: Path) -> None:
    path = save_table(tmp_path / f"x.{storage}", pa.table(COLUMNS))
    for key in ("x", "text"):
        with pytest.raises(UsageError, match=f"::{key} holds .*; ids are integers"):
            read_ids(f"{path}::{key}")
    with pytest.raises(UsageError, match="no column 'ids'; there are id int64"):
        read_ids(f"{path}::ids")
    save_table(path, pa.table({"a": IDS, "b": IDS}))
    with pytest.raises(UsageError, match=rf"name one: \S*x\.{storage}::a int64, \S*::b int64"):
        read_ids(path)
    save_table(path, pa.table({"a": [1, None, 3]}))
    with pytest.raises(VectorFileError, match=r"::a: row 1 \(counted from 0\) is null"):
        read_ids(path)
    save_table(path, pa.table({"a": [1, -2, 3]}))
    with pytest.raises(UsageError, match="holds the id -2; ids are 0 or more"):
        read_ids(path)
    save_table(path, pa.table({"a": pa.array([1 << 63], pa.uint64())}))
    with pytest.raises(UsageError, match="ids are signed 64-bit"):
        read_ids(path)


def test_ids_of_an_arrow_stream_take_their_own_memory_alone(tmp_path: Path) -> None:
    rows = ramp(2000, 128, "<f4")  # a megabyte a batch
    content = table(rows)
    with pa.ipc.new_stream(tmp_path / "x.arrow", content.schema) as writer:
        for _ in range(16):
            writer.write_table(content, len(rows))
    held: list[int] = []
    before = pa.total_allocated_bytes()

    def watched(*arguments: object) -> object:
        held.append(pa.total_allocated_bytes() - before)
        return columns.checked(*arguments)

    with mock.patch.object(arrow, "checked", watched):
        expect(tmp_path / "x.arrow", np.tile(np.arange(2000), 16))
    assert len(held) == 16 and max(held) < 4 * rows.nbytes


def header_of(shape: tuple[int, ...], descr: str = "<i8") -> bytes:
    """An npy file of that header, and nothing after it."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", [(10**15,), (10**25,), (-1,), (3,)])
def test_headers_of_ids_that_are_not_there(shape: tuple[int], tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(header_of(shape))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("ids.npy", header_of(shape))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(VectorFileError, match=name):
            read_ids(tmp_path / name)


def test_files_that_are_no_ids(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="does not exist"):
        read_ids(tmp_path / "no.npy")
    with pytest.raises(InputNotFoundError, match="directory without files"):
        read_ids(tmp_path)
    (tmp_path / "x.fvecs").write_bytes(bytes(100))
    with pytest.raises(VectorFileError, match=r"no \.npy file of ids .*write it with numpy.save"):
        read_ids(tmp_path / "x.fvecs")
    with pytest.raises(UsageError, match="fvecs has nothing to name with ::, only hdf5, npz, parquet, arrow"):
        read_ids(f"{tmp_path}/x.fvecs::id")
    np.save(tmp_path / "x.npy", np.ones((2, 2), "i4"))
    with pytest.raises(UsageError, match=r"holds int32 of shape \(2, 2\)"):
        read_ids(tmp_path / "x.npy")
