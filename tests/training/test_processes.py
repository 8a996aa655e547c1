"""Several processes that train one model: what one would train, by as many shares of every batch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qinco_core.store import load_model

SIZES = ["--preset", "qinco2-XS", "-M", "4", "--K", "64", "--de", "32", "--dh", "32", "-A", "4", "-B", "4"]
SMALL = [*SIZES, "--limit", "12000", "--val", "1000", "--threads", "1", "--device", "cpu", "--precision", "float32"]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# the launcher of several GPUs, which asks for none
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no"]


def command(processes: int, *arguments: object, launcher: list[str] = TORCHRUN) -> list[str]:
    launch = ["-m", *launcher] if processes > 1 else []
    return [sys.executable, *launch, "-m", "qinco_cli", "train", *map(str, arguments)]


def train(processes: int, *arguments: object, launcher: list[str] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    line = command(processes, *arguments, launcher=launcher)
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def events(model: Path, kind: str) -> list[dict[str, Any]]:
    lines = model.with_name(f"{model.stem}.training.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def alone(sift_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that one process trained for three rounds."""
    model = tmp_path_factory.mktemp("alone") / "model.h5"
    train(1, sift_learn, *SMALL, "--epochs", 3, "-o", model)
    return model


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow)],
)
def test_loss_curves_agree(launcher: list[str], alone: Path, sift_learn: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.h5"
    done = train(2, sift_learn, *SMALL, "--epochs", 3, "-o", model, "--json", launcher=launcher)
    assert json.loads(done.stdout)["output"] == str(model)  # one document, of one process
    ours, theirs = events(model, "round"), events(alone, "round")
    assert [r["samples"] for r in ours] == [r["samples"] for r in theirs]
    assert [r["steps"] for r in ours] == [r["steps"] for r in theirs]
    for name in ("val_mse", "loss", "mse"):
        np.testing.assert_allclose([r[name] for r in ours], [r[name] for r in theirs], rtol=2e-3)
    assert all(r["vectors/s of rank 0"] > 0 and r["vectors/s of rank 1"] > 0 for r in ours)
    assert not model.with_name("model.training.h5").exists()


@contextlib.contextmanager
def after_round_1(
    *arguments: object, processes: int, launcher: list[str] = TORCHRUN
) -> Iterator[subprocess.Popen[str]]:
    """A run that has finished its first round; what it says from then on is for the caller to read."""
    line = command(processes, *arguments, launcher=launcher)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any(line.startswith("round 1") for line in running.stderr)
        yield running


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_resumed_by_another_number_of_processes(
    first: int, then: int, alone: Path, sift_learn: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.h5"
    arguments = [sift_learn, *SMALL, "--epochs", 3, "-o", model]
    with after_round_1(*arguments, processes=first) as running:
        running.send_signal(signal.SIGINT)
        rest = running.communicate(timeout=240)[1]
    assert running.returncode != 0
    assert "--resume" in rest
    train(then, *arguments, "--resume")
    ours, theirs = events(model, "round"), events(alone, "round")
    np.testing.assert_allclose([r["val_mse"] for r in ours], [r["val_mse"] for r in theirs], rtol=2e-3)


def test_a_failed_process_costs_its_round(alone: Path, sift_learn: Path, tmp_path: Path) -> None:
    """torchrun starts all of them again, and they go on by themselves."""
    model = tmp_path / "model.h5"
    arguments = [sift_learn, *SMALL, "--epochs", 3, "-o", model]
    with after_round_1(*arguments, processes=2, launcher=[*TORCHRUN, "--max-restarts=1"]) as running:
        os.kill(rank_1(running.pid), signal.SIGKILL)
        rest = running.communicate(timeout=240)[1]
    assert running.returncode == 0, rest
    assert "continuing after round" in rest
    ours, theirs = events(model, "round"), events(alone, "round")
    np.testing.assert_allclose(ours[-1]["val_mse"], theirs[-1]["val_mse"], rtol=2e-3)
    assert load_model(model).training["samples"] == ours[-1]["samples"]


def rank_1(launcher: int) -> int:
    """The process id of the second process that a launcher has started."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = status.read_bytes().split(b"\0")
            parent = re.search(r"^PPid:\s+(\d+)", (status.parent / "status").read_text(), re.MULTILINE)
        except OSError:
            continue
        if b"RANK=1" in environment and parent is not None and int(parent[1]) == launcher:
            return int(status.parent.name)
    raise AssertionError("there is no second process")
