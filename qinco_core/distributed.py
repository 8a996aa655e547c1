"""Several processes that train one model, as torchrun and its like start them (torch.distributed).

Whoever shares work asks `current()` for the group and goes through it; that of a single process does nothing.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from qinco_core.errors import ProcessGroupError

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Group:
    """The processes that work on one thing together; every method must be called by all of them.

    Attributes:
        rank: this process's number, 0 to size − 1; rank 0 writes for all.
        size: how many they are.
        restarted: whether the launcher had started them before, and one had failed.
    """

    rank: int = 0
    size: int = 1
    restarted: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's share of rows that all of them have: every size-th one."""
        return rows[self.rank :: self.size]

    def rows(self, share: Tensor, numbers: Tensor) -> Tensor:
        """Rows of which each process has a `share`, by their numbers in the whole."""
        found = share.new_zeros(len(numbers), *share.shape[1:])
        own = numbers % self.size == self.rank
        found[own] = share[numbers[own] // self.size]
        self.add(found)
        return found

    def add(self, tensor: Tensor) -> None:
        """Put the sum over all processes in place of each one's tensor; the same on all of them to the bit."""
        if self.size > 1:
            with _reaching_all():
                dist.all_reduce(tensor)

    def copy(self, tensor: Tensor) -> None:
        """Put rank 0's tensor in place of each one's."""
        if self.size > 1:
            with _reaching_all():
                dist.broadcast(tensor, 0)

    def each(self, value: float) -> list[float]:
        """The value of every process."""
        values = torch.zeros(self.size, dtype=torch.float64)
        values[self.rank] = value
        self.add(values)
        return [float(v) for v in values]

    def any(self, flag: bool) -> bool:
        """Whether it is so for one of them."""
        return flag if self.size == 1 else sum(self.each(flag)) > 0

    def wait(self) -> None:
        """Wait until all have come here."""
        self.each(0.0)


def current() -> Group:
    """The group that this process belongs to: that of torch.distributed once it is set up, else itself alone."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


@contextmanager
def launched() -> Iterator[Group]:
    """Join the processes that a launcher started, by the environment it gave them; without one, nothing happens.

    Raises:
        ProcessGroupError: they cannot be reached, or one of them failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield current()
        return
    # small sums are of the CPU's memory wherever the work is done
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _reaching_all():
        store, rank, size = next(rendezvous("env://"))
        attempt, store = _attempt(store, rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Group(rank, size, restarted=attempt > 1)
    finally:
        dist.destroy_process_group()


def _attempt(store: Store, rank: int, size: int) -> tuple[int, Store]:
    """The number of this attempt, 1 for the first, and a store of its own.

    A launcher that starts all processes again gives them the store of the attempt before, whose addresses would be
    taken for theirs. So the first process numbers the attempts, and answers each other one's greeting with the number.
    """
    if rank:
        greeting = uuid.uuid4().hex
        store.set(f"greeting of {rank}", greeting)
        attempt = int(store.get(greeting))
        store.set(f"{attempt} reached {rank}", "yes")
    else:
        attempt = store.add("attempts", 1)
        missing = list(range(1, size))
        while missing := [other for other in missing if not store.check([f"{attempt} reached {other}"])]:
            for key in (f"greeting of {other}" for other in missing):
                if store.check([key]):
                    store.set(store.get(key).decode(), str(attempt))
            time.sleep(_POLL_SECONDS)
    return attempt, PrefixStore(f"attempt {attempt}", store)


@contextmanager
def _reaching_all() -> Iterator[None]:
    """What torch says of lost processes, as an error of ours."""
    try:
        yield
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        raise ProcessGroupError(f"another process of the group has failed, or cannot be reached ({what})") from error
