"""What dry runs say is what the cost model says, and what comes of the job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import BASE, LEARN, QUERIES, done, run

from qinco_core.scale.costs import Machines, Rates, Sizes, encoding, indexing
from qinco_core.store import Store, load_model, load_pairwise

ONE = ["--threads", 1, "-q"]


def said(*arguments: object) -> dict:
    return dict(json.loads(done(*arguments, *ONE, "--dry-run", "--json").out))


def test_encoding(model: Path, codes: Path, tmp_path: Path) -> None:
    found = said("encode", BASE, "--model", model, "-o", tmp_path / "c.h5")
    sizes = Sizes.of(load_model(model).config)
    wanted = encoding(10_000, sizes, Rates(), Machines()).as_dict()
    assert {name: found[name] for name in wanted if name.endswith(("bytes", "vector", "vectors"))} == {
        name: value for name, value in wanted.items() if name.endswith(("bytes", "vector", "vectors"))
    }
    assert found["seconds"] == pytest.approx(10_000 / found["vectors_per_second"])
    assert codes.stat().st_size == pytest.approx(found["output_bytes"], abs=8192)
    text = done("encode", BASE, "--model", model, "-o", tmp_path / "c.h5", *ONE, "--dry-run").text
    assert "10,000 vectors" in text and "2 bytes a vector, 19.5 KiB" in text and "at most 39.1 KiB" in text
    assert list(tmp_path.iterdir()) == []


def test_encoding_to_elsewhere(model: Path, tmp_path: Path) -> None:
    stream = said("encode", BASE, "--model", model, "-o", "-")
    assert (stream["bytes_per_vector"], stream["disk_bytes"]) == (2 + 8, 0)
    raw = said("encode", BASE, "--model", model, "--raw", "-o", tmp_path / "raw")
    assert raw["bytes_per_vector"] == 2 and raw["disk_bytes"] == raw["output_bytes"] == 20_000


def test_shards_are_a_share_each(model: Path, tmp_path: Path) -> None:
    shards = [said("encode", LEARN, "--model", model, "-o", tmp_path / "p", "--shard", f"{i}/2") for i in range(2)]
    assert [found["vectors"] for found in shards] == [16_384, 40_000 - 16_384]
    assert [found["shard"] for found in shards] == [[0, 2], [1, 2]]
    assert all(found["disk_bytes"] - found["output_bytes"] == 2 * 16_384 for found in shards)
    piped = ["encode", "-", "--format", "fvecs", "--model", model, "-o", tmp_path / "p", "--shard", "0/2", "--dry-run"]
    ended = run(*piped, stdin=QUERIES.read_bytes())
    assert ended.code == 2 and "a stream cannot be divided" in ended.complaint


def test_indexing(index_store: Store) -> None:
    found = said("index", "--store", index_store.root, "--memory", "1M")
    tables = len(load_pairwise(index_store.pairwise).tables_TRD)
    sizes = Sizes.of(load_model(index_store.model).config, largest_id=9999, tables=tables)
    wanted = indexing(10_000, sizes, Rates(), Machines(memory=1 << 20)).as_dict()
    assert all(found[name] == wanted[name] for name in ("output_bytes", "memory_bytes", "passes", "bytes_per_vector"))
    assert said("index", "--store", index_store.root, "--shards", 4)["output_bytes"] == (
        indexing(10_000, sizes, Rates(), Machines(count=4)).output_bytes
    )
    size = sum(path.stat().st_size for path in index_store.index.iterdir())
    assert size == pytest.approx(found["output_bytes"], rel=0.1)
    assert "passes over the codes: 1" in done("index", "--store", index_store.root, "--dry-run", *ONE).text
