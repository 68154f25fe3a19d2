"""A transfer of a request's K/V between two memories: what is due, what has landed, and when it must be done.

Notebook: notebooks/02_disaggregation.ipynb.
"""

from dataclasses import dataclass

from disagg.plan.blocks import Part, Table
from disagg.plan.request import Record

PAGING = ("spill", "fetch")  # routes between a decode device and the host


class LayerBlocks:
    """A set of (layer, block) pairs, kept as one bit set for each layer."""

    def __init__(self, layers: int) -> None:
        self.bits = [0] * layers

    def add(self, part: Part) -> bool:
        """Adds a part; False, without a change, where the set holds some of it already."""
        mask = (1 << part.block_end) - (1 << part.block)
        layers = range(part.layer, part.layer_end)
        if any(self.bits[layer] & mask for layer in layers):
            return False
        for layer in layers:
            self.bits[layer] |= mask
        return True

    def covers(self, blocks: int) -> bool:
        """Does the set hold every layer of the first `blocks` blocks, and nothing else?"""
        return all(bits == (1 << blocks) - 1 for bits in self.bits)


@dataclass(eq=False)
class Transfer:
    """One hand-off ("bulk", "direct", "staged"), spill or fetch; its id is used once and it ends once."""

    id: int
    route: str
    record: Record
    source: Table
    blocks: int  # blocks due, from the start of the table
    landed: LayerBlocks
    target: Table | None = None
    sent: int = 0  # blocks that Send has covered
    source_read: bool = False
    aborted: bool = False

    @property
    def complete(self) -> bool:
        return self.landed.covers(self.blocks)

    def touch(self, table: Table) -> None:
        """Pins a table that its copies read or write."""
        table.pin(self.id)
