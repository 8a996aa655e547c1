"""Published codes (method §7), in and out: an index file, and numbered parts beside it.

`NAME.npz` has the numbers n_parts, K, M, D; `NAME.part_I.npz` the symbols of some vectors, int64 [n, M], of an IVF
model [n, 1 + M] with the list number first.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.packing import pack, unpack
from qinco_core.config import ModelConfig
from qinco_core.errors import ForeignFileError, LineageError, UsageError
from qinco_core.files import atomic_output, check_output, existing_file, folder_for, storage_errors
from qinco_core.interop.zips import check_zip
from qinco_core.progress import Progress
from qinco_core.store import CodeRows, CodesSpec, Header, StoredCodes, create_codes, partial_path
from qinco_core.vectors import VectorFile, open_vectors
from qinco_core.vectors.npz import DAMAGE

_FIELDS = ("n_parts", "K", "M", "D")
_KEY = "codes"
_ROWS = 1 << 16
# 1 TiB of vectors at the default size of a part
_MOST_PARTS = 1_000_000


@dataclass(frozen=True)
class PublishedCodes:
    """An index file, read: the sizes it tells, and the paths of its parts, which are there."""

    path: Path
    K: int
    M: int
    D: int
    parts: tuple[Path, ...]


def part_path(path: Path, number: int) -> Path:
    """Where part `number` of the codes with the index file `path` lies."""
    return path.with_name(f"{path.stem}.part_{number}.npz")


def read_published(path: str | Path) -> PublishedCodes:
    """Read the index file of published codes.

    Raises:
        InputNotFoundError: it is not there.
        ForeignFileError: it is damaged or something else, or a part is missing; the message names it.
    """
    path = existing_file(path)
    check_zip(path)
    numbers = _numbers(path)
    if not 1 <= numbers["n_parts"] <= _MOST_PARTS:
        raise ForeignFileError(f"{path}: n_parts is {numbers['n_parts']}, which cannot be")
    parts = [part_path(path, number) for number in range(numbers["n_parts"])]
    if missing := [part for part in parts if not part.is_file()]:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ForeignFileError(
            f"{path} says there are {len(parts)} parts, but {missing[0]} is missing{more}: copy all parts beside it"
        )
    return PublishedCodes(path, numbers["K"], numbers["M"], numbers["D"], tuple(parts))


def import_codes(
    published: PublishedCodes, config: ModelConfig, model: Header, out: str | Path, *, progress: Progress, force: bool
) -> tuple[Header, int]:
    """Write published codes as a codes artifact.

    All parts are checked before anything is written. Nothing stays when it fails or is interrupted; what a killed
    import of the same codes left is gone on with.

    Args:
        published: what `read_published` found.
        config: the model that made them, as far as they can tell.
        model: its header, which the artifact will name as its parent.
        out: the artifact.
        progress: told of every batch.
        force: overwrite what is there.

    Returns:
        The artifact's header, and the number of codes.

    Raises:
        LineageError: the codes have other sizes than the model's; or another job for the same output is unfinished,
            and `force` is false.
        ForeignFileError: a part is damaged, misshapen, or has symbols or list numbers that cannot be.
        OutputExistsError, StorageError: the output exists, or the disk is full or read-only.
    """
    sizes = {"M": published.M, "K": published.K, "D": published.D}
    if differing := [f"{name} = {n}" for name, n in sizes.items() if getattr(config, name) != n]:
        raise LineageError(
            f"{published.path} has codes with {', '.join(differing)}, but the model D = {config.D}, M = {config.M}, "
            f"K = {config.K}: name the model that made them with --model"
        )
    check_output(out, force=force)
    count, stamp = _check(published, config, progress)
    encoder = {"imported": published.path.name}
    spec = CodesSpec(model=model.fingerprint, **sizes, ivf_K=config.ivf_K, dtype="float32", encoder=encoder)
    progress.begin("importing", count, "codes")
    with folder_for(Path(out)):
        # resumed, so that what a killed import left is no obstacle, and the unfinished job of an encoder is one
        writer = create_codes(out, spec=spec, count=count, with_ids=False, source_stamp=stamp, resume=True, force=force)
        try:
            with writer:
                progress.advance(writer.done)
                for codes in _batches(published, config, writer.done):
                    symbols = codes[:, 1:] if config.ivf_K else codes
                    writer.append(pack(symbols, config.K), None, codes[:, 0] if config.ivf_K else None)
                    progress.advance(len(codes))
        except BaseException:
            partial_path(out).unlink(missing_ok=True)
            raise
    progress.end()
    assert writer.header is not None
    return writer.header, count


def export_codes(
    codes: StoredCodes, out: str | Path, *, part_rows: int, progress: Progress, force: bool
) -> tuple[Path, ...]:
    """Write a codes artifact as published codes, all files or none.

    They are put in place when all are written, the index file, which makes them whole, last.

    Args:
        codes: an open artifact. Ids have no place in the published format.
        out: the index file, `.npz`.
        part_rows: codes of a part.
        progress: told of every part.
        force: replace an earlier export, with all its parts; it stays as it is when this one fails.

    Returns:
        The files written.

    Raises:
        OutputExistsError, StorageError: one of the files, or another part of an earlier export, exists, or the disk
            is full or read-only.
        UsageError: `part_rows` is not positive.
    """
    if part_rows < 1:
        raise UsageError(f"a part of {part_rows} codes cannot be; use 1 or more")
    out = Path(out)
    count, spec = len(codes), codes.spec
    parts = [part_path(out, number) for number in range(max(1, -(-count // part_rows)))]
    surplus = _parts_there(out) - set(parts)
    for path in (out, *parts, *sorted(surplus)):
        check_output(path, force=force)
    progress.begin("exporting", count, "codes")
    with contextlib.ExitStack() as outputs:  # the last that is written is the first that is put in place
        _save(out, {"n_parts": len(parts), "K": spec.K, "M": spec.M, "D": spec.D}, outputs, force=force)
        for number, path in enumerate(parts):
            rows = codes.rows(number * part_rows, min(count, (number + 1) * part_rows))
            _save(path, {_KEY: _symbols(rows, spec)}, outputs, force=force)
            progress.advance(len(rows.codes))
        # of an earlier export, which is no more whole when the first part is in place
        out.unlink(missing_ok=True)
    with storage_errors(out):
        for path in surplus:
            path.unlink(missing_ok=True)
    progress.end()
    return (*parts, out)


def _parts_there(out: Path) -> set[Path]:
    """The files whose names are those of parts of an export to `out`."""
    name = re.compile(re.escape(out.stem) + r"\.part_(0|[1-9][0-9]*)\.npz")
    return {path for path in out.parent.glob("*.npz") if name.fullmatch(path.name)}


def _symbols(rows: CodeRows, spec: CodesSpec) -> NDArray[np.int64]:
    symbols = unpack(rows.codes, spec.M, spec.K).astype(np.int64)
    return symbols if rows.lists is None else np.column_stack([rows.lists.astype(np.int64), symbols])


def _save(path: Path, arrays: dict[str, Any], outputs: contextlib.ExitStack, *, force: bool) -> None:
    """Write arrays to a temporary path, which `outputs` puts in place at its end."""
    temporary = outputs.enter_context(atomic_output(path, force=force))
    with temporary.open("wb") as handle:
        np.savez(handle, **arrays)


def _numbers(path: Path) -> dict[str, int]:
    """The whole numbers of an index file."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            found = {name: file[name] for name in _FIELDS if name in file}
    except DAMAGE as error:  # an array of objects is one too
        raise ForeignFileError(f"{path} cannot be read ({error}); it is damaged, or no published codes") from error
    for name in _FIELDS:
        if name not in found:
            raise ForeignFileError(f"{path}: {name} is missing; published codes tell {', '.join(_FIELDS)}")
        value = found[name]
        if value.ndim or value.dtype.kind not in "iu":
            raise ForeignFileError(f"{path}: {name} is {value.dtype} of shape {value.shape}, not a whole number")
    return {name: int(value) for name, value in found.items()}


def _check(published: PublishedCodes, config: ModelConfig, progress: Progress) -> tuple[int, str]:
    """Look through all parts; returns the number of codes, and a text that changes when a part does."""
    stamps = hashlib.blake2b(digest_size=16)
    progress.begin("checking", len(published.parts), "parts")
    count, width = 0, config.M + (config.ivf_K > 0)
    for path in published.parts:
        check_zip(path)
        with _open(path) as file:
            if file.dtype.kind not in "iu" or file.dim != width:
                raise ForeignFileError(
                    f"{path}: {_KEY} is {file.dtype} with {file.dim} columns; codes of this model are integers with "
                    f"{width}{' (the list number first)' if config.ivf_K else ''}"
                )
            for codes in file.batches(_ROWS):
                _check_range(codes, config, path)
            count += len(file)
            stamps.update(file.stamp.encode())
        progress.advance(1)
    progress.end()
    return count, f"published codes {published.path.name} {stamps.hexdigest()}"


def _check_range(codes: NDArray[Any], config: ModelConfig, path: Path) -> None:
    first = int(config.ivf_K > 0)
    parts = [("symbols", codes[:, first:], config.K)]
    if first:
        parts.append(("list numbers", codes[:, :1], config.ivf_K))
    for what, numbers, end in parts:
        if not 0 <= numbers.min() <= numbers.max() < end:
            raise ForeignFileError(
                f"{path}: {_KEY} has {what} from {numbers.min()} to {numbers.max()}, but this model's are below {end}"
            )


def _batches(published: PublishedCodes, config: ModelConfig, done: int) -> Iterator[NDArray[Any]]:
    """All codes after the first `done`."""
    for path in published.parts:
        with _open(path) as file:
            skipped = min(done, len(file))
            done -= skipped
            for codes in file.section(skipped, len(file)).batches(_ROWS):
                _check_range(codes, config, path)  # it may have changed since it was checked
                yield codes


def _open(path: Path) -> VectorFile:
    return open_vectors(f"{path}::{_KEY}")
