"""`qinco train`: budgets, runs that were stopped, and runs that go on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from command_line import LEARN, SIZES, contents, done, finish, run, start, wait_until

from qinco_core.store import load_checkpoint, load_model, training_files

# a few seconds in many rounds
ROUNDS = [LEARN, *SIZES, "--limit", 3000, "--epochs", 60, "--epoch-size", 2048, "--seed", 3]


def events(model: Path) -> list[dict]:
    log = training_files(model)[1]
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "model.h5"
    return str(json.loads(done("train", *ROUNDS, "-o", out, "-q", "--json").out)["fingerprint"])


def test_what_a_run_leaves(model):
    stored = load_model(model)
    assert (stored.config.M, stored.config.K, stored.config.E, stored.config.H) == (4, 16, 16, 32)
    assert stored.training["preset"] == "qinco2-XS"
    checkpoint, log = training_files(model)
    assert log.name == "model.training.jsonl"
    assert [event["event"] for event in events(model)] == ["start", "round", "end"]
    assert not checkpoint.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(number, whole, tmp_path):
    out = tmp_path / "small.h5"
    checkpoint = tmp_path / "small.training.h5"
    process = start("train", *ROUNDS, "-o", out, "-q")
    wait_until(lambda: checkpoint.exists() and len(events(out)) >= 4, process)
    process.send_signal(number)
    ended = finish(process)
    if number == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL
    else:
        assert ended.code == 130
        assert f"{checkpoint} is kept" in ended.complaint
        assert "--resume" in ended.complaint
    assert not out.exists()
    _, _, position = load_checkpoint(checkpoint)
    assert 0 < position["samples"] < 60 * 2048

    ended = run("train", *ROUNDS, "-o", out, "-q")
    assert ended.code == 2
    assert "--resume" in ended.complaint
    before = checkpoint.read_bytes()
    ended = run("train", *ROUNDS, "-o", out, "-q", "--resume", "--lr", 0.001)
    assert ended.code == 1
    assert "training lr was None and is 0.001" in ended.complaint
    assert checkpoint.read_bytes() == before

    found = json.loads(done("train", *ROUNDS, "-o", out, "-q", "--resume", "--json").out)
    assert found["samples"] >= 60 * 2048
    assert found["fingerprint"] == whole
    assert [e["event"] for e in events(out) if e["event"] in ("start", "end")] == ["start", "end"]
    assert not checkpoint.exists()


def test_a_run_stopped_before_its_first_checkpoint_says_so(tmp_path):
    out = tmp_path / "model.h5"
    process = start("train", LEARN, "--preset", "qinco2-XS", "--threads", 1, "--time", "5m", "-o", out, "-q")
    wait_until(lambda: len(events(out)) == 1, process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    assert "start again" in ended.complaint
    assert list(contents(tmp_path)) == ["model.training.jsonl"]


def test_a_time_budget(tmp_path):
    arguments = [LEARN, *SIZES, "--limit", 3000, "-o", tmp_path / "model.h5"]
    found = json.loads(done("train", *arguments, "--time", "1.5s", "--json", "-q").out)
    assert 1.4 < found["seconds"] < 6
    assert found["config"]["seconds"] == 1.5
    assert found["samples"] > 2048


def test_samples_accumulate_and_val(tmp_path):
    arguments = [LEARN, *SIZES, "--limit", 3000, "-o", tmp_path / "model.h5"]
    arguments += ["--samples", 4096, "--batch", 512, "--accumulate", 2, "--val", 200, "--lr", 0.002]
    found = json.loads(done("train", *arguments, "--json", "-q").out)
    assert (found["val_vectors"], found["train_vectors"]) == (200, 2800)
    assert 4096 <= found["samples"] < 2 * 4096
    assert found["steps"] == pytest.approx(found["config"]["passes"] * found["samples"] / 1024, abs=4)
    assert found["peak_lr"] == 0.002


def test_the_published_recipe(tmp_path):
    arguments = [LEARN, *SIZES, "--limit", 3000, "-o", tmp_path / "model.h5", "--recipe", "paper"]
    found = json.loads(done("train", *arguments, "--epochs", 1, "--json", "-q").out)
    assert (found["config"]["A"], found["config"]["B"]) == (4, 4)


def test_resume_needs_a_checkpoint(tmp_path):
    ended = run("train", *ROUNDS, "-o", tmp_path / "model.h5", "--resume", "-q")
    assert ended.code == 2
    assert "model.training.h5 does not exist" in ended.complaint


def test_a_model_that_exists_is_kept(model):
    before = model.read_bytes()
    ended = run("train", *ROUNDS, "-o", model, "-q")
    assert ended.code == 2
    assert "--force" in ended.complaint
    assert model.read_bytes() == before


def test_the_store_is_the_default_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", LEARN, *SIZES, "--limit", 3000, "--samples", 2048, "-q"]
    done(*arguments)
    assert sorted(contents(tmp_path)) == ["qinco.store/model.h5", "qinco.store/model.training.jsonl"]
    before = (tmp_path / "qinco.store/model.h5").read_bytes()
    done(*arguments, "--force", "--seed", 1)
    assert (tmp_path / "qinco.store/model.h5").read_bytes() != before


@pytest.mark.parametrize("text", ["5x", "", "m", "0s", "-3m", "1e3", "5 m"])
def test_durations_that_are_none(text, tmp_path):
    ended = run("train", *ROUNDS[:-6], "--time", text, "-o", tmp_path / "model.h5")
    assert ended.code == 2
    assert "duration" in ended.complaint
    assert list(tmp_path.iterdir()) == []
