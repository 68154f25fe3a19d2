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


@triton.jit(do_not_specialize=["posted", "ready", "freed", "times", "occupancy_ns"])
def occupy(state, posted, ready, freed, times, occupancy_ns):
    """After a copy: busy_until = max(posted, ready, freed, busy_until) + occupancy, and the stream is held until then.

    `times` [2] are the moments at which the link was taken and left. A kernel before the copy would see them later: it
    waits for room on an SM, and the link would stand still meanwhile.
    """
    start = tl.maximum(tl.maximum(tl.load(ready), tl.load(freed)), tl.maximum(tl.load(state), posted))
    tl.store(times, start)
    while (tl.extra.cuda.globaltimer() < start + occupancy_ns) & (tl.load(state + 1, volatile=True) == 0):
        pass
    end = tl.extra.cuda.globaltimer()
    tl.store(state, end)
    tl.store(times + 1, end)


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


@triton.jit
def write_time(stamp) -> None:
    tl.store(stamp, tl.extra.cuda.globaltimer())


@triton.jit
def write_out(source, target, COUNT: tl.constexpr, PAD: tl.constexpr) -> None:
    """COUNT numbers of the device to pinned memory; one program."""
    at = tl.arange(0, PAD)
    tl.store(target + at, tl.load(source + at, at < COUNT), at < COUNT)


@triton.jit(do_not_specialize=["tokens", "source_first", "target_first"])
def copy_tokens(
    source,
    target,
    slots,
    onto,
    tokens,
    source_first,
    target_first,
    source_layer,
    source_plane,
    target_layer,
    target_plane,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    FROM_SLOTS: tl.constexpr,
    TO_SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Copies K/V of the tokens of a pass that travel, of layers from `source_first` and onto layers from `target_first`
    on; grid (programs, 2, layers). Rows of WIDTH words: token i is read at slots[i], or at i, and written to onto[i],
    or to i; where onto[i] < 0 it stays. Layers and planes are strides in words."""
    plane, layer, cols = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64), tl.arange(0, WIDTH_PAD)
    source += (source_first + layer) * source_layer + plane * source_plane
    target += (target_first + layer) * target_layer + plane * target_plane
    for first in tl.range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        there = tl.load(onto + rows, rows < tokens, other=-1)
        goes = (there >= 0)[:, None] & (cols < WIDTH)[None, :]
        here = tl.load(slots + rows, rows < tokens, other=0) if FROM_SLOTS else rows.to(tl.int64)
        place = there if TO_SLOTS else rows.to(tl.int64)
        words = tl.load(source + here[:, None] * WIDTH + cols[None, :], goes)
        tl.store(target + place[:, None] * WIDTH + cols[None, :], words, goes)


@triton.jit
def sum_tokens(
    data,
    slots,
    onto,
    sums,
    layer_stride,
    plane_stride,
    sums_stride,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
) -> None:
    """A checksum of each token's K/V that travel in each layer, modulo 2^64 and weighted by place; grid (tokens,
    layers). data: half-words [layers, 2, slots, WIDTH] with strides; sums [layers, tokens] with a stride."""
    token, layer, cols = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, WIDTH_PAD)
    held = (cols < WIDTH) & (tl.load(onto + token) >= 0)
    weights = 2 * cols.to(tl.int64) + 1
    place = layer * layer_stride + tl.load(slots + token) * WIDTH + cols
    total = tl.sum(tl.load(data + place, held, other=0).to(tl.int64) * weights, 0)
    total += tl.sum(tl.load(data + plane_stride + place, held, other=0).to(tl.int64) * (weights + 2 * WIDTH), 0)
    tl.store(sums + layer * sums_stride + token, total)
