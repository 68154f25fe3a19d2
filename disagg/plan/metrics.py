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
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        return cls(*(percentile(values, share) for share in (0.5, 0.9, 0.99)))


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
    attainment: float | None  # share of requests within both limits, where limits were given
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
        ttft_s=Percentiles.of([r.ttft_s for r in answered]),
        second_token_gap_s=Percentiles.of([g for r in answered if (g := r.second_token_gap_s) is not None]),
        tpot_s=Percentiles.of([t for r in answered if (t := r.tpot_s) is not None]),
        itl_s=Percentiles.of([gap for r in answered for gap in r.itl_s]),
        attainment=_attainment(run.results, ttft_limit_s, tpot_limit_s),
        busy={p: run.timeline.busy(p) / 1e9 / seconds if seconds else 0.0 for p in run.timeline.places},
        bytes_moved=moved,
        peak_blocks=dict(run.peak_blocks),
        padding_waste=run.padding.waste,
        counts=dict(run.counts),
    )


def _attainment(results, ttft_limit_s, tpot_limit_s) -> float | None:
    if ttft_limit_s is None and tpot_limit_s is None:
        return None
    met = [
        bool(r.token_times_ns)
        and (ttft_limit_s is None or r.ttft_s <= ttft_limit_s)
        and (tpot_limit_s is None or r.tpot_s is None or r.tpot_s <= tpot_limit_s)
        for r in results
    ]
    return sum(met) / len(met) if met else None
