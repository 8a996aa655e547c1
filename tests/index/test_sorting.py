"""Sorting entries into lists: a stable sort, however many passes it takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_core.errors import ArtifactError, UsageError
from qinco_core.index import lists as module
from qinco_core.index.lists import Column, Entries, count_lists, ranges, write_lists
from qinco_core.progress import Silent

COLUMNS = {"codes": Column((3,), np.uint8), "ids": Column((), np.int32)}


class Source:
    def __init__(self, lists: np.ndarray, ids: np.ndarray, codes: np.ndarray, batch: int = 50) -> None:
        self.lists, self.ids, self.codes, self.batch = lists, ids, codes, batch
        self.passes = 0

    def heads(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(self.lists), self.batch):
            yield self.lists[at : at + self.batch], self.ids[at : at + self.batch]

    def entries(self, first: int, last: int) -> Iterator[Entries]:
        self.passes += 1
        for at in range(0, len(self.lists), self.batch):
            rows = np.arange(at, min(at + self.batch, len(self.lists)))
            rows = rows[(self.lists[rows] >= first) & (self.lists[rows] < last)]
            yield Entries(self.lists[rows], self.ids[rows], {"codes": self.codes[rows]})


def source(n: int, nlist: int, seed: int) -> Source:
    rng = np.random.default_rng(seed)
    lists = rng.integers(0, nlist, n).astype(np.int32)
    lists[lists == nlist // 2] = 0  # an empty list
    return Source(lists, rng.permutation(n), rng.integers(0, 256, (n, 3)).astype(np.uint8))


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_it_is_a_stable_sort(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FEWEST", 40)
    parts = [source(700, 30, 0), source(300, 30, 1)]
    counts, largest = count_lists(parts, 30)
    assert (counts.sum(), largest) == (1000, 699)
    entries = write_lists(parts, counts, COLUMNS, lambda name: tmp_path / f"{name}.npy", memory, Silent())
    lists, ids, codes = (np.concatenate([getattr(p, name) for p in parts]) for name in ("lists", "ids", "codes"))
    order = np.argsort(lists, kind="stable")
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), ids[order])
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), codes[order])
    assert parts[0].passes == (1 if memory > 1 else len(ranges(counts, 40)))
    assert entries["codes"]["shape"] == [1000, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 100))
def test_ranges_cover_all_lists_in_order(counts, most):
    found = ranges(np.array(counts), most)
    assert found[0][0] == 0 and found[-1][1] == len(counts)
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in pairwise(found))
    assert all(sum(counts[a:b]) <= most or sum(c > 0 for c in counts[a:b]) == 1 for a, b in found)


def test_wrong_entries_are_refused():
    bad = source(10, 4, 0)
    bad.lists[3] = 4
    with pytest.raises(ArtifactError, match="from 0 to 4, but there are 4 lists"):
        count_lists([bad], 4)
    bad = source(10, 4, 0)
    bad.ids[3] = -2
    with pytest.raises(UsageError, match="an id is -2"):
        count_lists([bad], 4)


def test_a_source_that_changes_is_noticed(tmp_path):
    changing = source(100, 8, 0)
    counts, _ = count_lists([changing], 8)
    changing.lists[changing.lists == 1] = 2
    with pytest.raises(ArtifactError, match="changed while"):
        write_lists([changing], counts, COLUMNS, lambda name: tmp_path / f"{name}.npy", 1 << 20, Silent())
