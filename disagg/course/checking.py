"""`check` tries a learner's function; `hint` helps once it was wrong, a step more at each call."""

from dataclasses import dataclass

from disagg.course.catalogue import NOT_KEPT, exercises, hints_of, remember
from disagg.course.exercise import Exercise

_told: dict[str, int] = {}  # hints that were asked for, of each exercise that had a wrong answer in this session


@dataclass(frozen=True)
class Verdict:
    name: str
    right: bool
    words: str

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.name}: {self.words}"


@dataclass(frozen=True)
class Hints:
    words: str

    def __repr__(self) -> str:
        return self.words


def check(name: str, given: object) -> Verdict:
    """Does this function do what the exercise asks? Says so, or shows the first case in which it does not."""
    outcome = _task(name).verdict(given)
    if outcome.right:
        return Verdict(name, True, outcome.words + ("" if remember(name) else NOT_KEPT))
    if outcome.tried:
        tried(name)
    return Verdict(name, False, f"not yet. {outcome.words}")


def tried(name: str) -> None:
    """There was a wrong answer, so hints may be asked for."""
    _told.setdefault(name, 0)


def hint(name: str) -> Hints:
    """One hint after the first wrong answer, and one more at each call; of an exercise, or a piece of my_disagg."""
    check_it, hints = hints_of(name)
    if name not in _told:
        return Hints(f"Try first: write something, and let {check_it} say what it does. Then come back.")
    _told[name] = min(_told[name] + 1, len(hints))
    lines = [f"{number} of {len(hints)}: {words}" for number, words in enumerate(hints[: _told[name]], 1)]
    return Hints("\n".join(lines))


def _task(name: str) -> Exercise:
    known = exercises()
    if name not in known:
        raise ValueError(f"there is no exercise {name!r}; known: {', '.join(known)}")
    return known[name]
