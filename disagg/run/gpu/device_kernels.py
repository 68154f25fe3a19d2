"""The Triton kernels of the lanes of GPUs; import them where they are launched, for a CPU install lacks triton.

The dial's `state` [2] int64 on the device: until when the link is busy, by the device's nanosecond timer; and whether
to stop. `enqueued` [1] int64 in pinned host memory: the number of the last copy that is on the stream as a whole.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations, so pointers and strides have none.

import triton
import triton.language as tl

TILE = 1024  # words of eight bytes that a program copies: 16 bytes a load, several in flight


@triton.jit(do_not_specialize=["number", "occupancy_ns"])
def post(state, enqueued, number, occupancy_ns, MOST_NS: tl.constexpr) -> None:
    """busy_until = max(now, busy_until) + occupancy, once the host has enqueued all of copy `number`.

    It waits for MOST_NS at most, since the host may be waiting for the whole device.
    """
    began = tl.extra.cuda.globaltimer()
    while (tl.load(enqueued, volatile=True) < number) & (tl.extra.cuda.globaltimer() - began < MOST_NS):
        pass
    start = tl.maximum(tl.extra.cuda.globaltimer(), tl.load(state))
    tl.store(state, start + occupancy_ns)


@triton.jit
def hold(state) -> None:
    """Holds the stream until busy_until, or until the stop flag is set."""
    until = tl.load(state)
    while (tl.extra.cuda.globaltimer() < until) & (tl.load(state + 1, volatile=True) == 0):
        pass


@triton.jit
def copy_blocks(
    source,
    target,
    blocks,
    onto,
    source_layer,
    source_plane,
    target_layer,
    target_plane,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Copies blocks of K/V from one GPU's cache straight into another's; grid (tiles of a block, blocks, 2 · layers).

    source and target: caches in words, from the first layer on. Block `blocks[i]` of each layer's keys and values, of
    WORDS words, goes to block `onto[i]`; layers and planes are strides in words.
    """
    block, plane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    layer, which = plane // 2, plane % 2
    words = tl.program_id(0) * TILE + tl.arange(0, TILE)
    here = source + layer * source_layer + which * source_plane + tl.load(blocks + block) * WORDS
    there = target + layer * target_layer + which * target_plane + tl.load(onto + block) * WORDS
    tl.store(there + words, tl.load(here + words, words < WORDS), words < WORDS)
