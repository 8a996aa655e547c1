"""Search through all codes, without an index: they are decoded block by block and compared with every query.

Shapes: nq queries, n codes of a block, D dimension, k results.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from qinco_core.api import Codec
from qinco_core.config import Metric, SearchConfig
from qinco_core.errors import UsageError
from qinco_core.index.found import Found, Stage, check_queries, chosen_ids, is_chosen
from qinco_core.index.kernels import Chosen
from qinco_core.memory import share
from qinco_core.store import CodeRows, Header, StoredCodes
from qinco_core.vectors import VectorFile

_ROWS = 1 << 14  # codes decoded at a time
_ENTRIES = 1 << 22  # scores held at a time
# where memory is short: bytes of a score and its keys, and blocks like that of the decoded vectors that there are
_ENTRY_BYTES, _COPIES = 32, 4
_WORST = torch.iinfo(torch.int64).max


class Exhaustive:
    """All codes of an artifact, searched in memory that does not grow with their number.

    Attributes:
        dim: D.
        nlist: 0: there are no lists.
        front: empty: there is nothing to tune.
    """

    nlist = 0
    front: tuple[()] = ()

    def __init__(self, codec: Codec, codes: StoredCodes) -> None:
        """Prepare for searches.

        Args:
            codec: the saved model that made the codes.
            codes: open as long as this is used.

        Raises:
            LineageError: another model made them.
        """
        codec.check_codes(codes.spec, codes.path)
        self.dim = codec.config.D
        self._codec = codec
        self._codes = codes
        self._mean = codec.network.mean.detach().float().to(codec.plan.device)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def header(self) -> Header:
        """The header of the codes."""
        return self._codes.header

    @property
    def max_id(self) -> int:
        """The largest id; reads all of them where the codes carry ids."""
        if not self._codes.with_ids:
            return len(self) - 1
        return max((int(rows.ids.max()) for rows in self._codes.batches(1 << 20) if rows.ids is not None), default=-1)

    def search_stages(
        self,
        xq: NDArray[Any],
        k: int = 10,
        params: SearchConfig | None = None,
        *,
        metric: Metric = "l2",
        allow: ArrayLike | Chosen | None = None,
        deny: ArrayLike | None = None,
        originals: VectorFile | None = None,
        ranked: bool = True,
    ) -> Found:
        """Compare queries with every decoded vector; equal distances in the order of the codes.

        Args:
            xq: queries [nq, D], any real dtype.
            k: results a query.
            params: must be None: there are no parameters.
            metric: "l2" (squared, ascending), "ip" or "cosine" (descending).
            allow: the only ids to find, if given; or what `found.chosen_ids` made of both lists.
            deny: ids not to find.
            originals: must be None.
            ranked: of no effect: there is one stage.

        Returns:
            Distances float32 and ids int64, [nq, k], ids −1 where there are fewer than k, after the one stage "qinco".

        Raises:
            ArtifactError: a chunk of the codes is corrupted.
            DimensionError: the queries do not have dimension D.
            UsageError: k is below 1 or above the number of codes, or parameters of an index are given, or an id of
                the codes is negative.
            VectorFileError: a query holds NaN or infinity.
        """
        if params is not None or originals is not None:
            raise UsageError("an exhaustive search has no parameters: build an index with qinco index to use them")
        started = time.perf_counter()
        queries = check_queries(xq, k, dim=self.dim, count=len(self))
        q = self._prepare(torch.from_numpy(queries).to(self._mean.device), metric)
        best = torch.full((len(q), k), _WORST, device=q.device)  # keys that sort as distances do
        ids = torch.full_like(best, -1)
        chosen = chosen_ids(allow, deny)
        row = 0
        most = min(_ROWS, share(1 << 62) // (_COPIES * 4 * self.dim)) or 1
        for rows in self._codes.batches(most):
            numbers = np.arange(row, row + len(rows.codes)) if rows.ids is None else rows.ids.astype(np.int64)
            row += len(numbers)
            if numbers.min() < 0:
                raise UsageError(
                    f"{self._codes.path} has the id {numbers.min()}: -1 means a missing result; encode again"
                )
            keep = is_chosen(numbers, chosen)
            if keep.any():
                x = self._prepare(self._decode(rows, keep), metric)
                _merge(best, ids, q, x, torch.from_numpy(numbers[keep]).to(q.device), metric)
        distances = _distances(best, ids, metric)
        found = ids.cpu().numpy()
        return Found(distances, found, (Stage("qinco", time.perf_counter() - started, found),))

    def _decode(self, rows: CodeRows, keep: NDArray[np.bool_]) -> Tensor:
        """The kept vectors, float32 [n, D], on the device of the model."""
        symbols = self._codec.unpack(rows.codes[keep])
        codes = self._codec.join(symbols, None if rows.lists is None else rows.lists[keep])
        return self._codec.decode(torch.from_numpy(codes.astype(np.int64)).to(self._mean.device))

    def _prepare(self, v: Tensor, metric: Metric) -> Tensor:
        """The vectors as the metric multiplies them."""
        if metric == "l2":
            return v - self._mean  # the same distances, of smaller norms, which float32 holds better
        return torch.nn.functional.normalize(v) if metric == "cosine" else v


def _merge(best: Tensor, best_ids: Tensor, q: Tensor, x: Tensor, ids: Tensor, metric: Metric) -> None:
    """Update the best keys and ids [nq, k] of all queries with the vectors x [n, D]."""
    x_norms = x.square().sum(1)
    order = torch.arange(len(x), device=x.device)
    k = min(best.shape[1], len(x))
    size = max(1, share(_ENTRY_BYTES * _ENTRIES) // _ENTRY_BYTES // len(x))
    for start in range(0, len(q), size):
        part = slice(start, start + size)
        if metric == "l2":
            scores = torch.addmm(x_norms, q[part], x.T, alpha=-2) + q[part].square().sum(1, keepdim=True)
            scores.clamp_(min=0)
        else:
            scores = q[part] @ x.T
            scores.neg_()
        # one integer a pair: the order of floats above, the place in the block below
        near = (_sortable(scores) << 32 | order).topk(k, largest=False, sorted=True).values
        place = near & 0xFFFFFFFF
        # blocks come in order, so a stable sort keeps equal distances in the order of the codes
        keys, index = torch.cat([best[part], near >> 32], dim=1).sort(dim=1, stable=True)
        kept = index[:, : best.shape[1]]
        best[part] = keys[:, : best.shape[1]]
        best_ids[part] = torch.cat([best_ids[part], ids[place]], dim=1).gather(1, kept)


def _sortable(scores: Tensor) -> Tensor:
    """int64 that sort as the float32 scores do."""
    bits = scores.view(torch.int32).long()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _distances(keys: Tensor, ids: Tensor, metric: Metric) -> NDArray[np.float32]:
    """The inverse of `_sortable`; infinitely far where an id is missing."""
    missing = ids < 0
    keys = keys.masked_fill(missing, 0)
    scores = torch.where(keys < 0, keys ^ 0x7FFFFFFF, keys).int().view(torch.float32)
    distances = scores.masked_fill(missing, torch.inf)
    return (distances if metric == "l2" else -distances).cpu().numpy()
