"""Servers on loopback that serve files from memory or a folder, as well or as badly as a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Web:
    """An HTTP server's files and manners."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    heeds_if_range: bool = True
    validators: bool = True
    # whether parts of a file tell them too, and whether sizes are told
    parts_tell: bool = True
    sizes: bool = True
    # a Content-Range that is sent to those who asked for no range
    unasked: str | None = None
    # some call a .gz file a packed answer
    encoding: str | None = None
    kind: str | None = None
    date: str | None = None
    # whether a cut connection stays open, and silent
    stalls: bool = False
    # how many bytes of their answers the next connections get
    cuts: list[int] = field(default_factory=list)
    # statuses that the next requests are answered with
    refusals: list[int] = field(default_factory=list)
    heads: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def asked_from(self) -> list[str | None]:
        """The ranges that were asked for, in order."""
        return [range for method, _, range in self.requests if method == "GET"]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        web = self.server.web
        if web.heads:
            self._refuse(web.heads)
        else:
            self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, body: bool) -> None:
        web: Web = self.server.web
        asked = self.headers.get("Range")
        web.requests.append((self.command, self.path, asked))
        if web.refusals and body:
            self._refuse(web.refusals.pop(0))
            return
        content = web.files.get(self.path.lstrip("/"))
        if content is None:
            self._refuse(404)
            return
        etag = _etag(content)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and web.ranges else 0
        if web.heeds_if_range and self.headers.get("If-Range") not in (None, web.date or etag):
            start = 0
        if start and start >= len(content):
            self._refuse(416)
            return
        self.send_response(206 if start or web.unasked else 200)
        for name, value in _told(web, content, start).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if body:
            self._send(content[start:], web)

    def _send(self, content: bytes, web: Web) -> None:
        if web.cuts:
            content = content[: web.cuts.pop(0)]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)
            while web.stalls:
                time.sleep(0.01)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _told(web: Web, content: bytes, start: int) -> dict[str, str | None]:
    """The headers of an answer."""
    tells = web.validators and (web.parts_tell or not start)
    return {
        "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}" if start else web.unasked,
        "Content-Length": str(len(content) - start) if web.sizes else None,
        "Connection": None if web.sizes else "close",
        "ETag": _etag(content) if tells else None,
        "Last-Modified": web.date,
        "Content-Type": web.kind,
        "Content-Encoding": web.encoding,
    }


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, web: Web) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.web = web
        web.port = self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of clients that were interrupted
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve_http(**manners: Any) -> Iterator[Web]:
    """An HTTP server in a thread."""
    web = Web(**manners)
    with _Server(web) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Ftp:
    """An FTP server's folder and manners."""

    folder: Path
    cuts: list[int] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    port: int = 0

    def url(self, name: str) -> str:
        return f"ftp://127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def serve_ftp(folder: Path) -> Iterator[Ftp]:
    """An anonymous FTP server in a thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the modules it is made with
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import DTPHandler, FTPHandler
        from pyftpdlib.ioloop import IOLoop
        from pyftpdlib.servers import FTPServer

    ftp = Ftp(folder)

    class Data(DTPHandler):  # type: ignore[misc]
        left: int | None = None

        def send(self, data: bytes) -> int:
            if self.left is None and ftp.cuts:
                self.left = ftp.cuts.pop(0)
            if self.left is not None and len(data) > self.left:
                super().send(data[: self.left])
                self.cmd_channel.close()
                return 0
            if self.left is not None:
                self.left -= len(data)
            return int(super().send(data))

    class Control(FTPHandler):  # type: ignore[misc]
        authorizer = DummyAuthorizer()
        dtp_handler = Data
        use_sendfile = False

        def ftp_REST(self, line: str) -> None:
            ftp.restarts.append(line)
            super().ftp_REST(line)

    Control.authorizer.add_anonymous(str(folder))
    loop = IOLoop()
    server = FTPServer(("127.0.0.1", 0), Control, ioloop=loop)
    ftp.port = server.address[1]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            loop.loop(timeout=0.01, blocking=False)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ftp
    finally:
        stop.set()
        thread.join()
        server.close_all()


@dataclass(frozen=True)
class Surroundings:
    """A cache and a registry of a test's own."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def register(self, text: str) -> Path:
        path = self.folder / "datasets.toml"
        path.write_text(text, "utf-8")
        return path


def surroundings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """Keep out the user's own registry, cache and proxies; download without pauses."""
    import qinco_core.datasets.fetching as fetching

    here = Surroundings(folder)
    here.register("")
    monkeypatch.setenv("QINCO_CACHE", str(here.cache))
    monkeypatch.setenv("QINCO_DATASETS", str(folder / "datasets.toml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("NO_PROXY", "*")
    patience = fetching.Patience(retries=3, pause=0, timeout=5)
    monkeypatch.setattr(fetching, "Patience", lambda: patience)
    return here
