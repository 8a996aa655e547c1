"""Any file of another program into an artifact, and any artifact out: what `qinco import` and `qinco export` do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinco_core.codec.product import network_of
from qinco_core.errors import UsageError
from qinco_core.interop.checkpoint import write_checkpoint
from qinco_core.interop.codes import export_codes, import_codes, read_published
from qinco_core.interop.detect import Foreign, detect
from qinco_core.interop.folder import export_folder
from qinco_core.interop.models import import_model
from qinco_core.interop.onnx import export_onnx
from qinco_core.interop.pairwise import export_pairwise, import_pairwise
from qinco_core.progress import Progress, Silent
from qinco_core.store import (
    Header,
    StoredModel,
    load_centroids,
    load_model,
    load_pairwise,
    open_codes,
    save_centroids,
)
from qinco_core.store.folder import codes_header
from qinco_core.vectors import write_vectors

PART_ROWS = 1_000_000
_EXTENSION = {"codes": ".npz", "pairwise": ".pt", "centroids": ".npy"}


@dataclass(frozen=True)
class Imported:
    """The header of an artifact that was made, a sentence on what it is, and its figures."""

    header: Header
    about: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """The files that were written, figures of them, and what there is to know."""

    files: tuple[Path, ...]
    figures: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def import_file(
    source: str | Path | Foreign,
    out: str | Path,
    *,
    model: str | Path | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Imported:
    """Write a published file, or a folder of `export_file`, as an artifact; all of it is checked before.

    Args:
        source: a checkpoint or pairwise decoder (`.pt`), codes (`.npz`), centroids (`.npy`), a folder, or what
            `detect` found.
        out: the artifact.
        model: the model artifact that codes or a pairwise decoder are of.
        progress: told of every batch of codes.
        force: overwrite what is there.

    Raises:
        InputNotFoundError: something is not there.
        UsageError: codes or a pairwise decoder without a model, or of one without an IVF.
        ForeignFileError, VectorFileError: a file is damaged, incomplete, unsafe, or something else.
        LineageError: codes or pairwise decoder are of another model.
        OutputExistsError, StorageError: the output exists, or the disk is full or read-only.
    """
    found = source if isinstance(source, Foreign) else detect(source)
    if found.kind in ("checkpoint", "folder"):
        header = import_model(found, out, force=force)
        sizes, encode = header.config["model"], header.config["encode"]
        lists = f", {sizes['ivf_K']:,} lists" if sizes["ivf_K"] else ""
        about = f"{sizes['rules']}, D = {sizes['D']}, M = {sizes['M']}, K = {sizes['K']}{lists}"
        return Imported(header, about, {"model": sizes, "encode": encode})
    if found.kind == "centroids":
        stored = load_centroids(found.path)
        K, D = stored.centroids.shape
        header = save_centroids(out, stored.centroids, training={"source": str(found.path)}, force=force)
        return Imported(header, f"{K:,} centroids of dimension {D}", {"K": K, "D": D})
    if model is None:
        raise UsageError(f"{found.path} is of a model: name it")
    of = load_model(model)
    if found.kind == "codes":
        published = read_published(found.path)
        header, count = import_codes(published, of.config, of.header, out, progress=progress or Silent(), force=force)
        return Imported(header, f"{count:,} codes of {model}", {"count": count})
    header = import_pairwise(found.content, found.path, of.config, of.header, out, force=force)
    return Imported(header, f"a pairwise decoder of {model}")


def export_file(
    artifact: str | Path,
    out: str | Path,
    *,
    onnx: bool = False,
    part_rows: int = PART_ROWS,
    progress: Progress | None = None,
    force: bool = False,
) -> Exported:
    """Write an artifact for other programs, in the format that `out` asks for.

    Args:
        artifact: a model, codes, a pairwise decoder or centroids.
        out: of a model `.pt` (the published format), `.onnx` (its decoder), or a folder without an extension; of codes
            `.npz`, of a pairwise decoder `.pt`, of centroids `.npy`.
        onnx: write the model's decoder as ONNX whatever `out` is called.
        part_rows: codes of a part.
        progress: told of every part.
        force: overwrite what is there.

    Raises:
        InputNotFoundError, ArtifactError: the artifact is not there, or damaged.
        UsageError: `out` does not fit the artifact, or the format has no place for it.
        DependencyError: ONNX needs a package that is not installed.
        OutputExistsError, StorageError: an output exists, or the disk is full or read-only.
    """
    kind, target = codes_header(Path(artifact)).kind, Path(out)
    if kind != "model" and onnx:
        raise UsageError(f"ONNX is the decoder of a model, but {artifact} is of the kind {kind}")
    if kind == "model":
        return _export_model(
            load_model(artifact), target, onnx or target.suffix == ".onnx", progress or Silent(), force
        )
    if kind not in _EXTENSION:
        raise UsageError(f"{artifact} is of the kind {kind}: name a model, codes, a pairwise decoder or centroids")
    if target.suffix != _EXTENSION[kind]:
        raise UsageError(f"{target}: {kind} are exported as {_EXTENSION[kind]}: name such a file")
    if kind == "codes":
        with open_codes(artifact) as codes:
            files = export_codes(codes, target, part_rows=part_rows, progress=progress or Silent(), force=force)
            notes = ("the published format has no place for ids: they were left out",) if codes.with_ids else ()
            return Exported(files, {"count": len(codes)}, notes)
    if kind == "pairwise":
        export_pairwise(load_pairwise(artifact), target, force=force)
    else:
        write_vectors(target, load_centroids(artifact).centroids, format="npy", force=force)
    return Exported((target,))


def _export_model(stored: StoredModel, target: Path, onnx: bool, progress: Progress, force: bool) -> Exported:
    c = stored.config
    if onnx:
        progress.note(f"writing and trying the decoder of {c.M} steps of {c.L} blocks; many take minutes")
        properties = {"qinco_fingerprint": stored.header.fingerprint}
        properties |= {name: str(getattr(c, name)) for name in ("D", "M", "K", "ivf_K")}
        network = network_of(c, stored.tensors)
        difference = export_onnx(network, target, properties=properties, force=force)
        note = f"ONNX Runtime decodes as qinco does: largest difference {difference:.1e} of the largest entry"
        return Exported((target,), {"difference": difference}, (note,))
    if target.suffix in (".pt", ".pth"):
        write_checkpoint(target, c, stored.encode, stored.tensors, force=force)
        note = f"W_cat of rank {c.rank} was written whole: imported again it is another model (a folder keeps it)"
        return Exported((target,), notes=(note,) if c.rank else ())
    if target.suffix and not target.is_dir():
        raise UsageError(f"{target}: a model is exported to a .pt file, a .onnx file, or a folder without an extension")
    return Exported(export_folder(stored, target, force=force))
