"""`qinco eval`: figures, recall, baselines, the picture, and what it needs for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, LEARN, QUERIES, TRUTH, contents, done, environment, run

from qinco_core.vectors import open_vectors, write_vectors

PNG = b"\x89PNG\r\n\x1a\n"


def measured(*arguments: object) -> dict:
    return dict(json.loads(done("eval", *arguments, "--threads", 1, "-q", "--json").out))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2,000 base vectors as a file of their own."""
    path = tmp_path_factory.mktemp("small") / "base.fvecs"
    with open_vectors(BASE, limit=2000) as file:
        write_vectors(path, file.read(0, 2000).astype(np.float32))
    return path


def test_errors_are_those_of_the_decoded_vectors(model, decoded):
    with open_vectors(BASE) as file:
        x = file.read(0, len(file)).astype(np.float64)
    mse = np.square(decoded - x).sum(1).mean()
    (ours,) = measured(BASE, "--model", model)["results"]
    assert ours["mse"] == pytest.approx(mse, rel=1e-4)
    assert ours["relative_mse"] == pytest.approx(mse / np.square(x - x.mean(0)).sum(1).mean(), rel=1e-4)
    assert ours["prefix_mse"] == sorted(ours["prefix_mse"], reverse=True)
    assert (len(ours["prefix_mse"]), ours["bytes"], ours["prefix_mse"][-1]) == (4, 2, ours["mse"])
    assert ours["encode_rate"] > 0
    assert ours["decode_rate"] > 0


def test_given_codes_are_checked_and_not_made(model, codes, stream, tmp_path):
    (tmp_path / "base.arrow").write_bytes(stream)
    (encoded,) = measured(BASE, "--model", model)["results"]
    for name in (codes, tmp_path / "base.arrow"):
        (checked,) = measured(BASE, "--model", model, "--codes", name)["results"]
        assert checked["mse"] == pytest.approx(encoded["mse"], rel=1e-6)
        assert checked["encode_rate"] is None


def test_recall_with_given_and_with_computed_truth(model):
    given = measured(BASE, "--model", model, "--queries", QUERIES, "--groundtruth", TRUTH)["results"][0]["recall"]
    computed = measured(BASE, "--model", model, "--queries", QUERIES)["results"][0]["recall"]
    assert list(given) == ["1", "10", "100"]
    assert 0 < given["1"] < given["10"] < given["100"] <= 1
    assert given == computed


def test_the_validation_part_of_the_training_file(model):
    found = measured("--valset", LEARN, "--limit", 3000, "--model", model)
    part = measured(LEARN, "--skip", 2700, "--limit", 300, "--model", model)
    assert found["count"] == 300
    assert found["results"][0]["mse"] == pytest.approx(part["results"][0]["mse"], rel=1e-6)


def test_a_wider_beam_is_better(model, small):
    narrow, wide = (
        measured(small, "--model", model, "-A", A, "-B", B, "--exact")["results"][0]["mse"]
        for A, B in ((2, 1), (16, 16))
    )
    assert wide < narrow


def test_baselines_and_picture(model, small, tmp_path):
    picture = tmp_path / "rd.png"
    ended = done(
        *("eval", small, "--model", model, "--train", LEARN, "--threads", 1),
        *("--baseline", "PQ", "--baseline", "RQ", "--queries", QUERIES, "--plot", picture),
    )
    assert picture.read_bytes().startswith(PNG)
    lines = ended.text.splitlines()
    assert lines[0].split()[:7] == ["quantizer", "bytes", "MSE", "relative", "R@1", "R@10", "R@100"]
    assert [line.split()[:2] for line in lines[1:4]] == [["qinco2-XS", "2"], ["PQ", "2"], ["RQ", "2"]]
    assert lines[4].startswith("prefix")
    assert len(lines) == 9
    assert str(picture) in ended.err
    before = contents(tmp_path)
    ended = run("eval", small, "--model", model, "--plot", picture, "-q")
    assert ended.code == 2
    assert "--force" in ended.complaint
    assert contents(tmp_path) == before


def test_baselines_learn_from_the_rest_of_the_validation_file(model):
    found = measured("--valset", LEARN, "--limit", 3000, "--model", model, "--baseline", "PQ")
    assert [result["name"] for result in found["results"]] == ["qinco2-XS", "PQ"]
    assert found["results"][1]["train_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "a file XB, or --valset XT"),
        ([BASE, "--valset", LEARN], 2, "a file XB, or --valset XT"),
        ([BASE, "--baselines"], 2, "--train"),
        ([BASE, "--baseline", "ABC", "--train", LEARN], 2, "no baseline 'ABC'; there are PQ"),
        ([BASE, "--groundtruth", TRUTH], 2, "--queries"),
        ([BASE, "--queries", "{tmp}/none.fvecs"], 2, "none.fvecs does not exist"),
        ([BASE, "--queries", TRUTH], 1, "dimension 100"),
        ([BASE, "--queries", QUERIES, "--groundtruth", QUERIES, "--limit", 100], 2, "ground truth"),
        ([BASE, "--queries", BASE, "--groundtruth", TRUTH], 2, "500 rows for 10000 queries"),
        ([BASE, "--queries", QUERIES, "--groundtruth", BASE], 2, "holds uint8"),
        ([BASE, "--queries", QUERIES, "--groundtruth", TRUTH, "--limit", 100], 2, "leave --groundtruth out"),
        ([BASE, "--codes", "{codes}", "--limit", 100], 2, "100 vectors"),
        ([BASE, "--codes", "none"], 2, "none.h5 does not exist"),
        (["--valset", QUERIES, "--limit", 100], 2, "validated"),
        ([BASE, "--limit", 100, "--train", "{text}", "--baseline", "PQ"], 1, "dimension 384"),
    ],
)
def test_what_cannot_be_measured(arguments, code, says, model, codes, tmp_path):
    text = BASE.with_name("text_base.npy")
    filled = [str(a).format(tmp=tmp_path, codes=codes, text=text) for a in arguments]
    ended = run("eval", *filled, "--model", model, "-q", "--plot", tmp_path / "p.png")
    assert (ended.code, ended.out) == (code, b"")
    assert says in ended.complaint
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("faiss", ["--baselines", "--train", str(LEARN)], 'pip install "qinco[cpu]"'),
        ("matplotlib", ["--plot", "p.png"], 'pip install "qinco[plot]"'),
    ],
)
def test_what_is_not_installed_names_its_extra(package, options, extra, model, tmp_path):
    arguments = ["qinco", "eval", str(BASE), "--model", str(model), "-q", *options]
    script = f"import sys; sys.modules[{package!r}] = None; sys.argv = {arguments!r}\n"
    script += "from qinco_cli.main import main; main()"
    call = [sys.executable, "-c", script]
    ended = subprocess.run(call, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("qinco: this needs ")
    assert extra in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert contents(tmp_path) == {}
