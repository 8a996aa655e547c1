"""Downloads from servers that behave, and from those that do not."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
from servers import Ftp, Surroundings, Web, serve_http

from qinco_core.datasets import Fetched, fetch, plan
from qinco_core.datasets.cache import locked
from qinco_core.errors import ChecksumError, DownloadError, StorageError
from qinco_core.progress import Silent

CONTENT = os.urandom(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
FILE = """
[[files]]
name = "thing"
kind = "model"
source = "{url}"
"""


class Notes(Silent):
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[tuple[str, float | None, str]] = []
        self.done: list[float] = []

    def begin(self, title: str, total: float | None, unit: str) -> None:
        self.tasks.append((title, total, unit))
        self.done.append(0.0)

    def advance(self, amount: float, **_: float) -> None:
        self.done[-1] += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def offer(here: Surroundings, server: Web | Ftp, content: bytes = CONTENT, sha256: str | None = None) -> None:
    if isinstance(server, Ftp):
        (server.folder / "thing.pt").write_bytes(content)
    else:
        server.files["thing.pt"] = content
    digest = f'sha256 = "{sha256}"\n' if sha256 else ""
    here.register(FILE.format(url=server.url("thing.pt")) + digest)


def fetched(progress: Notes | None = None, **options: object) -> Fetched:
    (one,) = fetch("thing", progress=progress, **options)  # type: ignore[arg-type]
    return one


def left(here: Surroundings) -> set[str]:
    return {path.name for path in (here.cache / "thing").iterdir()}


WHOLE = {".lock", "checksums.json", "thing.pt"}


@pytest.mark.parametrize("server", ["web", "ftp"])
def test_a_file_comes_whole_and_is_known_from_then_on(
    server: str, here: Surroundings, request: pytest.FixtureRequest
) -> None:
    offer(here, request.getfixturevalue(server))
    progress = Notes()
    found = fetched(progress)
    assert found.path == here.cache / "thing" / "thing.pt"
    assert found.path.read_bytes() == CONTENT
    assert (found.state, found.sha256, found.bytes) == ("fetched", SHA, len(CONTENT))
    assert json.loads((here.cache / "thing" / "checksums.json").read_text()) == {
        "thing.pt": {"bytes": len(CONTENT), "sha256": SHA}
    }
    assert progress.tasks == [("thing.pt", len(CONTENT) / 2**20, "MiB")]
    assert progress.done == pytest.approx([len(CONTENT) / 2**20])
    assert left(here) == WHOLE
    assert fetched().state == "checked"


def test_a_cut_connection_goes_on_where_it_ended(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.cuts = [100_000, 50_000, 1]
    progress = Notes()
    assert fetched(progress).path.read_bytes() == CONTENT
    assert web.asked_from == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]
    assert len(progress.notes) == 4
    assert "trying again" in progress.notes[0]
    assert left(here) == WHOLE


def test_cuts_that_bring_something_are_never_too_many(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.cuts = [20_000] * 12
    assert fetched().sha256 == SHA


def test_a_server_that_ignores_ranges_starts_over(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.ranges, web.cuts = False, [100_000, 50_000]
    progress = Notes()
    assert fetched(progress).path.read_bytes() == CONTENT
    assert web.asked_from == [None, "bytes=100000-", "bytes=50000-"]
    assert sum("from the beginning" in note for note in progress.notes) == 2


def test_it_is_given_up_after_tries_that_bring_nothing(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.cuts = [100_000, *[0] * 4]
    with pytest.raises(DownloadError, match=r"cannot be fetched: .*partial keeps 100,000 bytes; try the same") as e:
        fetched()
    assert isinstance(e.value, ConnectionError)
    assert left(here) == {".lock", "thing.pt.partial", "thing.pt.partial.json"}
    # later, another process: the same command goes on
    assert fetched().path.read_bytes() == CONTENT
    assert web.asked_from[-1] == "bytes=100000-"
    assert left(here) == WHOLE


def test_a_server_that_never_gets_further_is_given_up(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.ranges, web.cuts = False, [100_000] * 9
    with pytest.raises(DownloadError):
        fetched()
    assert len(web.requests) == 5


@pytest.mark.parametrize("heeds", [True, False], ids=["heeds If-Range", "ignores If-Range"])
def test_a_file_that_changed_meanwhile_is_fetched_anew(heeds: bool, here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.heeds_if_range = heeds
    web.cuts = [100_000, *[0] * 4]
    with pytest.raises(DownloadError):
        fetched()
    changed = os.urandom(250_000)
    offer(here, web, changed)
    assert fetched().path.read_bytes() == changed


def test_without_validators_halves_are_not_put_together_unless_a_digest_is_known(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.validators, web.cuts = False, [100_000]
    assert fetched().path.read_bytes() == CONTENT
    assert web.asked_from == [None, None]
    offer(here, web, sha256=SHA)
    web.cuts = [100_000]
    assert fetched(force=True).path.read_bytes() == CONTENT
    assert web.asked_from[2:] == [None, "bytes=100000-"]


def test_a_part_that_tells_nothing_is_of_another_file(here: Surroundings, web: Web) -> None:
    offer(here, web)
    changed = CONTENT[::-1]

    class Replaced(Notes):
        def note(self, text: str) -> None:
            super().note(text)
            web.files["thing.pt"] = changed

    web.heeds_if_range, web.parts_tell, web.cuts = False, False, [100_000]
    assert fetched(Replaced()).path.read_bytes() == changed
    # unless the digest of the whole will tell
    offer(here, web, changed, sha256=hashlib.sha256(changed).hexdigest())
    web.cuts = [100_000]
    assert fetched(force=True).path.read_bytes() == changed
    assert web.asked_from == [None, "bytes=100000-", None, None, "bytes=100000-"]


def test_a_part_that_nobody_asked_for(here: Surroundings, web: Web) -> None:
    offer(here, web)
    for told in ("bytes 5-9/300000", "lines 3-4"):
        web.unasked = told
        with pytest.raises(DownloadError, match=r"thing.pt: the server sends another part of the file than was asked"):
            fetched()


def test_a_partial_file_that_is_whole_already(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.cuts = [len(CONTENT) - 1, *[0] * 4]
    with pytest.raises(DownloadError):
        fetched()
    with (here.cache / "thing" / "thing.pt.partial").open("ab") as handle:
        handle.write(CONTENT[-1:])
    before = len(web.requests)
    assert fetched().sha256 == SHA
    assert len(web.requests) == before


def test_a_partial_file_longer_than_the_file_starts_over(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.cuts = [100_000, *[0] * 4]
    with pytest.raises(DownloadError):
        fetched()
    with (here.cache / "thing" / "thing.pt.partial").open("ab") as handle:
        handle.write(CONTENT)
    assert fetched().sha256 == SHA


@pytest.mark.parametrize("damage", ["", "{", '{"url": 3}', "[]"])
def test_a_damaged_note_starts_over(damage: str, here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.cuts = [100_000, *[0] * 4]
    with pytest.raises(DownloadError):
        fetched()
    (here.cache / "thing" / "thing.pt.partial.json").write_text(damage)
    assert fetched().sha256 == SHA
    assert web.asked_from[-1] is None


def test_refusals(here: Surroundings, web: Web) -> None:
    offer(here, web)
    del web.files["thing.pt"]
    with pytest.raises(DownloadError, match=r"thing.pt: the server has no such file \(HTTP 404\)"):
        fetched()
    assert len(web.requests) == 1
    offer(here, web)
    web.refusals = [500, 503, 429]
    assert fetched().sha256 == SHA
    web.refusals = [500] * 4
    with pytest.raises(DownloadError, match="cannot be fetched: the server answers 500; try the same"):
        fetched(force=True)
    assert fetched().state == "checked"  # what was there is still there


def test_nobody_listens(here: Surroundings) -> None:
    with serve_http() as web:
        offer(here, web)
    with pytest.raises(DownloadError, match="Connection refused"):
        fetched()


def test_an_ftp_download_goes_on_too(here: Surroundings, ftp: Ftp) -> None:
    offer(here, ftp)
    ftp.cuts = [100_000, 20_000]
    assert fetched().path.read_bytes() == CONTENT
    assert ftp.restarts[0] == "100000"
    assert ftp.restarts[-1] == "120000"
    assert left(here) == WHOLE


def test_an_ftp_file_that_changed_meanwhile(here: Surroundings, ftp: Ftp) -> None:
    offer(here, ftp)
    ftp.cuts = [100_000, *[0] * 4]
    with pytest.raises(DownloadError, match="partial keeps 100,000 bytes"):
        fetched()
    changed = os.urandom(200_000)
    offer(here, ftp, changed)
    os.utime(ftp.folder / "thing.pt", (1e9, 1e9))
    assert fetched().path.read_bytes() == changed


@pytest.mark.parametrize("url", ["ftp://a..b/thing.pt", "http://a..b/thing.pt"])
def test_a_server_that_cannot_be(url: str, here: Surroundings) -> None:
    here.register(FILE.format(url=url))
    with pytest.raises(DownloadError, match=f"{url} cannot be fetched .*; check the address"):
        fetched()
    (row,) = plan("thing")
    assert "check the address" in row.note


def test_an_ftp_server_without_the_file(here: Surroundings, ftp: Ftp) -> None:
    offer(here, ftp)
    (ftp.folder / "thing.pt").unlink()
    with pytest.raises(DownloadError, match=r"thing.pt: the server refuses it"):
        fetched()


def test_a_wrong_checksum_of_the_registry(here: Surroundings, web: Web) -> None:
    offer(here, web, sha256="0" * 64)
    with pytest.raises(ChecksumError) as e:
        fetched()
    for what in ("thing.pt", SHA, "0" * 64, "Try again", "--force", web.url("thing.pt")):
        assert what in str(e.value)
    assert left(here) == {".lock"}


def test_a_file_that_is_not_the_one_of_the_first_time(here: Surroundings, web: Web) -> None:
    offer(here, web)
    fetched().path.unlink()
    changed = CONTENT[::-1]
    offer(here, web, changed)
    with pytest.raises(ChecksumError, match=f"{SHA} is known of it"):
        fetched()
    assert "thing.pt" not in left(here)
    assert fetched(force=True).path.read_bytes() == changed
    assert fetched().state == "checked"


def test_a_file_that_was_damaged_here(here: Surroundings, web: Web) -> None:
    offer(here, web)
    path = fetched().path
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ChecksumError, match=r"changed or damaged; it is now thing.pt.damaged. Fetch it anew"):
        fetched()
    assert not path.exists()
    assert fetched().path.read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken(here: Surroundings, web: Web) -> None:
    offer(here, web)
    (here.cache / "thing").mkdir(parents=True)
    (here.cache / "thing" / "thing.pt").write_bytes(CONTENT)
    assert (fetched().state, web.requests) == ("checked", [])
    offer(here, web, sha256="0" * 64)
    with pytest.raises(ChecksumError):
        fetched()


def test_a_damaged_record(here: Surroundings, web: Web) -> None:
    offer(here, web)
    fetched()
    for text in ("{", "[1]", '{"thing.pt": {"sha256": 3}}'):
        (here.cache / "thing" / "checksums.json").write_text(text)
        with pytest.raises(ValueError, match=r"checksums.json is damaged .*; remove it"):
            fetched()


def test_force_keeps_the_old_file_until_the_new_one_is_whole(here: Surroundings, web: Web) -> None:
    offer(here, web)
    path = fetched().path
    web.refusals = [404]
    with pytest.raises(DownloadError):
        fetched(force=True)
    assert path.read_bytes() == CONTENT
    web.cuts = [100_000, *[0] * 4]
    with pytest.raises(DownloadError):
        fetched(force=True)
    assert (path.read_bytes(), fetched().state) == (CONTENT, "checked")
    assert fetched(force=True).state == "fetched"
    assert web.asked_from[-1] == "bytes=100000-"
    assert left(here) == WHOLE


def test_what_a_killed_fetch_left_half_written_goes(here: Surroundings, web: Web) -> None:
    offer(here, web)
    (here.cache / "thing").mkdir(parents=True)
    (here.cache / "thing" / ".thing.pt.4711.tmp").write_bytes(b"half")
    fetched()
    assert left(here) == WHOLE


def test_a_date_will_do_where_there_is_no_etag(here: Surroundings, web: Web) -> None:
    offer(here, web)
    web.validators, web.date, web.cuts = False, "Thu, 26 Nov 2026 18:00:00 GMT", [100_000]
    assert fetched().sha256 == SHA
    assert web.asked_from == [None, "bytes=100000-"]
    web.date, web.cuts = "Thu, 26 Nov 2026 18:00:00 GMT", [100_000, *[0] * 4]
    with pytest.raises(DownloadError):
        fetched(force=True)
    web.date = "Thu, 26 Nov 2026 19:00:00 GMT"
    offer(here, web, CONTENT[::-1])
    assert fetched(force=True).path.read_bytes() == CONTENT[::-1]


def test_nothing_is_not_a_file(here: Surroundings, web: Web, ftp: Ftp) -> None:
    web.sizes = False
    for server in (web, ftp):
        offer(here, server, b"")
        with pytest.raises(DownloadError, match=r"is not thing.pt \(it is empty\)"):
            fetched()
        assert "thing.pt" not in left(here)
    offer(here, web)
    assert fetched().sha256 == SHA


def test_a_packed_answer_is_not_the_file(here: Surroundings, web: Web) -> None:
    offer(here, web, gzip.compress(CONTENT))
    web.encoding = "gzip"
    with pytest.raises(DownloadError, match=r"thing.pt: the server sends it packed \(gzip\)"):
        fetched()
    assert left(here) == {".lock"}


def test_no_room(here: Surroundings, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    offer(here, web)
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(StorageError, match=r"needs 300,000 more bytes, but 1,000 are free; choose another --cache"):
        fetched()
    assert left(here) == {".lock"}


def test_a_cache_that_cannot_be(here: Surroundings, web: Web, tmp_path: Path) -> None:
    offer(here, web)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="inside a file"):
        fetched(cache=tmp_path / "file")


def test_ctrl_c_keeps_what_has_come(here: Surroundings, web: Web) -> None:
    offer(here, web)

    class Impatient(Notes):
        def advance(self, amount: float, **_: float) -> None:
            super().advance(amount)
            if self.done[-1] > 0.1:
                # what a kill would leave
                assert left(here) == {".lock", "thing.pt.partial", "thing.pt.partial.json"}
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetched(Impatient())
    size = (here.cache / "thing" / "thing.pt.partial").stat().st_size
    assert 0 < size < len(CONTENT)
    assert fetched().path.read_bytes() == CONTENT
    assert web.asked_from[-1] == f"bytes={size}-"


def test_two_at_once_wait_for_one_another(here: Surroundings, web: Web) -> None:
    offer(here, web)
    folder, progress, states = here.cache / "thing", Notes(), []
    with locked(folder, Silent()):
        threads = [threading.Thread(target=lambda: states.append(fetched(progress).state)) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(progress.notes) < 2:
            pass
        assert web.requests == []
    for thread in threads:
        thread.join()
    assert sorted(states) == ["checked", "fetched"]
    assert all("another process is fetching" in note for note in progress.notes[:2])
    assert len(web.requests) == 1


def test_killed_between_download_and_its_place(here: Surroundings, web: Web) -> None:
    offer(here, web)
    folder = here.cache / "thing"
    folder.mkdir(parents=True)
    (folder / "thing.pt.download").write_bytes(CONTENT)
    assert fetched().sha256 == SHA
    assert web.requests == []
    assert left(here) == WHOLE
    fetched().path.rename(folder / "thing.pt.download")
    (folder / "thing.pt.download").write_bytes(b"other")
    with pytest.raises(ChecksumError, match=r"thing.pt.download has the SHA-256"):
        fetched()
    assert fetched().sha256 == SHA
