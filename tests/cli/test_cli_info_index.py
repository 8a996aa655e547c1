"""`qinco info` and `qinco verify` of an index, given its folder or its manifest."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import done, run

from qinco_core.store import Store


@pytest.mark.parametrize("name", ["index", "index/manifest.h5"])
def test_what_an_index_is(index_store, name):
    facts = json.loads(done("info", index_store.root / name, "--json").out)
    assert (facts["kind"], facts["vectors"], facts["lists"]) == ("index", 10_000, 64)
    assert facts["bytes per vector"] == 4 + 4 + 1 + 1
    assert facts["made from"] == [
        "model ../model.h5",
        "codes ../codes/base.h5",
        "centroids ../centroids.h5",
        "pairwise ../pairwise.h5",
    ]
    assert facts["model"]["ivf_K"] == 64
    text = done("info", index_store.root / name).text
    assert "10,000" in text and "codes ../codes/base.h5" in text


@pytest.mark.parametrize("name", ["index", "index/manifest.h5"])
def test_every_file_of_an_index_is_verified(index_store, tmp_path, name):
    assert json.loads(done("verify", index_store.root / name, "--json").out)["ok"]
    shutil.copytree(index_store.root, tmp_path / "store")
    (path,) = Store(tmp_path / "store").index.glob("norms.*.npy")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    ended = run("verify", tmp_path / "store" / name, "--json")
    assert ended.code == 1
    assert [check["name"] for check in json.loads(ended.out)["checks"] if not check["ok"]] == [path.name]


def test_a_folder_without_an_index(tmp_path):
    for command in ("info", "verify"):
        ended = run(command, tmp_path)
        assert ended.code == 2
        assert "is a directory" in ended.complaint
