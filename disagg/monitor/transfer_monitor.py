"""Landing: decode starts when the set landed equals the set due. Ledger: a transfer's id is used once and ends once."""

from dataclasses import dataclass, field

from disagg.monitor.block_monitor import BlockMonitor, place
from disagg.monitor.violation import Report
from disagg.plan import commands as cmd
from disagg.plan import events as ev

NAMED = 4


@dataclass(eq=False)
class Carried:
    id: int
    route: str
    request: int
    source: str
    due: int  # table positions
    landed: list[int]  # by layer, one bit a table position
    blocks: list[int] = field(default_factory=list)  # blocks of the source that were sent
    target: str | None = None
    target_blocks: tuple[int, ...] = ()
    source_read: bool = False
    aborted: bool = False
    repeats: int = 0  # repeated notices

    @property
    def complete(self) -> bool:
        return all(bits == (1 << self.due) - 1 for bits in self.landed)

    def missing(self) -> list[str]:
        """The first few pairs (layer, block) that are due and have not landed, in words."""
        due = [(layer, block) for layer in range(len(self.landed)) for block in range(self.due)]
        pairs = [f"(layer {layer}, block {block})" for layer, block in due if not self.landed[layer] >> block & 1]
        more = len(pairs) - NAMED
        return pairs[:NAMED] + [f"{more} more"] * (more > 0)


class TransferMonitor:
    """Follows every transfer's commands and notices. `report` raises; a repeated notice returns False."""

    def __init__(self, layers: int, blocks: BlockMonitor, report: Report) -> None:
        self._layers, self._blocks, self._report = layers, blocks, report
        self.open: dict[int, Carried] = {}
        self._last_id = 0  # ids only grow: one up to this was used

    def send(self, command: cmd.Send) -> Carried:
        """Blocks are sent: in order, at most those that are due, under a new id."""
        carried, number = self.open.get(command.transfer), command.transfer
        if carried is None:
            if number <= self._last_id:
                self._report("Ledger", f"transfer {number} has ended, and its id is used again", command.request)
            self._last_id = number
            bits = [0] * self._layers
            carried = Carried(number, command.route, command.request, place(command.source), command.due_blocks, bits)
            self.open[number] = carried
        if (carried.request, carried.due) != (command.request, command.due_blocks) or carried.aborted:
            text = f"transfer {number} of request {carried.request} is sent as another"
            self._report("Ledger", text, command.request)
        sent = len(carried.blocks)
        if command.first_block != sent or sent + len(command.blocks) > carried.due:
            text = f"transfer {number} sends blocks from {command.first_block}, after {sent} of {carried.due}"
            self._report("Landing", text, command.request, command.blocks)
        self._blocks.own(f"transfer {number}", command.request, carried.source, command.blocks)
        self._blocks.touch(carried.source, command.blocks)
        carried.blocks.extend(command.blocks)
        return carried

    def assign(self, command: cmd.Assign) -> Carried:
        """A transfer gets its target's blocks, once."""
        carried = self._carried(command.transfer, "gets a target")
        if carried.target is not None or carried.aborted:
            self._report("Ledger", f"transfer {carried.id} gets a second target, or one after its end", carried.request)
        if len(command.blocks) != carried.due:
            text = f"transfer {carried.id} gets {len(command.blocks)} blocks for the {carried.due} that are due"
            self._report("Landing", text, carried.request, command.blocks)
        carried.target, carried.target_blocks = place(command.target), command.blocks
        self._blocks.own(f"transfer {carried.id}", carried.request, carried.target, command.blocks)
        self._blocks.touch(carried.target, command.blocks)
        return carried

    def abort(self, command: cmd.Abort) -> Carried:
        carried = self._carried(command.transfer, "is aborted")
        if carried.aborted:
            self._report("Ledger", f"transfer {carried.id} is aborted twice", carried.request)
        carried.aborted = True
        return carried

    def _carried(self, number: int, what: str) -> Carried:
        if number not in self.open:
            self._report("Ledger", f"transfer {number} {what} after its end, or before its start")
        return self.open[number]

    def landed(self, event: ev.Landed) -> bool:
        """Adds parts to the set landed; False if none is new."""
        carried = self.open.get(event.transfer)
        if carried is None:
            return False
        repeats_before = carried.repeats
        for part in event.parts:
            mask = (1 << part.block_end) - (1 << part.block)
            layers = range(part.layer, part.layer_end)
            if any(carried.landed[layer] & mask for layer in layers):
                carried.repeats += 1
                continue
            for layer in layers:
                carried.landed[layer] |= mask
        return carried.repeats - repeats_before < len(event.parts)

    def source_read(self, number: int) -> bool:
        """The source has been read: all blocks that are due must have been sent."""
        carried = self.open.get(number)
        if carried is None or carried.source_read:
            return False
        if len(carried.blocks) < carried.due:
            self.check_sent(carried)
        carried.source_read = True
        self._blocks.leave(carried.source, carried.blocks)
        return True

    def check_sent(self, carried: Carried) -> None:
        if len(carried.blocks) != carried.due:
            text = f"transfer {carried.id} has sent {len(carried.blocks)} of {carried.due} blocks, and calls that all"
            self._report("Landing", text, carried.request, tuple(carried.blocks))

    def check_complete(self, carried: Carried, what: str) -> None:
        """Decode is about to read: the set landed must equal the set due."""
        if not carried.complete:
            missing = ", ".join(carried.missing())
            if carried.repeats:
                text = f"{what} after {carried.repeats} repeated notices, without {missing}: a second one was counted"
                self._report("Ledger", text, carried.request, carried.target_blocks)
            self._report("Landing", f"{what} without {missing}", carried.request, carried.target_blocks)

    def close(self, carried: Carried) -> None:
        del self.open[carried.id]
        if not carried.source_read:
            self._blocks.leave(carried.source, carried.blocks)
        if carried.target is not None:
            self._blocks.leave(carried.target, carried.target_blocks)
