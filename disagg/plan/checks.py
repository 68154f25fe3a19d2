"""Checks of values: is it a number, in range, writable text, there at all? True is no number, NaN is in no range."""

from numbers import Integral, Real
from typing import TypeGuard, TypeVar

Value = TypeVar("Value")


def is_whole(value: object) -> TypeGuard[int]:
    """An int, numpy's included; True and False are none."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: object, low: float, high: float) -> TypeGuard[float]:
    """A number in [low, high]; NaN is in no range."""
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high  # type: ignore[operator]  # numbers.Real declares no order


def is_text(value: object) -> TypeGuard[str]:
    """Text that can be written: halves of surrogate pairs can't."""
    return type(value) is str and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def short(value: object) -> str:
    """A value in an error's words: one line, 60 characters at most."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"  # Python prints none
    return text if len(text) <= 60 else text[:57] + "…"


def present(value: Value | None) -> Value:
    """A value that the order of events guarantees; AssertionError where it is missing after all."""
    assert value is not None, "the controller needs a value that is not there yet"
    return value
