"""Work shared by threads, each of which runs torch's operations by itself.

The usual way, all threads sharing every operation, makes each wait for the others at the end of every
one of them and sends a chunk through all their caches. Here a chunk stays with one core.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from qinco_core.codec.precision import Plan

# chunks that wait for a GPU, at most; results of a call that are put in pinned memory, which is scarce, at most
_AHEAD, _PINNED_BYTES = 8, 1 << 30

T = TypeVar("T")
R = TypeVar("R")


def run_parallel(work: Callable[[T], R], items: Sequence[T], plan: Plan) -> list[R]:
    """`work` of every item, in order; on a CPU by the plan's threads, each with torch to itself."""
    if plan.device.type != "cpu":
        return [work(item) for item in items]
    with one_thread_each():
        if plan.threads == 1 or len(items) == 1:
            return [work(item) for item in items]
        return list(_pool(plan.threads).map(work, items))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let no operation of torch use more than the thread that calls it.

    The setting is in part the whole process's (MKL has one), so of blocks that overlap in time the first
    sets it and the last sets it back.
    """
    with _setting:
        if _setting.users == 0:
            _setting.shared = torch.get_num_threads()
        _setting.users += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _setting:
            _setting.users -= 1
            torch.set_num_threads(_setting.shared if _setting.users == 0 else 1)


class _Setting:
    """How many threads operations may use when nobody is in `one_thread_each`, behind a lock."""

    def __init__(self) -> None:
        self.users = 0
        self.shared = 1
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_setting = _Setting()


def map_rows(work: Callable[..., Tensor], rows: Sequence[Tensor], size: int, plan: Plan) -> Tensor:
    """Apply `work` to chunks of rows and join the results on the CPU, in order.

    Args:
        work: from a chunk of each of `rows`, on the plan's device, to a tensor with as many rows; on a CPU called by
            several threads.
        rows: one or more tensors [N, ...], on any device.
        size: rows of a chunk, at most.
        plan: where to run, and on how many threads.
    """
    if plan.device.type != "cpu":
        return _map_queued(work, rows, size, plan.device)
    size = max(1, min(size, -(-len(rows[0]) // plan.threads)))

    def task(chunks: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            return work(*chunks)

    return torch.cat(run_parallel(task, list(zip(*(part.cpu().split(size) for part in rows), strict=True)), plan))


@torch.no_grad()
def _map_queued(work: Callable[..., Tensor], rows: Sequence[Tensor], size: int, device: torch.device) -> Tensor:
    """`map_rows` on a GPU: copies there and back go through pinned memory while it works on what is queued."""
    N, found, first = len(rows[0]), None, 0
    size = max(1, -(-N // max(1, -(-N // size))))  # chunks of about one length, not a short one at the end
    queued: deque[torch.cuda.Event] = deque()
    for chunks in zip(*(part.split(size) for part in rows), strict=True):
        result = work(*(_queued(chunk, device) for chunk in chunks))
        if found is None:
            shape = N, *result.shape[1:]
            few = math.prod(shape) * result.dtype.itemsize <= _PINNED_BYTES
            found = torch.empty(shape, dtype=result.dtype, pin_memory=few)
        found[first : first + len(result)].copy_(result, non_blocking=True)
        first += len(result)
        queued.append(torch.cuda.current_stream(device).record_event())
        if len(queued) > _AHEAD:
            queued.popleft().synchronize()
    assert found is not None
    torch.cuda.current_stream(device).synchronize()
    return found


def _queued(rows: Tensor, device: torch.device) -> Tensor:
    if rows.device.type == "cpu":
        rows = rows.contiguous().pin_memory()
    return rows.to(device, non_blocking=True)


def scratch(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Memory of this thread for a purpose, with what was left there; the next call for it may give the same.

    Fresh memory costs a page fault for every 4 KiB, which small products do not earn back. A GPU's memory, which torch
    keeps itself, is fresh.
    """
    if device is not None and device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    kept: Tensor | None = getattr(_kept, name, None)
    if kept is None or len(kept) < size:
        kept = torch.empty(size, dtype=torch.uint8)
        setattr(_kept, name, kept)
    return kept[:size].view(dtype).view(shape)


def multiply(name: str, a: Tensor, b: Tensor) -> Tensor:
    """The matrix a b, in scratch memory of that name."""
    return torch.mm(a, b, out=scratch(name, (len(a), b.shape[1]), a.dtype, a.device))


def select(name: str, book_KX: Tensor, k_R: Tensor) -> Tensor:
    """The rows k of a matrix, in scratch memory of that name."""
    rows = scratch(name, (len(k_R), book_KX.shape[1]), book_KX.dtype, book_KX.device)
    return torch.index_select(book_KX, 0, k_R, out=rows)


def cast(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix x in that dtype: itself, or in scratch memory of that name."""
    return x if x.dtype == dtype else scratch(name, tuple(x.shape), dtype, x.device).copy_(x)


_kept = threading.local()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "qinco", initializer=torch.set_num_threads, initargs=(1,))
