"""Models of other programs as model artifacts."""

from __future__ import annotations

from pathlib import Path

from qinco_core.codec.product import network_of
from qinco_core.errors import ArtifactError, ForeignFileError
from qinco_core.files import atomic_output
from qinco_core.interop.checkpoint import PublishedModel, parse_checkpoint
from qinco_core.interop.detect import Foreign
from qinco_core.interop.folder import read_folder
from qinco_core.store import Header, save_model


def import_model(source: Foreign, out: str | Path, *, force: bool = False) -> Header:
    """Write a published checkpoint, or a folder that `export_folder` wrote, as a model artifact.

    Args:
        source: what `detect` found, a checkpoint or a folder.
        out: the artifact.
        force: overwrite what is there.

    Raises:
        InputNotFoundError: a file of the folder is missing.
        ForeignFileError: a field or tensor is missing, unknown, misshapen, or not of finite floats; or a folder's
            tensors are not those that its configuration tells of.
        OutputExistsError, StorageError: the output exists, or the disk is full or read-only.
    """
    if source.kind == "folder":
        return _import_folder(source.path, out, force=force)
    model = parse_checkpoint(source.content, source.path)
    return save_model(
        out, model.config, model.search, model.tensors, training=_figures(model, source.path), force=force
    )


def _figures(model: PublishedModel, path: Path) -> dict[str, object]:
    return {"imported": path.name} | ({} if model.epoch is None else {"epoch": model.epoch})


def _import_folder(folder: Path, out: str | Path, *, force: bool) -> Header:
    model = read_folder(folder)
    try:
        network_of(model.config, model.tensors)
    except ArtifactError as error:
        raise ForeignFileError(f"{folder}: {error}") from error
    with atomic_output(out, force=force) as temporary:
        try:
            header = save_model(
                temporary, model.config, model.search, model.tensors, training=model.training, parents=model.parents
            )
        except ArtifactError as error:  # NaN
            raise ForeignFileError(f"{folder}: {error}") from error
        if header.fingerprint != model.fingerprint:
            raise ForeignFileError(
                f"{folder}: the tensors have the fingerprint {header.fingerprint}, but its configuration is of "
                f"{model.fingerprint}: the two files are not of one model, or were changed"
            )
    return header
