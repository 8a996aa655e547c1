"""`qinco encode` and `qinco decode`: files, pipes, prefixes, ids, and jobs that were killed."""

from __future__ import annotations

import io
import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, Ended, command, contents, done, environment, finish, run, spawn, start, wait_until

from qinco_core.store import CodesFile, StreamReader, open_codes, partial_path
from qinco_core.vectors import open_vectors

SLOW = ["--exact", "-A", "16", "-B", "8", "--threads", "1", "-q"]
CHUNK = 16384 * 2  # bytes of the first chunk of such codes


def stored(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with open_codes(path) as file:
        assert isinstance(file, CodesFile)
        return file.read(0, len(file)).copy(), file.ids(0, len(file))


def test_decoded_vectors_are_nearer_than_the_mean(decoded):
    with open_vectors(BASE) as file:
        x = file.read(0, len(file)).astype(np.float32)
    error = np.square(decoded - x).sum(1).mean()
    assert error < 0.75 * np.square(x - x.mean(0)).sum(1).mean()


def test_a_pipe_gives_what_the_artifact_gives(model, decoded, tmp_path):
    ends = [["encode", BASE, "-o", "-"], ["decode", "-", "-o", tmp_path / "piped.npy"]]
    line = " | ".join(shlex.join(command(*end, "--model", model, "--threads", 1)) for end in ends)
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, env=environment())
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b""
    assert np.array_equal(np.load(tmp_path / "piped.npy"), decoded)


def test_a_stream_cut_on_its_way_is_an_error_and_no_file(model, tmp_path):
    ends = [["encode", BASE, "-o", "-", "-q"], ["decode", "-", "-o", tmp_path / "piped.npy", "-q"]]
    first, second = (shlex.join(command(*end, "--model", model, "--threads", 1)) for end in ends)
    line = f"{first} | head -c 50000 | {second}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, env=environment(), text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("qinco: the stream was cut")
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_stream_cut_anywhere(share, stream, model, tmp_path):
    cut = stream[: int(share * len(stream))]
    ended = run("decode", "-", "--model", model, "-o", tmp_path / "x.npy", "-q", stdin=cut)
    assert ended.code == 1
    assert "stream" in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_saved_stream_is_a_file_too(stream, model, decoded, tmp_path):
    saved = tmp_path / "base.arrow"
    saved.write_bytes(stream)
    done("decode", saved, "--model", model, "-o", tmp_path / "x.npy", "--threads", 1, "-q")
    assert np.array_equal(np.load(tmp_path / "x.npy"), decoded)
    assert json.loads(done("info", saved, "--json").out)["vectors"] == 10_000
    assert json.loads(done("verify", saved, "--json").out)["ok"] is True
    saved.write_bytes(stream[:-9])
    ended = run("verify", saved, "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["ok"] is False


def test_the_stream_and_the_artifact_hold_the_same_codes(stream, codes):
    rows = list(StreamReader(io.BytesIO(stream)))
    assert np.array_equal(np.concatenate([part.codes for part in rows]), stored(codes)[0])
    assert np.array_equal(np.concatenate([part.ids for part in rows]), np.arange(10_000))


def test_raw_both_ways(model, codes, decoded, tmp_path):
    piped = done("encode", BASE, "--model", model, "-o", "-", "--raw", "--threads", 1, "-q").out
    assert piped == stored(codes)[0].tobytes()
    raw = tmp_path / "base.raw"
    done("encode", BASE, "--model", model, "-o", raw, "--raw", "--threads", 1, "-q")
    assert raw.read_bytes() == piped
    options = ["--model", model, "--raw", "--threads", 1, "-q"]
    done("decode", raw, *options, "-o", tmp_path / "file.npy")
    done("decode", "-", *options, "-o", tmp_path / "pipe.npy", stdin=piped)
    for name in ("file.npy", "pipe.npy"):
        assert np.array_equal(np.load(tmp_path / name), decoded)


@pytest.mark.parametrize("source", ["file", "pipe"])
def test_raw_codes_that_were_cut(source, model, codes, tmp_path):
    raw = tmp_path / "base.raw"
    raw.write_bytes(stored(codes)[0].tobytes()[:-1])
    before = contents(tmp_path)
    name, stdin = ("-", raw.read_bytes()) if source == "pipe" else (raw, b"")
    ended = run("decode", name, "--raw", "--model", model, "-o", tmp_path / "x.npy", "-q", stdin=stdin)
    assert ended.code == 1
    assert "ends inside a code" in ended.complaint
    assert contents(tmp_path) == before


def test_vectors_from_stdin(model, codes, tmp_path):
    options = ["--model", model, "--threads", 1, "-q", "-o", tmp_path / "c.h5"]
    done("encode", "-", *options, "--format", "u8bin", stdin=BASE.read_bytes())
    assert np.array_equal(stored(tmp_path / "c.h5")[0], stored(codes)[0])
    # fvecs do not say how many there are
    with open_vectors(BASE, limit=300) as file:
        rows = file.read(0, 300).astype("<f4")
    framed = np.concatenate([np.full((300, 1), 128, "<i4").view("<f4"), rows], axis=1).tobytes()
    done("encode", "-", *options, "--format", "fvecs", "--force", stdin=framed)
    assert np.array_equal(stored(tmp_path / "c.h5")[0], stored(codes)[0][:300])


def test_decode_to_stdout(model, codes, decoded):
    options = ["--model", model, "--threads", 1, "-q", "-o", "-"]
    fvecs = np.frombuffer(done("decode", codes, *options, "--format", "fvecs").out, "<f4").reshape(-1, 129)
    assert (fvecs[:, 0].view("<i4") == 128).all()
    assert np.array_equal(fvecs[:, 1:], decoded)
    npy = done("decode", codes, *options, "--format", "npy").out
    assert np.array_equal(np.load(io.BytesIO(npy)), decoded)


def test_npy_to_stdout_needs_a_count(model, codes):
    raw = stored(codes)[0].tobytes()
    ended = run("decode", "-", "--raw", "--model", model, "-o", "-", "--format", "npy", "-q", stdin=raw)
    assert (ended.code, ended.out) == (2, b"")
    assert "write fvecs to a pipe" in ended.complaint


def test_a_prefix_of_the_symbols(model, codes, decoded, tmp_path):
    with open_vectors(BASE) as file:
        x = file.read(0, len(file)).astype(np.float32)
    errors = []
    for steps in (1, 2, 3, 4):
        out = tmp_path / f"{steps}.npy"
        done("decode", codes, "--model", model, "--steps", steps, "-o", out, "--threads", 1, "-q")
        errors.append(float(np.square(np.load(out) - x).sum(1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert np.array_equal(np.load(tmp_path / "4.npy"), decoded)


def test_skip_and_limit_name_the_rows_of_the_file(model, codes, tmp_path):
    out = tmp_path / "part.h5"
    done("encode", BASE, "--model", model, "--skip", 100, "--limit", 50, "-o", out, "--threads", 1, "-q")
    assert np.array_equal(stored(out)[0], stored(codes)[0][100:150])
    sent = done("encode", BASE, "--model", model, "--skip", 100, "--limit", 50, "-o", "-", "-q").out
    ids = np.concatenate([rows.ids for rows in StreamReader(io.BytesIO(sent))])
    assert np.array_equal(ids, np.arange(100, 150))


def test_ids(model, tmp_path):
    ids = np.arange(10_000)[::-1] * 10**12
    np.save(tmp_path / "ids.npy", ids)
    options = ["--model", model, "--ids", tmp_path / "ids.npy", "-q"]
    done("encode", BASE, *options, "-o", tmp_path / "c.h5")
    assert np.array_equal(stored(tmp_path / "c.h5")[1], ids)
    sent = done("encode", BASE, *options, "-o", "-").out
    assert np.array_equal(np.concatenate([rows.ids for rows in StreamReader(io.BytesIO(sent))]), ids)


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("too few", 2, "9 ids for 10000 vectors"),
        ("floats", 2, "ids are integers"),
        ("negative", 2, "holds the id -1; ids are 0 or more"),
        ("empty", 1, "is no .npy file of ids"),
        ("text", 1, "is no .npy file of ids"),
        ("archive", 1, "is no .npy file of ids"),
    ],
)
def test_ids_that_cannot_be(kind, code, says, model, tmp_path):
    path = tmp_path / "ids.npy"
    if kind == "too few":
        np.save(path, np.arange(9))
    elif kind == "floats":
        np.save(path, np.ones(10_000))
    elif kind == "negative":
        np.save(path, np.arange(10_000) - 1)
    elif kind == "archive":
        with path.open("wb") as file:
            np.savez(file, ids=np.arange(10_000))
    else:
        path.write_bytes(b"" if kind == "empty" else b"no ids here")
    before = contents(tmp_path)
    ended = run("encode", BASE, "--model", model, "--ids", path, "-o", tmp_path / "c.h5", "-q")
    assert ended.code == code
    assert says in ended.complaint
    assert contents(tmp_path) == before


def test_names_in_the_store(model, decoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "my.store"
    store.mkdir()
    (store / "model.h5").write_bytes(model.read_bytes())
    done("encode", BASE, "--store", store, "--threads", 1, "-q")
    done("encode", BASE, "--store", store, "--name", "base.v2", "--limit", 10, "-q")
    assert sorted(contents(store)) == ["codes/base.v2.h5", "codes/sift_base.h5", "model.h5"]
    done("decode", "sift_base", "--store", store, "-o", "x.npy", "--threads", 1, "-q")
    assert np.array_equal(np.load("x.npy"), decoded)
    monkeypatch.setenv("QINCO_STORE", str(store))
    done("decode", "base.v2", "-o", "y.npy", "-q")
    assert np.load("y.npy").shape == (10, 128)


def test_force_replaces_and_only_force(model, codes, tmp_path):
    out = tmp_path / "c.h5"
    out.write_bytes(b"mine")
    ended = run("encode", BASE, "--model", model, "-o", out, "-q")
    assert ended.code == 2
    assert "--force" in ended.complaint
    assert contents(tmp_path) == {"c.h5": b"mine"}
    done("encode", BASE, "--model", model, "-o", out, "-q", "--threads", 1, "--force")
    assert np.array_equal(stored(out)[0], stored(codes)[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "-", "--resume"], "resumed"),
        (["--raw", "-o", "{tmp}/x", "--resume"], "resumed"),
        (["--raw", "-o", "-", "--ids", "ids.npy"], "no place for ids"),
        (["--raw"], "say where"),
        (["--name", "a", "-o", "{tmp}/a.h5"], "one of the two"),
        (["--name", "../a"], "cannot name codes"),
        (["-A", "17"], "more than the model's K"),
        (["-B", "0"], "B: "),
    ],
)
def test_options_that_contradict(options, says, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled = [option.format(tmp=tmp_path) for option in options]
    ended = run("encode", BASE, "--model", model, "-q", *filled)
    assert (ended.code, ended.out) == (2, b"")
    assert says in ended.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base vectors four times over."""
    path = tmp_path_factory.mktemp("many") / "many.npy"
    with open_vectors(BASE) as file:
        np.save(path, np.tile(file.read(0, len(file)), (4, 1)))
    return path


@pytest.fixture(scope="module")
def whole(many: Path, model: Path) -> tuple[bytes, str]:
    """Codes and fingerprint of an encoding that nothing disturbed."""
    out = many.with_name("whole.h5")
    found = json.loads(done("encode", many, "--model", model, "-o", out, *SLOW, "--json").out)
    return stored(out)[0].tobytes(), found["fingerprint"]


def stopped(number: int, many: Path, model: Path, out: Path) -> Ended:
    """How an encoding ends that gets a signal after its first chunk."""
    process = start("encode", many, "--model", model, "-o", out, *SLOW)
    partial = partial_path(out)
    wait_until(lambda: partial.exists() and partial.stat().st_size > CHUNK, process)
    time.sleep(0.05)  # the chunk is being flushed
    process.send_signal(number)
    return finish(process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_job_that_was_stopped_goes_on(number, many, whole, model, tmp_path):
    out, partial = tmp_path / "c.h5", partial_path(tmp_path / "c.h5")
    ended = stopped(number, many, model, out)
    if number == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL
    else:
        assert ended.code == 130
        assert "--resume" in ended.complaint
    assert list(tmp_path.iterdir()) == [partial]
    kept = partial.read_bytes()
    assert CHUNK < len(kept) < 3 * CHUNK

    ended = run("encode", many, "--model", model, "-o", out, *SLOW)
    assert ended.code == 2
    assert "--resume continues it" in ended.complaint
    ended = run("encode", BASE, "--model", model, "-o", out, *SLOW, "--resume")
    assert ended.code == 1
    assert "begun for another job" in ended.complaint
    assert partial.read_bytes() == kept

    found = json.loads(done("encode", many, "--model", model, "-o", out, *SLOW, "--resume", "--json").out)
    assert (stored(out)[0].tobytes(), found["fingerprint"]) == whole
    assert list(tmp_path.iterdir()) == [out]

    partial.write_bytes(kept)
    done("encode", BASE, "--model", model, "-o", out, "-q", "--force")
    assert len(stored(out)[0]) == 10_000
    assert list(tmp_path.iterdir()) == [out]


def test_a_job_stopped_at_once_leaves_nothing(many, model, tmp_path):
    out = tmp_path / "c.h5"
    process = start("encode", many, "--model", model, "-o", out, *SLOW)
    wait_until(partial_path(out).exists, process)
    time.sleep(0.2)  # the journal is being begun
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.complaint) == (130, "qinco: interrupted; start again with the same command")
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_decode_leaves_what_was_there(model, codes, tmp_path):
    out = tmp_path / "x.fvecs"
    out.write_bytes(b"mine")
    process = start("decode", "-", "--model", model, "-o", out, "--force", "--raw", "-q", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(stored(codes)[0].tobytes())
    process.stdin.flush()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert (ended.code, ended.complaint) == (130, "qinco: interrupted; start again with the same command")
    assert contents(tmp_path) == {"x.fvecs": b"mine"}


def test_the_store_of_the_environment(model, tmp_path):
    """The commands of a first session, as processes, with nothing but a store."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "model.h5").write_bytes(model.read_bytes())
    env = environment(QINCO_STORE="s")
    assert spawn("encode", BASE, "--limit", 10, "-q", cwd=tmp_path, env=env).code == 0
    assert spawn("decode", "sift_base", "-o", "x.npy", "-q", cwd=tmp_path, env=env).code == 0
    assert sorted(contents(tmp_path)) == ["s/codes/sift_base.h5", "s/model.h5", "x.npy"]
