"""`qinco pairwise`: the artifact, its figures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, LEARN, QUERIES, contents, done, run

from qinco_core.index import training_codes
from qinco_core.store import Store, load_pairwise, read_header

FEW = ("--limit", 2000, "--sample", 5000, "--threads", 1, "-q")


@pytest.fixture
def store(model: Path, tmp_path: Path) -> Store:
    """A store with the model in it."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "model.h5").write_bytes(model.read_bytes())
    return Store(tmp_path / "store")


def test_figures_of_every_decoder(store):
    ended = done("pairwise", LEARN, "--store", store.root, *FEW)
    header, *lines = ended.text.splitlines()
    assert header.split() == ["decoder", "MSE,", "training", "MSE,", "held-out"]
    assert [line.split()[0] for line in lines] == ["centroid", "additive", "pairwise", "network"]
    stored = load_pairwise(store.pairwise)
    assert [(parent.kind, parent.fingerprint) for parent in stored.header.parents] == [
        ("model", read_header(store.model).fingerprint)
    ]
    assert (stored.training["vectors"], stored.training["held"]) == (1800, 200)
    held = stored.training["mse"]["held-out"]
    assert held["pairwise"] <= held["additive"] < held["centroid"]
    assert f"{held['pairwise']:,.6g}" in lines[2]


def test_codes_from_the_store_are_not_made_again(store):
    done("encode", LEARN, "--store", store.root, "--name", "xt", "--limit", 2000, "--threads", 1, "-q")
    once = json.loads(done("pairwise", LEARN, "--store", store.root, *FEW, "--codes", "xt", "--json").out)
    again = store.root / "again.h5"
    twice = json.loads(done("pairwise", LEARN, "--store", store.root, *FEW, "-o", again, "--json").out)
    assert once["fingerprint"] == twice["fingerprint"] == read_header(store.pairwise).fingerprint
    assert once["mse"] == twice["mse"]
    assert [parent.kind for parent in read_header(store.pairwise).parents] == ["model", "codes"]


def test_an_ivf_model_without_tables(ivf_store, tmp_path):
    out = tmp_path / "additive.h5"
    done("pairwise", LEARN, "--store", ivf_store.root, *FEW, "--tables", 0, "-o", out)
    stored = load_pairwise(out)
    assert stored.tables_TRD.shape[0] == stored.pairs_2T.shape[1] == 0
    assert stored.list_symbols_LX.shape == (64, 5)
    assert np.abs(stored.additive_MKD).max() > 0


def test_info_and_verify_know_it(store):
    done("pairwise", LEARN, "--store", store.root, *FEW)
    facts = json.loads(done("info", store.pairwise, "--json").out)
    assert (facts["kind"], facts["M"], facts["tables"]) == ("pairwise", 4, 6)
    assert facts["training"]["held"] == 200
    assert "tables" in done("verify", store.pairwise).text


def test_dry_run_writes_nothing(store, model, codes):
    before = contents(store.root)
    found = json.loads(done("pairwise", LEARN, "--store", store.root, *FEW, "--dry-run", "--json").out)
    assert (found["vectors"], found["tables"]) == (2000, 6)
    assert found["seconds"] > 0
    assert contents(store.root) == before
    assert "would write" in done("pairwise", LEARN, "--store", store.root, *FEW, "--dry-run").text
    searched = ["--model", model, "--base", codes]
    said = done("pairwise", LEARN, "--store", store.root, *searched, *FEW, "--dry-run").text
    assert f"10,000 codes to be searched, {codes}" in said


def test_who_interrupts_is_told_that_nothing_was_written(store, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training_codes, "fit_to_vectors", interrupt)
    ended = run("pairwise", LEARN, "--store", store.root, *FEW)
    assert (ended.code, "nothing was written: start again" in ended.complaint) == (130, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-"], 2, "name a file"),
        (["none.bvecs"], 2, "none.bvecs does not exist"),
        ([LEARN, "--codes", "none"], 2, "none.h5 does not exist"),
        ([LEARN, "--tables", "-1"], 2, "tables"),
        ([LEARN, "--sample", "0"], 2, "sample"),
        ([LEARN, "--limit", "1"], 2, "1 vector"),
        ([BASE.with_name("text_base.npy")], 1, "dimension 384"),
        ([LEARN, "--codes", "{codes}"], 1, "10000 codes"),
        ([QUERIES, "--codes", "{model}"], 1, "holds model, not codes"),
    ],
)
def test_what_is_refused(arguments, code, says, store, codes):
    before = contents(store.root)
    filled = [str(a).format(codes=codes, model=store.model) for a in arguments]
    ended = run("pairwise", *filled, "--store", store.root, "-q")
    assert (ended.code, ended.out) == (code, b"")
    assert says in ended.complaint
    assert contents(store.root) == before


def test_codes_of_another_model_are_refused(store, other_model, codes):
    ended = run("pairwise", BASE, "--store", store.root, "--model", other_model, "--codes", codes, "-q")
    assert ended.code == 1
    assert "were made by the model" in ended.complaint


def test_an_existing_file_needs_force(store):
    store.pairwise.write_bytes(b"kept")
    ended = run("pairwise", LEARN, "--store", store.root, *FEW)
    assert ended.code == 2
    assert "--force" in ended.complaint
    assert store.pairwise.read_bytes() == b"kept"
    done("pairwise", LEARN, "--store", store.root, *FEW, "--force")
    assert load_pairwise(store.pairwise).header.kind == "pairwise"
