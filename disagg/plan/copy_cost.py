"""What a copy costs: a fixed part, mostly the host's, and a bandwidth; and how large a copy should be for that.

Where Config.layers_per_copy is None, layers are put together until the fixed part is a small share of their copy: some
layers of a long prompt, and a short prompt whole where the wire is fast.
"""

from typing import NamedTuple

from disagg.plan.link import Link

BUSY = 3  # times as long as alone does the host need for a copy beside a prefill pass; measured on two H200
SHARE = 1 / 3  # of a copy's time that may be its fixed part


class RouteCost(NamedTuple):
    fixed_s: float  # with a host that does nothing else
    bandwidth: float  # bytes a second

    @property
    def least_bytes(self) -> int:
        """The smallest copy whose fixed part, on a busy host, is no more than SHARE of it."""
        return round(BUSY * self.fixed_s * self.bandwidth * (1 - SHARE) / SHARE)

    def dialled(self, link: Link) -> "RouteCost":
        """On a wire that is held as slow as the link says, whose fixed part does not grow with a busy host."""
        return RouteCost(max(self.fixed_s, link.fixed_s / BUSY), min(self.bandwidth, link.bandwidth))


def cost_of(small: tuple[int, float], large: tuple[int, float]) -> RouteCost:
    """The line through two copies (bytes, seconds)."""
    rate = max(large[1] - small[1], 1e-9) / max(1, large[0] - small[0])  # noise may turn a tiny pair around
    return RouteCost(max(0.0, small[1] - small[0] * rate), 1 / rate)
