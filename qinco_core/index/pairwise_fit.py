"""Fits look-up decoders to a model (method §6), so that they hold for vectors that they have not seen.

What a decoder should give for a code is what the network makes of it, x̂: the best prediction of the vector, without
the vector's own noise. It is known for *every* code, so beside the codes of training vectors there is a second
source: fresh codes, each symbol drawn by itself, decoded by the network. A table of K² rows then has many codes a
row where the training vectors alone would have three (`docs/log.md` has what that is worth).

Tables are means of residuals, shrunk by n / (n + λ), chosen greedily, and refitted in turn. Every choice is made by
the error on held-out vectors, so with tables that do not help nothing is lost.
Shapes: n codes of the sample, h held-out ones, M symbols, K codewords, D dimension, T tables, S streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qinco_core.api import Codec
from qinco_core.config import Frozen, ModelConfig
from qinco_core.errors import UsageError
from qinco_core.index.additive import (
    NormalEquations,
    additive_sums,
    best_codebooks,
    check_equations,
    mean_square,
    sum_by_row,
    take_away,
)
from qinco_core.index.pairwise import Pairwise, quantize
from qinco_core.index.recode import BOOKS, recode
from qinco_core.memory import share
from qinco_core.progress import Progress
from qinco_core.store.pairwise import MOST_TABLES

Array = NDArray[Any]
Floats = NDArray[np.float32]

# pairs are compared by so many principal components of the residual, on so many codes
_COMPONENTS, _COMPARED = 16, 1 << 18
# λ that are tried; the last one is a table of zeros
_SHRINKAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 100.0, 400.0, np.inf)
_MOST_SAMPLE_BYTES, _MOST_TABLE_BYTES = 1 << 29, 8 << 30


class FitConfig(Frozen):
    """How look-up decoders are fitted.

    Attributes:
        tables: interaction tables per step; 0: the additive decoder alone.
        sample: codes they are fitted to: training codes first, then fresh ones.
        sweeps: times that every table is refitted to what the others leave.
        seed: of all randomness.
    """

    tables: int = Field(default=2, ge=0, le=8)
    sample: int = Field(default=1 << 20, ge=1)
    sweeps: int = Field(default=1, ge=0)
    seed: int = Field(default=0, ge=0)

    def count(self, model: ModelConfig) -> int:
        """Tables in all: `tables` per step, as far as there are pairs and 16 bits hold a sum of their rows."""
        return min(self.tables * model.M, MOST_TABLES, len(pairs_of(model.M, BOOKS if model.ivf_K else 0)))

    def rows(self, model: ModelConfig) -> int:
        """Codes of the sample.

        As many as `sample` says, but no more than fill 512 MiB with residuals, or an eighth of the memory that there
        is, nor than tables of this size need.
        """
        enough = max(1024 * model.K, 64 * model.K**2 if self.tables else 0)
        return max(1, min(self.sample, share(_MOST_SAMPLE_BYTES, 8) // (4 * model.D), enough))


@dataclass(frozen=True)
class Part:
    """Codes as `Codec.encode` gives them, and the vectors that they are of, [n, D]."""

    codes: Array
    vectors: Array


def check_fit(codec: Codec, config: FitConfig) -> None:
    """Check that tables of this model can be fitted at all.

    Raises:
        UsageError: they would be too large; the message says what to do.
    """
    c = codec.config
    check_equations(c.M, c.K)
    size = 5 * config.count(c) * c.K**2 * c.D
    if size > _MOST_TABLE_BYTES:
        raise UsageError(
            f"{config.count(c)} tables of {c.K}² rows need {size / 2**30:.0f} GiB while they are fitted, and "
            f"{_MOST_TABLE_BYTES >> 30} GiB is the limit; use fewer (--tables), or a model with a smaller K"
        )


def fit_pairwise(codec: Codec, codes: Array, seen: Part, held: Part, config: FitConfig, progress: Progress) -> Pairwise:
    """Fit the additive and the pairwise decoder of a model.

    Args:
        codec: the model.
        codes: training codes as `codec.encode` gives them, [n, M] or [n, 1 + M].
        seen: some of them with their vectors, to report the error on them.
        held: codes that are not among them, with their vectors: these decide.
        config: how.
        progress: told of the stages.

    Returns:
        The decoders; `training` has the MSE of network, additive and pairwise decoder on `seen` and `held`.

    Raises:
        UsageError: the tables would be too large.
    """
    check_fit(codec, config)
    started = time.perf_counter()
    fit = _Fit(codec, codes, held, config, progress)
    found = fit.decoder(fit.additive())
    figures: dict[str, Any] = {
        "vectors": len(codes),
        "fresh": len(fit.symbols) - fit.real,
        "held": len(held.codes),
        "config": config.model_dump(),
        "pairs": found.pairs_2T.T.tolist(),
        "shrinkages": [None if np.isinf(value) else value for value in fit.shrinkages],
        "ridge": fit.ridge,
        "mse": {"training": errors(codec, found, seen), "held-out": errors(codec, found, held)},
        "seconds": round(time.perf_counter() - started, 2),
    }
    return replace(found, training=figures)


def errors(codec: Codec, decoder: Pairwise, part: Part) -> dict[str, float]:
    """The MSE of the centroids, both look-up decoders and the network on some vectors."""
    symbols, lists = codec.split(part.codes)
    # called one after the other, so that one of them at a time is in memory
    looks: dict[str, Callable[[], Floats]] = {
        "centroid": lambda: decoder.centroids_LD[np.zeros(len(symbols), int) if lists is None else lists],
        "additive": lambda: decoder.additive(symbols, lists),
        "pairwise": lambda: decoder.additive(symbols, lists) + decoder.interactions(symbols, lists),
        "network": lambda: codec.decode(part.codes),
    }
    return {name: round(mean_square(part.vectors - look()), 3) for name, look in looks.items()}


class _Fit:
    """The sample, and what the decoders so far leave of it."""

    def __init__(self, codec: Codec, codes: Array, held: Part, config: FitConfig, progress: Progress) -> None:
        self.codec, self.config, self.plan, self.progress = codec, config, codec.plan, progress
        self.rng = np.random.default_rng(config.seed)
        self.ridge, self.shrinkages = 0.0, list[float]()
        size = config.rows(codec.config)
        if len(codes) > size:
            codes = codes[np.sort(self.rng.choice(len(codes), size, replace=False))]
        self.real = len(codes)
        fresh = fresh_codes(codes, size - self.real, self.rng)
        self.symbols, lists = codec.split(np.concatenate([codes, fresh]))
        self.held_symbols, held_lists = codec.split(held.codes)
        self._prepare_lists(None if lists is None else lists[: self.real])
        self.lists = np.zeros(size, np.int32) if lists is None else lists
        self.held_lists = np.zeros(len(held.codes), np.int32) if held_lists is None else held_lists
        self.left = self._decoded(np.concatenate([codes, fresh]))
        self.left -= self.centroids[self.lists]
        # errors are of the vectors themselves, whatever the tables are fitted to
        self.held_start = held.vectors.astype(np.float32) - self.centroids[self.held_lists]
        self.held_left = self.held_start

    def _prepare_lists(self, lists: Array | None) -> None:
        centroids = self.codec.centroids
        if centroids is None or lists is None:
            mean = self.codec.network.mean.cpu().numpy().astype(np.float32)
            self.centroids, self.list_symbols = mean[None], np.zeros((1, 0), np.uint16)
            return
        sizes = np.bincount(lists, minlength=len(centroids))
        self.centroids = centroids
        self.list_symbols = recode(centroids, sizes, self.codec.config.K, self.plan, self.rng)

    def _decoded(self, codes: Array) -> Floats:
        self.progress.begin("decoding codes", len(codes), "codes")
        out = np.empty((len(codes), self.codec.config.D), np.float32)
        for at in range(0, len(codes), 1 << 15):
            out[at : at + (1 << 15)] = self.codec.decode(codes[at : at + (1 << 15)])
            self.progress.advance(min(1 << 15, len(codes) - at))
        self.progress.end()
        return out

    def additive(self) -> Floats:
        """Fit the additive codebooks, with or without fresh codes as is better, and take their sums away."""
        self.progress.begin("additive codebooks", None, "")
        c = self.codec.config
        equations = NormalEquations(c.M, c.K, c.D)
        found = []
        for part in (slice(0, self.real), slice(self.real, None)):
            equations.add(self.symbols[part], self.left[part])
            if len(self.symbols[part]):
                T, ridge = best_codebooks(equations, self.held_symbols, self.held_left)
                error = mean_square(self.held_left - additive_sums(T, self.held_symbols))
                found.append((error, ridge, T))
        _, self.ridge, T_MKD = min(found, key=lambda candidate: candidate[0])
        for m in range(c.M):
            take_away(self.left, self.symbols[:, m], T_MKD[m], self.plan)
        self.held_left = self.held_start - additive_sums(T_MKD, self.held_symbols)
        self.progress.end()
        return T_MKD

    def decoder(self, additive: Floats) -> Pairwise:
        """Choose and fit the interaction tables that go with additive codebooks."""
        c, count = self.codec.config, self.config.count(self.codec.config)
        before = mean_square(self.held_left)
        self.streams = np.concatenate([self.symbols, self.list_symbols[self.lists]], axis=1).T.astype(np.int32)
        self.held_streams = np.concatenate([self.held_symbols, self.list_symbols[self.held_lists]], axis=1).T
        self.held_streams = self.held_streams.astype(np.int32)
        pairs = pairs_of(c.M, self.list_symbols.shape[1])
        tables = np.zeros((count, c.K**2, c.D), np.float32)
        self.progress.begin("pairwise tables", count * (1 + self.config.sweeps), "tables")
        chosen: list[tuple[int, int]] = []
        bounds = dict.fromkeys(pairs, np.inf)
        for table in tables:
            best = self._best_pair([pair for pair in pairs if pair not in chosen], bounds)
            chosen.append(best)
            self.shrinkages.append(self._fit(table, best, np.inf))
            self.progress.advance(1, mse=mean_square(self.held_left))
        for _ in range(self.config.sweeps):
            for t, table in enumerate(tables):
                self.shrinkages[t] = self._refit(table, chosen[t], self.shrinkages[t])
                self.progress.advance(1, mse=mean_square(self.held_left))
        self.progress.end()
        small, scale = quantize(tables)
        two = np.array(chosen, np.int32).reshape(-1, 2).T.copy()
        return self._unless_worse(Pairwise(self.centroids, additive, two, small, scale, self.list_symbols), before)

    def _unless_worse(self, found: Pairwise, error: float) -> Pairwise:
        """The decoder, without tables where rounding them has cost all that they won over `error`."""
        if not found.tables_TRD.size:
            return found
        left = self.held_start - additive_sums(found.additive_MKD, self.held_symbols)
        if mean_square(left - found.interactions(self.held_symbols, self.held_lists)) < error:
            return found
        self.shrinkages = []
        return replace(found, pairs_2T=found.pairs_2T[:, :0], tables_TRD=found.tables_TRD[:0])

    def _row(self, streams: Array, pair: tuple[int, int]) -> Array:
        row: Array = streams[pair[0]] * self.codec.config.K + streams[pair[1]]
        return row

    def _best_pair(self, pairs: list[tuple[int, int]], bounds: dict[tuple[int, int], float]) -> tuple[int, int]:
        """The pair whose table would lower the held-out error most.

        A pair seldom gains by other tables having been taken, so what it gained when it was last looked at is as
        good as a bound, and few are looked at again.
        """
        step = -(-len(self.left) // _COMPARED)
        left = self.left[::step]
        part = left[: 1 << 15]
        basis = np.linalg.eigh(part.T @ part)[1][:, -_COMPONENTS:]
        left, held = left @ basis, self.held_left @ basis
        fresh: dict[tuple[int, int], float] = {}
        while True:
            best = max(pairs, key=lambda pair: fresh.get(pair, bounds[pair]))
            if best in fresh:
                return best
            row, held_row = self._row(self.streams[:, ::step], best), self._row(self.held_streams, best)
            sums, counts = self._sums(left, row)
            _, error = _best_shrinkage(held, sums[held_row], counts[held_row])
            bounds[best] = fresh[best] = mean_square(held) - error

    def _sums(self, left: Floats, row: Array) -> tuple[Floats, Floats]:
        R = self.codec.config.K**2
        return sum_by_row(left, row, R, self.plan), np.bincount(row, minlength=R).astype(np.float32)[:, None]

    def _fit(self, table: Floats, pair: tuple[int, int], worst: float) -> float:
        """Fill a table and take it away; returns its λ. Nothing is done where the error would be above `worst`."""
        row, held_row = self._row(self.streams, pair), self._row(self.held_streams, pair)
        sums, counts = self._sums(self.left, row)
        shrinkage, error = _best_shrinkage(self.held_left, sums[held_row], counts[held_row])
        if error > worst:
            return -1.0
        if np.isfinite(shrinkage):
            np.divide(sums, counts + np.float32(shrinkage), out=table)
            take_away(self.left, row, table, self.plan)
            self.held_left -= table[held_row]
        return shrinkage

    def _refit(self, table: Floats, pair: tuple[int, int], shrinkage: float) -> float:
        """Fit a table again to what the others leave; it stays as it was where that is better."""
        row, held_row = self._row(self.streams, pair), self._row(self.held_streams, pair)
        error = mean_square(self.held_left)
        old = table.copy()
        take_away(self.left, row, -old, self.plan)
        self.held_left += old[held_row]
        table[:] = 0
        found = self._fit(table, pair, error)
        if found >= 0:
            return found
        table[:] = old
        take_away(self.left, row, old, self.plan)
        self.held_left -= old[held_row]
        return shrinkage


def pairs_of(M: int, X: int) -> list[tuple[int, int]]:
    """All pairs of M symbols and X symbols of the list, but not of the list's alone, which say nothing of the entry.

    The list's comes first: lists that are searched together share it, so the rows they need lie together.
    """
    return [(b, a) if b >= M else (a, b) for a in range(M) for b in range(a + 1, M + X)]


def fresh_codes(codes: Array, count: int, rng: np.random.Generator) -> Array:
    """`count` codes whose every column is drawn by itself from the same column of `codes` [n, ...]."""
    return np.stack([column[rng.integers(0, len(codes), count)] for column in codes.T], axis=1)


def _best_shrinkage(left: Floats, sums: Floats, counts: Floats) -> tuple[float, float]:
    """The λ with which sums / (counts + λ) predicts `left` best, and the mean squared error it leaves."""
    best = _SHRINKAGES[-1], mean_square(left)
    for shrinkage in _SHRINKAGES[-2::-1]:
        error = mean_square(left - sums / (counts + np.float32(shrinkage)))
        if error > best[1]:
            break  # the error has one minimum
        best = shrinkage, error
    return best
