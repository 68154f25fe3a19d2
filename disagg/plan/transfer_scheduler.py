"""Which copy takes which wire next: pieces of transfers, the lanes they queue on, and the ring between two hops.

A piece is some layers of some blocks. It goes its way alone: on a direct route from the prefill device to the decode
device; staged, down into a slot of the ring and up from there. Spills and fetches use the decode device's own wires.
The lanes of one machine:

    direct P   prefill device P → decode device        spill D   decode device D → host
    down P     prefill device P → ring                  up D      ring or host → decode device D

Pure: threads (or a virtual clock) ask `start` for the next copy of a lane, carry it out, and report `finish`.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from disagg.plan.blocks import BlockPool
from disagg.plan.commands import Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.events import Landed, Part, SourceRead, TransferClosed, TransferFailed
from disagg.plan.link import Wire
from disagg.plan.spans import Span


class CopyTask(NamedTuple):
    """Layers [layer, layer_end) of the table positions [block, block_end), read from `blocks` of the source."""

    transfer: int
    request: int
    source: Worker
    layer: int
    layer_end: int
    block: int
    block_end: int
    blocks: tuple[int, ...]
    nbytes: int

    @property
    def part(self) -> Part:
        return Part(self.layer, self.layer_end, self.block, self.block_end)


@dataclass(eq=False)
class ActiveCopy:
    """A piece on one wire: its times by the wire's account, its ring slot where it uses one, and where it goes."""

    piece: CopyTask
    lane: str
    start_ns: int
    busy_until_ns: int
    landing_ns: int
    slot: int | None
    target: Worker | None
    target_blocks: tuple[int, ...]  # those of the piece
    ready_ns: int  # since when it queued on the lane
    hop_one: bool  # from the prefill device into a slot of the ring

    @property
    def hop_two(self) -> bool:
        """From a slot of the ring onto the decode device."""
        return self.slot is not None and not self.hop_one

    def span(self, landed_ns: int) -> Span:
        """What the timeline keeps of it."""
        piece = self.piece
        kind = "spill" if self.lane.startswith("spill") else "fetch" if piece.source.role == "host" else "copy"
        return Span(
            kind, self.lane, self.start_ns, landed_ns, (piece.request,), piece.layer, piece.layer_end - piece.layer,
            piece.nbytes, deadline_ns=self.landing_ns, transfer=piece.transfer,
            occupied_ns=self.busy_until_ns - self.start_ns, ready_ns=self.ready_ns, blocks=len(piece.blocks),
        )  # fmt: skip


@dataclass(eq=False)
class TransferProgress:
    """What is known of an open transfer."""

    send: Send
    pieces: int = 0  # made so far
    read: int = 0  # pieces whose first hop has ended
    landed: int = 0
    flying: int = 0
    blocks_sent: int = 0
    next_layer: int = 0  # layers of the last Send that are in pieces; the rest waits for prefill
    assign: Assign | None = None
    parked: list[CopyTask] = field(default_factory=list)  # pieces that wait for the target's blocks
    digests: dict = field(default_factory=dict)  # (layer, block) → what left the source there, for whoever checks
    written: dict = field(default_factory=dict)  # (layer, block) → the event behind its K/V, where a GPU still writes
    aborted: bool = False
    failed: bool = False  # a copy failed; the controller will abort

    def all_made(self, layers: int) -> bool:
        """Has everything due become a piece?"""
        return self.blocks_sent == self.send.due_blocks and self.next_layer == layers


class Lane:
    """One wire and the pieces that are ready for it, the first by policy on top."""

    def __init__(self, name: str, wire: Wire) -> None:
        self.name, self.wire, self.down = name, wire, name.startswith("down")
        self.ready: list[tuple[tuple, int, CopyTask, int | None, int]] = []  # priority, order, piece, slot, since when


class TransferScheduler:
    def __init__(self, config: Config, *, layers: int, token_bytes: int) -> None:
        self.layers = layers
        self.layer_block_bytes = config.block_size * token_bytes // layers
        self.measured_bytes = 0  # what a copy should carry, where whoever copies has measured it
        self._group(config)
        first, second = config.links
        names = [f"{'down' if config.route == 'staged' else 'direct'} {i}" for i in range(config.prefill_workers)]
        if config.host_blocks:
            names += [f"spill {i}" for i in range(config.decode_workers)]
        if config.host_blocks or (config.route == "staged" and not config.colocated):
            names += [f"up {i}" for i in range(config.decode_workers)]
        self.lanes = {name: Lane(name, Wire(second if name.startswith("up") else first)) for name in names}
        self.ring = BlockPool("ring", config.ring_slots if config.route == "staged" else 0)
        self.journeys: dict[int, TransferProgress] = {}
        self.on_ring: Callable[[int, int], None] = lambda at_ns, held: None  # hears how many slots are held
        self.queued = 0  # pieces that wait on all lanes
        self._order = 0
        self._free_since = [0] * self.ring.total  # of each free slot, the earliest first

    def retune(self, config: Config) -> None:
        """New wires and granularity, from the next copy on."""
        first, second = config.links
        self._group(config)
        for lane in self.lanes.values():
            lane.wire.link = second if lane.name.startswith("up") else first

    # ---- what the controller and prefill say -------------------------------------------------------------------------

    def send(self, send: Send, now_ns: int) -> None:
        """Blocks may travel: at once, or a group of layers at a time as `hand_off` reports them."""
        journey = self.journeys.setdefault(send.transfer, TransferProgress(send))
        journey.send, journey.next_layer = send, 0
        journey.blocks_sent += len(send.blocks)
        if send.layers_ready:
            self._make(journey, self.layers, now_ns)

    def hand_off(self, transfer: int, layer: int, now_ns: int) -> CopyTask | None:
        """Prefill has written this layer's K/V of the last Send; returns the piece that became ready with it."""
        journey = self.journeys.get(transfer)
        if journey is None or journey.aborted or journey.failed:
            return None
        layers = layer + 1 - journey.next_layer
        nbytes = layers * len(journey.send.blocks) * self.layer_block_bytes
        if (layers >= self.layers_per_copy and nbytes >= self.least_bytes) or layer + 1 == self.layers:
            return self._make(journey, layer + 1, now_ns)
        return None

    def copied_after(self, transfer: int) -> list[int]:
        """Layers of the last Send whose hand-off makes a piece ready, at the present granularity."""
        layer_bytes = len(self.journeys[transfer].send.blocks) * self.layer_block_bytes
        least = -(-self.least_bytes // layer_bytes) if layer_bytes else self.layers if self.least_bytes else 1
        group = max(self.layers_per_copy, least)
        return [*range(group - 1, self.layers - 1, group), self.layers - 1]

    def assign(self, assign: Assign, now_ns: int) -> None:
        """The target's blocks are known: pieces that waited for them become ready."""
        journey = self.journeys.get(assign.transfer)
        if journey is None:
            return
        journey.assign = assign
        for piece in journey.parked:
            self._push(journey, piece, None, now_ns)
        journey.parked.clear()

    def abort(self, transfer: int, now_ns: int) -> list:
        """Drops what has not started; the transfer is closed when the last copy has ended."""
        journey = self.journeys.get(transfer)
        if journey is None:
            return [TransferClosed(transfer)]
        journey.aborted = True
        self._drop_waiting(journey, now_ns)
        return self._close_if_done(transfer)

    # ---- what the lanes do -------------------------------------------------------------------------------------------

    def start(self, name: str) -> ActiveCopy | None:
        """Puts the lane's next piece on its wire; None while there is none, or no ring slot for it."""
        lane = self.lanes[name]
        if not lane.ready or (lane.down and not self.ring.available):
            return None
        _, _, piece, slot, ready_ns = heapq.heappop(lane.ready)
        self.queued -= 1
        journey = self.journeys[piece.transfer]
        journey.flying += 1
        if lane.down:
            slot = self.ring.reserve(1, piece.transfer)[0]
            times = lane.wire.post(piece.nbytes, max(ready_ns, heapq.heappop(self._free_since)))
            self.on_ring(times[0], self.ring.held)
        else:
            times = lane.wire.post(piece.nbytes, ready_ns)
        target, blocks = None, ()
        if journey.assign is not None and not lane.down:
            target, blocks = journey.assign.target, journey.assign.blocks[piece.block : piece.block_end]
        return ActiveCopy(piece, name, *times, slot, target, blocks, ready_ns, lane.down)

    def finish(self, flight: ActiveCopy) -> list:
        """A copy has landed: passes the piece on, or returns the notices for the controller.

        What follows counts from the landing by the wire, not from when a thread noticed it.
        """
        piece = flight.piece
        journey = self.journeys[piece.transfer]
        journey.flying -= 1
        journey.read += not flight.hop_two
        if flight.hop_one and not (journey.aborted or journey.failed):
            self._push(journey, piece, flight.slot, flight.landing_ns)
            through = journey.read == journey.pieces and journey.all_made(self.layers)
            return [SourceRead(piece.transfer)] if through else []
        self._drop_slots([flight.slot], piece.transfer, flight.landing_ns)
        if journey.aborted:
            return self._close_if_done(piece.transfer)
        if journey.failed:
            return []
        journey.landed += 1
        took = flight.landing_ns - flight.start_ns
        notices = [Landed(piece.transfer, (piece.part,), piece.nbytes, took)]
        if journey.landed == journey.pieces and journey.all_made(self.layers):
            del self.journeys[piece.transfer]
        return notices

    def fail(self, flight: ActiveCopy, error: str, now_ns: int) -> list:
        """A copy failed, or its bytes are wrong: nothing else of this transfer starts."""
        journey = self.journeys[flight.piece.transfer]
        journey.flying -= 1
        self._drop_slots([flight.slot], flight.piece.transfer, now_ns)
        if journey.aborted:
            return self._close_if_done(flight.piece.transfer)
        if journey.failed:
            return []
        journey.failed = True
        self._drop_waiting(journey, now_ns)
        return [TransferFailed(flight.piece.transfer, error)]

    def waiting(self, name: str) -> int:
        """Pieces that queue on a lane."""
        return len(self.lanes[name].ready)

    def measured(self, config: Config, nbytes: int) -> None:
        """Copies of fewer bytes cost more than they hide; heeded where `layers_per_copy` is None."""
        self.measured_bytes = nbytes
        self._group(config)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _group(self, config: Config) -> None:
        automatic = config.layers_per_copy is None
        self.layers_per_copy = 1 if automatic else config.layers_per_copy
        self.least_bytes = self.measured_bytes if automatic else 0

    def _make(self, journey: TransferProgress, layer_end: int, now_ns: int) -> CopyTask:
        send, layer = journey.send, journey.next_layer
        nbytes = (layer_end - layer) * len(send.blocks) * self.layer_block_bytes
        end = send.first_block + len(send.blocks)
        piece = CopyTask(
            send.transfer, send.request, send.source, layer, layer_end, send.first_block, end, send.blocks, nbytes
        )
        journey.pieces += 1
        journey.next_layer = layer_end
        if journey.assign is None:
            journey.parked.append(piece)  # no wire and no ring slot for what has no way out: others wait behind it
        else:
            self._push(journey, piece, None, now_ns)
        return piece

    def _push(self, journey: TransferProgress, piece: CopyTask, slot: int | None, now_ns: int) -> None:
        lane = self.lane_of(journey, second_hop=slot is not None)
        self._order += 1
        self.queued += 1
        heapq.heappush(lane.ready, (journey.send.priority, self._order, piece, slot, now_ns))

    def lane_of(self, journey: TransferProgress, second_hop: bool = False) -> Lane:
        """Where its pieces go first, or second."""
        send = journey.send
        if second_hop or send.route == "fetch":
            return self.lanes[f"up {journey.assign.target.index}"]
        name = {"staged": "down", "spill": "spill"}.get(send.route, "direct")
        return self.lanes[f"{name} {send.source.index}"]

    def _drop_waiting(self, journey: TransferProgress, now_ns: int) -> None:
        """Takes a transfer's pieces off every queue, and gives back the ring slots they hold."""
        transfer = journey.send.transfer
        for lane in self.lanes.values():
            mine = [entry for entry in lane.ready if entry[2].transfer == transfer]
            if mine:
                self.queued -= len(mine)
                self._drop_slots([entry[3] for entry in mine], transfer, now_ns)
                lane.ready = [entry for entry in lane.ready if entry[2].transfer != transfer]
                heapq.heapify(lane.ready)
        journey.parked.clear()

    def _drop_slots(self, slots: list, transfer: int, now_ns: int) -> None:
        """Ring slots are free from then on: nothing enters one before, however late its lane's thread wakes up."""
        held = [slot for slot in slots if slot is not None]
        if held:
            self.ring.release(held, transfer)
            for _ in held:
                heapq.heappush(self._free_since, now_ns)
            self.on_ring(now_ns, self.ring.held)

    def _close_if_done(self, transfer: int) -> list:
        if self.journeys[transfer].flying:
            return []
        del self.journeys[transfer]
        return [TransferClosed(transfer)]
