"""Encoding in shards that need not know of one another.

Every shard makes whole parts of a folder of codes (`qinco_core.store.folder`), the same files whoever makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qinco_core.api import Codec
from qinco_core.config import EncodeConfig
from qinco_core.errors import UsageError
from qinco_core.jobs import Rows, check_assign, check_dimension, encode_to_artifact
from qinco_core.progress import Progress
from qinco_core.store.folder import Manifest, begin_folder, has_part, part_notes, part_path
from qinco_core.vectors import VectorFile


def encode_to_folder(
    codec: Codec,
    rows: Rows,
    folder: Path,
    shard: tuple[int, int],
    *,
    search: EncodeConfig,
    progress: Progress,
    assign: str = "exact",
) -> int:
    """Encode one shard of n to its parts of a folder of codes: those that are not there yet, each as a file of codes.

    Args:
        codec: a saved model.
        rows: all that is to be encoded, a file of vectors, whatever the shard.
        folder: where the manifest and the parts lie.
        shard: i and n, 0 ≤ i < n.
        search: A, B, T.
        progress: told of every batch.
        assign: as of `encode_to_artifact`.

    Returns:
        How many parts were made.

    Raises:
        UsageError: there is no such shard, or the vectors are a stream; LineageError: the folder is of another job;
            else as of `encode_to_artifact`.
    """
    manifest = begin_parts(codec, rows, folder, search=search, assign=assign, shard=shard)
    own = manifest.parts.shard(*shard)
    missing = [number for number in own if not has_part(folder, manifest, number)]
    how: dict[str, Any] = {"search": search, "assign": assign, "created": manifest.created, "resume": True}
    for number in missing:
        progress.note(f"part {number}, of {own.start} to {own.stop - 1} here")
        section = rows.section(*manifest.parts.span(number))
        path, notes = part_path(folder, number), part_notes(number)
        encode_to_artifact(codec, section, path, progress=progress, notes=notes, **how)
    return len(missing)


def begin_parts(
    codec: Codec,
    rows: Rows,
    folder: Path,
    *,
    search: EncodeConfig,
    assign: str = "exact",
    shard: tuple[int, int] = (0, 1),
) -> Manifest:
    """Begin a folder of codes, or go on with it; arguments, errors as of `encode_to_folder`."""
    source = rows.source
    check_dimension(codec, source)
    check_assign(codec, assign)
    if not isinstance(source, VectorFile):
        raise UsageError("a stream cannot be divided into shards or parts: encode a file, or leave --shard out")
    assert codec.header is not None
    notes = {"assign": assign} if codec.config.ivf_K else {}
    spec = codec.spec(source.dtype, search, **notes)
    manifest = Manifest(spec, len(source), rows.ids is not None, rows.stamp, codec.header.created)
    manifest.parts.shard(*shard)
    begin_folder(folder, manifest)
    return manifest
