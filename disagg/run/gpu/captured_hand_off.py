"""The hand-off of captured passes: a graph beside the pass's own, in which every layer waits to be stored and leaves.

    the pass     layer 0 stored · attention … layer 1 stored · attention … ── token 1
                        ┊                           ┊
    its hand-off  wait ─┴→ gather → link → copy → …  wait ─┴→ …            ── the last copy
                  (staged)         └→ link → copy → scatter

The host launches two graphs a pass and nothing a layer, and neither token 1 nor the next pass waits for a copy. A layer
waits by a stream memory operation on the time that its attention kernel writes (CUDA driver API, cuStreamWaitValue64);
a kernel that spins on it would slow the pass down. Its slot of the ring is fixed, and a full ring holds the copies of
later layers by an edge of the graph, never the compute. Two graphs of a size take turns.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from disagg.plan.commands import Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.link import LaneName, LaneRole
from disagg.plan.transfer_scheduler import EVER, FIRST_LANE, Copy
from disagg.run.attention.split_decode import power_of_two
from disagg.run.clock import now_ns
from disagg.run.gpu.device_clock import timer_of
from disagg.run.gpu.sm_split import ask, load_driver
from disagg.run.gpu.stream_copy import wide
from disagg.run.kv_cache import KVCache, slots_of
from disagg.run.transfers import Departing, Transfers
from disagg.trace.spans import Span, span_of

TURNS = 2
PROGRAMS, ROWS = 16, 8  # of a gather or scatter: few, since they take SMs from the pass


class Turn:
    """What the graphs of one turn read and write: where tokens come from and go to on the device, times and checksums
    in pinned memory."""

    def __init__(self, most: int, layers: int, hops: int, copies: int, verify: bool, device: torch.device) -> None:
        parts = [most, most, hops]
        self.there = torch.zeros(sum(parts), dtype=torch.long, device=device)
        self.here = torch.zeros(sum(parts), dtype=torch.long, pin_memory=True)
        self.slots, self.onto, self.occupancy = self.there.split(parts)  # -1: stays; ns of a copy on each hop's link
        self.there.fill_(-1)
        self.stored = torch.zeros(layers, dtype=torch.long, pin_memory=True)  # when K/V were in the cache
        self.stamps = torch.zeros(hops, copies, 2, dtype=torch.long, pin_memory=True)  # start and end on the link
        self.sums = torch.zeros(2, layers, most, dtype=torch.long, pin_memory=True) if verify else None  # both ends
        self.busy = False
        self.answered = threading.Event()  # the pass has picked its tokens, which go first
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by size


class Taken(NamedTuple):
    """A pass's hand-off, which a graph will do."""

    rows: list[slice]  # of each transfer
    sent: list[tuple[Send, Assign]]
    onto: Tensor  # [T] the slot of each token at the target; -1: it stays
    occupancy_ns: list[int]  # of each hop's link, a copy


class CapturedHandOff:
    """Of one prefill worker, to the one decode worker that it sends to."""

    def __init__(self, transfers: Transfers, config: Config, source: Worker, target: Worker) -> None:
        assert transfers.streams is not None and config.chunk_tokens
        self.transfers, self.to, self._driver = transfers, target, load_driver()
        self.names = [LaneName(FIRST_LANE[config.route], source.index)]
        if config.route == "staged":
            self.names.append(LaneName(LaneRole.UP, target.index))
        self.source, self.target = transfers.caches[source], transfers.caches[target]
        self.lanes = [transfers.streams[name] for name in self.names]
        self.streams = [lane.copier.streams[0] for lane in self.lanes]
        self.dials = [lane.copier.prepare_dial().state for lane in self.lanes]
        shape, self.group, most = transfers.shape, transfers.scheduler.layers_per_copy, config.chunk_tokens
        self.layers, self.copies = shape.layers, -(-shape.layers // self.group)
        self._buffer = (min(self.group, shape.layers), 2, most, shape.kv_heads, shape.head_dim)
        self._ring = [slot.view(self._buffer) for slot in transfers.ring]
        self._staging = [
            torch.empty(self._buffer, dtype=shape.dtype, device=cache.device)
            for cache in (self.source, self.target)[: 2 * bool(self._ring)]
        ]
        sizes = most, self.layers, len(self.names), self.copies, transfers.verify, self.source.device
        self.turns = [Turn(*sizes) for _ in range(TURNS)]
        self._next = 0

    @classmethod
    def of(cls, transfers: Transfers, config: Config, source: Worker) -> "CapturedHandOff | None":
        """None where a pass's layers don't stream, have several targets, or need the host's threads."""
        others = [Worker("decode", index) for index in range(config.decode_workers) if source != ("decode", index)]
        if source.role != config.sender[0] or config.route == "bulk" or len(others) != 1 or transfers.streams is None:
            return None
        copier = transfers.streams[LaneName(FIRST_LANE[config.route], source.index)].copier
        one_gpu = transfers.caches[source].device == transfers.caches[others[0]].device
        if not config.pinned or not (copier.by_kernel if config.route == "direct" else one_gpu):
            return None
        try:
            return cls(transfers, config, source, others[0])
        except ConfigError:  # no driver to ask
            return None

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def free_turn(self) -> int | None:
        """Whose graphs the next pass may use; None while the copies of the last but one go on."""
        if self.turns[self._next].busy:
            return None
        self.turns[self._next].answered.clear()
        return self._next

    def _take(self, departing: Sequence[Departing], tokens: int) -> Taken | None:
        """Takes lanes and ring for a pass; None where others have them, or a target is missing."""
        scheduler, size = self.transfers.scheduler, self.source.block_size
        with self.transfers.lock:
            going = [each for each in departing if each.transfer in scheduler.progress]
            if self.transfers.closing.is_set() or scheduler.layers_per_copy != self.group:
                return None
            if not scheduler.take_pass([each.transfer for each in going], self.to, self.names):
                return None
            onto, sent = torch.full((tokens,), -1), []
            for each in going:
                progress = scheduler.progress[each.transfer]
                assert progress.assign is not None, "taken with its target"
                start = each.first_block * size
                sent.append((progress.send, progress.assign))
                stop = start + each.rows.stop - each.rows.start
                onto[each.rows] = slots_of(progress.assign.blocks, start, stop, size)
            links = [scheduler.lanes[name].clock.link for name in self.names]
        nbytes = sum(len(send.blocks) for send, _ in sent) * self.group * scheduler.layer_block_bytes
        occupancy = [link.occupancy_ns(nbytes) if link.dialled else 0 for link in links]
        return Taken([each.rows for each in going], sent, onto, occupancy)

    def launch(
        self, number: int, departing: Sequence[Departing], size: int, slots: Tensor, cleared: torch.cuda.Event | None
    ) -> bool:
        """After the pass's own graph: from here on its layers leave as they are stored. False where they can't."""
        turn, first, taken = self.turns[number], self.streams[0], self._take(departing, len(slots))
        if taken is None:
            return False
        turn.busy, self._next = True, (number + 1) % TURNS
        for kept, new in zip(
            turn.here.split([len(turn.slots), len(turn.onto), len(self.names)]),
            (slots, taken.onto, torch.tensor(taken.occupancy_ns)),
            strict=True,
        ):
            kept[: len(new)], kept[len(new) :] = new, -1
        with torch.cuda.stream(first):
            if cleared is not None:
                first.wait_event(cleared)
            turn.there.copy_(turn.here, non_blocking=True)
            turn.graphs[size].replay()
        ended = torch.cuda.Event()
        ended.record(first)
        self.lanes[0].put(PassCopies(self, turn, taken, ended))
        return True

    def close(self) -> None:
        """Frees the graphs once the last copy has ended."""
        self.streams[0].synchronize()
        for turn in self.turns:
            turn.graphs.clear()

    # ---- capture -----------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def capture(self, size: int, stored: Tensor) -> None:
        """The graphs of passes of so many tokens; stored [1 + TURNS, layers] is where their layers' times appear."""
        for number, turn in enumerate(self.turns):
            with torch.cuda.stream(self.streams[0]):
                self._warm(turn, size)
                turn.graphs[size] = graph = torch.cuda.CUDAGraph()
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._all_layers(turn, size, stored[1 + number])
                finally:
                    graph.capture_end()

    def _warm(self, turn: Turn, size: int) -> None:
        """Compiles the kernels; nothing travels."""
        with self._link(turn, 0, 0):
            for stage in self._staging[:1]:
                self._tokens(turn, size, self.source, stage[0], 0)
            self._tokens(turn, size, self._staging[1][0] if self._staging else self.source, self.target, 0)
            self._sums(turn, size, 0, 0)
        self.streams[0].synchronize()

    def _all_layers(self, turn: Turn, size: int, stored: Tensor) -> None:
        layout = (*self._buffer[:2], size, *self._buffer[3:])
        staging, ring = (
            [part.flatten()[: math.prod(layout)].view(layout) for part in parts]
            for parts in (self._staging, self._ring)
        )
        first, last = self.streams[0], self.streams[-1]
        free: list[torch.cuda.Event] = []  # copies that hop two has taken from the ring
        for index in range(self.copies):
            layers = range(index * self.group, min((index + 1) * self.group, self.layers))
            self._wait(first, stored[layers[-1]])
            for layer in layers:
                self._sums(turn, size, 0, layer)
            if not ring:
                with self._link(turn, 0, index):
                    for layer in layers:
                        self._tokens(turn, size, self.source, self.target, layer)
                self._arrived(turn, size, layers)
                continue
            slot = ring[index % len(ring)][: len(layers)]
            for place, layer in enumerate(layers):
                self._tokens(turn, size, self.source, staging[0][place], layer)
            if index >= len(ring):
                first.wait_event(free[index - len(ring)])
            with self._link(turn, 0, index):
                slot.copy_(staging[0][: len(layers)], non_blocking=True)
            written = marked(first)
            with torch.cuda.stream(last):
                last.wait_event(written)
                with self._link(turn, 1, index):
                    staging[1][: len(layers)].copy_(slot, non_blocking=True)
                free.append(marked(last))
                for place, layer in enumerate(layers):
                    self._tokens(turn, size, staging[1][place], self.target, layer)
                self._arrived(turn, size, layers)
        if last is not first:
            first.wait_event(marked(last))
        turn.stored.copy_(stored, non_blocking=True)

    def _wait(self, stream: torch.cuda.Stream, stored: Tensor) -> None:
        """Holds the stream until the number on the device is 1 or more."""
        flag = self._driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ
        ask(self._driver.cuStreamWaitValue64, stream.cuda_stream, stored.data_ptr(), 1, flag)

    @contextmanager
    def _link(self, turn: Turn, hop: int, index: int) -> Iterator[None]:
        from disagg.run.gpu import device_kernels  # needs triton

        state, stamps = self.dials[hop], turn.stamps[hop, index]
        device_kernels.take_link[(1,)](state, turn.occupancy[hop:], stamps, num_warps=1)
        yield
        device_kernels.leave_link[(1,)](state, stamps[1:], num_warps=1)

    def _tokens(
        self, turn: Turn, size: int, source: "KVCache | Tensor", target: "KVCache | Tensor", layer: int
    ) -> None:
        """A layer's K/V of the tokens that travel; a tensor [2, tokens, ...] has them in the order of the pass."""
        from disagg.run.gpu import device_kernels  # needs triton

        ends = [
            wide(end.data[layer]).flatten(1, 2) if isinstance(end, KVCache) else wide(end) for end in (source, target)
        ]
        ends = [end.flatten(2) for end in ends]
        width = ends[0].shape[2]
        sizes = dict(WIDTH=width, WIDTH_PAD=power_of_two(width), ROWS=ROWS)
        ways = dict(FROM_SLOTS=isinstance(source, KVCache), TO_SLOTS=isinstance(target, KVCache))
        given = *ends, turn.slots, turn.onto, size, ends[0].stride(0), ends[1].stride(0)
        device_kernels.copy_tokens[(PROGRAMS, 2)](*given, **sizes, **ways, num_warps=8)

    def _arrived(self, turn: Turn, size: int, layers: range) -> None:
        for layer in layers:
            self._sums(turn, size, 1, layer)

    def _sums(self, turn: Turn, size: int, end: int, layer: int) -> None:
        """Checksums of a layer's tokens at the source (0) or the target (1), where K/V are verified."""
        if turn.sums is None:
            return
        from disagg.run.gpu import device_kernels  # needs triton

        cache, slots = ((self.source, turn.slots), (self.target, turn.onto))[end]
        planes = [plane.flatten(0, 1).flatten(1).view(torch.int16) for plane in cache.layer(layer)]
        width = planes[0].shape[1]
        sizes = dict(WIDTH=width, WIDTH_PAD=power_of_two(width))
        device_kernels.sum_tokens[(size,)](*planes, slots, turn.onto, turn.sums[end, layer], **sizes)


def marked(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event


class PassCopies:
    """The copies of a launched pass, for the thread of its first lane."""

    def __init__(self, owner: CapturedHandOff, turn: Turn, taken: Taken, ended: torch.cuda.Event) -> None:
        self._owner, self._turn, self._taken, self._ended = owner, turn, taken, ended
        self._spans: list[Span] = []
        self._wrong: list[tuple[Copy, int]] = []
        self.landing_ns = EVER
        self._begun_ns = now_ns()

    @cached_property
    def records(self) -> list[Copy]:
        """Made while the pass computes."""
        owner = self._owner
        given = self._taken.sent, owner.group, owner.names[-1], self._begun_ns
        return owner.transfers.scheduler.copies_of_pass(*given)

    def finish(self) -> None:
        """Waits for the graph's end without the interpreter lock, and writes the times into the copies."""
        self._ended.synchronize()
        owner, turn, rows = self._owner, self._turn, self._taken.rows
        turn.answered.wait()
        scheduler = owner.transfers.scheduler
        timers = [timer_of(cache.device) for cache in (owner.source, owner.target)]
        hops = [
            [[t.ns(at) for at in pair] for pair in hop] for t, hop in zip(timers, turn.stamps.tolist(), strict=False)
        ]
        stored = [timers[0].ns(at) for at in turn.stored.tolist()]
        latency_ns = round(1e9 * scheduler.lanes[owner.names[-1]].clock.link.latency_s)
        for number, copy in enumerate(self.records):
            index, mine = divmod(number, len(rows))
            copy.ready_ns = min(stored[copy.layer_end - 1], hops[0][index][0])
            if len(hops) > 1:
                down = replace(copy, lane=owner.names[0])
                down.start_ns, down.busy_until_ns = part(hops[0][index], rows, mine)
                down.landing_ns = down.busy_until_ns
                self._spans.append(span_of(down, down.landing_ns))
                copy.ready_ns = down.landing_ns
            copy.start_ns, copy.busy_until_ns = part(hops[-1][index], rows, mine)
            copy.landing_ns = copy.busy_until_ns + latency_ns
            self._spans.append(span_of(copy, copy.landing_ns))
        self._wrong = self._differing()
        ring = [(start, 1) for start, _ in hops[0]] + [(end, -1) for _, end in hops[-1]] if len(hops) > 1 else []
        with owner.transfers.lock:
            held = 0
            for at_ns, more in sorted(ring):
                held += more
                scheduler.on_ring(at_ns, held)
            scheduler.end_pass(owner.names)
            turn.busy = False
        self.landing_ns = self.records[-1].landing_ns

    def land(self) -> None:
        """All at once, but for those whose bytes are wrong."""
        for copy, layer in self._wrong:
            self._owner.transfers.differs(copy, layer)
        wrong = {id(copy) for copy, _ in self._wrong}
        self._owner.transfers.land_pass([copy for copy in self.records if id(copy) not in wrong], self._spans)

    def _differing(self) -> list[tuple[Copy, int]]:
        """Copies with the first layer whose checksums differ."""
        sums, found = self._turn.sums, []
        if sums is None:
            return []
        differs = sums[0] != sums[1]
        for number, copy in enumerate(self.records):
            rows = self._taken.rows[number % len(self._taken.rows)]
            wrong = [layer for layer in range(copy.layer, copy.layer_end) if bool(differs[layer, rows].any())]
            found += [(copy, wrong[0])] if wrong else []
        return found


def part(times: list[int], rows: list[slice], mine: int) -> tuple[int, int]:
    """A transfer's part of one copy's time on the link, by its share of the tokens."""
    counts = [each.stop - each.start for each in rows]
    start, end = times
    before, upto = (start + (end - start) * sum(counts[:index]) // sum(counts) for index in (mine, mine + 1))
    return before, upto
