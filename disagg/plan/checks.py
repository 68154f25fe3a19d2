"""Is it a number at all, and in range? True is no number here, and NaN passes no comparison."""

from numbers import Integral, Real


def is_whole(value) -> bool:
    """An int, numpy's included; True and False are none."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value, low: float, high: float) -> bool:
    """A number in [low, high]; NaN is in no range."""
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high


def is_text(value) -> bool:
    """Text that can be written: halves of surrogate pairs can't."""
    return type(value) is str and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def short(value) -> str:
    """A value in an error's words: one line, and no more than a glance of it."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"  # Python prints none
    return text if len(text) <= 60 else text[:57] + "…"
