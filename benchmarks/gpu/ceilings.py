"""The most that this device does, measured in the run whose rows are divided by it."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch


class DeviceLimits(NamedTuple):
    """In bytes/s and FLOP/s."""

    copy: float  # device memory, bytes read and written
    matmul: float  # bfloat16 on a GPU
    down: float  # device to pinned host memory
    up: float

    @property
    def words(self) -> str:
        """For the note of a row."""
        return (
            f"this run: copy {self.copy / 1e9:,.0f} GB/s, matmul {self.matmul / 1e12:.3g} TFLOP/s, "
            f"pinned {self.down / 1e9:.3g} down and {self.up / 1e9:.3g} up GB/s"
        )


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3) -> float:
    """Median seconds of a piece of device work, by events on a GPU."""
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        with torch.cuda.device(device):  # events stand on the current device
            return seconds(work, device, repeats, warm)
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        else:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(device: torch.device, side: int, copied_bytes: int, pinned_bytes: int) -> DeviceLimits:
    """All four; what they took is given back."""
    limits = DeviceLimits(
        copied_bytes / copy_s(device, copied_bytes // 2), 2 * side**3 / seconds(product(device, side), device),
        *(pinned_bytes / took for took in pinned_s(device, pinned_bytes)),
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return limits


def copy_s(device: torch.device, nbytes: int) -> float:
    source, target = (torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    return seconds(lambda: target.copy_(source), device)


def product(device: torch.device, side: int) -> Callable[[], object]:
    """A product of square matrices, of random data: zeros run faster than any model's weights."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return partial(torch.mm, left, right, out=torch.empty_like(left))


def sustained_s(device: torch.device, side: int, lasting_s: float) -> float:
    """A product's seconds, back to back with others for so long that the clock has fallen to what the power allows."""
    one = product(device, side)
    count = max(2, round(lasting_s / seconds(one, device)))
    return seconds(lambda: [one() for _ in range(count)], device, repeats=1, warm=1) / count


def pinned_s(device: torch.device, nbytes: int) -> tuple[float, float]:
    """Down to pinned host memory, and up."""
    here = torch.empty(nbytes, dtype=torch.uint8, device=device)
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    down, up = (lambda: host.copy_(here, non_blocking=True)), (lambda: here.copy_(host, non_blocking=True))
    return seconds(down, device), seconds(up, device)
