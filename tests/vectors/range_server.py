"""An HTTP server on loopback that gives ranges of files in memory, as well or as badly as a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Web:
    """A server's files and manners, and the ranges that it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    sizes: bool = True
    # statuses that the next requests for data are answered with; 0: the connection is cut in the middle
    refusals: list[int] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool = False) -> None:
        web: Web = self.server.web
        content = web.files.get(self.path.partition("?")[0].lstrip("/"))
        refusal = web.refusals.pop(0) if body and web.refusals else None
        status = refusal or (404 if content is None else 200)
        first, last = 0, len(content or b"") - 1
        if status == 200 and content is not None and (asked := self.headers.get("Range")) and web.ranges:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            assert match, asked
            first, last = int(match[1]), min(last, int(match[2] or last))
            web.asked.append((first, last + 1))
            status = 206 if first <= last else 416
        data = content[first : last + 1] if content is not None and status in (200, 206) else b""
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content or b'')}")
        if web.sizes:
            self.send_header("Content-Length", str(len(data)))
        if content is not None:
            self.send_header("ETag", hashlib.md5(content).hexdigest())
        self.close_connection = not web.sizes or refusal == 0
        self.end_headers()
        if body:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data[: len(data) // 2] if refusal == 0 else data)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients go when they please


@contextlib.contextmanager
def serve(**manners: Any) -> Iterator[Web]:
    """The server, in a thread."""
    web = Web(**manners)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.web = web  # type: ignore[attr-defined]
        web.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
