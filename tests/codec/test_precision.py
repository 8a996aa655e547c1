"""How many threads work where nobody says."""

from __future__ import annotations

import os

import pytest
import torch

from qinco_core.codec.precision import plan
from qinco_core.errors import DeviceError


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QINCO_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan("cpu").threads == torch.get_num_threads()
    monkeypatch.setenv("QINCO_THREADS", "3")
    assert plan("cpu").threads == 3
    assert plan("cpu", threads=1).threads == 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_no_number_of_threads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QINCO_THREADS", text)
    with pytest.raises(DeviceError, match=f"QINCO_THREADS is '{text}'"):
        plan("cpu")


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # what torchrun asks for where nobody says
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert plan("cpu").threads == max(1, cores // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(4 * cores))
    assert plan("cpu").threads == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # somebody did
    assert plan("cpu").threads == 3
