"""Every command works on ten times the memory that it is given.

A process runs a command on the sample, which loads and compiles all that it needs. Then its limit becomes what it
has taken by then and ALLOWED bytes more (RLIMIT_DATA: private memory that can be written, which neither the page
cache nor maps of files count for), and it runs the same command on ten times ALLOWED of vectors, made of the sample.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, QUERIES, environment

ALLOWED = 64 << 20
_COUNT, _D = 10 * ALLOWED // 128, 128

_RUN = """
import resource, sys
from pathlib import Path

from qinco_cli.main import main

def run(folder):
    sys.argv = ["qinco", *(text.replace("HERE", folder) for text in sys.argv_given)]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(end.code)

allowed, small, large, *sys.argv_given = sys.argv[1:]
run(small)
(taken,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
limit = int(taken.split()[1]) * 1024 + int(allowed)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    bytearray(2 * int(allowed))
except MemoryError:
    run(large)
else:
    sys.exit("there is no limit")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The sample, and ten times ALLOWED of vectors near to it, gone after the tests; both with five queries."""
    small, large = (tmp_path_factory.mktemp(name) for name in ("small", "large"))
    for folder in (small, large):
        (folder / "query.fvecs").write_bytes(QUERIES.read_bytes()[: 5 * (4 + 4 * _D)])
    (small / "base.u8bin").write_bytes(BASE.read_bytes())
    sample, rng = np.fromfile(BASE, np.uint8)[8:].reshape(-1, _D), np.random.default_rng(0)
    with (large / "base.u8bin").open("wb") as handle:
        handle.write(np.array([_COUNT, _D], "<u4").tobytes())
        for at in range(0, _COUNT, len(sample)):
            rows = sample[: _COUNT - at].astype(np.int16)
            handle.write((rows + rng.integers(-3, 4, rows.shape)).clip(0, 255).astype(np.uint8).tobytes())
    yield small, large
    for path in sorted(large.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


_SIZES = "--preset qinco2-XS -M 2 --K 16 --de 8 --dh 16 -A 2 -B 2"
_COMMANDS = {
    "centroids": "HERE/base.u8bin --k 64 --iterations 3 --store HERE",
    "train": f"HERE/base.u8bin {_SIZES} --ivf HERE/centroids.h5 --samples 40000 --epoch-size 20000 --store HERE",
    "encode": "HERE/base.u8bin --store HERE",
    "pairwise": "HERE/base.u8bin --store HERE --codes base --tables 1",
    "index": "base --store HERE",
    "search": "HERE/query.fvecs --store HERE --rerank exact:HERE/base.u8bin -o HERE/found.h5",
    "search --codes base": "HERE/query.fvecs --store HERE -o HERE/all.h5",
    "groundtruth": "HERE/base.u8bin HERE/query.fvecs -k 10 -o HERE/near.ivecs",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and what is taken are those of Linux")
def test_ten_times_the_memory(folders: tuple[Path, Path]) -> None:
    for command, arguments in _COMMANDS.items():
        given = [*command.split(), *arguments.split(), "--threads", "1", "-q"]
        process = [sys.executable, "-c", _RUN, str(ALLOWED), *map(str, folders), *given]
        ended = subprocess.run(process, capture_output=True, env=environment(), text=True, timeout=1800)
        assert ended.returncode == 0, (command, ended.stderr)
    small, large = (folder / "near.ivecs" for folder in folders)
    assert small.stat().st_size == large.stat().st_size
