"""How much memory a process may take: of its own limits, of a cgroup's, and shared out among ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qinco_core import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and what is taken are those of Linux")

_LIMITED = """
import resource
from qinco_core.memory import available, share
whole = available()
for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    taken = int(line.split()[1]) * 1024
    resource.setrlimit(limit, (taken + (64 << 20), resource.RLIM_INFINITY))
    assert abs(available() - (64 << 20)) < 2 << 20, available()
    held = bytearray(32 << 20)
    assert abs(available() - (32 << 20)) < 2 << 20, available()
    assert share(1 << 30) < 9 << 20 and share(1000) == 1000
    del held
    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert abs(available() - whole) < 64 << 20
"""


def test_limits_of_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_ranks_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.available()
    assert 0 < whole <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.available() < whole / 3


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_cgroups(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of those around the process counts, and "max" is none."""
    text = Path("/proc/self/cgroup").read_text()
    line = next(
        (
            line
            for line in text.splitlines()
            if line.startswith("0::" if version == 2 else "")
            and (version == 2 or "memory" in line.split(":")[1].split(","))
        ),
        None,
    )
    if line is None:
        pytest.skip(f"no cgroup of version {version} here")
    root, file = (tmp_path, "memory.max") if version == 2 else (tmp_path / "memory", "memory.limit_in_bytes")
    folder = root / line.split(":", 2)[2].lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("max\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert memory.available() > 1 << 30
    (root / file).write_text(f"{1 << 30}\n")
    assert memory.available() <= 1 << 30
