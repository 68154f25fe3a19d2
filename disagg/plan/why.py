"""Why does a request wait? The gate that holds it, who holds that gate, and for how long; read from the book.

print(why(engine.controller.book, 3))
"""

import itertools

from disagg.plan.book import Book
from disagg.plan.request import Record, Stage
from disagg.plan.scheduler import BATCH_SLOT
from disagg.plan.waiting import Wait, cycle_in_words, cycle_of

WORKING = {Stage.PREFILLING: "prefill", Stage.RUNNING: "decode"}


def why(book: Book, request: int, now_ns: int | None = None) -> str:
    """One request in words, then whoever it waits for in turn, and the cycle where they wait for one another."""
    now_ns = book.now_ns if now_ns is None else now_ns
    if request not in book.records:
        return f"request {request} is not open: it has ended, or never came"
    waits = waits_of(book)
    chain, following = [], [request]
    while following:
        here = following.pop(0)
        if here in waits and here not in chain:
            chain.append(here)
            following += waits[here].holders
    lines = [_in_words(book, book.records[r], waits[r], now_ns) for r in chain]
    return "\n".join([*lines, *filter(None, [cycle_in_words(cycle_of(waits))])])


def open_in_words(book: Book) -> str:
    """Every open request in a few words: its stage, and what it waits for."""
    return "; ".join(f"request {w.request} ({w.stage}) for {w.what}" for w in waits_of(book).values())


def waits_of(book: Book) -> dict[int, Wait]:
    """Every open request: what it waits for, and who holds that."""
    return {record.id: _wait(book, record) for record in book.records.values()}


def _wait(book: Book, record: Record) -> Wait:
    (gate, ahead), holders, free = _gate(book, record), {}, None
    for pool in book.pools():
        if pool.gate == gate:
            free = pool.available
            for (owner, _), blocks in pool.holdings().items():
                holders[owner] = holders.get(owner, 0) + len(blocks)
    if gate == BATCH_SLOT:
        holders = {row: 1 for seat in book.decodes for row in seat.rows if record.seat in (None, seat.worker.index)}
    holders.pop(record.id, None)
    held: dict[str, int] = {}
    for table in record.tables:
        held[table.pool.name] = held.get(table.pool.name, 0) + len(table.blocks)
    return Wait(record.id, record.stage.value, gate, record.stages[-1][0], held, holders, free, ahead)


def _gate(book: Book, record: Record) -> tuple[str, tuple[int, ...]]:
    """The gate's name, and who is ahead: behind the head of a queue one waits for what the head waits for."""
    if _runs(book, record):
        return "", ()
    transfer = book.transfers.get(record.transfer)
    if transfer is not None and transfer.target is not None:
        return f"{transfer.route} transfer", ()
    for queue in book.queues():
        if record in queue:
            ahead = tuple(itertools.takewhile(lambda other: other != record.id, (waiting.id for waiting in queue)))
            return queue.gate or ("" if ahead else record.gate), ahead
    return record.gate, ()


def _runs(book: Book, record: Record) -> bool:
    """Is a pass or a step at it right now?"""
    if any(seat.passing and any(item is record for item, _ in seat.passing.items) for seat in book.prefills):
        return True
    return any(record.id in step.requests for seat in book.decodes for step in seat.steps)


def _in_words(book: Book, record: Record, wait: Wait, now_ns: int) -> str:
    if _runs(book, record):
        age = f"{(now_ns - wait.since_ns) / 1e6:.1f} ms"
        work = WORKING.get(record.stage, "work")
        return f"request {record.id} ({wait.stage}) waits for nobody: its {work} is under way, {age} since it began"
    transfer = book.transfers.get(record.transfer)
    text = wait.in_words(now_ns)
    if transfer is not None and transfer.target is not None:
        landed = sum(bits.bit_count() for bits in transfer.landed.bits)
        text += f"; {landed} of {transfer.blocks * book.layers} (layer, block) pairs have landed"
    return text
