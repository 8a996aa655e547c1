"""What a file of another program is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qinco_core.errors import ForeignFileError
from qinco_core.files import existing_file
from qinco_core.interop.checkpoint import is_checkpoint
from qinco_core.interop.folder import CONFIG, TENSORS, is_folder
from qinco_core.interop.pairwise import is_pairwise
from qinco_core.interop.torchfile import read_torch

Kind = Literal["checkpoint", "folder", "codes", "pairwise", "centroids"]


@dataclass(frozen=True)
class Foreign:
    """A file or folder, what it is, and the fields of a torch file, which is read to tell."""

    path: Path
    kind: Kind
    content: Mapping[str, Any] = field(default_factory=dict)


def detect(source: str | Path) -> Foreign:
    """Tell what `source` is: by its extension, and for torch files by the names of its fields.

    Raises:
        InputNotFoundError: nothing is there.
        ForeignFileError: it is nothing that can be imported.
    """
    path = Path(source)
    if path.name in (TENSORS, CONFIG):
        path = path.parent
    if path.is_dir():
        if not is_folder(path):
            raise ForeignFileError(f"{path} is a folder without {CONFIG} and {TENSORS}: name what to import in it")
        return Foreign(path, "folder")
    existing_file(path)
    if path.suffix == ".npy":
        return Foreign(path, "centroids")
    if path.suffix == ".npz":
        return Foreign(path, "codes")
    content = read_torch(path)
    if is_checkpoint(content):
        return Foreign(path, "checkpoint", content)
    if is_pairwise(content):
        return Foreign(path, "pairwise", content)
    named = ", ".join(sorted(content)[:5]) or "nothing"
    raise ForeignFileError(
        f"{path} holds {named}: neither a checkpoint (model, parameters, data_dim) nor a pairwise decoder "
        "(ivf_code_map, combine_mvals_m, codebook_MKD)"
    )
