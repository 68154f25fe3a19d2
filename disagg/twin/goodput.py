"""Goodput: the highest arrival rate at which enough requests meet both limits, found on the twin by bisection.

    load = Load.of(poisson(200, per_s=4, prompt=Lengths(800, 1.0), new=Lengths(100)))
    goodput(Config.preset("streamed", model="random-llama3-8b"), load, Slo(ttft_s=1.0, tpot_s=0.05), "2xL4")

Rates are steps of 5 % from the workload's own, so that each can be simulated again. Attainment of a finite workload
need not fall with every step: the search finds a rate that is met while the next step is missed.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

from disagg.plan.checks import is_number, short
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError, RequestError
from disagg.plan.request import Finish, Request
from disagg.twin.hardware import Hardware
from disagg.twin.simulate import simulate
from disagg.twin.traces import Arrival
from disagg.twin.workloads import requests_of

STEP = 1.05  # from one rate to the next
FARTHEST = 160  # steps from the workload's own rate: 2,400 times as much, or as little
LASTS = 5  # arrivals must last this many times the limit on TTFT, or no queue can grow past it
STRIDE = 8  # steps of the first leap, 1.5 times the rate; 2 from a rate that is already near


@dataclass(frozen=True)
class Slo:
    """Limits in seconds, and the share of requests that must meet both of them."""

    ttft_s: float
    tpot_s: float
    share: float = 0.9

    def __post_init__(self) -> None:
        for name, what in (("ttft_s", "time to first token"), ("tpot_s", "time per output token")):
            value = getattr(self, name)
            if not is_number(value, 1e-9, 1e9):
                raise ConfigError(f"{name} must be the limit on the {what} in seconds, above 0; got {short(value)}")
        if not is_number(self.share, 0, 1) or self.share == 0:
            raise ConfigError(f"share must be above 0 and at most 1, as 0.9; got {short(self.share)}")


@dataclass(frozen=True)
class Load:
    """Requests at a rate that can be set: all gaps are scaled alike, lengths and order stay."""

    requests: tuple[Request, ...]
    per_s: float  # their own rate

    @classmethod
    def of(cls, workload: "Load | Iterable[Arrival | Request]", vocab: int = 32_000, seed: int = 0) -> "Load":
        """A load of Requests, or of Arrivals, whose token ids the seed draws. RequestError if there is no rate."""
        if isinstance(workload, Load):
            return workload
        given: list[object] = list(workload) if isinstance(workload, Iterable) else [workload]
        arrivals = [one for one in given if isinstance(one, Arrival)]
        found = requests_of(arrivals, vocab, seed) if arrivals else [one for one in given if isinstance(one, Request)]
        if len(found) < len(given):
            raise RequestError("a workload is a list of Arrivals (twin/workloads, twin/traces) or of Requests")
        found.sort(key=lambda request: request.arrival_s)
        span_s = found[-1].arrival_s - found[0].arrival_s if found else 0.0
        if span_s <= 0:
            raise RequestError(
                f"a workload of {len(found)} requests within {span_s:g} s has no arrival rate that could be raised or "
                "lowered; give two or more that arrive at different times"
            )
        return cls(tuple(found), (len(found) - 1) / span_s)

    def at(self, per_s: float) -> list[Request]:
        """The same requests at another rate, the first one at 0 s."""
        if not is_number(per_s, 1e-9, 1e9):
            raise RequestError(f"per_s must be requests a second, above 0; got {short(per_s)}")
        first_s, stretch = self.requests[0].arrival_s, self.per_s / per_s
        moved = [copy(request) for request in self.requests]  # as `replace`, but a checked prompt is not checked again
        for request in moved:
            object.__setattr__(request, "arrival_s", (request.arrival_s - first_s) * stretch)
        return moved

    def rate(self, step: int) -> float:
        return self.per_s * STEP**step

    def last_step(self, seconds: float) -> int:
        """The highest rate at which the arrivals last this long."""
        own_s = (len(self.requests) - 1) / self.per_s
        return max(-FARTHEST, min(FARTHEST, math.floor(math.log(own_s / seconds, STEP))))


class Probe(NamedTuple):
    """One simulation: at this rate, this share of the requests met both limits, and this one failed."""

    per_s: float
    attainment: float
    failed: float = 0.0


class TooShort(RequestError):
    """The workload would end before a queue could show that the hardware is overloaded."""


@dataclass(frozen=True)
class Goodput:
    """The result of a search. `step` is None if no rate is met, or `least` is missed."""

    step: int | None
    per_s: float
    attainment: float  # at that rate
    probes: tuple[Probe, ...]  # in the order of the search
    slo: Slo
    requests: int  # of the workload

    def __str__(self) -> str:
        """The result and the rates that were searched, in words."""
        best = max(self.probes, key=lambda probe: (probe.attainment, probe.per_s))
        found = f"goodput {self.per_s:.3g} requests a second, where {self.attainment:.0%} keep the limits"
        if self.step is None:
            failed = f" ({best.failed:.0%} failed there)" if best.failed else ""
            found = f"no goodput: at best {best.attainment:.0%} of the requests keep the limits, at {best.per_s:.3g} "
            found += f"a second{failed}"
        return f"{found}; {self.where}"

    @property
    def where(self) -> str:
        rates, slo = [probe.per_s for probe in self.probes], self.slo
        return (
            f"looked for at {len(rates)} rates from {min(rates):.3g} to {max(rates):.3g} a second with {self.requests} "
            f"requests, of which {slo.share:.0%} must keep TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s:g} s"
        )


def goodput(config: Config, load: Load, slo: Slo, hardware: str | Hardware, least: int | None = None) -> Goodput:
    """Searches from the workload's own rate; with `least`, from that step, and stops at once if that is missed.
    TooShort, and what `simulate` raises."""
    probes: dict[int, Probe] = {}

    def met(step: int) -> bool:
        if step not in probes:
            run = simulate(config, load.at(load.rate(step)), hardware=hardware, record=False)
            metrics = run.metrics(slo.ttft_s, slo.tpot_s)
            failed = metrics.finished.get(Finish.FAILED.value, 0) / metrics.requests
            probes[step] = Probe(load.rate(step), metrics.attainment or 0.0, failed)
        return probes[step].attainment >= slo.share

    most = load.last_step(LASTS * slo.ttft_s)
    if least is not None:
        least = min(most, max(least, -FARTHEST))
    step = None
    if least is None or met(least):
        step = highest(met, min(most, 0) if least is None else least, STRIDE if least is None else 2, most)
    rate, attainment = (0.0, 0.0) if step is None else probes[step][:2]
    found = Goodput(step, rate, attainment, tuple(probes.values()), slo, len(load.requests))
    if step == most:
        raise TooShort(
            f"{found.requests} requests are too few: at {rate:.3g} a second they meet the limits, but arrive within "
            f"{found.requests / rate:.3g} s, and only {LASTS} times the TTFT limit of {slo.ttft_s:g} s would show a "
            f"queue that grows; take more of them, or stricter limits ({found.where})"
        )
    return found


def highest(met: Callable[[int], bool], start: int, stride: int = STRIDE, most: int = FARTHEST) -> int | None:
    """A step that is met while the next one is missed, by leaps that double and then by bisection. `most` if every step
    is met, None if none is."""
    low = high = start
    if met(start):
        while low < most and met(high := min(most, low + stride)):
            low, stride = high, 2 * stride
    else:
        while not met(low := max(-FARTHEST, high - stride)):
            if low == -FARTHEST:
                return None
            high, stride = low, 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if met(middle) else (low, middle)
    return low
