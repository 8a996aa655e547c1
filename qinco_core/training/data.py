"""The training vectors: split, normalisation, and the order in which they are drawn.

Shapes: N training vectors, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.precision import Plan
from qinco_core.config import ModelConfig, TrainConfig, validation_size
from qinco_core.distributed import current
from qinco_core.errors import UsageError
from qinco_core.memory import share
from qinco_core.progress import Progress
from qinco_core.training.neighbors import Neighbors
from qinco_core.vectors import VectorFile
from qinco_core.vectors.base import Array

_BLOCK = 1 << 16
# rows of a file that is not kept in memory that are drawn together: a disk, or a server, gives them at once
_DRAWN = 256
# vectors assigned to lists between two questions whether to stop
_ASSIGNED = 1 << 13
# what the initialisation may hold in memory, and how large a training set is kept there; less where memory is short
_SAMPLE_BYTES, _KEPT_BYTES = 2 << 30, 1 << 30
# parts of the memory that are taken for them, and for a block of vectors as float64 with what is made of it
_SAMPLE_PART, _KEPT_PART, _BLOCK_PART, _BLOCK_COPIES = 12, 8, 8, 4
# more vectors than this are not learned by heart: if others have more error, these are of another kind
_FEW = 1 << 20


class TrainingData:
    """A file of vectors, its last `val` rows set apart; several processes draw a share each of every batch.

    Attributes:
        lists, val_lists: for an IVF model, the list number of each vector, int32, once `assign` has found them.
        few: whether there are so few vectors that a run may learn them by heart, and that neighbours are soon found.
    """

    def __init__(self, vectors: VectorFile, model: ModelConfig, config: TrainConfig) -> None:
        val = validation_size(config.val, len(vectors))
        N = len(vectors) - val
        if N < model.K:
            raise UsageError(
                f"{vectors.name} has {len(vectors)} vectors; {val} of them are for validation (--val) and "
                f"training needs at least K = {model.K} others: give more vectors, or a smaller --val or --K"
            )
        self.stamp = vectors.stamp
        self._group = current()
        self.train = vectors.section(0, N)
        self.val = vectors.section(N, len(vectors))
        self.batch = min(config.encode_batch, N)
        if self.batch < self._group.size:
            raise UsageError(f"batches of {self.batch} vectors for {self._group.size} processes: start fewer of them")
        self._seed = config.seed
        self._epoch = -1
        kept = min(self._group.each(share(_KEPT_BYTES, _KEPT_PART)))  # all processes have to draw alike
        self._small = N * self.train.dim * self.train.dtype.itemsize <= kept
        self._drawn = 1 if self._small else min(_DRAWN, self.batch)
        self.batch -= self.batch % self._drawn
        self.few = self._small and N <= _FEW
        self._order = torch.empty(0, dtype=torch.int64)
        self.lists: Tensor | None = None
        self.val_lists: Tensor | None = None
        self._neighbors: Neighbors | None = None

    def __len__(self) -> int:
        """Training vectors N."""
        return len(self.train)

    def assign(self, engine: Engine, progress: Progress, stop: Callable[[], bool]) -> None:
        """Find the list number of every vector, once for the whole run: the coarse step is frozen.

        `stop` is asked now and then; true raises KeyboardInterrupt.
        """
        progress.begin("assigning vectors to lists", len(self.train) + len(self.val), "vectors")
        rank, size = self._group.rank, self._group.size

        def assigned(vectors: VectorFile) -> Tensor:
            lists = torch.zeros(len(vectors), dtype=torch.int32)
            for start in range(0, len(vectors), _ASSIGNED * size):
                if stop():
                    raise KeyboardInterrupt
                own = range(start, min(start + _ASSIGNED * size, len(vectors)))[rank * _ASSIGNED :][:_ASSIGNED]
                if own:
                    v = vectors.read(own.start, own.stop)
                    lists[own.start : own.stop] = engine.assign(torch.from_numpy(v)).int()
                progress.advance(min(_ASSIGNED * size, len(vectors) - start))
            self._group.add(lists)
            return lists

        self.lists, self.val_lists = assigned(self.train), assigned(self.val)
        progress.end()

    def draw(self, number: int, augment: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """This process's share of batch `number`: every epoch in an order of its own, the remainder left out.

        Args:
            number: 0 for the first.
            augment: share of the difference of two of its neighbours that is added to each vector, once they are found.

        Returns:
            Vectors [n, D], all of the batch for a single process, and their list numbers int64 [n] where there are any.
        """
        per_epoch = len(self) // self.batch
        epoch, position = divmod(number, per_epoch)
        if epoch != self._epoch:
            order = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self) // self._drawn, generator=order)
            self._epoch = epoch
        rows = self._group.share(self._rows(position))
        v, lists = self._take(rows)
        if augment and self._neighbors is not None:
            random = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
            drawn = self._group.share(self._neighbors.draw(self.batch, random))
            v = v + augment * self._neighbors.differences(rows, drawn)
        return v, lists

    def _rows(self, position: int) -> Tensor:
        """The rows of a batch of the epoch, int64 [batch]: first those that begin what is drawn together, and so on."""
        count = self.batch // self._drawn
        first = self._order[position * count : (position + 1) * count] * self._drawn
        return (first + torch.arange(self._drawn)[:, None]).flatten()

    def find_neighbors(self, plan: Plan) -> None:
        """Find the neighbours of the training vectors, which are few; only the first call does anything."""
        if self._neighbors is None:
            self._neighbors = Neighbors(self._in_memory, self._seed, plan)

    def spread(self, rows: int) -> tuple[Tensor, Tensor | None]:
        """Training vectors from all over the file, so many or all of them, and their list numbers."""
        return self._take(torch.linspace(0, len(self) - 1, min(rows, len(self)), dtype=torch.float64).long())

    @cached_property
    def _in_memory(self) -> Array:
        return self.train.read(0, len(self))

    def _take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        v = self._in_memory[rows.numpy()] if self._small else self.train.take(rows.numpy())
        return torch.from_numpy(v), None if self.lists is None else self.lists[rows].long()

    def check_val(self) -> None:
        """Read the validation vectors once, so that damage or NaN among them ends a run before it starts."""
        for _ in self.val.batches(_block_rows(self.val)):
            pass

    def sample(self, network: Network, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Normalised training vectors for the initialisation, all of them or as many as fit in 2 GiB; their lists.

        Where memory is short it is a twelfth of it, beside which there is room to work. Each process gets its share
        of them.
        """
        N, D = len(self), self.train.dim
        room = min(self._group.each(share(_SAMPLE_BYTES, _SAMPLE_PART)))
        fits = max(network.config.K, int(room) // (4 * D))
        every = torch.arange(N) if fits >= N else self._scattered(fits, generator)
        rows = self._group.share(every).numpy()
        x = torch.empty(len(rows), D, device=network.mean.device)
        step = _block_rows(self.train)
        for start in range(0, len(rows), step):
            block = torch.from_numpy(self.train.take(rows[start : start + step])).to(network.mean.device)
            x[start : start + len(block)] = network.normalize(block)
        return x, None if self.lists is None else self.lists[rows].long().to(x.device)

    def _scattered(self, rows: int, generator: torch.Generator) -> Tensor:
        """Random rows in ascending order, those together that are drawn together."""
        first = torch.randperm(len(self) // self._drawn, generator=generator)[: -(-rows // self._drawn)].sort().values
        return (first[:, None] * self._drawn + torch.arange(self._drawn)).flatten()[:rows]


def _block_rows(vectors: VectorFile) -> int:
    """How many vectors are looked at together."""
    return max(1, min(_BLOCK, share(1 << 62, _BLOCK_PART) // (8 * _BLOCK_COPIES * vectors.dim)))


def check_training(vectors: VectorFile, model: ModelConfig, config: TrainConfig) -> None:
    """Read a file once, so that what would end a run later on ends it before it starts.

    Raises:
        UsageError: too few vectors, or all of them are equal.
        VectorFileError: damaged, or NaN or infinity.
    """
    data = TrainingData(vectors, model, config)
    normalisation(data.train, model.rules)
    data.check_val()


def normalisation(vectors: VectorFile, rules: str) -> tuple[Tensor, Tensor]:
    """The mean [D] and the scalar std that inputs are normalised by, in one pass (method §2, §5).

    Each process of several reads its share of the blocks.
    """
    N, D = vectors.shape
    group = current()
    total, squares = np.zeros(D), 0.0
    low, high = np.inf, -np.inf
    step = int(min(group.each(_block_rows(vectors))))
    for start in range(group.rank * step, N, group.size * step):
        block = vectors.read(start, min(start + step, N))
        v = block.astype(np.float64)
        total += v.sum(0)
        squares += float(np.square(v).sum())
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    group.add(torch.from_numpy(total))
    squares, low, high = sum(group.each(squares)), min(group.each(low)), max(group.each(high))
    if high == low:
        raise UsageError(f"all entries of {vectors.name} are {low:g}: there is nothing to learn")
    if rules == "qinco1":
        return torch.full((D,), low + 1), torch.tensor((high - low) / 2)
    variance = squares / (N * D) - (total.sum() / (N * D)) ** 2
    return torch.from_numpy(total / N).float(), torch.tensor(variance).sqrt().float()
