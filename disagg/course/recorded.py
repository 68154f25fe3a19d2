"""Chapter 07's scenes: what was recorded on one GPU, a run for each position of a control; nothing in between is drawn.

instrument(dials(recordings.staged())) in a notebook; they read files, so they are not among course/scenes.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from disagg.show.plots.gap_plot import gaps_beside
from disagg.show.plots.law_plot import ratio
from disagg.show.plots.summaries import milliseconds
from disagg.show.scene import Curve, Menu, Numbers, Scene, bracket
from disagg.trace.metrics import percentile
from disagg.trace.results import Run
from disagg.trace.spans import Span

START_SMS = 32  # where the instrument of splits starts: the split of the chapter's four ways
READERS = 8  # of a recording of one GPU that is shared: the first requests; those after them have long prompts
WORKERS = {
    "Colocated": "Colocated: one worker, chunks of {chunk} tokens",
    "Small chunks": "Small chunks: one worker, chunks of {chunk} tokens",
    "Streams": "Streams: two workers, a queue of kernels each",
    "SM split": "SM split: two workers, {sms} SMs for decode",
}


def machine(runs: Mapping[Any, Run]) -> str:
    """The device that recorded them, without its driver."""
    return (next(iter(runs.values())).machine or "an unnamed machine").split(",")[0]


# ---- one prompt over two hops ----------------------------------------------------------------------------------------


def dials(runs: Mapping[float, Run]) -> Scene:
    """Recordings of one prompt over the staged route, by dial; the control has the c/x that each of them measured."""
    by_ratio = {float(f"{ratio(run):.3g}"): (dial, run) for dial, run in runs.items()}
    steps = sorted(by_ratio)

    def figures(run: Run, speed: float) -> list[tuple[str, str]]:
        law, dial = run.law(0), by_ratio[speed][0]
        link = f"held back to c/x = {1 / dial:g}" if dial else "pinned memory as it is"
        assert law is not None
        said = [("H by the law", f"{law.hidden:.1%}"), ("E by the law", milliseconds(law.exposed_s))]
        return [("recorded on", machine(runs)), ("link", link), *said]

    def curve(run: Run, speed: float) -> Curve:
        law = run.law(0)
        assert law is not None
        ratios = [0.05 * step for step in range(4, 91)]
        line = [(r, replace(law, hops_s=(law.compute_s / r,) * 2).hidden) for r in ratios]
        found = [(r, by_ratio[r][1].overlap(0).hidden or 0.0) for r in steps]
        lines = {"law, with this run's c and tail": line, "what was recorded": found}
        return Curve("c/x: the link is faster to the right", "H", lines, {"this run": (speed, dict(found)[speed])})

    title = f"Two hops through pinned memory, recorded on {machine(runs)}"
    nearest = min(steps, key=lambda r: abs(r - 1))
    controls = {"speed": Numbers("c/x of a hop, as measured", nearest, steps)}
    return Scene(title, controls, lambda speed: by_ratio[speed][1], figures, curve, part="link")


# ---- one GPU for two phases ------------------------------------------------------------------------------------------


def sharing(runs: Mapping[str, Run]) -> Scene:
    """Recordings of the same requests in each arrangement of one GPU."""
    words = {
        name: WORKERS[name].format(chunk=run.config.chunk_tokens, sms=run.config.sm_split) for name, run in runs.items()
    }

    def figures(run: Run, arrangement: str) -> list[tuple[str, str]]:
        first = long_prompts_s(next(iter(runs.values())))
        return [*_shared(run), ("prefill kept", f"{first / long_prompts_s(run):.0%}")]

    title = f"One GPU for two phases, recorded on {machine(runs)}"
    start = next(iter(runs))
    controls = {"arrangement": Menu("arrangement", start, words)}
    return Scene(title, controls, lambda arrangement: runs[arrangement], figures, brackets=_waits, part="decode")


def splits(runs: Mapping[float, Run]) -> Scene:
    """Recordings of the same requests by how many SMs decode has for itself."""
    steps = [int(sms) for sms in runs]
    gaps = {sms: percentile(gaps_beside(runs[sms], range(READERS))[0], 0.99) or 0.0 for sms in steps}
    took = {sms: long_prompts_s(runs[sms]) for sms in steps}

    def curve(run: Run, sms: int) -> Curve:
        lines = {
            "gap p99 beside long prompts": [(n, gap / min(gaps.values())) for n, gap in gaps.items()],
            "time of the long prompts": [(n, time / min(took.values())) for n, time in took.items()],
        }
        here = {f"{sms} SMs": (sms, gaps[sms] / min(gaps.values()))}
        return Curve("SMs of decode; prefill has the others", "÷ the best of these", lines, here)

    title = f"One GPU split by SMs, recorded on {machine(runs)}"
    nearest = min(steps, key=lambda sms: abs(sms - START_SMS))
    controls = {"sms": Numbers("SMs for decode", nearest, steps)}
    return Scene(
        title, controls, lambda sms: runs[sms], lambda run, sms: _shared(run), curve, part="decode",
        brackets=lambda run, sms: _waits(run, ""),
    )  # fmt: skip


def _shared(run: Run) -> list[tuple[str, str]]:
    p99 = [percentile(gaps, 0.99) for gaps in gaps_beside(run, range(READERS))]
    beside, alone = ("no such gap" if gap is None else f"{1e3 * gap:.1f} ms" for gap in p99)
    return [
        ("recorded on", machine({0: run})),
        ("gap p99 beside long prompts", beside),
        ("gap p99 alone", alone),
        ("long prompts read in", f"{long_prompts_s(run):.2f} s"),
    ]


def long_passes(run: Run) -> list[Span]:
    """The prefill passes of the long prompts."""
    late = {result.request for result in run.results[READERS:]}
    return [span for span in run.timeline.spans if span.kind == "prefill" and late & set(span.requests)]


def long_prompts_s(run: Run) -> float:
    """From the first long prompt's first pass to the end of the last one's."""
    passes = long_passes(run)
    return (max(span.end_ns for span in passes) - min(span.start_ns for span in passes)) / 1e9


def _waits(run: Run, arrangement: str) -> list[dict[str, Any]]:
    """The longest wait of a reader after his second token, and the time that the long prompts take."""
    start_ns, passes = run.timeline.start_ns, long_passes(run)
    times = [result.token_times_ns[1:] for result in run.results[:READERS]]
    pairs = [pair for own in times for pair in zip(own, own[1:], strict=False)]
    begin, end = max(pairs, key=lambda pair: pair[1] - pair[0])
    found = [bracket("decode 0", begin - start_ns, end - start_ns, f"longest gap {milliseconds((end - begin) / 1e9)}")]
    if passes[0].place != "decode 0":
        ends = min(span.start_ns for span in passes) - start_ns, max(span.end_ns for span in passes) - start_ns
        found.append(bracket(passes[0].place, *ends, f"long prompts {(ends[1] - ends[0]) / 1e9:.2f} s"))
    return found
