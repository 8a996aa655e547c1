"""Looking after Ray's processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from qinco_core.progress import Silent

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def processes(name: str) -> list[int]:
    """The processes of this test's cluster that Ray calls so, such as ray::work: its machines' children."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(name.encode()):
                machine = _parent(int(entry.name))
                if _parent(machine) == os.getpid():
                    found.append(int(entry.name))
    return found


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def kill(name: str) -> int:
    """Kill the first process that Ray calls so, as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (found := processes(name)):
        assert time.monotonic() < deadline, f"no process {name}"
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)
    return found[0]


class Once(Silent):
    """Does something when the first piece of the work is done."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work

    def advance(self, amount: float, **figures: float) -> None:
        if amount and self._work is not None:
            work, self._work = self._work, None
            work()

    @property
    def came(self) -> bool:
        return self._work is None
