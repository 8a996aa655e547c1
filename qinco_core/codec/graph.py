"""Work that a GPU gets as one graph: its hundreds of small kernels take less time than asking for them one by one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

# calls that run as they are, so that memory and libraries are ready when the graph is recorded
_WARM_UP = 3
# recordings that are kept: each keeps the memory it works in
_KEPT = 2

Inputs = tuple[Tensor | None, ...]
Shapes = tuple[tuple[int, ...] | None, ...]


class Graphed:
    """A function of tensors, recorded on a GPU for each combination of their shapes and replayed from then on.

    Between its calls the function may keep nothing but tensors that stay where they are; it waits for no value, and
    returns a tensor. On a CPU it is called as it is. Threads may share one: they take turns.
    """

    def __init__(self, work: Callable[..., Tensor], device: torch.device) -> None:
        """Wrap `work`, all of whose tensors are on `device`."""
        self._work, self._device = work, device
        self._calls: Counter[Shapes] = Counter()
        self._recorded: dict[Shapes, tuple[torch.cuda.CUDAGraph, Inputs, Tensor]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._turn = threading.Lock()

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """What the function returns of these tensors."""
        if self._device.type == "cpu":
            return self._work(*inputs)
        with self._turn:
            return self._call(inputs)

    def _call(self, inputs: Inputs) -> Tensor:
        shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in inputs)
        if shapes not in self._recorded:
            if self._calls[shapes] < _WARM_UP:
                self._calls[shapes] += 1
                return self._warm_up(inputs)
            if len(self._recorded) == _KEPT:
                self._recorded.pop(next(iter(self._recorded)))
            self._recorded[shapes] = self._record(inputs)
        graph, places, result = self._recorded[shapes]
        for place, tensor in zip(places, inputs, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        graph.replay()
        return result.clone()

    def _warm_up(self, inputs: Inputs) -> Tensor:
        """A call as it is; one that uses autograd on a stream of its own, or it could not be recorded later."""
        if not torch.is_grad_enabled():
            return self._work(*inputs)
        usual = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = self._work(*inputs)
        usual.wait_stream(self._stream)
        return result

    def _record(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, Tensor]:
        places = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            result = self._work(*places)
        return graph, places, result
