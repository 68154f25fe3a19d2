"""Copies between a GPU and another memory, in order on the streams of one lane, with the buffers they need.

One copy, all on the streams:
    wait for the event after the layer's K/V → take the link, start event → bytes → the dial → end event
    → checksums of what arrived → seen event
Between GPUs that reach each other, or on one GPU, a kernel reads blocks and writes blocks. Through the host: gather a
layer's blocks into one staging buffer → one copy down → one up → scatter. Spills and fetches copy each run of blocks.
Pageable host memory (`pinned=False`) keeps this order and every event, but the thread that launches such a copy stands
still until the stream has come there and the bytes have left or arrived: nothing is hidden behind its other work.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from disagg.plan.transfer_scheduler import Copy
from disagg.run.clock import now_ns
from disagg.run.gpu.device import Scratch, new_stream
from disagg.run.gpu.device_checksum import checksum_blocks
from disagg.run.gpu.device_clock import Anchor, clock_of
from disagg.run.gpu.link_dial import DeviceDial
from disagg.run.gpu.sm_split import SMPartition
from disagg.run.kv_cache import KVCache

Sums = tuple[int, int]
NO_IDS = torch.empty(0, dtype=torch.long)  # for copies without a kernel that reads or writes blocks
KEPT_IDS = 1024  # tables of at least 512 bytes, two for each chunk of a pass


class EnqueuedCopy(NamedTuple):
    """A copy on the streams."""

    copy: Copy | None  # None: the copy is only timed
    start: torch.cuda.Event
    end: torch.cuda.Event
    seen: torch.cuda.Event
    first: Anchor  # of the device of `start`
    last: Anchor
    written: torch.cuda.Event | None  # what the copy waited for
    sums: torch.Tensor | None  # [2, layers, 2] pinned, at the source and at the target; valid after `seen`

    @property
    def record(self) -> Copy:
        assert self.copy is not None, "the copy is only timed"
        return self.copy

    @property
    def records(self) -> list[Copy]:
        return [self.record]

    def finish(self, latency_ns: int) -> tuple[list[Sums], list[Sums]]:
        """Waits for the copy without the interpreter lock, writes times into its record, and returns the checksums."""
        self.seen.synchronize()
        copy, now = self.record, now_ns()  # the copy has ended by now, whatever the clocks' error
        copy.start_ns = min(now, self.first.ns(self.start))
        if self.written is not None:  # the host's hook runs before the device reaches the layer
            copy.ready_ns = max(copy.ready_ns, min(copy.start_ns, self.first.ns(self.written)))
        copy.busy_until_ns = min(now, max(copy.start_ns, self.last.ns(self.end)))
        copy.landing_ns = copy.busy_until_ns + latency_ns
        left, found = ([], []) if self.sums is None else self.sums.tolist()
        return [(a, b) for a, b in left], [(a, b) for a, b in found]


class WholePass(Protocol):
    """All copies of a captured pass (captured_hand_off.py)."""

    landing_ns: int

    @property
    def records(self) -> list[Copy]: ...

    def finish(self) -> None: ...  # waits for all of them
    def land(self) -> None: ...


class Route(NamedTuple):
    """Source and target, each blocks of a cache or a ring slot: `slot` [layers, 2, n, ...] in host memory."""

    layers: range
    source: KVCache | None
    blocks: tuple[int, ...]
    target: KVCache | None
    target_blocks: tuple[int, ...]
    slot: torch.Tensor | None

    @property
    def paging(self) -> bool:
        """Whether blocks go between a GPU and host memory."""
        return self.slot is None and any(map(on_host, self.ends))

    @property
    def ends(self) -> tuple[KVCache, KVCache]:
        assert self.source is not None and self.target is not None, "a copy from blocks to blocks has two caches"
        return self.source, self.target

    @property
    def ring(self) -> torch.Tensor:
        assert self.slot is not None, "a copy with one cache has a ring slot at its other end"
        return self.slot

    @property
    def shape(self) -> tuple[int, ...]:
        """[layers, 2, blocks, block_size, kv_heads, head_dim] of the copied bytes."""
        cache = self.source or self.target
        assert cache is not None, "a copy has a cache at one end or at both"
        return (len(self.layers), 2, len(self.blocks), *cache.data.shape[3:])


class StreamCopier:
    """`devices`: the source and the target GPU. `part`: the SMs for gathers and scatters on a split GPU. `peer`: the
    two GPUs reach each other without the host. `pinned`: the host memory at its ends is page-locked.

    Buffers are reused in stream order."""

    def __init__(
        self,
        devices: list[torch.device],
        dtype: torch.dtype,
        part: SMPartition | None = None,
        peer: bool = True,
        pinned: bool = True,
    ) -> None:
        self.devices = list(dict.fromkeys(devices))
        self.clocks = [clock_of(device) for device in self.devices]
        # High priority: a short gather goes before the thread blocks of a long product.
        self.new_stream = functools.partial(new_stream, part=part, priority=-1)
        self.streams = [self.new_stream(device) for device in self.devices]
        self._staging = [Scratch(dtype, device=device) for device in self.devices]
        self._between = None if peer or len(self.devices) == 1 else Scratch(dtype, pinned=pinned)
        self._pinned = pinned
        self._ends_on = 0 if self._between is None else -1  # index of the stream with a copy's end event
        self._dial: DeviceDial | None = None
        # All layers of a request have the same blocks, and an upload of ids costs the host as much as all launches.
        self._ids = functools.lru_cache(KEPT_IDS)(ids_on)

    @contextlib.contextmanager
    def current(self) -> Iterator["StreamCopier"]:
        """A context in which this thread's kernels go to the lane's streams; the first device is current."""
        with contextlib.ExitStack() as stack:
            for stream in reversed(self.streams):
                stack.enter_context(torch.cuda.stream(stream))
            yield self

    def prepare_dial(self) -> DeviceDial:
        if self._dial is None:
            with self.current():
                self._dial = DeviceDial(self.devices[0], self.new_stream(self.devices[0]))
        return self._dial

    def stop(self) -> None:
        """Ends all waits of copies for the dial."""
        if self._dial is not None:
            with contextlib.suppress(RuntimeError):  # after a CUDA error nothing waits
                self._dial.stop()

    def drain(self) -> None:
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
        """Puts one copy on the streams. With `check_tokens` also checksums: prefill's `left`, or with `departs` those
        of the source's bytes."""
        first, last = self.streams[0], self.streams[-1]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        done = self.streams[self._ends_on]
        anchors = self.clocks[0].anchor(), self.clocks[self._ends_on].anchor()
        if written is not None:
            first.wait_event(written)  # the copy must follow the writes of K/V and checksums
        sums = None
        if check_tokens is not None:
            sums = torch.zeros(2, len(route.layers), 2, dtype=torch.int64, pin_memory=True)
            if departs:
                sums[0].copy_(checksum_blocks(self._collect(route, arrived=False), check_tokens), non_blocking=True)
            elif left is not None:
                sums[0].copy_(torch.stack(left), non_blocking=True)
        ids = self._ids_of(route)  # before the start event
        with self.dialled(occupancy_ns):
            start.record(first)  # after the dial's post, which may wait on a busy GPU
            self._move(route, *ids)
        # The end event must follow both streams: one has the scatter, the other the dial.
        if done is not first:
            done.wait_stream(first)
        end.record(done)
        seen = end
        if check_tokens is not None and sums is not None:
            if last is not done:
                last.wait_stream(done)
            sums[1].copy_(checksum_blocks(self._collect(route, arrived=True), check_tokens), non_blocking=True)
            seen = torch.cuda.Event()
            seen.record(last)
        return EnqueuedCopy(copy, start, end, seen, *anchors, written, sums)

    @contextlib.contextmanager
    def dialled(self, occupancy_ns: int | None) -> Iterator[None]:
        """A context for the enqueueing of a copy that takes the link for this time; None: the link has no dial."""
        if occupancy_ns is None:
            yield
            return
        dial = self.prepare_dial()
        dial.post(occupancy_ns)
        if not self._pinned:
            dial.go()  # the host comes to the end of the launch only when the stream has passed this point
        try:
            yield
            dial.hold()
        finally:
            dial.go()  # a partly enqueued copy must end too

    @property
    def by_kernel(self) -> bool:
        """Whether a kernel writes what it reads at the other end."""
        return self._between is None

    def _by_kernel(self, route: Route) -> bool:
        return route.slot is None and self.by_kernel and not route.paging

    def _ids_of(self, route: Route) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the blocks that kernels read and write, each on the kernel's device."""
        if route.paging:
            return NO_IDS, NO_IDS
        source, target = route.source, route.target
        writer = source if self._by_kernel(route) else target
        blocks = NO_IDS if source is None else self._ids(source.device, route.blocks)
        return blocks, NO_IDS if writer is None or target is None else self._ids(writer.device, route.target_blocks)

    def _move(self, route: Route, blocks: torch.Tensor, onto: torch.Tensor) -> None:
        if route.paging:
            copy_regions(route)
            return
        if self._by_kernel(route):
            copy_blocks(route, blocks, onto)
            return
        staged = route.ring if route.source is None else self._gather(route.source, route.layers, blocks, route.shape)
        if route.target is None:
            route.ring.copy_(staged, non_blocking=True)
            return
        device = route.target.device
        if staged.device != device:  # without `_between` the bytes are in the ring, in host memory
            there, host = self._buffer(device, route.shape), self._between
            staged = there.copy_(staged, non_blocking=True) if host is None else self._across(staged, host, there)
        wide(route.target.data[route.layers.start : route.layers.stop]).index_copy_(2, onto, wide(staged))

    def _across(self, staged: torch.Tensor, between: Scratch, there: torch.Tensor) -> torch.Tensor:
        """The bytes on the other GPU, through the host's buffer `between`."""
        first, last = self.streams
        # The host's buffer must be written after the previous copy has read it, and read after it is written.
        first.wait_stream(last)
        host = between.view(staged.shape).copy_(staged, non_blocking=True)
        last.wait_stream(first)
        return there.copy_(host, non_blocking=True)

    def _gather(self, cache: KVCache, layers: range, ids: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Blocks of a GPU's cache, gathered into its staging buffer."""
        out = self._buffer(cache.device, shape)
        torch.index_select(wide(cache.data[layers.start : layers.stop]), 2, ids, out=wide(out))
        return out

    def _collect(self, route: Route, arrived: bool) -> torch.Tensor:
        """The bytes at one end of the route in a staging buffer on the GPU, copied back if they are in host memory."""
        cache, blocks = (route.target, route.target_blocks) if arrived else (route.source, route.blocks)
        if cache is not None and not on_host(cache):
            return self._gather(cache, route.layers, self._ids(cache.device, blocks), route.shape)
        out = self._buffer(self.devices[0], route.shape)
        if cache is None:
            return out.copy_(route.ring, non_blocking=True)
        for index, layer in enumerate(route.layers):
            for which in range(2):
                for place, block in enumerate(blocks):
                    out[index, which, place].copy_(cache.data[layer, which, block], non_blocking=True)
        return out

    def _buffer(self, device: torch.device, shape: tuple[int, ...]) -> torch.Tensor:
        return self._staging[self.devices.index(device)].view(shape)


def on_host(cache: KVCache) -> bool:
    return cache.device.type == "cpu"


def ids_on(device: torch.device, blocks: tuple[int, ...]) -> torch.Tensor:
    """Block ids on a device, through pinned memory, so that the host does not wait for the stream."""
    return torch.tensor(blocks, pin_memory=True).to(device, non_blocking=True)


def wide(data: torch.Tensor) -> torch.Tensor:
    """The bytes as 8-byte words if a head is a multiple of 8 bytes: gathers of 2-byte elements are slow."""
    return data.view(torch.int64) if data.shape[-1] * data.dtype.itemsize % 8 == 0 else data


def runs(places: Sequence[int] | np.ndarray, onto: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(place, target place, length) of the runs of places that are adjacent at both ends."""
    here, there = np.asarray(places), np.asarray(onto)
    ends = (np.flatnonzero((here[1:] != here[:-1] + 1) | (there[1:] != there[:-1] + 1)) + 1).tolist()
    starts = [0, *ends] if len(here) else []
    for first, end in zip(starts, [*ends, len(here)], strict=False):
        yield int(here[first]), int(there[first]), end - first


def copy_blocks(route: Route, blocks: torch.Tensor, onto: torch.Tensor) -> None:
    """Copies blocks from one GPU's cache to another's or its own, on the source's stream and device."""
    from disagg.run.gpu import device_kernels  # needs triton

    layers = route.layers
    source, target = (wide(cache.data[layers.start : layers.stop]) for cache in route.ends)
    words, tile = source[0, 0, 0].numel(), device_kernels.TILE
    grid = -(-words // tile), len(route.blocks), 2 * len(layers)
    strides = (*source.stride()[:2], *target.stride()[:2])
    device_kernels.copy_blocks[grid](source, target, blocks, onto, *strides, WORDS=words, TILE=tile)


def copy_regions(route: Route) -> None:
    """Copies blocks between a GPU's cache and host memory, one copy for each run."""
    source, target = (cache.data for cache in route.ends)
    stretches = list(runs(route.blocks, route.target_blocks))
    for layer in route.layers:
        for which in range(2):
            here, there = source[layer, which], target[layer, which]
            for block, onto, length in stretches:
                there[onto : onto + length].copy_(here[block : block + length], non_blocking=True)
