"""The log of a run: a line of JSON an event, and TensorBoard if asked for."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from qinco_core.files import storage_errors
from qinco_core.optional import import_summary_writer


class TrainingLog:
    """Appends events to a JSONL file; numbers of rounds go to TensorBoard as well.

    Attributes:
        group: the group of a product model that is in training, which events then name.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, *, append: bool = False) -> None:
        self._writer = import_summary_writer()(str(tensorboard)) if tensorboard else None
        self.group: int | None = None
        self._path = path
        self._mode: Literal["a", "w"] = "a" if append else "w"
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, with the time, and flush it."""
        group = {} if self.group is None else {"group": self.group}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with storage_errors(self._path):
            file = self._open()
            file.write(json.dumps({"event": event, "time": now, **group, **fields}) + "\n")
            file.flush()
        if self._writer is not None and event == "round":
            for name, value in fields.items():
                tag = name if self.group is None else f"group {self.group}/{name}"
                self._writer.add_scalar(tag, value, fields["samples"])

    def _open(self) -> TextIO:
        # not before there is something to say: a run that is refused leaves an older log alone
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open(self._mode, encoding="utf-8")
        return self._file
