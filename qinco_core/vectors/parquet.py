"""Parquet: a column of lists, in one file or a folder of them, named as `file.parquet::embedding`.

In order, rows are decoded a few thousand at a time and every row group once. Rows in any other order
come from a temporary file into which each row group is unpacked when one of its rows is first asked for;
so do ranges that begin inside a row group, from the second one on.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qinco_core.errors import VectorFileError
from qinco_core.files import write_all
from qinco_core.vectors.base import Append, Array, Layout, Outline, Rows, refuse_signature
from qinco_core.vectors.columns import (
    Column,
    checked,
    damage,
    first_length,
    id_column,
    output_batch,
    output_schema,
    vector_column,
    vectors_of,
)
from qinco_core.vectors.parts import Mark, Parts, mark_of
from qinco_core.vectors.remote import File, RemoteFile
from qinco_core.vectors.spill import Spill

_PIECE_BYTES = 4 << 20
_GROUP_BYTES = 64 << 20
_READ_BYTES = 1 << 20


def open_rows(name: str, files: Sequence[File], key: str | None) -> tuple[Rows, str | None]:
    """The rows of column `key`, or of the only one of lists of numbers, and the column's name.

    Only the footers are read, and the first row where the column's type does not tell D.

    Raises:
        UsageError: no such column, or several to choose from.
        VectorFileError: damaged, no Parquet, without vectors, or files that are not alike.
    """
    column: Column | None = None
    groups: list[tuple[int, int, int]] = []
    marks = [mark_of(path) for path in files]
    for part, path in enumerate(files):
        with damage(str(path), "Parquet"), _open(path) as file:
            found = vector_column(file.schema_arrow, key if column is None else column.name, str(path))
            column = found if column is None else column.matching(found, path, files[0])
            sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            groups += [(part, group, size) for group, size in enumerate(sizes) if size]
    if column is None:
        raise VectorFileError(f"{name} holds no files")
    chosen = column.name

    def length() -> int:
        part, group, _ = groups[0]
        with damage(f"{files[part]}::{chosen}", "Parquet"), _open(files[part]) as file:
            (batch, *_) = itertools.islice(file.iter_batches(1, [group], [chosen]), 1)
            return first_length(batch.column(chosen), f"{files[part]}::{chosen}")

    layout = column.layout(f"{name}::{chosen}", sum(size for *_, size in groups), length)
    return ParquetRows(files, marks, chosen, layout, groups), chosen


def open_remote(file: RemoteFile, key: str | None) -> tuple[Rows, str | None]:
    """The rows of a file at an address, as of `open_rows`.

    Raises:
        UsageError, VectorFileError: as of `open_rows`.
        StorageError: the server refuses, or cannot be reached.
    """
    return open_rows(file.address, [file], key)


def read_ids(name: str, files: Sequence[Path], key: str | None) -> Array:
    """The ids in column `key`, in one called id, or in the only column of integers.

    Raises:
        UsageError: no such column, or none that holds integers.
        VectorFileError: damaged, no Parquet, or an id is null.
    """
    found: list[Array] = []
    for path in files:
        with damage(str(path), "Parquet"), _open(path) as file:
            key = id_column(file.schema_arrow, key, str(path))
            at = 0
            for batch in file.iter_batches(columns=[key]):
                found.append(checked(batch.column(key), f"{path}::{key}", at).to_numpy())
                at += len(found[-1])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _open(file: File) -> Any:
    with file.open("rb") as handle:
        refuse_signature(handle.read(4), "parquet", str(file))
    source = file if isinstance(file, Path) else file.open()
    return pq.ParquetFile(source, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)


class ParquetRows:
    """`Rows` of a column: one place to read on from, and a temporary file for everything else."""

    def __init__(
        self,
        files: Sequence[File],
        marks: Sequence[Mark],
        column: str,
        layout: Layout,
        groups: list[tuple[int, int, int]],
    ) -> None:
        counts = np.zeros(len(files), np.int64)
        for part, _, size in groups:
            counts[part] += size
        self.layout = layout
        self._parts = Parts(files, marks, counts.tolist(), column)
        self._column = column
        self._groups = [(part, group) for part, group, _ in groups]
        self._starts = np.cumsum([0, *(size for *_, size in groups)])
        self._piece = max(1, min(1 << 16, _PIECE_BYTES // layout.row_bytes))
        self._lock = threading.Lock()
        # where `fetch` reads on: the row, the pieces that come, and what is left of the last one
        self._at = -1
        self._pieces: Iterator[Array] = iter(())
        self._left = np.empty((0, layout.D), layout.native)
        self._spill: Spill | None = None
        self._unpacked: set[int] = set()
        self._entered: set[int] = set()  # row groups that a range began inside of

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array.

        Raises:
            VectorFileError: damaged, replaced since it was opened, or a row that is null, holds a null, or is
                not of D elements.
            StorageError: no room is left in $TMPDIR.
        """
        out = np.empty((stop - start, self.layout.D), self.layout.native)
        if not len(out):
            return out
        with self._lock:
            at, self._at = self._at, -1  # a failure leaves no place to read on from
            if start != at:
                self._seek(start)
            filled = 0
            while filled < len(out):
                piece = self._next(len(out) - filled)
                out[filled : filled + len(piece)] = piece
                filled += len(piece)
            self._at = stop
        return out

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array.

        Raises:
            VectorFileError, StorageError: as in `fetch`.
        """
        with self._lock:
            wanted = np.unique(np.searchsorted(self._starts, rows, side="right") - 1)
            return self._unpack(wanted.tolist()).gather(rows)

    def place(self, row: int) -> tuple[str, int]:
        """The file and column of a row, and its number there."""
        return self._parts.place(row)

    def _unpack(self, groups: list[int]) -> Rows:
        """All rows as they lie in the temporary file, into which those of these row groups are put."""
        if self._spill is None:
            self._spill = Spill(self.layout, self._parts.name(0))
        for group in groups:
            if group not in self._unpacked:
                at = int(self._starts[group])
                for piece in self._decode(group, group + 1):
                    self._spill.write(at, piece)
                    at += len(piece)
                self._unpacked.add(group)
        return self._spill.rows(self.layout.count or 0)

    def _seek(self, start: int) -> None:
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        skip = start - int(self._starts[group])
        self._left = self._left[:0]
        if skip and group in self._entered | self._unpacked:
            self._pieces = itertools.chain(self._unpacked_from(start, group), self._from(group + 1))
            return
        if skip:
            self._entered.add(group)
        self._pieces = self._from(group)
        while skip:
            skip -= len(self._next(skip))

    def _next(self, most: int) -> Array:
        """The next rows, at least one and at most `most`."""
        while not len(self._left):
            self._left = next(self._pieces)
        piece, self._left = self._left[:most], self._left[most:]
        return piece

    def _unpacked_from(self, start: int, group: int) -> Iterator[Array]:
        """The rows from `start` to the end of its row group, out of the temporary file."""
        rows, stop = self._unpack([group]), int(self._starts[group + 1])
        for at in range(start, stop, self._piece):
            yield rows.fetch(at, min(at + self._piece, stop))

    def _from(self, group: int) -> Iterator[Array]:
        """All rows from the start of a row group to the end, file after file."""
        while group < len(self._groups):
            end = group + 1
            while end < len(self._groups) and self._groups[end][0] == self._groups[group][0]:
                end += 1
            yield from self._decode(group, end)
            group = end

    def _decode(self, group: int, end: int) -> Iterator[Array]:
        """The rows of the row groups group..end-1, all of one file, piece by piece and none too few."""
        part = self._groups[group][0]
        name, first = self._parts.name(part), int(self._parts.starts[part])
        at, stop = int(self._starts[group]), int(self._starts[end])
        numbers = [number for _, number in self._groups[group:end]]
        with damage(name, "Parquet"), _open(self._parts.files[part]) as file:
            self._parts.check(part)
            for batch in file.iter_batches(self._piece, numbers, [self._column]):
                piece = vectors_of(batch.column(self._column), self.layout, name, at - first)
                at += len(piece)
                if at > stop:
                    break
                yield piece
        if at != stop:
            raise VectorFileError(f"{name} has not as many rows as its footer says; it is damaged: make it again")


@contextlib.contextmanager
def write_rows(handle: BinaryIO, outline: Outline) -> Iterator[Append]:
    """Write a Parquet file in row groups of about 64 MiB, with checksums."""
    schema = output_schema(outline)
    most = max(1, _GROUP_BYTES // outline.layout.row_bytes)
    # after a failure the library writes a footer that makes the file look whole: it writes here, and goes no further
    made = io.BytesIO()
    writer = pq.ParquetWriter(
        made, schema, compression="zstd", compression_level=1, use_dictionary=False, write_page_checksum=True
    )
    waiting: list[Any] = []

    def send() -> None:
        write_all(handle, made.getvalue())
        made.seek(0)
        made.truncate()

    def flush() -> None:
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema), row_group_size=most)
            waiting.clear()
            send()

    def append(block: Array, ids: Array | None) -> None:
        for at in range(0, len(block), most):
            part = slice(at, at + most)
            if sum(batch.num_rows for batch in waiting) + len(block[part]) > most:
                flush()
            # the caller may use the memory of the block again
            waiting.append(output_batch(schema, block[part].copy(), None if ids is None else ids[part].copy()))

    yield append
    flush()
    writer.close()
    send()
