"""The Arrow stream of codes: round trips, and every way to be cut or damaged."""

import io
import os
import threading
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from qinco_core.errors import ArtifactVersionError, QincoError, StreamError, UsageError
from qinco_core.store import CodesSpec, StreamReader, StreamWriter, is_stream
from qinco_core.store import stream as stream_module


def sent(spec, codes, ids=None, count=None, batch=13):
    sink = io.BytesIO()
    with StreamWriter(sink, spec, with_ids=ids is not None, count=count) as out:
        for at in range(0, len(codes), batch):
            out.append(codes[at : at + batch], None if ids is None else ids[at : at + batch])
    return sink.getvalue()


def received(raw):
    reader = StreamReader(io.BytesIO(raw))
    parts = list(reader)
    codes = [np.empty((0, reader.spec.code_bytes), np.uint8)] + [part.codes for part in parts]
    ids = [part.ids for part in parts if part.ids is not None]
    return reader, np.concatenate(codes), np.concatenate(ids) if ids else None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 5), st.sampled_from([2, 64, 256, 65536]), st.booleans(), st.booleans())
def test_round_trip(n, M, K, with_ids, counted):
    spec = CodesSpec(model="ff", D=3, M=M, K=K, dtype="uint8", encoder={"T": 0})
    rng = np.random.default_rng(n)
    codes, ids = rng.integers(0, 256, (n, spec.code_bytes), np.uint8), rng.integers(-9, 9, n)
    reader, found, numbers = received(sent(spec, codes, ids if with_ids else None, n if counted else None))
    assert reader.spec == spec and reader.with_ids == with_ids
    assert reader.count == (n if counted else None)
    np.testing.assert_array_equal(found, codes)
    if with_ids and n:
        np.testing.assert_array_equal(numbers, ids)


def test_arrow_alone_can_read_it(spec, rows):
    table = pa.ipc.open_stream(sent(spec, *rows, count=100)).read_all()
    assert table.schema.names == ["code", "id"] and table.num_rows == 100
    assert table["code"][41].as_py() == rows[0][41].tobytes()
    assert table["id"].to_pylist() == rows[1].tolist()
    assert table.schema.metadata[b"qinco.model"].decode() == spec.model


def test_strided_rows(spec, rows):
    codes, ids = rows[0][::-2], rows[1][::-2]
    _, found, numbers = received(sent(spec, codes, ids))
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(numbers, ids)


@pytest.mark.parametrize("count", [30, None])
def test_a_stream_cut_at_any_byte_is_refused(spec, rows, count):
    raw = sent(spec, rows[0][:30], rows[1][:30], count)
    for size in range(len(raw)):
        with pytest.raises(StreamError):
            received(raw[:size])


def test_a_stream_damaged_at_any_byte_is_refused_or_unharmed(spec, rows, rng):
    codes, ids = rows[0][:30], rows[1][:30]
    raw = sent(spec, codes, ids)
    caught = 0
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << int(rng.integers(8))
        try:
            reader, found, numbers = received(bytes(flipped))
        except QincoError:
            caught += 1
            continue
        assert reader.spec == spec and reader.count is None
        np.testing.assert_array_equal(found, codes)
        np.testing.assert_array_equal(numbers, ids)
    assert caught > len(codes) * 13


@settings(deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda raw: b"\xff\xff\xff\xff" + raw))
def test_garbage_is_refused(raw):
    with pytest.raises(StreamError):
        received(raw)


def test_other_arrow_streams_are_refused():
    sink = io.BytesIO()
    table = pa.table({"code": pa.array([b"x"], pa.binary(1))})
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    with pytest.raises(StreamError, match="no codes"):
        received(sink.getvalue())


def test_without_its_end_a_stream_is_refused(spec, rows):
    sink = io.BytesIO()
    with pytest.raises(ZeroDivisionError), StreamWriter(sink, spec, with_ids=False, count=None) as out:
        out.append(rows[0])
        raise ZeroDivisionError
    with pytest.raises(StreamError, match="cut"):
        received(sink.getvalue())


def test_a_batch_that_was_lost_is_noticed(spec, rows):
    whole = sent(spec, rows[0], batch=25)
    begin, end = (whole.rindex(b"\xff\xff\xff\xff", 0, whole.index(rows[0][n].tobytes())) for n in (25, 50))
    with pytest.raises(StreamError, match="lost codes: 50 of 75"):
        received(whole[:begin] + whole[end:])


def test_a_damaged_batch_is_not_given_out(spec, rows):
    raw = bytearray(sent(spec, rows[0], batch=25))
    raw[raw.index(rows[0][60].tobytes())] ^= 1
    found = []
    with pytest.raises(StreamError, match="checksum is wrong"):
        found.extend(StreamReader(io.BytesIO(raw)))
    assert sum(len(part.codes) for part in found) == 50


@pytest.mark.parametrize("kind", ["codes", "lists"])
def test_a_stream_with_a_checksum_at_its_end_alone_is_read(kind):
    """As the first streams were: no row numbers, and no checksum of every batch."""
    with (Path(__file__).parent / "golden" / "v1" / f"{kind}.arrow").open("rb") as file:
        reader = StreamReader(file)
        assert reader.first is None and sum(len(part.codes) for part in reader) == 25


def test_counts_are_kept(spec, rows):
    with pytest.raises(UsageError, match="more than that"):
        sent(spec, rows[0], count=99)
    with pytest.raises(QincoError, match="announced with 101 codes; 100 came"):
        sent(spec, rows[0], count=101)


def test_a_newer_stream_names_the_version_to_install(spec, rows, monkeypatch):
    monkeypatch.setattr(stream_module, "FORMAT_VERSION", 2)
    raw = sent(spec, rows[0])
    with pytest.raises(ArtifactVersionError, match="pip install 'qinco>="):
        received(raw)


def test_a_pipe_and_what_follows_on_it(spec, rows):
    ends = os.pipe()

    def send():
        with open(ends[1], "wb", buffering=0) as sink:  # noqa: PTH123
            with StreamWriter(sink, spec, with_ids=False, count=None) as out:
                for _ in range(200):
                    out.append(rows[0])
            sink.write(b"more")

    sender = threading.Thread(target=send)
    sender.start()
    with open(ends[0], "rb") as source:  # noqa: PTH123
        assert sum(len(rows.codes) for rows in StreamReader(source)) == 20_000
        assert source.read() == b"more"
    sender.join()


def test_a_broken_pipe_is_told(spec, rows):
    source, sink = os.pipe()
    os.close(source)
    with (
        open(sink, "wb", buffering=0) as pipe,  # noqa: PTH123
        pytest.raises(BrokenPipeError),
        StreamWriter(pipe, spec, with_ids=False, count=None) as out,
    ):
        out.append(rows[0])


def test_memory_is_bounded(spec):
    codes = np.zeros((stream_module.BATCH_ROWS, 5), np.uint8)
    with open(os.devnull, "wb") as sink:  # noqa: PTH123
        tracemalloc.start()
        with StreamWriter(sink, spec, with_ids=False, count=None) as out:
            for _ in range(30):
                out.append(codes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3 * codes.nbytes


def test_a_message_too_large_is_refused(spec, rows):
    raw = bytearray(sent(spec, rows[0]))
    raw[4:8] = (2**31 - 9).to_bytes(4, "little")
    with pytest.raises(StreamError, match=r"message of \d+ bytes"):
        received(bytes(raw))


def test_streams_are_told_from_files(tmp_path, spec, rows, model_path):
    path = tmp_path / "codes.arrow"
    path.write_bytes(sent(spec, rows[0]))
    assert is_stream(path) and not is_stream(model_path)
