"""Folders of files that are one table: which files, in which order, and which row is in which."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qinco_core.errors import InputNotFoundError, UsageError, VectorFileError
from qinco_core.vectors.remote import File, RemoteFile


def find_parts(folder: Path, extensions: dict[str, tuple[str, ...]]) -> tuple[str, list[Path]]:
    """The format of the files in a folder, and those files: part-2 before part-10.

    Hidden files and those with a leading underscore are no part, nor is anything of another extension.

    Args:
        folder: where to look; folders in it are not.
        extensions: for each format to look for, its extensions.

    Raises:
        InputNotFoundError: there are none.
        UsageError: there are files of several formats.
    """
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        for name, endings in extensions.items():
            if path.suffix.lower() in endings and path.name[0] not in "._" and path.is_file():
                found.setdefault(name, []).append(path)
    if not found:
        listed = ", ".join(ending for endings in extensions.values() for ending in endings)
        raise InputNotFoundError(f"{folder} is a directory without files of vectors ({listed}); name a file")
    if len(found) > 1:
        raise UsageError(f"{folder} has files of {' and '.join(sorted(found))}; choose with --format")
    ((name, paths),) = found.items()
    return name, sorted(paths, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their value."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)]


Mark = tuple[int, int, int, int] | tuple[int, str]


def mark_of(file: File | int) -> Mark:
    """What tells a file, a path or an open descriptor, from another one that takes its place.

    Of a file at an address it is what it was when it was opened: its server is not asked again.
    """
    if isinstance(file, RemoteFile):
        return file.size, file.mark
    facts = os.fstat(file) if isinstance(file, int) else file.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


class Parts:
    """The files of a table and the rows in each; `starts` are the numbers of their first rows, and the end.

    `marks` are those of the files before they were first read.
    """

    def __init__(self, files: Sequence[File], marks: Sequence[Mark], counts: Sequence[int], column: str = "") -> None:
        self.files = list(files)
        self._marks = list(marks)
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
        self._column = column

    def check(self, part: int, descriptor: int | None = None) -> None:
        """Refuse a file, opened again as the descriptor if one is given, that is not the one of before.

        Raises:
            VectorFileError: it was replaced or changed.
        """
        path = self.files[part]
        if mark_of(path if descriptor is None else descriptor) != self._marks[part]:
            raise VectorFileError(f"{path} was replaced while it was read; run again")

    def name(self, part: int) -> str:
        """One of the files, or the column in it."""
        return f"{self.files[part]}::{self._column}" if self._column else str(self.files[part])

    def place(self, row: int) -> tuple[str, int]:
        """The file that a row is in, or the column in it, and the row's number there."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.name(part), row - int(self.starts[part])
