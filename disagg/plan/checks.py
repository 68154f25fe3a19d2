"""Is it a number at all, and in range? True is no number here, and NaN passes no comparison."""

from numbers import Integral, Real


def is_whole(value) -> bool:
    """An int, numpy's included; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value, low: float, high: float) -> bool:
    """A number in [low, high]; NaN is in no range."""
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high
