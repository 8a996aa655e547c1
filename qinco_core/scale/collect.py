"""Codes that others have made become one file: parts in a folder, or a stream from another machine.

Of a stream that was cut, whole chunks stay beside the file that is to be. The sender begins with the first row that is
not there yet, and only its stream's being the same job's next part lets it go on. A batch is kept when something has
come after it, so that there is always a rest for the sender to vouch for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from qinco_core.errors import LineageError, StreamError, UsageError
from qinco_core.files import check_output
from qinco_core.progress import Progress
from qinco_core.store import CodeRows, CodesFolder, StreamReader, create_codes, open_codes, partial_path
from qinco_core.store.journal import Job, read_journal

# codes copied together when parts are merged, a whole number of their chunks
_MERGED_ROWS = 1 << 17


def merge_codes(folder: Path, path: Path, *, progress: Progress, force: bool = False, resume: bool = False) -> str:
    """Make one file of codes of the parts in a folder, which stay; returns its fingerprint.

    Args:
        folder: all parts are there.
        path: the artifact.
        progress: told of every batch.
        force: overwrite an artifact, or drop an unfinished job.
        resume: continue an unfinished job.

    Raises:
        ArtifactError: a part is missing or damaged; else as of `create_codes`.
    """
    check_output(path, force=force)
    with open_codes(folder) as codes:
        if not isinstance(codes, CodesFolder):
            raise UsageError(f"{folder} is one file already; name a folder of parts")
        manifest = codes.manifest
        writer = create_codes(
            path,
            spec=manifest.spec,
            count=manifest.count,
            with_ids=manifest.with_ids,
            source_stamp=codes.header.fingerprint,
            resume=resume,
            force=force,
            created=manifest.created,
        )
        progress.begin("merging", manifest.count, "codes")
        progress.advance(writer.done)
        with writer:
            for start in range(writer.done, len(codes), _MERGED_ROWS):
                rows = codes.rows(start, min(start + _MERGED_ROWS, len(codes)))
                writer.append(*rows)
                progress.advance(len(rows.codes))
        progress.end()
    assert writer.header is not None
    return writer.header.fingerprint


def receive_codes(
    reader: StreamReader, path: Path, *, progress: Progress, force: bool = False, resume: bool = False
) -> str:
    """Make a file of codes of a stream; returns its fingerprint.

    Ids that are the rows' numbers in their source are left out, as where vectors are encoded to a file.

    Args:
        reader: the stream, whole or, with `resume`, from the first row on that is not here yet.
        path: the artifact. A cut stream leaves none, but its whole chunks as an unfinished job.
        progress: told of every batch.
        force: overwrite an artifact, or drop an unfinished job.
        resume: continue an unfinished job.

    Raises:
        StreamError: the stream was cut or damaged; the message says how to send the rest. Or an old version sent it.
        LineageError: `resume`, and the stream is of another model, encoder or source, or begins with another row;
            else as of `create_codes`.
    """
    check_output(path, force=force)
    if reader.first is None:
        raise StreamError("the stream does not say which rows it has; send it with this version of qinco")
    begun = read_journal(partial_path(path)) if resume else None
    first = reader.first if begun is None else _first_row(begun[0])
    if resume and begun is None and first > 0:
        raise LineageError(
            f"there is no {partial_path(path)} to go on with, but the stream begins with row {first}: "
            "send it whole, or leave --resume out if this is all"
        )
    done = reader.first - first
    writer = create_codes(
        path,
        spec=reader.spec.job,
        count=None if reader.count is None else done + reader.count,
        with_ids=reader.with_ids and not (reader.row_ids and first == 0),
        source_stamp=f"a stream {'with ids of rows' if reader.row_ids else 'with ids'} from row {first}",
        resume=resume,
        force=force,
    )
    progress.begin("receiving", reader.count, "codes")
    try:
        with writer:
            writer.record(**reader.spec.encoder)
            if writer.done != done:
                raise LineageError(
                    f"the stream begins with row {reader.first}, but the first that is not here yet is "
                    f"{first + writer.done}: send it with --skip {first + writer.done}"
                )
            for rows in _one_behind(reader):
                writer.append(rows.codes, rows.ids if writer.with_ids else None, rows.lists)
                progress.advance(len(rows.codes))
    except StreamError as error:
        raise StreamError(f"{error}{remainder(path)}") from error
    progress.end()
    assert writer.header is not None
    return writer.header.fingerprint


def _one_behind(batches: StreamReader) -> Iterator[CodeRows]:
    """Every batch when it is known that it was not the last, and the last when the stream has ended well."""
    held = None
    for rows in batches:
        if held is not None:
            yield held
        held = rows
    if held is not None:
        yield held


def _first_row(job: Job) -> int:
    """The number in its source of the first row that a stream brought."""
    found = re.fullmatch(r"a stream .* from row (\d+)", job.source)
    return int(found[1]) if found else 0


def remainder(path: Path) -> str:
    """How to send what is missing of a stream that was to become `path`; empty where nothing was kept."""
    begun = read_journal(partial_path(path))
    if begun is None or not begun[1]:
        return ""
    row = _first_row(begun[0]) + begun[1]
    return (
        f" from row {row} on: qinco encode ... --skip {row} -o - | qinco merge - -o {shlex.quote(str(path))} --resume"
    )
