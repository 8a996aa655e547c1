"""The log of a run: a line of JSON an event, and TensorBoard if asked for."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from qinco_core.distributed import current
from qinco_core.files import storage_errors
from qinco_core.optional import import_summary_writer


class Recent:
    """Running averages of the last batches: the loss, the MSE in the units of the data, vectors per second."""

    def __init__(self) -> None:
        self.loss = self.mse = self.rate = 0.0
        self._batches = 0

    def add(self, loss: float, mse: float, vectors: int, seconds: float) -> None:
        """Take one more batch into account."""
        self._batches += 1
        weight = max(1 / self._batches, 0.05)
        self.loss += weight * (loss - self.loss)
        self.mse += weight * (mse - self.mse)
        self.rate += weight * (vectors / seconds - self.rate)

    def figures(self) -> dict[str, float]:
        """All of them, by the names they have in the log."""
        return {"loss": self.loss, "mse": self.mse, "vectors/s": self.rate}


class TrainingLog:
    """Appends events to a JSONL file; numbers of rounds go to TensorBoard as well. The first process writes.

    Attributes:
        group: the group of a product model that is in training, which events then name.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, *, append: bool = False) -> None:
        self._first = current().first
        self._writer = import_summary_writer()(str(tensorboard)) if tensorboard and self._first else None
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
        if not self._first:
            return
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
