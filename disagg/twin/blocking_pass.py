"""A simulated prefill pass whose hand-offs block: the virtual clock's counterpart of `Transfers.wait_for`."""

from typing import TYPE_CHECKING

from disagg.plan.commands import Prefill

if TYPE_CHECKING:
    from disagg.twin.simulated_engine import SimulatedEngine


class BlockingPass:
    """One layer after the other: `hand_off` when a layer's K/V are written, `go_on` when something may have landed.

    `layer_ns` is what a layer takes, `tail_ns` what follows the last one's hand-off.
    """

    def __init__(self, engine: "SimulatedEngine", command: Prefill, start_ns: int, layer_ns: int, tail_ns: int) -> None:
        self.engine, self.command, self.start_ns = engine, command, start_ns
        self.layer_ns, self.tail_ns = layer_ns, tail_ns
        self.transfers = [chunk.transfer for chunk in command.chunks if chunk.transfer is not None]
        self.marks: list[int] = []  # of hand-offs so far, in ns
        self.waits: list[int] = []  # after each of them, in ns

    def hand_off(self) -> None:
        """The next layer's K/V may travel; the pass stands still until `go_on` finds that they have."""
        engine, layer = self.engine, len(self.marks)
        self.marks.append(engine.now_ns)
        engine.layer_written(self.command, layer)
        for transfer in self.transfers:
            engine.transfers.hand_off(transfer, layer, engine.now_ns)
        engine.blocked.append(self)
        engine.drive_lanes()

    def go_on(self) -> None:
        """Computes the next layer, or ends, unless a copy holds it up."""
        engine = self.engine
        if any(map(engine.transfers.holds_up, self.transfers)):
            return
        engine.blocked.remove(self)
        self.waits.append(engine.now_ns - self.marks[-1])
        if len(self.marks) < engine.transfers.layers:
            engine.at(engine.now_ns + self.layer_ns, self.hand_off)
        else:
            end = engine.now_ns + self.tail_ns
            waits = tuple(self.waits) if self.transfers else ()
            engine.end_pass(self.command, self.start_ns, end, tuple(self.marks), waits)
