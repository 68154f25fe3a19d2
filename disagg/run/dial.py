"""The link dial of a GPU: the rule of plan/link.Wire on the device's own timer, kept by kernels on a lane's stream.

A count of cycles would lie here: clocks fall while matrices multiply. `globaltimer` counts nanoseconds.
"""

import threading

import torch

from disagg.plan.errors import ConfigError

_building = threading.Lock()  # two lanes must not compile the kernels at once


def check_triton():
    """ConfigError where the kernels of a dial can't be had."""
    try:
        import disagg.run.spin  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a link on a GPU is dialled by a small Triton kernel, and triton is not here ({error}): "
            "`pip install triton`, or leave `link` at None"
        ) from None


class DeviceDial:
    """Made and used under a lane's stream; `stop` may come from another thread."""

    def __init__(self, device: torch.device):
        check_triton()
        from disagg.run import spin

        self._post, self._hold = spin.post[(1,)], spin.hold[(1,)]
        self._aside = torch.cuda.Stream(device)
        with _building:
            self._state = torch.zeros(2, dtype=torch.int64, device=device)
            self.post(0)
            self.hold()
            torch.cuda.current_stream(device).synchronize()  # once, at the start: compiled, and zeros are there

    def post(self, occupancy_ns: int):
        """A copy takes the wire: called right before it is enqueued."""
        self._post(self._state, occupancy_ns, num_warps=1)

    def hold(self):
        """What follows on this stream waits until the wire would be free."""
        self._hold(self._state, num_warps=1)

    def stop(self):
        """No hold waits any more: the engine closes."""
        with torch.cuda.stream(self._aside):
            self._state[1:].fill_(1)
