"""When a piece of a stream's work began and ended, on the host's clock: from CUDA events, as the device saw it."""

import torch

from disagg.run.clock import now_ns


class Stopwatch:
    """Starts when made; `stop` marks the end, `wait` waits for it. On a CPU the work is done when `stop` is called."""

    def __init__(self, device: torch.device):
        self._events = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._started = self._ended = now_ns()

    def stop(self):
        if self._events:
            self._events[1].record()
        self._ended = now_ns()

    def wait(self) -> tuple[int, int]:
        """Start and end in ns, once both lie in the past; the end is known to the time that the host takes to wake."""
        if self._events:
            self._events[1].synchronize()
            self._ended = now_ns()
            self._started = self._ended - round(self._events[0].elapsed_time(self._events[1]) * 1e6)
        return self._started, self._ended
