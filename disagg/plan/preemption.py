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

    def ways(self) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
        """Each arm with its cost as an estimate's only term."""
        costs = (Arm.SPILL, self.spill_ns), (Arm.RECOMPUTE, self.recompute_ns)
        return [(arm.value, () if ns is None else ((arm.value, ns),)) for arm, ns in costs]


@dataclass
class PreemptionCosts:
    """Speeds of this run, as exponential means."""

    out: Link = Link()
    back: Link = Link()
    copy_ns_per_byte: float = 0.2
    prefill_ns_per_token: float | None = None
    prefilled: tuple[float, float] | None = None  # ns and tokens of a recent pass
    hand_off_ns_per_byte: float = 0.0
    recent: float = 0.2

    def observe_copy(self, nbytes: int, took_ns: int) -> None:
        if nbytes:
            self.copy_ns_per_byte += self.recent * (took_ns / nbytes - self.copy_ns_per_byte)

    def observe_hand_off(self, nbytes: int, took_ns: int) -> None:
        if nbytes:
            self.hand_off_ns_per_byte += self.recent * (took_ns / nbytes - self.hand_off_ns_per_byte)

    def observe_prefill(self, tokens: int, took_ns: int) -> None:
        """A mean over tokens, not over passes: one of a single token takes nearly as long as one of many."""
        took, read = self.prefilled or (took_ns, tokens)
        took, read = took + self.recent * (took_ns - took), read + self.recent * (tokens - read)
        self.prefilled, self.prefill_ns_per_token = (took, read), took / max(1, read)

    def choose(
        self, request: int, tokens: int, nbytes: int, *, host_room: bool, prefill_backlog: int, bytes_ahead: int
    ) -> Choice:
        """The cheaper arm. Tokens queued before its prefill, and bytes in paging before its spill, count too."""
        spill = None
        if host_room:
            legs = (self.out, nbytes), (self.back, nbytes), (self.out, bytes_ahead)
            spill = sum(self.copy_ns(link, size) for link, size in legs)
        recompute = self.prefill_ns(tokens + prefill_backlog)
        spills = spill is not None and (recompute is None or spill <= recompute)
        return Choice(request, tokens, spill, recompute, Arm.SPILL if spills else Arm.RECOMPUTE)

    def prefill_ns(self, tokens: int) -> int | None:
        """None while no prefill speed is known."""
        return None if self.prefill_ns_per_token is None else round(tokens * self.prefill_ns_per_token)

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
