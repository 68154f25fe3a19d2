"""A lane with a GPU at one end: the thread that makes a copy possible enqueues it; the lane's thread lands it.

Beside a prefill pass, waking a thread that only enqueues takes ten times as long as a launch and delays the pass.
A transfer is reported closed after the host has seen the end of its last copy on the streams.
"""

import queue
import threading
from collections import deque
from enum import Enum, auto
from typing import NamedTuple, cast

import torch

from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.link import LaneName, LaneRole
from disagg.plan.transfer_scheduler import Copy
from disagg.run.clock import COARSE_NS, now_ns, wait_until
from disagg.run.gpu.device import Scratch
from disagg.run.gpu.peer_access import reaches
from disagg.run.gpu.sm_split import SMPartition
from disagg.run.gpu.stream_copy import EnqueuedCopy, Route, StreamCopier, WholePass
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.lane import BaseLane, LaneOwner
from disagg.run.model.text import first_line
from disagg.twin.route_cost import RouteCost, cost_of

AHEAD = 2  # copies on the streams at once: no gap on the link while the host handles the last one
HAND_OFF = (LaneRole.DIRECT, LaneRole.DOWN)  # lanes that send prefill's K/V
OF_PREFILL = (*HAND_OFF, LaneRole.PARK)
LARGE_BYTES = 64 << 20  # of the larger copy that is timed where layers_per_copy is None
TRIES = 5  # of a timed copy


class Signal(Enum):
    """A message to a lane's thread."""

    WAKE, STOP = auto(), auto()


class Refused(NamedTuple):
    """A copy that could not be enqueued completely."""

    copy: Copy
    error: Exception


Message = EnqueuedCopy | WholePass | Refused | Signal


class StreamLane(BaseLane):
    """Any thread enqueues its copies, in the scheduler's order; the lane's thread lands them."""

    def __init__(self, name: LaneName, transfers: LaneOwner, copier: StreamCopier) -> None:
        super().__init__(name, transfers)
        self.copier = copier
        self._room = threading.Semaphore(AHEAD)
        self._launching = threading.Lock()  # held while a copy is started and enqueued
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()  # of the lane's thread

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def drive(self) -> None:
        """Enqueues copies that may start now, on the thread that made them ready."""
        if not self.transfers.scheduler.waiting(self.name):
            return
        with self._launching:
            while self._room.acquire(blocking=False):
                copy = self.transfers.start_copy(self.name)
                if copy is None:
                    self._room.release()
                    break
                self._inbox.put(self._launch(copy))

    def put(self, launched: WholePass) -> None:
        """The copies of a pass that does its hand-off itself; they land as others do."""
        self._inbox.put(launched)

    def wake(self) -> None:
        """Makes the lane's thread enqueue: the engine's thread must not spend a millisecond on a copy."""
        if self.transfers.scheduler.waiting(self.name):
            self._inbox.put(Signal.WAKE)

    def stop(self) -> None:
        """Ends the lane's thread; no further copy is enqueued."""
        with self._launching:
            self.copier.stop()  # under the lock: a launch may have made a dial
            self._inbox.put(Signal.STOP)

    # ---- the lane's thread -------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the engine closes: handles the end of the oldest copy or the next landing, whichever comes first."""
        enqueued: deque[EnqueuedCopy | WholePass] = deque()  # on the streams
        landing: deque[Copy | WholePass] = deque()  # off the link, within its latency
        try:
            while self._receive(enqueued, wait_s(enqueued, landing)):
                now = now_ns()
                if landing and landing[0].landing_ns <= now:
                    landed = landing.popleft()
                    if isinstance(landed, Copy):
                        self.transfers.land(landed, landed.landing_ns)
                    else:
                        landed.land()
                elif enqueued and ends_first(enqueued, landing):
                    landing.extend(self._finish(enqueued.popleft()))
                    self.transfers.drive()
                elif landing and landing[0].landing_ns - now <= 2 * COARSE_NS:
                    wait_until(landing[0].landing_ns, self.transfers.closing)
        finally:
            self.copier.drain()  # from here on no copy reads or writes for these transfers
        for left in (*landing, *enqueued):
            for copy in [left] if isinstance(left, Copy) else left.records:
                self.transfers.give_up(copy)

    def _receive(self, enqueued: "deque[EnqueuedCopy | WholePass]", wait_s: float | None) -> bool:
        """Empties the inbox, with a wait for the first message (None: without limit); False at the end."""
        while True:
            try:
                message = self._inbox.get(wait_s is None or wait_s > 0, wait_s)
            except queue.Empty:
                return True
            match message:
                case Refused():
                    self._refuse(*message)
                case Signal.WAKE:
                    self.drive()
                case Signal.STOP:
                    return False
                case _:
                    enqueued.append(message)
            wait_s = 0.0

    @torch.inference_mode(False)  # prefill's thread may launch; other threads can't write inference tensors
    def _launch(self, copy: Copy) -> EnqueuedCopy | Refused:
        """Puts a copy on the streams, where it waits for the event after its K/V."""
        link, progress = self._link, self.transfers.scheduler.progress[copy.transfer]
        event = None if copy.hop_two else progress.written.get((copy.layer_end - 1, copy.block))
        written = cast("torch.cuda.Event | None", event)  # plan/ keeps it as an opaque object
        try:
            check = self._check(copy) if self.transfers.verify else {}
            occupancy_ns = link.occupancy_ns(copy.nbytes) if link.dialled else None
            with self.copier.current():
                return self.copier.launch(copy, self._route(copy), written, occupancy_ns, **check)
        except Exception as error:
            return Refused(copy, error)

    def _refuse(self, copy: Copy, error: Exception) -> None:
        """Reports a copy that could not be launched, after its launched part has ended."""
        self.copier.drain()
        self._room.release()
        self.transfers.raised(copy, error)
        self.transfers.drive()

    def _finish(self, enqueued: EnqueuedCopy | WholePass) -> list[Copy] | list[WholePass]:
        """Waits for a copy's end without the interpreter lock and checks it; returns the copy if it may land."""
        if not isinstance(enqueued, EnqueuedCopy):
            enqueued.finish()
            return [enqueued]
        copy = enqueued.record
        try:
            left, arrived = enqueued.finish(round(self._link.latency_s * 1e9))
            wrong = self._wrong_layer(copy, left, arrived) if self.transfers.verify else None
        except Exception as error:
            self.transfers.raised(copy, error)
            return []
        finally:
            self._room.release()
        if wrong is not None:
            self.transfers.differs(copy, wrong)
            return []
        return [copy]

    def _route(self, copy: Copy) -> Route:
        caches = self.transfers.caches
        source = None if copy.hop_two else caches[copy.source]
        target = None if copy.target is None else caches[copy.target]
        slot = None if copy.slot is None else self._ring_view(copy, copy.slot)
        return Route(range(copy.layer, copy.layer_end), source, copy.blocks, target, copy.target_blocks, slot)

    def _check(self, copy: Copy) -> dict:
        """The checksums for a copy; known ones are on the device, or already numbers."""
        left, tokens = self._known(copy)
        on_device = left if left and isinstance(left[0], torch.Tensor) else None
        return dict(
            check_tokens=tokens, left=on_device, departs=not left and copy.request not in self.transfers.spilled
        )

    def _wrong_layer(self, copy: Copy, left: list[tuple], arrived: list[tuple]) -> int | None:
        """The first layer whose checksums differ from those at departure, which become plain numbers here."""
        known, tokens = self._known(copy)
        if known and isinstance(known[0], tuple):
            left = known
        elif not known and copy.source.role == "host":
            left = self.transfers.spilled.pop(copy.request, left)  # parked K/V have none
        return self._first_difference(copy, left, arrived, tokens)

    def measure(self) -> RouteCost:
        """Times a small and a large copy of a hand-off or spill, before any block is in use; the shortest times count.

        The host's clock measures from launch to end: a small copy takes more of the host's time than of the link's.
        """
        caches = self.transfers.caches
        ends = (Worker("prefill", 0), Worker("decode", 0)) if Worker("prefill", 0) in caches else tuple(caches)[:2]
        if self.name.role is LaneRole.SPILL:
            ends = Worker("decode", 0), Worker("host", 0)
        source, target = (caches[name] for name in ends)
        block_bytes = self.transfers.scheduler.layer_block_bytes
        most = min(source.num_blocks, target.num_blocks, 8)
        most_layers = max(1, min(source.shape.layers, LARGE_BYTES // (most * block_bytes)))
        found = []
        with self.copier.current():
            for layers, count in ((1, 1), (most_layers, most)):
                blocks, seconds = tuple(range(count)), []
                if self.name.role is LaneRole.DOWN:
                    slot = self.transfers.ring[0].view((layers, 2, count, *self._block))
                    route = Route(range(layers), source, blocks, None, (), slot)
                else:
                    route = Route(range(layers), source, blocks, target, blocks, None)
                for _ in range(TRIES):
                    began = now_ns()
                    self.copier.launch(None, route, None, None).seen.synchronize()
                    seconds.append((now_ns() - began) / 1e9)
                found.append((layers * count * block_bytes, min(seconds[1:])))
        return cost_of(*found).dialled(self._link)


def gpus_of(caches: dict[Worker, KVCache]) -> dict[Worker, torch.device]:
    """The GPU with the K/V of each worker that has one."""
    return {name: cache.device for name, cache in caches.items() if cache.on_gpu}


def make_lanes(transfers: LaneOwner, config: Config, parts: dict[str, SMPartition]) -> dict[LaneName, StreamLane]:
    """Makes the lanes on streams of their GPUs; `parts` of a split GPU by role.

    Lanes' kernels run on decode's SMs: on prefill's a gather waits for the end of a long product. Whole prompts, which
    hide nothing, are gathered on prefill's SMs: so many blocks would delay decode.
    """
    gpus, dtype = gpus_of(transfers.caches), next(iter(transfers.caches.values())).shape.dtype
    lanes = {}
    for name in transfers.scheduler.lanes:
        direct = name.role is LaneRole.DIRECT
        sms = "prefill" if direct and config.route == "bulk" else "decode"
        here = gpus[Worker(config.sender[0] if name.role in OF_PREFILL else "decode", name.index)]
        other = int(config.conditional and name.index == 0)  # a worker that does both hands off to the other one
        there = gpus[Worker("decode", other)] if direct else here
        peer = config.peer_access and reaches(here, there)
        copier = StreamCopier([here, there], dtype, parts.get(sms), peer, config.pinned)
        lanes[name] = StreamLane(name, transfers, copier)
    return lanes


def fill_ring(ring: list[Scratch], config: Config, shape: KVShape, layers_per_copy: int) -> None:
    """Allocates ring slots for a chunk's copy at the start, since pinned memory is slow to allocate."""
    assert config.chunk_tokens and config.prefill_blocks and config.block_size
    layers = min(layers_per_copy, shape.layers)
    tokens = min(config.chunk_tokens, config.prefill_blocks * config.block_size)
    nbytes = layers * tokens * shape.layer_token_bytes
    try:
        for slot in ring:
            slot.view((layers, 2, tokens, shape.kv_heads, shape.head_dim))
    except (MemoryError, RuntimeError) as error:
        kind = "pinned" if config.pinned else "pageable"
        raise EngineError(
            f"no room for the ring in {kind} host memory: {len(ring) * nbytes:,} bytes asked "
            f"({len(ring)} slots of {nbytes:,}). Lower ring_slots, layers_per_copy or chunk_tokens of the "
            f"Config. {first_line(error)}"
        ) from None


def ends_first(enqueued: deque[EnqueuedCopy | WholePass], landing: deque[Copy | WholePass]) -> bool:
    """Whether the oldest copy on the streams comes before the next landing, by the link's times."""
    return not landing or enqueued[0].records[-1].busy_until_ns <= landing[0].landing_ns


def wait_s(enqueued: deque[EnqueuedCopy | WholePass], landing: deque[Copy | WholePass]) -> float | None:
    """Seconds that a lane may wait for a message before its next work; None: without limit."""
    if enqueued and ends_first(enqueued, landing):
        return 0.0  # the lane waits for its end without the interpreter lock
    return max(0, landing[0].landing_ns - now_ns() - COARSE_NS) / 1e9 if landing else None
