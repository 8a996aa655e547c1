"""Whether what came can be the file that the registry describes: after this its digest is held to be the truth."""

from __future__ import annotations

from pathlib import Path

from qinco_core.datasets.cache import Source, Target
from qinco_core.datasets.registry import FileSpec
from qinco_core.errors import DownloadError, UsageError, VectorFileError
from qinco_core.vectors import FORMATS, detect_format


def check_received(source: Source, target: Target, path: Path) -> None:
    """Refuse at `path` an empty file, and vectors that are cut, or of another count or dimension than the registry's.

    Raises:
        DownloadError: it is one of these.
    """
    wrong = "it is empty" if path.stat().st_size == 0 else None
    for file in target.vectors:
        wrong = wrong or _wrong_vectors(file, target.path.name, path)
    if wrong is not None:
        raise DownloadError(
            f"what came from {source.url} is not {target.path.name} ({wrong}); it was dropped: try again later, "
            f"or correct {source.name} in the registry"
        )


def _wrong_vectors(file: FileSpec, name: str, path: Path) -> str | None:
    """What of the vectors cannot be, if anything."""
    try:
        rows, _ = FORMATS[detect_format(name, file.format)].open(name, [path], file.key)
    except VectorFileError as error:
        return str(error)
    except UsageError:  # nothing tells the format, or which dataset: no fault of the file
        return None
    count, D = rows.layout.count, rows.layout.D
    if (file.count or count, file.dim or D) == (count, D):
        return None
    return f"it has {count} vectors of dimension {D}, by the registry {file.count or count} of {file.dim or D}"
