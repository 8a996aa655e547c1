"""Running the command line: in this process where that will do, as a process of its own where it is the point."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from qinco_cli.main import main

DATA = Path(__file__).parents[2] / "examples" / "data"
LEARN, BASE = DATA / "sift_learn.bvecs", DATA / "sift_base.u8bin"
QUERIES, TRUTH, TEXT = DATA / "sift_query.fvecs", DATA / "sift_groundtruth.ivecs", DATA / "text_base.npy"

# a model that trains in a second
SIZES = [
    *("--preset", "qinco2-XS", "--threads", "1"),
    *("-M", "4", "--K", "16", "--de", "16", "--dh", "32", "-A", "4", "-B", "4"),
]
PATIENCE = 240


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("qinco: "), self.err
        return lines[0]


def run(*arguments: object, stdin: bytes = b"") -> Ended:
    """Run a command in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["qinco", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
    out.flush()
    return Ended(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


def done(*arguments: object, stdin: bytes = b"") -> Ended:
    """Run a command in this process that must succeed."""
    ended = run(*arguments, stdin=stdin)
    assert ended.code == 0, ended.err
    return ended


def command(*arguments: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "qinco_cli", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Quiet surroundings: one thread, no store of the user's."""
    kept = {name: value for name, value in os.environ.items() if name != "QINCO_STORE"}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | more


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """Start a command as a process with pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.Popen(command(*arguments), **(pipes | options))  # type: ignore[call-overload, no-any-return]


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for a process."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out or b"", err.decode())


def spawn(*arguments: object, **options: object) -> Ended:
    """Run a command as a process."""
    return finish(start(*arguments, **options))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for something that a running process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def contents(folder: Path, without: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(tuple(without))
    }
