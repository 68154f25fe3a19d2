"""The hand-off of captured passes, on streams of its own: every layer waits there until it is stored, and leaves.

    the pass   layer 0 stored · attention … layer 1 stored · attention … ── token 1
                      ┊                           ┊
    down        wait ─┴→ link → copy ┄┐    wait ─┴→ link → copy ┄┐     staged: a slot of the ring for each copy
    up                         wait ─┴→ link → copy       wait ─┴→ link → copy
    direct      wait → link → copy from cache to cache                 one stream, by a kernel

Copy engines read and write the caches themselves where a pass's blocks lie in a few runs: kernels beside the pass take
SMs from it. Blocks that lie scattered are gathered into a buffer on a stream before `down`, or scattered from one on a
stream after `up`, by a kernel.

The host puts a pass's hand-off on the streams once, right after the pass itself; neither token 1 nor the next pass
waits for a copy. All waits are stream memory operations on what the attention kernel and each step write when a layer
is stored, gathered, carried or scattered: a kernel that spins would slow the pass down. A layer has a fixed slot of the
ring, so a full ring holds copies of later layers and never the compute. Nothing waits for what is put on a stream after
it, so streams may share a queue of the hardware. Two passes take turns.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disagg.run.attention.split_decode import power_of_two
from disagg.run.gpu.device import Scratch, settle
from disagg.run.gpu.hand_off_links import HandOffLinks
from disagg.run.gpu.hand_off_turn import HandOffTurn, Travel
from disagg.run.gpu.memory import room_for
from disagg.run.gpu.stream_copy import StreamCopier, wide
from disagg.run.gpu.stream_memory import MOST_PITCH, RowCopy, tell, wait_for
from disagg.run.kv_cache import KVCache

DEPTH = 4  # gathered or arrived copies that are kept on a device
# Of a copy where the number of its layers is free: what a link carries while the host enqueues it.
LEAST_BYTES = 4 << 20
PROGRAMS, ROWS, WARPS = 16, 8, 8  # of a gather or scatter: few, since they take SMs from the pass
ADVICE = "Lower chunk_tokens, decode_blocks or prefill_blocks of the Config."
Step = Callable[[torch.cuda.Stream, "HandOffTurn", "Travel", int], None]
Piece = tuple[int, int, RowCopy]  # of a copy: where it begins at the blocks' or buffer's end, and at the slot's


class Memories:
    """Blocks at both ends, slots of the ring between them, and buffers beside the blocks."""

    def __init__(self, source: KVCache, target: KVCache, ring: list[Scratch], room: int) -> None:
        """Slots and buffers hold `room` tokens of one layer."""
        self.ends, self._shape = (source, target), source.shape
        self.words = [wide(cache.data).flatten(4).flatten(2, 3) for cache in self.ends]  # [layers, 2, slots, words]
        self.layer_bytes = [cache.bytes // source.shape.layers for cache in self.ends]
        numbers = room * source.shape.layer_token_bytes // source.shape.dtype.itemsize
        self._buffers: list[list[Tensor]] = []
        with room_for("the ring of captured hand-offs", torch.device("cpu"), ADVICE):
            self.ring = [slot.view((numbers,)) for slot in ring]
        for cache in self.ends if ring else ():
            there: dict[str, Any] = dict(dtype=source.shape.dtype, device=cache.device)
            with room_for("the buffers of captured hand-offs", cache.device, ADVICE):
                self._buffers.append([torch.empty(numbers, **there) for _ in range(min(DEPTH, source.shape.layers))])
        self._at = [cache.data.data_ptr() for cache in self.ends]
        self._buffers_at = [[buffer.data_ptr() for buffer in buffers] for buffers in self._buffers]
        self._slots_at = [slot.data_ptr() for slot in self.ring]

    def pieces(self, travel: "Travel", hop: int) -> "list[Piece]":
        """Of a copy over a link: each plane [layers, 2] of a slot has the tokens in the order of the pass."""
        width, plane = self._shape.layer_token_bytes // 2, self.layer_bytes[hop] // 2
        pitch, found = travel.tokens * width, travel.runs[hop]
        if found is None:
            return [(0, 0, RowCopy(pitch, pitch, pitch))]
        pitches = (pitch, plane) if hop == 0 else (plane, pitch)
        return [(place * width, row * width, RowCopy(*pitches, count * width)) for row, place, count in found]

    def addresses(self, travel: "Travel", hop: int, index: int) -> tuple[int, int]:
        """Of a copy over a link: its layers' blocks or its buffer, and its slot."""
        layer, slot = travel.copies[index][0], self._slots_at[index % len(self.ring)]
        if travel.runs[hop] is None:
            return self._buffers_at[hop][index % DEPTH], slot
        return self._at[hop] + layer * self.layer_bytes[hop], slot

    def scratch(self) -> list[tuple[int, int, int]]:
        """Of each link of a ring: addresses that it may copy from and to as long as nothing travels, and bytes."""
        if not self.ring:
            return []
        slot, nbytes = self._slots_at[0], self._buffers[0][0].nbytes
        return [(self._buffers_at[0][0], slot, nbytes), (slot, self._buffers_at[1][0], nbytes)]

    def buffer(self, end: int, travel: "Travel", index: int) -> Tensor:
        """[layers, 2, tokens, words] at the beginning of one of an end's buffers."""
        layout = (len(travel.copies[index]), 2, travel.tokens, self.words[end].shape[3])
        return self._buffers[end][index % DEPTH].view(self.words[end].dtype)[: math.prod(layout)].view(layout)


class Steps:
    """The steps of a copy, each on its stream."""

    def __init__(
        self, source: KVCache, target: KVCache, copiers: list[StreamCopier], ring: list[Scratch], group: int, most: int
    ) -> None:
        """Buffers hold `group` layers of a pass of `most` tokens; without a ring, copies go from cache to cache."""
        self._layers, self._most = source.shape.layers, most
        self._room = min(group, self._layers) * most
        self.memory = Memories(source, target, ring, self._room)
        self._links = HandOffLinks(copiers, self.memory.ends, len(ring))
        self._streams = [copier.streams[0] for copier in copiers]
        if ring:
            outer = copiers[0].new_stream(source.device), copiers[1].new_stream(target.device)
            self._streams = [outer[0], *self._streams, outer[1]]
        self._aside = torch.cuda.Stream(source.device, priority=-1)
        self._ended: list[torch.cuda.Event] = []  # by stream, of the last pass's steps
        self._pieces: list[list[Piece]] = []  # by hop, of this pass's copies

    def group_of(self, asked: int, layer_bytes: int, tokens: int, least_bytes: int) -> int:
        """Layers of a copy of so many bytes each, in a pass of so many tokens: those asked for, or more that have the
        least bytes, as far as a buffer holds them; 0 where it doesn't hold those asked for."""
        room = self._room // tokens if self.memory.ring else self._layers
        wanted = max(asked, -(-min(least_bytes, LEAST_BYTES) // layer_bytes))
        return min(wanted, room, self._layers) if min(asked, self._layers) <= room else 0

    @property
    def ended(self) -> torch.cuda.Event:
        """The end of all that the last `enqueue` put on the streams."""
        return self._ended[-1]

    def prepare(self, turn: HandOffTurn) -> None:
        """Compiles the kernels, for strides of both kinds: nothing travels, and no wait waits."""
        turn.flags.fill_(1)
        turn.stored.fill_(1)
        settle(turn.stored.device)
        self._links.measure(self.memory.scratch())
        try:
            for tokens in (1, min(16, self._most)):
                nothing = Travel(np.zeros(tokens, int), np.full(tokens, -1), 1, 1)
                nothing.scatter()
                self.enqueue(turn, nothing)
        finally:
            self.close()
            turn.flags.zero_()
            self.clear(turn)

    def enqueue(self, turn: HandOffTurn, travel: Travel) -> None:
        """After its pass has been launched: puts the hand-off on the streams. Each step leaves the buffers that it
        fills to the step that still reads them for the pass before."""
        before = [torch.cuda.current_stream(device) for device in {cache.device: cache for cache in self.memory.ends}]
        for stream, ended in zip(self._streams, self._ended[1:], strict=False):
            stream.wait_event(ended)
        if max(self.memory.layer_bytes) > 2 * MOST_PITCH:
            travel.scatter()
        self._pieces = [self.memory.pieces(travel, hop) for hop in range(2)] if self.memory.ring else []
        steps = self._steps_of(travel)
        try:
            if turn.sums is not None or not self.memory.ring or None in travel.runs:
                turn.fill(travel)
                for device, stream in {stream.device: stream for stream, _ in reversed(steps)}.items():
                    torch.cuda.set_stream(stream)
                    turn.upload(device)
            for index in range(len(travel.copies)):
                for stream, step in steps:
                    torch.cuda.set_stream(stream)
                    step(stream, turn, travel, index)
            for end, (stream, _) in enumerate((steps[0], steps[-1])):
                torch.cuda.set_stream(stream)
                self._sum(turn, travel, end, 1 + end, range(travel.copies[-1][-1] + 1))
        finally:
            self._links.leave(travel)
            for stream in reversed(before):  # the source's device is current again
                torch.cuda.set_stream(stream)
            self._ended = [torch.cuda.Event() for _ in self._streams]
            for stream, ended in zip(self._streams, self._ended, strict=True):
                if stream is self._streams[-1]:
                    for other in self._ended[:-1]:
                        stream.wait_event(other)
                ended.record(stream)

    def _steps_of(self, travel: Travel) -> list[tuple[torch.cuda.Stream, Step]]:
        if not self.memory.ring:
            return [(self._streams[0], self._across)]
        steps = zip(self._streams, (self._leave, self._down, self._up, self._arrive), strict=True)
        needed = travel.runs[0] is None, True, True, travel.runs[1] is None
        return [step for step, wanted in zip(steps, needed, strict=True) if wanted]

    def clear(self, turn: HandOffTurn) -> None:
        """Before the turn is free again: no layer is stored. The steps' streams may be full of the next pass."""
        with torch.cuda.stream(self._aside):
            turn.stored.zero_()
        self._aside.synchronize()

    def close(self) -> None:
        """Returns when the last copy has ended."""
        for stream in self._streams:
            stream.synchronize()

    # ---- the steps of copy `index`, on their stream, which is current -----------------------------------------------

    def _leave(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, index: int) -> None:
        self._written(stream, turn, travel, index)
        if index >= DEPTH:
            wait_for(turn.carried[0][index - DEPTH], stream)
        self._tokens(turn, travel, self.memory.words[0], self.memory.buffer(0, travel, index), index)
        tell(turn.gathered[index], stream)

    def _down(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, index: int) -> None:
        if travel.runs[0] is None:
            wait_for(turn.gathered[index], stream)
        else:
            self._written(stream, turn, travel, index)
        if index >= len(self.memory.ring):
            wait_for(turn.carried[1][index - len(self.memory.ring)], stream)
        self._carry(stream, turn, travel, 0, index)

    def _up(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, index: int) -> None:
        wait_for(turn.carried[0][index], stream)
        if travel.runs[1] is None and index >= DEPTH:
            wait_for(turn.scattered[index - DEPTH], stream)
        self._carry(stream, turn, travel, 1, index)

    def _arrive(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, index: int) -> None:
        wait_for(turn.carried[1][index], stream)
        self._tokens(turn, travel, self.memory.buffer(1, travel, index), self.memory.words[1], index)
        tell(turn.scattered[index], stream)

    def _across(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, index: int) -> None:
        """From cache to cache, without a stop."""
        self._written(stream, turn, travel, index)
        source, target = self.memory.words
        self._links.take(stream, turn, travel, 0, index, lambda _: self._tokens(turn, travel, source, target, index))

    def _written(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, index: int) -> None:
        """Waits for the layers."""
        wait_for(turn.written[travel.copies[index][-1]], stream)
        self._sum(turn, travel, 0, 0, travel.copies[index])

    # ---- of which they consist ---------------------------------------------------------------------------------------

    def _carry(self, stream: torch.cuda.Stream, turn: HandOffTurn, travel: Travel, hop: int, index: int) -> None:
        """Over a link, between a slot of the ring and blocks or a buffer."""
        (here, slot), planes = self.memory.addresses(travel, hop, index), 2 * len(travel.copies[index])

        def move(stream: torch.cuda.Stream) -> None:
            for place, row, copy in self._pieces[hop]:
                ends = (slot + row, here + place) if hop == 0 else (here + place, slot + row)
                copy.launch(*ends, planes, stream)

        nbytes = planes * sum(copy.width for _, _, copy in self._pieces[hop])
        self._links.take(stream, turn, travel, hop, index, move, nbytes)

    def _tokens(self, turn: HandOffTurn, travel: Travel, source: Tensor, target: Tensor, index: int) -> None:
        """A copy's K/V of the tokens that travel; a buffer has them in the order of the pass."""
        from disagg.run.gpu import device_kernels  # needs triton

        ends, width, layers = (source, target), source.shape[3], travel.copies[index]
        caches = [any(end is words for words in self.memory.words) for end in ends]
        firsts = [layers[0] * cache for cache in caches]
        given = *ends, *turn.places(source.device), travel.tokens, *firsts, *source.stride()[:2], *target.stride()[:2]
        sizes = dict(WIDTH=width, WIDTH_PAD=power_of_two(width), ROWS=ROWS, FROM_SLOTS=caches[0], TO_SLOTS=caches[1])
        device_kernels.copy_tokens[(PROGRAMS, 2, len(layers))](*given, **sizes, num_warps=WARPS)

    def _sum(self, turn: HandOffTurn, travel: Travel, end: int, row: int, layers: range) -> None:
        """Where K/V are verified, checksums of the tokens that travel, at the source (0) or the target (1)."""
        if turn.sums is None:
            return
        from disagg.run.gpu import device_kernels  # needs triton

        halves = self.memory.ends[end].data[layers[0] :].flatten(4).view(torch.int16)
        places = turn.places(self.memory.ends[end if self.memory.ring else 0].device)  # of the GPU whose kernel reads
        sizes = dict(WIDTH=halves.shape[-1], WIDTH_PAD=power_of_two(halves.shape[-1]))
        sums, strides = turn.sums[row, layers[0] :], (*halves.stride()[:2], turn.sums.stride(1))
        device_kernels.sum_tokens[(travel.tokens, len(layers))](halves, places[end], places[1], sums, *strides, **sizes)
