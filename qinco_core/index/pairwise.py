"""The look-up decoders of a model: additive, and with interactions of pairs of symbols on top (method §6).

    x̂ ≈ c + a + s,    a = Σ_m T_m[k_m],    s = Σ_t I_t[k_first(t) · K + k_second(t)]

c is the list's centroid (the mean vector without an IVF). The *streams* that pairs are made of are the M symbols
of a code and X symbols that re-code its list's centroid. Interaction tables are int8 with one common scale, so
that the sum over tables is one of small integers; a row of D bytes per table is all that a candidate costs.
Shapes: n codes, M symbols, K codewords, D dimension, T tables, R = K² rows, L lists, S = M + X streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qinco_core.config import ModelConfig
from qinco_core.errors import LineageError
from qinco_core.index.additive import additive_sums
from qinco_core.index.prefetch import fetch_rows
from qinco_core.store import Header, Parent
from qinco_core.store.pairwise import load_pairwise, save_pairwise

Array = NDArray[Any]
Floats = NDArray[np.float32]

# codes whose rows are on their way from memory at a time
AHEAD = 4
_INT8 = 127


@dataclass(frozen=True)
class Pairwise:
    """The decoders, fitted or loaded.

    Attributes:
        centroids_LD: float32 [L, D], not normalised; of a model without an IVF its one mean vector.
        additive_MKD: float32 [M, K, D].
        pairs_2T: the two streams of each table, int32.
        tables_TRD: int8 [T, K², D], in units of `scale`; memory-mapped where it was loaded. float32 in a decoder that
            was imported, until `for_search` has made them int8.
        scale: what the tables' entries are multiplied by.
        list_symbols_LX: symbols of the lists, uint16 [L, X]; [1, 0] without an IVF.
        header: of the artifact it was loaded from.
        training: figures of the fit.
    """

    centroids_LD: Floats
    additive_MKD: Floats
    pairs_2T: NDArray[np.int32]
    tables_TRD: Array
    scale: float
    list_symbols_LX: NDArray[np.uint16]
    header: Header | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, model: Header, centroids_LD: Floats | None) -> Self:
        """Open an artifact of a model.

        Args:
            path: the file.
            model: the header of the model that it is to go with.
            centroids_LD: the model's centroids, not normalised; None without an IVF.

        Raises:
            InputNotFoundError, ArtifactError: there is no such file, or it is damaged or foreign.
            LineageError: it was fitted to another model.
        """
        stored = load_pairwise(path)
        made_for = [parent.fingerprint for parent in stored.header.parents if parent.kind == "model"]
        if made_for != [model.fingerprint]:
            raise LineageError(
                f"{path} was fitted to the model {', '.join(made_for)}, but this one is {model.fingerprint}; "
                "fit it again: qinco pairwise XT --force"
            )
        symbols = stored.list_symbols_LX
        return cls(
            centroids_LD=stored.mean_D[None] if centroids_LD is None else centroids_LD,
            additive_MKD=stored.additive_MKD,
            pairs_2T=stored.pairs_2T,
            tables_TRD=stored.tables_TRD,
            scale=stored.scale,
            list_symbols_LX=np.zeros((1, 0), np.uint16) if centroids_LD is None else symbols,
            header=stored.header,
            training=stored.training,
        )

    def save(
        self,
        path: str | Path,
        config: ModelConfig,
        parents: tuple[Parent, ...],
        *,
        force: bool = False,
    ) -> Header:
        """Write the artifact; `parents` are the model, and the codes that were fitted to, if any."""
        ivf = config.ivf_K > 0
        arrays: dict[str, Array] = {
            "additive": self.additive_MKD,
            "mean": np.zeros(config.D, np.float32) if ivf else self.centroids_LD[0],
            "pairs": self.pairs_2T,
            "scale": np.array(self.scale, np.float32),
            "list_symbols": self.list_symbols_LX if ivf else np.zeros((0, 0), np.uint16),
        }
        return save_pairwise(
            path, config, arrays, self.tables_TRD, training=self.training, parents=parents, force=force
        )

    def for_search(self) -> Self:
        """The decoder as searches want it: int8 tables, and additive codebooks that know all a lone symbol tells.

        A decoder that was imported has float32 tables and no additive codebooks. What each symbol of the code adds to
        a table on average (its main effect) goes over to its additive codebook, and what is left is rounded. Others
        are returned as they are.
        """
        if self.tables_TRD.dtype == np.int8:
            return self
        additive = self.additive_MKD.copy()
        M, K, D = additive.shape
        tables = np.array(self.tables_TRD, np.float32)
        tables *= np.float32(self.scale)
        for table_RD, pair in zip(tables, self.pairs_2T.T, strict=True):
            square_KKD = table_RD.reshape(K, K, D)
            for side, m in enumerate(pair):
                if m < M:
                    effect_KD = square_KKD.mean(axis=1 - side)
                    additive[m] += effect_KD
                    square_KKD -= np.expand_dims(effect_KD, 1 - side)
        small, scale = quantize(tables)
        return replace(self, additive_MKD=additive, tables_TRD=small, scale=scale)

    def streams(self, symbols_nM: Array, lists_n: Array | None) -> NDArray[np.uint16]:
        """The streams of codes, uint16 [n, S]: their symbols, then those of their lists."""
        lists = np.zeros(len(symbols_nM), np.int32) if lists_n is None else lists_n
        return np.concatenate([symbols_nM.astype(np.uint16), self.list_symbols_LX[lists]], axis=1)

    def interactions(self, symbols_nM: Array, lists_n: Array | None) -> Floats:
        """The sum s of the interaction rows of every code, float32 [n, D]."""
        if self.tables_TRD.dtype != np.int8:
            return self._plain_interactions(symbols_nM, lists_n)
        total = np.empty((len(symbols_nM), self.tables_TRD.shape[2]), np.float32)
        interactions(self.streams(symbols_nM, lists_n), self.pairs_2T, self.tables_TRD, self.scale, total)
        return total

    def additive(self, symbols_nM: Array, lists_n: Array | None) -> Floats:
        """The additive decoder's vectors c + a, float32 [n, D]."""
        lists = np.zeros(len(symbols_nM), np.int32) if lists_n is None else lists_n
        return additive_sums(self.additive_MKD, symbols_nM) + self.centroids_LD[lists]

    def decode(self, symbols_nM: Array, lists_n: Array | None) -> Floats:
        """The pairwise decoder's vectors c + a + s, float32 [n, D], in plain numpy: what the kernels are held to."""
        total = self.centroids_LD[0 if lists_n is None else lists_n]
        total = total + sum(table_KD[k_n] for table_KD, k_n in zip(self.additive_MKD, symbols_nM.T, strict=True))
        return np.asarray(total + self._plain_interactions(symbols_nM, lists_n), np.float32)

    def _plain_interactions(self, symbols_nM: Array, lists_n: Array | None) -> Floats:
        streams_Sn = self.streams(symbols_nM, lists_n).T.astype(np.int64)
        total, K = np.zeros((len(symbols_nM), self.tables_TRD.shape[2]), np.float32), self.additive_MKD.shape[1]
        for table_RD, (first, second) in zip(self.tables_TRD, self.pairs_2T.T, strict=True):
            total += np.float32(self.scale) * table_RD[streams_Sn[first] * K + streams_Sn[second]]
        return total


def quantize(tables: Floats) -> tuple[NDArray[np.int8], float]:
    """Tables as int8 and the scale that they have in common; the few entries beyond it are clipped.

    The given tables are overwritten.
    """
    if not tables.size:
        return tables.astype(np.int8), 1.0
    # of all entries all but one in 100,000
    sample = np.abs(tables.reshape(-1)[:: max(1, tables.size >> 22)])
    scale = float(np.quantile(sample, 1 - 1e-5)) / _INT8 or 1.0
    out = np.empty(tables.shape, np.int8)
    for table, small in zip(tables, out, strict=True):
        np.rint(np.clip(table / np.float32(scale), -_INT8, _INT8), out=table)
        small[:] = table
    return out, scale


@njit(nogil=True, cache=True)
def find_rows(stream_S: Array, pairs_2T: Array, K: int, tables_TRD: Array, row_T: Array) -> None:
    """The interaction rows of one code, which are also asked for from memory."""
    for t in range(len(row_T)):
        row_T[t] = np.int64(stream_S[pairs_2T[0, t]]) * K + stream_S[pairs_2T[1, t]]
        fetch_rows(tables_TRD[t], row_T[t], row_T[t] + 1)


@njit(nogil=True, cache=True)
def add_rows(row_T: Array, tables_TRD: Array, total_D: Array) -> None:
    """Set `total_D`, int16, to the sum of one row of each table."""
    total_D[:] = 0
    for t in range(len(row_T)):
        row = tables_TRD[t, row_T[t]]
        for d in range(len(total_D)):
            total_D[d] += row[d]


@njit(nogil=True, cache=True)
def interactions(stream_nS: Array, pairs_2T: Array, tables_TRD: Array, scale: float, out_nD: Array) -> None:
    """The sums s of the interaction rows of n codes, into float32 `out_nD`."""
    K = int(np.sqrt(tables_TRD.shape[1]) + 0.5)
    total, row_AT = np.empty(out_nD.shape[1], np.int16), np.empty((AHEAD, pairs_2T.shape[1]), np.int64)
    for i in range(len(stream_nS) + AHEAD - 1):
        if i < len(stream_nS):
            find_rows(stream_nS[i], pairs_2T, K, tables_TRD, row_AT[i % AHEAD])
        done = i - AHEAD + 1
        if done >= 0:
            add_rows(row_AT[done % AHEAD], tables_TRD, total)
            for d in range(len(total)):
                out_nD[done, d] = scale * total[d]
