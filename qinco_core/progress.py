"""How long work tells the outside how far it is, without knowing what the outside looks like."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work; the command line renders it, a library user may log it."""

    def begin(self, title: str, total: float | None, unit: str) -> None:
        """Start a task of `total` units (None: unknown); a task that was open ends."""

    def advance(self, amount: float, **figures: float) -> None:
        """Report `amount` more units done, with named figures to show (loss, mse, ...)."""

    def note(self, text: str) -> None:
        """Say one line that should stay visible."""

    def end(self) -> None:
        """End the open task."""


class Silent:
    """A `Progress` that says nothing: the default everywhere."""

    def begin(self, title: str, total: float | None, unit: str) -> None:
        """Ignore."""

    def advance(self, amount: float, **figures: float) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""
