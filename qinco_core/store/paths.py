"""Where the artifacts of one project lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qinco_core.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Store:
    """An artifact directory with stable names; it need not exist yet."""

    root: Path

    @classmethod
    def locate(cls, option: str | None = None) -> Store:
        """The directory that `option` names, else the environment's QINCO_STORE, else ./qinco.store."""
        return cls(Path(option or os.environ.get("QINCO_STORE") or "qinco.store"))

    @property
    def model(self) -> Path:
        """Path of the trained model."""
        return self.root / "model.h5"

    @property
    def centroids(self) -> Path:
        """Path of the coarse centroids."""
        return self.root / "centroids.h5"

    @property
    def pairwise(self) -> Path:
        """Path of the look-up decoders."""
        return self.root / "pairwise.h5"

    def codes(self, name: str) -> Path:
        """Path of the codes called `name`.

        Raises:
            UsageError: the name would leave the directory or make an awkward file name.
        """
        return self.root / "codes" / _file_name(name, "codes")

    @property
    def code_files(self) -> list[Path]:
        """Paths of all codes in the directory, by name: files, and folders of parts of which there is no file yet."""
        folder = self.root / "codes"
        files = list(_shown(folder, "*.h5"))
        folders = [path.parent for path in _shown(folder, "*/manifest.h5")]
        return sorted([*files, *(path for path in folders if path.with_name(f"{path.name}.h5") not in files)])

    @property
    def index(self) -> Path:
        """Path of the index, a folder."""
        return self.root / "index"

    def results(self, name: str) -> Path:
        """Path of the results of a search called `name`.

        Raises:
            UsageError: as of `codes`.
        """
        return self.root / "results" / _file_name(name, "results")


def _shown(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if not path.name.startswith("."))


def _file_name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name {what}; use letters, digits, '.', '_' and '-'")
    return f"{name}.h5"


def training_files(model: str | Path) -> tuple[Path, Path]:
    """Paths of the checkpoint of the run that is to become `model`, and of its log: beside the model."""
    stem = Path(model).stem
    return Path(model).with_name(f"{stem}.training.h5"), Path(model).with_name(f"{stem}.training.jsonl")
