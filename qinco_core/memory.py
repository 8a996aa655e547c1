"""How much memory this process may take, so that what is kept in memory is no more than there is room for."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def share(most: int, part: int = 4) -> int:
    """`most` bytes, or where memory is short a part, by default a quarter, of what this process may still take."""
    return min(most, available() // part)


def available() -> int:
    """Bytes that this process may still take.

    The least of the machine's memory and that of the process's cgroups, shared out among the processes that a
    launcher started here, and of the limits of the process itself (`ulimit -d`, `ulimit -v`); less what it has taken.
    What others happen to have taken does not count: the same command finds the same number on the same machine.
    """
    taken = _taken()
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    whole = min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()])
    left = [whole // together - taken.get("RssAnon", 0)]
    for limit, name in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            left.append(most - taken.get(name, 0))
    return max(0, min(left))


def _taken() -> dict[str, int]:
    """What the process has taken, in bytes, by the names of Linux; empty on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(text.split()[0]) << 10 for name, text in (line.split(":", 1) for line in lines) if "kB" in text}


def _cgroup_limits() -> Iterator[int]:
    """The limits of the process's cgroup and of those around it, of version 2 or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, file = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        folder = root / place.lstrip("/")
        for around in (folder, *folder.parents):
            if around.is_relative_to(root) and (text := _read(around / file)).isdigit():
                yield int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # a container sees its own cgroup as the root, and not by the name that the host gave it
        return ""
