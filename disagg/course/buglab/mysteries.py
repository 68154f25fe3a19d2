"""Cases of notebooks/08_bug_lab.ipynb in which a bug is to be found: its symptom without its name, then its story."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from disagg.course.buglab.bugs import BugOutcome, bugs, run_bug
from disagg.course.catalogue import exercises
from disagg.trace.results import Run

CASES = {
    "A": "freed early",
    "B": "lost notice",
    "C": "counted",
    "D": "two-sided",
    "E": "event first",
    "F": "last block",
}
LOOK_AT = {"B": 0}  # whose receipt
#: The ten, in a line each.
SUSPECTS = {
    "event first": "an event is recorded before the copy that it stands for",
    "parked early": "a hand-off on its way to host memory gives its blocks away",
    "rows let go": "a row that ends frees its blocks, though a step still writes them",
    "partial": "a copy that failed is taken for one that landed",
    "freed early": "a request that ends frees its blocks, though a copy still uses them",
    "two-sided": "a request that waits for blocks keeps those that it has elsewhere",
    "lost notice": "a failure is written to the log, and nobody else is told",
    "counted": "notices are counted, whichever they are",
    "last block": "what does not fill a block is not sent",
    "ends twice": "a request that has ended is ended once more",
}


@dataclass(frozen=True)
class Mystery:
    """A case: the complaint, the facts, and a receipt where there was a run."""

    letter: str
    symptom: str
    found: BugOutcome

    @property
    def run(self) -> Run | None:
        return self.found.run

    def __str__(self) -> str:
        lines = [f"Case {self.letter}. {self.symptom}", *(f"  {fact}" for fact in self.found.facts)]
        if self.letter in LOOK_AT and self.run is not None:
            lines += str(self.run.results[LOOK_AT[self.letter]].receipt).splitlines()
        return "\n".join(lines)


def mystery(letter: str) -> Mystery:
    """Plays a case; its bug is put back for as long as that takes."""
    name = case_of(letter)
    return Mystery(letter.upper(), bugs()[name].symptom, run_bug(name))


def case_of(letter: str) -> str:
    if letter.upper() not in CASES:
        raise ValueError(f"there is no case {letter!r}; there are {', '.join(CASES)}")
    return CASES[letter.upper()]


def solved(letter: str, given: Callable) -> bool:
    return exercises()[f"case_{letter.lower()}"].verdict(given)[0]


def story(letter: str, given: Callable) -> str:
    """Where the bug comes from and what caught it, once the bug is found: `given` is the answer to the exercise."""
    one = bugs()[case_of(letter)]
    if not solved(letter, given):
        return f"Solve case {letter.upper()} first: its story names the bug."
    violation = run_bug(one.name).breach
    lines = [
        f"{one.name}: {one.story}",
        f"missing edge: {one.edge}",
        f"seen in: {'; '.join(one.threads)}",
        f"put back here: {inspect.getdoc(one.replacement)}",
        f"caught by: {violation.summary if violation else None}",
    ]
    return "\n".join(lines)
