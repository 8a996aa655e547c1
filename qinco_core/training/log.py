"""The log of a run: a line of JSON an event, and TensorBoard if asked for."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Self

from qinco_core.files import storage_errors
from qinco_core.optional import import_summary_writer


class TrainingLog:
    """Appends events to a JSONL file; numbers of rounds go to TensorBoard as well."""

    def __init__(self, path: Path, tensorboard: Path | None = None, *, append: bool = False) -> None:
        self._writer = import_summary_writer()(str(tensorboard)) if tensorboard else None
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a" if append else "w", encoding="utf-8")
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, with the time, and flush it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with storage_errors(self._path):
            self._file.write(json.dumps({"event": event, "time": now, **fields}) + "\n")
            self._file.flush()
        if self._writer is not None and event == "round":
            for name, value in fields.items():
                self._writer.add_scalar(name, value, fields["samples"])
