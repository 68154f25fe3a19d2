"""A simulated prefill pass whose hand-offs block: the virtual clock's counterpart of `Transfers.wait_for`."""

from collections.abc import Callable

from disagg.plan.commands import Prefill
from disagg.twin.simulated_lanes import SimulatedLanes

Ended = Callable[[int, tuple[int, ...], tuple[int, ...]], None]  # takes the pass's end, hand-offs and waits in ns


class BlockingPass:
    """One layer after the other: `hand_off` when a layer's K/V are written, `go_on` when something may have landed.

    `layer_ns` is what a layer takes, `tail_ns` what follows the last one's hand-off. `written` hears of each layer,
    just before it is handed off, and `ended` of the end.
    """

    def __init__(
        self,
        lanes: SimulatedLanes,
        command: Prefill,
        layer_ns: int,
        tail_ns: int,
        written: Callable[[int], None],
        ended: Ended,
    ) -> None:
        self.lanes, self.layer_ns, self.tail_ns, self.written, self.ended = lanes, layer_ns, tail_ns, written, ended
        self.transfers = [chunk.transfer for chunk in command.chunks if chunk.transfer is not None]
        self.marks: list[int] = []  # of hand-offs so far, in ns
        self.waits: list[int] = []  # after each of them, in ns

    def hand_off(self) -> None:
        """The next layer's K/V may travel; the pass stands still until `go_on` finds that they have."""
        lanes, layer = self.lanes, len(self.marks)
        self.marks.append(lanes.now_ns)
        self.written(layer)
        for transfer in self.transfers:
            lanes.transfers.hand_off(transfer, layer, lanes.now_ns)
        lanes.blocked.append(self.go_on)
        lanes.drive_lanes()

    def go_on(self) -> None:
        """Computes the next layer, or ends, unless a copy holds it up."""
        lanes = self.lanes
        if any(map(lanes.transfers.holds_up, self.transfers)):
            return
        lanes.blocked.remove(self.go_on)
        self.waits.append(lanes.now_ns - self.marks[-1])
        if len(self.marks) < lanes.transfers.layers:
            lanes.at(lanes.now_ns + self.layer_ns, self.hand_off)
        else:
            waits = tuple(self.waits) if self.transfers else ()
            self.ended(lanes.now_ns + self.tail_ns, tuple(self.marks), waits)
