"""An exercise: the learner's function is called on cases and compared with the reference. Known mistakes are named."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from numbers import Real
from typing import Any, NamedTuple


class Judged(NamedTuple):
    """What a given function is worth; `tried` is False where nothing was written yet."""

    right: bool
    words: str
    tried: bool = True


@dataclass(frozen=True)
class Exercise:
    """One task: `answer` is the reference, `wrong` are plausible mistakes, each with words that say what it is."""

    name: str
    chapter: str  # the notebook's name without its ending
    task: str
    answer: Callable
    cases: tuple[tuple, ...]  # arguments of each call
    wrong: tuple[tuple[Callable, str], ...]
    hints: tuple[str, ...]  # a nudge, a step, nearly the line
    broken: Callable | None = None  # what a task of repair starts with

    def verdict(self, given: object) -> Judged:
        if not callable(given):
            words = f"give the function itself, as in check({self.name!r}, {self.name}); got {given!r}"
            return Judged(False, words, tried=False)
        found = [_call(given, arguments) for arguments in self.cases]
        if all(map(_is_empty, found)):
            return Judged(False, f"{self.name} is still empty: it returns nothing yet", tried=False)
        if self.broken and self._is_like(self.broken, found):
            words = f"{self.name} does what it did: look for a case in which that is wrong, and repair it"
            return Judged(False, words, tried=False)
        wanted = [self.answer(*arguments) for arguments in self.cases]
        first = next((i for i, pair in enumerate(zip(found, wanted, strict=True)) if not _same(*pair)), None)
        if first is None:
            return Judged(True, f"right, on {len(self.cases)} cases")
        arguments = ", ".join(map(repr, self.cases[first]))
        mistake = next((f" ({words})" for made, words in self.wrong if self._is_like(made, found)), "")
        shown = f"{self.name}({arguments}) gives {found[first]}, and {wanted[first]} is expected{mistake}"
        return Judged(False, f'{shown}. hint("{self.name}") helps.')

    def _is_like(self, other: Callable, found: list) -> bool:
        return all(_same(each, _call(other, arguments)) for each, arguments in zip(found, self.cases, strict=True))


def exercise(
    answer: Callable,
    task: str,
    hints: tuple[str, ...],
    cases: tuple[tuple, ...],
    *wrong: Any,
    chapter: str = "",
    broken: Callable | None = None,
) -> Exercise:
    """Named like its reference, of the chapter that defines it. `wrong`: a mistake, its words, the next mistake, …"""
    chapter = chapter or answer.__module__.rpartition(".ch")[2]
    pairs = tuple(zip(wrong[::2], wrong[1::2], strict=True))
    return Exercise(answer.__name__, chapter, cleandoc(task), answer, cases, pairs, hints, broken)


@dataclass(frozen=True)
class Raised:
    error: str

    def __repr__(self) -> str:
        return f"an error ({self.error})"


def _is_empty(found: object) -> bool:
    """What a skeleton gives: `...`, nothing, or NotImplementedError."""
    return found is None or found is ... or (isinstance(found, Raised) and found.error.startswith("NotImplemented"))


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
