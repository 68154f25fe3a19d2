"""A cell of the report's table, and the verdict that its data give."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from benchmarks.common import known
from disagg.show.report import Row
from disagg.trace.results import Run

AS_WRITTEN, ONE_SETTING = "as written", "one setting"
OURS, ONE_BY_ONE, RIVALS = "dynamic", "baseline", ("two_colocated", "colocated")
NOT_KEPT = "not kept"  # the attention of runs from before it was
NEAR = 0.05  # of a share: how far real prefill may lie from the law (benchmarks/overlap_law.py)
SLOW, FAST, TTFT, THROUGHPUT = "overlap 60 %", "overlap 96 %", "TTFT 20x", "throughput 4x"
#: The report's numbers: shares of a hand-off, and gains.
TARGETS = {SLOW: 0.60, FAST: 0.96, TTFT: 20.0, THROUGHPUT: 4.0}


def is_share(claim: str) -> bool:
    return TARGETS[claim] < 1


def shown(claim: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(claim) else f"{value:.{2 if value < 10 else 1}f}x"


def speed(gb_s: float) -> str:
    return f"{gb_s:.3g} GB/s" if gb_s >= 0.1 else f"{1e3 * gb_s:.3g} MB/s"


def reached(claim: str, value: float) -> bool:
    """A gain at least as large as the report's; a share as near to its as the law is to real prefill."""
    return abs(value - TARGETS[claim]) <= NEAR if is_share(claim) else value >= TARGETS[claim]


def verdict(
    claim: str,
    value: float,
    rivals: Mapping[str, float],
    over: str = "",
    link_gb_s: float | None = None,
    law: float | None = None,
) -> str:
    """One sentence of these data. Conditions of a number that came out: a link held at a speed; a rival that shares the
    hand-off's share, or against which the gain is less than the report's."""
    if not reached(claim, value):
        against = f" over {over}" if over else ""
        by_law = f", and the law {shown(claim, law)}" if law is not None else ""
        wanted = shown(claim, TARGETS[claim])
        return f"not reproduced: {shown(claim, value)}{against} where the report has {wanted}{by_law}"
    conditions = [f"a link held at {speed(link_gb_s)}"] if link_gb_s else []
    if is_share(claim):
        conditions += [f"{name} gives {shown(claim, share)}" for name, share in rivals.items() if reached(claim, share)]
    elif over:
        best = max(rivals, key=rivals.__getitem__, default=None)
        fair = 0.0 if best is None else value / rivals[best]
        words = "no rival that shares steps was tried" if best is None else f"over {best} it is {shown(claim, fair)}"
        conditions += [] if reached(claim, fair) else [f"over {over}; {words}"]
    return f"reproduced under conditions: {', '.join(conditions)}" if conditions else "reproduced"


@dataclass(frozen=True)
class Cell(Row):
    """A number of the report, tried once. `value` and `rivals` are shares, or gains over what `over` names."""

    claim: str = SLOW
    tried: str = AS_WRITTEN
    kind: str = "ran"  # ran, recorded, twin
    rivals: Mapping[str, float] = field(default_factory=dict)
    over: str = ""
    law: float | None = None  # the share that the law gives
    link_gb_s: float | None = None  # where it was dialled
    setting: str = ""
    machine: str = ""
    attention: str = ""

    @property
    def verdict(self) -> str:
        return verdict(self.claim, self.value, self.rivals, self.over, self.link_gb_s, self.law)

    def as_json(self) -> dict:
        return {**super().as_json(), "verdict": self.verdict}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """What `as_json` made."""
        return cls(**{one.name: row[one.name] for one in fields(cls) if one.name in row})


@dataclass(frozen=True)
class About:
    """What cells of one try share."""

    kind: str
    tried: str
    setting: str
    machine: str
    attention: str

    def cell(self, claim: str, value: float, rivals: Mapping[str, float], **more: Any) -> Cell:
        unit = "of the hand-off" if is_share(claim) else "×"
        return Cell(
            f"{claim}[{self.tried},{self.kind}]", value, unit, claim=claim, rivals=rivals, **asdict(self), **more
        )

    def overlap(self, claim: str, run: Run, whole: Run | None = None, by_law: bool = False) -> Cell:
        """H of a run over its dialled link, beside the same work handed off in one piece, and what the law gives."""
        law = known(run.law(0)).hidden if by_law else None
        rivals = {} if whole is None else {"split": hidden(whole)}
        return self.cell(claim, hidden(run), rivals, law=law, link_gb_s=run.config.links[0].bandwidth / 1e9)


def attention_of(run: Run) -> str:
    """Which kernels ran: as the run's machine line has them (old recordings do not), a library's only if a prompt was
    cut into chunks, for it reads nothing else."""
    words = run.machine.partition("attention: ")[2]
    library, reads_chunks, own = words.partition(" (chunks) and ")
    passes = Counter(request for span in run.timeline.spans if span.kind == "prefill" for request in span.requests)
    if reads_chunks and max(passes.values(), default=0) < 2:
        return f"{own}; {library} had no chunk to read"
    return words or NOT_KEPT


def waits_and_rates(sides: Mapping[str, Run]) -> tuple[dict[str, float], dict[str, float]]:
    """Median TTFT in seconds and tokens a second, by side."""
    metrics = {name: run.metrics() for name, run in sides.items()}
    return ({name: known(one.ttft_s.p50) for name, one in metrics.items()},
            {name: one.tokens_per_s for name, one in metrics.items()})  # fmt: skip


def gains(
    waits_s: Mapping[str, float], rates: Mapping[str, float], about: About, over: str = ONE_BY_ONE, ours: str = OURS
) -> Iterator[Cell]:
    """TTFT and throughput over one side, of ours and of the rivals that were served the same."""
    shorter = {name: waits_s[over] / wait for name, wait in waits_s.items()}
    faster = {name: rate / rates[over] for name, rate in rates.items()}
    for claim, gain in ((TTFT, shorter), (THROUGHPUT, faster)):
        yield about.cell(claim, gain[ours], {name: gain[name] for name in RIVALS if name in gain}, over=over)


def gains_of(sides: Mapping[str, Run], about: About, over: str = ONE_BY_ONE, ours: str = OURS) -> Iterator[Cell]:
    return gains(*waits_and_rates(sides), about, over, ours)


def hidden(run: Run) -> float:
    """H of all hand-offs of a run."""
    return known(run.overlap().hidden)


def median_run(runs: Sequence[Run]) -> Run:
    return sorted(runs, key=hidden)[len(runs) // 2]
