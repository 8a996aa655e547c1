"""npz archives that hold no vectors, are damaged, or are packed in ways that numpy does not write."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from vector_cases import ramp

from qinco_core.errors import UsageError, VectorFileError
from qinco_core.vectors import npz, open_vectors, read_ids


@pytest.mark.parametrize(
    ("arrays", "key", "error", "message"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros((4, 5))}, None, UsageError, r"name one: .*::a \(2, 3\) <f8, .*::b"),
        ({"a": np.zeros(3)}, None, VectorFileError, r"no vectors .*; there are .*::a \(3,\) <f8"),
        ({"a": np.zeros((2, 3))}, "c", UsageError, r"no array 'c'; there are .*::a \(2, 3\)"),
        ({"a": np.zeros(3)}, "a", VectorFileError, r"::a holds an array of shape \(3,\)"),
        ({"a": np.array([[{}, None]], object)}, None, VectorFileError, r"::a holds an array of dtype '\|O'"),
        ({"a": np.zeros((0, 3))}, None, VectorFileError, "::a holds no vectors"),
        ({}, None, VectorFileError, "there are no arrays"),
    ],
)
def test_archives_that_hold_no_vectors(
    arrays: dict[str, np.ndarray], key: str | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(error, match=message):
        open_vectors(tmp_path / "x.npz" if key is None else f"{tmp_path}/x.npz::{key}")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives(save: object, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    save(path, x=ramp(50, 8, "<f4"))
    raw = path.read_bytes()
    for length in range(1, len(raw), 11):
        path.write_bytes(raw[:length])
        with pytest.raises(VectorFileError, match=r"x\.npz"):
            open_vectors(path)
    path.write_bytes(ramp(50, 8, "<f4").tobytes())
    with pytest.raises(VectorFileError, match="cannot be read as npz"):
        open_vectors(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_compressed_arrays_are_unpacked_piece_by_piece(order: str, tmp_path: Path) -> None:
    array = np.asarray(ramp(50, 7, "<f4"), order=order)
    np.savez_compressed(tmp_path / "x.npz", x=array)
    with (
        mock.patch.object(npz, "_BLOCK_BYTES", 48),  # less than a column, more than a row
        mock.patch.object(npz, "read_up_to", wraps=npz.read_up_to) as read,
        open_vectors(tmp_path / "x.npz") as vectors,
    ):
        np.testing.assert_array_equal(vectors.read(0, 50), array)
    assert max(call.args[1] for call in read.call_args_list) == 48


def test_a_header_of_a_type_that_numpy_does_not_know(tmp_path: Path) -> None:
    member = io.BytesIO()
    np.save(member, np.arange(3))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("ids.npy", member.getvalue().replace(b"<i8", b"<i9"))
    with pytest.raises(VectorFileError, match=r"x\.npz cannot be read as npz"):
        read_ids(tmp_path / "x.npz")


def test_archives_packed_in_other_ways(tmp_path: Path) -> None:
    array = ramp(200, 8, "<f4")
    member = io.BytesIO()
    np.save(member, array)
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        path = tmp_path / f"{method}.npz"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x.npy", member.getvalue())
        np.testing.assert_array_equal(open_vectors(path).read(0, 200), array)
        raw = bytearray(path.read_bytes())
        for at in range(44, len(raw) - 100, 9):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
            with pytest.raises(VectorFileError, match=path.name):
                open_vectors(path)
