"""Work that a GPU gets as one graph: its hundreds of small kernels take less time than asking for them one by one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

# calls that run as they are, so that memory and libraries are ready when the graph is recorded
WARM_UP = 3

Inputs = tuple[Tensor | None, ...]
Recording = tuple[torch.cuda.CUDAGraph, Inputs, Tensor]


class Graphs:
    """Functions of tensors, recorded on a GPU for each kind of arguments and replayed from then on.

    Between its calls a function may keep nothing but tensors that stay where they are; it waits for no value, leaves
    autograd alone and returns a tensor. On a CPU it is called as it is. Threads and streams may share one: they take
    turns.
    """

    def __init__(self, device: torch.device, kept: int = 2) -> None:
        """Keep so many graphs of `device`, each with the memory it works in."""
        self._device, self._kept = device, kept
        self._calls: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, Recording] = {}
        self._done: torch.cuda.Event | None = None
        self._turn = threading.Lock()

    def __call__(self, name: Hashable, work: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """What `work` returns of these tensors; it must do the same whenever it comes by this name."""
        if self._device.type == "cpu":
            return work(*inputs)
        key = name, *(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs)
        with self._turn:
            if self._done is not None:
                self._done.wait()  # another stream may still be at it
            result = self._call(key, work, inputs)
            self._done = torch.cuda.current_stream().record_event()
        return result

    def _call(self, key: Hashable, work: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        recording = self._recorded.pop(key, None)
        if recording is None:
            self._calls[key] += 1
            if self._calls[key] <= WARM_UP:
                return work(*inputs)
            if len(self._recorded) == self._kept:
                oldest = next(iter(self._recorded))
                del self._recorded[oldest], self._calls[oldest]
            recording = _record(work, inputs)
        self._recorded[key] = recording  # as the one last used
        graph, places, result = recording
        for place, tensor in zip(places, inputs, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        graph.replay()
        return result.clone()


def _record(work: Callable[..., Tensor], inputs: Inputs) -> Recording:
    places = tuple(None if tensor is None else tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
        result = work(*places)
    return graph, places, result
