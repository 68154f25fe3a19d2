"""The link dial of a GPU: kernels on a lane's stream apply the rule of plan/link by the device's timer.

`globaltimer` counts nanoseconds; cycles would be wrong, since the clock rate falls under load.
"""

import importlib.util
import threading

import torch

from disagg.plan.errors import ConfigError
from disagg.run.clock import now_ns
from disagg.run.gpu.device_clock import timer_of

ENQUEUED_NS = 2_000_000  # the longest wait of a copy for the host to enqueue all of it
_building = threading.Lock()  # two lanes must not compile at the same time


def check_triton() -> None:
    """ConfigError if triton, which the dial's kernels need, is missing."""
    if not triton_is_here():
        raise ConfigError("a link on a GPU is dialled by triton: `pip install triton`, or leave `link` at None")


def triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None


class DeviceDial:
    """Make and use it under a lane's stream; any thread may call `stop`."""

    def __init__(self, device: torch.device, beside: torch.cuda.Stream) -> None:
        """`beside`: a stream for copies that have moved and stay until they may arrive."""
        check_triton()
        from disagg.run.gpu import device_kernels

        self.beside, self._timer = beside, timer_of(device)
        self._post, self._hold = device_kernels.post[(1,)], device_kernels.hold[(1,)]
        self._aside = torch.cuda.Stream(device)
        with _building:
            self.state = torch.zeros(2, dtype=torch.int64, device=device)
            self._enqueued, self._number = torch.zeros(1, dtype=torch.int64, pin_memory=True), 0
            self.post(0)
            self.hold()
            self.go()
            self.state[1:].fill_(1)
            far, times = 1 << 40, torch.zeros(2, dtype=torch.int64, pin_memory=True)
            occupy = device_kernels.occupy[(1,)](self.state, far, self.state, self.state, times, far, num_warps=1)
            self._occupy = occupy[(1, 1, 1)]  # without the work of triton's front for each launch
            self.state.zero_()
            torch.cuda.current_stream(device).synchronize()  # once: kernels are compiled, state is 0

    def post(self, occupancy_ns: int) -> None:
        """The next copy takes the link when the stream reaches this point and the host has called `go`.

        Call it before the copy is enqueued; else the copy's time includes the host's time to enqueue it.
        """
        self._number += 1
        self._post(self.state, self._enqueued, self._number, occupancy_ns, MOST_NS=ENQUEUED_NS, num_warps=1)

    def go(self) -> None:
        """Marks that all of the copy is on the stream."""
        self._enqueued[0] = self._number

    def hold(self) -> None:
        """Later work on this stream waits until the link is free."""
        self._hold(self.state, num_warps=1)

    def occupy(self, ready: torch.Tensor, freed: torch.Tensor, times: torch.Tensor, occupancy_ns: int) -> None:
        """In place of all that, on the stream beside the link's, after a copy whose beginning has a time: it took the
        link at the latest of now, `ready` and `freed` [1], by the device's timer, or as the link got free. `times` [2]:
        when it took and left it.
        """
        posted = self._timer.stamp(now_ns())
        self._occupy(self.state, posted, ready, freed, times, occupancy_ns, stream=self.beside.cuda_stream)

    def stop(self) -> None:
        """Ends every hold, because the engine closes."""
        with torch.cuda.stream(self._aside):
            self.state[1:].fill_(1)
