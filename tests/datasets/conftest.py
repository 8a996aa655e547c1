"""Servers, a cache and a registry for every test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Ftp, Surroundings, Web, serve_ftp, serve_http, surroundings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    return surroundings(tmp_path, monkeypatch)


@pytest.fixture
def web(here: Surroundings) -> Iterator[Web]:
    with serve_http() as served:
        yield served


@pytest.fixture
def ftp(here: Surroundings, tmp_path: Path) -> Iterator[Ftp]:
    folder = tmp_path / "ftp"
    folder.mkdir()
    with serve_ftp(folder) as served:
        yield served
