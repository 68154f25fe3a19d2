"""A transfer of a request's K/V between two memories: what is due, what has landed, and when it must be done.

Notebook: notebooks/02_disaggregation.ipynb.
"""

from dataclasses import dataclass, field

from disagg.plan.blocks import Table
from disagg.plan.events import Part
from disagg.plan.request import Record


class LayerBlocks:
    """A set of (layer, block) pairs, kept as one bit set a layer."""

    def __init__(self, layers: int) -> None:
        self.bits = [0] * layers

    def add(self, part: Part) -> bool:
        """Adds a part; False where any of it was there already, and then nothing changes."""
        mask = (1 << part.block_end) - (1 << part.block)
        layers = range(part.layer, part.layer_end)
        if any(self.bits[layer] & mask for layer in layers):
            return False
        for layer in layers:
            self.bits[layer] |= mask
        return True

    def covers(self, blocks: int) -> bool:
        """Is every layer of the first `blocks` blocks in the set, and nothing else?"""
        return all(bits == (1 << blocks) - 1 for bits in self.bits)


@dataclass(eq=False)
class Transfer:
    """One hand-off ("bulk", "direct", "staged"), spill or fetch; its id is used once and it ends once."""

    id: int
    route: str
    record: Record
    source: Table
    blocks: int  # table positions due
    landed: LayerBlocks
    target: Table | None = None
    sent: int = 0  # table positions that Send has covered
    source_read: bool = False
    posted_ns: int | None = None  # when all that its copies need was there; the deadline starts here and never moves
    aborted: bool = False
    touched: list[Table] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.landed.covers(self.blocks)

    def touch(self, table: Table) -> None:
        """Pins a table that this transfer's copies read or write."""
        table.pin(self.id)
        self.touched.append(table)

    def close(self) -> None:
        """No copy runs any more: whatever it touched may be given away."""
        for table in self.touched:
            table.unpin(self.id)
