"""Vectors from pipes: the same as from files, and never fewer without a word."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_cases import save_table, table
from vector_cases import DATA, FIXED, STREAMED, quick, ramp, raw, tables

from qinco_core.errors import UsageError, VectorFileError
from qinco_core.vectors import VectorSource, VectorStream, open_vectors, read_stream


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time, as pipes may."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(self._most if size < 0 else min(size, self._most))


def encoded(array: np.ndarray, format: str) -> bytes:
    if format != "npy":
        return raw(array, format)
    handle = io.BytesIO()
    np.save(handle, array)
    return handle.getvalue()


def joined(stream: VectorStream, size: int = 4) -> np.ndarray:
    return np.concatenate(list(stream.batches(size)))


@pytest.mark.parametrize(("format", "dtype"), STREAMED)
def test_streams_read_as_files_do(format: str, dtype: str) -> None:
    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        array = data.draw(tables(dtype))
        N, D = array.shape
        skip, limit = data.draw(st.integers(0, N - 1)), data.draw(st.none() | st.integers(1, N + 2))
        expected = array[skip:][:limit]
        handle = Trickle(encoded(array, format), data.draw(st.integers(1, 50)))
        stream = read_stream(handle, format, skip=skip, limit=limit)
        source: VectorSource = stream
        assert (source.name, source.dim, source.dtype) == ("<stdin>", D, array.dtype)
        assert source.count == (None if format.endswith("vecs") else len(expected))
        size = data.draw(st.integers(1, N + 1))
        blocks = list(stream.batches(size))
        assert [len(b) for b in blocks[:-1]] == [size] * (len(blocks) - 1)
        np.testing.assert_array_equal(np.concatenate(blocks), expected)

    check()


@pytest.mark.parametrize(("format", "dtype"), STREAMED)
def test_a_stream_cut_anywhere_is_an_error(format: str, dtype: str) -> None:
    array = ramp(4, 3, dtype)
    data = encoded(array, format)
    row = len(data) // 4
    for length in range(len(data)):
        for size in (1, 3, 100):
            if format.endswith("vecs") and length and length % row == 0:
                # the format has no count: nothing tells this from a whole stream
                assert len(joined(read_stream(io.BytesIO(data[:length]), format), size)) == length // row
                continue
            with pytest.raises(VectorFileError, match="<stdin>"):
                joined(read_stream(io.BytesIO(data[:length]), format), size)


@pytest.mark.parametrize("format", ["npy", "fbin", "u8bin", "i8bin", "ibin"])
def test_a_stream_longer_than_its_header_says(format: str) -> None:
    data = encoded(ramp(4, 3, FIXED.get(format, "<f4")), format) + b"\0"
    with pytest.raises(VectorFileError, match="goes on after the 4 vectors"):
        joined(read_stream(io.BytesIO(data), format))
    assert len(joined(read_stream(io.BytesIO(data), format, limit=3))) == 3


@pytest.mark.parametrize("storage", ["arrow", "feather"])
def test_what_follows_the_end_of_arrow(storage: str, tmp_path: Path) -> None:
    first, second = (
        save_table(tmp_path / f"{n}.{storage}", table(ramp(n, 3, "<f4"), "fixed")).read_bytes() for n in (4, 9)
    )
    assert len(joined(read_stream(io.BytesIO(first), "arrow"))) == 4
    for more in (b"\0", second, first[8:]):
        for handle in (io.BytesIO(first + more), Trickle(first + more, 5)):
            with pytest.raises(VectorFileError, match=r"<stdin> (goes on after .* its|was cut after) 4 vectors"):
                joined(read_stream(handle, "arrow"))
        assert len(joined(read_stream(io.BytesIO(first + more), "arrow", limit=3))) == 3
    if storage == "arrow":
        (tmp_path / "both.arrow").write_bytes(first + second)
        with pytest.raises(VectorFileError, match=r"both\.arrow goes on after its end mark"):
            open_vectors(tmp_path / "both.arrow")


@pytest.mark.parametrize("skip", [0, 3, 6])
def test_a_damaged_row_header_even_among_skipped_rows(skip: int) -> None:
    data = bytearray(raw(ramp(10, 5, "<f4"), "fvecs"))
    data[5 * 24] = 9
    with pytest.raises(VectorFileError, match=r"row 5 .* says it has 9 dimensions"):
        joined(read_stream(io.BytesIO(data), "fvecs", skip=skip), 2)


def test_nan_names_the_row_of_the_stream() -> None:
    array = ramp(10, 3, "<f4")
    array[1, 0] = array[7, 1] = np.nan
    with pytest.raises(VectorFileError, match="row 7 "):
        joined(read_stream(io.BytesIO(raw(array, "fvecs")), "fvecs", skip=2))


@pytest.mark.parametrize("format", ["fvecs", "fbin"])
def test_skipping_everything(format: str) -> None:
    with pytest.raises(UsageError, match="skipping 4 leaves none"):
        joined(read_stream(io.BytesIO(raw(ramp(4, 3, "<f4"), format)), format, skip=4))


def test_wrong_calls() -> None:
    data = raw(ramp(4, 3, "<f4"), "fvecs")
    for options in ({"skip": -1}, {"limit": 0}):
        with pytest.raises(UsageError, match=r"skip|limit"):
            read_stream(io.BytesIO(data), "fvecs", **options)
    for format in ("hdf5", "csv"):
        with pytest.raises(UsageError, match="fvecs, bvecs, ivecs, npy"):
            read_stream(io.BytesIO(data), format)
    stream = read_stream(io.BytesIO(data), "fvecs")
    with pytest.raises(UsageError, match="batch size"):
        stream.batches(0)
    joined(stream)
    with pytest.raises(UsageError, match="only once"):
        stream.batches(4)


def test_streams_of_another_format() -> None:
    fortran = encoded(np.asfortranarray(ramp(4, 3, "<f4")), "npy")
    with pytest.raises(VectorFileError, match="Fortran"):
        read_stream(io.BytesIO(fortran), "npy")
    with pytest.raises(VectorFileError, match="--format npy"):
        read_stream(io.BytesIO(fortran), "fvecs")
    with pytest.raises(VectorFileError, match="not an npy file"):
        read_stream(io.BytesIO(raw(ramp(4, 3, "<f4"), "fvecs")), "npy")


def test_an_endless_pipe_is_read_no_further_than_needed() -> None:
    row = (128).to_bytes(4, "little") + bytes(range(128))
    reading, writing = os.pipe()

    def pour() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                os.write(writing, row * 100)
        os.close(writing)

    thread = threading.Thread(target=pour)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        assert joined(read_stream(pipe, "bvecs", skip=7, limit=1000), 300).shape == (1000, 128)
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["sift_learn.bvecs", "sift_base.u8bin", "sift_query.fvecs", "text_base.npy"])
def test_sample_files_as_streams(name: str) -> None:
    with (DATA / name).open("rb") as handle, open_vectors(DATA / name) as vectors:
        stream = read_stream(handle, vectors.format, skip=300)
        for ours, theirs in zip(stream.batches(5000), vectors.section(300, len(vectors)).batches(5000), strict=True):
            np.testing.assert_array_equal(ours, theirs)
