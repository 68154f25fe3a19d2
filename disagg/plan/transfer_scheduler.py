"""Which copy takes which link next. A copy carries some layers of some blocks along one of these lanes:

    direct P   prefill device P → decode device        spill D   decode device D → host
    down P     prefill device P → slot of the ring      up D      slot or host → decode device D
    park P     slot of the ring → host

Threads, or the simulator, `start` the next copy of a lane, carry it out, and `finish` it.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from disagg.plan.blocks import BlockPool, Part
from disagg.plan.commands import Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.events import Landed, SourceRead, TransferClosed, TransferFailed
from disagg.plan.link import LaneName, LaneRole, Link, LinkClock
from disagg.plan.request import Priority

Notice = Landed | SourceRead | TransferClosed | TransferFailed
EVER = 1 << 62  # ns
FIRST_LANE = {"bulk": LaneRole.DIRECT, "direct": LaneRole.DIRECT, "staged": LaneRole.DOWN, "spill": LaneRole.SPILL}


@dataclass(eq=False)
class Copy:
    """Layers [layer, layer_end) of the table positions [block, block_end), read from `blocks` of the source or from a
    slot of the ring. Its times are set when it starts, by the link's clock."""

    transfer: int
    request: int
    source: Worker
    layer: int
    layer_end: int
    block: int
    block_end: int
    blocks: tuple[int, ...]
    nbytes: int
    lane: LaneName
    ready_ns: int  # when it joined the lane's queue
    slot: int | None = None  # of the ring, which hop one writes and hop two reads
    target: Worker | None = None
    target_blocks: tuple[int, ...] = ()
    start_ns: int = 0
    busy_until_ns: int = 0
    landing_ns: int = 0
    in_pass: bool = False  # carried out by the pass itself

    @property
    def part(self) -> Part:
        return Part(self.layer, self.layer_end, self.block, self.block_end)

    @property
    def hop_one(self) -> bool:
        """From the prefill device into a slot of the ring."""
        return self.lane.role is LaneRole.DOWN

    @property
    def hop_two(self) -> bool:
        """From a slot of the ring onto the decode device."""
        return self.slot is not None and not self.hop_one


@dataclass(eq=False)
class TransferProgress:
    """The copies of an open transfer."""

    send: Send
    made: int = 0  # copies so far; two hops of the same bytes count once
    read: int = 0  # copies whose first hop has ended
    landed: int = 0
    running: int = 0
    blocks_sent: int = 0
    next_layer: int = 0  # layers of the last Send that are in copies
    assign: Assign | None = None
    parked: list[tuple[Send, int, int]] = field(default_factory=list)  # layers of a Send that wait for target blocks
    # By (layer, block): the checksum at the source, and on a GPU the event recorded after its K/V.
    digests: dict[tuple[int, int], tuple[object, int]] = field(default_factory=dict)
    written: dict[tuple[int, int], object] = field(default_factory=dict)
    aborted: bool = False
    failed: bool = False  # a copy failed; the controller will abort

    def lane(self, second_hop: bool = False) -> LaneName:
        """The lane of a copy's first hop, or its second."""
        if second_hop or self.send.route == "fetch":
            assert self.assign is not None, f"transfer {self.send.transfer} has no target yet"
            if self.assign.target.role == "host":
                return LaneName(LaneRole.PARK, self.send.source.index)
            return LaneName(LaneRole.UP, self.assign.target.index)
        return LaneName(FIRST_LANE[self.send.route], self.send.source.index)

    def all_made(self, layers: int) -> bool:
        """Everything due is in a copy."""
        return self.blocks_sent == self.send.due_blocks and self.next_layer == layers


class Lane:
    """One direction of a link, and a heap of the copies that are ready for it."""

    def __init__(self, name: LaneName) -> None:
        self.name, self.clock = name, LinkClock()
        self.ready: list[tuple[Priority, int, Copy]] = []
        self.running = 0  # copies that `start` put on the link
        self.passes = 0  # that carry out their hand-offs themselves and have the link meanwhile


def lanes_of(config: Config) -> list[LaneName]:
    """The lanes that its routes take."""
    staged, senders, decodes = config.route == "staged", range(config.sender[1]), range(config.decode_workers)
    names = [LaneName(LaneRole.DOWN if staged else LaneRole.DIRECT, i) for i in senders]
    if config.host_blocks:
        names += [LaneName(LaneRole.SPILL, i) for i in decodes]
    if config.host_blocks or (staged and senders):
        names += [LaneName(LaneRole.UP, i) for i in decodes]
    if config.host_blocks and staged:
        names += [LaneName(LaneRole.PARK, i) for i in senders]
    return names


class TransferScheduler:
    """Copies and lanes of one machine, whose K/V of a token are `token_bytes` in `layers` layers."""

    def __init__(self, config: Config, *, layers: int, token_bytes: int) -> None:
        self.layers = layers
        self.layer_block_bytes = config.block_size * token_bytes // layers
        self.measured_bytes = 0  # the least that a copy should carry, once that is measured
        self.lanes = {name: Lane(name) for name in lanes_of(config)}
        self.retune(config)
        self.ring = BlockPool("ring", config.ring_slots if config.route == "staged" else 0)
        self.progress: dict[int, TransferProgress] = {}  # of open transfers, by their id
        self.on_ring: Callable[[int, int], None] = lambda at_ns, held: None  # called with the number of slots held
        self.queued = 0  # copies that are ready on all lanes
        self._order = 0
        self._free_since = [0] * self.ring.total  # a heap of when each free slot became free

    def retune(self, config: Config) -> None:
        """New links and granularity, from the next copy on."""
        first, second = config.links
        for lane in self.lanes.values():
            lane.clock.link = {LaneRole.UP: second, LaneRole.PARK: Link()}.get(lane.name.role, first)
        self.blocking = not config.overlap  # of passes from the next one on
        self.layers_per_copy = config.layers_per_copy or 1
        self.least_bytes = self.measured_bytes if config.layers_per_copy is None else 0

    def measured(self, config: Config, nbytes: int) -> None:
        """The least bytes of a copy where `layers_per_copy` is None."""
        self.measured_bytes = nbytes
        self.retune(config)

    # ---- called for the controller and prefill ----------------------------------------------------------------------

    def send(self, send: Send, now_ns: int) -> None:
        """Makes one copy of all layers, or leaves it to `hand_off` to make copies of computed layers."""
        progress = self.progress.setdefault(send.transfer, TransferProgress(send))
        progress.send, progress.next_layer = send, 0
        progress.blocks_sent += len(send.blocks)
        if send.layers_ready:
            self._make(progress, self.layers, now_ns)

    def hand_off(self, transfer: int, layer: int, now_ns: int) -> Part | None:
        """Prefill has written this layer's K/V of the last Send; returns the part that is now in a copy."""
        progress = self.progress.get(transfer)
        if progress is None or progress.aborted or progress.failed:
            return None
        layers = layer + 1 - progress.next_layer
        nbytes = layers * len(progress.send.blocks) * self.layer_block_bytes
        if (layers >= self.layers_per_copy and nbytes >= self.least_bytes) or layer + 1 == self.layers:
            return self._make(progress, layer + 1, now_ns)
        return None

    def copied_after(self, transfer: int) -> list[int]:
        """Layers of the last Send whose hand-off makes a copy."""
        layer_bytes = len(self.progress[transfer].send.blocks) * self.layer_block_bytes
        least = -(-self.least_bytes // layer_bytes) if layer_bytes else self.layers if self.least_bytes else 1
        group = max(self.layers_per_copy, least)
        return [*range(group - 1, self.layers - 1, group), self.layers - 1]

    def holds_up(self, transfer: int) -> bool:
        """Does a blocking hand-off still wait for this transfer? For copies that can start, not for those without a
        target: that comes when decode has room, which may need this very pass to end."""
        progress = self.progress.get(transfer)
        if progress is None or progress.assign is None or progress.aborted or progress.failed:
            return False
        return progress.landed < progress.made

    def assign(self, assign: Assign, now_ns: int) -> None:
        """The target's blocks are known: copies that wait for them are ready."""
        progress = self.progress.get(assign.transfer)
        if progress is None:
            return
        progress.assign = assign
        for parked in progress.parked:
            self._push_first(progress, *parked, now_ns)
        progress.parked.clear()

    def take_pass(self, transfers: list[int], to: Worker, lanes: list[LaneName], copies: int) -> bool:
        """Gives a pass that carries out its hand-offs itself, in so many copies each, these lanes and the whole ring
        until `end_pass`. False where others are there first, or a target is not `to`; such passes share."""
        taken, going = [self.lanes[name] for name in lanes], [self.progress[each] for each in transfers]
        if any(lane.ready or lane.running for lane in taken) or not going:
            return False
        if any(p.assign is None or p.assign.target != to or p.parked or p.aborted or p.failed for p in going):
            return False
        if len(taken) > 1:  # with the ring: none shares it while another sender waits for slots
            waiting = any(lane.ready for lane in self.lanes.values() if lane.name.role is LaneRole.DOWN)
            shares = taken[0].passes and not waiting
            if not shares and self.ring.reserve(self.ring.total, going[0].send.transfer) is None:
                return False
        for lane in taken:
            lane.passes += 1
        for progress in going:
            progress.made, progress.running = progress.made + copies, progress.running + copies
            progress.next_layer = self.layers
        return True

    def end_pass(self, lanes: list[LaneName]) -> None:
        """All copies of a pass have ended."""
        for name in lanes:
            self.lanes[name].passes -= 1
        if len(lanes) > 1 and not self.lanes[lanes[0]].passes:
            [owner] = set(self.ring.holdings())
            self.ring.release(self.ring.holdings()[owner], owner[0])

    def abort(self, transfer: int, now_ns: int) -> list[Notice]:
        """Drops the copies that have not started; the transfer is closed when the running ones have ended."""
        progress = self.progress.get(transfer)
        if progress is None:
            return [TransferClosed(transfer)]
        progress.aborted = True
        self._drop_waiting(progress, now_ns)
        return self._close_if_done(transfer)

    # ---- called for a lane -------------------------------------------------------------------------------------------

    def start(self, name: LaneName) -> Copy | None:
        """Puts the lane's next copy on its link; None while there is none, or no ring slot for it."""
        lane = self.lanes[name]
        down = lane.name.role is LaneRole.DOWN
        if not lane.ready or lane.passes or (down and not self.ring.available):
            return None
        lane.running += 1
        copy = heapq.heappop(lane.ready)[2]
        self.queued -= 1
        progress = self.progress[copy.transfer]
        progress.running += 1
        posted_ns = copy.ready_ns
        if down:
            slots = self.ring.reserve(1, copy.transfer)
            assert slots is not None
            copy.slot = slots[0]
            posted_ns = max(posted_ns, heapq.heappop(self._free_since))
        elif progress.assign is not None:
            copy.target = progress.assign.target
            copy.target_blocks = progress.assign.blocks[copy.block : copy.block_end]
        copy.start_ns, copy.busy_until_ns, copy.landing_ns = lane.clock.post(copy.nbytes, posted_ns)
        if down:
            self.on_ring(copy.start_ns, self.ring.held)
        return copy

    def finish(self, copy: Copy) -> list[Notice]:
        """A copy has landed: its second hop is ready, or the controller gets notices. Times follow from the link's
        clock, not from when a thread woke up."""
        progress = self._ended(copy)
        progress.read += not copy.hop_two
        if progress.aborted or progress.failed:
            return self._drop_running(progress, copy, copy.landing_ns)
        if copy.hop_one:
            up = progress.lane(second_hop=True)
            self._push(progress, replace(copy, lane=up, ready_ns=copy.landing_ns))
            through = progress.read == progress.made and progress.all_made(self.layers)
            return [SourceRead(copy.transfer)] if through else []
        self._drop_slots([copy], copy.landing_ns)
        progress.landed += 1
        if progress.landed == progress.made and progress.all_made(self.layers):
            del self.progress[copy.transfer]
        return [Landed(copy.transfer, (copy.part,), copy.nbytes, copy.landing_ns - copy.start_ns)]

    def fail(self, copy: Copy, error: str, now_ns: int) -> list[Notice]:
        """A copy has failed, or its bytes are wrong: no further copy of its transfer starts."""
        progress = self._ended(copy)
        if progress.aborted or progress.failed:
            return self._drop_running(progress, copy, now_ns)
        self._drop_slots([copy], now_ns)
        progress.failed = True
        self._drop_waiting(progress, now_ns)
        return [TransferFailed(copy.transfer, error)]

    def waiting(self, name: LaneName) -> int:
        return len(self.lanes[name].ready)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _make(self, progress: TransferProgress, layer_end: int, now_ns: int) -> Part:
        send, layer = progress.send, progress.next_layer
        progress.made += 1
        progress.next_layer = layer_end
        if progress.assign is None:  # a copy takes a link or a ring slot only when its target blocks are known
            progress.parked.append((send, layer, layer_end))
        else:
            self._push_first(progress, send, layer, layer_end, now_ns)
        return Part(layer, layer_end, send.first_block, send.first_block + len(send.blocks))

    def _push_first(self, progress: TransferProgress, send: Send, layer: int, layer_end: int, now_ns: int) -> None:
        self._push(progress, self.copy_of(send, layer, layer_end, progress.lane(), now_ns))

    def copy_of(self, send: Send, layer: int, layer_end: int, lane: LaneName, now_ns: int) -> Copy:
        nbytes = (layer_end - layer) * len(send.blocks) * self.layer_block_bytes
        where = (layer, layer_end, send.first_block, send.first_block + len(send.blocks), send.blocks)
        return Copy(send.transfer, send.request, send.source, *where, nbytes, lane, now_ns)

    def _ended(self, copy: Copy) -> TransferProgress:
        progress = self.progress[copy.transfer]
        progress.running -= 1
        self.lanes[copy.lane].running -= not copy.in_pass
        return progress

    def _push(self, progress: TransferProgress, copy: Copy) -> None:
        self._order += 1
        self.queued += 1
        heapq.heappush(self.lanes[copy.lane].ready, (progress.send.priority, self._order, copy))

    def _drop_waiting(self, progress: TransferProgress, now_ns: int) -> None:
        """Takes a transfer's copies off every lane, and frees their ring slots."""
        transfer = progress.send.transfer
        for lane in self.lanes.values():
            if mine := [copy for _, _, copy in lane.ready if copy.transfer == transfer]:
                self.queued -= len(mine)
                self._drop_slots(mine, now_ns)
                lane.ready = [entry for entry in lane.ready if entry[2].transfer != transfer]
                heapq.heapify(lane.ready)
        progress.parked.clear()

    def _drop_slots(self, copies: list[Copy], now_ns: int) -> None:
        """Frees their ring slots at `now_ns`: no later copy into one starts before, whenever a thread wakes up."""
        held = [copy.slot for copy in copies if copy.slot is not None]
        if held:
            self.ring.release(held, copies[0].transfer)
            for _ in held:
                heapq.heappush(self._free_since, now_ns)
            self.on_ring(now_ns, self.ring.held)

    def _drop_running(self, progress: TransferProgress, copy: Copy, now_ns: int) -> list[Notice]:
        """A copy of an aborted or failed transfer has ended."""
        self._drop_slots([copy], now_ns)
        return self._close_if_done(copy.transfer) if progress.aborted else []

    def _close_if_done(self, transfer: int) -> list[Notice]:
        if self.progress[transfer].running:
            return []
        del self.progress[transfer]
        return [TransferClosed(transfer)]
