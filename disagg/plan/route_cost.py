"""What a copy costs the wire: a fixed part and a bandwidth; and how large a copy should be for that.

Where Config.layers_per_copy is None, layers are put together until the fixed part is a small share of their copy: one
layer of a long prompt, some of a shorter one, and a short prompt whole.
"""

from typing import NamedTuple

SHARE = 1 / 3  # of a copy's time that may be its fixed part


class RouteCost(NamedTuple):
    fixed_s: float
    bandwidth: float  # bytes a second

    @property
    def least_bytes(self) -> int:
        """The smallest copy whose fixed part is no more than SHARE of it."""
        return round(self.fixed_s * self.bandwidth * (1 - SHARE) / SHARE)


def cost_of(small: tuple[int, float], large: tuple[int, float]) -> RouteCost:
    """The line through two copies (bytes, seconds)."""
    rate = max(large[1] - small[1], 1e-9) / max(1, large[0] - small[0])  # noise may turn a tiny pair around
    return RouteCost(max(0.0, small[1] - small[0] * rate), 1 / rate)
