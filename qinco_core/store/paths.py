"""Where the artifacts of one project lie."""

from __future__ import annotations

import os
import re
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

    def codes(self, name: str) -> Path:
        """Path of the codes called `name`.

        Raises:
            UsageError: the name would leave the directory or make an awkward file name.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name codes; use letters, digits, '.', '_' and '-'")
        return self.root / "codes" / f"{name}.h5"


def training_files(model: str | Path) -> tuple[Path, Path]:
    """Paths of the checkpoint of the run that is to become `model`, and of its log: beside the model."""
    stem = Path(model).stem
    return Path(model).with_name(f"{stem}.training.h5"), Path(model).with_name(f"{stem}.training.jsonl")
