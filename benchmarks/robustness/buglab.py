"""Does each bug of the lab set off its own detector, and do all stay silent on the shipped code?"""

import time
from collections import Counter
from collections.abc import Iterator

from benchmarks.common import Say
from disagg.course.buglab.bugs import bugs, run_bug
from disagg.course.buglab.lab_worlds import Streams
from disagg.show.report import Row

BUDGET_S = 45.0  # for seeds, where their number is left open
EVERY: dict[type, int] = {Streams: 10}  # seeds of which one is played: threads, of which a seed changes little


def caught_rows(say: Say) -> Iterator[Row]:
    """1 where exactly the named detector raised."""
    for number, (name, one) in enumerate(bugs().items(), 1):
        say(f"bug {number} of {len(bugs())}: {name}")
        found = run_bug(name)
        seen = found.breach.summary if found.breach else f"no detector raised; {found.error or 'no error either'}"
        note = f"{one.detector} wanted. {seen[:160]}"
        yield Row(f"caught[{name}]", float(found.caught_by == one.detector), "", 1, 1, note, at_most=False)


def clean_row(say: Say, seeds: int | None) -> Row:
    """Violations by the shipped code over seeds of all scenes; an error that stops a scene counts as one."""
    played: Counter[str] = Counter()
    found, began, seed = [], time.monotonic(), 0
    while seed < seeds if seeds is not None else time.monotonic() - began < BUDGET_S:
        if seed % 50 == 0:
            say(f"the shipped code, seed {seed}" + (f" of {seeds}" if seeds else ""))
        for name, one in bugs().items():
            if seed % EVERY.get(type(one.scene), 1):
                continue
            outcome = one.scene.play(seed=seed)
            played[type(one.scene).__name__.lower()] += 1
            if outcome.breach or outcome.error:
                found.append(f"seed {seed}, {name}: {outcome.breach.summary if outcome.breach else outcome.error}")
        seed += 1
    note = ", ".join(f"{count} {kind} scenes" for kind, count in played.items())
    return Row("clean_breaches", len(found), "", 0, seed, "; ".join([note, *found[:3]]))


def suite(say: Say, seeds: int | None = None) -> Iterator[Row]:
    """The rows as they are measured; `seeds` of the clean code, or as many as fit into a minute."""
    yield from caught_rows(say)
    yield clean_row(say, seeds)
