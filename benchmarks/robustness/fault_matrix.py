"""The fault matrix on the real engine: each fault, at the first, a middle and the last event of its kind, by preset.

Under every fault each request ends once, with tokens of the reference; no block is held, and no thread is left.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.common import Say
from disagg.monitor.fault_injection import Injection
from disagg.monitor.fault_plan import FAULTS, FaultPlan
from disagg.plan.config import PRESETS, Config
from disagg.plan.errors import EngineError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model, load_model
from disagg.show.report import Row
from disagg.trace.results import Result, Run

TIGHT = dict(block_size=16, prefill_blocks=24, decode_blocks=10, host_blocks=12, chunk_tokens=32, ring_slots=2)
#: Beside the presets: where the last copies of hand-offs are parked ones, rows decode in passes, and hand-offs block.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "parking": ("paged", {"prefill_blocks": 8, "decode_blocks": 7, "host_blocks": 24}),
    "mixed passes": ("colocated", {"chunk_tokens": 16}),
    "blocking": ("staged", {"overlap": False}),
}
CASES = (*PRESETS, *MORE)
WATCHDOG_S = 1.5  # a lost notice is waited for that long, really; a busy machine must not be taken for a dead one
BREAKS = ("die",)  # rule 6: everything open fails, and the engine says so
ENDS_ALL = ("interrupt", "die")


class MatrixCell(NamedTuple):
    """A fault at the nth event of its kind, on a preset or another of CASES; what came of it."""

    preset: str
    kind: str
    fault: str
    number: int
    struck: bool
    lost: int  # requests without a proper end
    wrong: int  # whose tokens are not the reference's
    blocks: int  # held at the end
    threads: int  # left

    @property
    def name(self) -> str:
        return f"{self.preset}: {self.kind} {self.number} {self.fault}"


def requests() -> list[Request]:
    """Prompts of one to four chunks; answers that outgrow the tight pool."""
    lengths = ((40, 30), (9, 40), (70, 24), (33, 36), (17, 1), (100, 12))
    return [
        Request([(7 * i + 3 * k) % 250 for k in range(n)], new, ignore_eos=True) for i, (n, new) in enumerate(lengths)
    ]


def config_of(case: str, **changes: Any) -> Config:
    preset, more = MORE.get(case, (case, {}))
    paged = PRESETS[preset].get("host_blocks", 0) is None
    sizes = dict(TIGHT) if paged else {**TIGHT, "decode_blocks": 64, "host_blocks": 0}
    return Config.preset(preset, model="tiny", **{"watchdog_s": WATCHDOG_S, **sizes, **more, **changes})


def reference(model: Model) -> list[list[int]]:
    """One at a time, nothing going wrong."""
    with Engine(config_of("baseline", watchdog_s=60.0), model) as engine:
        return [engine.serve([request]).results[0].token_ids for request in requests()]


def threads() -> Counter:
    return Counter(thread.name for thread in threading.enumerate() if thread.name.startswith("disagg"))


def held(engine: Engine) -> int:
    """Blocks and ring slots that have an owner, and open transfers."""
    state, scheduler = engine.controller.state, engine.executor.transfers.scheduler
    return sum(p.held for p in state.pools()) + scheduler.ring.held + len(scheduler.progress) + len(state.transfers)


def counted(model: Model, preset: str) -> Counter:
    """How many events of each kind a quiet run has."""
    plan = FaultPlan()
    with Engine(config_of(preset, watchdog_s=60.0), model, faults=plan) as engine:
        engine.serve(requests())
    return plan.counts


def places(count: int) -> list[int]:
    """The first, a middle one and the last of so many."""
    return sorted({1, (count + 1) // 2, count}) if count else []


def run_cell(model: Model, preset: str, kind: str, fault: str, number: int, expected: list[list[int]]) -> MatrixCell:
    """One run with one fault."""
    before, plan = threads(), FaultPlan({(kind, number): fault})
    lost = wrong = blocks = 0
    try:
        with Engine(config_of(preset), model, faults=plan) as engine:
            run = served(engine)
        lost, wrong = judge(run, expected, injection_of(engine), fault)
        blocks = 0 if fault in BREAKS else held(engine)
        lost += engine.controller.state.counts["anomalies"] > injection_of(engine).strays
        lost += bool(plan.struck) and fault in BREAKS and engine.broken is None
    except EngineError as refused:
        lost = int(fault != "refuse" or "refuses this allocation" not in str(refused))
    left = sum((threads() - before).values())
    return MatrixCell(preset, kind, fault, number, bool(plan.struck), lost, wrong, blocks, left)


def served(engine: Engine) -> Run:
    """The run; also that of an engine that broke on the way."""
    try:
        return engine.serve(requests())
    except EngineError as error:
        assert isinstance(error.run, Run)
        return error.run


def injection_of(engine: Engine) -> Injection:
    """Of an engine that was built with a plan of faults."""
    assert isinstance(engine.seams, Injection)
    return engine.seams


def judge(run: Run, expected: list[list[int]], injection: Injection, fault: str) -> tuple[int, int]:
    """Requests that are lost, and those whose tokens are wrong."""
    lost = sum(not proper(result, injection, fault) for result in run.results)
    wrong = 0
    for result, tokens in zip(run.results, expected, strict=True):
        whole = result.finish_reason == "length"
        wrong += result.token_ids != (tokens if whole else tokens[: len(result.token_ids)])
    return lost, wrong


def proper(result: Result, injection: Injection, fault: str) -> bool:
    """Is this an end that the fault explains?"""
    match result.finish_reason:
        case "length":
            return True
        case "cancelled":
            return fault in ("cancel", *ENDS_ALL)
        case "failed":
            return bool(result.error) and (result.request in injection.hurt or fault in BREAKS)
    return False


def cells(say: Say, presets: Iterable[str] = CASES, most: int = 3) -> Iterator[MatrixCell]:
    """The whole matrix; `most` places of each fault."""
    model = load_model("tiny")
    expected = reference(model)
    for preset in presets:
        say(f"fault matrix: {preset}")
        counts = counted(model, preset)
        for kind, fault in [(kind, fault) for kind, faults in FAULTS.items() for fault in faults]:
            for number in places(counts[kind])[:most]:
                cell = run_cell(model, preset, kind, fault, number, expected)
                while not cell.struck and number > 1:  # no two runs have the same number of steps or notices
                    number -= max(1, number // 8)
                    cell = run_cell(model, preset, kind, fault, number, expected)
                yield cell


def rows(say: Say) -> Iterator[Row]:
    found = list(cells(say))
    kinds = Counter(f"{cell.kind} {cell.fault}" for cell in found if cell.struck)
    for name in ("lost", "blocks", "threads", "wrong"):
        bad = [cell.name for cell in found if getattr(cell, name)]
        label = {"blocks": "leaked_blocks", "threads": "leaked_threads", "wrong": "wrong_tokens"}.get(name, name)
        note = "; ".join(bad[:8]) or ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        yield Row(f"matrix_{label}", sum(getattr(cell, name) for cell in found), "", 0, len(found), note)
    idle = [cell.name for cell in found if not cell.struck]
    yield Row("matrix_not_struck", len(idle), "cells", None, len(found), "; ".join(idle[:12]))
