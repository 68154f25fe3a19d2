"""Copies between a GPU and another memory, in order on the streams of one lane, with the buffers they need.

One copy on the streams, nothing of it on the host:
    wait for the event behind the layer's K/V → the wire is taken, start event → bytes → the dial → end event
    → checksums of what arrived → seen event
A hand-off's bytes between GPUs that reach each other, or on one: a kernel that reads blocks here and writes blocks
there. By way of the host: gather a layer's blocks into one staging buffer → one copy down → one up → scatter; so it is
too where one GPU can't reach the other's memory, or must not. Spills and fetches copy whole regions between the GPU and
pinned memory, one for each run of blocks. Between two GPUs there is a stream on each.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from disagg.plan.transfer_scheduler import Copy
from disagg.run.checksum import checksum_blocks
from disagg.run.clock import now_ns
from disagg.run.device import Scratch, new_stream
from disagg.run.gpu.block_ids import BlockIds
from disagg.run.gpu.device_clock import Anchor, clock_of
from disagg.run.gpu.link_dial import DeviceDial
from disagg.run.gpu.sm_split import Part
from disagg.run.kv_cache import KVCache

Sums = tuple[int, int]


class EnqueuedCopy(NamedTuple):
    """A copy that is on the streams. Its buffers belong to the lane, which reuses them in stream order."""

    copy: Copy | None  # None: only timed
    start: torch.cuda.Event
    end: torch.cuda.Event
    seen: torch.cuda.Event
    first: Anchor  # of the device of `start`
    last: Anchor
    written: torch.cuda.Event | None  # what it waited for
    sums: torch.Tensor | None  # [2, layers, 2] pinned: what left, what arrived; to be read once `seen` has ended

    @property
    def record(self) -> Copy:
        """The copy, which one that is only timed has not."""
        assert self.copy is not None
        return self.copy

    def finish(self, latency_ns: int) -> tuple[list[Sums], list[Sums]]:
        """Waits for the copy, without the interpreter, and writes its times into its record; the checksums."""
        self.seen.synchronize()
        copy = self.record
        now = now_ns()  # whatever the clocks' error says, it has ended
        copy.start_ns = min(now, self.first.ns(self.start))
        if self.written is not None:  # the hook ran on the host before the device came there
            copy.ready_ns = max(copy.ready_ns, min(copy.start_ns, self.first.ns(self.written)))
        copy.busy_until_ns = min(now, max(copy.start_ns, self.last.ns(self.end)))
        copy.landing_ns = copy.busy_until_ns + latency_ns
        left, found = ([], []) if self.sums is None else self.sums.tolist()
        return [tuple(pair) for pair in left], [tuple(pair) for pair in found]


class Route(NamedTuple):
    """From blocks of a cache or a ring slot to a ring slot or blocks of a cache: `slot` [layers, 2, n, ...] pinned."""

    layers: range
    source: KVCache | None
    blocks: tuple[int, ...]
    target: KVCache | None
    target_blocks: tuple[int, ...]
    slot: torch.Tensor | None

    @property
    def paging(self) -> bool:
        """Between a GPU and host memory, both ends being blocks."""
        return self.slot is None and (on_host(self.source) or on_host(self.target))

    @property
    def shape(self) -> tuple[int, ...]:
        block = (self.source or self.target).data.shape[3:]
        return (len(self.layers), 2, len(self.blocks), *block)


class StreamCopier:
    """`devices`: the GPU that copies leave, and the one that they reach, where it is another.

    `part`: where that one GPU is split, the SMs on which gathers and scatters run. `peer`: from one GPU to the other
    without the host.
    """

    def __init__(
        self, devices: list[torch.device], dtype: torch.dtype, part: Part | None = None, peer: bool = True
    ) -> None:  # fmt: skip
        self.devices = list(dict.fromkeys(devices))
        self.clocks = [clock_of(device) for device in self.devices]
        # high priority: a gather of microseconds goes before the blocks of a product of milliseconds
        self.streams = [new_stream(device, part, priority=-1) for device in self.devices]
        self._staging = [Scratch(dtype, device=device) for device in self.devices]
        self._between = None if peer or len(self.devices) == 1 else Scratch(dtype, pinned=True)
        self._ends_on = 0 if self._between is None else -1  # which stream's event is the end of a copy
        self._dial: DeviceDial | None = None
        self._ids = BlockIds()

    @contextlib.contextmanager
    def current(self):
        """This thread's kernels go to the lane's streams, on each of its devices; the first device is current."""
        with contextlib.ExitStack() as stack:
            for stream in reversed(self.streams):
                stack.enter_context(torch.cuda.stream(stream))
            yield self

    def prepare_dial(self) -> None:
        """Makes the dial where there is none yet."""
        if self._dial is None:
            with self.current():
                self._dial = DeviceDial(self.devices[0])

    def stop(self) -> None:
        """No copy waits for its dial any more."""
        if self._dial is not None:
            with contextlib.suppress(RuntimeError):  # after an error of CUDA nothing waits any more
                self._dial.stop()

    def drain(self) -> None:
        """Waits until nothing of any copy is left on the streams."""
        for stream in self.streams:
            stream.synchronize()

    def launch(
        self,
        copy: Copy | None,
        route: Route,
        written: torch.cuda.Event | None,
        occupancy_ns: int | None,
        left: list[torch.Tensor] | None = None,
        check_tokens: int | None = None,
        departs: bool = False,
    ) -> EnqueuedCopy:
        """Puts one copy on the streams. With `check_tokens`, checksums too: `left` as prefill made them, or of the
        source's own bytes where it `departs` unreported."""
        first, last = self.streams[0], self.streams[-1]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        done = self.streams[self._ends_on]
        anchors = self.clocks[0].anchor(), self.clocks[self._ends_on].anchor()
        if written is not None:
            first.wait_event(written)  # K/V are in the source's blocks, and their checksums exist
        sums = None
        if check_tokens is not None:
            sums = torch.zeros(2, len(route.layers), 2, dtype=torch.int64, pin_memory=True)
            if departs:
                sums[0].copy_(checksum_blocks(self._collect(route, arrived=False), check_tokens), non_blocking=True)
            elif left is not None:
                sums[0].copy_(torch.stack(left), non_blocking=True)
        ids = self._ids_of(route)  # before the copy's time begins
        with self._dialled(occupancy_ns):
            start.record(first)  # behind the dial's post, which may have waited for a place on a busy GPU
            self._move(route, *ids)
        if done is not first:
            done.wait_stream(first)  # the end is of both: the scatter on one, the dial on the other
        end.record(done)
        seen = end
        if check_tokens is not None:
            if last is not done:
                last.wait_stream(done)
            sums[1].copy_(checksum_blocks(self._collect(route, arrived=True), check_tokens), non_blocking=True)
            seen = torch.cuda.Event()
            seen.record(last)
        return EnqueuedCopy(copy, start, end, seen, *anchors, written, sums)

    # ---- inside ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _dialled(self, occupancy_ns: int | None):
        """Around the enqueueing of a copy: it takes the wire for that long, where there is a dial."""
        if occupancy_ns is None:
            yield
            return
        self.prepare_dial()
        self._dial.post(occupancy_ns)
        try:
            yield
            self._dial.hold()
        finally:
            self._dial.go()  # also of half a copy: the stream must come to its end

    def _by_kernel(self, route: Route) -> bool:
        """From blocks to blocks at once?"""
        return route.slot is None and self._between is None and not route.paging

    def _ids_of(self, route: Route) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Ids of the blocks that a kernel reads, and of those that one writes, each where the kernel runs."""
        if route.paging:
            return None, None
        source, target = route.source, route.target
        writes_on = source if self._by_kernel(route) else target
        return (
            None if source is None else self._ids.on(source.device, route.blocks),
            None if target is None else self._ids.on(writes_on.device, route.target_blocks),
        )

    def _move(self, route: Route, blocks: torch.Tensor | None, onto: torch.Tensor | None) -> None:
        if route.paging:
            copy_regions(route.source.data, route.target.data, route)
            return
        if self._by_kernel(route):
            copy_blocks(route, blocks, onto)
            return
        staged = route.slot
        if route.source is not None:
            staged = self._gather(route.source, route.layers, blocks, route.shape)
        if route.target is None:
            route.slot.copy_(staged, non_blocking=True)
            return
        device = route.target.device
        if staged.device != device:
            there = self._buffer(device, route.shape)
            by_host = self._between is not None  # else it comes from the ring, which is host memory
            staged = self._across(staged, there) if by_host else there.copy_(staged, non_blocking=True)
        wide(route.target.data[route.layers.start : route.layers.stop]).index_copy_(2, onto, wide(staged))

    def _across(self, staged: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """The bytes on the other GPU, by way of the host."""
        first, last = self.streams
        first.wait_stream(last)  # the copy before this one has left the host's buffer
        host = self._between.view(staged.shape).copy_(staged, non_blocking=True)
        last.wait_stream(first)
        return there.copy_(host, non_blocking=True)

    def _gather(self, cache: KVCache, layers: range, ids: torch.Tensor, shape) -> torch.Tensor:
        """Whole blocks of a GPU's cache in its staging buffer."""
        out = self._buffer(cache.device, shape)
        torch.index_select(wide(cache.data[layers.start : layers.stop]), 2, ids, out=wide(out))
        return out

    def _collect(self, route: Route, arrived: bool) -> torch.Tensor:
        """The bytes at one end of the route, in a staging buffer: read back where they lie in host memory."""
        cache, blocks = (route.target, route.target_blocks) if arrived else (route.source, route.blocks)
        if cache is not None and not on_host(cache):
            return self._gather(cache, route.layers, self._ids.on(cache.device, blocks), route.shape)
        out = self._buffer(self.devices[0], route.shape)
        if cache is None:
            return out.copy_(route.slot, non_blocking=True)
        for index, layer in enumerate(route.layers):
            for which in range(2):
                for place, block in enumerate(blocks):
                    out[index, which, place].copy_(cache.data[layer, which, block], non_blocking=True)
        return out

    def _buffer(self, device: torch.device, shape: tuple[int, ...]) -> torch.Tensor:
        return self._staging[self.devices.index(device)].view(shape)


def on_host(cache: KVCache) -> bool:
    return cache.device.type == "cpu"


def wide(data: torch.Tensor) -> torch.Tensor:
    """The same bytes in words of eight, where a head has whole ones: gathers of 2-byte elements are slow."""
    return data.view(torch.int64) if data.shape[-1] * data.dtype.itemsize % 8 == 0 else data


def runs(blocks: tuple[int, ...], onto: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(block, block of the target, length) of the stretches that follow each other at both ends."""
    start = 0
    for index in range(1, len(blocks) + 1):
        if index < len(blocks) and (blocks[index] - blocks[index - 1], onto[index] - onto[index - 1]) == (1, 1):
            continue
        yield blocks[start], onto[start], index - start
        start = index


def copy_blocks(route: Route, blocks: torch.Tensor, onto: torch.Tensor) -> None:
    """From the blocks of one GPU's cache to those of another's, or of its own, on the stream of the first, where the
    ids are too."""
    from disagg.run.gpu import block_kernel  # needs triton

    layers = route.layers
    source, target = (wide(cache.data[layers.start : layers.stop]) for cache in (route.source, route.target))
    words, tile = source[0, 0, 0].numel(), block_kernel.TILE
    block_kernel.copy[-(-words // tile), len(route.blocks), 2 * len(layers)](
        source, target, blocks, onto, *source.stride()[:2], *target.stride()[:2], WORDS=words, TILE=tile
    )


def copy_regions(source: torch.Tensor, target: torch.Tensor, route: Route) -> None:
    """Blocks from [layers, 2, num_blocks, ...] to another such tensor: each run is one region of a layer's K or V."""
    stretches = list(runs(route.blocks, route.target_blocks))
    for layer in route.layers:
        for which in range(2):
            here, there = source[layer, which], target[layer, which]
            for block, onto, length in stretches:
                there[onto : onto + length].copy_(here[block : block + length], non_blocking=True)
