"""`qinco info`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qinco_cli import options as opt

if TYPE_CHECKING:
    from qinco_core.datasets import Dataset
    from qinco_core.store.index import StoredIndex


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("info", epilog=opt.example("qinco info qinco.store/model.h5"))(info)


def info(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="An artifact, a saved stream, a file of vectors, a data set.")
    ],
    format: opt.FormatOption = None,
    json_: opt.JsonOption = False,
) -> None:
    """Say what a file is: its kind, sizes, configuration and lineage."""
    from qinco_cli.console import print_json, print_pairs
    from qinco_core.datasets import find_dataset
    from qinco_core.files import existing_file
    from qinco_core.store import is_stream, read_header
    from qinco_core.store.index import manifest_of
    from qinco_core.vectors.remote import is_address

    path = manifest_of(file.partition("::")[0])
    if path.suffix == ".partial":
        facts = _unfinished(existing_file(path))
    elif named := find_dataset(file):
        facts = _dataset(named)
    elif is_address(file):
        facts = _vectors(file, format)
    elif "::" not in file and format is None and path.suffix == ".h5":
        facts = _artifact(path, read_header(path))
    elif "::" not in file and format is None and not path.is_dir() and is_stream(existing_file(path)):
        facts = _stream(path)
    else:
        facts = _vectors(file, format)
    if json_:
        print_json(facts)
        return
    print_pairs([(name, _text(value)) for name, value in facts.items()])


def _artifact(path: Path, header: Any) -> dict[str, Any]:
    from qinco_core.store import load_centroids, load_model, load_pairwise, open_codes
    from qinco_core.store.lists import list_bits

    facts = {
        "file": str(path),
        "kind": header.kind,
        "fingerprint": header.fingerprint,
        "created": header.created,
        "written by": f"qinco {header.writer}, format {header.format_version}",
        "parents": [f"{parent.kind} {parent.fingerprint}" for parent in header.parents],
        "bytes": path.stat().st_size,
    }
    if header.kind == "model":
        stored = load_model(path)
        facts["parameters"] = sum(tensor.size for tensor in stored.tensors.values())
        facts["bytes per vector"] = stored.config.code_bytes + list_bits(stored.config.ivf_K) / 8
        facts |= {"model": stored.config.model_dump(), "encoder": stored.encode.model_dump()}
        facts["training"] = stored.training
    elif header.kind == "codes":
        with open_codes(path) as codes:
            facts |= {"vectors": len(codes), "bytes per vector": codes.spec.bytes_per_vector, "ids": codes.with_ids}
            facts |= codes.spec.fields()
    elif header.kind == "codes folder":
        facts |= _folder(path.parent)
    elif header.kind == "pairwise":
        decoders = load_pairwise(path)
        facts |= header.config | {"tables": len(decoders.tables_TRD), "training": decoders.training}
    elif header.kind == "centroids":
        facts |= header.config | {"training": load_centroids(path).training}
    elif header.kind in ("index", "index shards"):
        facts |= _index(path) if header.kind == "index" else _shards(path)
    else:
        facts["config"] = header.config
    return facts


def _folder(folder: Path) -> dict[str, Any]:
    from qinco_core.store.folder import part_path, read_manifest

    manifest = read_manifest(folder)
    there = sum(part_path(folder, number).exists() for number in range(len(manifest.parts)))
    return {
        "vectors": manifest.count,
        "parts": f"{there} of {len(manifest.parts)}, of {manifest.parts.rows} vectors each",
        "bytes per vector": manifest.spec.bytes_per_vector,
        "ids": manifest.with_ids,
        **manifest.spec.fields(),
    }


def _index(path: Path) -> dict[str, Any]:
    from qinco_core.store.index import load_index

    stored = load_index(path)
    facts = _entries([stored]) | {"made from": _sources(stored.config), "operating points": len(stored.front)}
    return facts | {"model": stored.config["model"]}


def _shards(path: Path) -> dict[str, Any]:
    from qinco_core.store.shards import load_shards

    stored = load_shards(path)
    facts = {"shards": len(stored.shards)} | _entries(stored.shards)
    return facts | {"made from": _sources(stored.config), "model": stored.config["model"]}


def _entries(shards: Sequence[StoredIndex]) -> dict[str, Any]:
    """What is in one or more indexes."""
    count = sum(len(shard.flat["ids"]) for shard in shards)
    size = sum(array.nbytes for shard in shards for array in shard.flat.values())
    lists = len(shards[0].arrays["centroids"])
    return {"vectors": count, "lists": lists, "bytes per vector": size / max(1, count)}


def _sources(config: dict[str, Any]) -> list[str]:
    return [f"{source['kind']} {source['path'] or 'of unknown place'}" for source in config["sources"]]


def _unfinished(path: Path) -> dict[str, Any]:
    from qinco_core.errors import ArtifactError
    from qinco_core.store.journal import read_journal

    begun = read_journal(path)
    if begun is None:
        raise ArtifactError(f"{path} holds nothing yet")
    job, done = begun
    facts = {"file": str(path), "kind": "unfinished codes", "vectors": done, "of": job.count, "ids": job.with_ids}
    return facts | {"source": job.source} | job.spec


def _stream(path: Path) -> dict[str, Any]:
    from qinco_core.errors import QincoError, StreamError
    from qinco_core.store import StreamReader

    with path.open("rb") as handle:
        try:
            reader = StreamReader(handle)
        except StreamError as error:
            try:  # Arrow streams carry vectors as well
                return _vectors(str(path), None)
            except QincoError:
                raise error from None
        count = reader.count
        return {"file": str(path), "kind": "stream of codes", "vectors": count, **reader.spec.fields()}


def _dataset(named: Dataset) -> dict[str, Any]:
    from qinco_core.datasets import plan

    spec = named.spec
    facts: dict[str, Any] = {
        "name": named.name,
        "kind": "data set",
        "about": spec.about,
        "registry": str(named.entry.origin),
    }
    facts |= {"D": spec.dim, "metric": spec.metric, "limit": spec.limit, "mse scale": spec.mse_scale}
    for row in plan(named.entry, ask=False):
        facts |= {part: {"state": row.state, "file": str(row.path)} for part in row.parts}
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _vectors(file: str, format: str | None) -> dict[str, Any]:
    from qinco_core.datasets import open_named
    from qinco_core.vectors.remote import shown

    with open_named(file, "base", format=format) as vectors:
        N, D = vectors.shape
        return {"file": shown(file), "kind": "vectors", "format": vectors.format, "vectors": N, "D": D} | {
            "dtype": str(vectors.dtype)
        }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_text(inner)}" for name, inner in value.items() if inner not in (None, {}))
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
