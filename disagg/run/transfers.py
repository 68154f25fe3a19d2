"""Copies of K/V between memories: a thread a lane, real bytes, a ring of pinned slots, and a checksum at every stop.

Which copy goes next is decided in plan/transfer_scheduler. Order of one copy: it is ready (its layers are written and
its source blocks are pinned) → copy → the checksum of what arrived → the dial's deadline → the notice. Nothing is
announced before its bytes were checked, and a ring slot is given back only after hop two has read it.
Between memories of the host a lane's thread copies itself (run/host_lane). A lane with a GPU at one end keeps the same
order on a stream (run/gpu/stream_lane): the thread that makes a copy possible enqueues it, the lane's own lands it.
A landed copy has ended for the host, so any stream that is given work from then on sees its bytes.
Notebook: notebooks/00_start_here.ipynb.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from disagg.monitor.seams import Seams
from disagg.plan.commands import Abort, Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.errors import in_words
from disagg.plan.events import WorkerDied
from disagg.plan.link import LaneName
from disagg.plan.spans import Span
from disagg.plan.transfer_scheduler import Copy, Notice, TransferScheduler
from disagg.run.clock import now_ns
from disagg.run.gpu.device import Scratch, mark
from disagg.run.gpu.thread_priority import ask_for_short_slices
from disagg.run.host_lane import HostLanes
from disagg.run.kv_cache import KVCache
from disagg.run.reports import Post
from disagg.run.threads import Joinable

if TYPE_CHECKING:
    from disagg.run.gpu.sm_split import SMPartition
    from disagg.run.gpu.stream_lanes import StreamLanes


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
        post: Post,
        record: Callable[[Span], None],
        parts: "dict[str, SMPartition] | None" = None,
        seams: Seams | None = None,
    ) -> None:
        self.shape = next(iter(caches.values())).shape
        self.scheduler = TransferScheduler(config, layers=self.shape.layers, token_bytes=self.shape.token_bytes)
        self.config, self.caches, self.verify = config, caches, bool(config.verify_kv)
        self._post, self._record, self.seams = post, record, seams or Seams(post)
        self.lock = threading.RLock()  # of the scheduler
        self.closing = threading.Event()
        on_gpu = any(cache.on_gpu for cache in caches.values())
        self.ring = [Scratch(self.shape.dtype, pinned=on_gpu) for _ in range(self.scheduler.ring.total)]
        self._spilled: dict[int, list] = {}  # request → checksums of its layers in host memory
        self.lanes = self._gpu_lanes(parts or {}) if on_gpu else HostLanes(self)
        self._threads = [Joinable(target=self._run, args=(name,), name=f"disagg {name}") for name in self.lanes]

    def _gpu_lanes(self, parts: "dict[str, SMPartition]") -> "StreamLanes":
        from disagg.run.gpu.stream_lanes import StreamLanes  # needs what a GPU's copies need

        return StreamLanes(self, self.config, parts)

    def start(self) -> None:
        self.lanes.prepare(self.config)
        for thread in self._threads:
            thread.start()

    # ---- called by the engine's thread -------------------------------------------------------------------------------

    def send(self, command: Send) -> None:
        with self.lock:
            self.scheduler.send(command, now_ns())
        self._wake()

    def assign(self, command: Assign) -> None:
        with self.lock:
            self.scheduler.assign(command, now_ns())
        self._wake()

    def abort(self, command: Abort) -> None:
        with self.lock:
            self._post_all(self.scheduler.abort(command.transfer, now_ns()))
        self._wake()

    def retune(self, config: Config) -> None:
        with self.lock:
            self.scheduler.retune(config)

    def close(self) -> None:
        """Stops the lanes; copies under way are given up, and their transfers closed."""
        with self.lock:
            self.closing.set()
        for lane in self.lanes.values():
            lane.stop()
        for thread in self._threads:
            thread.join()
        self.ring.clear()  # pinned, and to be freed while the streams that copied it are there

    # ---- called by a prefill worker, from inside the layer -----------------------------------------------------------

    def hand_off(self, layer: int, departing: list[Departing], key: torch.Tensor, value: torch.Tensor) -> None:
        """This layer's K/V [tokens, kv_heads, head_dim] of a pass are in the cache; its chunks may travel from now on.

        On a GPU they will be when this thread's stream comes there; the host only launches what may go then.
        """
        left = [
            (self.lanes.checksum(key[d.rows], value[d.rows]), len(key[d.rows])) if self.verify else None
            for d in departing
        ]
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

    def keep_spilled(self, copy: Copy, checksums: list) -> None:
        """What a request's layers were when they left for host memory."""
        with self.lock:
            if not self.scheduler.progress[copy.transfer].aborted:  # else its request may have been forgotten already
                self._spilled[copy.request] = checksums

    def take_spilled(self, request: int) -> list:
        return self._spilled.pop(request)

    def forget(self, request: int) -> None:
        """A request ended: the checksums of what it spilled are of no more use."""
        self._spilled.pop(request, None)

    # ---- how a copy ends ---------------------------------------------------------------------------------------------

    def land(self, copy: Copy, at_ns: int) -> None:
        with self.lock:
            notices = self.scheduler.finish(copy)
            self._record(copy.span(at_ns))
            self._post_all(notices)
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
            self._post_all(self.scheduler.fail(copy, error, now_ns()))

    def _wake(self) -> None:
        for lane in self.lanes.values():
            lane.wake()

    def _post_all(self, notices: list[Notice]) -> None:
        """With the lock held: a landing must not be heard of after the end of its transfer."""
        for notice in notices:
            self._post(notice)

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
            raise
