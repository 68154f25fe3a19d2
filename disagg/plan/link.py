"""The emulated link between two memories: how long a copy occupies it, and when the copy lands.

busy_until = max(posted, busy_until) + fixed + bytes / bandwidth; landing = busy_until + latency.
Notebook: notebooks/03_layer_streaming.ipynb.
"""

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from disagg.plan.checks import is_number, short
from disagg.plan.errors import ConfigError

#: Bandwidths in bytes a second, one direction. NVLink: NVIDIA's data sheets of A100, H100, B200 (all links of a GPU);
#: PCIe 5: measured to pinned memory (an H200, 2026); 4 and 3: half of it each; Ethernet: line rate / 8; TCP on one of
#: 25 Gbit/s: an assumption of 0.8 of it; memory: a copy between two CPU cores, measured (Zen 3, 2026), ± 20 %.
PRESETS = {
    "nvlink5": 900e9,
    "nvlink4": 450e9,
    "nvlink3": 300e9,
    "nvlink": 450e9,
    "pcie5x16": 55e9,
    "pcie4x16": 26e9,
    "pcie3x16": 13e9,
    "400gbe": 50e9,
    "200gbe": 25e9,
    "100gbe": 12.5e9,
    "25gbe": 3.125e9,
    "25gbe-tcp": 2.5e9,
    "10gbe": 1.25e9,
    "1gbe": 0.125e9,
    "wifi": 0.03e9,
    "slow": 0.01e9,
    "memory": 5e9,
}

#: 30 years: beyond that the system's timers overflow.
LONGEST_S = 1e9

#: No finite bandwidth is larger; infinity is no limit.
MOST_BANDWIDTH = 1e30

#: The fastest link that a CPU can emulate: above it, the delays of two busy cores' threads dominate.
CPU_DIAL_LIMIT = 0.5e9


@dataclass(frozen=True)
class Link:
    """One direction of a link: bytes/s, seconds of latency (paid once), seconds of fixed cost per copy."""

    bandwidth: float = math.inf
    latency_s: float = 0.0
    fixed_s: float = 0.0
    compute_ratio: float | None = None  # c/x, which becomes a bandwidth once c is measured

    def __post_init__(self) -> None:
        for name in ("latency_s", "fixed_s"):
            if not is_number(value := getattr(self, name), 0, LONGEST_S):
                raise ConfigError(f"link {name} must be seconds, from 0 to {LONGEST_S:g}; got {short(value)}")
        if not is_number(self.bandwidth, 1, math.inf) or MOST_BANDWIDTH < self.bandwidth < math.inf:
            raise ConfigError(f"link bandwidth must be bytes a second, 1 or more; got {short(self.bandwidth)}")
        ratio = self.compute_ratio
        if ratio is not None and (not is_number(ratio, 0, 1e9) or ratio == 0):
            what = "c/x above 0 (compute of a layer over its transfer)"
            raise ConfigError(f"Link.ratio takes {what}; got {short(ratio)}")

    @classmethod
    def ratio(cls, compute_over_transfer: float, latency_s: float = 0.0, fixed_s: float = 0.0) -> "Link":
        """A link on which a layer's transfer x takes c / ratio, where c is this machine's compute of a layer."""
        return cls(math.inf, latency_s, fixed_s, compute_over_transfer)

    def against(self, compute_s: float, layer_bytes: int) -> "Link":
        """A link of the bandwidth that gives its c/x for this compute and these bytes; itself without a c/x."""
        if self.compute_ratio is None:
            return self
        return dataclasses.replace(self, bandwidth=layer_bytes * self.compute_ratio / compute_s, compute_ratio=None)

    @property
    def dialled(self) -> bool:
        """False for the plain link, which delays no copy."""
        return self.bandwidth < math.inf or self.latency_s > 0 or self.fixed_s > 0

    def occupancy_ns(self, nbytes: int) -> int:
        """How long a copy of `nbytes` keeps the link busy (x_i in the law)."""
        return round((self.fixed_s + nbytes / self.bandwidth) * 1e9)


def parse_link(value: object, device: str = "cpu") -> Link:
    """A Link from a Link, a preset's name, None (plain) or a bandwidth; ConfigError above CPU_DIAL_LIMIT on a CPU."""
    match value:
        case None:
            return Link()
        case Link():
            link = value
        case str() if value in PRESETS:
            link = Link(PRESETS[value])
        case str():
            raise ConfigError(f"link {short(value)} is unknown; known: {', '.join(PRESETS)}")
        case int() | float() if not isinstance(value, bool):
            link = Link(float(value) if abs(value) <= MOST_BANDWIDTH else value)
        case _:
            raise ConfigError(f"link must be a Link, a preset's name or bytes a second; got {short(value)}")
    if device == "cpu" and CPU_DIAL_LIMIT < link.bandwidth < math.inf:
        raise ConfigError(
            f"link of {link.bandwidth / 1e9:g} GB/s is faster than the emulation holds on a CPU "
            f"({CPU_DIAL_LIMIT / 1e9:g} GB/s); take Link.ratio(c/x) for the same proportion, or a slower link"
        )
    return link


class LinkClock:
    """When each copy that is posted on a link ends and lands, one after the other."""

    def __init__(self, link: Link = Link()) -> None:
        self.link = link
        self.busy_until_ns = 0

    def post(self, nbytes: int, now_ns: int) -> tuple[int, int, int]:
        """Occupies the link with one copy; returns its (start, end of occupancy, landing) in ns."""
        start = max(now_ns, self.busy_until_ns)
        self.busy_until_ns = start + self.link.occupancy_ns(nbytes)
        return start, self.busy_until_ns, self.busy_until_ns + round(self.link.latency_s * 1e9)


class LaneRole(StrEnum):
    """Which way the copies of a lane go; transfer_scheduler.py draws them."""

    DIRECT, DOWN, UP, SPILL, PARK = "direct", "down", "up", "spill", "park"


class LaneName(NamedTuple):
    """One direction of one device's link. `index` counts prefill devices for direct, down and
    park, else decode devices."""

    role: LaneRole
    index: int  # type: ignore[assignment]  # hides tuple.index

    def __str__(self) -> str:
        return f"{self.role} {self.index}"
