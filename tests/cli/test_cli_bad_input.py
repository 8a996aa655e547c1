"""Bad input: one clear line, the right exit code, nothing half-written, nothing lost."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command_line import BASE, LEARN, QUERIES, SIZES, TEXT, contents, done, run, spawn

from qinco_core.store import read_header
from qinco_core.vectors import open_vectors, write_vectors

TRAIN = [*SIZES, "--samples", 2048]


def refused(folder: Path, code: int, says: str, *arguments: object, stdin: bytes = b"") -> None:
    """Run a command that must fail, and leave `folder` as it is."""
    before = contents(folder)
    ended = run(*arguments, stdin=stdin)
    assert (ended.code, ended.out) == (code, b"")
    assert says in ended.complaint
    assert "Traceback" not in ended.err
    assert contents(folder) == before


def some(count: int = 20) -> np.ndarray:
    with open_vectors(BASE, limit=count) as file:
        return file.read(0, count).astype(np.float32)


def missing(_: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    write_vectors(path, some())
    path.write_bytes(path.read_bytes()[:-3])


def misnamed(path: Path) -> None:
    shutil.copy(BASE, path)


def no_rows(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.empty((0, 128), np.float32))
    if path.suffix != ".npy":
        path.with_suffix(".npy").rename(path)


def with_nan(path: Path) -> None:
    rows = some(3000)
    np.save(path.with_suffix(".npy"), rows)
    data = np.load(path.with_suffix(".npy"), mmap_mode="r+")
    data[7, 3] = np.nan
    data.flush()


def directory(path: Path) -> None:
    path.mkdir()


VECTORS = [
    ("x.fvecs", missing, 2, "x.fvecs does not exist"),
    ("x.fvecs", empty, 1, "x.fvecs is empty"),
    ("x.npy", empty, 1, "x.npy is empty"),
    ("x.fvecs", truncated, 1, "truncated"),
    ("x.npy", truncated, 1, "truncated"),
    ("x.u8bin", truncated, 1, "truncated"),
    ("x.fvecs", misnamed, 1, "x.fvecs"),
    ("x.npy", misnamed, 1, "x.npy"),
    ("x.xyz", misnamed, 2, "the extension '.xyz' is of no known format"),
    ("x", misnamed, 2, "there is no extension"),
    ("x.npy", no_rows, 1, "holds no vectors"),
    ("x.npy", with_nan, 1, "row 7 (counted from 0) holds NaN or infinity"),
    ("x.hdf5", misnamed, 1, "x.hdf5"),
    ("x.npy", directory, 2, "is a directory"),
]


@pytest.mark.parametrize("action", ["train", "encode", "encode --raw", "eval"])
@pytest.mark.parametrize(("name", "make", "code", "says"), VECTORS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_vectors(action, name, make: Callable[[Path], None], code, says, model, tmp_path):
    path, out = tmp_path / name, tmp_path / "out.h5"
    make(path)
    if action == "train":
        before = contents(tmp_path)
        ended = run("train", path, *TRAIN, "-o", out, "-q")
        assert (ended.code, ended.out) == (code, b"")
        assert says in ended.complaint
        assert contents(tmp_path) == before
    elif action == "eval":
        refused(tmp_path, code, says, "eval", path, "--model", model, "-q", "--plot", tmp_path / "p.png")
    elif action == "encode":
        refused(tmp_path, code, says, "encode", path, "--model", model, "-o", out, "-q")
    else:
        refused(tmp_path, code, says, "encode", path, "--model", model, "-o", out, "-q", "--raw")


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("x.fvecs", empty, "<stdin> is empty"),
        ("x.npy", empty, "<stdin>"),
        ("x.fvecs", truncated, "<stdin> was cut after 19 vectors"),
        ("x.npy", truncated, "<stdin> was cut after 19 of 20 vectors"),
        ("x.u8bin", truncated, "<stdin> was cut after 19 of 20 vectors"),
        ("x.fvecs", misnamed, "<stdin>"),
        ("x.npy", no_rows, "<stdin> holds no vectors"),
        ("x.npy", with_nan, "<stdin>: row 7 (counted from 0) holds NaN or infinity"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_vectors_on_stdin(name, make: Callable[[Path], None], says, model, tmp_path):
    make(tmp_path / name)
    arguments = ["encode", "-", "--format", name[2:], "--model", model, "-o", tmp_path / "out.h5", "-q"]
    refused(tmp_path, 1, says, *arguments, stdin=(tmp_path / name).read_bytes())


@pytest.mark.parametrize(
    "arguments", [["encode", TEXT, "-o", "{tmp}/c.h5"], ["eval", TEXT], ["encode", TEXT, "-o", "{tmp}/c", "--raw"]]
)
def test_vectors_of_another_dimension(arguments, model, tmp_path):
    filled = [str(argument).format(tmp=tmp_path) for argument in arguments]
    refused(tmp_path, 1, "has vectors of dimension 384, but the model takes 128", *filled, "--model", model, "-q")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--K", 48], 2, "K = 48 is not a power of two; use 32 or 64"),
        (["--K", 1], 2, "K: "),
        (["-M", 0], 2, "M: "),
        (["-M", 1000], 2, "M: "),
        (["-A", 17], 2, "A = 17 candidates of K = 16"),
        (["--preset", "qinco9"], 2, "no preset 'qinco9'; there are qinco2-XS"),
        (["--recipe", "slow"], 2, "no recipe 'slow'; there are fast, paper"),
        (["--format", "csv"], 2, "no format 'csv'; there are fvecs"),
        (["--time", "5m", "--epochs", 3], 2, "one budget"),
        (["--time", "5m"], 2, "one budget"),
        (["--epochs", 3], 2, "one budget"),
        (["--device", "tpu"], 2, "no device 'tpu'; there are auto, cpu, cuda"),
        (["--precision", "int8"], 2, "no precision 'int8'"),
        (["--threads", 0], 2, "0 threads"),
        (["--lr", 0], 2, "lr: "),
        (["--batch", 0], 2, "batch: "),
        (["--skip", 40_000], 2, "skip"),
        (["--skip", -1], 2, "skip"),
        (["--limit", 0], 2, "limit"),
        (["--val", 100_000], 2, "--val"),
    ],
)
def test_training_that_cannot_be(options, code, says, tmp_path):
    out = tmp_path / "m.h5"
    out.write_bytes(b"mine")
    before = contents(tmp_path)
    ended = run("train", LEARN, *TRAIN, *options, "-o", out, "--force", "-q")
    assert (ended.code, ended.out) == (code, b"")
    assert says in ended.complaint
    assert contents(tmp_path) == before


def test_fewer_training_vectors_than_codewords(tmp_path):
    ended = run("train", LEARN, *TRAIN, "--K", 256, "--limit", 250, "-o", tmp_path / "m.h5", "-q")
    assert ended.code == 2
    assert "at least K = 256" in ended.complaint
    assert contents(tmp_path) == {}


def test_training_vectors_from_stdin(tmp_path):
    refused(tmp_path, 2, "needs a file, not a stream", "train", "-", "-o", tmp_path / "m.h5")


def test_training_vectors_that_are_all_the_same(tmp_path):
    np.save(tmp_path / "x.npy", np.full((500, 8), 3, np.uint8))
    ended = run("train", tmp_path / "x.npy", *TRAIN, "-o", tmp_path / "m.h5", "-q")
    assert ended.code == 2
    assert "nothing to learn" in ended.complaint
    assert list(contents(tmp_path)) == ["x.npy"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("action", ["train", "encode", "decode", "eval"])
def test_a_gpu_where_there_is_none(action, model, codes, tmp_path):
    arguments = {
        "train": [LEARN, *TRAIN, "-o", tmp_path / "m.h5"],
        "encode": [BASE, "-o", tmp_path / "c.h5", "--model", model],
        "decode": [codes, "-o", tmp_path / "x.npy", "--model", model],
        "eval": [BASE, "--model", model],
    }[action]
    refused(tmp_path, 2, "use --device cpu", action, *arguments, "--device", "cuda", "-q")


@pytest.mark.parametrize("steps", [0, -1, 5, 100])
def test_steps_the_model_does_not_have(steps, model, codes, tmp_path):
    arguments = ["decode", codes, "--model", model, "-o", tmp_path / "x.npy", "--steps", steps, "-q"]
    refused(tmp_path, 2, "this model has 4: use 1 to 4", *arguments)


def test_outputs_that_exist(model, codes, tmp_path):
    for name in ("c.h5", "c.raw", "x.npy", "p.png"):
        (tmp_path / name).write_bytes(b"mine")
    with_model = ["--model", model, "-q"]
    for arguments in (
        ["encode", BASE, *with_model, "-o", tmp_path / "c.h5"],
        ["encode", BASE, *with_model, "-o", tmp_path / "c.raw", "--raw"],
        ["decode", codes, *with_model, "-o", tmp_path / "x.npy"],
        ["eval", BASE, *with_model, "--limit", 100, "--plot", tmp_path / "p.png"],
        ["train", LEARN, *TRAIN, "-q", "-o", tmp_path / "c.h5"],
    ):
        refused(tmp_path, 2, "exists; overwrite it with --force", *arguments)
    refused(tmp_path, 2, "is a directory", "decode", codes, *with_model, "-o", tmp_path, "--format", "npy")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("x.xyz", [], "of no known format"),
        ("-", ["--format", "hdf5"], "hdf5 cannot be written to a pipe"),
        ("-", [], "--format"),
        ("-", ["--format", "csv"], "no format 'csv'"),
    ],
)
def test_formats_that_are_not_written(name, options, says, model, codes, tmp_path):
    out = name if name == "-" else tmp_path / name
    refused(tmp_path, 2, says, "decode", codes, "--model", model, "-o", out, "-q", *options)


def test_stdin_needs_a_format_and_a_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, 2, "--format", "encode", "-", "--model", model, "-o", "c.h5", stdin=BASE.read_bytes())
    refused(tmp_path, 2, "--name", "encode", "-", "--model", model, "--format", "u8bin", stdin=BASE.read_bytes())


def test_codes_of_another_model(other_model, codes, stream, tmp_path):
    arguments = ["--model", other_model, "-o", tmp_path / "x.npy", "-q"]
    refused(tmp_path, 1, "base.h5", "decode", codes, *arguments)
    refused(tmp_path, 1, "stdin", "decode", "-", *arguments, stdin=stream)
    refused(tmp_path, 1, "base.h5", "eval", BASE, "--codes", codes, "--model", other_model, "-q")
    complaint = run("decode", codes, *arguments).complaint
    assert read_header(other_model).fingerprint in complaint
    assert read_header(codes).parents[0].fingerprint in complaint


def test_codes_that_are_none(model, codes, tmp_path):
    np.save(tmp_path / "text.npy", np.ones((3, 3)))
    (tmp_path / "empty.h5").touch()
    arguments = ["--model", model, "-o", tmp_path / "x.fvecs", "-q"]
    refused(tmp_path, 2, "none.h5 does not exist", "decode", tmp_path / "none.h5", *arguments)
    refused(tmp_path, 1, "text.npy", "decode", tmp_path / "text.npy", *arguments)
    refused(tmp_path, 1, "empty.h5", "decode", tmp_path / "empty.h5", *arguments)
    refused(tmp_path, 1, "stream", "decode", "-", *arguments, stdin=b"")
    refused(tmp_path, 1, "stream", "decode", "-", *arguments, stdin=b"nothing of the kind" * 100)
    refused(tmp_path, 1, "holds model, not codes", "decode", model, *arguments)
    refused(tmp_path, 1, "holds codes, not model", "decode", codes, "--model", codes, *arguments[2:])


def damaged(model: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that are no model, or no longer."""
    data = bytearray(model.read_bytes())
    for name, change in {
        "cut.h5": lambda d: d[: len(d) // 2],
        "flipped.h5": lambda d: d[: len(d) // 2] + bytes([d[len(d) // 2] ^ 64]) + d[len(d) // 2 + 1 :],
        "header.h5": lambda d: d[:100] + bytes(60) + d[160:],
        "empty.h5": lambda d: b"",
        "text.h5": lambda d: b"# not HDF5 at all\n" * 50,
    }.items():
        (folder / name).write_bytes(change(data))
        yield name, folder / name
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["train"] = np.ones((4, 4), np.float32)
    yield "foreign.h5", folder / "foreign.h5"


def test_damaged_and_foreign_models(model, codes, tmp_path):
    for name, path in damaged(model, tmp_path):
        refused(tmp_path, 1, name, "encode", BASE, "--model", path, "-o", tmp_path / "c.h5", "-q")
        refused(tmp_path, 1, name, "decode", codes, "--model", path, "-o", tmp_path / "x.npy", "-q")
        if name != "flipped.h5":  # info reads headers, verify content
            refused(tmp_path, 1, name, "info", path)
        ended = run("verify", path)
        assert ended.code == 1, name
        assert "WRONG" in ended.text
        assert ended.err == ""
    refused(tmp_path, 2, "does not exist", "encode", BASE, "--model", tmp_path / "none.h5", "-o", tmp_path / "c.h5")
    refused(tmp_path, 2, "does not exist", "verify", tmp_path / "none.h5")


def test_damaged_codes(model, codes, tmp_path):
    data = bytearray(codes.read_bytes())
    at = data.index(bytes(h5py.File(codes)["codes"][5000:5010].tobytes()))
    data[at] ^= 1
    bad = tmp_path / "bad.h5"
    bad.write_bytes(data)
    refused(tmp_path, 1, "corrupted in rows 0 to 9999", "decode", bad, "--model", model, "-o", tmp_path / "x.npy", "-q")
    ended = run("verify", bad)
    assert ended.code == 1
    assert "WRONG" in ended.text


def test_a_newer_format_names_the_version_to_install(model, tmp_path):
    path = tmp_path / "newer.h5"
    shutil.copy(model, path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.int32(99)
        file.attrs["writer"] = "7.0"
    refused(tmp_path, 1, "qinco>=7.0", "info", path)


def test_a_damaged_checkpoint_is_not_lost(tmp_path):
    out, checkpoint = tmp_path / "m.h5", tmp_path / "m.training.h5"
    checkpoint.write_bytes(b"no checkpoint")
    arguments = ["train", LEARN, *TRAIN, "--limit", 3000, "-o", out, "-q"]
    for more, code in ((["--resume"], 1), ([], 2)):
        ended = run(*arguments, *more)
        assert ended.code == code
        assert "m.training.h5" in ended.complaint
        assert checkpoint.read_bytes() == b"no checkpoint"
        assert not out.exists()
    done(*arguments, "--force")


@pytest.mark.parametrize("name", ["none/x.npy", "deep/er/x.npy"])
def test_folders_are_made(name, model, codes, tmp_path):
    done("decode", codes, "--model", model, "-o", tmp_path / name, "-q")
    assert np.load(tmp_path / name).shape == (10_000, 128)


def test_a_folder_that_cannot_be_made(model, codes, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    refused(
        tmp_path,
        1,
        "would lie inside a file",
        "decode",
        codes,
        "--model",
        model,
        "-o",
        tmp_path / "file" / "x.npy",
        "-q",
    )


def test_vectors_of_the_wrong_kind_on_stdin(model, tmp_path):
    arguments = ["encode", "-", "--model", model, "-o", tmp_path / "c.h5", "-q", "--format"]
    queries = QUERIES.read_bytes()
    refused(tmp_path, 1, "<stdin>", *arguments, "fvecs", stdin=queries[:-1])
    refused(tmp_path, 1, "<stdin>", *arguments, "npy", stdin=queries)
    refused(tmp_path, 1, "<stdin>", *arguments, "u8bin", stdin=BASE.read_bytes() + b"more")
    refused(tmp_path, 2, "cannot be read from a pipe", *arguments, "hdf5", stdin=b"x")
    refused(tmp_path, 1, "dimension 384", *arguments, "npy", stdin=TEXT.read_bytes())


def test_too_little_memory_is_said_in_a_line(tmp_path: Path) -> None:
    """What torch cannot have for a model of 15 GB, in a process that may take 4."""
    line = ["train", LEARN, "--preset", "qinco2-XS", "--de", 4096, "--dh", 65536, "-o", tmp_path / "m.h5", "-q"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))

    ended = spawn(*line, preexec_fn=limit)
    assert (ended.code, ended.complaint[:21]) == (1, "qinco: out of memory ")
