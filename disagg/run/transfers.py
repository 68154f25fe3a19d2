"""Copies of K/V between memories: a thread a lane, real bytes, a ring of pinned slots, and a digest at every stop.

Which piece goes next is decided in plan/traffic. Order of one copy: the piece is ready (its layer is written and its
source blocks are pinned) → copy → the digest of what arrived → the dial's deadline → the notice. Nothing is announced
before its bytes were checked, and a ring slot is given back only after hop two has read it.
Between memories of the host a lane's thread copies itself (run/host_lane). A lane with a GPU at one end keeps the same
order on a stream (run/stream_lane): whoever makes a copy possible enqueues it, the lane's thread lands what has ended.
A landed copy has ended for the host, so any stream that is given work from then on sees its bytes.
Notebook: notebooks/00_start_here.ipynb.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from disagg.monitor.seams import Seams
from disagg.plan.commands import Abort, Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.copy_cost import RouteCost
from disagg.plan.errors import EngineError
from disagg.plan.events import WorkerDied
from disagg.plan.spans import Span
from disagg.plan.transfer_scheduler import ActiveCopy, CopyTask, TransferProgress, TransferScheduler
from disagg.run.checksum import checksum, digest
from disagg.run.clock import now_ns
from disagg.run.device import Scratch, mark
from disagg.run.gpu.link_dial import check_triton, triton_is_here
from disagg.run.gpu.measure_copy import measure
from disagg.run.gpu.peer_access import reaches
from disagg.run.gpu.sm_split import Part
from disagg.run.gpu.stream_copy import Route, StreamCopier
from disagg.run.gpu.stream_lane import StreamLane
from disagg.run.gpu.thread_priority import ask_for_short_slices
from disagg.run.host_lane import HostLane
from disagg.run.kv_cache import KVCache
from disagg.run.model.text import first_line
from disagg.run.threads import Joinable

HAND_OFF = (
    "direct",
    "down",
)  # lanes on which prefill's K/V leave; there is none where prefill and decode share a worker
LARGE_BYTES = 64 << 20  # of the larger copy that is timed where layers_per_copy is None


class Departing(NamedTuple):
    """A chunk of a pass whose K/V travel: its rows of the pass, and which block of its request they begin."""

    transfer: int
    first_block: int
    rows: slice


class Transfers:
    """Called by the engine's thread (`send`, `assign`, `abort`), by prefill workers (`hand_off`) and by lanes."""

    def __init__(
        self,
        config: Config,
        caches: dict[Worker, KVCache],
        post: Callable[[object], None],
        record: Callable[[Span], None],
        parts: dict[str, Part] | None = None,
        seams: Seams | None = None,
    ) -> None:
        shape = next(iter(caches.values())).shape
        self.traffic = TransferScheduler(config, layers=shape.layers, token_bytes=shape.token_bytes)
        self.config, self.caches, self.shape, self.verify = config, caches, shape, config.verify_kv
        self._post, self._record, self.seams = post, record, seams or Seams(post)
        self.lock = threading.RLock()  # of the traffic
        self.closing = threading.Event()
        self.on_gpu = any(map(on_gpu, caches.values()))
        self._ring = [Scratch(shape.dtype, pinned=self.on_gpu) for _ in range(self.traffic.ring.total)]
        self._spilled: dict[int, list] = {}  # request → digests of its layers in host memory
        self.lanes = self._make_lanes(parts or {})
        if self.on_gpu:
            self._fill_ring(config)
        self._threads = [Joinable(target=self._run, args=(name,), name=f"disagg {name}") for name in self.lanes]

    def start(self) -> None:
        """What a GPU needs once is done here, before workers capture graphs: a capture wants the device for itself.

        That is also what a compiler makes: links may be dialled later, and no copy must wait for it.
        """
        if self.on_gpu and triton_is_here():
            for lane in self.lanes.values():
                lane.copier.prepare_dial()
        if self.on_gpu and (cost := self._measure()) is not None:
            self.traffic.measured(self.config, cost.least_bytes)
        for thread in self._threads:
            thread.start()

    # ---- called by the engine's thread -------------------------------------------------------------------------------

    def send(self, command: Send) -> None:
        with self.lock:
            self.traffic.send(command, now_ns())
        self._wake()

    def assign(self, command: Assign) -> None:
        with self.lock:
            self.traffic.assign(command, now_ns())
        self._wake()

    def abort(self, command: Abort) -> None:
        with self.lock:
            self._tell(self.traffic.abort(command.transfer, now_ns()))
        self._wake()

    def check(self, config: Config) -> None:
        """ConfigError where a setting needs what is not installed."""
        if self.on_gpu and self.traffic.lanes and any(link.dialled for link in config.links):
            check_triton()

    def retune(self, config: Config) -> None:
        with self.lock:
            self.traffic.retune(config)

    def close(self) -> None:
        """Stops the lanes; copies in the air are given up, and their transfers closed."""
        with self.lock:
            self.closing.set()
        for lane in self.lanes.values():
            lane.stop()
        for thread in self._threads:
            thread.join()
        self._ring.clear()  # pinned, and to be freed while the streams that copied it are there

    # ---- called by a prefill worker, from inside the layer -----------------------------------------------------------

    def hand_off(self, layer: int, departing: list[Departing], key: torch.Tensor, value: torch.Tensor) -> None:
        """This layer's K/V [tokens, kv_heads, head_dim] of a pass are in the cache; its chunks may travel from now on.

        On a GPU they will be when this thread's stream comes there; the host only launches what may go then.
        """
        summed = checksum if self.on_gpu else digest
        left = [(summed(key[d.rows], value[d.rows]), len(key[d.rows])) if self.verify else None for d in departing]
        written = mark(key.device)
        lanes = set()
        with self.lock:
            for chunk, sums in zip(departing, left, strict=True):
                journey = self.traffic.journeys.get(chunk.transfer)
                if journey is None:
                    continue  # the request ended meanwhile
                journey.digests[layer, chunk.first_block] = sums
                journey.written[layer, chunk.first_block] = written
                if self.traffic.hand_off(chunk.transfer, layer, now_ns()) is not None:
                    lanes.add(self.traffic.lane_of(journey).name)
        if lanes:
            self.drive(lanes)

    # ---- called by lanes ---------------------------------------------------------------------------------------------

    def drive(self, names: Iterable[str] | None = None) -> None:
        """After a change of the traffic: what may start now on these lanes, or on all, does."""
        for name, lane in self.lanes.items():
            if names is None or name in names:
                with self._watched(name):
                    lane.drive()

    def start_copy(self, name: str) -> ActiveCopy | None:
        """The lane's next copy; None where nothing may start."""
        with self.lock:
            return None if self.closing.is_set() else self.traffic.start(name)

    def ring_view(self, flight: ActiveCopy) -> torch.Tensor:
        """The slot's buffer in the shape of the piece; a larger piece than ever before enlarges it."""
        return self._ring[flight.slot].view(self.bytes_of(flight.piece))

    def bytes_of(self, piece: CopyTask) -> tuple[int, ...]:
        """Shape of a piece's bytes: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
        shape, block = self.shape, self.config.block_size
        return (piece.layer_end - piece.layer, 2, len(piece.blocks), block, shape.kv_heads, shape.head_dim)

    def keep_spilled(self, journey: TransferProgress, digests: list) -> None:
        """What a request's layers were when they left for host memory."""
        with self.lock:
            if not journey.aborted:  # else its request may have been forgotten already
                self._spilled[journey.send.request] = digests

    def take_spilled(self, request: int) -> list:
        return self._spilled.pop(request)

    def forget(self, request: int) -> None:
        """A request ended: the digests of what it spilled are of no more use."""
        self._spilled.pop(request, None)

    # ---- how a copy ends ---------------------------------------------------------------------------------------------

    def land(self, flight: ActiveCopy, at_ns: int) -> None:
        with self.lock:
            notices = self.traffic.finish(flight)
            self._record(flight.span(at_ns))
            self._tell(notices)
        self.drive()

    def give_up(self, flight: ActiveCopy) -> None:
        self._failed(flight, f"copy on lane {flight.lane!r} was given up: the engine closes")

    def raised(self, flight: ActiveCopy, error: Exception) -> None:
        self._failed(flight, f"copy on lane {flight.lane!r} failed: {type(error).__name__}: {error}")

    def differs(self, flight: ActiveCopy, layer: int) -> None:
        piece = flight.piece
        where = f"layer {layer}, blocks {piece.block} to {piece.block_end - 1}"
        self._failed(flight, f"digest differs after hop {flight.lane!r}: request {piece.request}, {where}")

    def _failed(self, flight: ActiveCopy, error: str) -> None:
        with self.lock:
            self._tell(self.traffic.fail(flight, error, now_ns()))

    def _wake(self) -> None:
        for lane in self.lanes.values():
            lane.wake()

    def _tell(self, notices: list) -> None:
        """Before anybody else changes the traffic: a landing must not be heard of after the end of its transfer."""
        for notice in notices:
            self._post(notice)

    # ---- threads and lanes -------------------------------------------------------------------------------------------

    def _run(self, name: str) -> None:
        ask_for_short_slices()
        with self._watched(name):
            self.lanes[name].serve()

    @contextlib.contextmanager
    def _watched(self, name: str):
        """Around all that is done for a lane, by whatever thread: the controller hears of its death."""
        try:
            yield
        except BaseException as error:
            self._post(WorkerDied(Worker(f"lane {name}", 0), f"{type(error).__name__}: {error}"))
            raise

    def _make_lanes(self, parts: dict[str, Part]) -> dict[str, HostLane | StreamLane]:
        """On the host, or on streams of the GPUs that a lane joins.

        On a split GPU their kernels run on decode's SMs, where each finds a place within microseconds: on prefill's a
        gather waits for the product in hand, and a product of a long prompt holds every SM to its end. Whole prompts,
        which nobody hides, are gathered on prefill's: decode would feel that much.
        """
        if not self.on_gpu:
            return {name: HostLane(name, self) for name in self.traffic.lanes}
        config = self.config
        self.check(config)
        gpus = {name: cache.device for name, cache in self.caches.items() if on_gpu(cache)}
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

    def _fill_ring(self, config: Config) -> None:
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
        lane = next((lane for name, lane in self.lanes.items() if name.startswith(HAND_OFF)), None)
        if lane is None:
            return None
        source, target = self.caches[Worker("prefill", 0)], self.caches[Worker("decode", 0)]
        block_bytes = self.traffic.layer_block_bytes
        count = min(source.num_blocks, target.num_blocks, 8)
        layers = max(1, min(self.shape.layers, LARGE_BYTES // (count * block_bytes)))

        def route(layers: int, count: int) -> Route:
            shape, blocks = (layers, 2, count, *source.data.shape[3:]), tuple(range(count))
            if lane.name.startswith("down"):
                return Route(range(layers), source, blocks, None, (), self._ring[0].view(shape))
            return Route(range(layers), source, blocks, target, blocks, None)

        cost = measure(lane.copier, route(1, 1), route(layers, count), block_bytes)
        return cost.dialled(self.traffic.lanes[lane.name].wire.link)

    def clock_in_words(self) -> str:
        """How well events of GPUs stand on the host's clock; nothing to say where copies are timed by the host."""
        if not self.on_gpu:
            return ""
        errors = [clock.error_ns for lane in self.lanes.values() for clock in lane.copier.clocks]
        return f", copies timed to {max(errors) / 1e3:.1f} us" if errors else ""


def on_gpu(cache: KVCache) -> bool:
    return cache.device.type == "cuda"
