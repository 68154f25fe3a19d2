"""What an open request waits for: its gate, and the requests before it in its queue."""

from collections.abc import Sequence

from disagg.plan.queues import Queue
from disagg.plan.request import Record
from disagg.plan.state import ControllerState

NAMED = 4  # requests named in one sentence
LISTED = 8  # requests that are told of


def running(state: ControllerState) -> set[int]:
    """Requests of the passes and steps in flight."""
    passes = [worker.passing for worker in state.prefills if worker.passing]
    steps = [step for worker in state.decodes for step in worker.steps]
    return {record.id for p in passes for record, _ in p.items}.union(*(step.requests for step in steps))


def gate_of(state: ControllerState, record: Record, under_way: set[int]) -> tuple[str, Queue | None]:
    """Its gate, and its queue, whose gate is that of the first request in it; neither for one that is under way."""
    if record.id in under_way:
        return "", None
    transfer = state.open_transfer(record)
    if transfer is not None and transfer.target is not None:
        return f"{transfer.route} transfer", None
    queue = next((queue for queue in state.queues() if record in queue), None)
    return (record.gate, None) if queue is None else (queue.gate, queue)


def gate_in_words(gate: str, ahead: Sequence[int], count_ahead: int) -> str:
    """The gate, and the first few of the requests ahead."""
    behind = f" behind {named([f'request {request}' for request in ahead], count_ahead)}" if ahead else ""
    return (gate or "its turn") + behind


def named(parts: list[str], count: int | None = None) -> str:
    """The first few, and how many more of `count`."""
    more = (len(parts) if count is None else count) - NAMED
    return ", ".join(parts[:NAMED]) + (f" and {more} more" if more > 0 else "")


def open_in_words(state: ControllerState) -> str:
    """The first open requests, with their stages and gates."""
    under_way, words = running(state), []
    for record in list(state.records.values())[:LISTED]:
        gate, queue = gate_of(state, record, under_way)
        ahead, count = queue.ahead_of(record, NAMED) if queue is not None else ((), 0)
        what = gate_in_words(gate or ("" if count else record.gate), ahead, count)
        words.append(f"request {record.id} ({record.stage.value}) for {what}")
    more = len(state.records) - LISTED
    return "; ".join([*words, *([f"and {more:,} more"] if more > 0 else [])])
