"""Zip files, which torch files and npz files are: their checksums, which torch and mapped arrays do not look at."""

from __future__ import annotations

import zipfile
from pathlib import Path

from qinco_core.errors import ForeignFileError
from qinco_core.vectors.npz import DAMAGE

_MAGIC = b"PK\x03\x04"


def check_zip(path: Path) -> None:
    """Check that every part of a zip file has its checksum; a file of another kind is let pass.

    Raises:
        ForeignFileError: one has not, or the file is damaged, cut or empty.
    """
    with path.open("rb") as handle:
        head = handle.read(len(_MAGIC))
    if not head:
        raise ForeignFileError(f"{path} is empty: copy it again")
    if not zipfile.is_zipfile(path):
        if head == _MAGIC:
            raise ForeignFileError(f"{path} was cut, its end is missing: copy it again")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except DAMAGE as error:
        raise ForeignFileError(f"{path} is damaged ({error}): copy it again") from error
    if wrong is not None:
        raise ForeignFileError(f"{path} is damaged: {wrong} does not have its checksum: copy it again")
