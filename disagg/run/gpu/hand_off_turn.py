"""What leaves with a captured pass, and what its hand-off writes down: flags, times and places of one pass of two."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from disagg.run.gpu.stream_copy import runs

MOST_RUNS = 4  # of blocks at one end, which copy engines take one by one; more cost the host as much as a kernel
Run = tuple[int, int, int]  # of adjacent tokens: the row of the pass and the slot of the cache it begins at, its length


class Travel:
    """What leaves with a pass: slots [T] of its tokens at the source and the target (-1: stays), by copies of `group`
    layers."""

    def __init__(
        self,
        slots: np.ndarray,
        onto: np.ndarray,
        layers: int,
        group: int,
        busy: Sequence[Callable[[int], int] | None] = (None, None),
    ) -> None:
        """`busy` gives each dialled link's time in ns for a number of layers."""
        self.slots, self.onto, self.tokens = slots, onto, len(onto)
        self.copies = [range(first, min(first + group, layers)) for first in range(0, layers, group)]  # layers of each
        counts = [len(layers) for layers in self.copies]
        busy_ns = [of and {count: of(count) for count in {*counts}} for of in busy]  # this stands before the first copy
        self.occupancy_ns = [known and [known[count] for count in counts] for known in busy_ns]
        rows = np.flatnonzero(onto >= 0)
        found = [list(runs(rows, ends[rows])) for ends in (slots, onto)]
        self.runs: list[list[Run] | None] = [None if len(each) > MOST_RUNS else each for each in found]

    def scatter(self) -> None:
        """Leaves both ends to kernels, as if the blocks lay scattered."""
        self.runs = [None, None]


def addresses(numbers: Tensor) -> list[int]:
    return list(range(numbers.data_ptr(), numbers.data_ptr() + 8 * len(numbers), 8))


class HandOffTurn:
    """Flags, times and places of one pass of two."""

    def __init__(self, most: int, layers: int, hops: int, verify: bool, sides: list[torch.device]) -> None:
        self._places = {device: torch.full((2, most), -1, dtype=torch.long, device=device) for device in sides}
        self._here = torch.full((2, most), -1, dtype=torch.long, pin_memory=True)
        self.flags = torch.zeros(2 + hops, layers, dtype=torch.long, pin_memory=True)  # 1: a copy's step is done
        self.gathered, self.scattered, *self.carried = map(addresses, self.flags)
        moment = partial(torch.cuda.Event, enable_timing=True)
        # Start and end of each copy on each link.
        self.events = [[(moment(), moment()) for _ in range(layers)] for _ in range(hops)]
        # The same by a dial, by the timer of its device.
        self.times = torch.zeros(hops, layers, 2, dtype=torch.long, pin_memory=True)
        self.taken = [list(of_hop) for of_hop in self.times]
        self.left = [[times[1:] for times in of_hop] for of_hop in self.times]
        self.see(*torch.zeros(2, layers, dtype=torch.long))
        # Checksums where K/V are verified: at the source as a layer leaves and after the last one, and at the target.
        self.sums = torch.zeros(3, layers, most, dtype=torch.long, pin_memory=True) if verify else None
        self.busy = False
        self.answered = threading.Event()  # the pass has picked its tokens, which go first

    def see(self, stored: Tensor, seen: Tensor) -> None:
        """When K/V were in the cache: on the device as the pass goes, in pinned memory after it."""
        self.stored, self.seen, self.written = stored, seen, addresses(stored)
        self.stored_at = list(stored.split(1))

    def fill(self, travel: Travel) -> None:
        """Before `upload`: where the tokens of a pass lie and where they go."""
        self._here.numpy()[:, : travel.tokens] = travel.slots, travel.onto

    def upload(self, device: torch.device) -> None:
        """For kernels of that device, on its current stream."""
        self._places[device].copy_(self._here, non_blocking=True)

    def places(self, device: torch.device) -> Tensor:
        """[2, most]: the slot of each token at the source, and at the target or -1."""
        return self._places[device]
