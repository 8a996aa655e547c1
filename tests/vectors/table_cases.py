"""Tables of vectors as others make them: by pyarrow and numpy themselves, never by the library's writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from hypothesis import settings

quick = settings(max_examples=12, deadline=None)  # each example writes a file, some of them several

LISTS = ("fixed", "list", "large")
# extension and how it is stored
STORAGES = ("parquet", "feather", "lz4.feather", "arrow")
ELEMENTS = ("float16", "float32", "float64", "uint8", "int8", "int32", "int64")


def lists(array: np.ndarray, kind: str) -> Any:
    """An Arrow array of the rows of a [N, D] array."""
    N, D = array.shape
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, D)
    offsets = np.arange(0, N * D + 1, D)
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def table(array: np.ndarray, kind: str = "list", ids: np.ndarray | None = None) -> Any:
    """A table with texts, ids and vectors."""
    N = len(array)
    ids = np.arange(N) if ids is None else ids
    return pa.table({"text": [f"row {i}" for i in range(N)], "id": ids, "vector": lists(array, kind)})


def save_table(path: Path, content: Any, rows: int = 7) -> Path:
    """Write a table in row groups or batches of so many rows."""
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=rows)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, content.schema) as writer:
            writer.write_table(content, rows)
    else:
        compression = "lz4" if ".lz4" in path.name else "uncompressed"
        feather.write_feather(content, path, compression=compression, chunksize=rows)
    return path
