"""Which device and number format the engine runs in: chosen once, with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from qinco_core.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True)
class Plan:
    """A device, a precision, how many threads share the work, and why."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    reason: str

    @property
    def precision(self) -> str:
        """The number format's name, as it is recorded beside codes."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        return f"{self.device}, {self.precision} ({self.reason}){threads}"


def plan(device: str = "auto", precision: str = "auto", threads: int | None = None) -> Plan:
    """Choose device and precision.

    bfloat16 is taken where the processor multiplies it natively: there it is several times faster and
    changes the error of codes by less than 0.5 % (tests hold it to that).

    Args:
        device: "auto" (a GPU if there is one), "cpu" or "cuda"; of several GPUs a process that torchrun started takes
            its own.
        precision: "auto", "bfloat16" or "float32".
        threads: CPU threads; by default the environment's QINCO_THREADS, or this process's share of the cores.

    Raises:
        DeviceError: there is no such device here, or no such name.
    """
    if device not in DEVICES:
        raise DeviceError(f"no device {device!r}; there are {', '.join(DEVICES)}")
    if precision not in PRECISIONS:
        raise DeviceError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise DeviceError(f"{threads} threads cannot work; use 1 or more")
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise DeviceError("torch sees no CUDA GPU on this machine; use --device cpu")
    chosen = torch.device("cuda" if gpu and device != "cpu" else "cpu")
    dtype, reason = _precision(precision, chosen)
    if chosen.type == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return Plan(chosen, dtype, threads or default_threads(), reason)


def default_threads() -> int:
    """CPU threads where nobody says how many: QINCO_THREADS, or this process's share of the cores.

    Raises:
        DeviceError: QINCO_THREADS is no number of threads.
    """
    if asked := os.environ.get("QINCO_THREADS"):
        if not asked.isdecimal() or int(asked) < 1:
            raise DeviceError(f"QINCO_THREADS is {asked!r}; make it a number of threads, 1 or more")
        return int(asked)
    threads, processes = torch.get_num_threads(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if threads == 1 and processes > 1:  # torchrun's choice for want of a better one
        return max(1, len(os.sched_getaffinity(0)) // processes)
    return threads


def _precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    if precision != "auto":
        return getattr(torch, precision), "as asked"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU has it") if native else (torch.float32, "the GPU has no bfloat16")
    # oneDNN without these instructions falls back to a path slower than float32
    native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if native:
        return torch.bfloat16, "the processor multiplies it natively"
    return torch.float32, "the processor has no bfloat16 products"
