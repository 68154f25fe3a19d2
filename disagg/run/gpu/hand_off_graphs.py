"""The hand-off of captured passes: small graphs on streams of their own, in which every layer waits and leaves.

    the pass   layer 0 stored · attention … layer 1 stored · attention … ── token 1
                      ┊                           ┊
    leave       wait ─┴→ gather ┄┐         wait ─┴→ gather ┄┐          staged: four streams, a layer a step
    down        slot free? wait ─┴→ link → copy ┄┐
    up                                     wait ─┴→ link → copy ┄┐
    arrive                                                 wait ─┴→ scatter
    direct      wait → link → copy from cache to cache                 one stream

The host launches the pass, and a few graphs while it computes; neither token 1 nor the next pass waits for a copy. All
waits are stream memory operations on what the attention kernel and each step write when they have stored, gathered,
carried or scattered a layer: a kernel that spins would slow the pass down. A layer has a fixed slot of the ring, so a
full ring holds copies of later layers and never the compute. A graph waits for nothing that is launched after it, so
streams may share a queue of the hardware. Two sets of graphs take turns.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from disagg.run.attention.split_decode import power_of_two
from disagg.run.gpu.device import Scratch, settle
from disagg.run.gpu.memory import room_for
from disagg.run.gpu.stream_copy import StreamCopier, wide
from disagg.run.gpu.stream_memory import tell, wait_for
from disagg.run.kv_cache import KVCache

DEPTH = 4  # copies in a graph, and gathered or arrived copies that are kept on a device
PROGRAMS, ROWS, WARPS = 16, 8, 8  # of a gather or scatter: few, since they take SMs from the pass
Programs = list[tuple[torch.cuda.Stream, Callable[[int], None]]]  # steps of a copy by its number, each on its stream
ADVICE = "Lower chunk_tokens, decode_blocks or prefill_blocks of the Config."


class Places:
    """On one device: where the tokens of a pass lie and where they go, and what a copy occupies each link for."""

    def __init__(self, most: int, hops: int, device: torch.device) -> None:
        parts = [most, most, hops]
        self.there = torch.full((sum(parts),), -1, dtype=torch.long, device=device)
        self.slots, self.onto, self.occupancy = self.there.split(parts)  # -1: stays; ns


class Turn:
    """What the graphs of one turn read and write."""

    def __init__(self, most: int, layers: int, hops: int, copies: int, verify: bool, sides: list[torch.device]) -> None:
        self.places = {device: Places(most, hops, device) for device in sides}
        self.here = torch.zeros(2 * most + hops, dtype=torch.long, pin_memory=True)
        self.fields = np.split(self.here.numpy(), [most, 2 * most])
        # 0 at first: times of a copy's start and end on each link, by the devices' timers; 1 when gathered, scattered.
        self.times = torch.zeros(2 * hops + 2, copies, dtype=torch.long, pin_memory=True)
        self.starts, self.ends = self.times[:hops], self.times[hops : 2 * hops]
        self.gathered, self.scattered = self.times[2 * hops :]
        # When K/V were in the cache: on the device as the pass goes, in pinned memory after it. `capture` gives both.
        self.stored = self.seen = torch.zeros(layers, dtype=torch.long)
        self.sums = torch.zeros(2, layers, most, dtype=torch.long, pin_memory=True) if verify else None  # both ends
        self.busy = False
        self.answered = threading.Event()  # the pass has picked its tokens, which go first
        self.graphs: dict[int, list[tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]]] = {}  # by size, to be launched so


class Steps:
    """The steps of a copy, each on its stream, and their graphs."""

    def __init__(
        self, source: KVCache, target: KVCache, copiers: list[StreamCopier], ring: list[Scratch], group: int, most: int
    ) -> None:
        """`group` layers a copy, of passes of up to `most` tokens; without a ring they go from cache to cache."""
        self._source, self._target, self._group, shape = source, target, group, source.shape
        self._layers, self.copies = shape.layers, -(-shape.layers // group)
        self._buffer = (min(group, shape.layers), 2, most, shape.kv_heads, shape.head_dim)
        self._ring = [slot.view(self._buffer) for slot in ring]
        self._dials = [copier.prepare_dial().state for copier in copiers]
        ends, links = (source, target), [copier.streams[0] for copier in copiers]
        self._staging = []
        if self._ring:
            for cache in ends:
                with room_for("the buffers of captured hand-offs", cache.device, ADVICE):
                    layers = [torch.empty(self._buffer, dtype=shape.dtype, device=cache.device) for _ in range(DEPTH)]
                self._staging.append(layers)
            links = [copiers[0].new_stream(ends[0].device), *links, copiers[1].new_stream(ends[1].device)]
        self._streams, self.last = links, links[-1]
        self.entries = [links[0]] if ends[0].device == ends[1].device or not self._ring else [links[0], links[2]]
        self._aside = torch.cuda.Stream(source.device, priority=-1)
        self._ended: list[torch.cuda.Event] = []  # by stream, of the last pass's graphs
        self._depth = min(DEPTH, len(self._ring)) if self._ring else DEPTH

    def begin(self) -> None:
        """Before a pass's graphs: each step leaves the buffers that it fills to the step that still reads them for the
        pass before."""
        for stream, ended in zip(self._streams, self._ended[1:], strict=False):
            stream.wait_event(ended)

    def end(self) -> torch.cuda.Event:
        """After a pass's graphs: the event of their end."""
        self._ended = [torch.cuda.Event() for _ in self._streams]
        for stream, ended in zip(self._streams, self._ended, strict=True):
            ended.record(stream)
        return self._ended[-1]

    def clear(self, turn: Turn) -> None:
        """Before the turn is free again: no layer is stored. The steps' streams may be full of the next pass."""
        with torch.cuda.stream(self._aside):
            turn.stored.zero_()
        self._aside.synchronize()

    def capture(self, turn: Turn, size: int) -> list[tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]]:
        """Graphs in the order of their launch."""
        steps = (self._leave, self._down, self._up, self._arrive) if self._ring else (self._across,)
        programs: Programs = [
            (stream, partial(step, turn, size)) for stream, step in zip(self._streams, steps, strict=True)
        ]
        self._warm(programs, turn)
        found = []
        for first in range(0, self.copies, self._depth):
            indexes = range(first, min(first + self._depth, self.copies))
            for stream, step in programs:
                with torch.cuda.stream(stream):
                    found.append((stream, self.graph(step, indexes)))
        return found

    def graph(self, step: Callable[[int], None], indexes: range) -> torch.cuda.CUDAGraph:
        """A step of these copies, on the current stream."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for index in indexes:
                step(index)
        finally:
            graph.capture_end()
        return graph

    def _warm(self, programs: Programs, turn: Turn) -> None:
        """Compiles the kernels: nothing travels, and no wait waits."""
        turn.times.fill_(1)
        turn.stored.fill_(1)
        settle(turn.stored.device)
        for stream, step in programs:
            with torch.cuda.stream(stream):
                step(0)
            stream.synchronize()
        self.clear(turn)

    # ---- the steps of copy `index`, on the current stream ------------------------------------------------------------

    def _leave(self, turn: Turn, size: int, index: int) -> None:
        self._written(turn, size, index)
        if index >= DEPTH:
            wait_for(turn.ends[0, index - DEPTH])
        for place, layer in enumerate(self._of(index)):
            self._tokens(turn, size, self._source, self._staged(0, size, index)[place], layer)
        tell(turn.gathered[index])

    def _down(self, turn: Turn, size: int, index: int) -> None:
        wait_for(turn.gathered[index])
        if index >= len(self._ring):
            wait_for(turn.ends[1, index - len(self._ring)])
        with self._link(turn, 0, index):
            self._slot(size, index).copy_(self._staged(0, size, index), non_blocking=True)

    def _up(self, turn: Turn, size: int, index: int) -> None:
        wait_for(turn.ends[0, index])
        if index >= DEPTH:
            wait_for(turn.scattered[index - DEPTH])
        with self._link(turn, 1, index):
            self._staged(1, size, index).copy_(self._slot(size, index), non_blocking=True)

    def _arrive(self, turn: Turn, size: int, index: int) -> None:
        wait_for(turn.ends[1, index])
        for place, layer in enumerate(self._of(index)):
            self._tokens(turn, size, self._staged(1, size, index)[place], self._target, layer)
        self._arrived(turn, size, index)
        tell(turn.scattered[index])

    def _across(self, turn: Turn, size: int, index: int) -> None:
        """From cache to cache, without a stop."""
        self._written(turn, size, index)
        with self._link(turn, 0, index):
            for layer in self._of(index):
                self._tokens(turn, size, self._source, self._target, layer)
        self._arrived(turn, size, index)

    # ---- of which they consist ---------------------------------------------------------------------------------------

    def _of(self, index: int) -> range:
        """The layers of a copy."""
        return range(index * self._group, min((index + 1) * self._group, self._layers))

    def _staged(self, end: int, size: int, index: int) -> Tensor:
        return self._view(self._staging[end][index % DEPTH], size, index)

    def _slot(self, size: int, index: int) -> Tensor:
        return self._view(self._ring[index % len(self._ring)], size, index)

    def _view(self, buffer: Tensor, size: int, index: int) -> Tensor:
        """[layers, 2, size, kv_heads, head_dim] at the buffer's beginning."""
        layout = (len(self._of(index)), 2, size, *self._buffer[3:])
        return buffer.flatten()[: math.prod(layout)].view(layout)

    @contextmanager
    def _link(self, turn: Turn, hop: int, index: int) -> Iterator[None]:
        from disagg.run.gpu import device_kernels  # needs triton

        state = self._dials[hop]
        occupancy = turn.places[state.device].occupancy[hop:]
        device_kernels.take_link[(1,)](state, occupancy, turn.starts[hop, index:], num_warps=1)
        yield
        device_kernels.leave_link[(1,)](state, turn.ends[hop, index:], num_warps=1)

    def _tokens(
        self, turn: Turn, size: int, source: "KVCache | Tensor", target: "KVCache | Tensor", layer: int
    ) -> None:
        """A layer's K/V of the tokens that travel; a tensor [2, tokens, ...] has them in the order of the pass."""
        from disagg.run.gpu import device_kernels  # needs triton

        ends = [
            wide(end.data[layer]).flatten(1, 2) if isinstance(end, KVCache) else wide(end) for end in (source, target)
        ]
        ends = [end.flatten(2) for end in ends]
        places, width = turn.places[source.device], ends[0].shape[2]
        sizes = dict(WIDTH=width, WIDTH_PAD=power_of_two(width), ROWS=ROWS)
        ways = dict(FROM_SLOTS=isinstance(source, KVCache), TO_SLOTS=isinstance(target, KVCache))
        given = *ends, places.slots, places.onto, size, ends[0].stride(0), ends[1].stride(0)
        device_kernels.copy_tokens[(PROGRAMS, 2)](*given, **sizes, **ways, num_warps=WARPS)

    def _written(self, turn: Turn, size: int, index: int) -> None:
        """Waits for the layers, whose checksums are those at departure."""
        wait_for(turn.stored[self._of(index)[-1]])
        for layer in self._of(index):
            self._sums(turn, size, 0, layer)

    def _arrived(self, turn: Turn, size: int, index: int) -> None:
        for layer in self._of(index):
            self._sums(turn, size, 1, layer)

    def _sums(self, turn: Turn, size: int, end: int, layer: int) -> None:
        """Checksums of a layer's tokens at the source (0) or the target (1), where K/V are verified."""
        if turn.sums is None:
            return
        from disagg.run.gpu import device_kernels  # needs triton

        cache = (self._source, self._target)[end]
        places = turn.places[self._dials[-end].device]
        planes = [plane.flatten(0, 1).flatten(1).view(torch.int16) for plane in cache.layer(layer)]
        width = planes[0].shape[1]
        sizes = dict(WIDTH=width, WIDTH_PAD=power_of_two(width))
        slots = (places.slots, places.onto)[end]
        device_kernels.sum_tokens[(size,)](*planes, slots, places.onto, turn.sums[end, layer], **sizes)
