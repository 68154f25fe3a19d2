"""What differs between a CPU and a GPU here: a GPU's work is only done once its stream says so.

This is the plain version for GPUs, right before fast: every worker and lane has its own stream, and waits for it
wherever another thread may read what it wrote.
"""

import contextlib

import torch


def own_stream(device: torch.device):
    """A context in which this thread's kernels have a stream of their own; nothing on a CPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))


def settle(device: torch.device):
    """Waits until all that this thread gave the device has ended; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
