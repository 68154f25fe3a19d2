"""What the controller knows of its workers: what each holds, and its passes and steps in flight."""

from collections import deque
from dataclasses import dataclass, field
from itertools import chain, compress
from typing import NamedTuple

from disagg.plan.batching import BinRow, Composer, Group, Outputs, StepModel, bin_end, bin_of
from disagg.plan.blocks import BlockPool, Table, blocks_for
from disagg.plan.checks import present
from disagg.plan.commands import Chunk, Decode, Join, Worker
from disagg.plan.queues import Queue
from disagg.plan.request import Record

LATELY_S = 2.0


class Pass(NamedTuple):
    """A prefill pass in flight: its records, each with whether its last chunk is in it."""

    id: int
    items: tuple[tuple[Record, bool], ...]
    tokens: int
    step: Decode | None = None  # of the rows that decode in it
    beside: bool = False  # another worker computed when it began


@dataclass(eq=False)
class PrefillWorkerState:
    """A prefill worker. Colocated, it is the decode worker itself, and shares its pool."""

    name: Worker
    pool: BlockPool
    queue: Queue
    decode: "DecodeWorkerState | None" = None  # where it prefills on a decode worker's device
    partial: list[Record] = field(default_factory=list)  # admitted, not yet prefilled to the end
    passing: Pass | None = None
    prefilled_last: bool = False  # without mixed passes: a decode step goes next
    speed: StepModel = field(default_factory=StepModel)  # of its passes
    busy: float = 0.0  # the share of time that its passes had lately
    seen_ns: int = 0  # the end of its last pass

    def observe(self, rows: int, tokens: int, started_ns: int, ended_ns: int, beside: bool) -> None:
        """A pass has ended; rows may have decoded in it, and another worker may have computed beside it."""
        took_s, since_s = (ended_ns - started_ns) / 1e9, max(1, ended_ns - self.seen_ns) / 1e9
        self.speed.observe(rows, tokens, took_s, beside)
        weight = since_s / (since_s + LATELY_S)
        self.busy += weight * (min(1.0, took_s / since_s) - self.busy)
        self.seen_ns = ended_ns

    @property
    def waiting(self) -> bool:
        return bool(self.partial) or self.queue.peek() is not None


@dataclass(eq=False)
class Step:
    """A decode step in flight."""

    id: int
    number: int
    requests: tuple[int, ...]
    outputs: Outputs
    used_slots: int
    padded_slots: int
    beside: bool  # another worker computed when it began
    pinned: list[Table] = field(default_factory=list)  # tables of requests that ended while it ran
    dropped: set[int] = field(default_factory=set)  # requests that ended while it ran: their token is dropped

    def kept(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Requests and tokens without the dropped ones."""
        if not self.dropped:
            return self.requests, tokens
        kept = [request not in self.dropped for request in self.requests]
        return tuple(compress(self.requests, kept)), tuple(compress(tokens, kept))


class Issued(NamedTuple):
    """The batch of the last step, which the next one repeats unless a group has changed."""

    groups: list[Group]
    ids: tuple[tuple[int, ...], ...]
    requests: tuple[int, ...]
    outputs: Outputs


@dataclass(eq=False)
class DecodeWorkerState:
    """A decode worker: the batch of the next step, and the steps in flight.

    `agenda` holds, for each step, the rows that then need a block, leave their bin, or have had their last token; the
    scheduler visits no other row.
    """

    name: Worker
    pool: BlockPool
    landed: Queue
    block_size: int
    bins: tuple[int, ...]
    composer: Composer | None = None
    speed: StepModel = field(default_factory=StepModel)  # of its steps
    pads: bool = True  # attention reads every row of a bin up to the longest one's length
    rows: dict[int, BinRow] = field(default_factory=dict)
    steps: deque[Step] = field(default_factory=deque)
    next_step: int = 0
    groups: dict[int, Group] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)  # bins whose rows have changed since the last step
    agenda: dict[int, list[BinRow]] = field(default_factory=dict)
    endings: dict[int, list[BinRow]] = field(default_factory=dict)  # rows by the step of their last token
    firsts: dict[int, list[Record]] = field(default_factory=dict)  # by the step of their second token
    left: list[int] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    grown: list[tuple[int, int]] = field(default_factory=list)
    last_s: float = 0.0  # how long the last step took
    _issued: Issued = Issued([], (), (), ())

    def room(self, max_batch: int) -> int:
        """Rows that the next step may have."""
        return self.composer.room(self.mean_tokens(), max_batch) if self.composer else max_batch

    def rows_after(self, seconds: float) -> int:
        """Rows that are still there then, by the tokens that they may have at most."""
        tokens = sum(group.used for group in self.groups.values())
        step_s = self.speed.predict(len(self.rows), tokens)
        last = self.next_step + int(seconds / step_s) if step_s > 0 else self.next_step
        return sum(row.last_step >= last for row in self.rows.values())

    def step_s(self, rows: int) -> float:
        """A step of so many rows like those that it has, in seconds."""
        return max(0.0, self.speed.predict(rows, round(rows * self.mean_tokens())))

    def mean_tokens(self) -> float:
        """Mean context of a row."""
        return sum(group.used for group in self.groups.values()) / len(self.rows) if self.rows else 128

    def join(self, record: Record) -> None:
        """The record is in the batch from the next step on."""
        row = BinRow(record, self.next_step, record.context, self.next_step + record.left - 1)
        self.rows[record.id] = row
        blocks, index = tuple(present(record.decode_table).blocks), len(record.generated)
        self.joins.append(Join(record.id, record.generated[-1], record.context, blocks, index, record.job.sampling))
        self.endings.setdefault(row.last_step, []).append(row)
        if index == 1:
            self.firsts.setdefault(self.next_step, []).append(record)
        self._enter(row)
        self.plan(row)

    def leave(self, record: Record) -> None:
        """The record is out of the batch from the next step on."""
        row = self.rows.pop(record.id, None)
        if row is None:
            return
        del self.groups[row.bin].rows[record.id]
        self.changed.add(row.bin)
        joins = [join for join in self.joins if join.request != record.id]
        if len(joins) == len(self.joins):
            self.left.append(record.id)
        self.joins = joins
        self.grown = [pair for pair in self.grown if pair[0] != record.id]

    def slots(self, record: Record) -> int:
        """Tokens that its blocks hold."""
        return len(present(record.decode_table).blocks) * self.block_size

    def is_full(self, record: Record) -> bool:
        """A record outside the batch needs a block for its next token."""
        return record.context >= self.slots(record)

    @property
    def growth(self) -> int:
        """Blocks that no newcomer gets: for rows to grow into, and one for the first landed request, for which others
        may have been preempted."""
        first = self.landed.peek()
        return len(self.rows) // 4 + (first is not None and self.is_full(first))

    def needs_block(self, row: BinRow) -> bool:
        return row.context(self.next_step) >= self.slots(row.record)

    def short_of_blocks(self) -> bool:
        """More rows need a block for the next step than are free."""
        due = self.agenda.get(self.next_step, ())
        return sum(self.rows.get(r.record.id) is r and self.needs_block(r) for r in due) > self.pool.available

    def rebin(self, row: BinRow) -> None:
        """Moves a row whose context has left its bin."""
        if bin_of(row.context(self.next_step) + 1, self.bins) != row.bin:
            del self.groups[row.bin].rows[row.record.id]
            self.changed.add(row.bin)
            self._enter(row)

    def _enter(self, row: BinRow) -> None:
        row.bin = bin_of(row.context(self.next_step) + 1, self.bins)
        self.groups.setdefault(row.bin, Group()).rows[row.record.id] = row
        self.changed.add(row.bin)

    def plan(self, row: BinRow) -> None:
        """Enters the row into the agenda of the next step that may change it."""
        shift = row.joined - row.base
        steps = [self.slots(row.record) + shift, row.last_step + 1]
        if (end := bin_end(row.context(self.next_step) + 1, self.bins)) is not None:
            steps.append(end - 1 + shift)
        self.agenda.setdefault(max(min(steps), self.next_step), []).append(row)

    def issue(self, step_id: int, now_ns: int, alone: bool, beside: bool, pads: bool = True) -> Decode:
        """The command of the next step, which is in flight from now on. A mixed pass does not pad."""
        if self.changed:
            self._compose()
        issued = self._issued
        changes = tuple(self.left), tuple(self.joins), tuple(self.grown)
        command = Decode(self.name, self.next_step, *changes, issued.ids, now_ns, alone)
        used, padded = 0, 0
        for group in issued.groups:
            used += group.used
            padded += group.longest * len(group.ids) if self.pads and pads else group.used
            group.advance()
        self.steps.append(Step(step_id, self.next_step, issued.requests, issued.outputs, used, padded, beside))
        self.next_step += 1
        self.left, self.joins, self.grown = [], [], []
        return command

    def row_chunks(self) -> list[Chunk]:
        """The rows of the step at hand as chunks of one token each, for a mixed pass."""
        chunks = []
        for record in (self.rows[request].record for request in self._issued.requests):
            last, index, tokens = record.context, len(record.generated), tuple(record.generated[-1:])
            blocks = tuple(present(record.decode_table).blocks[: blocks_for(last + 1, self.block_size)])
            chunks.append(Chunk(record.id, last, last + 1, tokens, blocks, True, index, record.job.sampling, None))
        return chunks

    def _compose(self) -> None:
        """Refreshes the groups whose rows have changed."""
        for index in sorted(self.changed):
            self.groups[index].refresh(self.next_step)
            if not self.groups[index].rows:
                del self.groups[index]
        self.changed.clear()
        groups = [self.groups[index] for index in sorted(self.groups)]
        ids = tuple(group.ids for group in groups)
        outputs = tuple(chain.from_iterable(group.outputs for group in groups))
        self._issued = Issued(groups, ids, tuple(chain.from_iterable(ids)), outputs)

    def pin_in_flight(self, record: Record, table: Table) -> None:
        """A record ends: steps in flight pin its table until they end, and drop its token."""
        for step in self.steps:
            if record.id in step.requests:
                table.pin(step.id)
                step.pinned.append(table)
                step.dropped.add(record.id)

    def take_tokens(self, step: Step, tokens: tuple[int, ...], eos_ids: frozenset[int]) -> list[Record]:
        """Appends the step's tokens to its records; returns the open records whose last token may be among them."""
        for output, token in zip(step.outputs, tokens, strict=True):
            output.append(token)
        ending = [row.record for row in self.endings.pop(step.number, ())]
        if not eos_ids.isdisjoint(tokens):
            ended = {request for request, token in zip(step.requests, tokens, strict=True) if token in eos_ids}
            ending += [row.record for row in self.rows.values() if row.record.id in ended]
        open_ones = [record for record in dict.fromkeys(ending) if record.finish is None]
        return [r for r in open_ones if r.id in step.requests and r.id not in step.dropped]

    def retune(self, bins: tuple[int, ...], itl_target_s: float | None) -> None:
        """New bins and target from the next step on."""
        if itl_target_s is None:
            self.composer = None
        elif self.composer is None:
            self.composer = Composer(itl_target_s, self.speed)
        else:
            self.composer.target_s = itl_target_s
        if bins != self.bins:
            self.bins, self.groups, self.agenda = bins, {}, {}
            self.changed.clear()
            for row in self.rows.values():
                self._enter(row)
                self.plan(row)
