"""The paging decision: spill a preempted request's K/V to the host, or compute them again, whichever costs less.

Notebook: notebooks/04_cpu_paging.ipynb.
"""

from dataclasses import dataclass
from enum import Enum

from disagg.plan.link import Link


class Arm(Enum):
    SPILL = "spill"
    RECOMPUTE = "recompute"


@dataclass(frozen=True)
class Choice:
    """One decision with both costs (spill: there and back)."""

    request: int
    tokens: int
    spill_ns: int | None  # None where the host has no room
    recompute_ns: int | None  # None where no prefill speed is known yet
    arm: Arm


@dataclass
class PreemptionCosts:
    """Speeds of this run, as exponential means."""

    out: Link = Link()
    back: Link = Link()
    copy_ns_per_byte: float = 0.2
    hand_off_ns_per_byte: float = 0.0
    recent: float = 0.2

    def observe_copy(self, nbytes: int, took_ns: int) -> None:
        if nbytes:
            self.copy_ns_per_byte += self.recent * (took_ns / nbytes - self.copy_ns_per_byte)

    def observe_hand_off(self, nbytes: int, took_ns: int) -> None:
        if nbytes:
            self.hand_off_ns_per_byte += self.recent * (took_ns / nbytes - self.hand_off_ns_per_byte)

    def spill_ns(self, nbytes: int, bytes_ahead: int) -> int:
        """There and back, behind the bytes that are in paging."""
        legs = (self.out, nbytes), (self.back, nbytes), (self.out, bytes_ahead)
        return sum(self.copy_ns(link, size) for link, size in legs)

    def hand_off_ns(self, nbytes: int) -> int:
        """A hand-off on the slower of its links, or by measured ones, whichever is longer."""
        dialled = max(link.occupancy_ns(nbytes) + round(link.latency_s * 1e9) for link in (self.out, self.back))
        return max(dialled, round(nbytes * self.hand_off_ns_per_byte))

    def copy_ns(self, link: Link, nbytes: int) -> int:
        """One copy: by the link or by measured copies, whichever is longer."""
        if nbytes == 0:
            return 0
        dialled = link.occupancy_ns(nbytes) + round(link.latency_s * 1e9)
        return max(dialled, round(nbytes * self.copy_ns_per_byte))
