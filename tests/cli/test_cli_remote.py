"""Commands on vectors at addresses: the same as on the file here."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from command_line import BASE, LEARN, QUERIES, SIZES, TEXT, TRUTH, done, run

from qinco_core.store import open_codes


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """The sample's files, and ranges of them."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = BASE.parent / self.path.lstrip("/")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or not path.exists():
            self.send_error(404)
            return
        data = path.read_bytes()[int(match[1]) : int(match[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    def handler(*arguments: Any) -> _Ranges:
        return _Ranges(*arguments, directory=str(BASE.parent))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for path in (BASE, LEARN, QUERIES, TRUTH, TEXT):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    memory.store.clear()


def test_encoding_from_a_server_gives_the_same_codes(web: str, codes: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done("encode", f"{web}/{BASE.name}", "--model", model, "--store", store, "--threads", 1, "-q")
    with open_codes(codes) as here, open_codes(store / "codes" / "sift_base.h5") as there:
        assert here.header.fingerprint == there.header.fingerprint
        assert (here.rows(0, len(here)).codes == there.rows(0, len(there)).codes).all()


def test_a_part_of_it(bucket: str, model: Path) -> None:
    arguments = ["--model", model, "--raw", "-o", "-", "--skip", 5000, "--limit", 100, "--threads", 1, "-q"]
    assert done("encode", f"{bucket}/{BASE.name}", *arguments).out == done("encode", BASE, *arguments).out


def test_resuming_knows_the_file(bucket: str, model: Path, tmp_path: Path) -> None:
    """Shards of one file come to the same parts, and another file at the address is refused."""
    arguments = ["--model", model, "-o", tmp_path / "parts", "--threads", 1, "-q", "--shard", "0/1", "--limit", 300]
    done("encode", f"{bucket}/{BASE.name}", *arguments)
    assert json.loads(done("encode", f"{bucket}/{BASE.name}", *arguments, "--json").out)["parts"] == 0
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/other.u8bin", BASE.read_bytes())
    assert run("encode", f"{bucket}/other.u8bin", *arguments).complaint


def test_other_commands(bucket: str, model: Path, codes: Path, tmp_path: Path) -> None:
    facts = json.loads(done("info", f"{bucket}/{TEXT.name}", "--json").out)
    assert (facts["file"], facts["vectors"], facts["D"]) == (f"{bucket}/{TEXT.name}", 800, 384)
    done("convert", f"{bucket}/{QUERIES.name}", tmp_path / "queries.fvecs", "-q")
    assert (tmp_path / "queries.fvecs").read_bytes() == QUERIES.read_bytes()
    truth = [*("-k", 10, "--threads", 1, "-q", "-o")]
    done("groundtruth", BASE, QUERIES, *truth, tmp_path / "here.ivecs")
    done("groundtruth", f"{bucket}/{BASE.name}", f"{bucket}/{QUERIES.name}", *truth, tmp_path / "there.ivecs")
    assert (tmp_path / "here.ivecs").read_bytes() == (tmp_path / "there.ivecs").read_bytes()
    search = ["--codes", codes, "--model", model, "--limit", 20, "--threads", 1, "-q", "--json"]
    measured = [
        json.loads(done("search", f"{place}/{QUERIES.name}", "--groundtruth", f"{place}/{TRUTH.name}", *search).out)
        for place in (BASE.parent, bucket)
    ]
    here, there = ([stage["recall"] for stage in m["stages"]] for m in measured)
    assert here == there


def test_training_and_centroids(bucket: str, tmp_path: Path) -> None:
    for place, name in ((LEARN.parent, "here"), (bucket, "there")):
        learn, budget = f"{place}/{LEARN.name}", ["--limit", 1000, "--epochs", 1, "--val", 100]
        done("train", learn, *SIZES, *budget, "-o", tmp_path / f"{name}.h5", "-q")
        centroids = ["--k", 16, "--iterations", 2, "--threads", 1, "-o", tmp_path / f"{name}.centroids.h5", "-q"]
        done("centroids", learn, "--limit", 1000, *centroids)
    for kind in ("", ".centroids"):
        prints = {
            json.loads(done("info", tmp_path / f"{name}{kind}.h5", "--json").out)["fingerprint"]
            for name in ("here", "there")
        }
        assert len(prints) == 1


@pytest.mark.parametrize(
    ("address", "code", "complaint"),
    [
        ("memory://bucket/none.fbin", 2, "memory://bucket/none.fbin does not exist; check the address"),
        ("s3://bucket/base.hdf5::train", 2, "hdf5 cannot be read from an address"),
        ("ftps3://bucket/base.fbin", 2, "ftps3"),
        ("http://127.0.0.1:1/base.fbin?key=secret", 1, "http://127.0.0.1:1/base.fbin cannot be read"),
    ],
)
def test_refusals_are_one_line(address: str, code: int, complaint: str, model: Path) -> None:
    ended = run("encode", address, "--model", model, "-o", "-")
    assert ended.code == code
    assert complaint in ended.complaint
    assert "secret" not in ended.complaint


def test_outputs_are_files(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        ("convert", QUERIES, "s3://bucket/queries.fbin"),
        ("encode", QUERIES, "--model", model, "-o", "s3://bucket/codes.h5"),
        ("encode", QUERIES, "--model", model, "-o", "s3://bucket/codes", "--shard", "0/2"),
        ("train", QUERIES, "-o", "s3://bucket/model.h5"),
    ):
        ended = run(*line, "-q")
        assert (ended.code, list(tmp_path.iterdir())) == (2, [])
        assert "only files are written" in ended.complaint
