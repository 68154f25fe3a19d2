"""Copies of K/V between memories: a thread a lane, real bytes, a ring of pinned slots, and a digest at every stop.

Which piece goes next is decided in plan/traffic. Order of one copy: the piece is ready (its layer is written and its
source blocks are pinned) → copy → the digest of what arrived → the dial's deadline → the notice. Nothing is announced
before its bytes were checked, and a ring slot is given back only after hop two has read it.
A lane with a GPU at one end keeps the same order on a stream (run/stream_lane): whoever makes a copy possible enqueues
it, the lane's thread lands what has ended. A landed copy has ended for the host, so any stream that is given work from
then on sees its bytes.
Notebook: notebooks/00_start_here.ipynb.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from disagg.plan.commands import Abort, Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.events import WorkerDied
from disagg.plan.route_cost import RouteCost
from disagg.plan.timeline import Span
from disagg.plan.traffic import Flight, Journey, Piece, Traffic
from disagg.run.clock import COARSE_NS, now_ns, wait_until
from disagg.run.device import mark
from disagg.run.dial import check_triton, triton_is_here
from disagg.run.digest import checksum, digest, digest_blocks
from disagg.run.injection import Injection
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.peer import reaches
from disagg.run.punctual import ask_for_short_slices
from disagg.run.route_cost import measure
from disagg.run.scratch import Scratch
from disagg.run.sm_split import Part
from disagg.run.stream_copy import Route, StreamCopier
from disagg.run.stream_lane import StreamLane
from disagg.run.text import first_line
from disagg.run.threads import Joinable

LARGE_BYTES = 64 << 20  # of the larger copy that is timed where layers_per_copy is None


class Departing(NamedTuple):
    """A chunk of a pass whose K/V travel: its rows of the pass, and which block of its request they begin."""

    transfer: int
    first_block: int
    rows: slice


class Transfers:
    """Called by the engine's thread (`send`, `assign`, `abort`) and by prefill workers (`hand_off`)."""

    def __init__(
        self,
        config: Config,
        caches: dict[Worker, KVCache],
        post: Callable[[object], None],
        record: Callable[[Span], None],
        parts: dict[str, Part] | None = None,
        injection: Injection | None = None,
    ):
        shape = next(iter(caches.values())).shape
        self.traffic = Traffic(config, layers=shape.layers, token_bytes=shape.token_bytes)
        self.config, self.caches, self.shape, self.verify = config, caches, shape, config.verify_kv
        self._post, self._record, self._injection = post, record, injection
        self._streams = self._make_streams(config, parts or {})
        self._ring = [Scratch(shape.dtype, pinned=bool(self._streams)) for _ in range(self.traffic.ring.total)]
        if self._streams:
            self._fill_ring(config)
        self._spilled: dict[int, list] = {}  # request → digests of its layers in host memory
        self._changed = threading.Condition()
        self.closing = threading.Event()
        self._threads = [Joinable(target=self._run, args=(name,), name=f"disagg {name}") for name in self.traffic.lanes]

    def start(self):
        """What a GPU needs once is done here, before workers capture graphs: a capture wants the device for itself."""
        if triton_is_here():  # a link may be dialled later, and the first copy must not wait for a compiler
            for lane in self._streams.values():
                lane.copier.prepare_dial()
        if self._streams and self.config.layers_per_copy is None and (cost := self._measure()) is not None:
            self.traffic.measured(self.config, cost.least_bytes)
        for thread in self._threads:
            thread.start()

    # ---- called by the engine's thread -------------------------------------------------------------------------------

    def send(self, command: Send):
        with self._changed:
            self.traffic.send(command, now_ns())
            self._changed.notify_all()
        self.drive()

    def assign(self, command: Assign):
        with self._changed:
            self.traffic.assign(command, now_ns())
            self._changed.notify_all()
        self.drive()

    def abort(self, command: Abort):
        with self._changed:
            self._tell(self.traffic.abort(command.transfer, now_ns()))
        self.drive()

    def check(self, config: Config):
        """ConfigError where a setting needs what is not installed."""
        if self._streams and any(link.dialled for link in config.links):
            check_triton()

    def retune(self, config: Config):
        with self._changed:
            self.traffic.retune(config)

    def close(self):
        """Stops the lanes; copies in the air are given up, and their transfers closed."""
        with self._changed:
            self.closing.set()
            self._changed.notify_all()
        for lane in self._streams.values():
            lane.stop()
        for thread in self._threads:
            thread.join()
        self._ring.clear()  # pinned, and to be freed while the streams that copied it are there

    # ---- called by a prefill worker, from inside the layer -----------------------------------------------------------

    def hand_off(self, layer: int, departing: list[Departing], key: torch.Tensor, value: torch.Tensor):
        """This layer's K/V [tokens, kv_heads, head_dim] of a pass are in the cache; its chunks may travel from now on.

        On a GPU they will be when this thread's stream comes there; the host waits for nothing.
        """
        summed = checksum if self._streams else digest
        left = [(summed(key[d.rows], value[d.rows]), len(key[d.rows])) if self.verify else None for d in departing]
        written = mark(key.device)
        with self._changed:
            lanes = set()
            for chunk, sums in zip(departing, left, strict=True):
                journey = self.traffic.journeys.get(chunk.transfer)
                if journey is None:
                    continue  # the request ended meanwhile
                journey.digests[layer, chunk.first_block] = sums
                journey.written[layer, chunk.first_block] = written
                if self.traffic.hand_off(chunk.transfer, layer, now_ns()) is not None:
                    lanes.add(self.traffic.lane_of(journey).name)
            if lanes:
                self._changed.notify_all()
        if lanes:
            self.drive(lanes)

    # ---- lanes of streams --------------------------------------------------------------------------------------------

    def drive(self, names: Iterable[str] | None = None):
        """After a change of the traffic: enqueues what may start now on these lanes of streams, or on all."""
        lanes = [lane for name, lane in self._streams.items() if names is None or name in names]
        if any([lane.drive() for lane in lanes]):
            self.drive()  # what failed has given back what others may have waited for

    def start_copy(self, name: str) -> Flight | None:
        """The lane's next copy; None where nothing may start."""
        with self._changed:
            return None if self.closing.is_set() else self.traffic.start(name)

    # ---- a lane's thread ---------------------------------------------------------------------------------------------

    def _run(self, name: str):
        with self.watched(name):
            if name in self._streams:
                self._streams[name].serve()
            else:
                self._serve_lane(name)

    @contextlib.contextmanager
    def watched(self, name: str):
        """Around all that a thread of a lane does: the controller hears of its death."""
        ask_for_short_slices()
        try:
            yield
        except BaseException as error:
            self._post(WorkerDied(Worker(f"lane {name}", 0), f"{type(error).__name__}: {error}"))
            raise

    def _serve_lane(self, name: str):
        """One copy occupies the wire at a time; landings follow after its latency, in order."""
        occupying: Flight | None = None
        flying: deque[Flight] = deque()
        scratch = Scratch(self.shape.dtype)
        while not self.closing.is_set():
            now = now_ns()
            if flying and flying[0].landing_ns <= now:
                self.land(flying.popleft())
                continue
            if occupying is not None and occupying.busy_until_ns <= now:
                occupying = None
            if occupying is None:
                flight = self.next(name, flying[0].landing_ns if flying else None)
                if flight is None:
                    continue
                if self._copy(flight, scratch):
                    occupying = flight
                    flying.append(flight)
            else:
                wait_until(min(flying[0].landing_ns, occupying.busy_until_ns), self.closing)
        for flight in flying:
            self.give_up(flight)

    def next(self, name: str, landing_ns: int | None) -> Flight | None:
        """The lane's next copy; None when it is time for a landing, or to stop. Its last part is waited out exactly."""
        with self._changed:
            while (flight := self.traffic.start(name)) is None and not self.closing.is_set():
                if landing_ns is not None and landing_ns - now_ns() < 2 * COARSE_NS:
                    break
                self._changed.wait(None if landing_ns is None else (landing_ns - now_ns() - COARSE_NS) / 1e9)
        if flight is None and landing_ns is not None:
            wait_until(landing_ns, self.closing)
        return flight

    def _copy(self, flight: Flight, scratch: Scratch) -> bool:
        """Moves the bytes and checks what arrived, within the time that the dial gives; False where it failed."""
        began = now_ns()
        try:
            flips = self._injection is not None and self._injection.copy(flight)
            data = self._move(flight, scratch)
            if flips:
                self._flip(flight, data)
            moved = now_ns()
            wrong = self._wrong_layer(flight, data) if self.verify else None
        except Exception as error:
            self.raised(flight, error)
            return False
        if wrong is not None:
            self.differs(flight, wrong)
            return False
        if not self.traffic.lanes[flight.lane].wire.link.dialled:
            flight.start_ns, flight.busy_until_ns, flight.landing_ns = began, moved, now_ns()
        return True

    def _move(self, flight: Flight, scratch: Scratch) -> torch.Tensor:
        """From the source's blocks or the ring's slot to the slot or the target's blocks; returns what it read."""
        piece = flight.piece
        layers = range(piece.layer, piece.layer_end)
        if flight.hop_two:
            data = self.ring_view(flight)
        else:
            source = self.caches[piece.source]
            shape = block_shape(self.shape, piece, source.block_size)
            out = self.ring_view(flight) if flight.hop_one else scratch.view(shape)
            data = source.fetch_blocks(layers, piece.blocks, out)
        if not flight.hop_one:
            target = self.caches[flight.target]
            target.store_blocks(layers, flight.target_blocks, data)
        return data

    def _flip(self, flight: Flight, data: torch.Tensor):
        """One bit of what arrived: in the ring's slot, or in the target's first block."""
        there = data
        if not flight.hop_one:
            there = self.caches[flight.target].data[flight.piece.layer :, :, flight.target_blocks[0] :]
        first = there[0, 0, 0, 0, 0].view(torch.uint8)
        first[0] = first[0] ^ 1

    def ring_view(self, flight: Flight) -> torch.Tensor:
        """The slot's buffer in the shape of the piece; a larger piece than ever before enlarges it."""
        shape = block_shape(self.shape, flight.piece, next(iter(self.caches.values())).block_size)
        return self._ring[flight.slot].view(shape)

    def _wrong_layer(self, flight: Flight, data: torch.Tensor) -> int | None:
        """The first layer whose bytes are not those that left; `data` is what the copy read."""
        piece = flight.piece
        journey = self.traffic.journeys[piece.transfer]
        layers = range(piece.layer, piece.layer_end)
        if (piece.layer, piece.block) not in journey.digests:
            self._note_departure(flight, journey, data)
        arrived = data
        if not flight.hop_one:
            arrived = self.caches[flight.target].fetch_blocks(layers, flight.target_blocks)
        tokens = journey.digests[piece.layer, piece.block][1]
        for layer, found in zip(layers, digest_blocks(arrived, tokens), strict=True):
            if found != journey.digests[layer, piece.block][0]:
                return layer
        return None

    def _note_departure(self, flight: Flight, journey: Journey, data: torch.Tensor):
        """K/V that no prefill hook reported: all bytes of the blocks as they leave, or as they were spilled."""
        piece, tokens = flight.piece, data.shape[2] * data.shape[3]
        fetching = piece.source.role == "host"
        digests = self.take_spilled(piece.request) if fetching else digest_blocks(data, tokens)
        for layer, left in zip(range(piece.layer, piece.layer_end), digests, strict=True):
            journey.digests[layer, piece.block] = (left, tokens)
        if flight.lane.startswith("spill"):
            self.keep_spilled(journey, digests)

    def keep_spilled(self, journey: Journey, digests: list):
        """What a request's layers were when they left for host memory."""
        with self._changed:
            if not journey.aborted:  # else its request may have been forgotten already
                self._spilled[journey.send.request] = digests

    def take_spilled(self, request: int) -> list:
        return self._spilled.pop(request)

    def _make_streams(self, config: Config, parts: dict[str, Part]) -> dict[str, StreamLane]:
        """A lane's streams on the GPUs that it joins; none where all memories are the host's.

        On a split GPU its kernels run on decode's SMs, where each finds a place within microseconds: on prefill's a
        gather waits for the product in hand, and a product of a long prompt holds every SM to its end. Whole prompts,
        which nobody hides, are gathered on prefill's: decode would feel that much.
        """
        gpus = {name: cache.data.device for name, cache in self.caches.items() if on_gpu(cache)}
        if not gpus:
            return {}
        if any(link.dialled for link in config.links):
            check_triton()
        lanes = {}
        for name in self.traffic.lanes:
            kind, index = name.split()
            role = "prefill" if kind in ("direct", "down") else "decode"
            sms = "prefill" if kind == "direct" and config.route == "bulk" else "decode"
            here = gpus[Worker(role, int(index))]
            there = gpus[Worker("decode", 0)] if kind == "direct" else here
            peer = config.peer_access and reaches(here, there)
            lanes[name] = StreamLane(name, self, StreamCopier([here, there], self.shape.dtype, parts.get(sms), peer))
        return lanes

    def _fill_ring(self, config: Config):
        """Pinned memory is slow to get: slots take what a chunk's copy needs before the first one flies."""
        layers = min(self.traffic.layers_per_copy, self.shape.layers)
        tokens = min(config.chunk_tokens, config.prefill_blocks * config.block_size)
        nbytes = layers * tokens * self.shape.layer_token_bytes
        try:
            for slot in self._ring:
                slot.view((layers, 2, tokens, self.shape.kv_heads, self.shape.head_dim))
        except (MemoryError, RuntimeError) as error:
            raise EngineError(
                f"no room for the ring in pinned host memory: {len(self._ring) * nbytes:,} bytes asked "
                f"({len(self._ring)} slots of {nbytes:,}). Lower ring_slots, layers_per_copy or chunk_tokens of the "
                f"Config. {first_line(error)}"
            ) from None

    def _measure(self) -> RouteCost | None:
        """A small copy and a large one on the first hand-off lane, before anybody uses a block; None without one."""
        lane = next(iter(self._streams.values()))
        kind = lane.name.split()[0]
        source, target = self.caches.get(Worker("prefill", 0)), self.caches[Worker("decode", 0)]
        if kind not in ("direct", "down"):
            return None
        block_bytes = self.traffic.layer_block_bytes
        count = min(source.num_blocks, target.num_blocks, 8)
        layers = max(1, min(self.shape.layers, LARGE_BYTES // (count * block_bytes)))

        def route(layers: int, count: int) -> Route:
            shape, blocks = (layers, 2, count, *source.data.shape[3:]), tuple(range(count))
            if kind == "down":
                return Route(range(layers), source, blocks, None, (), self._ring[0].view(shape))
            return Route(range(layers), source, blocks, target, blocks, None)

        cost = measure(lane.copier, route(1, 1), route(layers, count), block_bytes)
        link = self.traffic.lanes[lane.name].wire.link
        return RouteCost(max(cost.fixed_s, link.fixed_s), min(cost.bandwidth, link.bandwidth))

    def clock_in_words(self) -> str:
        """How well events of GPUs stand on the host's clock; nothing to say where copies are timed by the host."""
        errors = [clock.error_ns for lane in self._streams.values() for clock in lane.copier.clocks]
        return f", copies timed to {max(errors) / 1e3:.1f} us" if errors else ""

    # ---- how a copy ends ---------------------------------------------------------------------------------------------

    def give_up(self, flight: Flight):
        self._failed(flight, f"copy on lane {flight.lane!r} was given up: the engine closes")

    def raised(self, flight: Flight, error: Exception):
        self._failed(flight, f"copy on lane {flight.lane!r} failed: {type(error).__name__}: {error}")

    def differs(self, flight: Flight, layer: int):
        piece = flight.piece
        where = f"layer {layer}, blocks {piece.block} to {piece.block_end - 1}"
        self._failed(flight, f"digest differs after hop {flight.lane!r}: request {piece.request}, {where}")

    def land(self, flight: Flight):
        with self._changed:
            landed = flight.landing_ns if flight.lane in self._streams else now_ns()
            notices = self.traffic.finish(flight)
            self._record(flight.span(landed))
            self._tell(notices)
        self.drive()

    def _failed(self, flight: Flight, error: str):
        with self._changed:
            self._tell(self.traffic.fail(flight, error, now_ns()))

    def _tell(self, notices: list):
        """Before anybody else changes the traffic: a landing must not be heard of after the end of its transfer."""
        for notice in notices:
            self._post(notice)
        self._changed.notify_all()

    def forget(self, request: int):
        """A request ended: the digests of what it spilled are of no more use."""
        self._spilled.pop(request, None)


def on_gpu(cache: KVCache) -> bool:
    return cache.device.type == "cuda"


def block_shape(shape: KVShape, piece: Piece, block_size: int) -> tuple[int, ...]:
    """Shape of a piece's bytes: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
    return (piece.layer_end - piece.layer, 2, len(piece.blocks), block_size, shape.kv_heads, shape.head_dim)
