"""Streams, events and waits of a device; on a CPU each is empty, since a call has finished when it returns."""

import contextlib
import math
import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from disagg.run.gpu.sm_split import SMPartition

#: Hardware queues of a GPU, read when CUDA starts. With the default 8 a lane's copy delays a worker's kernels.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def own_stream(device: torch.device, part: "SMPartition | None" = None) -> AbstractContextManager[object]:
    """A context in which this thread's kernels have a stream of their own; nothing on a CPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(new_stream(device, part))


def new_stream(device: torch.device, part: "SMPartition | None", priority: int = 0) -> torch.cuda.Stream:
    """A stream on the part's SMs, or on all SMs without a split; negative priorities go first."""
    return torch.cuda.Stream(device, priority=priority) if part is None else part.stream(priority)


def on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which the device is this thread's current one, as Triton kernels need it."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def settle(device: torch.device) -> None:
    """Waits until the device has done all work of this thread; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def finish(device: torch.device) -> None:
    """Waits until the device has done all work of all threads; does not wait after a CUDA error."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(device)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """An event after all of this thread's work on the device so far; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def is_fatal(error: Exception) -> bool:
    """Whether the device can run nothing more: so after most CUDA errors, but not after a lack of memory."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)


class Scratch:
    """A staging buffer in host memory or on a GPU, as large as its largest view; new large buffers cost page faults.

    Where it is not `pinned`, CUDA stages a copy through pinned memory of its own: a copy down returns to the host when
    all bytes are here, one up when all have left (CUDA Runtime API, "API synchronization behavior").
    """

    def __init__(self, dtype: torch.dtype, pinned: bool = False, device: torch.device | None = None) -> None:
        self.pinned, self._flat = pinned, torch.empty(0, dtype=dtype, device=device)

    def view(self, shape: tuple[int, ...]) -> torch.Tensor:
        flat, count = self._flat, math.prod(shape)
        if flat.numel() < count:
            self._flat = torch.empty(count, dtype=flat.dtype, device=flat.device, pin_memory=self.pinned)
        return self._flat[:count].view(shape)
