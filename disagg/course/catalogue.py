"""All exercises, pieces and questions of the course, and which are solved: a small file beside the notebooks."""

import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from disagg.course.exercise import Exercise
from disagg.course.piece_hints import HINTS
from disagg.course.questions import Question
from disagg.plan.errors import FileError
from disagg.trace.files import whole

FILE = ".disagg-progress.json"
MOST_BYTES = 100_000  # of that file; cut off there, it can't be read
NOT_KEPT = f"; {FILE} can't be written here, so progress() will not know of it"


@cache
def chapters() -> dict[str, ModuleType]:
    """The module of each notebook, by the notebook's name, in the order of the course."""
    from disagg.course import chapters

    names = sorted(module.name for module in pkgutil.iter_modules(chapters.__path__))
    return {name.removeprefix("ch"): importlib.import_module(f"{chapters.__name__}.{name}") for name in names}


@cache
def exercises() -> dict[str, Exercise]:
    """By name, in the order of the chapters."""
    found: dict[str, Exercise] = {}
    for chapter, module in chapters().items():
        for exercise in getattr(module, "EXERCISES", ()):
            if exercise.name in found:
                raise ValueError(f"two exercises are called {exercise.name!r}; the second one is in {chapter}")
            found[exercise.name] = exercise
    return found


@cache
def quizzes() -> dict[str, tuple[Question, ...]]:
    """By the number of the chapter, as "03"."""
    return {chapter[:2]: module.QUIZ for chapter, module in chapters().items()}


def hints_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The call that tries this exercise or piece, and its three hints."""
    if name in HINTS:
        return f'check_mine("{name}", …)', HINTS[name]
    if name not in exercises():
        known = ", ".join([*exercises(), *HINTS])
        raise ValueError(f"there is no exercise or piece {name!r}; known: {known}")
    return f'check("{name}", {name})', exercises()[name].hints


def piece_name(name: str) -> str:
    return f"piece {name}"


def question_name(chapter: str, number: int) -> str:
    return f"quiz {chapter}.{number}"


def solved() -> set[str]:
    """Names in the file that are exercises, pieces or questions; a file that can't be read counts as none."""
    try:
        if not Path(FILE).is_file():  # a pipe would be waited for
            return set()
        with open(FILE, "rb") as file:
            names = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return set()
    return _known() & {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def remember(name: str) -> bool:
    """Writes the file whole or not at all; False where it can't be written."""
    try:
        with whole(FILE) as file:
            file.write(json.dumps(sorted(solved() | {name})).encode())
    except FileError:
        return False
    return True


def _known() -> set[str]:
    numbered = {chapter: range(1, len(questions) + 1) for chapter, questions in quizzes().items()}
    pieces = map(piece_name, HINTS)
    return {
        *exercises(),
        *pieces,
        *(question_name(chapter, n) for chapter, numbers in numbered.items() for n in numbers),
    }
