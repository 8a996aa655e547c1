"""Which pairs of a query and a vector may be among the nearest: products of low precision, and a bound on their error.

Let a = x − c for a center c. The squared distance is ‖b‖² + s with b = q − c, s = w·a + ‖a‖², w = −2b; minus the inner
product is −q·c + s with s = w·a, w = −q. In any order of summation, products with unit roundoff u give s to within
1.1 (D + 8) u (‖w‖ ‖a‖ + ‖a‖²), the rounding of w and a included (Higham 2002, §3.1), and what is done in float64 adds a
bound of the same kind. A vector whose s is above what the k-th nearest so far allows by more than that is farther away.

Symbols: nq queries, R of them, n vectors of a block, D dimension, P pairs. See `neighbors` for values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import multiply, run_parallel
from qinco_core.errors import UsageError

GROUP = 64  # vectors of which first the nearest alone is looked at
_ROWS = 1024  # prepared in one go
_SAMPLE = 4096  # vectors whose mean is the center
_SMALL = 1e-15  # shorter vectors lose bits of their products in float32
_LARGE = 1e37


@dataclass(frozen=True)
class Block:
    """Vectors ready for products.

    Attributes:
        x: float64 [n, D].
        products: x less the center and what is added to its product, float32 [n, D + 1], n a multiple of `GROUP`:
            the surplus is infinitely far.
        norms: of x less the center, float64 [n].
    """

    x: Tensor
    products: Tensor
    norms: Tensor

    def __len__(self) -> int:
        return len(self.x)


class Shortlist:
    """The queries' side of the comparison.

    Args:
        q: queries float64 [nq, D], on the device that compares.
        x: vectors like those to come, float64 [n, D], at least one.
        l2: whether distances are compared, not inner products.
    """

    def __init__(self, q: Tensor, x: Tensor, *, l2: bool) -> None:
        nq, D = q.shape
        self._q = q
        self._l2 = l2
        self._center = x[:_SAMPLE].mean(0)
        self._center_norm = float(self._center.norm())
        self._weights = torch.ones(nq, D + 1, device=q.device)
        self._norms, self._offset = q.new_empty(nq), q.new_empty(nq)
        for start in range(0, nq, _ROWS):
            rows = slice(start, min(start + _ROWS, nq))
            w = self._weigh(rows)
            self._weights[rows, :D] = w
            self._norms[rows] = w.norm(dim=1)
            self._offset[rows] = w.square().sum(1) / 4 if l2 else w @ self._center
        self._small = bool(((self._norms > 0) & (self._norms < _SMALL)).any())

    def _weigh(self, rows: slice) -> Tensor:
        """The w of some queries, float64."""
        return (self._q[rows] - self._center) * -2 if self._l2 else self._q[rows].neg()

    def prepare(self, x: Tensor, plan: Plan) -> Block:
        """A block of vectors x, float64 [n, D].

        Raises:
            UsageError: values are beyond float32, or no numbers.
        """
        n, D = x.shape
        products = torch.empty(-(-n // GROUP) * GROUP, D + 1, device=x.device)
        products[n:, :D], products[n:, D] = 0, torch.inf
        norms = x.new_empty(n)

        def fill(start: int) -> None:
            rows = slice(start, min(start + _ROWS, n))
            a = x[rows] - self._center
            products[rows, :D] = a
            squares = a.square_().sum(1)
            products[rows, D] = squares if self._l2 else 0
            norms[rows] = squares.sqrt_()

        run_parallel(fill, range(0, n, _ROWS), plan)
        longest = float(norms.max())
        if not self._scale(slice(None), longest).max() < _LARGE:
            raise UsageError(
                f"vectors {longest:.3g} long have values beyond float32, or some are no numbers: scale or repair them"
            )
        return Block(x, products, norms)

    def pairs(self, part: slice, block: Block, columns: slice, worst: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Every pair whose value may be below `worst`, float32 [R], and as few others as can be.

        Where `worst` is infinite, those that may be among the k nearest of these columns will do, if there are as many.

        Gives rows of the part and columns of the block, int64 [P], sorted.
        """
        count = columns.stop - columns.start
        longest = float(block.norms[columns].max())
        single = longest >= _SMALL and not self._small and _full_precision()
        for dtype in (torch.float32, torch.float64) if single else (torch.float64,):
            s = self._products(part, block, columns) if dtype == torch.float32 else self._double(part, block, columns)
            margin = self._margin(part, longest, dtype)
            bound = worst
            if count >= k and bool(worst.isinf().any()):
                kth = s.kthvalue(k, dim=1).values + self._offset[part] + margin
                # of equal float32 the lower id is nearer, so a bound on the k-th is the second float32 above it
                bound = torch.minimum(worst, _next(_next(kth.float())))
            limit = bound - self._offset[part] + margin
            rows, found = _below(s, _next(limit.to(dtype)))
            if len(rows) <= len(s) * (count // 8 + 2 * k):
                break  # else the margin was too wide to tell
        return rows, found + columns.start

    def values(self, block: Block, rows: Tensor, columns: Tensor) -> Tensor:
        """The values of pairs, rows of all queries and columns of the block [P]: float32 [P]."""
        x, q = block.x[columns], self._q[rows]
        return x.sub_(q).square_().sum(1).float() if self._l2 else x.mul_(q).sum(1).neg_().float()

    def _products(self, part: slice, block: Block, columns: slice) -> Tensor:
        """The s of pairs, float32 [R, n], n a multiple of `GROUP`."""
        w, a = self._weights[part], block.products[columns.start : _whole(columns.stop)]
        return multiply("products", w, a.T)

    def _double(self, part: slice, block: Block, columns: slice) -> Tensor:
        """The same in float64."""
        w, a = self._weigh(part), block.x[columns] - self._center
        s = w.new_full((len(w), _whole(columns.stop) - columns.start), torch.inf)
        s[:, : len(a)] = w @ a.T
        if self._l2:
            s[:, : len(a)] += a.square_().sum(1)
        return s

    def _margin(self, part: slice, longest: float, dtype: torch.dtype) -> Tensor:
        """How far values by products may be from those by definition, [R], for vectors up to that length."""
        size = self._norms[part] * longest + (longest**2 if self._l2 else 0)
        coarse = 1.1 * torch.finfo(dtype).eps / 2 * size
        fine = 8 * torch.finfo(torch.float64).eps / 2 * self._scale(part, longest)
        return (coarse + fine) * (self._q.shape[1] + 8) + 1e-300

    def _scale(self, part: slice, longest: float) -> Tensor:
        """What the errors of float64 are in proportion to, [R]."""
        norms = self._norms[part]
        return (norms / 2 + longest).square() if self._l2 else norms * (longest + 2 * self._center_norm)


def directions(v: Tensor) -> Tensor:
    """The vectors [n, D] at length 1; those of length 0 stay as they are."""
    lengths = v.norm(dim=1, keepdim=True)
    return v / torch.where(lengths > 0, lengths, 1)


def _whole(n: int) -> int:
    return -(-n // GROUP) * GROUP


def _next(v: Tensor) -> Tensor:
    """The next larger floats."""
    return torch.nextafter(v, torch.full_like(v, torch.inf))


def _below(s: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of all s [R, n] below their row's limit [R], sorted."""
    groups = s.view(len(s), -1, GROUP)
    rows, group = (groups.amin(2) < limit[:, None]).nonzero(as_tuple=True)
    which, place = (groups[rows, group] < limit[rows, None]).nonzero(as_tuple=True)
    return rows[which], group[which] * GROUP + place


def _full_precision() -> bool:
    """Whether products of float32 are that, and not of the shorter numbers that torch can be told to use."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for single backends
        return False
