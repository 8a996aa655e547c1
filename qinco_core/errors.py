"""The exception family.

Every error this library raises on purpose is a `QincoError` and also the builtin exception a Python
user would catch. Messages say what is wrong, where, and what to do next. `exit_code` is what the
command line returns: 2 when the command itself has to be changed, 1 when the work failed.
"""

from __future__ import annotations


class QincoError(Exception):
    """Anything that went wrong for a reason this library understands."""

    exit_code = 1


class UsageError(QincoError, ValueError):
    """A parameter that cannot be: fix the call."""

    exit_code = 2


class InputNotFoundError(QincoError, FileNotFoundError):
    """An input file that is not there."""

    exit_code = 2

    def __str__(self) -> str:  # OSError would print its errno tuple
        return str(self.args[0]) if self.args else ""


class OutputExistsError(QincoError, FileExistsError):
    """An output that is there already and may not be overwritten."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class VectorFileError(QincoError, ValueError):
    """A file of vectors that is empty, truncated, malformed, or holds NaN or infinity."""


class DimensionError(QincoError, ValueError):
    """Two things whose dimensions do not fit."""


class ForeignFileError(QincoError, ValueError):
    """A file of another program that is damaged, incomplete, unsafe to load, or something else than it should be."""


class DownloadError(QincoError, ConnectionError):
    """A file that a server refuses, or that could not be fetched whole."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ChecksumError(QincoError, ValueError):
    """A fetched file that is not the one its checksum is of."""


class ArtifactError(QincoError, ValueError):
    """An artifact that is corrupted, foreign, or of the wrong kind."""


class ArtifactVersionError(ArtifactError):
    """An artifact written by a newer version of qinco."""


class LineageError(QincoError, ValueError):
    """Artifacts that do not belong together, such as codes and another model."""


class StreamError(QincoError, EOFError):
    """A stream of codes that was cut, damaged, or is no stream of codes."""


class StorageError(QincoError, OSError):
    """A disk that is full, read-only, or fails."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DependencyError(QincoError, ImportError):
    """An optional package that this needs and that is not installed."""


class ClusterError(QincoError, RuntimeError):
    """A cluster that cannot be reached, is too small, or loses its workers again and again."""


class DeviceError(UsageError):
    """A device or precision that this machine does not have."""


class ProcessGroupError(QincoError, ConnectionError):
    """Another process of the group that has failed, or cannot be reached."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TrainingError(QincoError, ArithmeticError):
    """A training run that diverged."""
