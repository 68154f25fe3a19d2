"""What a run gives back: a result a request, the timeline, and the counts of the whole."""

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from disagg.plan.batching import Padding
from disagg.plan.commands import Placed
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.preemption import Choice
from disagg.plan.request import Finish, Stage
from disagg.trace.metrics import Metrics, Percentiles
from disagg.trace.timeline import Overlap, Timeline

if TYPE_CHECKING:
    from disagg.trace.law import Law
    from disagg.trace.receipts import Receipt

ANSWERED = (Finish.EOS.value, Finish.LENGTH.value)  # an answer that came to its end


@dataclass
class Result:
    """One request's answer. Times are seconds from its arrival, queue included."""

    request: int
    prompt_tokens: int
    arrival_ns: int
    token_ids: list[int] = field(default_factory=list)
    token_times_ns: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""  # eos, length, cancelled, failed
    error: str | None = None
    logits: list[Any] = field(default_factory=list)  # a row a token, where the request asked to keep them
    stages: tuple[tuple[int, Stage], ...] = ()  # (ns, stage) in order
    ended_ns: int = 0
    seat: int | None = None  # the decode worker it was on last
    prompt: str = ""  # as it was given; "" where it was given as token ids
    timeline: Timeline | None = field(default=None, repr=False, compare=False)  # what was recorded meanwhile

    def __repr__(self) -> str:
        """Counts and the text's beginning: the same on every machine."""
        count, end = len(self.token_ids), self.finish_reason or "not ended yet"
        tokens = f"{count} new token{'' if count == 1 else 's'}"
        text = f", {shorten(self.text, 60, placeholder=' …')!r}" if self.text else ""
        return f"Request {self.request}: {tokens}, {end}{f' ({self.error})' if self.error else ''}{text}"

    @property
    def receipt(self) -> "Receipt":
        """Where its time went, as named waits and works; EngineError before its end, or where nothing was recorded."""
        if self.timeline is None or not self.finish_reason:
            raise EngineError(
                f"request {self.request} has no receipt: it has not ended, or it was served with record=False"
            )
        if not self.timeline.reaches(self.arrival_ns):
            raise EngineError(
                f"request {self.request} has no receipt any more: outside of a run only the last "
                f"{len(self.timeline.spans):,} spans are kept; ask sooner, or let serve() serve it"
            )
        from disagg.trace.receipts import receipt

        return receipt(self, self.timeline.index())

    @property
    def recorded(self) -> bool:
        return self.timeline is not None

    def meets(self, ttft_limit_s: float | None, tpot_limit_s: float | None) -> bool:
        """Does it keep both limits? A request without a whole answer keeps none, however early its tokens came."""
        return (
            self.finish_reason in ANSWERED
            and self.ttft_s is not None
            and (ttft_limit_s is None or self.ttft_s <= ttft_limit_s)
            and (tpot_limit_s is None or self.tpot_s is None or self.tpot_s <= tpot_limit_s)
        )

    @property
    def ttft_s(self) -> float | None:
        return (self.token_times_ns[0] - self.arrival_ns) / 1e9 if self.token_times_ns else None

    @property
    def itl_s(self) -> list[float]:
        """All gaps between tokens, the second token's included."""
        return [(b - a) / 1e9 for a, b in pairwise(self.token_times_ns)]

    @property
    def second_token_gap_s(self) -> float | None:
        return next(iter(self.itl_s), None)

    @property
    def tpot_s(self) -> float | None:
        times = self.token_times_ns
        return (times[-1] - times[0]) / 1e9 / (len(times) - 1) if len(times) > 1 else None


@dataclass
class Run:
    """The results of `serve` or `simulate`, in the order of the requests."""

    config: Config
    results: list[Result]
    timeline: Timeline
    counts: dict[str, int] = field(default_factory=dict)
    padding: Padding = field(default_factory=Padding)
    peak_blocks: dict[str, int] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)  # spill or recompute, with both costs
    log: list[tuple[int, Any]] = field(default_factory=list)  # (ns, event) as the controller consumed them
    interrupted: bool = False
    machine: str = ""  # on which it was measured, in words
    placements: list[Placed] = field(default_factory=list)  # split or stay, fetch or recompute: each way's estimate

    def __repr__(self) -> str:
        """Counts alone: the same on every machine."""
        ends = Counter(result.finish_reason or "open" for result in self.results)
        words = ", ".join(f"{count} {end}" for end, count in ends.items()) or "none"
        tokens = sum(len(result.token_ids) for result in self.results)
        return f"Run: {len(self.results)} requests ({words}), {tokens} new tokens; {self.timeline}"

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes a recording of everything but `log` and logits; packed where the name ends in .gz. FileError."""
        from disagg.trace import archive

        archive.save(path, self.header(), self.records(), overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> "Run":
        """What `save` wrote; `within` is a folder that the path must not leave. FileError."""
        from disagg.trace import archive

        found = archive.load(path, within, run=True)
        header, timeline = found.header, Timeline.of(found)
        results = [Result(timeline=timeline if row.pop("recorded") else None, **row) for row in found.results]
        return cls(
            archive.config_from(header["config"]),
            results,
            timeline,
            header["counts"],
            Padding(*header["padding"]),
            header["peak_blocks"],
            found.choices,
            interrupted=header["interrupted"],
            machine=header["machine"],
            placements=found.placements,
        )

    def header(self) -> dict[str, Any]:
        from disagg.trace import archive

        padding = [self.padding.used_slots, self.padding.padded_slots]
        values = (archive.config_row(self.config), self.machine, self.counts, padding, self.peak_blocks)
        return self.timeline.header() | dict(zip(archive.OF_A_RUN, (*values, self.interrupted), strict=True))

    def records(self) -> dict[str, list[Any]]:
        return self.timeline.records() | {"choice": self.choices, "placement": self.placements, "result": self.results}

    @property
    def anomalies(self) -> int:
        """Notices that came late, twice or for nothing; 0 where no fault was injected."""
        return self.counts.get("anomalies", 0)

    def metrics(self, ttft_limit_s: float | None = None, tpot_limit_s: float | None = None) -> Metrics:
        """Of this run; with limits also which share of the requests met them."""
        results, timeline, reasons = self.results, self.timeline, [r.finish_reason for r in self.results]
        limited = results and (ttft_limit_s is not None or tpot_limit_s is not None)
        met = sum(result.meets(ttft_limit_s, tpot_limit_s) for result in results) if limited else 0
        start = min((r.arrival_ns for r in results), default=0)
        end = max((r.token_times_ns[-1] for r in results if r.token_times_ns), default=start)
        seconds, tokens = (end - start) / 1e9, sum(len(r.token_ids) for r in results)
        moved: dict[str, int] = {}
        for span in timeline.spans:
            if span.nbytes:
                moved[span.place] = moved.get(span.place, 0) + span.nbytes
        return Metrics(
            requests=len(results),
            finished={reason: reasons.count(reason) for reason in sorted(set(reasons))},
            new_tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds if seconds else 0.0,
            ttft_s=Percentiles.of_each([_known(r.ttft_s) for r in results]),
            second_token_gap_s=Percentiles.of_each([r.itl_s[:1] for r in results]),
            tpot_s=Percentiles.of_each([_known(r.tpot_s) for r in results]),
            itl_s=Percentiles.of_each([r.itl_s for r in results]),
            attainment=met / len(results) if limited else None,
            busy={p: timeline.busy(p) / 1e9 / seconds if seconds else 0.0 for p in timeline.places},
            bytes_moved=moved,
            peak_blocks=dict(self.peak_blocks),
            padding_waste=self.padding.waste,
            counts=dict(self.counts),
        )

    @property
    def has_receipts(self) -> bool:
        """Was every request that began recorded to its end?"""
        served = [result for result in self.results if result.request >= 0]
        return bool(served) and all(result.recorded and result.finish_reason for result in served)

    def receipts(self) -> dict[str, float]:
        """Mean seconds of a request by name: where the milliseconds went."""
        sums: Counter[str] = Counter()
        served = [result for result in self.results if result.request >= 0]  # an interrupt leaves some that never were
        for result in served:
            sums.update(result.receipt.totals())
        from disagg.trace.receipts import NAMES

        return {name: sums[name] / len(served) for name in NAMES if name in sums}

    def law(self, index: int) -> "Law | None":
        """What the law predicts for one result's hand-off, beside `overlap`; None where it does not hold."""
        return self.timeline.law(self.results[index].request, self.config.ring_slots)

    def overlap(self, index: int | None = None) -> Overlap:
        """H, W and E of one result, or of the run."""
        return self.timeline.overlap(None if index is None else self.results[index].request)


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]
