"""Columns of Arrow data: the one with the vectors or the ids, its type, and its values, checked.

n rows of a piece of a column, D elements of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qinco_core.errors import QincoError, UsageError, VectorFileError
from qinco_core.vectors.base import Array, DType, Layout, Outline, check_dtype, check_shape

VECTORS, IDS = "embedding", "id"
# what pyarrow raises on damaged or foreign data
_DAMAGE = (pa.ArrowException, OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Column:
    """A column of vectors: its name, element type, and D where the column's type says it."""

    name: str
    dtype: DType
    D: int | None

    def matching(self, other: Column, path: object, first: object) -> Column:
        """What is known from this column of the file `first` and from that of another file.

        Raises:
            VectorFileError: they are of different types or dimensions.
        """
        if self.dtype != other.dtype or (self.D and other.D and self.D != other.D):
            ours, theirs = (f"{c.dtype}" + (f" of dimension {c.D}" if c.D else "") for c in (self, other))
            raise VectorFileError(
                f"{path}::{self.name} holds {theirs}, but {first} {ours}; the files of a folder have to be alike"
            )
        return self if self.D else other

    def layout(self, name: str, count: int, first_length: Callable[[], int]) -> Layout:
        """The layout of `count` rows; `first_length` looks up the first row's length where no type says it.

        Raises:
            VectorFileError: there are no rows, or rows of no vectors.
        """
        if count < 1:
            raise VectorFileError(f"{name} holds no vectors (N = {count}); nothing can be done with it")
        D = self.D or first_length()
        check_shape(name, D, count)
        return Layout(self.dtype, D, count)


@contextlib.contextmanager
def damage(name: str, what: str) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged or foreign file into a `VectorFileError`."""
    try:
        yield
    except QincoError:
        raise
    except _DAMAGE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200].strip().rstrip(".:")
        raise VectorFileError(
            f"{name} cannot be read as {what} ({said}); it is damaged, or of another format: name it with --format"
        ) from error


def vector_column(schema: Any, key: str | None, name: str, *, piped: bool = False) -> Column:
    """The column `key` of a schema, or its only column of lists of numbers; in a pipe none can be named.

    Raises:
        UsageError: no column of that name, or several to choose from.
        VectorFileError: no column of vectors, or elements of a type that vectors have not.
    """
    wanted = "vectors (lists of numbers)"
    field = _choose(schema, key, name, lambda type_: _element(type_) is not None, wanted, piped=piped)
    place, element = f"{name}::{field.name}", _element(field.type)
    if element is None:
        raise VectorFileError(f"{place} holds {field.type}; vectors are lists of numbers")
    dtype = np.dtype(element.to_pandas_dtype())
    check_dtype(place, dtype)
    storage = _storage(field.type)
    return Column(field.name, dtype, storage.list_size if pa.types.is_fixed_size_list(storage) else None)


def id_column(schema: Any, key: str | None, name: str) -> str:
    """The name of the column `key`, of the one called id, or of the only column of integers.

    Raises:
        UsageError: no column of that name, several to choose from, or one that holds no integers.
    """
    if key is None and IDS in schema.names and pa.types.is_integer(schema.field(IDS).type):
        key = IDS
    field = _choose(schema, key, name, pa.types.is_integer, "ids (integers)")
    if not pa.types.is_integer(field.type):
        raise UsageError(f"{name}::{field.name} holds {field.type}; ids are integers in one dimension")
    return str(field.name)


def vectors_of(array: Any, layout: Layout, name: str, first: int) -> Array:
    """The values of a piece of a column as an array [n, D] of the layout, without a copy where there can be none.

    `first` is the number of its first row, for messages.

    Raises:
        VectorFileError: a row that is null, holds a null, or is not of D elements.
    """
    array = checked(array, name, first)
    if not pa.types.is_fixed_size_list(array.type):
        lengths = np.diff(array.offsets.to_numpy())
        wrong = np.flatnonzero(lengths != layout.D)
        if wrong.size:
            row = first + int(wrong[0])
            raise VectorFileError(
                f"{name}: row {row} (counted from 0) has {lengths[wrong[0]]} dimensions where the first row "
                f"has {layout.D}; vectors are of one dimension"
            )
    values = array.flatten()
    if values.null_count:
        row = first + _first_null(values) // layout.D
        raise VectorFileError(f"{name}: row {row} (counted from 0) holds a null; remove or repair such rows first")
    return np.asarray(values.to_numpy(), dtype=layout.native).reshape(-1, layout.D)


def checked(array: Any, name: str, first: int) -> Any:
    """A piece of a column without nulls and extension types, whose buffers are as long as they have to be.

    Raises:
        VectorFileError: a row is null.
    """
    array = getattr(array, "storage", array)
    array.validate()
    if array.null_count:
        row = first + _first_null(array)
        raise VectorFileError(f"{name}: row {row} (counted from 0) is null; remove or fill such rows first")
    return array


def first_length(array: Any, name: str) -> int:
    """D of a column of lists: the length of its first row.

    Raises:
        VectorFileError: the row is null, empty, or too long to be a vector.
    """
    D = len(checked(array.slice(0, 1), name, 0)[0])
    check_shape(name, D)
    return D


def output_schema(outline: Outline) -> Any:
    """The schema of a file that is written: a column of lists of D numbers, and one of ids where there are any.

    Raises:
        UsageError: both columns would have the same name.
    """
    key = outline.key or VECTORS
    if key == IDS and outline.with_ids:
        raise UsageError(f"{outline.name}: the column {IDS} is for the ids; give the vectors another name")
    element = pa.from_numpy_dtype(outline.dtype.newbyteorder("="))
    list_type = pa.list_(pa.field("element", element, nullable=False), outline.D)
    fields = [pa.field(key, list_type, nullable=False)]
    return pa.schema(([pa.field(IDS, pa.int64(), nullable=False)] if outline.with_ids else []) + fields)


def output_batch(schema: Any, block: Array, ids: Array | None) -> Any:
    """A record batch of a [n, D] block and its ids."""
    flat = pa.array(np.ascontiguousarray(block).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(schema.names[-1]).type)
    arrays = [vectors] if ids is None else [pa.array(ids, pa.int64()), vectors]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _choose(
    schema: Any, key: str | None, name: str, wanted: Callable[[Any], bool], what: str, *, piped: bool = False
) -> Any:
    """The field of that name, or the only one of a wanted type."""
    if key is not None:
        if schema.names.count(key) == 1:
            return schema.field(key)
        said = "several columns" if key in schema.names else "no column"
        raise UsageError(f"{name} has {said} {key!r}; there are {_listed(schema)}")
    found = [field for field in schema if wanted(field.type)]
    if len(found) == 1 and schema.names.count(found[0].name) == 1:
        return found[0]
    if not found:
        raise VectorFileError(f"{name} has no column of {what}; there are {_listed(schema)}{_hint(schema)}")
    if piped:
        raise UsageError(f"{name} has several columns of {what}, {_listed(found)}: send one of them alone, or a file")
    listed = ", ".join(f"{name}::{field.name} {field.type}" for field in found)
    raise UsageError(f"{name} has several columns of {what}; name one: {listed}")


def _listed(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema) or "no columns"


def _hint(schema: Any) -> str:
    ours = (schema.metadata or {}).get(b"qinco.kind") == b"codes"
    return "; these are codes: make vectors of them with qinco decode" if ours else ""


def _storage(type_: Any) -> Any:
    return type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_


def _element(type_: Any) -> Any:
    """The type of the elements of a list of numbers; None for any other type."""
    type_ = _storage(type_)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        value = type_.value_type
        if pa.types.is_integer(value) or pa.types.is_floating(value):
            return value
    return None


def _first_null(array: Any) -> int:
    return int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
