"""The bug lab: ten bugs that real serving systems had, each put back into one method for as long as you look at it.

    with bug("freed early"):
        ...  # Table.release frees blocks that a copy still reads
    print(run_bug("freed early").caught_by)

Nothing here is a switch in the shipped code: `bug` replaces a method of its class and puts it back.
Notebook: notebooks/08_bug_lab.ipynb.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from disagg.course.buglab.lab_worlds import BYTES_PER_S, Simulated, Streams, Ways
from disagg.monitor.violation import InvariantViolation
from disagg.plan.blocks import Table
from disagg.plan.commands import Ended, Worker
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.notices import Notices
from disagg.plan.request import Finish, Request, Stage
from disagg.plan.transfer import LayerBlocks
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.plan.worker_state import DecodeWorkerState
from disagg.run.gpu.stream_copy import StreamCopier
from disagg.trace.results import Run
from disagg.twin.simulated_engine import fake_token

log = logging.getLogger("disagg.buglab")

# ---- the ten replacements: each takes the place of one method --------------------------------------------------------

shipped_launch, shipped_prefilled = StreamCopier.launch, KVTransfers.prefilled


def event_first(self: StreamCopier, *copy: Any, **fields: Any) -> Any:
    """In place of StreamCopier.launch: the event that says "ended" is recorded, and then the copy is enqueued."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(self.streams[-1])
    enqueued = shipped_launch(self, *copy, **fields)
    return enqueued._replace(start=event, end=event, seen=event, written=None)


def gives_way(self: KVTransfers, turn: Any, record: Any) -> None:
    """In place of KVTransfers.prefilled: a hand-off on its way to host memory gives its blocks to the next prompt."""
    transfer = self.state.open_transfer(record)
    shipped_prefilled(self, turn, record)
    if transfer is not None and record.host_table is not None and record.prefill_table is not None:
        transfer.source.unpin(transfer.id)
        record.drop("prefill_table")


def only_dropped(self: DecodeWorkerState, record: Any, table: Table) -> None:
    """In place of DecodeWorkerState.pin_in_flight: the token of a row that ends is dropped, and no pass or step in
    flight holds its blocks."""
    for step in self.steps:
        if record.id in step.requests:
            step.dropped.add(record.id)


def failed_is_landed(self: Notices, turn: Any, transfer: Any, error: str) -> bool:
    """In place of Notices._failed: a transfer that has come to an end is taken for one that landed."""
    if not transfer.aborted:
        self.kv_transfers.complete(turn, transfer)
    return True


def ending_is_freeing(self: Table) -> None:
    """In place of Table.release: nobody asks what still reads or writes the blocks."""
    self.released = True
    self.pins.clear()
    self._free()


def keeps_what_it_has(self: KVTransfers, turn: Any, record: Any) -> None:
    """In place of KVTransfers.recompute: its blocks on the decode device are kept, for it will need them again."""
    state = self.state
    state.counts["recomputes"] += 1
    record.drop("host_table")
    record.transfer, record.prefilled, record.prefill_target = None, 0, len(record.tokens)
    state.move(turn, record, Stage.QUEUED)
    state.enqueue(record)


def only_logged(self: TransferScheduler, copy: Any, error: str, now_ns: int) -> list:
    """In place of TransferScheduler.fail: nothing else of the transfer starts, and nothing but the log tells it."""
    progress = self.progress[copy.transfer]
    progress.running -= 1
    progress.failed = True
    self._drop_slots([copy], now_ns)
    self._drop_waiting(progress, now_ns)
    log.info("transfer %d: %s", copy.transfer, error)
    return []


def counted(self: LayerBlocks, part: Any) -> bool:
    """In place of LayerBlocks.add: how many came is counted, not which; each one fills the next free layer."""
    for block in range(part.block, part.block_end):
        for _ in range(part.layer, part.layer_end):
            free = [layer for layer, bits in enumerate(self.bits) if not bits >> block & 1]
            if free:
                self.bits[free[0]] |= 1 << block
    return True


def whole_blocks_only(self: KVTransfers, turn: Any, record: Any, stop: int, layers_ready: Any) -> None:
    """In place of KVTransfers.offer: tokens are divided by the size of a block, and what is left over stays behind."""
    state, size = self.state, self.state.config.block_size
    if record.transfer is None:
        self._open(state.config.route, record, record.prefill_table, record.prefill_target // size)
        state.wanting.push(record)
    transfer = state.transfers[record.transfer]
    self._send(turn, transfer, Worker("prefill", record.prefill_worker), stop // size, layers_ready)


def frees_again(self: Controller, turn: Any, event: Any) -> bool:
    """In place of Controller._cancel: a request that has ended, but whose blocks wait for a step, ends once more."""
    state, record = self.state, self.state.records.get(event.request)
    if record is not None:
        state.end(turn, record, Finish.CANCELLED)
        return True
    waiting = [table for worker in state.decodes for step in worker.steps for table in step.pinned]
    for table in waiting:
        if table.owner == event.request:
            table._free()  # and the step will do so too
            turn.commands.append(Ended(event.request, Finish.CANCELLED, None, turn.now_ns, ()))
    return True


#: What may have to come before what.
MOMENTS = {
    "all landed": "every block of every layer has landed",
    "blocks freed": "the blocks are free for the next request",
    "blocks given up": "blocks of one memory are given up",
    "blocks waited for": "blocks of another memory are waited for",
    "bytes received": "the bytes have been received on their stream",
    "bytes written": "the bytes are in the blocks",
    "copies ended": "the last copy that reads or writes the blocks has ended",
    "copy done": "the copy counts as done",
    "copy enqueued": "the copy is put on the stream",
    "decode starts": "decode reads the blocks",
    "event recorded": "the event that others wait for is recorded",
    "failure told": "the failure is told to whoever waits",
    "hand-off whole": "the hand-off counts as whole",
    "last block sent": "the last, partly filled block is sent",
    "step ended": "the step that still writes the blocks has ended",
    "stream goes on": "the stream that decode waits for goes on",
    "waiting ends": "the other side stops waiting",
}

# ---- what is known of each -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """One bug: what it replaces, where it happened for real, and what must catch it."""

    name: str
    owner: type
    method: str
    replacement: Callable
    detector: str
    scene: Simulated | Streams
    before: str  # the missing edge, by names of MOMENTS: this must come first,
    after: str  # and this only then
    symptom: str  # what a user sees
    threads: tuple[str, ...]  # project and number
    story: str  # what happened there

    @property
    def edge(self) -> str:
        """The missing ordering edge, in words."""
        return f"{MOMENTS[self.before]} → {MOMENTS[self.after]}"


@dataclass(frozen=True)
class BugOutcome:
    """The result of `run_bug`: what a user would get, and the detectors' violation."""

    bug: str
    run: Run | None
    facts: tuple[str, ...]
    breach: InvariantViolation | None
    error: str | None

    @property
    def caught_by(self) -> str | None:
        return None if self.breach is None else self.breach.detector

    @property
    def silent(self) -> bool:
        """Nothing failed and nothing stopped: a look for errors alone finds none."""
        return not (self.error or any("failed" in fact for fact in self.facts))


@contextlib.contextmanager
def bug(name: str) -> Iterator[Bug]:
    """While it is open, one shipped method is replaced by its broken form; then it is put back, whatever happened."""
    found = bugs()
    if name not in found:
        raise ValueError(f"there is no bug {name!r}; known: {', '.join(found)}")
    one = found[name]
    with mock.patch.object(one.owner, one.method, one.replacement):
        yield one


def run_bug(name: str) -> BugOutcome:
    """Plays the bug's scene as a user would see it, and once more with the detectors."""
    with bug(name) as one:
        watched = one.scene.play(watched=True)
        seen = one.scene.play(watched=False) if isinstance(one.scene, Simulated) else watched
    return BugOutcome(name, seen.run, seen.facts, watched.breach, seen.error or watched.error)


def same(count: int, prompt: int, new: int, every_ms: float = 0.0) -> tuple[Request, ...]:
    """Requests of equal lengths, one after the other."""
    return tuple(Request([1] * prompt, new, every_ms * index / 1e3) for index in range(count))


def small(preset: str = "streamed", **changes: Any) -> Config:
    """A preset with a slow link and pools of a few blocks."""
    sizes = dict(prefill_blocks=8, decode_blocks=16, chunk_tokens=64, layers_per_copy=1)
    return Config.preset(preset, **{"link": BYTES_PER_S, **sizes, **changes})


_SMALL, _STAGED = small(), small("staged")
_CANCELLED = Simulated(
    small(prefill_blocks=5, decode_blocks=5), (*same(1, 64, 6), Request([1] * 64, 8, 0.021)), cancels=((0, 20.0),)
)
_FETCHED = small("paged", policy=Ways(ways=("fetch",)), prefill_blocks=5, decode_blocks=6, host_blocks=16)
_PARKED = Simulated(_FETCHED, same(3, 64, 16, 5))
_BESIDE_A_PROMPT = Simulated(
    small("conditional", policy=Ways(ways=("split", "stay")), decode_blocks=11, chunk_tokens=128),
    (Request([1] * 32, 20), Request([1] * 120, 4, 0.02), Request([1] * 32, 6, 0.029)),
    cancels=((0, 36.0),),
)
_AT_ITS_END = Simulated(
    _SMALL,
    (*same(1, 32, 20), Request([1] * 32, 20, 0.005)),
    cancels=((0, 65.0),),
    eos_ids=frozenset({fake_token(0, 4)}),
    steps_in_flight=2,
)
ALL = (
    Bug(
        "event first", StreamCopier, "launch", event_first, "Digest", Streams(),
        "copy enqueued", "event recorded",
        "The answer begins well and then makes no sense. Nothing failed, and a second try is often fine.",
        ("LLMServe/DistServe, worker.py, swap_blocks",),
        "The event that readers wait for was recorded on the stream before the swap it was to cover.",
    ),
    Bug(
        "parked early", KVTransfers, "prefilled", gives_way, "InUse",
        _PARKED,
        "copies ended", "blocks freed",
        "While the decode device is full, some answers turn into nonsense after their first token. Nothing failed.",
        ("vllm-project/vllm #52360", "LMCache/LMCache PR 4955"),
        "Blocks went to the next request while a store to host memory, which nobody waited for, still read them.",
    ),
    Bug(
        "rows let go", DecodeWorkerState, "pin_in_flight", only_dropped, "InUse", _BESIDE_A_PROMPT,
        "step ended", "blocks freed",
        "One user presses Stop while another's long prompt is read, and the answer of a third turns into nonsense.",
        ("vllm-project/vllm PR 45357", "vllm-project/vllm-ascend #14055"),
        "A request ended while a step that wrote its K/V was in flight; K/V of another were received into its blocks.",
    ),
    Bug(
        "partial", Notices, "_failed", failed_is_landed, "Landing",
        Simulated(_STAGED, same(1, 64, 6), fails=6),
        "all landed", "decode starts",
        "The connection broke for a moment. The answer came in full and without an error, and it is nonsense.",
        ("vllm-project/vllm PR 40364", "vllm-project/vllm PR 52232"),
        "A load that was aborted or had failed half-way was treated like one that had finished.",
    ),
    Bug(
        "freed early", Table, "release", ending_is_freeing, "InUse", _CANCELLED,
        "copies ended", "blocks freed",
        "One user presses Stop, and another one's answer turns into nonsense.",
        ("vllm-project/vllm PR 56104", "NVIDIA/TensorRT-LLM #12542", "sgl-project/sglang PR 27731"),
        "Blocks went to the next request while a transfer still read or wrote them.",
    ),
    Bug(
        "two-sided", KVTransfers, "recompute", keeps_what_it_has, "Watchdog",
        Simulated(small(prefill_blocks=8, decode_blocks=10), same(6, 60, 40, 20)),
        "blocks given up", "blocks waited for",
        "Under load everything stands still. No request fails by itself, and no device does anything.",
        ("sgl-project/sglang #9726", "NVIDIA/TensorRT-LLM PR 12313"),
        "What would have given blocks back waited for blocks that were held: a circle that no time resolves.",
    ),
    Bug(
        "lost notice", TransferScheduler, "fail", only_logged, "Watchdog",
        Simulated(_SMALL, same(2, 64, 6, 10), fails=3),
        "failure told", "waiting ends",
        "One request hangs for two minutes and then times out. The others are fine.",
        ("vllm-project/vllm PR 50754", "vllm-project/vllm #46283"),
        "A transfer that could not be started was logged, and the receiver went on waiting for its notices.",
    ),
    Bug(
        "counted", LayerBlocks, "add", counted, "Ledger", Simulated(_STAGED, same(1, 64, 6), twice=2),
        "all landed", "decode starts",
        "After a short network trouble one answer is nonsense. Nothing failed.",
        ("vllm-project/vllm #51786", "vllm-project/vllm #43226"),
        "Notices were counted up to an expected number, so a repeated one stood for a missing one.",
    ),
    Bug(
        "last block", KVTransfers, "offer", whole_blocks_only, "Landing", Simulated(_SMALL, same(1, 100, 6)),
        "last block sent", "hand-off whole",
        "Answers ignore the end of the question, except where its length is a multiple of 16.",
        ("LMCache/LMCache #2540", "vllm-project/vllm PR 46972"),
        "Only whole blocks or chunks were saved and sent; what was left over at the end was not.",
    ),
    Bug(
        "ends twice", Controller, "_cancel", frees_again, "OneEnd", _AT_ITS_END,
        "step ended", "blocks freed",
        "Someone closes the page just as the answer ends, and the whole server goes down.",
        ("vllm-project/vllm PR 25067",),
        "An abort that came after a request had finished freed blocks that were still kept for a transfer.",
    ),
)  # fmt: skip


def bugs() -> dict[str, Bug]:
    return {one.name: one for one in ALL}
