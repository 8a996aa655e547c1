"""List numbers: their bits, and their way through files, jobs and streams of codes."""

import io

import h5py
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from qinco_core.errors import ArtifactError, DimensionError, LineageError, QincoError, StreamError, UsageError
from qinco_core.store import CodesSpec, StreamReader, StreamWriter, create_codes, open_codes, partial_path, verify
from qinco_core.store.journal import chunk_digest
from qinco_core.store.lists import list_bits, list_bytes, pack_lists, unpack_lists
from qinco_core.store.spec import CodeRows

IVF_K = 300  # 9 bits, of which not every value is a list
SPEC = CodesSpec(model="ab" * 16, D=6, M=5, K=256, dtype="float32", encoder={"assign": "exact"}, ivf_K=IVF_K)


@pytest.fixture
def lists(rng):
    return rng.integers(0, IVF_K, 100).astype(np.int32)


def options(**changes):
    return {"spec": SPEC, "count": 100, "with_ids": True, "source_stamp": "s", "chunk_rows": 16} | changes


def write(path, rows, lists, n=100, batch=7, **changes):
    given = options(count=n, **changes)
    with create_codes(path, **given) as out:
        for at in range(out.done, n, batch):
            out.append(*CodeRows(rows[0], rows[1] if given["with_ids"] else None, lists).cut(at, min(at + batch, n)))
    return out.header


@settings(deadline=None)
@given(st.integers(1, 1 << 31), st.data())
def test_packing_is_the_sum_of_shifted_numbers(ivf_K, data):
    numbers = data.draw(st.lists(st.integers(0, ivf_K - 1), max_size=40))
    packed, bits = pack_lists(np.array(numbers, np.int64), ivf_K), list_bits(ivf_K)
    assert packed.dtype == np.uint8 and packed.shape == (list_bytes(len(numbers), ivf_K),)
    assert int.from_bytes(packed.tobytes(), "little") == sum(k << (bits * i) for i, k in enumerate(numbers))
    unpacked = unpack_lists(packed, len(numbers), ivf_K)
    assert unpacked.dtype == np.int32 and unpacked.tolist() == numbers


def test_bits_are_as_few_as_needed():
    wanted = {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 300: 9, 4096: 12, 65536: 16, 1 << 20: 20, (1 << 20) + 1: 21}
    assert {ivf_K: list_bits(ivf_K) for ivf_K in wanted} == wanted


def test_numbers_that_are_no_lists_are_refused():
    for bad in ([300], [-1], [0.5]):
        with pytest.raises(UsageError):
            pack_lists(np.array(bad), IVF_K)
    with pytest.raises(UsageError, match="do not fit 300 lists"):
        unpack_lists(np.array([0xFF, 1], np.uint8), 1, IVF_K)
    with pytest.raises(DimensionError):
        unpack_lists(np.zeros(3, np.uint8), 1, IVF_K)
    with pytest.raises(DimensionError):
        pack_lists(np.zeros((2, 2), int), IVF_K)
    with pytest.raises(UsageError, match=r"2\^31"):
        CodesSpec.parse(SPEC.model_dump() | {"ivf_K": (1 << 31) + 1})


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 100])
def test_round_trip_through_a_file(tmp_path, rows, lists, n, with_ids):
    path = tmp_path / "c.h5"
    write(path, rows, lists, n, with_ids=with_ids)
    with open_codes(path) as file:
        assert file.spec == SPEC and file.with_lists and file.with_ids == with_ids
        np.testing.assert_array_equal(file.read(0, n), rows[0][:n])
        np.testing.assert_array_equal(file.lists(0, n), lists[:n])
        assert file.lists(0, n).dtype == np.int32
        for start, stop in ((0, 0), (n // 2, n), (n // 3, n // 2)):
            np.testing.assert_array_equal(file.lists(start, stop), lists[start:stop])
        parts = [part.lists for part in file.batches(10)]
        np.testing.assert_array_equal(np.concatenate([np.empty(0, int), *parts]), lists[:n])
    assert verify(path).ok
    with h5py.File(path) as file:
        assert file["lists"].shape == (-(-n * 9 // 8),)
        np.testing.assert_array_equal(unpack_lists(file["lists"][()], n, IVF_K), lists[:n])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.sampled_from([1, 2, 300, 1 << 20]), st.booleans(), st.integers(1, 50))
def test_round_trip_through_a_stream(n, ivf_K, with_ids, batch):
    spec = SPEC.model_copy(update={"ivf_K": ivf_K})
    rng = np.random.default_rng(n)
    sent = CodeRows(
        rng.integers(0, 256, (n, 5), np.uint8), rng.integers(-9, 9, n) if with_ids else None, rng.integers(0, ivf_K, n)
    )
    sink = io.BytesIO()
    with StreamWriter(sink, spec, with_ids=with_ids, count=n) as out:
        for at in range(0, n, batch):
            out.append(*sent.cut(at, at + batch))
    reader = StreamReader(io.BytesIO(sink.getvalue()))
    parts = list(reader)
    assert reader.spec == spec
    assert not parts or parts[0].lists.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 5)), *(p.codes for p in parts)]), sent.codes)
    np.testing.assert_array_equal(np.concatenate([np.empty(0), *(p.lists for p in parts)]), sent.lists)
    if with_ids:
        np.testing.assert_array_equal(np.concatenate([np.empty(0), *(p.ids for p in parts)]), sent.ids)
    table = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert table.schema.names == (["code", "id", "list"] if with_ids else ["code", "list"])
    assert table["list"].to_pylist() == sent.lists.tolist()


def streamed(rows, lists):
    sink = io.BytesIO()
    with StreamWriter(sink, SPEC, with_ids=False, count=None) as out:
        out.append(rows[0], lists=lists)
    return sink.getvalue()


def test_a_stream_whose_lists_were_damaged_is_refused(rows, lists):
    raw = streamed(rows, lists)
    at = raw.index(lists.tobytes())
    for offset in range(0, 4 * len(lists), 7):
        damaged = bytearray(raw)
        damaged[at + offset] ^= 1
        with pytest.raises(StreamError, match="damaged"):
            list(StreamReader(io.BytesIO(damaged)))
    damaged = raw[:at] + (300).to_bytes(4, "little") + raw[at + 4 :]
    with pytest.raises(StreamError, match="do not fit 300 lists"):
        list(StreamReader(io.BytesIO(damaged)))


def test_the_fingerprint_covers_the_lists(tmp_path, rows, lists):
    path = tmp_path / "c.h5"
    same = write(path, rows, lists).fingerprint
    assert write(path, rows, lists, force=True, chunk_rows=24, batch=50, source_stamp="t").fingerprint == same
    others = [
        write(path, rows, np.roll(lists, 1), force=True),
        write(path, rows, lists, force=True, spec=SPEC.model_copy(update={"ivf_K": 301})),
    ]
    with create_codes(path, **options(spec=SPEC.model_copy(update={"ivf_K": 0})), force=True) as out:
        out.append(*rows)
    assert len({same, out.header.fingerprint, *(header.fingerprint for header in others)}) == 4


def test_every_damaged_byte_of_the_lists_is_found(tmp_path, rows, lists):
    path = tmp_path / "c.h5"
    write(path, rows, lists)
    for at in range(list_bytes(100, IVF_K)):
        with h5py.File(path, "r+") as file:
            file["lists"][at] ^= 1 << (at % 8)
        failed = [check.name for check in verify(path).checks if not check.ok]
        assert failed == [f"chunk {min(at // 18, 6)}"]
        with h5py.File(path, "r+") as file:
            file["lists"][at] ^= 1 << (at % 8)
    assert verify(path).ok


def test_lists_out_of_range_are_refused_though_their_digest_is_right(tmp_path, rows, lists):
    path = tmp_path / "c.h5"
    write(path, rows, lists, 16)
    with h5py.File(path, "r+") as file:
        packed = file["lists"][()]
        packed[:2] = 0xFF
        file["lists"][()] = packed
        mark = chunk_digest([file["codes"][()], file["ids"][()], packed])
        file["digests"][0] = np.frombuffer(mark, np.uint8)
    with open_codes(path) as file, pytest.raises(ArtifactError, match=r"corrupted: list numbers .* do not fit 300"):
        file.read(0, 1)
    assert not verify(path).ok


@pytest.mark.parametrize("change", ["shorter", "missing"])
def test_sizes_that_do_not_fit_are_refused(tmp_path, rows, lists, change):
    path = tmp_path / "c.h5"
    write(path, rows, lists)
    with h5py.File(path, "r+") as file:
        fewer = file["lists"][:-1]
        del file["lists"]
        if change == "shorter":
            file["lists"] = fewer
    with pytest.raises(ArtifactError, match="corrupted"), open_codes(path):
        pass


def test_rows_that_do_not_fit_are_refused(tmp_path, rows, lists, spec):
    codes, ids = rows
    cases = [
        (SPEC, None, UsageError, "need list numbers"),
        (SPEC, lists[:9], DimensionError, "give one each"),
        (SPEC, lists + (300 - lists.max()), UsageError, "to 300 do not fit 300 lists"),
        (SPEC, lists / 2, UsageError, "integers"),
        (spec, lists, UsageError, "without an IVF have no list numbers"),
    ]
    for described, given_lists, error, says in cases:
        with pytest.raises(error, match=says), create_codes(tmp_path / "c.h5", **options(spec=described)) as out:
            out.append(codes, ids, given_lists)
        assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="multiple of 8"):
        create_codes(tmp_path / "c.h5", **options(chunk_rows=12))


def test_a_job_torn_at_any_byte_goes_on(tmp_path, rows, lists):
    path, partial = tmp_path / "c.h5", partial_path(tmp_path / "c.h5")
    expected = write(tmp_path / "other.h5", rows, lists).fingerprint
    with pytest.raises(KeyboardInterrupt), create_codes(path, **options()) as out:
        out.append(rows[0][:40], rows[1][:40], lists[:40])
        raise KeyboardInterrupt
    torn = partial.read_bytes()
    record = 16 * (5 + 8) + 18 + 16
    for size in range(0, len(torn) + 1, 29):
        partial.write_bytes(torn[:size])
        with create_codes(path, **options(), resume=True, force=True) as out:
            assert out.done == 16 * max(0, 2 - -(-(len(torn) - size) // record))
            out.append(rows[0][out.done :], rows[1][out.done :], lists[out.done :])
        assert out.header.fingerprint == expected
    path.unlink()
    partial.write_bytes(torn)
    with pytest.raises(LineageError, match="ivf_K 300 then, 301 now"):
        create_codes(path, **options(spec=SPEC.model_copy(update={"ivf_K": 301})), resume=True)


def test_figures_that_come_late_are_recorded_and_tell_no_jobs_apart(tmp_path, rows, lists):
    path = tmp_path / "c.h5"
    with pytest.raises(KeyboardInterrupt), create_codes(path, **options()) as out:
        out.record(agreement=0.25)
        out.append(rows[0][:40], rows[1][:40], lists[:40])
        raise KeyboardInterrupt
    with create_codes(path, **options(), resume=True) as out:
        assert out.done == 32
        out.record(agreement=0.5)
        out.append(*CodeRows(*rows, lists).cut(32, 100))
    with open_codes(path) as file:
        assert file.spec.encoder == {"assign": "exact", "agreement": 0.5}


def test_garbage_never_passes(tmp_path, rows, lists, rng):
    """A file with one bit changed anywhere is refused, or says what it said before."""
    path = tmp_path / "c.h5"
    header = write(path, rows, lists, 40)
    whole = path.read_bytes()
    for at in rng.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            with open_codes(path) as file:
                found = file.rows(0, len(file))
                if file.header.fingerprint != header.fingerprint:
                    assert not verify(path).ok
        except QincoError:
            continue
        np.testing.assert_array_equal(found.lists, lists[:40])
        np.testing.assert_array_equal(found.codes, rows[0][:40])
