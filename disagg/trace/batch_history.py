"""Who was in each decode step, bin by bin: who joined and why, who left and why, and what padding cost.

Read off a finished run: steps from its spans, lengths from the times of tokens, reasons from the stages of requests.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from disagg.plan.batching import Padding
from disagg.plan.errors import EngineError
from disagg.plan.request import Finish, Stage
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span

Stages = tuple[tuple[int, Stage], ...]  # of a result: (ns, stage) in order

#: Why a row of a step was not in the one before.
JOINS = ("handed off", "prefilled", "parked", "back from the host", "computed again", "got its block")
#: Why a row of a step is not in the next one.
ENDS = tuple(finish.value for finish in Finish if finish is not Finish.REJECTED)
LEAVES = (*ENDS, "spilled", "to be computed again", "waits for a block")


class BatchRow(NamedTuple):
    """A request in a step: `length` tokens are read for it, the one that the step takes in among them."""

    request: int
    length: int


@dataclass(frozen=True)
class BatchStep:
    """One decode step. `joins` came with it, `leaves` went after it, each with the reason."""

    worker: str
    number: int
    start_ns: int
    end_ns: int
    bins: tuple[tuple[BatchRow, ...], ...]
    joins: dict[int, str] = field(default_factory=dict)
    leaves: dict[int, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[BatchRow]:
        return [row for group in self.bins for row in group]

    @property
    def padding(self) -> Padding:
        """Slots that held a token, and all that attention read: rows × longest, bin by bin."""
        return padding([[row.length for row in group] for group in self.bins])


def batch_steps(run: Run) -> list[BatchStep]:
    """All decode steps of a run, by start; EngineError where a request of another caller was among the rows."""
    results = {result.request: result for result in run.results}
    found: list[BatchStep] = []
    spans = [span for span in run.timeline.spans if span.kind == "decode"]
    for worker in sorted({span.place for span in spans}):
        own = sorted((span for span in spans if span.place == worker), key=lambda span: span.index)
        for span in own:
            if strangers := set(span.requests) - set(results):
                raise EngineError(
                    f"step {span.index} on {worker} held requests {sorted(strangers)}, which are not of this run; "
                    "serve on an engine to which nothing else is submitted"
                )
        found += _steps_of(worker, own, results)
    return sorted(found, key=lambda step: (step.start_ns, step.worker))


def padding(groups: list[list[int]]) -> Padding:
    """The formula: each group of context lengths is read as rows × its longest."""
    total = Padding()
    for lengths in groups:
        if lengths:
            total.add(sum(lengths), len(lengths) * max(lengths))
    return total


def padding_of(steps: Iterable[BatchStep]) -> Padding:
    return padding([[row.length for row in group] for step in steps for group in step.bins])


def _steps_of(worker: str, spans: list[Span], results: dict[int, Result]) -> list[BatchStep]:
    lengths: dict[int, int] = {}
    turns = [{r: _turn(results[r].stages, span.ready_ns) for r in span.requests} for span in spans]
    steps = []
    for span, before, now, after in zip(spans, [{}, *turns], turns, [*turns[1:], {}], strict=False):
        for request in span.requests:
            lengths[request] = _length(results[request], span.end_ns, lengths.get(request, 0))
        joins = {r: _why_in(results[r].stages, turn) for r, turn in now.items() if before.get(r) != turn}
        leaves = {r: _why_out(results[r], turn) for r, turn in now.items() if after.get(r) != turn}
        bins = tuple(tuple(BatchRow(r, lengths[r]) for r in group) for group in _groups(span))
        steps.append(BatchStep(worker, span.index, span.start_ns, span.end_ns, bins, joins, leaves))
    return steps


def _groups(span: Span) -> list[tuple[int, ...]]:
    ends = [sum(span.groups[: index + 1]) for index in range(len(span.groups))]
    return [span.requests[end - size : end] for end, size in zip(ends, span.groups, strict=True)]


def _length(result: Result, step_end_ns: int, before: int) -> int:
    """Prompt and tokens so far; at least one more than in its last step, whose token may have been dropped."""
    return max(result.prompt_tokens + bisect_left(result.token_times_ns, step_end_ns), before + 1)


def _turn(stages: Stages, at_ns: int) -> int:
    """Which of its stages is the RUNNING that a step composed at this instant found it in."""
    return max((i for i, (at, stage) in enumerate(stages) if at <= at_ns and stage is Stage.RUNNING), default=0)


def _why_in(stages: Stages, turn: int) -> str:
    """By the stage before it landed, and whether it had landed before."""
    names = [stage for _, stage in stages[:turn]]
    came = names[-2] if len(names) > 1 else Stage.HANDING_OFF
    if came is Stage.FETCHING:
        return "parked" if names[-3:-2] == [Stage.PARKED] else "back from the host"
    if came is Stage.RUNNING:
        return "got its block"
    if Stage.LANDED in names[:-1]:
        return "computed again"
    return "handed off" if came is Stage.HANDING_OFF else "prefilled"


def _why_out(result: Result, turn: int) -> str:
    """By the stage after RUNNING; a row that sat out and was preempted at the same instant was preempted."""
    if turn + 1 >= len(result.stages):  # its life was not recorded to the end
        return result.finish_reason
    at_ns, stage = result.stages[turn + 1]
    if stage is Stage.LANDED and turn + 2 < len(result.stages):
        then_ns, then = result.stages[turn + 2]
        stage = then if then_ns == at_ns and then is not Stage.RUNNING else stage
    names = {Stage.SPILLING: "spilled", Stage.QUEUED: "to be computed again", Stage.LANDED: "waits for a block"}
    return result.finish_reason if stage is Stage.ENDED else names.get(stage, stage.value)
