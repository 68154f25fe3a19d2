"""Fake memory: each layer of a block holds (request, table position, tokens filled) in place of K/V.

Prefill chunks write it, copies move it, each decode step reads all of it, and freed blocks are wiped. A block freed
early, a copy begun late or a part never sent shows as wrong content. A flipped byte belongs to no request.
"""

from collections.abc import Iterable, Sequence

from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Chunk

Content = tuple[int | None, int | None, int | None]  # request, table position, tokens filled
FLIPPED: Content = (None, None, None)
Key = tuple[str, int | None] | tuple[str, int | None, int]  # a block, or a block of a ring slot


class WrongContent(AssertionError):
    """A read found other content than it must find."""


class Memory:
    """All memories of a machine and the ring: (place, block) or ("ring", slot, index) → {layer: content}."""

    def __init__(self, layers: int, block_size: int) -> None:
        self.layers, self.block_size = layers, block_size
        self._held: dict[Key, dict[int, Content]] = {}

    def wipe(self, place: str, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._held.pop((place, block), None)

    def write_layer(self, place: str, chunks: Sequence[Chunk], layer: int) -> None:
        """A pass has computed a layer of its chunks; the K/V before each chunk must be there."""
        size = self.block_size
        for chunk in chunks:
            first = chunk.start // size
            for position, block in enumerate(chunk.blocks):
                if position < first:
                    self._expect(place, block, (layer,), (chunk.request, position, size))
                else:
                    filled = min(size, chunk.stop - position * size)
                    self._held.setdefault((place, block), {})[layer] = (chunk.request, position, filled)

    def read_row(self, place: str, request: int, context: int, blocks: Sequence[int]) -> None:
        """The attention of one row reads its whole context."""
        size = self.block_size
        for position in range(blocks_for(context, size)):
            wanted = request, position, min(size, context - position * size)
            self._expect(place, blocks[position], range(self.layers), wanted)

    def write_row(self, place: str, request: int, context: int, blocks: Sequence[int]) -> None:
        """A step adds one token to a row."""
        position = context // self.block_size
        content = request, position, context % self.block_size + 1
        self._held[place, blocks[position]] = dict.fromkeys(range(self.layers), content)

    def read(self, key: Key, layer: int) -> Content | None:
        return self._held.get(key, {}).get(layer)

    def write(self, key: Key, layer: int, content: Content) -> None:
        self._held.setdefault(key, {})[layer] = content

    def contents(self) -> list[tuple[Key, dict[int, Content]]]:
        return list(self._held.items())

    def _expect(self, place: str, block: int, layers: Iterable[int], wanted: Content) -> None:
        held = self._held.get((place, block), {})
        for layer in layers:
            if held.get(layer) != wanted:
                raise WrongContent(f"{place} block {block} layer {layer} holds {held.get(layer)}, read as {wanted}")
