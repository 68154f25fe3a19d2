"""What the benches share: where their progress goes, and numbers that must be there."""

from collections.abc import Callable
from typing import TypeVar

Say = Callable[[str], None]  # takes what a bench does now, in words
T = TypeVar("T")


def known(value: T | None) -> T:
    """The value. ValueError where there is none: a percentile of nothing, or the law of a run without a hand-off."""
    if value is None:
        raise ValueError("a value that the bench needs is missing: the run has no request or hand-off that gives it")
    return value
