"""What makes two states of a small simulation the same: all that decides what can happen, without times.

Measured speeds are left out: the worlds' policies choose by number, not by estimates.
Ids grow with every event, so they stand by their order; blocks and slots are numbered as they are met.
"""

from typing import Any

from disagg.plan.blocks import Table
from disagg.plan.queues import Queue
from disagg.plan.request import Record
from disagg.plan.transfer import Transfer
from disagg.plan.transfer_scheduler import Lane, TransferProgress
from disagg.plan.worker_state import DecodeWorkerState, PrefillWorkerState


def state_of(simulation: Any) -> tuple:
    """A key of a `SmallWorld`: equal for simulations with the same future."""
    state, transfers = simulation.state, simulation.transfers
    live = [*state.transfers, *(s.passing.id for s in state.prefills if s.passing)]
    live += [step.id for worker in state.decodes for step in worker.steps]
    rank = {number: index for index, number in enumerate(sorted(live))}
    names = Names()
    return (
        simulation.struck, simulation.lost,
        tuple((r, result.finish_reason) for r, result in simulation.results.items()),
        tuple(_record(record, rank, names) for record in state.records.values()),
        tuple(_transfer(state.transfers[number], rank, names) for number in sorted(state.transfers)),
        tuple(tuple(sorted(pool.holdings())) for pool in (*state.pools(), transfers.ring)),
        tuple(_queue(queue) for queue in state.queues()),
        tuple(_prefill_worker(worker) for worker in state.prefills),
        tuple(_decode_worker(worker, rank, names) for worker in state.decodes),
        tuple(_progress(transfers.progress[number]) for number in sorted(transfers.progress)),
        tuple(_lane(lane, names) for lane in transfers.lanes.values()),
        tuple(sorted(simulation.busy_lanes)),
        tuple(
            (actor, tuple(_pending(entry, rank, names) for entry in simulation.queues[actor]))
            for actor in sorted(simulation.queues)
        ),
        _contents(simulation.memory.contents(), names),
        tuple(number in rank for number in state.deadlines),
    )  # fmt: skip


class Names:
    """Numbers for blocks and slots, in the order in which they are met."""

    def __init__(self) -> None:
        self._numbers: dict[tuple, int] = {}

    def of(self, place: str, block: int | None) -> int | None:
        return None if block is None else self._numbers.setdefault((place, block), len(self._numbers))

    def known(self, place: str, block: int) -> int | None:
        return self._numbers.get((place, block))


def _contents(held: list[tuple], names: Names) -> tuple:
    """What blocks and slots hold that something still has; the rest is as good as wiped."""
    found = [(names.known(*key[:2]), key[2:], tuple(sorted(layers.items()))) for key, layers in held]
    return tuple(sorted((entry for entry in found if entry[0] is not None), key=str))


def _table(table: Table | None, rank: dict, names: Names) -> tuple | None:
    if table is None:
        return None
    blocks = tuple(names.of(table.pool.name, block) for block in table.blocks)
    return table.pool.name, blocks, table.state, table.released, tuple(rank.get(p) for p in table.pins)


def _record(record: Record, rank: dict, names: Names) -> tuple:
    tables = (record.prefill_table, record.decode_table, record.host_table)
    return (
        record.id, record.stage.value, record.prefilled, len(record.generated), record.decode_worker, record.finish,
        tuple(_table(table, rank, names) for table in tables), rank.get(record.transfer),
        record.prefill_target, record.stays, record.priority,
    )  # fmt: skip


def _transfer(transfer: Transfer, rank: dict, names: Names) -> tuple:
    return (
        transfer.record.id, transfer.route, tuple(transfer.landed.bits), transfer.blocks, transfer.sent,
        transfer.source_read, transfer.aborted,
        tuple(_table(table, rank, names) for table in (transfer.source, transfer.target)),
    )  # fmt: skip


def _queue(queue: Queue) -> tuple:
    return tuple(record.id for record in queue), queue.tokens


def _prefill_worker(worker: PrefillWorkerState) -> tuple:
    passing = tuple((record.id, final) for record, final in worker.passing.items) if worker.passing else None
    mixed = worker.passing is not None and worker.passing.step is not None
    return passing, mixed, tuple(record.id for record in worker.partial), worker.prefilled_last


def _decode_worker(worker: DecodeWorkerState, rank: dict, names: Names) -> tuple:
    now = worker.next_step
    rows = tuple((r, row.joined - now, row.last_step - now, row.bin) for r, row in worker.rows.items())
    steps = tuple(
        (step.requests, tuple(sorted(step.dropped)), tuple(_table(table, rank, names) for table in step.pinned))
        for step in worker.steps
    )
    return rows, steps, tuple(worker.left), tuple(join.request for join in worker.joins), len(worker.grown)


def _progress(progress: TransferProgress) -> tuple:
    return (
        progress.send.request, progress.made, progress.read, progress.landed, progress.running, progress.blocks_sent,
        progress.next_layer, progress.assign is None, len(progress.parked), progress.aborted, progress.failed,
    )  # fmt: skip


def _lane(lane: Lane, names: Names) -> tuple:
    entries = sorted(lane.ready, key=lambda entry: entry[:2])
    return tuple((copy.part, copy.request, names.of("ring", copy.slot)) for _, _, copy in entries)


def _pending(entry: tuple, rank: dict, names: Names) -> tuple:
    """An action in a queue, without ids and times."""
    _, _, action, args = entry
    name, what = action.__name__, args[0]
    if name in ("land", "_land"):
        return name, what.request, what.part, names.of("ring", what.slot), rank.get(what.transfer)
    if name == "write_layer":
        return name, args[2], tuple((chunk.request, chunk.start) for chunk in args[1])
    if name == "_hand_off":
        return name, args[1], tuple(rank.get(number) for number in what)
    if name == "_lane_free":
        return name, what
    number = getattr(what, "transfer", getattr(what, "pass_id", None))
    return name, type(what).__name__, rank.get(number), getattr(what, "tokens", ()), getattr(what, "parts", ())
