"""`qinco convert`, and the other commands on files that it can read."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import BASE, LEARN, QUERIES, SIZES, TEXT, TRUTH, contents, done, finish, run, spawn, start, wait_until

from qinco_core.store import open_codes
from qinco_core.store.artifact import read_header
from qinco_core.vectors import open_vectors, read_ids, write_vectors


def all_of(source: object) -> np.ndarray:
    with open_vectors(source) as vectors:
        return vectors.read(0, len(vectors))


def lists(array: np.ndarray) -> pa.Array:
    flat = pa.array(array.reshape(-1).astype("f4"))
    return pa.ListArray.from_arrays(np.arange(0, array.size + 1, array.shape[1], dtype="i4"), flat)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 10,000 base vectors in a Parquet file of several row groups, with ids from elsewhere."""
    path = tmp_path_factory.mktemp("parquet") / "base.parquet"
    array = all_of(BASE)
    ids = 1_000_000 + 3 * np.arange(len(array))
    pq.write_table(pa.table({"id": ids, "embedding": lists(array)}), path, row_group_size=1500)
    return path


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrow") / "query.feather"
    done("convert", QUERIES, path, "-q")
    return path


NAMES = ("x.fvecs", "x.u8bin", "x.npy", "x.npz", "x.hdf5", "x.parquet", "x.feather", "x.arrow")


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    ended = done("convert", BASE, tmp_path / name)
    assert ended.out == b""
    assert ended.err.startswith(f"wrote 10,000 vectors of 128 × {all_of(tmp_path / name).dtype} to")
    assert len(ended.err.splitlines()) == 1
    done("convert", tmp_path / name, tmp_path / "back.u8bin", "-q")
    assert (tmp_path / "back.u8bin").read_bytes() == BASE.read_bytes()


def test_a_window_in_another_type(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    report = json.loads(done("convert", base, out, "--skip", 1400, "--limit", 200, "--dtype", "float16", "--json").text)
    assert report["files"] == [
        {"output": str(out), "format": "npy", "vectors": 200, "D": 128, "dtype": "float16", "changed": 0}
    ]
    assert report["input"] == str(base) and report["seconds"] >= 0
    np.testing.assert_array_equal(np.load(out), all_of(BASE)[1400:1600].astype("f2"))


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    ended = done("convert", TEXT, tmp_path / "x.i8bin", "--limit", 10)
    assert "3,811 of their 3,840 numbers are not as they were, but rounded or clipped to int8" in ended.err
    assert done("convert", TEXT, tmp_path / "y.i8bin", "--limit", 10, "-q").err == ""


def test_pipes() -> None:
    arrow = done("convert", TEXT, "-", "--to", "arrow", "-q").out
    assert done("convert", "-", "-", "--format", "arrow", "--to", "fvecs", "-q", stdin=arrow).out[:4] == b"\x80\x01\0\0"
    npy = done("convert", TEXT, "-", "--to", "npy", "-q").out
    assert npy == TEXT.read_bytes()
    parquet = done("convert", "-", "-", "--format", "npy", "--to", "parquet", "-q", stdin=npy).out
    read = pq.read_table(pa.BufferReader(parquet))["embedding"].to_numpy()
    np.testing.assert_array_equal(np.stack(read), np.load(TEXT))


def test_ids_in_and_out(base: Path, tmp_path: Path) -> None:
    ids = read_ids(base)
    window = ["--skip", 10, "--limit", 20]
    done("convert", base, tmp_path / "x.arrow", "--ids", f"{base}::id", "--ids-out", tmp_path / "x.npy", *window, "-q")
    np.testing.assert_array_equal(read_ids(tmp_path / "x.arrow"), ids[10:30])
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ids[10:30])
    done("convert", base, tmp_path / "y.fvecs", "--ids-out", tmp_path / "y.npy", "-q")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), ids)
    done("convert", BASE, tmp_path / "z.parquet", "--ids", tmp_path / "y.npy", "-q")
    np.testing.assert_array_equal(pq.read_table(tmp_path / "z.parquet")["id"].to_numpy(), ids)


def test_ids_beside_vectors_whose_format_is_named(base: Path, tmp_path: Path) -> None:
    named = ["--format", "parquet", "--limit", 20, "-q"]
    (tmp_path / "x.data").symlink_to(base)
    done("convert", tmp_path / "x.data", tmp_path / "x.fvecs", "--ids-out", tmp_path / "x.npy", *named)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.parquet").symlink_to(base)
    (tmp_path / "both" / "a.feather").touch()
    both = f"{tmp_path}/both"
    done("convert", both, tmp_path / "y.arrow", "--ids", f"{both}::id", "--ids-out", tmp_path / "y.npy", *named)
    for name in ("x.npy", "y.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / name), read_ids(base)[:20])
    ended = run("convert", BASE, tmp_path / "z.npy", "--format", "u8bin", "--ids-out", tmp_path / "z-ids.npy")
    assert (ended.code, "u8bin files hold no ids; name a file of npy, hdf5" in ended.complaint) == (2, True)


@pytest.mark.parametrize("count", [499, 501])
def test_ids_for_another_number_of_vectors_than_come(count: int, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(count))
    beside = ["--ids", tmp_path / "ids.npy", "--ids-out", tmp_path / "out.npy"]
    ended = run("convert", "-", tmp_path / "x.fvecs", "--format", "fvecs", *beside, stdin=QUERIES.read_bytes())
    assert (ended.code, f"{count} ids for 500 vectors of <stdin>" in ended.complaint) == (2, True)
    assert list(contents(tmp_path)) == ["ids.npy"]


def test_ann_benchmarks_files_whole(tmp_path: Path) -> None:
    made = ["convert", BASE, tmp_path / "x.hdf5", "--queries", QUERIES, "--groundtruth", TRUTH, "--distances"]
    report = json.loads(done(*made, "--json", "-q").text)
    assert [Path(file["output"]).name for file in report["files"]] == [
        f"x.hdf5::{name}" for name in ("train", "test", "neighbors", "distances")
    ]
    done("convert", tmp_path / "x.hdf5", f"{tmp_path}/out/", "--to", "u8bin", "-q")
    assert (tmp_path / "out" / "train.u8bin").read_bytes() == BASE.read_bytes()
    np.testing.assert_array_equal(all_of(tmp_path / "out" / "neighbors.ibin"), all_of(TRUTH))
    ended = run("convert", tmp_path / "x.hdf5", tmp_path / "out", "--to", "u8bin")
    assert (ended.code, "train.u8bin exists; overwrite it with --force" in ended.complaint) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}", "{tmp}/x"], "name the format with --format"),
        (["{base}", "-"], "vectors to stdout need --to"),
        (["-", "{tmp}/x.npy"], "vectors from stdin need --format"),
        (["-", "{tmp}/x.npy", "--format", "parquet"], "parquet cannot be read from a pipe"),
        (["{base}", "-", "--to", "hdf5"], "hdf5 cannot be written to a pipe"),
        (["{base}", "-", "--to", "npy", "--json"], "stdout takes the vectors"),
        (["{base}", "{tmp}/x.fvecs", "--dtype", "uint8"], "fvecs files hold float32, not uint8"),
        (["{base}", "{tmp}/x.npy", "--dtype", "float8"], "no dtype 'float8'"),
        (["{base}", "{tmp}/x.fvecs", "--ids", "{base}"], "fvecs has no place for ids; write parquet, arrow"),
        (["{base}", "{tmp}/x.arrow", "--ids", "{tmp}/few.npy"], "3 ids for 10000 vectors"),
        (["{tmp}/few.npz", "{tmp}/x.arrow", "--ids-out", "{tmp}/ids.npy"], "no ids (integers of one dimension)"),
        (["-", "{tmp}/x.arrow", "--format", "npy", "--ids-out", "{tmp}/ids.npy"], "ids cannot be read from stdin"),
        (["{base}", "{tmp}/x.npy", "--metric", "ip"], "give --queries and --groundtruth"),
        (["{base}", "{tmp}/x.hdf5", "--queries", "{base}"], "needs both --queries and --groundtruth"),
        (["{base}", "{tmp}/x.npy", "--queries", "{base}", "--groundtruth", "{base}"], "is HDF5: name OUT like"),
        (
            ["{base}", "{tmp}/x.hdf5", "--queries", "{base}", "--groundtruth", "{base}", "--skip", "1"],
            "leave out --skip",
        ),
        (["{base}", "{tmp}/out/"], "only ann-benchmarks HDF5 files are written to one"),
        (["{tmp}/no.parquet", "{tmp}/x.npy"], "does not exist"),
        (["{tmp}/few.hdf5", "{tmp}/out/", "--metric", "bogus"], "give --queries and --groundtruth"),
        (["{base}", "{tmp}/x.npy", "--ids-out", "{tmp}/x.npy"], "both the vectors and the ids"),
        (["{base}", "{tmp}/x.npy", "--ids-out", "{tmp}/out/../x.npy"], "both the vectors and the ids"),
        (["{base}", "{tmp}/x.npz::a", "--to", "npz", "--ids-out", "{tmp}/x.npz"], "ids are written as npy"),
        (["{base}", "{tmp}/x.npy", "--ids-out", "{tmp}/ids.parquet"], "ids are written as npy"),
        (["{base}", "{tmp}/x.npy", "--ids-out", "-"], "ids are written as npy"),
    ],
)
def test_wrong_calls(arguments: list[str], message: str, base: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.arange(3))
    np.savez(tmp_path / "few.npz", x=np.ones((3, 2)))
    write_vectors(tmp_path / "few.hdf5", np.ones((3, 2)))
    before = contents(tmp_path)
    npy = TEXT.read_bytes() if "--ids-out" in arguments else b""
    ended = run("convert", *(a.format(base=base, tmp=tmp_path) for a in arguments), stdin=npy)
    assert message in ended.complaint
    assert ended.code == (1 if "few.npz" in arguments[0] else 2)
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_outputs_that_are_one_file_through_a_link(base: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    out = [f"{tmp_path}/there/x.npy", "--ids-out", f"{tmp_path}/link/x.npy"]
    assert "both the vectors and the ids" in run("convert", base, *out).complaint
    assert contents(tmp_path) == {}


def test_what_exists_is_refused_without_its_key_before_work_starts(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.hdf5").write_bytes(b"mine")
    ended = run("convert", base, f"{tmp_path}/x.hdf5::a", "--ids", tmp_path / "none.npy")
    assert (ended.code, "x.hdf5 exists; overwrite it with --force" in ended.complaint) == (2, True)
    assert contents(tmp_path) == {"x.hdf5": b"mine"}


def test_the_longest_names(base: Path, tmp_path: Path) -> None:
    names = ["n" * 251 + ".npy", "n" * 250 + "m.npy"]
    done("convert", base, tmp_path / names[0], "--ids-out", tmp_path / names[1], "--limit", 5, "-q")
    assert sorted(contents(tmp_path)) == sorted(names)


def test_bad_rows_leave_nothing(tmp_path: Path) -> None:
    array = np.ones((5000, 128), "f4")
    array[4321, 7] = np.nan
    pq.write_table(pa.table({"id": np.arange(5000), "v": lists(array)}), tmp_path / "x.parquet", row_group_size=1000)
    ended = run("convert", tmp_path / "x.parquet", tmp_path / "x.npy", "--ids-out", tmp_path / "ids.npy")
    assert ended.code == 1
    assert f"{tmp_path}/x.parquet::v: row 4321 (counted from 0) holds NaN or infinity" in ended.complaint
    assert list(contents(tmp_path)) == ["x.parquet"]


@pytest.mark.parametrize("name", ["x.hdf5", "x.parquet"])
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # noqa: E731
    ended = spawn("convert", BASE, tmp_path / name, preexec_fn=small)
    assert (ended.code, f"no room left to write {tmp_path / name}" in ended.complaint) == (1, True)
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_for_the_ids(base: Path, tmp_path: Path) -> None:
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    ids = tmp_path / "ids.npy"
    ended = spawn("convert", base, tmp_path / "x.npy", "--ids-out", ids, preexec_fn=small)
    assert (ended.code, f"no room left to write {ids}" in ended.complaint) == (1, True)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = start("convert", "-", tmp_path / "x.parquet", "--format", "bvecs", stdin=-1)
    assert process.stdin is not None
    process.stdin.write(LEARN.read_bytes())
    process.stdin.flush()
    wait_until(lambda: any(tmp_path.iterdir()), process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.code, "interrupted; start again" in ended.complaint) == (130, True)
    assert not list(tmp_path.iterdir())


def test_info_tells_vectors_from_codes(queries: Path, stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "vectors.arrow").write_bytes(done("convert", queries, "-", "--to", "arrow", "-q").out)
    (tmp_path / "codes.arrow").write_bytes(stream)
    for source in (queries, queries.parent, tmp_path / "vectors.arrow"):
        facts = json.loads(done("info", source, "--json").text)
        assert (facts["kind"], facts["format"], facts["vectors"], facts["D"]) == ("vectors", "arrow", 500, 128)
    assert json.loads(done("info", tmp_path / "codes.arrow", "--json").text)["kind"] == "stream of codes"
    ended = run("convert", tmp_path / "codes.arrow", tmp_path / "x.npy")
    assert "no column of vectors" in ended.complaint and "qinco decode" in ended.complaint


def test_train_reads_a_folder_of_parquet(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "learn"
    folder.mkdir()
    for number, part in enumerate(np.split(all_of(LEARN)[:3000], [1300, 2000])):
        pq.write_table(pa.table({"v": lists(part)}), folder / f"part-{number}.parquet", row_group_size=500)
    options = [*SIZES, "--epochs", 1, "--epoch-size", 2000, "-q"]  # those of the model
    done("train", f"{folder}/::v", *options, "-o", tmp_path / "m.h5")
    assert read_header(tmp_path / "m.h5").fingerprint == read_header(model).fingerprint


def test_encode_reads_parquet_and_its_ids(base: Path, model: Path, codes: Path, tmp_path: Path) -> None:
    options = ["--model", model, "--threads", 1, "-q"]
    done("encode", base, "--ids", f"{base}::id", *options, "-o", tmp_path / "x.h5")
    with open_codes(tmp_path / "x.h5") as ours, open_codes(codes) as theirs:
        np.testing.assert_array_equal(ours.read(0, len(ours)), theirs.read(0, len(theirs)))
        np.testing.assert_array_equal(ours.ids(0, len(ours)), read_ids(base))
    done("decode", tmp_path / "x.h5", *options, "-o", f"{tmp_path}/x.parquet::decoded")
    assert open_vectors(f"{tmp_path}/x.parquet::decoded").shape == (10_000, 128)


def test_search_and_eval_read_feather_and_parquet(
    base: Path, queries: Path, model: Path, codes: Path, tmp_path: Path
) -> None:
    options = ["--model", model, "--threads", 1]
    search = ["--codes", codes, "-k", 5, *options, "-q", "-o", "-"]
    assert done("search", queries, *search).out == done("search", QUERIES, *search).out
    evaluation = ["--limit", 500, *options, "--json", "-q"]
    both = [(base, queries), (BASE, QUERIES)]
    ours, theirs = (json.loads(done("eval", xb, "--queries", xq, *evaluation).text)["results"][0] for xb, xq in both)
    assert [ours[name] for name in ("prefix_mse", "recall")] == [theirs[name] for name in ("prefix_mse", "recall")]
