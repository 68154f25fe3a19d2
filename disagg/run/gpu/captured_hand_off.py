"""The hand-off of captured passes (hand_off_streams.py puts it on streams): what a pass takes, how its copies are
launched, and how they land."""

import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from disagg.plan.commands import Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.events import Landed
from disagg.plan.link import LaneName, LaneRole, Link
from disagg.plan.transfer_scheduler import EVER, FIRST_LANE, Copy, Notice
from disagg.run.clock import now_ns
from disagg.run.gpu.device_clock import timer_of
from disagg.run.gpu.hand_off_streams import Steps
from disagg.run.gpu.hand_off_turn import HandOffTurn, Travel
from disagg.run.gpu.stream_memory import reason_against
from disagg.run.model.batch import PrefillBatch
from disagg.run.transfers import Departing, Transfers
from disagg.trace.spans import Span, span_of

TURNS = 2


class Taken(NamedTuple):
    """A pass's hand-off, which needs no thread of the host."""

    rows: list[slice]  # of each transfer
    sent: list[tuple[Send, Assign]]
    parts: list[list[int]]  # of each link's time in a copy, up to each transfer: a link takes each on its own
    latency_ns: int
    travel: Travel


class CapturedHandOff:
    """Of one prefill worker, to the one decode worker that it sends to."""

    def __init__(self, transfers: Transfers, config: Config, source: Worker, target: Worker) -> None:
        assert transfers.streams is not None and config.chunk_tokens
        self.transfers, self.to = transfers, target
        self.names = [LaneName(FIRST_LANE[config.route], source.index)]
        if config.route == "staged":
            self.names.append(LaneName(LaneRole.UP, target.index))
        self.source, self.target = transfers.caches[source], transfers.caches[target]
        self.lanes = [transfers.streams[name] for name in self.names]
        group, most = transfers.scheduler.layers_per_copy, config.chunk_tokens
        copiers = [lane.copier for lane in self.lanes]
        self.steps = Steps(self.source, self.target, copiers, transfers.ring, group, most)
        sides = list(dict.fromkeys([self.source.device, self.target.device][: len(self.names)]))
        sizes = most, transfers.shape.layers, len(self.names), transfers.verify, sides
        self.turns = [HandOffTurn(*sizes) for _ in range(TURNS)]
        self._next = 0

    @classmethod
    def of(cls, transfers: Transfers, config: Config, source: Worker) -> "CapturedHandOff | None":
        """None where a pass's layers don't stream, have several targets, or need the host's threads."""
        others = [Worker("decode", index) for index in range(config.decode_workers) if source != ("decode", index)]
        if source.role != config.sender[0] or config.route == "bulk" or len(others) != 1 or transfers.streams is None:
            return None
        copier = transfers.streams[LaneName(FIRST_LANE[config.route], source.index)].copier
        if not config.pinned or not (config.route == "staged" or copier.by_kernel):
            return None
        if any(reason_against(transfers.caches[worker].device) for worker in (source, others[0])):
            return None
        try:
            return cls(transfers, config, source, others[0])
        except EngineError as error:
            warnings.warn(f"Passes that hand off run without graphs: {error}", RuntimeWarning, stacklevel=2)
            return None

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def free_turn(self) -> int | None:
        """Which the next pass may use; None while the copies of the last but one go on."""
        if self.turns[self._next].busy:
            return None
        self.turns[self._next].answered.clear()
        return self._next

    def _take(self, departing: Sequence[Departing], slots: np.ndarray) -> Taken | None:
        """Takes lanes and ring for a pass; None where others have them, or a target is missing."""
        scheduler, size = self.transfers.scheduler, self.source.block_size
        with self.transfers.lock:
            going = [each for each in departing if each.transfer in scheduler.progress]
            if self.transfers.closing.is_set() or not going:
                return None
            onto, sent = np.full(len(slots), -1), []
            for each in going:
                progress = scheduler.progress[each.transfer]
                if progress.assign is None:
                    return None
                sent.append((progress.send, progress.assign))
                places = np.arange(each.rows.stop - each.rows.start)
                blocks = np.array(progress.assign.blocks[each.first_block :])
                onto[each.rows] = blocks[places // size] * size + places % size
            sizes = [len(send.blocks) * scheduler.layer_block_bytes for send, _ in sent]
            group = self.steps.group_of(scheduler.layers_per_copy, sum(sizes), len(slots), scheduler.least_bytes)
            if not group:
                return None
            links = [scheduler.lanes[name].clock.link for name in self.names]
            busy = [partial(time_on, link, sizes) if link.dialled else None for link in links]
            travel = Travel(slots, onto, scheduler.layers, group, busy)
            parts = [list(accumulate((link.occupancy_ns(group * size) for size in sizes), initial=0)) for link in links]
            parts = [each if each[-1] else list(accumulate(sizes, initial=0)) for each in parts]
            transfers = [each.transfer for each in going]
            if not scheduler.take_pass(transfers, self.to, self.names, len(travel.copies)):
                return None
        return Taken([each.rows for each in going], sent, parts, round(1e9 * links[-1].latency_s), travel)

    def launch(self, number: int, departing: Sequence[Departing], slots: np.ndarray) -> bool:
        """After the pass's own graph: from here on its layers leave as they are stored. False where they can't."""
        turn, taken = self.turns[number], self._take(departing, slots)
        if taken is None:
            turn.stored.zero_()  # in the order of the pass's stream: the next pass of this turn begins without them
            return False
        turn.busy, self._next = True, (number + 1) % TURNS
        turn.flags.zero_()
        error: Exception | None = None
        try:
            self.steps.enqueue(turn, taken.travel)
        except Exception as raised:  # what is on the streams waits for nothing that is not
            error = raised
        self.lanes[0].put(PassCopies(self, turn, taken, self.steps.ended, error))
        return True

    def send_late(self, batch: PrefillBatch, departing: Sequence[Departing]) -> None:
        """Hands off all layers after their pass, by the host, where graphs could not."""
        slots = torch.as_tensor(batch.slots(self.source.block_size)).to(self.source.device)
        for layer in range(self.transfers.shape.layers):
            key, value = (plane.flatten(0, 1) for plane in self.source.layer(layer))
            if self.transfers.verify:
                key, value = key[slots], value[slots]
            self.transfers.hand_off(layer, list(departing), key, value)

    def prepare(self, stored: Tensor, seen: Tensor) -> None:
        """Before the first pass; stored [1 + TURNS, layers] is where a pass's layers' times appear, and seen, in pinned
        memory, where they stand after it."""
        for number, turn in enumerate(self.turns, start=1):
            turn.see(stored[number], seen[number])
            self.steps.prepare(turn)

    def close(self) -> None:
        """Returns when the last copy has ended."""
        self.steps.close()


class PassCopies:
    """The copies of a launched pass, for the thread of its first lane."""

    def __init__(
        self, owner: CapturedHandOff, turn: HandOffTurn, taken: Taken, ended: torch.cuda.Event, error: Exception | None
    ) -> None:
        """`error`: what kept some of the copies off the streams."""
        self._owner, self._turn, self._taken, self._ended, self._error = owner, turn, taken, ended, error
        self._spans: list[Span] = []
        self._wrong: list[tuple[Copy, int]] = []
        self.landing_ns = EVER
        self._begun_ns = now_ns()
        self._clocks = [lane.copier.clocks[0] for lane in owner.lanes]
        for clock in self._clocks:
            clock.anchor()  # is renewed meanwhile, where it is old

    @cached_property
    def records(self) -> list[Copy]:
        """In the order of the links, each with its last hop, which finishes it; made while the pass computes."""
        owner, found = self._owner, []
        scheduler = owner.transfers.scheduler
        for layers in self._taken.travel.copies:
            for send, assign in self._taken.sent:
                copy = scheduler.copy_of(send, layers[0], layers[-1] + 1, owner.names[-1], self._begun_ns)
                copy.target, copy.in_pass, copy.busy_until_ns = assign.target, True, EVER
                copy.target_blocks = assign.blocks[copy.block : copy.block_end]
                found.append(copy)
        return found

    def finish(self) -> None:
        """Waits for the last copy's end without the interpreter lock, and writes the times into the copies."""
        owner, turn, ring = self._owner, self._turn, list[tuple[int, int]]()
        scheduler = owner.transfers.scheduler
        try:
            self._ended.synchronize()
            turn.answered.wait()
            ring = [] if self._error else self._times()
            owner.steps.clear(turn)
        except Exception as error:  # the copies fail with it
            self._error = error
        with owner.transfers.lock:
            held = 0
            for at_ns, more in sorted(ring):
                held += more
                scheduler.on_ring(at_ns, held)
            scheduler.end_pass(owner.names)
            turn.busy = False
        self.landing_ns = now_ns() if self._error else self.records[-1].landing_ns

    def _times(self) -> list[tuple[int, int]]:
        """Writes them into the copies and spans; when slots of the ring were taken (+1) and left (-1)."""
        owner, turn, parts = self._owner, self._turn, self._taken.parts
        hops = [self._moments(hop) for hop in range(len(owner.names))]
        for later in hops[1:]:  # perhaps by another device's clock
            later[:] = [(max(s, left), max(e, left)) for (s, e), (_, left) in zip(later, hops[0], strict=True)]
        stored = list(map(timer_of(owner.source.device).ns, turn.seen.tolist()))
        for number, copy in enumerate(self.records):
            index, mine = divmod(number, len(self._taken.sent))
            copy.ready_ns = min(stored[copy.layer_end - 1], hops[0][index][0])
            for hop, copy.lane in enumerate(owner.names):
                copy.start_ns, copy.busy_until_ns = part(hops[hop][index], parts[hop], mine)
                copy.landing_ns = copy.busy_until_ns + (self._taken.latency_ns if hop + 1 == len(hops) else 0)
                self._spans.append(span_of(copy, copy.landing_ns))
                copy.ready_ns = copy.landing_ns
        self._wrong = self._differing()
        return [(start, 1) for start, _ in hops[0]] + [(end, -1) for _, end in hops[-1]] if len(hops) > 1 else []

    def _moments(self, hop: int) -> list[tuple[int, int]]:
        """When each copy took a link and left it, by its dial or by events, and never after now."""
        owner, turn, count, now = self._owner, self._turn, len(self._taken.travel.copies), now_ns()
        if self._taken.travel.occupancy_ns[hop]:
            ns = timer_of((owner.source, owner.target)[hop].device).ns
            return [(ns(start), ns(end)) for start, end in turn.times[hop, :count].tolist()]
        at = self._clocks[hop].anchor().ns
        return [(min(now, at(start)), min(now, at(end))) for start, end in turn.events[hop][:count]]

    def land(self) -> None:
        """All at once, but for those whose bytes are wrong; one notice for each transfer that landed."""
        transfers, wrong = self._owner.transfers, {id(copy) for copy, _ in self._wrong}
        if self._error is not None:
            for copy in self.records:
                transfers.raised(copy, self._error)
            return
        for copy, layer in self._wrong:
            transfers.differs(copy, layer)
        others, landed = list[Notice](), dict[int, list[Landed]]()
        with transfers.lock:
            for copy in self.records:
                for notice in transfers.scheduler.finish(copy) if id(copy) not in wrong else ():
                    if isinstance(notice, Landed):
                        landed.setdefault(copy.transfer, []).append(notice)
                    else:
                        others.append(notice)
            for span in self._spans:
                transfers.record(span)
            transfers.post_all([*others, *map(together, landed.values())])
        transfers.drive()

    def _differing(self) -> list[tuple[Copy, int]]:
        """Copies with the first layer whose checksums differ."""
        sums, found = self._turn.sums, []
        if sums is None:
            return []
        differs = (sums != sums[0]).any(0)
        for number, copy in enumerate(self.records):
            rows = self._taken.rows[number % len(self._taken.rows)]
            wrong = [layer for layer in range(copy.layer, copy.layer_end) if bool(differs[layer, rows].any())]
            found += [(copy, wrong[0])] if wrong else []
        return found


def time_on(link: Link, sizes: list[int], layers: int) -> int:
    """ns that a link is busy with so many layers of transfers with so many bytes each in a layer."""
    return sum(link.occupancy_ns(layers * size) for size in sizes)


def together(notices: list[Landed]) -> Landed:
    """One landing of several copies of a transfer."""
    parts = tuple(part for notice in notices for part in notice.parts)
    return Landed(notices[0].transfer, parts, sum(n.nbytes for n in notices), sum(n.took_ns for n in notices))


def part(times: tuple[int, int], upto: list[int], mine: int) -> tuple[int, int]:
    """A transfer's part of one copy's time on the link, whose parts are given up to each."""
    start, end = times
    return start + (end - start) * upto[mine] // upto[-1], start + (end - start) * upto[mine + 1] // upto[-1]
