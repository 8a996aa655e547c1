"""Codes from one host to another: two network namespaces, a socket between them, and connections that are cut."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import LEARN, Ended, command, done, environment, finish

from qinco_core.store import open_codes, partial_path, read_header

RELAY = Path(__file__).with_name("relay.py")
CHUNK, ROWS = 16_384, 40_000
INSIDE = ["nsenter", "--preserve-credentials", "--user", "--net", "--target"]


@dataclass(frozen=True)
class Host:
    """Where commands run: a prefix of theirs, and the address to be reached at."""

    address: str
    prefix: tuple[str, ...] = ()

    def start(self, arguments: list[str], **pipes: object) -> subprocess.Popen[bytes]:
        options = {"stderr": subprocess.PIPE, "env": environment()} | pipes
        return subprocess.Popen([*self.prefix, *arguments], **options)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Hosts:
    """Two of them."""

    sender: Host
    receiver: Host
    port: int

    def transfer(self, arguments: list[str], out: Path, *more: str, cut: int | None = None) -> tuple[Ended, Ended, int]:
        """What `arguments` write to stdout goes to `qinco merge`; gives both ends, and how many bytes went over."""
        address = [self.receiver.address, str(self.port)]
        relay = [sys.executable, str(RELAY)]
        pipe = {"stdout": subprocess.PIPE}
        listening = self.receiver.start([*relay, "receive", *address], **pipe)
        merging = self.receiver.start(
            command("merge", "-", "-o", out, "-q", *more), stdin=listening.stdout, stdout=subprocess.PIPE
        )
        making = self.sender.start(arguments, **pipe)
        limit = [] if cut is None else [str(cut)]
        sending = self.sender.start([*relay, "send", *address, *limit], stdin=making.stdout, **pipe)
        for process in (listening, making):  # the pipes are their readers' alone now
            assert process.stdout is not None
            process.stdout.close()
            process.stdout = None
        received, relayed = finish(merging), finish(sending)
        assert relayed.code == 0, relayed.err
        finish(listening)
        return finish(making), received, int(relayed.out)


def steps(*lines: str) -> None:
    for line in lines:
        subprocess.run(line.split(), check=True, capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def held(arguments: list[str]) -> Iterator[int]:
    """A process that does nothing in a new network namespace, by its id; both go in the end."""
    process = subprocess.Popen([*arguments, "sleep", "600"])
    here = Path("/proc/self/ns/net").readlink()
    try:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{process.pid}/ns/net").readlink() == here:
            if process.poll() is not None or time.monotonic() > deadline:
                raise subprocess.CalledProcessError(process.returncode or 1, arguments)
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def namespaces() -> Iterator[Hosts]:
    """Two network namespaces in a user namespace of their own, which needs no rights on this machine."""
    with held(["unshare", "--user", "--map-root-user", "--net"]) as a:
        inside_a = [*INSIDE, str(a)]
        with held([*inside_a, "unshare", "--net"]) as b:
            at = {"left": " ".join(inside_a), "right": " ".join([*INSIDE, str(b)])}
            steps(f"{at['left']} ip link add left type veth peer name right netns {b}")
            for number, name in enumerate(at, start=1):
                steps(f"{at[name]} ip addr add 10.9.0.{number}/24 dev {name}", f"{at[name]} ip link set {name} up")
            ends = [Host(f"10.9.0.{number}", tuple(at[name].split())) for number, name in enumerate(at, start=1)]
            yield Hosts(ends[0], ends[1], 5000)


@pytest.fixture(scope="module", params=["namespaces", "localhost"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    if request.param == "localhost":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        yield Hosts(Host("127.0.0.1"), Host("127.0.0.1"), port)
        return
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no network namespaces without {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(namespaces())
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        yield found


def encoding(model: Path, *more: object) -> list[str]:
    return command("encode", LEARN, "--model", model, "-o", "-", "--threads", 1, "-q", *more)


@pytest.fixture(scope="module")
def saved(model: Path, made: Path) -> Path:
    """The stream of all codes."""
    path = made / "learn.arrow"
    path.write_bytes(done("encode", LEARN, "--model", model, "-o", "-", "--threads", 1, "-q").out)
    return path


@pytest.fixture(scope="module")
def whole(saved: Path, made: Path) -> Path:
    """What becomes of it when nothing is cut."""
    done("merge", saved, "-o", made / "learn.h5", "-q")
    return made / "learn.h5"


def same(a: Path, b: Path) -> bool:
    with open_codes(a) as ours, open_codes(b) as theirs:
        rows = zip(ours.rows(0, len(ours)), theirs.rows(0, len(theirs)), strict=True)
        assert all(np.array_equal(x, y) if x is not None else y is None for x, y in rows)
        return ours.header.fingerprint == theirs.header.fingerprint


def test_a_stream_becomes_what_encoding_to_a_file_gives(model: Path, whole: Path, tmp_path: Path) -> None:
    done("encode", LEARN, "--model", model, "-o", tmp_path / "direct.h5", "--threads", 1, "-q")
    assert same(tmp_path / "direct.h5", whole)


def test_a_cut_transfer_goes_on_and_is_indexed(hosts: Hosts, model: Path, saved: Path, whole: Path, tmp_path: Path):
    out, size = tmp_path / "codes.h5", saved.stat().st_size
    made, received, over = hosts.transfer(encoding(model), out, cut=size // 2)
    assert (over, made.code, made.err) == (size // 2, 141, "")
    assert received.code == 1
    assert received.complaint.startswith("qinco: the stream was cut")
    assert f"--skip {CHUNK} " in received.complaint and received.complaint.endswith(f"{out} --resume")
    assert list(tmp_path.iterdir()) == [partial_path(out)]
    assert json.loads(done("info", partial_path(out), "--json").out)["vectors"] == CHUNK

    made, received, over = hosts.transfer(encoding(model, "--skip", CHUNK), out, "--resume", "--json")
    assert (made.code, received.code) == (0, 0), (made.err, received.err)
    assert over < 0.6 * size
    assert list(tmp_path.iterdir()) == [out]
    assert same(out, whole)
    assert json.loads(received.out)["fingerprint"] == read_header(whole).fingerprint
    done("index", out, "--model", model, "--train", LEARN, "-o", tmp_path / "index", "--threads", 1, "-q")
    assert json.loads(done("info", tmp_path / "index", "--json").out)["vectors"] == ROWS


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.0, 0),
        pytest.param(0.001, 0, marks=pytest.mark.slow),
        pytest.param(0.3, 0, marks=pytest.mark.slow),
        pytest.param(0.7, CHUNK, marks=pytest.mark.slow),
        (0.9997, 2 * CHUNK),
    ],
)
def test_wherever_it_is_cut(
    hosts: Hosts, share: float, kept: int, model: Path, saved: Path, whole: Path, tmp_path: Path
):
    """In the header, in a chunk, and within the closing record, when all codes are over."""
    out, size = tmp_path / "codes.h5", saved.stat().st_size
    _, received, over = hosts.transfer(["cat", str(saved)], out, cut=max(1, int(share * size)))
    assert over < size
    assert received.code == 1 and "send it again" in received.complaint
    assert list(tmp_path.iterdir()) == ([partial_path(out)] if kept else [])
    skip = int(received.complaint.partition("--skip ")[2].split()[0]) if kept else 0
    assert skip == kept
    rest = saved.read_bytes()
    if skip:
        rest = done("encode", LEARN, "--model", model, "-o", "-", "--threads", 1, "-q", "--skip", skip).out
    done("merge", "-", "-o", out, "-q", "--resume", stdin=rest)
    assert same(out, whole)
