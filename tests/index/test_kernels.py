"""The compiled loops: the same as a few lines of numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_core.codec import select
from qinco_core.codec.packing import pack
from qinco_core.index import kernels

L, D, N, Q = 12, 20, 600, 7
METRICS = {"l2": 0, "ip": 1, "cosine": 2}


class World:
    """A small made-up index; entries sorted by lists, two of which are empty."""

    def __init__(self, M: int, K: int) -> None:
        rng = np.random.default_rng(M * K)
        self.M, self.K, self.bits = M, K, K.bit_length() - 1
        lists = np.sort(rng.choice([i for i in range(L) if i not in (0, 5)], N))
        self.lists = lists
        self.symbols = rng.integers(0, K, (N, M)).astype(np.uint8)
        self.T = rng.standard_normal((M, K, D)).astype(np.float32)
        self.c = (3 * rng.standard_normal((L, D))).astype(np.float32)
        self.norms = rng.integers(0, 256, N).astype(np.uint8)
        self.low, self.step = 5.0, 0.25
        self.q = rng.standard_normal((Q, D)).astype(np.float32)
        self.ids = rng.permutation(N).astype(np.int32)
        codes = pack(self.symbols, K)
        words = codes.view(np.uint64) if codes.shape[1] % 8 == 0 else np.empty((N, 0), np.uint64)
        offsets = np.searchsorted(lists, np.arange(L + 1)).astype(np.int64)
        self.arrays = kernels.Arrays(self.c, np.square(self.c).sum(1), offsets, codes, words, self.norms, self.ids)
        self.r = self.T[np.arange(M), self.symbols].sum(1)

    def look(self, metric: str) -> kernels.Look:
        return kernels.Look(self.M, self.bits, METRICS[metric], self.low, self.step)

    def length(self) -> np.ndarray:
        return np.square(self.c[self.lists]).sum(1) + self.low + self.step * self.norms

    def scores(self, metric: str) -> np.ndarray:
        """The scores of all entries [Q, N], by their definition."""
        inner = self.q @ (self.c[self.lists] + self.r).T
        if metric == "l2":
            return np.square(self.q).sum(1)[:, None] - 2 * inner + self.length()
        return -inner if metric == "ip" else -inner / np.sqrt(self.length())

    def scan(self, metric: str, lists: np.ndarray, n: int, chosen: kernels.Chosen) -> tuple[np.ndarray, np.ndarray]:
        table = np.einsum("qd,mkd->qmk", self.q, self.T).reshape(Q, -1).astype(np.float32)
        table *= -2 if metric == "l2" else -1
        score, place = np.empty((Q, n), np.float32), np.empty((Q, n), np.int64)
        kernels.scan(self.q, table, lists, self.arrays, self.look(metric), chosen, score, place)
        return score, place


EVERY = kernels.Chosen(0, np.empty(0, np.int64))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "K"), [(8, 256), (16, 256), (5, 256), (7, 64), (3, 16)])
def test_scan_finds_the_best_of_the_probed_lists(M, K, metric):
    world = World(M, K)
    lists = np.array([[1, 0, 7], [5, 2, 3], [11, 4, 6], [0, 5, -1], [9, -1, 8], [2, 1, 10], [3, 4, 5]], np.int32)
    score, place = world.scan(metric, lists, 40, EVERY)
    expected = world.scores(metric)
    for q in range(Q):
        there = np.flatnonzero(np.isin(world.lists, lists[q]))
        count = min(40, len(there))
        assert (place[q, count:] == -1).all() and np.isinf(score[q, count:]).all()
        found = place[q, :count]
        assert len(set(found)) == count and np.isin(found, there).all()
        np.testing.assert_allclose(score[q, :count], expected[q, found], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(np.sort(score[q, :count]), np.sort(expected[q, there])[:count], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mode", [1, 2])
def test_scan_keeps_to_the_ids_that_may_be_found(mode):
    world = World(8, 256)
    some = np.sort(world.ids[::3]).astype(np.int64)
    every = np.broadcast_to(np.arange(L, dtype=np.int32), (Q, L)).copy()
    _, place = world.scan("l2", every, 10, kernels.Chosen(mode, some))
    allowed = np.isin(world.ids, some) == (mode == 1)
    expected = np.where(allowed, world.scores("l2"), np.inf)
    for q in range(Q):
        assert allowed[place[q]].all()
        np.testing.assert_allclose(np.sort(expected[q, place[q]]), np.sort(expected[q])[:10], rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "K"), [(4, 16), (3, 64)])
def test_rescore_goes_from_one_decoder_to_the_other(M, K, metric):
    world, rng = World(M, K), np.random.default_rng(1)
    pairs = np.array([[M, 0, M + 1], [0, 2, 1]], np.int32)
    tables = rng.integers(-9, 10, (3, K * K, D)).astype(np.int8)
    list_symbols = rng.integers(0, K, (L, 2)).astype(np.uint16)
    pair_norms, pair_low, pair_step, scale = rng.integers(0, 256, N).astype(np.uint8), 4.0, 0.5, 0.03
    place = rng.integers(0, N, (Q, 9))
    place[:, 4] = -1
    score = np.take_along_axis(world.scores(metric), place, 1).astype(np.float32)
    score[:, 4] = np.inf
    look = world.look(metric)
    decoder = (pair_norms, pair_low, pair_step, list_symbols, pairs, tables, scale)
    kernels.rescore(world.q, world.arrays, look, *decoder, score, place)
    streams = np.concatenate([world.symbols.astype(int), list_symbols[world.lists].astype(int)], axis=1)
    s = sum(scale * t[streams[:, a] * K + streams[:, b]] for t, (a, b) in zip(tables, pairs.T, strict=True))
    inner = world.q @ (world.c[world.lists] + world.r + s).T
    length = np.square(world.c[world.lists]).sum(1) + pair_low + pair_step * pair_norms
    q_norm = np.square(world.q).sum(1)[:, None]
    expected = {"l2": q_norm - 2 * inner + length, "ip": -inner, "cosine": -inner / np.sqrt(length)}[metric]
    expected = np.take_along_axis(expected, place, 1)
    expected[:, 4] = np.inf
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.booleans())
def test_smallest_partition_and_rank_agree_with_sorting(size, seed, tied):
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((3, size)).astype(np.float32)
    score = np.round(score) if tied else score
    n = int(rng.integers(1, size + 1))
    expected = np.sort(score, axis=1)[:, :n]

    place = np.empty((3, n), np.int64)
    select.smallest(score, n, place)
    np.testing.assert_array_equal(np.sort(np.take_along_axis(score, place, 1), axis=1), expected)
    assert all(len(set(row)) == n for row in place)

    numbers = np.broadcast_to(np.arange(size), score.shape)
    cut, kept = score.copy(), numbers.copy()
    select.partition(cut, kept, size, n)
    np.testing.assert_array_equal(np.sort(cut[:, :n], axis=1), expected)
    np.testing.assert_array_equal(np.take_along_axis(score, kept, 1), cut)

    begin = int(rng.integers(0, size))
    ranked, order = score.copy(), numbers.copy()
    select.rank(ranked, order, begin, size, min(n, size - begin))
    np.testing.assert_array_equal(ranked[:, :begin], score[:, :begin])
    best = np.sort(score[:, begin:], axis=1)[:, : min(n, size - begin)]
    np.testing.assert_array_equal(ranked[:, begin : begin + best.shape[1]], best)


def test_residual_norms():
    world = World(8, 256)
    r = world.r.astype(np.float32)
    found = kernels.residual_norms(r, world.lists.astype(np.int32), world.c)
    c = world.c[world.lists]
    np.testing.assert_allclose(found, np.square(c + r).sum(1) - np.square(c).sum(1), rtol=1e-3, atol=1e-3)
