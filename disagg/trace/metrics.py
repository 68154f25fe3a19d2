"""Numbers of a run, with one definition each (seconds, tokens, bytes, shares)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear interpolation between the nearest ranks, as numpy does; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Percentiles:
    """Over `count` values, which `requests` of the run's `asked` requests gave: the others have none."""

    p50: float | None
    p90: float | None
    p99: float | None
    count: int = 0
    requests: int = 0
    asked: int = 0

    @classmethod
    def of(cls, values: Sequence[float], requests: int = 0, asked: int = 0) -> "Percentiles":
        p50, p90, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.99))
        return cls(p50, p90, p99, len(values), requests, asked)

    @classmethod
    def of_each(cls, given: Sequence[Sequence[float]]) -> "Percentiles":
        """Of all values that the requests gave, each of them some or none."""
        return cls.of([value for values in given for value in values], sum(map(bool, given)), len(given))

    @property
    def over(self) -> str:
        return f"of {self.requests} of {self.asked} requests"


@dataclass(frozen=True)
class Metrics:
    """Of one run. Rates count from the first arrival to the last token."""

    requests: int
    finished: dict[str, int]  # by reason
    new_tokens: int
    seconds: float
    tokens_per_s: float
    ttft_s: Percentiles
    second_token_gap_s: Percentiles
    tpot_s: Percentiles
    itl_s: Percentiles
    attainment: float | None  # share of requests that ended well within both limits, where limits were given
    busy: dict[str, float]  # share of the run, by worker and lane
    bytes_moved: dict[str, int]  # by lane
    peak_blocks: dict[str, int]  # by memory
    padding_waste: float  # share of the slots that attention read for nothing
    counts: dict[str, int]  # spills, fetches, recomputes, anomalies, …
