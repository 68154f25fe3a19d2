"""Numbers of a run, with one definition each (seconds, tokens, bytes, shares)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from disagg.plan.request import Finish

ANSWERED = (Finish.EOS.value, Finish.LENGTH.value)  # an answer that came to its end


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
        shares = (percentile(values, share) for share in (0.5, 0.9, 0.99))
        return cls(*shares, len(values), requests, asked)

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


def measure(run, ttft_limit_s: float | None = None, tpot_limit_s: float | None = None) -> Metrics:
    """Metrics of a run; the limits make it say which share of the requests met them."""
    answered = [r for r in run.results if r.token_times_ns]
    reasons = [r.finish_reason for r in run.results]
    start = min((r.arrival_ns for r in run.results), default=0)
    end = max((r.token_times_ns[-1] for r in answered), default=start)
    seconds, tokens = (end - start) / 1e9, sum(len(r.token_ids) for r in run.results)
    moved: dict[str, int] = {}
    for span in run.timeline.spans:
        if span.nbytes:
            moved[span.place] = moved.get(span.place, 0) + span.nbytes
    return Metrics(
        requests=len(run.results),
        finished={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        new_tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        ttft_s=Percentiles.of_each([_known(r.ttft_s) for r in run.results]),
        second_token_gap_s=Percentiles.of_each([r.itl_s[:1] for r in run.results]),
        tpot_s=Percentiles.of_each([_known(r.tpot_s) for r in run.results]),
        itl_s=Percentiles.of_each([r.itl_s for r in run.results]),
        attainment=_attainment(run.results, ttft_limit_s, tpot_limit_s),
        busy={p: run.timeline.busy(p) / 1e9 / seconds if seconds else 0.0 for p in run.timeline.places},
        bytes_moved=moved,
        peak_blocks=dict(run.peak_blocks),
        padding_waste=run.padding.waste,
        counts=dict(run.counts),
    )


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _attainment(results, ttft_limit_s, tpot_limit_s) -> float | None:
    if ttft_limit_s is None and tpot_limit_s is None:
        return None
    met = [_meets(result, ttft_limit_s, tpot_limit_s) for result in results]
    return sum(met) / len(met) if met else None


def _meets(result, ttft_limit_s: float | None, tpot_limit_s: float | None) -> bool:
    """Whoever has no whole answer met no limit, however early its tokens came."""
    return (
        result.finish_reason in ANSWERED
        and bool(result.token_times_ns)
        and (ttft_limit_s is None or result.ttft_s <= ttft_limit_s)
        and (tpot_limit_s is None or result.tpot_s is None or result.tpot_s <= tpot_limit_s)
    )
