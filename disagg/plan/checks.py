"""Checks of values. True is no number, and NaN is in no range."""

from numbers import Integral, Real
from typing import TypeGuard, TypeVar

Value = TypeVar("Value")


def is_whole(value: object) -> TypeGuard[int]:
    """An int, or one of numpy's; not True or False."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: object, low: float, high: float) -> TypeGuard[float]:
    """A number in [low, high]."""
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high  # type: ignore[operator]  # numbers.Real declares no order


def is_text(value: object) -> TypeGuard[str]:
    """Text without halves of surrogate pairs, which no file can hold."""
    return type(value) is str and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def short(value: object) -> str:
    """A value's repr, cut to 60 characters, for an error's message."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"  # of which Python makes no text
    except Exception as error:
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"


def present(value: Value | None) -> Value:
    """The value itself, which the order of events guarantees; AssertionError for None."""
    assert value is not None, "the controller needs a value that is not there yet"
    return value
