"""What a copy costs on a route, and the smallest copy that is worth its fixed part.

Notebook: notebooks/03_layer_streaming.ipynb.
"""

from typing import NamedTuple

from disagg.plan.link import Link

BUSY = 3  # the host's part of a copy takes so many times longer beside a prefill pass; measured on two H200
SHARE = 1 / 3  # of a copy's time that may be its fixed part


class RouteCost(NamedTuple):
    """What a copy costs. Where Config.layers_per_copy is None, a copy has as many layers as make `fixed_s` a small
    share of it."""

    fixed_s: float  # on an idle host
    bandwidth: float  # bytes a second

    @property
    def least_bytes(self) -> int:
        """The smallest copy whose fixed part, on a busy host, is no more than SHARE of it."""
        return round(BUSY * self.fixed_s * self.bandwidth * (1 - SHARE) / SHARE)

    def dialled(self, link: Link) -> "RouteCost":
        """The cost on an emulated link, whose fixed part does not grow with a busy host."""
        return RouteCost(max(self.fixed_s, link.fixed_s / BUSY), min(self.bandwidth, link.bandwidth))


def cost_of(small: tuple[int, float], large: tuple[int, float]) -> RouteCost:
    """The line through two copies (bytes, seconds)."""
    rate = max(large[1] - small[1], 1e-9) / max(1, large[0] - small[0])  # noise may turn a tiny pair around
    return RouteCost(max(0.0, small[1] - small[0] * rate), 1 / rate)
