"""Triton kernels of GPU lanes; import them where they are launched, since a CPU install lacks triton.

`state` [2] int64 on the device: the end of the link's busy time by the device's nanosecond timer, and the stop flag.
`enqueued` [1] int64 in pinned host memory: the number of the last copy that is completely on the stream.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations, so pointers and strides have none.

import triton
import triton.language as tl

TILE = 1024  # 8-byte words that a program copies, with several loads of 16 bytes in flight


@triton.jit(do_not_specialize=["number", "occupancy_ns"])
def post(state, enqueued, number, occupancy_ns, MOST_NS: tl.constexpr) -> None:
    """busy_until = max(now, busy_until) + occupancy, after the host has enqueued all of copy `number`.

    The kernel waits for MOST_NS at most, since the host may be waiting for the whole device.
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
    """Copies blocks of K/V directly between two GPUs' caches; grid (tiles of a block, blocks, 2 · layers).

    source and target: caches in words, from the first layer on. In each layer's keys and values block `blocks[i]` of
    WORDS words goes to block `onto[i]`; layers and planes are strides in words.
    """
    block, plane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    layer, which = plane // 2, plane % 2
    words = tl.program_id(0) * TILE + tl.arange(0, TILE)
    here = source + layer * source_layer + which * source_plane + tl.load(blocks + block) * WORDS
    there = target + layer * target_layer + which * target_plane + tl.load(onto + block) * WORDS
    tl.store(there + words, tl.load(here + words, words < WORDS), words < WORDS)
