"""The cases of the bug lab to look at: what a user could see is bracketed in the timeline, and once a case is solved
also where its edge was not kept. Notebook: notebooks/08_bug_lab.ipynb.
"""

from collections.abc import Callable, Iterator
from typing import Any

from disagg.course.buglab.bugs import bugs
from disagg.course.buglab.lab_worlds import last_freed_ns, pieces_due
from disagg.course.buglab.mysteries import CASES, case_of, mystery, solved
from disagg.plan.config import Config
from disagg.plan.request import Stage
from disagg.show.scene import Menu, Scene, bracket
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline

TICK_NS = 1_000_000  # of an operation where a scene has no clock


def replays(**given: Callable) -> Scene:
    """All six as a scene; `given` are the answers so far, as in replays(case_a=case_a)."""
    runs = {letter: run_of(letter) for letter in CASES}

    def figures(run: Run, case: str) -> list[tuple[str, str]]:
        one = bugs()[case_of(case)]
        edge = one.edge if is_solved(case) else "not found yet"
        return [("they say", one.symptom), ("the missing edge", edge)]

    def is_solved(case: str) -> bool:
        answer = given.get(f"case_{case.lower()}")
        return answer is not None and solved(case, answer)

    options = {letter: f"case {letter}" for letter in CASES}
    return Scene(
        "The six cases again",
        {"case": Menu("case", "A", options)},
        lambda case: runs[case],
        figures,
        views=("timeline", "flow"),
        brackets=lambda run, case: marks(case, run, is_solved(case)),
    )


def run_of(letter: str) -> Run:
    """The run of a case; that of streams, which have no clock, as its operations in order."""
    return mystery(letter).run or operations()


def marks(letter: str, run: Run, found: bool = False) -> list[dict[str, Any]]:
    """Brackets on a case's timeline: the symptom, and with `found` the two moments of the missing edge."""
    start_ns = run.timeline.start_ns
    seen = list(_SEEN[letter](run))
    if found:
        place, after_ns, before_ns, words = _EDGES[letter](run)
        seen = [mark for mark in seen if mark[0] != place]
        seen.append((place, after_ns, before_ns, words))
    return [bracket(place, begin - start_ns, end - start_ns, words) for place, begin, end, words in seen]


Mark = tuple[str, int, int, str]  # place, from, to, words


def copies(run: Run, request: int) -> list[Span]:
    """Into the decode device, by their ends."""
    own = [s for s in run.timeline.spans if s.kind == "copy" and request in s.requests and s.place[:4] != "down"]
    return sorted(own, key=lambda span: span.end_ns)


def first_step(run: Run, request: int = 0) -> Span:
    return min(
        (s for s in run.timeline.spans if s.kind == "decode" and request in s.requests), key=lambda s: s.start_ns
    )


def _stop(run: Run) -> Iterator[Mark]:
    ended = run.results[0].ended_ns
    yield "prefill 0", ended, ended, "0 cancelled, its blocks free"


def _hang(run: Run) -> Iterator[Mark]:
    last = copies(run, 0)[-1].end_ns
    words = f"nobody works for request 0, until {run.results[0].ended_ns / 1e6:,.0f} ms"
    yield "prefill 0", last, run.timeline.end_ns, words


def _starts(run: Run) -> Iterator[Mark]:
    step = first_step(run)
    yield step.place, step.start_ns, step.start_ns, "decode starts"


def _pieces(run: Run) -> Iterator[Mark]:
    came, due = copies(run, 0), pieces_due(run, run.results[0])
    words = f"{sum(span.count * span.blocks for span in came)} of {due} pieces"
    yield came[0].place, came[0].start_ns, came[-1].end_ns, words


def _stands(run: Run) -> Iterator[Mark]:
    last = max(span.end_ns for span in run.timeline.spans if span.kind == "prefill")
    yield "prefill 0", last, run.timeline.end_ns, "2 and 3 hold all blocks here, and wait"


def _lost_blocks_ns(run: Run) -> int:
    """When request 1 had to give way, and went back to the queue."""
    stages = run.results[1].stages
    return [at_ns for at_ns, stage in stages if stage is Stage.QUEUED][-1]


def _said(run: Run) -> Iterator[Mark]:
    step = first_step(run)
    yield step.place, step.start_ns, step.end_ns, "decode reads layer 0"


_SEEN: dict[str, Callable[[Run], Iterator[Mark]]] = {
    "A": _stop,
    "B": _hang,
    "C": _starts,
    "D": _stands,
    "E": _said,
    "F": _pieces,
}


def _freed(run: Run) -> Mark:
    last, freed = copies(run, 0)[-1], last_freed_ns(run, 0) or 0
    return last.place, freed, last.end_ns, "freed before the copies ended"


def _told(run: Run) -> Mark:
    next_one = copies(run, 0)[2]  # the copy in front of it failed, and left no span
    return next_one.place, next_one.start_ns, run.timeline.end_ns, "a copy failed; nobody was told, so 0 waits"


def _landed(run: Run) -> Mark:
    last = copies(run, 0)[-1]
    return last.place, first_step(run).start_ns, last.end_ns, "decode starts before all has landed"


def _keeps(run: Run) -> Mark:
    return "decode 0", _lost_blocks_ns(run), run.timeline.end_ns, "1 waits for prefill before it gave up its 5"


def _event(run: Run) -> Mark:
    copy = copies(run, 0)[0]
    return copy.place, copy.start_ns - TICK_NS, copy.start_ns, "event before its copy"


def _whole(run: Run) -> Mark:
    last = copies(run, 0)[-1]
    return last.place, last.end_ns, first_step(run).end_ns, "whole before block 7 of 7 was sent"


_EDGES: dict[str, Callable[[Run], Mark]] = {
    "A": _freed,
    "B": _told,
    "C": _landed,
    "D": _keeps,
    "E": _event,
    "F": _whole,
}


def operations() -> Run:
    """Case E by hand, a tick an operation: a layer is computed, its event is over, decode reads, the bytes come."""
    ends = [tick * TICK_NS for tick in range(4)]
    spans = [
        Span("prefill", "prefill 0", ends[0], ends[1], (0,), hand_offs_ns=(ends[1],)),
        Span("decode", "decode 0", ends[1], ends[2], (0,), count=1),
        Span("copy", "direct 0", ends[2], ends[3], (0,), count=1, blocks=3),
    ]
    stages = ((0, Stage.QUEUED), (0, Stage.PREFILLING), (ends[1], Stage.LANDED), (ends[3], Stage.ENDED))
    result = Result(0, 12, 0, [1], [ends[1]], stages=stages, ended_ns=ends[3])
    return Run(Config.preset("streamed"), [result], Timeline(spans))
