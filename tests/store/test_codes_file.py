"""Files of codes: rows, digests, resuming, full disks."""

import os
import signal
import subprocess
import sys

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qinco_core.errors import ArtifactError, DimensionError, LineageError, OutputExistsError, UsageError
from qinco_core.store import CodesSpec, create_codes, open_codes, partial_path


def read_all(path):
    with open_codes(path) as file:
        codes, ids = file.read(0, len(file)), file.ids(0, len(file))
    return codes, ids


@pytest.mark.parametrize("count", [100, None])
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 32, 100])
def test_round_trip(tmp_path, write, rows, spec, count, with_ids, n):
    path = tmp_path / "codes" / "base.h5"
    header = write(path, n, with_ids=with_ids, count=None if count is None else n)
    codes, ids = read_all(path)
    np.testing.assert_array_equal(codes, rows[0][:n])
    if with_ids:
        np.testing.assert_array_equal(ids, rows[1][:n])
    else:
        assert ids is None
    with open_codes(path) as file:
        assert file.header == header and file.spec == spec and len(file) == n
        assert [(parent.kind, parent.fingerprint) for parent in header.parents] == [("model", spec.model)]
    assert list(path.parent.iterdir()) == [path]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 130))
def test_ranges_and_batches(tmp_path_factory, start, stop, size):
    path = tmp_path_factory.getbasetemp() / "ranges.h5"
    codes, ids = np.arange(500, dtype="u1").reshape(100, 5), np.arange(100) * 3
    if not path.exists():
        spec = CodesSpec(model="m", D=6, M=5, K=256, dtype="uint8", encoder={})
        with create_codes(path, spec=spec, count=100, with_ids=True, source_stamp="", chunk_rows=16) as out:
            out.append(codes, ids)
    start, stop = sorted((start, stop))
    with open_codes(path) as file:
        np.testing.assert_array_equal(file.read(start, stop), codes[start:stop])
        np.testing.assert_array_equal(file.ids(start, stop), ids[start:stop])
        batches = list(file.batches(size))
        assert max(len(batch.codes) for batch in batches) <= size
        np.testing.assert_array_equal(np.concatenate([batch.codes for batch in batches]), codes)
        np.testing.assert_array_equal(np.concatenate([batch.ids for batch in batches]), ids)


def test_no_such_rows(tmp_path, write):
    write(tmp_path / "c.h5")
    with open_codes(tmp_path / "c.h5") as file:
        for start, stop in ((0, 101), (-1, 3), (5, 4)):
            with pytest.raises(UsageError, match="rows 0 to 100"):
                file.read(start, stop)
        with pytest.raises(UsageError, match="batch of 0"):
            next(file.batches(0))


def test_errors_of_the_caller_stay_what_they_are(tmp_path, write):
    write(tmp_path / "c.h5")
    with pytest.raises(KeyError, match="mine"), open_codes(tmp_path / "c.h5"):
        raise KeyError("mine")


def test_fingerprint_is_of_the_content(tmp_path, write, spec):
    path = tmp_path / "c.h5"
    same = write(path).fingerprint
    assert write(path, force=True, chunk_rows=9, batch=50, count=None, source_stamp="t").fingerprint == same
    other = spec.model_copy(update={"model": "cd" * 16})
    changed = [{"n": 99, "count": 99}, {"with_ids": False}, {"spec": other}]
    assert same not in [write(path, force=True, **change).fingerprint for change in changed]


def test_damaged_rows_are_named(tmp_path, write):
    path = tmp_path / "c.h5"
    write(path)
    for name in ("codes", "ids"):
        with h5py.File(path, "r+") as file:
            file[name][40] ^= 1
        with open_codes(path) as file:
            assert len(file.read(0, 32)) == 32
            with pytest.raises(ArtifactError, match="rows 32 to 47"):
                file.read(40, 41)
            with pytest.raises(ArtifactError, match="rows 32 to 47"):
                list(file.batches(100))
        with h5py.File(path, "r+") as file:
            file[name][40] ^= 1


@pytest.mark.parametrize("name", ["codes", "ids", "digests"])
def test_sizes_that_do_not_fit_are_refused(tmp_path, write, name):
    path = tmp_path / "c.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        fewer = file[name][:-1]
        del file[name]
        file[name] = fewer
    with pytest.raises(ArtifactError, match="corrupted"), open_codes(path):
        pass


def test_rows_that_do_not_fit_are_refused(tmp_path, spec, rows):
    codes, ids = rows
    wrong = [
        (codes[:, :4], ids, DimensionError),
        (codes, ids[:5], DimensionError),
        (codes.astype(int), ids, UsageError),
        (codes, None, UsageError),
        (codes, ids.astype(float), UsageError),
        (codes, np.full(100, 2**63, np.uint64), UsageError),
        (np.concatenate([codes, codes]), np.concatenate([ids, ids]), UsageError),
    ]
    for bad_codes, bad_ids, error in wrong:
        with (
            pytest.raises(error),
            create_codes(tmp_path / "c.h5", spec=spec, count=100, with_ids=True, source_stamp="") as out,
        ):
            out.append(bad_codes, bad_ids)
        assert not list(tmp_path.iterdir())


def test_too_few_rows_can_be_completed(tmp_path, write, rows):
    path = tmp_path / "c.h5"
    with pytest.raises(ArtifactError, match="got 50 of 100"):
        write(path, 50, count=100)
    assert list(tmp_path.iterdir()) == [partial_path(path)]
    write(path, resume=True)
    np.testing.assert_array_equal(read_all(path)[0], rows[0])
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path, spec, rows, n=40, **options):
    options = {"count": 100, "with_ids": True, "source_stamp": "s", "chunk_rows": 16, "spec": spec} | options
    with pytest.raises(KeyboardInterrupt), create_codes(path, **options) as out:
        out.append(rows[0][:n], rows[1][:n])
        raise KeyboardInterrupt


def test_an_interrupted_job_continues_where_it_was(tmp_path, write, spec, rows):
    path = tmp_path / "c.h5"
    expected = write(tmp_path / "other.h5").fingerprint
    interrupted(path, spec, rows)
    options = {"spec": spec, "count": 100, "with_ids": True, "source_stamp": "s", "resume": True}
    with create_codes(path, **options, chunk_rows=50) as out:
        assert out.done == len(out) == 32
        out.append(rows[0][32:], rows[1][32:])
    assert out.header.fingerprint == expected


def test_an_interrupted_job_is_not_overwritten_by_accident(tmp_path, write, spec, rows):
    path = tmp_path / "c.h5"
    interrupted(path, spec, rows)
    with pytest.raises(OutputExistsError, match=r"--resume continues it, --force starts over"):
        write(path)
    assert partial_path(path).exists()
    write(path, force=True)
    np.testing.assert_array_equal(read_all(path)[0], rows[0])


def test_force_and_resume_together_continue_what_replaces_a_finished_file(tmp_path, write, spec, rows):
    path = tmp_path / "c.h5"
    write(path)
    interrupted(path, spec, rows, force=True)
    with pytest.raises(OutputExistsError, match="exists"):
        write(path, resume=True)
    options = {"spec": spec, "count": 100, "with_ids": True, "source_stamp": "s"}
    with create_codes(path, **options, resume=True, force=True) as out:
        assert out.done == 32
        out.append(rows[0][32:], rows[1][32:])


@pytest.mark.parametrize("change", ["model", "encoder", "source", "count", "ids"])
def test_a_job_is_not_continued_by_another(tmp_path, write, spec, rows, change):
    path = tmp_path / "c.h5"
    interrupted(path, spec, rows)
    options = {
        "model": {"spec": spec.model_copy(update={"model": "cd" * 16})},
        "encoder": {"spec": spec.model_copy(update={"encoder": {"A": 3}})},
        "source": {"source_stamp": "changed"},
        "count": {"count": 99, "n": 99},
        "ids": {"with_ids": False},
    }[change]
    with pytest.raises(LineageError, match=rf"another job \(.*{change}.*start over with --force"):
        write(path, resume=True, **options)
    assert partial_path(path).exists()
    write(path, resume=True, force=True, **options)
    assert not partial_path(path).exists()


def test_a_foreign_partial_is_refused(tmp_path, write):
    path = tmp_path / "c.h5"
    partial_path(path).write_bytes(b"somebody else's\n")
    with pytest.raises(ArtifactError, match="start over with --force"):
        write(path, resume=True)
    write(path, force=True)


def test_two_writers_do_not_mix(tmp_path, spec, write):
    first = create_codes(tmp_path / "c.h5", spec=spec, count=0, with_ids=False, source_stamp="")
    with first, pytest.raises(OutputExistsError, match="another process"):
        write(tmp_path / "c.h5", force=True)


def test_a_partial_torn_at_any_byte_continues(tmp_path, write, spec, rows):
    path, partial = tmp_path / "c.h5", partial_path(tmp_path / "c.h5")
    expected = write(tmp_path / "other.h5").fingerprint
    interrupted(path, spec, rows)
    torn = partial.read_bytes()
    record = 16 * (5 + 8) + 16
    for size in range(0, len(torn) + 1, 23):
        partial.write_bytes(torn[:size])
        with create_codes(
            path,
            spec=spec,
            count=100,
            with_ids=True,
            source_stamp="s",
            resume=True,
            force=True,
            chunk_rows=16,
        ) as out:
            assert out.done == 16 * max(0, 2 - -(-(len(torn) - size) // record))
            out.append(rows[0][out.done :], rows[1][out.done :])
        assert out.header.fingerprint == expected
    damaged = bytearray(torn)
    damaged[-record - 30] ^= 4
    partial.write_bytes(damaged)
    with create_codes(path, spec=spec, count=100, with_ids=True, source_stamp="s", resume=True, force=True) as out:
        assert out.done == 0
        out.append(*rows)


CHILD = """
import sys
import numpy as np
from qinco_core.store import CodesSpec, create_codes

path, action = sys.argv[1:]
if action == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
spec = CodesSpec(model="m", D=8, M=8, K=256, dtype="float32", encoder={})
n = 100_000 if action != "finish" else 4_096
count = None if action == "limit" else 4_096
resume = {"resume": True} if action == "finish" else {}
resume |= {"source_stamp": "s", "chunk_rows": 64}
with create_codes(path, spec=spec, count=count, with_ids=True, **resume) as out:
    print("done", out.done, flush=True)
    for row in range(out.done, n, 32):
        ids = np.arange(row, row + 32)
        out.append(np.repeat(ids.astype("u1")[:, None], 8, 1), ids)
        print(row + 32, flush=True)
        if action == "hang" and row >= 1000:
            sys.stdin.read()
"""


def child(path, action):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), action],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_killed_job_loses_at_most_one_chunk(tmp_path):
    path = tmp_path / "c.h5"
    with child(path, "hang") as process:
        while (written := process.stdout.readline().strip()) != "1024":
            assert written, process.stderr.read()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [partial_path(path)]
    with child(path, "finish") as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    done = int(output.split()[1])
    assert 1024 - 64 <= done <= 1056
    codes, ids = read_all(path)
    np.testing.assert_array_equal(ids, np.arange(4096))
    np.testing.assert_array_equal(codes[:, 3], np.arange(4096).astype("u1"))


def test_a_full_disk_is_one_clear_error_and_keeps_the_chunks(tmp_path):
    path = tmp_path / "c.h5"
    with child(path, "limit") as process:
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("qinco_core.errors.StorageError: no room left to write")
    assert "ignored" not in errors
    assert list(tmp_path.iterdir()) == [partial_path(path)]
    # the finished file does not fit either: the chunks stay
    spec = CodesSpec(model="m", D=8, M=8, K=256, dtype="float32", encoder={})
    with create_codes(path, spec=spec, count=None, with_ids=True, source_stamp="s", chunk_rows=64, resume=True) as out:
        assert out.done == 64 * (20_000 // (64 * 16 + 16))
    np.testing.assert_array_equal(read_all(path)[1], np.arange(out.done))


MODEL_CHILD = """
import resource, sys
import numpy as np
from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import StorageError
from qinco_core.store import save_checkpoint, save_model

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
weights = {f"w{i}": np.ones(1000, "f4") for i in range(4)}
try:
    save_model(sys.argv[1], ModelConfig(D=4), EncodeConfig(), weights, training={}, force=True)
except StorageError as error:
    print(error)
try:
    save_checkpoint(sys.argv[1], config={}, arrays=weights, state={})
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 2_000, 17_000])
def test_a_full_disk_keeps_the_old_model_in_silence(model_path, limit):
    before = model_path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", MODEL_CHILD, str(model_path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == ""
    assert done.stdout.count("no room left to write") == 2
    assert model_path.read_bytes() == before
    assert list(model_path.parent.iterdir()) == [model_path]
