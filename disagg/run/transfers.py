"""Copies of K/V between memories: a thread a lane, real bytes, a ring in host memory, and a checksum at every stop.

Order of one copy: its layers are written and its source blocks pinned → copy → the checksum of what arrived → the
dial's deadline → the notice. A ring slot is free only after hop two has read it.
Notebook: notebooks/00_start_here.ipynb.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from disagg.monitor.seams import Seams
from disagg.plan.commands import Abort, Assign, Retuned, Send, Worker
from disagg.plan.config import Config
from disagg.plan.errors import in_words
from disagg.plan.events import WorkerDied
from disagg.plan.link import LaneName, LaneRole
from disagg.plan.transfer_scheduler import Copy, Notice, TransferScheduler
from disagg.run.checksum import digest
from disagg.run.clock import now_ns
from disagg.run.gpu.device import Scratch, mark
from disagg.run.gpu.thread_priority import ask_for_short_slices
from disagg.run.host_lane import HostLane
from disagg.run.kv_cache import KVCache
from disagg.run.reports import Post
from disagg.run.threads import Joinable
from disagg.trace.spans import Span, span_of

if TYPE_CHECKING:
    from disagg.run.gpu.sm_split import SMPartition
    from disagg.run.gpu.stream_lanes import StreamLanes


class Departing(NamedTuple):
    """A chunk of a pass whose K/V travel: its rows of the pass, and which block of its request they begin."""

    transfer: int
    first_block: int
    rows: slice


class Transfers:
    """Called by the engine's thread (`obey`), by prefill workers (`hand_off`) and by lanes."""

    def __init__(
        self,
        config: Config,
        caches: dict[Worker, KVCache],
        post: Post,
        record: Callable[[Span], None],
        parts: "dict[str, SMPartition] | None" = None,
        seams: Seams | None = None,
    ) -> None:
        self.shape = next(iter(caches.values())).shape
        self.scheduler = TransferScheduler(config, layers=self.shape.layers, token_bytes=self.shape.token_bytes)
        self.config, self.caches, self.verify = config, caches, bool(config.verify_kv)
        self._post, self.record, self.seams = post, record, seams or Seams(post)
        self.lock = threading.RLock()  # of the scheduler
        self._changed = threading.Condition(self.lock)  # a transfer went on: for passes in a blocking hand-off
        self.closing = threading.Event()
        self._let_go = False  # no pass waits any more: a lane has died, or the engine closes
        on_gpu = any(cache.on_gpu for cache in caches.values())
        pinned = on_gpu and config.pinned
        self.ring = [Scratch(self.shape.dtype, pinned) for _ in range(self.scheduler.ring.total)]
        self.spilled: dict[int, list] = {}  # request → checksums of its layers in host memory
        self.streams = self._stream_lanes(parts or {}) if on_gpu else None
        host_lanes = {} if on_gpu else {name: HostLane(name, self) for name in self.scheduler.lanes}
        self.lanes: StreamLanes | dict[LaneName, HostLane] = self.streams or host_lanes
        self._threads = [Joinable(target=self._run, args=(name,), name=f"disagg {name}") for name in self.lanes]

    def _stream_lanes(self, parts: "dict[str, SMPartition]") -> "StreamLanes":
        from disagg.run.gpu.stream_lanes import StreamLanes  # needs what a GPU's copies need

        return StreamLanes(self, self.config, parts)

    def start(self) -> None:
        if self.streams:
            self.streams.prepare(self.config)
        for thread in self._threads:
            thread.start()

    def probe(self) -> float:
        """ns a byte of a copy between a decode device and host memory, before any block is in use; the shortest."""
        if self.streams:
            return 1e9 / self.streams[LaneName(LaneRole.SPILL, 0)].measure().bandwidth
        source, target = self.caches[Worker("decode", 0)], self.caches[Worker("host", 0)]
        blocks, layers, took = tuple(range(min(source.num_blocks, target.num_blocks, 8))), range(self.shape.layers), []
        for _ in range(3):
            began = now_ns()
            target.write_blocks(layers, blocks, source.read_blocks(layers, blocks))
            took.append(now_ns() - began)
        return min(took) / (len(blocks) * len(layers) * self.scheduler.layer_block_bytes)

    # ---- called by the engine's thread -------------------------------------------------------------------------------

    def obey(self, command: Send | Assign | Abort | Retuned) -> None:
        with self.lock:
            match command:
                case Send():
                    self.scheduler.send(command, now_ns())
                case Assign():
                    self.scheduler.assign(command, now_ns())
                case Abort():
                    self.post_all(self.scheduler.abort(command.transfer, now_ns()))
                case Retuned():
                    self.scheduler.retune(command.config)
            self._changed.notify_all()
        for lane in self.lanes.values():
            lane.wake()

    def let_go(self) -> None:
        """No pass waits in a hand-off from here on."""
        with self.lock:  # itself: an interrupt leaves a Condition's `with` locked
            self._let_go = True
            self._changed.notify_all()
        for lane in self.streams.values() if self.streams else ():
            lane.copier.stop()

    def close(self) -> None:
        """Stops the lanes; copies under way are given up, and their transfers closed."""
        self.let_go()
        with self.lock:
            self.closing.set()
        for lane in self.lanes.values():
            lane.stop()
        for thread in self._threads:
            thread.join()
        self.ring.clear()  # pinned on a GPU, and to be freed while the streams that copied it are there

    # ---- called by a prefill worker, from inside the layer -----------------------------------------------------------

    def hand_off(self, layer: int, departing: list[Departing], key: torch.Tensor, value: torch.Tensor) -> None:
        """This layer's K/V [tokens, kv_heads, head_dim] of a pass are in the cache; its chunks may travel from now on.

        On a GPU they will be when this thread's stream comes there; the host only launches what may go then.
        """
        checksum = self.streams.checksum if self.streams else digest
        left = [(checksum(key[d.rows], value[d.rows]), len(key[d.rows])) if self.verify else None for d in departing]
        written = mark(key.device)
        lanes = set()
        with self.lock:
            for chunk, sums in zip(departing, left, strict=True):
                progress = self.scheduler.progress.get(chunk.transfer)
                if progress is None:
                    continue  # the request ended meanwhile
                if sums is not None:
                    progress.digests[layer, chunk.first_block] = sums
                progress.written[layer, chunk.first_block] = written
                if self.scheduler.hand_off(chunk.transfer, layer, now_ns()) is not None:
                    lanes.add(progress.lane())
        if lanes:
            self.drive(lanes)

    def wait_for(self, departing: list[Departing]) -> None:
        """A blocking hand-off: returns when these transfers' copies have landed, all hops of them, as far as they can
        start. One that fails or is aborted is not waited for, nor is any once `let_go` was called."""
        with self._changed:
            while not self._let_go and any(self.scheduler.holds_up(each.transfer) for each in departing):
                self._changed.wait()

    # ---- called by lanes ---------------------------------------------------------------------------------------------

    def drive(self, names: Iterable[LaneName] | None = None) -> None:
        """After a change of the scheduler's state: what may start now on these lanes, or on all, does."""
        for name, lane in self.lanes.items():
            if names is None or name in names:
                with self._watched(name):
                    lane.drive()

    def start_copy(self, name: LaneName) -> Copy | None:
        with self.lock:
            return None if self.closing.is_set() else self.scheduler.start(name)

    # ---- how a copy ends ---------------------------------------------------------------------------------------------

    def land(self, copy: Copy, at_ns: int) -> None:
        with self.lock:
            notices = self.scheduler.finish(copy)
            self.record(span_of(copy, at_ns))
            self.post_all(notices)
        self.drive()

    def give_up(self, copy: Copy) -> None:
        self._failed(copy, f"copy on lane '{copy.lane}' was given up: the engine closes")

    def raised(self, copy: Copy, error: Exception) -> None:
        self._failed(copy, f"copy on lane '{copy.lane}' failed: {in_words(error)}")

    def differs(self, copy: Copy, layer: int) -> None:
        where = f"layer {layer}, blocks {copy.block} to {copy.block_end - 1}"
        self._failed(copy, f"digest differs after hop '{copy.lane}': request {copy.request}, {where}")

    def _failed(self, copy: Copy, error: str) -> None:
        with self.lock:
            self.post_all(self.scheduler.fail(copy, error, now_ns()))

    def post_all(self, notices: list[Notice]) -> None:
        """With the lock held: a landing must not be heard of after the end of its transfer."""
        for notice in notices:
            self._post(notice)
        self._changed.notify_all()

    # ---- threads and lanes -------------------------------------------------------------------------------------------

    def _run(self, name: LaneName) -> None:
        ask_for_short_slices()
        with self._watched(name):
            self.lanes[name].serve()

    @contextlib.contextmanager
    def _watched(self, name: LaneName) -> Iterator[None]:
        """Around all that any thread does for a lane: the controller hears of its death."""
        try:
            yield
        except BaseException as error:
            self._post(WorkerDied(Worker(f"lane {name}", 0), in_words(error)))
            self.let_go()
            raise
