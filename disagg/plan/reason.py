"""Why the controller decided as it did: the rules that fired, with the numbers that they compared."""

from typing import NamedTuple


class Reason(NamedTuple):
    """A rule that fired, and the numbers it compared."""

    rule: str
    numbers: dict[str, object]

    def __str__(self) -> str:
        return RULES[self.rule].format(**self.numbers)


RULES = {
    "admit": "request {request} starts prefill: it takes {need} of the {available} free blocks of {pool}",
    "admit: no slot": "request {request} stays in its queue: {ahead} requests are on their way to {limit} places "
    "in the batch",
    "admit: no block": "request {request} stays in its queue: it needs {need} blocks of {pool}, {available} are free",
    "place": "request {request} goes the way {way}: {costs}",
    "chunk": "the pass takes tokens {start} to {stop} of request {request}'s {target}; its budget was {budget}",
    "target": "request {request} gets {need} of the {available} free blocks of {pool} ({growth} stay for rows to grow)",
    "target: no block": "request {request} waits for {pool}: {need} blocks and {growth} for rows to grow are more than "
    "the {available} free",
    "park": "the K/V of request {request} go to host memory in {blocks} blocks: decode is full, and waiting hand-offs "
    "hold more than a quarter of prefill's blocks",
    "join": "request {request} joins the batch as row {rows} of at most {limit}",
    "join: no slot": "request {request} has landed and waits: the batch has {rows} of at most {limit} rows",
    "grow": "request {request} takes one more block of {pool} for its token {context}; {available} were free",
    "grow: no block": "request {request} needs a block of {pool} for its token {context}, and none is free",
    "preempt": "request {victim} makes room for request {request}: it is the last by policy {policy}",
    "spill": "request {request} is spilled: {spill_ms} ms there and back, against {recompute_ms} ms to recompute",
    "recompute": "request {request} is computed again: {recompute_ms} ms, against {spill_ms} ms to spill and fetch",
    "end": "request {request} ends ({finish}); its blocks {blocks}",
}
