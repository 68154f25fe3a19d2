"""What the benches share: where their progress goes, spans of a run, numbers that must be there, ratios to a rival."""

import statistics
from collections.abc import Callable, Iterable
from typing import TypeVar

from disagg.show.report import Row
from disagg.trace.results import Run
from disagg.trace.spans import Span

Say = Callable[[str], None]  # takes what a bench does now, in words
T = TypeVar("T")


def known(value: T | None) -> T:
    """The value. ValueError where there is none: a percentile of nothing, or the law of a run without a hand-off."""
    if value is None:
        raise ValueError("a value that the bench needs is missing: the run has no request or hand-off that gives it")
    return value


def spans_of(run: Run, kind: str, count: int | None = None) -> list[Span]:
    """Spans of a kind by start; with `count`, those of so many tokens or rows."""
    found = [span for span in run.timeline.spans if span.kind == kind and count in (None, span.count)]
    return sorted(found, key=lambda span: span.start_ns)


def one_pass(run: Run) -> Span:
    """The only prefill pass of a run."""
    (found,) = spans_of(run, "prefill")
    return found


def seconds(span: Span) -> float:
    return (span.end_ns - span.start_ns) / 1e9


def median_s(spans: Iterable[Span]) -> float:
    return statistics.median(map(seconds, spans))


def compute_of(span: Span) -> tuple[float, float]:
    """c and the tail of a pass, in seconds: between hand-offs, and from the last hand-off to the end."""
    marks = span.hand_offs_ns
    return (marks[-1] - marks[0]) / 1e9 / (len(marks) - 1), (span.end_ns - marks[-1]) / 1e9


def ratio_row(name: str, pairs: list[tuple[float, float]], bar: float | None, what: str) -> Row:
    """New tokens a second of ours over theirs, the median of the pairs."""
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    note = f"{what}: {ours:,.1f} against {theirs:,.1f} new tokens/s"
    return Row(name, statistics.median(a / b for a, b in pairs), "×", bar, len(pairs), note, at_most=False)
