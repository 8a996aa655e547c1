"""Codes on their way between processes and machines: an Arrow IPC stream.

The schema's metadata says what the codes are and with which row of their source they begin. The metadata of every
batch holds the count and a checksum of everything so far, so that what came before a cut can be kept; after the last
one comes a closing record of the same kind without rows, then Arrow's end-of-stream mark. A stream without these was
cut. Memory is bounded by one batch at both ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from qinco_core.errors import ArtifactError, ArtifactVersionError, QincoError, StreamError, UsageError
from qinco_core.files import storage_errors
from qinco_core.store.artifact import (
    FORMAT_VERSION,
    canonical_json,
    fingerprint_of,
    first_bytes,
    refuse_newer,
    writer_version,
)
from qinco_core.store.lists import check_lists
from qinco_core.store.spec import CodeRows, Codes, CodesSpec, ContentHash, check_rows
from qinco_core.vectors.pipe import Inlet, Outlet

BATCH_ROWS = 65536
MESSAGE_BYTES = 1 << 28  # no message of a stream of codes is larger; a damaged length may say so
_END = b"\xff\xff\xff\xff\0\0\0\0"
_PREFIX = "qinco."
_NUMBERS = ("D", "M", "K")


def is_stream(path: str | Path) -> bool:
    """Whether a file begins like an Arrow IPC stream; an HDF5 artifact does not.

    Raises:
        StorageError: it cannot be read.
    """
    return first_bytes(Path(path), 4) == _END[:4]


def _schema(metadata: Mapping[str, str], spec: CodesSpec, *, with_ids: bool) -> Any:
    fields = [pa.field("code", pa.binary(spec.code_bytes), nullable=False)]
    if with_ids:
        fields.append(pa.field("id", pa.int64(), nullable=False))
    if spec.ivf_K:
        fields.append(pa.field("list", pa.uint32(), nullable=False))
    return pa.schema(fields, metadata=dict(metadata))


def _metadata(spec: CodesSpec, count: int | None, first: int | None, row_ids: bool) -> dict[str, str]:
    values = {
        "kind": "codes",
        "format_version": str(FORMAT_VERSION),
        "writer": writer_version(),
        "model": spec.model,
        "dtype": spec.dtype,
        "encoder": canonical_json(spec.encoder),
    } | {name: str(getattr(spec, name)) for name in _NUMBERS}
    if spec.ivf_K:
        values["ivf_K"] = str(spec.ivf_K)
    if count is not None:
        values["count"] = str(count)
    if first is not None:
        values["first"] = str(first)
    if row_ids:
        values["ids"] = "rows"
    return {_PREFIX + name: value for name, value in values.items()}


def _checksum(metadata: Mapping[str, str], content: ContentHash) -> str:
    ours = {name: value for name, value in metadata.items() if name.startswith(_PREFIX)}
    return fingerprint_of({"metadata": ours} | content.content())


class StreamWriter:
    """Writes codes to a pipe or file; a context manager whose normal end closes the stream properly.

    When the block raises, the closing record is left out, so that the reader sees a cut stream. The
    sink itself stays open. A sink that is a broken pipe raises `BrokenPipeError`. `count` is the number of codes
    where it is known, `first` the number of the first one's row in its source, and `row_ids` says that ids are these
    numbers.
    """

    def __init__(
        self,
        sink: BinaryIO,
        spec: CodesSpec,
        *,
        with_ids: bool,
        count: int | None,
        first: int | None = None,
        row_ids: bool = False,
    ) -> None:
        self.spec = spec
        self.with_ids = with_ids
        self._sink = sink
        self._count = count
        self._metadata = _metadata(spec, count, first, row_ids)
        self._schema = _schema(self._metadata, spec, with_ids=with_ids)
        self._hash = ContentHash(with_ids=with_ids, with_lists=spec.ivf_K > 0)
        self._writer: Any = None

    def append(self, codes: Codes, ids: ArrayLike | None = None, lists: ArrayLike | None = None) -> None:
        """Send rows.

        Args:
            codes: packed, uint8 [n, code_bytes].
            ids: integers [n], if the stream has ids.
            lists: list numbers [n], if the model has lists.

        Raises:
            DimensionError: a shape does not fit.
            StorageError: the disk behind the sink is full.
            UsageError: a dtype or list number does not fit, something is missing, or there are more rows
                than announced.
        """
        rows = check_rows(codes, ids, lists, self.spec, with_ids=self.with_ids)
        if self._count is not None and self._hash.count + len(codes) > self._count:
            raise UsageError(f"the stream was announced with {self._count} codes; more than that came")
        for at in range(0, len(codes), BATCH_ROWS):
            part = rows.cut(at, at + BATCH_ROWS)
            self._hash.update(part)
            self._send(self._batch(part))

    def _batch(self, rows: CodeRows) -> Any:
        count = len(rows.codes)
        columns = [
            pa.Array.from_buffers(field.type, count, [None, pa.py_buffer(np.ascontiguousarray(part))])
            for field, part in zip(self._schema, (part for part in rows if part is not None), strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _send(self, batch: Any) -> None:
        """Send a batch whose rows are hashed already."""
        metadata = {"count": str(self._hash.count), "checksum": _checksum(self._metadata, self._hash)}
        metadata = {_PREFIX + name: value for name, value in metadata.items()}
        with storage_errors(getattr(self._sink, "name", "the output stream")):
            self._writer.write_batch(batch, custom_metadata=metadata)

    def _close(self) -> None:
        if self._count is not None and self._hash.count != self._count:
            raise ArtifactError(f"the stream was announced with {self._count} codes; {self._hash.count} came")
        none = CodeRows(
            np.empty((0, self.spec.code_bytes), np.uint8),
            np.empty(0, np.int64) if self.with_ids else None,
            np.empty(0, np.int32) if self.spec.ivf_K else None,
        )
        self._send(self._batch(none))
        with storage_errors(getattr(self._sink, "name", "the output stream")):
            self._writer.close()
            self._sink.flush()

    def __enter__(self) -> Self:
        with storage_errors(getattr(self._sink, "name", "the output stream")):
            self._writer = pa.ipc.new_stream(Outlet(self._sink), self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close()


class StreamReader:
    """Reads codes from a pipe or file, batch by batch; iterate it once, to its end.

    `spec`, `with_ids`, `count` (None where the sender did not know it), `first` and `row_ids` (as of `StreamWriter`)
    are there at once. Batches are `CodeRows`, read-only. Only when the iteration has ended without an error is the
    stream known to be whole; where `first` is not None, each batch is known to be what was sent.

    Raises:
        StreamError: it is no stream of codes, or was cut, or damaged; also while iterating.
        ArtifactVersionError: a newer qinco wrote it.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._inlet = _Inlet(source)
        self._reader = _guarded(lambda: pa.ipc.open_stream(self._inlet))
        try:
            schema = self._reader.schema
            self._metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
            self.spec, self.count = self._parse()
            self.with_ids = "id" in schema.names
            first = self._metadata.get(f"{_PREFIX}first")
            self.first = None if first is None else int(first)
            self.row_ids = self._metadata.get(f"{_PREFIX}ids") == "rows"
        except ArtifactVersionError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StreamError(f"this stream carries no codes ({error}); send it with qinco") from error
        if not schema.equals(_schema({}, self.spec, with_ids=self.with_ids)):
            raise StreamError("the stream has other columns than codes, ids and lists; send it again")

    def _parse(self) -> tuple[CodesSpec, int | None]:
        values = {name.removeprefix(_PREFIX): value for name, value in self._metadata.items()}
        if values["kind"] != "codes":
            raise ValueError(f"kind {values['kind']!r}")
        refuse_newer("the stream", int(values["format_version"]), values.get("writer", "?"))
        spec = CodesSpec.parse(
            {name: int(values[name]) for name in _NUMBERS}
            | {
                "ivf_K": int(values.get("ivf_K", 0)),
                "model": values["model"],
                "dtype": values["dtype"],
                "encoder": json.loads(values["encoder"]),
            }
        )
        return spec, int(values["count"]) if "count" in values else None

    def __iter__(self) -> Iterator[CodeRows]:
        content = ContentHash(with_ids=self.with_ids, with_lists=self.spec.ivf_K > 0)
        batches = self._reader.iter_batches_with_custom_metadata()
        while (item := _guarded(lambda: next(batches, None))) is not None:
            rows = _guarded(lambda: self._rows(item.batch))
            content.update(rows)
            if item.custom_metadata is not None:
                _guarded(lambda: self._check_mark(item.custom_metadata, content))
                if not len(rows.codes):
                    _guarded(lambda: self._check_end(content, next(batches, None)))
                    return
            elif self.first is not None:  # older streams have a checksum at their end alone
                raise StreamError("the stream was damaged: a batch has no checksum; send it again")
            yield rows
        raise StreamError(f"the stream was cut after {content.count} codes; send it again")

    def _rows(self, batch: Any) -> CodeRows:
        batch.validate()
        if any(column.null_count or column.offset for column in batch.columns):
            raise StreamError("the stream has rows without codes; send it again")
        count, spec = batch.num_rows, self.spec
        # the buffers say how long they are, so numpy refuses a row count that is too large
        codes = np.frombuffer(_data(batch, 0), np.uint8, count * spec.code_bytes).reshape(count, spec.code_bytes)
        ids = np.frombuffer(_data(batch, 1), "<i8", count) if self.with_ids else None
        if not spec.ivf_K:
            return CodeRows(codes, ids)
        lists = np.frombuffer(_data(batch, -1), "<u4", count)
        try:
            return CodeRows(codes, ids, check_lists(lists, count, spec.ivf_K))
        except UsageError as error:
            raise StreamError(f"the stream was damaged: {error}; send it again") from error

    def _check_mark(self, mark: Any, content: ContentHash) -> None:
        said = {key.decode(): value.decode() for key, value in mark.items()}
        sent = int(said[f"{_PREFIX}count"])
        if sent != content.count:
            raise StreamError(f"the stream lost codes: {content.count} of {sent} came; send it again")
        if said[f"{_PREFIX}checksum"] != _checksum(self._metadata, content):
            raise StreamError("the stream was damaged: its checksum is wrong; send it again")

    def _check_end(self, content: ContentHash, further: Any) -> None:
        if further is not None or self._inlet.tail != _END:
            raise StreamError(f"the stream does not end after its {content.count} codes; send it again")
        if self.count is not None and content.count != self.count:
            raise StreamError(f"the stream lost codes: {content.count} of {self.count} came; send it again")


def _data(batch: Any, column: int) -> Any:
    buffer = batch.column(column).buffers()[1]
    return b"" if buffer is None else buffer


def _guarded(step: Any) -> Any:
    """Run a step of reading; whatever damaged bytes make Arrow raise becomes a `StreamError`."""
    try:
        return step()
    except QincoError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, EOFError, MemoryError) as error:
        raise StreamError(f"the stream was cut or damaged ({error}); send it again") from error


class _Inlet(Inlet):
    """One that refuses messages of a size that none of codes has."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MESSAGE_BYTES:
            raise StreamError(f"the stream was damaged: a message of {size} bytes; send it again")
        return super().read(size)
