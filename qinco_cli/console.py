"""What people see: progress and notes on stderr, tables on stdout. The only module that knows rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qinco_core.files import storage_errors

_T = TypeVar("_T")


class _Rate(ProgressColumn):
    """Units per second of what a task counts."""

    def render(self, task: Task) -> Text:
        if not task.speed or task.fields["unit"] == "s":
            return Text("")
        return Text(f"{task.speed:,.0f} {task.fields['unit']}/s")


class Console:
    """A `qinco_core.progress.Progress` on stderr: bars on a terminal, lines elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._rich = RichConsole(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, title: str, total: float | None, unit: str) -> None:
        """Start a task."""
        self.end()
        if self._quiet or not self._rich.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
            _Rate(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self._rich,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(title, total=total, unit=unit, figures="")

    def advance(self, amount: float, **figures: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            shown = "  ".join(f"{name} {value:,.4g}" for name, value in figures.items())
            self._bar.update(self._task, advance=amount, figures=shown)

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        if not self._quiet:
            self._rich.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_json(value: Any) -> None:
    """JSON on stdout."""
    _write(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: the first column to the left, the others to the right; plain where it is piped."""
    console = RichConsole(highlight=False)
    if console.is_terminal:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for i, name in enumerate(columns):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    _write(*table_lines(columns, rows))


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of text, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values on stdout."""
    width = max(len(name) for name, _ in pairs)
    _write(*(f"{name.ljust(width)}  {value}" for name, value in pairs))


def _write(*lines: str) -> None:
    with storage_errors("<stdout>"):
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def known(value: _T | None, show: Callable[[_T], str]) -> str:
    """What only the end of a stream may tell, as `show` has it."""
    return "unknown until the stream ends" if value is None else show(value)


def size(count: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people: 1 h 05 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60:02} min"
