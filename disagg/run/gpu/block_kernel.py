"""The kernel that copies blocks of K/V from one GPU's cache to another's. Imported only where it runs: it needs triton.

It reads the blocks where they lie and writes them where they belong, over NVLink or PCIe where that is another GPU's
memory: no staging buffer at either end, one launch a copy.
"""

import triton
import triton.language as tl

TILE = 1024  # words of eight bytes that a program copies: 16 bytes a load, several in flight


@triton.jit
def copy(
    source, target, blocks, onto, source_layer, source_plane, target_layer, target_plane,
    WORDS: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """source and target: caches in words, from the first layer on; grid (tiles of a block, blocks, 2 · layers).

    Block `blocks[i]` of each layer's keys and values goes to block `onto[i]`. A block has WORDS words in a row; the
    others are strides in words.
    """
    block, plane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    layer, which = plane // 2, plane % 2
    words = tl.program_id(0) * TILE + tl.arange(0, TILE)
    here = source + layer * source_layer + which * source_plane + tl.load(blocks + block) * WORDS
    there = target + layer * target_layer + which * target_plane + tl.load(onto + block) * WORDS
    tl.store(there + words, tl.load(here + words, words < WORDS), words < WORDS)
