"""Arrow IPC files (Feather) and streams: a column of lists, in one file or a folder, `file.arrow::embedding`.

Where the column lies in the file as it is, only its places are remembered when it is opened, and rows
are read from there. What is compressed is unpacked into a temporary file at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from qinco_core.errors import StorageError, VectorFileError
from qinco_core.vectors.base import Append, Array, Layout, Outline, Rows, read_up_to, refuse_signature
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
from qinco_core.vectors.parts import Parts, mark_of
from qinco_core.vectors.pipe import Inlet
from qinco_core.vectors.spill import Spill

MAGIC = b"ARROW1"
_HEAD_BYTES = 8
_END = b"\xff\xff\xff\xff\0\0\0\0"
_OLD = b"FEA1"
_FOOT_BYTES = 4 + len(MAGIC)  # the length of the footer and the mark, which end a file
_MOST_OPEN = 64
_SPILLED = -1


def open_rows(name: str, files: Sequence[Path], key: str | None) -> tuple[Rows, str | None]:
    """The rows of column `key`, or of the only one of lists of numbers, and the column's name.

    Every batch is looked at: nulls and uneven lists are found here.

    Raises:
        UsageError: no such column, or several to choose from.
        VectorFileError: damaged, cut, no Arrow, without vectors, or files that are not alike.
        StorageError: no room is left in $TMPDIR to unpack what is compressed.
    """
    column: Column | None = None
    marks = [mark_of(path) for path in files]
    for path in files:
        with damage(str(path), "Arrow"):
            found = vector_column(_schema(path), key if column is None else column.name, str(path))
        column = found if column is None else column.matching(found, path, files[0])
    if column is None:
        raise VectorFileError(f"{name} holds no files")
    places = _Places(column)
    for part, path in enumerate(files):
        places.scan(part, path)
    layout = column.layout(f"{name}::{column.name}", sum(places.counts), lambda: places.D)
    return SegmentRows(Parts(files, marks, places.counts, column.name), layout, places), column.name


def read_ids(name: str, files: Sequence[Path], key: str | None) -> Array:
    """The ids in column `key`, in one called id, or in the only column of integers.

    Raises:
        UsageError: no such column, or none that holds integers.
        VectorFileError: damaged, cut, no Arrow, or an id is null.
    """
    found: list[Array] = []
    for path in files:
        with damage(str(path), "Arrow"):
            key, at = id_column(_schema(path), key, str(path)), 0
            with pa.OSFile(str(path)) as source:
                for array in _columns(source, key, str(path), alone=True):
                    # a view would keep all that came with it in memory
                    found.append(checked(array, f"{path}::{key}", at).to_numpy().copy())
                    at += len(found[-1])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _schema(path: Path) -> Any:
    with pa.memory_map(str(path)) as source:
        return _reader(source, str(path)).schema


def _reader(source: Any, name: str, options: Any = None) -> Any:
    """A reader of a file or of a stream, whichever it is."""
    head = source.read(_HEAD_BYTES)
    source.seek(0)
    refuse_signature(head, "arrow", name)
    if head[:4] == _OLD:
        raise VectorFileError(f"{name} is Feather of version 1; write it again with pyarrow.feather.write_feather")
    opened = pa.ipc.open_file if head[: len(MAGIC)] == MAGIC else pa.ipc.open_stream
    return opened(source, options=options)


def _columns(source: Any, column: str, name: str, *, alone: bool) -> Iterator[Any]:
    """A column batch by batch; `alone`: the others are left unread, and what lies in memory is copied."""
    source.seek(0)
    reader = _reader(source, name)
    if alone:
        options = pa.ipc.IpcReadOptions(included_fields=[reader.schema.get_field_index(column)])
        source.seek(0)
        reader = _reader(source, name, options)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(column)
        return
    for batch in reader:
        yield batch.column(column)
    source.seek(source.tell() - len(_END))
    if source.read(len(_END)) != _END:
        raise VectorFileError(f"{name} has no end mark: it was cut; make it again")
    if source.read(1):
        raise VectorFileError(f"{name} goes on after its end mark: are these several streams? Convert each alone")


class _Places:
    """Where the rows of each batch lie: the file or `_SPILLED`, the first byte, and how many there are."""

    def __init__(self, column: Column) -> None:
        self.D = column.D or 0
        self.counts: list[int] = []
        self.spill: Spill | None = None
        self.segments: list[tuple[int, int, int]] = []
        self._column = column
        self._spilled = 0

    def scan(self, part: int, path: Path) -> None:
        """Look at every batch of a file."""
        name = f"{path}::{self._column.name}"
        with damage(name, "Arrow"):
            with pa.memory_map(str(path)) as source:
                arrays = _columns(source, self._column.name, str(path), alone=False)
                if self._note(part, arrays, name, source.read_buffer()):
                    return
            # compressed: a map of the file would keep all of it in memory
            with pa.OSFile(str(path)) as source:
                self._note(part, _columns(source, self._column.name, str(path), alone=True), name, None)

    def _note(self, part: int, arrays: Iterator[Any], name: str, mapped: Any) -> bool:
        """Note where the rows of all batches lie in the mapped file; False, and nothing, where one lies elsewhere.

        Without a mapped file they are unpacked.
        """
        at, segments = 0, []
        for array in arrays:
            if not len(array):
                continue
            self.D = self.D or first_length(array, name)
            block = vectors_of(array, Layout(self._column.dtype, self.D, None), name, at)
            if mapped is None:
                segments.append((_SPILLED, self._unpack(block, name), len(block)))
            else:
                offset = block.ctypes.data - mapped.address
                if not 0 <= offset <= mapped.size - block.nbytes:
                    return False
                segments.append((part, offset, len(block)))
            at += len(block)
        self.segments += segments
        self.counts.append(at)
        return True

    def _unpack(self, block: Array, name: str) -> int:
        """Put a block behind those unpacked before; gives its first byte."""
        if self.spill is None:
            self.spill = Spill(Layout(block.dtype, block.shape[1], None), name)
        self.spill.write(self._spilled, block)
        self._spilled += len(block)
        return (self._spilled - len(block)) * int(block[0].nbytes)


class SegmentRows:
    """`Rows` that lie at many places of several files and of a temporary one."""

    def __init__(self, parts: Parts, layout: Layout, places: _Places) -> None:
        self.layout = layout
        self._parts = parts
        self._spill = places.spill
        self._files, self._offsets, counts = (np.array(each, np.int64) for each in zip(*places.segments, strict=True))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, D] array.

        Raises:
            VectorFileError: a file has shrunk or was replaced since it was opened.
        """
        out = np.empty((stop - start, self.layout.D), self.layout.native)
        at = start
        while at < stop:
            segment = int(np.searchsorted(self._starts, at, side="right")) - 1
            end = min(stop, int(self._starts[segment + 1]))
            self._read(segment, at, out[at - start : end - start])
            at = end
        return out

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers (int64 [n], at least one) as a fresh [n, D] array.

        Raises:
            VectorFileError: as in `fetch`.
        """
        out = np.empty((len(rows), self.layout.D), self.layout.native)
        order = np.argsort(rows, kind="stable")  # file after file, however many there are
        segments = np.searchsorted(self._starts, rows, side="right") - 1
        for i in order.tolist():
            self._read(int(segments[i]), int(rows[i]), out[i : i + 1])
        return out

    def place(self, row: int) -> tuple[str, int]:
        """The file and column of a row, and its number there."""
        return self._parts.place(row)

    def _read(self, segment: int, row: int, out: Array) -> None:
        """Fill `out` with rows of one segment."""
        offset = int(self._offsets[segment]) + (row - int(self._starts[segment])) * self.layout.row_bytes
        raw = out.reshape(-1).view(np.uint8).data
        with self._lock:
            descriptor = self._descriptor(int(self._files[segment]))
            while raw:
                count = os.preadv(descriptor, [raw], offset)
                if count == 0:
                    raise VectorFileError(f"{self.place(row)[0]} became shorter while it was read; run again")
                raw, offset = raw[count:], offset + count

    def _descriptor(self, file: int) -> int:
        if file == _SPILLED and self._spill is not None:
            return self._spill.fileno()
        if file not in self._open:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            path = self._parts.files[file]
            try:
                descriptor = os.open(str(path), os.O_RDONLY)
            except OSError as error:
                raise StorageError(f"{path} cannot be read ({error.strerror}); it was there before") from error
            try:
                self._parts.check(file, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            self._open[file] = descriptor
        self._open.move_to_end(file)
        return self._open[file]


def _close(descriptors: OrderedDict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


class ArrowFeed:
    """A `Feed` of the only column of lists of numbers of an Arrow stream; a file may come through the pipe as well."""

    def __init__(self, handle: BinaryIO, name: str) -> None:
        head = bytes(read_up_to(handle, _HEAD_BYTES))
        refuse_signature(head, "arrow", name)
        # a file is a stream between a mark and a footer
        self._framed = head[: len(MAGIC)] == MAGIC
        self._inlet = Inlet(handle, b"" if self._framed else head)
        self._name = name
        self._row = 0
        self._ended = self._surplus = False
        with damage(name, "Arrow"):
            self._reader = pa.ipc.open_stream(pa.PythonFile(self._inlet, mode="r"))
            self._column = vector_column(self._reader.schema, None, name, piped=True)
            array = self._next_array()
            D = self._column.D or (first_length(array, name) if array is not None else 1)
            self.layout = self._column.layout(name, 0 if array is None else 1, lambda: D)
            self.layout = Layout(self.layout.dtype, D, None)
            self._left = vectors_of(array, self.layout, name, 0)

    def take(self, n: int) -> Array:
        """The next n rows; fewer, or none, only at the end of the stream.

        Raises:
            VectorFileError: the stream is cut or damaged, or a row is null, holds a null, or is not of D elements.
        """
        found: list[Array] = [self._left[:0]]
        while n and self._more():
            found.append(self._left[:n])
            self._left = self._left[n:]
            self._row += len(found[-1])
            n -= len(found[-1])
        return np.concatenate(found)

    def finish(self) -> None:
        """Refuse what comes after the end."""
        if self._ended and (self._surplus or self._inlet.read(1)):
            raise VectorFileError(f"{self._name} goes on after the end of its {self._row} vectors; check the sender")

    def _more(self) -> bool:
        if not len(self._left):
            with damage(self._name, "Arrow"):
                array = self._next_array()
                if array is not None:
                    self._left = vectors_of(array, self.layout, self._name, self._row)
        return len(self._left) > 0

    def _next_array(self) -> Any:
        """The column of the next batch that is not empty, or None at the end, which must be whole."""
        if self._ended:
            return None
        for batch in self._reader:
            if batch.num_rows:
                return batch.column(self._column.name)
        if self._inlet.tail != _END or (self._framed and not self._footer()):
            raise VectorFileError(f"{self._name} was cut after {self._row} vectors; check the sender")
        self._ended = True
        return None

    def _footer(self) -> bool:
        """Read what follows the end mark of a file: whether it ends as a file does, with a footer."""
        length, foot = 0, b""
        while piece := self._inlet.read(1 << 16):
            length, foot = length + len(piece), (foot + piece)[-_FOOT_BYTES:]
        self._surplus = length != int.from_bytes(foot[:4], "little") + _FOOT_BYTES
        return foot[4:] == MAGIC


@contextlib.contextmanager
def write_rows(handle: BinaryIO, outline: Outline) -> Iterator[Append]:
    """Write an Arrow IPC file, or to a pipe an Arrow IPC stream; a batch for every block."""
    schema = output_schema(outline)
    writer = (pa.ipc.new_stream if outline.piped else pa.ipc.new_file)(handle, schema)

    def append(block: Array, ids: Array | None) -> None:
        if len(block):
            writer.write_batch(output_batch(schema, block, ids))

    yield append
    writer.close()  # not after a failure: without the end mark what was sent is seen to be cut
