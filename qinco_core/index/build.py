"""What the entries of an index are made from: codes, or an index there is already.

An entry has its packed symbols, its id, and one byte for each look-up decoder, its *residual norm*. With c the
list's centroid and r the decoder's reconstruction of what is left of it,

    ‖q − c − r‖² = ‖q − c‖² − 2⟨q, r⟩ + (‖c + r‖² − ‖c‖²)

and the bracket is what is stored, linear between its extremes on a sample: in 8 bits, or in 16 where steps of 8 would
be coarse beside what the decoder does not know anyway (vectors that lie far from the origin). Shapes: n entries of a
batch, M symbols, K codewords, D dimension, L lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.errors import UsageError
from qinco_core.index import kernels
from qinco_core.index.additive import additive_sums
from qinco_core.index.found import contains
from qinco_core.index.lists import Column, Entries
from qinco_core.index.pairwise import Pairwise
from qinco_core.store import CodeRows
from qinco_core.store.codes import StoredCodes
from qinco_core.store.index import StoredIndex

Array = NDArray[Any]
_ROWS = 1 << 15
# codes that the scales of residual norms are set by, and from how many chunks of a file they are at least
_SAMPLE, _CHUNKS = 1 << 15, 32
LOOKS = ("norms", "pair_norms")


@dataclass(frozen=True)
class Scale:
    """Some bits, 8 or 16, for a number: low + step · bits."""

    low: float
    step: float
    bits: int = 8

    @classmethod
    def of(cls, values: Array, fine: float = np.inf) -> Scale:
        """From the least to the largest of the values, in 16 bits where steps of 8 would be larger than `fine`."""
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
        bits = 8 if (high - low) / 255 <= fine else 16
        return cls(low, (high - low) / (2**bits - 1), bits)

    def spanning(self, other: Scale) -> Scale:
        """Itself where the other's numbers fit, else one for both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        if (low, high) == (self.low, self.high):
            return self
        bits = max(self.bits, other.bits)
        return Scale(low, (high - low) / (2**bits - 1), bits)

    @property
    def high(self) -> float:
        """The largest number."""
        return float(self.low + self.step * (2**self.bits - 1))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is stored."""
        return np.dtype(f"<u{self.bits // 8}")

    def quantize(self, values: Array) -> NDArray[Any]:
        """The nearest bits of each value."""
        most = 2**self.bits - 1
        return np.clip(np.rint((values - self.low) / (self.step or 1.0)), 0, most).astype(self.dtype)

    def values(self, stored: Array) -> NDArray[np.float32]:
        """What bits stand for."""
        return np.float32(self.low) + np.float32(self.step) * stored.astype(np.float32)


class Estimator:
    """Computes residual norms; one for the additive decoder, one more where there is a pairwise one."""

    def __init__(self, codec: Codec, centroids_LD: Array, additive_MKD: Array, pairwise: Pairwise | None) -> None:
        self.codec = codec
        self._centroids, self._additive = centroids_LD, additive_MKD
        self._pairwise = pairwise if pairwise is not None and len(pairwise.tables_TRD) else None

    @property
    def looks(self) -> tuple[str, ...]:
        """The flat arrays that hold residual norms."""
        return LOOKS[: 1 + (self._pairwise is not None)]

    @property
    def fine(self) -> float:
        """A step of residual norms that is small beside the error of an estimated distance, about ‖r‖²/√D."""
        energy = float(np.square(self._additive).sum(2).mean(1).sum()) if self._additive.size else 0.0
        return energy / (2 * float(np.sqrt(self.codec.config.D)))

    def columns(self, ids: np.dtype[Any], scales: dict[str, Scale]) -> dict[str, Column]:
        """The flat arrays of an index."""
        found = {"codes": Column((self.codec.config.code_bytes,), np.uint8), "ids": Column((), ids)}
        return found | {look: Column((), scales[look].dtype) for look in self.looks}

    def norms(self, rows: CodeRows) -> dict[str, NDArray[np.float32]]:
        """Residual norms float32 [n] by look."""
        symbols, lists = self.codec.unpack(rows.codes), _lists(rows)
        r = additive_sums(self._additive, symbols)
        found = {"norms": kernels.residual_norms(r, lists, self._centroids)}
        if self._pairwise is not None:
            r += self._pairwise.interactions(symbols, lists)
            found["pair_norms"] = kernels.residual_norms(r, lists, self._centroids)
        return found


def _lists(rows: CodeRows) -> NDArray[np.int32]:
    return np.zeros(len(rows.codes), np.int32) if rows.lists is None else rows.lists.astype(np.int32)


class CodesSource:
    """The entries of a file of codes."""

    def __init__(self, codes: StoredCodes, estimator: Estimator, ids: Array | None = None, first_id: int = 0) -> None:
        """Take all codes and the ids of their rows: those given, else their own, else numbers from `first_id` on.

        Raises:
            UsageError: there are not as many ids as codes, or they are no integers, or too large.
        """
        if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise UsageError(f"ids of codes are integers in one dimension, not {ids.dtype} {ids.shape}")
        if ids is not None and len(ids) != len(codes):
            raise UsageError(f"{len(ids)} ids for {len(codes)} codes of {codes.path}: give one id a code")
        if ids is None and not codes.with_ids and first_id + len(codes) >= 1 << 63:
            raise UsageError(f"{codes.path} would get ids from {first_id} on, which 64 bits do not hold: give it ids")
        self._codes, self._estimator, self._ids, self._first = codes, estimator, ids, first_id
        self._scales: dict[str, Scale] = {}
        self._rows = range(len(codes))

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, rows: range) -> CodesSource:
        """The entries of some consecutive rows, with the ids that they have here."""
        part = CodesSource(self._codes, self._estimator, self._ids, self._first)
        part._rows = rows
        return part

    def scales(self) -> dict[str, Scale]:
        """How the residual norms of such codes are stored: by a sample of chunks from beginning to end."""
        found: dict[str, list[Array]] = {look: [] for look in self._estimator.looks}
        number_of = min(self._codes.chunks, max(_CHUNKS, _SAMPLE // self._codes.chunk_rows))
        chunks = np.unique(np.linspace(0, self._codes.chunks - 1, number_of).astype(int))
        for number in chunks:
            rows = self._codes.chunk(int(number)).cut(0, max(1, _SAMPLE // len(chunks)))
            for look, values in self._estimator.norms(rows).items():
                found[look].append(values)
        fine = self._estimator.fine
        return {look: Scale.of(np.concatenate(parts) if parts else np.empty(0), fine) for look, parts in found.items()}

    def use(self, scales: dict[str, Scale]) -> None:
        """Store residual norms by these scales."""
        self._scales = scales

    def heads(self) -> Iterator[tuple[Array, Array]]:
        """Lists and ids, by batches."""
        for rows, ids in self._batches():
            yield _lists(rows), ids

    def entries(self, first: int, last: int) -> Iterator[Entries]:
        """The entries of the lists first..last - 1."""
        for rows, ids in self._batches():
            lists = _lists(rows)
            wanted = (lists >= first) & (lists < last)
            if not wanted.all():
                rows = CodeRows(*(None if part is None else part[wanted] for part in rows))  # type: ignore[arg-type]
                lists, ids = lists[wanted], ids[wanted]
            if len(lists):
                norms = {look: self._scales[look].quantize(v) for look, v in self._estimator.norms(rows).items()}
                yield Entries(lists, ids, {"codes": rows.codes, **norms})

    def _batches(self) -> Iterator[tuple[CodeRows, Array]]:
        row = self._rows.start
        for rows in self._codes.batches(_ROWS, self._rows.start, self._rows.stop):
            n = len(rows.codes)
            if self._ids is not None:
                ids = np.asarray(self._ids[row : row + n]).astype(np.int64)
            elif rows.ids is not None:
                ids = rows.ids
            else:
                ids = np.arange(self._first + row, self._first + row + n)
            yield rows, ids
            row += n


class IndexSource:
    """The entries that an index has already, without some ids (sorted)."""

    def __init__(self, index: StoredIndex, without: NDArray[np.int64] | None = None) -> None:
        self._index = index
        self._offsets = index.arrays["offsets"]
        self._without = np.empty(0, np.int64) if without is None else without
        self._stored = {look: Scale(**scale) for look, scale in index.config["scales"].items()}
        self._scales = self._stored

    @property
    def scales(self) -> dict[str, Scale]:
        """How the residual norms are stored."""
        return self._stored

    def use(self, scales: dict[str, Scale]) -> None:
        """Store residual norms by these scales from now on."""
        self._scales = scales

    def heads(self) -> Iterator[tuple[Array, Array]]:
        """Lists and ids, by batches."""
        for batch in self._batches(0, len(self._offsets) - 1, ()):
            yield batch.lists, batch.ids

    def entries(self, first: int, last: int) -> Iterator[Entries]:
        """The entries of the lists first..last - 1."""
        for batch in self._batches(first, last, [name for name in self._index.flat if name != "ids"]):
            for look, scale in self._scales.items():
                if scale != self._stored[look]:
                    batch.columns[look] = scale.quantize(self._stored[look].values(batch.columns[look]))
            yield batch

    def _batches(self, first: int, last: int, names: Any) -> Iterator[Entries]:
        flat, end = self._index.flat, int(self._offsets[last])
        for start in range(int(self._offsets[first]), end, _ROWS):
            rows = slice(start, min(start + _ROWS, end))
            lists = (np.searchsorted(self._offsets, np.arange(rows.start, rows.stop), "right") - 1).astype(np.int32)
            ids = flat["ids"][rows].astype(np.int64)
            columns = {name: flat[name][rows] for name in names}
            if len(self._without):
                kept = ~contains(self._without, ids)
                lists, ids = lists[kept], ids[kept]
                columns = {name: values[kept] for name, values in columns.items()}
            yield Entries(lists, ids, columns)
