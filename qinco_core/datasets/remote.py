"""A file on a server, read from any byte on: over http and https with requests, over ftp with ftplib."""

from __future__ import annotations

import contextlib
import ftplib
import re
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qinco_core.errors import DownloadError

BLOCK = 1 << 16  # what of it has come when a connection ends is lost
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class Broken(Exception):  # noqa: N818
    """A connection that failed; another try may do."""


@dataclass(frozen=True)
class Stream:
    """What a server sends.

    Attributes:
        start: the first byte of it: the one asked for, or 0 where the server sends the whole file.
        total: the size of the whole file, if the server tells.
        validator: what would differ if the file were another one (an ETag, a date), if the server tells.
        blocks: the bytes.
    """

    start: int
    total: int | None
    validator: str | None
    blocks: Iterator[bytes]


def open_remote(
    url: str, start: int, validator: str | None, timeout: float
) -> contextlib.AbstractContextManager[Stream]:
    """A file from byte `start` on, if it still is what `validator` says; else from its beginning.

    Raises:
        DownloadError: the server refuses it for good.
        Broken: it may yet be had.
    """
    opened = _open_ftp if url.startswith("ftp:") else _open_http
    return opened(url, start, validator, timeout)


def remote_size(url: str, timeout: float) -> int | None:
    """The size that the server tells, if it does.

    Raises:
        DownloadError: the server refuses the file for good.
        Broken: it could not be asked.
    """
    return _ftp_size(url, timeout) if url.startswith("ftp:") else _http_size(url, timeout)


@contextlib.contextmanager
def _broken_http(url: str) -> Iterator[None]:
    import requests
    import urllib3

    try:
        yield
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.TooManyRedirects,
        urllib3.exceptions.LocationValueError,
    ) as error:
        raise DownloadError(f"{url} cannot be fetched ({error}); check the address") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Broken(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The innermost cause, in its own words."""
    while inner := getattr(error, "reason", None) or error.__cause__ or error.__context__:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _http_headers() -> dict[str, str]:
    from importlib.metadata import version

    # a server must not pack what is counted in bytes of the file
    return {"Accept-Encoding": "identity", "User-Agent": f"qinco/{version('qinco')}"}


@contextlib.contextmanager
def _open_http(url: str, start: int, validator: str | None, timeout: float) -> Iterator[Stream]:
    import requests

    headers = _http_headers()
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    with _broken_http(url), requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        first, total = _range(response)
        found = _validator(response.headers)
        if first and not start:
            raise DownloadError(f"{url}: the server sends another part of the file than was asked for; try a mirror")
        other = first != start or (validator and found and found != validator)
        if start and (response.status_code == 416 or (response.status_code == 206 and other)):
            response.close()
            with _open_http(url, 0, None, timeout) as whole:
                yield whole
            return
        _check_status(url, response.status_code)
        _check_kind(url, response.headers)
        yield Stream(first, total, found, _http_blocks(response, url))


def _http_blocks(response: Any, url: str) -> Iterator[bytes]:
    with _broken_http(url):
        # not decoded: some servers call a .gz file a packed answer
        yield from response.raw.stream(BLOCK, decode_content=False)


def _range(response: Any) -> tuple[int, int | None]:
    """The first byte that comes, and the size of the whole file."""
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(headers: Any) -> str | None:
    etag: str | None = headers.get("ETag")
    if etag and not etag.startswith("W/"):  # weak ones do not stand for the very bytes
        return etag
    date: str | None = headers.get("Last-Modified")
    return date


def _check_status(url: str, status: int) -> None:
    if status in (200, 206):
        return
    if status in _PASSING:
        raise Broken(f"the server answers {status}")
    meaning = {401: "wants a password", 403: "forbids it", 404: "has no such file", 410: "has no such file any more"}
    what = meaning.get(status, "refuses it")
    raise DownloadError(f"{url}: the server {what} (HTTP {status}); check the address in the registry")


def _check_kind(url: str, headers: Any) -> None:
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise DownloadError(
            f"{url}: the server sends a web page, not the file; check the address, or log in to the network"
        )
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity" and not urllib.parse.urlsplit(url).path.lower().endswith((".gz", ".tgz")):
        raise DownloadError(f"{url}: the server sends it packed ({encoding}), which it must not; try a mirror")


def _http_size(url: str, timeout: float) -> int | None:
    import requests

    with (
        _broken_http(url),
        requests.head(url, headers=_http_headers(), timeout=timeout, allow_redirects=True) as answer,
    ):
        if answer.status_code == 405:  # asked for the head alone, some refuse
            return None
        _check_status(url, answer.status_code)
        return _range(answer)[1]


@contextlib.contextmanager
def _broken_ftp(url: str) -> Iterator[None]:
    try:
        yield
    except ftplib.error_perm as error:
        raise DownloadError(f"{url}: the server refuses it ({error}); check the address in the registry") from error
    except UnicodeError as error:  # also a host that no name can be
        raise DownloadError(f"{url} cannot be fetched ({error}); check the address") from error
    except ftplib.all_errors as error:
        raise Broken(_reason(error)) from error


@contextlib.contextmanager
def _connected(url: str, timeout: float) -> Iterator[tuple[ftplib.FTP, str]]:
    """A session with the server, and the path on it."""
    parts = urllib.parse.urlsplit(url)
    with contextlib.closing(ftplib.FTP(timeout=timeout)) as ftp:
        with _broken_ftp(url):
            ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
            ftp.login(urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password or ""))
            ftp.voidcmd("TYPE I")
        yield ftp, urllib.parse.unquote(parts.path)


def _told(ask: Callable[[], Any]) -> Any:
    """The answer, or None from a server that does not know the question."""
    try:
        return ask()
    except ftplib.error_perm:
        return None


@contextlib.contextmanager
def _open_ftp(url: str, start: int, validator: str | None, timeout: float) -> Iterator[Stream]:
    with _connected(url, timeout) as (ftp, path):
        with _broken_ftp(url):
            total: int | None = _told(lambda: ftp.size(path))
            found: str | None = _told(lambda: ftp.sendcmd(f"MDTM {path}"))
            if start and ((validator and found != validator) or _told(lambda: ftp.sendcmd(f"REST {start}")) is None):
                start = 0
            connection = ftp.transfercmd(f"RETR {path}", start or None)
        with connection:
            yield Stream(start, total, found, _ftp_blocks(connection, ftp, url))


def _ftp_blocks(connection: socket.socket, ftp: ftplib.FTP, url: str) -> Iterator[bytes]:
    with _broken_ftp(url):
        while block := connection.recv(BLOCK):
            yield block
        connection.close()
        ftp.voidresp()


def _ftp_size(url: str, timeout: float) -> int | None:
    with _connected(url, timeout) as (ftp, path), _broken_ftp(url):
        return ftp.size(path)
