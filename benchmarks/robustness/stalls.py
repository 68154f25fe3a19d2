"""Does a stall show under its own name? Each gate of a real engine is held up for 50 ms, once, and receipts compared.

A few requests on the tiny model; one is asked for its receipt, and what it waits for, or does, is struck.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from disagg.plan import events as ev
from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model
from disagg.show.report import Row
from disagg.trace.receipts import NAMES

STALL_S, ALLOWED_MS, ROUNDS = 0.05, 5.0, 24


class Stall:
    """Sleeps 50 ms the first time that its condition holds in an armed run."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.armed = engine, False
        self.request, self.step = 0, 0  # numbers of the run's first request and step

    def arm(self, armed: bool) -> None:
        self.armed = armed
        self.step = self.engine.controller.state.decodes[0].next_step

    def __call__(self, condition: bool):
        if self.armed and condition:
            self.armed = False
            time.sleep(STALL_S)


def before(owner, name: str, action: Callable) -> None:
    """Calls `action(*args)` before each call of this object's method."""
    method = getattr(owner, name)

    def wrapped(*args, **kwargs):
        action(*args)
        return method(*args, **kwargs)

    setattr(owner, name, wrapped)


def in_pass(which: int) -> Callable:
    """In the prefill pass of this request."""

    def hold(engine: Engine, stall: Stall) -> None:
        workers = engine.executor.workers
        stage = (workers.get(Worker("prefill", 0)) or workers[Worker("decode", 0)]).prefill
        chunks: list = []
        before(stage, "_pack", lambda command, marks: chunks.append(command.chunks[0].request))
        before(stage.model, "prefill", lambda *_: stall(chunks[-1] - stall.request == which))

    return hold


def in_step(number: int) -> Callable:
    """In this step of the run."""

    def hold(engine: Engine, stall: Stall) -> None:
        stage = engine.executor.workers[Worker("decode", 0)].decode
        steps: list = []
        before(stage, "_follow", lambda command: steps.append(command.step))
        before(stage.model, "decode", lambda *_: stall(steps[-1] - stall.step == number))

    return hold


def in_copy(lane: str, which: int, source: str = "prefill") -> Callable:
    """In a copy of this request on this lane."""

    def hold(engine: Engine, stall: Stall) -> None:
        def strike(copy, scratch) -> None:
            stall(str(copy.lane) == lane and copy.request - stall.request == which and copy.source.role == source)

        before(engine.executor.transfers, "_move", strike)

    return hold


def at_event(condition: Callable) -> Callable:
    """On the engine's own thread, when it takes this event out of its inbox."""

    def hold(engine: Engine, stall: Stall) -> None:
        take = engine._loop._next

        def late():
            event = take()
            stall(condition(event, stall))
            return event

        engine._loop._next = late

    return hold


def at_command(number: int) -> Callable:
    """On the way of this step's command to its worker."""

    def hold(engine: Engine, stall: Stall) -> None:
        worker = engine.executor.workers[Worker("decode", 0)]
        before(worker, "give", lambda command: stall(command is not None and command.step - stall.step == number))

    return hold


@dataclass(frozen=True)
class Case:
    """Where a gate's stall strikes, and whose receipt is asked."""

    preset: str
    hold: Callable
    changes: tuple = ()
    new_tokens: tuple[int, ...] = (24, 6)  # a request each
    asked: int = 1

    @property
    def config(self) -> Config:
        sizes = {"decode_blocks": 64, "prefill_blocks": 64, "chunk_tokens": 64, **dict(self.changes)}
        return Config.preset(self.preset, model="tiny", **sizes)


TIGHT = (("decode_blocks", 10), ("host_blocks", 16))  # the second request is spilled while the first one grows
#: The last two prompts wait for the first one's pass, then share one: their copies are ready at the same instant.
TOGETHER = (("chunk_tokens", 128),)
CASES = {
    "submission": Case(
        "split", at_event(lambda e, stall: isinstance(e, ev.Submit) and e.job.id == stall.request), asked=0
    ),
    "queue": Case("split", in_pass(0)),
    "batch-slot": Case("split", in_step(16), (("max_batch", 1),)),
    "no-block": Case("split", in_step(16), (("decode_blocks", 9),)),
    "prefill": Case("split", in_pass(1)),
    "link-busy": Case("split", in_copy("direct 0", 1), TOGETHER, (1, 24, 6), asked=2),
    "ring-full": Case(
        "staged", in_copy("up 0", 1), (*TOGETHER, ("ring_slots", 1), ("layers_per_copy", 4)), (1, 24, 6), asked=2
    ),
    "transfer": Case("split", in_copy("direct 0", 2), TOGETHER, (1, 24, 6), asked=2),
    "device-busy": Case("colocated", in_pass(1), asked=0),
    "decode": Case("split", in_step(10), new_tokens=(2, 20)),
    "spilled": Case("paged", in_step(24), TIGHT, (30, 30)),
    "fetch": Case("paged", in_copy("up 0", 1, "host"), TIGHT, (30, 30)),
    "dispatch": Case("split", at_command(10), new_tokens=(2, 20)),
    "notice": Case(
        "split", at_event(lambda e, stall: isinstance(e, ev.Stepped) and e.step == stall.step + 10), new_tokens=(2, 20)
    ),
}


def names_rows(say: Callable[[str], None], model: Model) -> Iterator[Row]:
    """A row a gate: how far its own line is from having moved by 50 ms, or any other from not having moved."""
    for gate, case in CASES.items():
        say(f"a stall of 50 ms at {gate}")
        moved = measure(case, model)
        own = moved.pop(gate)
        other = max(moved, key=lambda name: abs(moved[name]))
        off = max(abs(own - 1e3 * STALL_S), abs(moved[other]))
        note = f"its line moved by {own:.1f} ms; of the others {other} moved most, by {moved[other]:.1f} ms"
        yield Row(f"receipt_names[{gate}]", off, "ms", ALLOWED_MS, ROUNDS, note)


def measure(case: Case, model: Model) -> dict[str, float]:
    """By how many ms each line moved, median of pairs."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for index in range(ROUNDS):
        for armed in (False, True) if index % 2 else (True, False):
            found[armed].append(totals(case, model, armed))
    pairs = list(zip(found[True], found[False], strict=True))
    return {name: 1e3 * statistics.median(a.get(name, 0.0) - b.get(name, 0.0) for a, b in pairs) for name in NAMES}


def totals(case: Case, model: Model, armed: bool) -> dict[str, float]:
    """Seconds by name; each on a new engine: a stall teaches it what copies cost, and use makes it quicker."""
    requests = [Request([i + 1] * 64, new, ignore_eos=True) for i, new in enumerate(case.new_tokens)]
    with Engine(case.config, model=model) as engine:
        stall = Stall(engine)
        case.hold(engine, stall)
        for _ in range(3):  # the first passes of an engine are slow ones
            stall.request = engine.serve(requests).results[-1].request + 1
        stall.arm(armed)
        return engine.serve(requests).results[case.asked].receipt.totals()
