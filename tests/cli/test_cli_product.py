"""The QINCo1 family through the commands: QINCo1, low rank, and products of groups."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from command_line import BASE, LEARN, QUERIES, SIZES, done, run

from qinco_cli import options
from qinco_core.api import Codec
from qinco_core.codec import reference
from qinco_core.codec.product import ProductNetwork
from qinco_core.config import PRESETS
from qinco_core.store import load_model, training_files
from qinco_core.vectors import open_vectors

SHORT = ["--limit", 1500, "--epochs", 1, "--epoch-size", 1350, "-q"]
FAMILY = {
    "qinco1": ["--preset", "qinco1", "--L", 1, "--dh", 16, "-M", 4, "--K", 16, "--recipe", "paper"],
    "qinco1-LR": ["--preset", "qinco1-LR", "--L", 1, "--dh", 16, "-M", 4, "--K", 16],
    "product": [*SIZES, "--groups", 4, "--opq"],
}


@pytest.fixture(scope="module", params=FAMILY)
def member(request, tmp_path_factory):
    """A model of the family, and what was printed of its training."""
    out = tmp_path_factory.mktemp(request.param.replace("-", "")) / "model.h5"
    how = ["--threads", 1, "--epochs", 4, "--batch", 256, "--lr", 0.003]
    found = done("train", LEARN, *FAMILY[request.param], *SHORT, *how, "-o", out, "--json")
    return request.param, out, json.loads(found.out)


def test_every_member_goes_all_the_way(member, tmp_path):
    name, model, trained = member
    stored = load_model(model)
    c = stored.config
    assert (c.groups, c.opq) == ((4, True) if name == "product" else (1, False))
    assert c.rank == (16 if name == "qinco1-LR" else 0)
    assert c.rules == ("qinco1" if "qinco1" in name else "qinco2")
    if name == "qinco1":
        config = trained["config"]
        rules = (config["optimizer"], config["schedule"], config["weight_decay"], config["clip"], config["warmup"])
        assert rules == ("adam", "plateau", 0, 0, 0) and (config["A"], config["B"], config["passes"]) == (0, 1, 1)
    assert not training_files(model)[0].exists()
    assert [path.name for path in model.parent.glob("*.h5")] == ["model.h5"]

    how = ["--model", model, "--threads", 1, "-q"]
    codes = tmp_path / "base.h5"
    done("encode", BASE, *how, "--limit", 500, "-o", codes)
    with open_vectors(BASE, limit=500) as file:
        v = file.read(0, 500).astype(np.float32)
    errors = []
    for steps in range(1, 5):
        done("decode", codes, *how, "--steps", steps, "-o", tmp_path / "d.npy", "--force")
        errors.append(float(np.square(np.load(tmp_path / "d.npy") - v).sum(1).mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    found = json.loads(done("eval", BASE, *how, "--limit", 500, "--json").out)
    assert found["results"][0]["prefix_mse"] == pytest.approx(errors, rel=1e-3)

    codec = Codec.load(model, precision="float32", threads=1)
    plain, _ = reference.encode(codec.network, codec.network.normalize(torch.from_numpy(v)), codec.search)
    slow = np.square(codec.decode(plain).numpy() - v).sum(1).mean()
    assert errors[-1] == pytest.approx(float(slow), rel=0.01)

    assert "ok" in done("verify", model).text and "ok" in done("verify", codes).text
    assert json.loads(done("info", model, "--json").out)["model"] == c.model_dump()
    done("search", QUERIES, *how, "--codes", codes, "-k", 3, "-o", tmp_path / "found.h5")


def stop_after(calls):
    """In place of `stop_on_signal`: as if Ctrl-C came at the n-th question whether to stop."""

    @contextlib.contextmanager
    def asked():
        numbers = iter(range(10_000))
        yield lambda: next(numbers) >= calls

    return asked


def test_a_product_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """A group asks at 2 × 10 iterations of k-means, then before each of 4 batches: here in those of the second."""
    out = tmp_path / "model.h5"
    arguments = ["train", LEARN, *SIZES, "--groups", 2, *SHORT, "--epochs", 4, "-o", out]
    with monkeypatch.context() as patch:
        patch.setattr(options, "stop_on_signal", stop_after(30))
        ended = run(*arguments)
    assert ended.code == 130
    assert f"{training_files(out)[0]} is kept" in ended.complaint and "--resume" in ended.complaint
    ended = run(*arguments)
    assert ended.code == 2 and "--resume" in ended.complaint
    done(*arguments, "--resume")
    assert [path.name for path in tmp_path.glob("*.h5")] == ["model.h5"]
    assert isinstance(Codec.load(out).network, ProductNetwork)
    done("verify", out)


@pytest.mark.parametrize("json_", [False, True])
def test_a_dry_run_of_a_product(json_, tmp_path):
    out = tmp_path / "model.h5"
    arguments = ["train", LEARN, *SIZES, "--groups", 2, "--opq", "--time", "5m", "-o", out, "--dry-run"]
    found = done(*arguments, *(["--json"] if json_ else []))
    if json_:
        assert json.loads(found.out)["code_bytes"] == 2
    else:
        assert "2 bytes a vector" in found.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--groups", 3], "3 groups do not divide D = 128"),
        (["--groups", 8], "8 groups do not divide M = 4"),
        (["--groups", 0], "groups: "),
        (["--opq"], "2 groups or more, or no OPQ"),
        (["--rank", -1], "rank: "),
        (["--rank", 17], "rank = 17 is above that of W_cat, E = 16"),
    ],
)
def test_options_that_cannot_be(arguments, says, tmp_path):
    ended = run("train", LEARN, *SIZES, *arguments, *SHORT, "-o", tmp_path / "model.h5")
    assert ended.code == 2
    assert says in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_groups_behind_an_ivf_are_refused(tmp_path):
    np.save(tmp_path / "c.npy", np.zeros((4, 128), np.float32))
    arguments = ["--groups", 2, "--ivf", tmp_path / "c.npy", *SHORT, "-o", tmp_path / "model.h5"]
    ended = run("train", LEARN, *SIZES, *arguments)
    assert ended.code == 2
    assert "without groups, or without an IVF" in ended.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["c.npy"]


def test_presets_show_the_rank():
    found = json.loads(done("presets", "--dim", 768, "--json").out)
    assert found["qinco1-LR"]["parameters"] == PRESETS["qinco1-LR"].model(768).parameters
    row = next(line for line in done("presets", "--dim", 768).text.splitlines() if "qinco1-LR" in line)
    assert row.split()[6] == "256"
