"""Exercises that check themselves: the learner's function is called on cases and compared with the reference.

A known mistake gets its own hint. What was solved is kept in a small file beside the notebooks, for `progress()`.
"""

import copy
import importlib
import json
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from disagg.plan.errors import FileError
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.trace.files import whole

FILE = ".disagg-progress.json"
MOST_BYTES = 100_000  # of that file; cut off there, it can't be read


@dataclass(frozen=True)
class Exercise:
    """One task: `answer` is the reference, `wrong` are plausible mistakes, each with the hint that helps."""

    name: str
    chapter: str  # the notebook's name without its ending
    task: str
    answer: Callable
    cases: tuple[tuple, ...]  # arguments of each call
    wrong: tuple[tuple[Callable, str], ...]
    hint: str  # for any other difference

    def verdict(self, given: object) -> tuple[bool, str]:
        """(right, what to say)."""
        if not callable(given):
            return False, f"give the function itself, as in check({self.name!r}, {self.name}); got {given!r}"
        found = [_call(given, arguments) for arguments in self.cases]
        wanted = [self.answer(*arguments) for arguments in self.cases]
        first = next((i for i, pair in enumerate(zip(found, wanted, strict=True)) if not _same(*pair)), None)
        if first is None:
            return True, f"right, on {len(self.cases)} cases"
        for mistake, hint in self.wrong:
            if all(_same(f, _call(mistake, a)) for f, a in zip(found, self.cases, strict=True)):
                return False, hint
        arguments = ", ".join(map(repr, self.cases[first]))
        return False, f"{self.name}({arguments}) gives {found[first]}, and {wanted[first]} is expected. {self.hint}"


def exercise(
    answer: Callable, task: str, hint: str, cases: tuple[tuple, ...], *wrong: Any, chapter: str = ""
) -> Exercise:
    """Named like its reference, of the chapter that defines it. `wrong`: a mistake, its hint, the next mistake, …"""
    chapter = chapter or answer.__module__.rpartition(".ch")[2]
    pairs = tuple(zip(wrong[::2], wrong[1::2], strict=True))
    return Exercise(answer.__name__, chapter, task, answer, cases, pairs, hint)


@dataclass(frozen=True)
class Verdict:
    """What `check` shows."""

    name: str
    right: bool
    words: str

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.name}: {'' if self.right else 'not yet. '}{self.words}"


@dataclass(frozen=True)
class Raised:
    """A call that ended in an exception."""

    error: str

    def __repr__(self) -> str:
        return f"an error ({self.error})"


def check(name: str, given: object) -> Verdict:
    """Does this function do what the exercise asks? Says so, or what to look at."""
    known = exercises()
    if name not in known:
        raise ValueError(f"there is no exercise {name!r}; known: {', '.join(known)}")
    verdict = Verdict(name, *known[name].verdict(given))
    if verdict.right and not _remember(name):
        return Verdict(name, True, f"{verdict.words}; {FILE} can't be written here, so progress() will not know of it")
    return verdict


@cache
def exercises() -> dict[str, Exercise]:
    """All of them, by name, in the order of the chapters."""
    from disagg.course import chapters

    found: dict[str, Exercise] = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(chapters.__path__)):
        for exercise in importlib.import_module(f"{chapters.__name__}.{module}").EXERCISES:
            if exercise.name in found:
                raise ValueError(f"two exercises are called {exercise.name!r}; the second one is in {module}")
            found[exercise.name] = exercise
    return found


def progress(projector: bool = False) -> Picture:
    """A row a chapter, a box an exercise: full and ticked where it is solved."""
    solved, size = _solved(), draw.font_size(projector)
    rows: dict[str, list[Exercise]] = {}
    for exercise in exercises().values():
        rows.setdefault(exercise.chapter, []).append(exercise)
    figure = draw.figure(0.0375 * size * len(rows) + 0.3, projector)
    left = 0.17 * size / figure.get_figwidth()
    axes = figure.add_axes((left, 0.02, 0.99 - left, 0.96))
    axes.set_axis_off()
    for row, (chapter, tasks) in enumerate(rows.items()):
        axes.text(-0.05, -row, chapter, ha="right", va="center", fontsize=size, color=INK)
        for column, task in enumerate(tasks):
            _box(axes, column, row, task.name, task.name in solved, size)
    axes.set_xlim(0, max(map(len, rows.values())))
    axes.set_ylim(0.5 - len(rows), 0.5)
    names = ", ".join(name for name in exercises() if name in solved)
    finding = f"{len(solved)} of {len(exercises())} exercises solved{': ' + names if names else ''}."
    return Picture(figure, finding, finding)


def _box(axes: Axes, column: int, row: int, name: str, done: bool, size: float) -> None:
    face = COLOURS["decode"] if done else "none"
    axes.add_patch(Rectangle((column + 0.02, -row - 0.3), 0.96, 0.6, facecolor=face, edgecolor=INK, linewidth=1))
    words = f"✓ {name}" if done else name
    axes.text(column + 0.5, -row, words, ha="center", va="center", fontsize=0.8 * size, color=INK)


def _call(function: Callable, arguments: tuple) -> object:
    """What comes back, or the error; a function that changes its arguments spoils a copy."""
    try:
        return function(*copy.deepcopy(arguments))
    except Exception as error:
        return Raised(f"{type(error).__name__}: {error}")


def _same(found: object, wanted: object) -> bool:
    """Equal; numbers within a billionth; lists and tuples alike."""
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, Real):
        try:
            return bool(found == wanted)
        except (ValueError, RuntimeError):  # an array has no truth value
            return False
    return isinstance(found, Real) and math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12)


def _solved() -> set[str]:
    """Names in the file that are exercises; a file that can't be read counts as none."""
    try:
        if not Path(FILE).is_file():  # a pipe would be waited for
            return set()
        with open(FILE, "rb") as file:
            names = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(exercises()) & {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _remember(name: str) -> bool:
    """Writes the file whole or not at all; False where it can't be written."""
    try:
        with whole(FILE) as file:
            file.write(json.dumps(sorted(_solved() | {name})).encode())
    except FileError:
        return False
    return True
