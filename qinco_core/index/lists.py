"""Entries sorted into lists by counting, in bounded memory.

The first pass over the sources counts; then every pass takes as many lists as fit in memory, puts their entries in
order, and appends them to the flat arrays of `store.index`. One list by itself is in order as it comes.
Shapes: n entries of a batch, W bytes of a packed code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qinco_core.errors import ArtifactError, UsageError
from qinco_core.progress import Progress
from qinco_core.store.index import FlatWriter

Array = NDArray[Any]
# the fewest entries a pass sorts, so that a tiny budget still comes to an end
_FEWEST = 1 << 16
_CHANGED = "the codes changed while the index was built: build it again"


class Entries(NamedTuple):
    """Some entries of an index.

    Attributes:
        lists: int32 [n].
        ids: int64 [n].
        columns: the other flat arrays by name, [n] or [n, W].
    """

    lists: Array
    ids: Array
    columns: dict[str, Array]


class EntrySource(Protocol):
    """Where entries come from; read several times, always in the same order."""

    def heads(self) -> Iterator[tuple[Array, Array]]:
        """Lists int32 [n] and ids int64 [n], by batches."""

    def entries(self, first: int, last: int) -> Iterator[Entries]:
        """The entries of the lists first..last - 1, by batches."""


class Column(NamedTuple):
    """What a flat array holds for each entry."""

    shape: tuple[int, ...]
    dtype: Any


def count_lists(sources: Sequence[EntrySource], nlist: int) -> tuple[Array, int]:
    """Entries of every list, int64 [nlist], and the largest id.

    Raises:
        UsageError: an id is negative.
        ArtifactError: a list number is not from 0 to nlist - 1.
    """
    counts, largest = np.zeros(nlist, np.int64), -1
    for source in sources:
        for lists, ids in source.heads():
            if not len(lists):
                continue
            if lists.min() < 0 or lists.max() >= nlist:
                raise ArtifactError(
                    f"list numbers run from {lists.min()} to {lists.max()}, but there are {nlist} lists: encode again"
                )
            if ids.min() < 0:
                raise UsageError(f"an id is {ids.min()}: ids are 0 or more, for -1 means a missing result")
            counts += np.bincount(lists, minlength=nlist)
            largest = max(largest, int(ids.max()))
    return counts, largest


def write_lists(
    sources: Sequence[EntrySource],
    counts: Array,
    columns: dict[str, Column],
    name: Callable[[str], Path],
    memory: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write the flat arrays of all entries, in the order of lists, then sources, then rows.

    Args:
        sources: the entries.
        counts: of every list, int64 [nlist].
        columns: the arrays to write, `ids` among them.
        name: the path of an array.
        memory: bytes that sorted entries may take.
        progress: told of every pass's entries.

    Returns:
        The arrays' lines for the manifest.

    Raises:
        StorageError: the disk is full.
        ArtifactError: a source changed between two passes.
    """
    total = int(counts.sum())
    row_bytes = sum(int(np.prod(c.shape, dtype=np.int64)) * np.dtype(c.dtype).itemsize for c in columns.values())
    writers = {n: FlatWriter(name(n), (total, *c.shape), c.dtype) for n, c in columns.items()}
    progress.begin("sorting", total, "entries")
    with ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer)
        for first, last in ranges(counts, _most(row_bytes, memory)):
            if last - first == 1:
                parts = _one_list(sources, first, int(counts[first]), progress)
            else:
                parts = iter([_sorted_lists(sources, counts[first:last], columns, first, progress)])
            for part in parts:
                for n, writer in writers.items():
                    writer.append(part[n])
    progress.end()
    return {n: writer.entry for n, writer in writers.items()}


def passes(N: int, row_bytes: int, memory: int) -> int:
    """About how many passes N entries take."""
    return -(-N // _most(row_bytes, memory))


def _most(row_bytes: int, memory: int) -> int:
    """Entries that are sorted together."""
    return max(_FEWEST, memory // (2 * row_bytes))


def ranges(counts: Array, most: int) -> list[tuple[int, int]]:
    """Consecutive ranges of lists of at most `most` entries, or of one list that is longer."""
    found, first, held = [], 0, 0
    for number, count in enumerate(counts):
        if held and held + count > most:
            found.append((first, number))
            first, held = number, 0
        held += int(count)
    found.append((first, len(counts)))
    return found


def _one_list(sources: Sequence[EntrySource], number: int, left: int, progress: Progress) -> Iterator[dict[str, Array]]:
    """The entries of one list, `left` in all, batch by batch."""
    for source in sources:
        for batch in source.entries(number, number + 1):
            left -= len(batch.lists)
            if left < 0:
                raise ArtifactError(_CHANGED)
            yield batch.columns | {"ids": batch.ids}
            progress.advance(len(batch.lists))
    if left:
        raise ArtifactError(_CHANGED)


def _sorted_lists(
    sources: Sequence[EntrySource], counts: Array, columns: dict[str, Column], first: int, progress: Progress
) -> dict[str, Array]:
    """The entries of as many lists as there are counts, from `first` on, in the order of their lists."""
    ends = np.cumsum(counts)
    total = int(ends[-1])
    out = {n: np.empty((total, *c.shape), c.dtype) for n, c in columns.items()}
    free = ends - counts  # the next free place of every list
    for source in sources:
        for batch in source.entries(first, first + len(counts)):
            place = np.empty(len(batch.lists), np.int64)
            if not _take_places(batch.lists, first, free, ends, place):
                raise ArtifactError(_CHANGED)
            for n, rows in (batch.columns | {"ids": batch.ids}).items():
                out[n][place] = rows
            progress.advance(len(place))
    if not np.array_equal(free, ends):
        raise ArtifactError(_CHANGED)
    return out


@njit(nogil=True, cache=True)
def _take_places(lists: Array, first: int, free: Array, ends: Array, place: Array) -> bool:
    """Give every entry the next free place of its list; false where a list is full."""
    for i in range(len(lists)):
        number = lists[i] - first
        if free[number] >= ends[number]:
            return False
        place[i] = free[number]
        free[number] += 1
    return True
