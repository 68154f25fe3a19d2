"""Cost against goodput: every arrangement that `tune` measured, and the front of those that nothing as cheap beats.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import json
from pathlib import Path

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.palette import INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.twin.traces import Arrival, read_trace, scaled
from disagg.twin.tuning import Trial, Tuning
from disagg.twin.workloads import Lengths, poisson

KINDS = {True: ("s", "no split: each device does both"), False: ("o", "prefill and decode apart")}


def front_picture(found: Tuning) -> Picture:
    """A point a trial with its goodput, and a line along the front; a shape says whether it splits."""
    figure, axes = draw.single(3.48, 0.9, 0.6, 0.42)
    size = draw.FONT_PT
    front, measured = found.front, [trial for trial in found.trials if trial.per_s]
    line = draw.look(color=INK, linewidth=2, label="front", drawstyle="steps-post", zorder=2)
    axes.plot([t.cost for t in front], [t.goodput for t in front], **line)
    for colocated, (marker, label) in KINDS.items():
        if some := [t for t in measured if t.config.colocated == colocated]:
            look = draw.look(markersize=0.75 * size, color="white", markeredgecolor=INK, markeredgewidth=1.8)
            axes.plot([t.cost for t in some], [t.goodput for t in some], marker, label=label, zorder=3, **look)
    for trial in front:
        at, by = (trial.cost, trial.goodput), (-0.7 * size, 0.2 * size)
        draw.note(axes, f"{trial.arrangement}: {trial.per_s:.3g}", at, by, size, ha="right", va="bottom")
    _frame(axes, measured, found, size)
    draw.legend(figure, size, ncols=3)
    finding = front_in_words(found)
    each = " ".join(f"{_cost(found, t)}: {t.per_s:.3g} requests a second, {t.words}." for t in front)
    return Picture(figure, f"Goodput over cost. {finding} {each}".strip(), finding)


def _frame(axes: Axes, measured: list[Trial], found: Tuning, size: float) -> None:
    most = max((trial.cost for trial in measured), default=1.0)
    axes.set_xlim(0, 1.08 * most)
    axes.set_ylim(0, 1.15 * max((trial.goodput for trial in measured), default=1.0))
    if not found.priced:
        axes.set_xticks(range(1, round(most) + 1))
    draw.names(axes, size, "cost, per hour" if found.priced else "cost, devices", "goodput, requests/s")


def front_in_words(found: Tuning) -> str:
    best, limits = found.best, f"TTFT {found.slo.ttft_s:g} s and TPOT {found.slo.tpot_s:g} s"
    if not best.per_s:
        return (
            f"No rate was found at which {found.slo.share:.0%} of the requests meet {limits}; {best.words} came "
            f"closest, with {best.attainment:.0%}."
        )
    words = f"Highest goodput under {limits}: {best.per_s:.3g} requests a second, on {best.words}."
    other = found.best_of(not best.config.colocated)
    kind = "a split" if best.config.colocated else "no split"
    if other is None:
        return f"{words} With {kind}, nothing came near it."
    return f"{words} With {kind}, {other.goodput / best.goodput:.0%} of that: {other.words}."


def front_rows(found: Tuning) -> list[tuple[str, ...]]:
    return [
        (f"{t.hardware}: {t.arrangement}", _cost(found, t), f"{t.per_s:.3g}", f"{t.attainment:.0%}", *_settings(t))
        for t in found.front
    ]


COLUMNS = ("who", "cost", "goodput, requests/s", "within limits", "chunk", "batch", "route", "layers a copy")


def _settings(trial: Trial) -> tuple[str, ...]:
    config = trial.config
    budgets = f"{config.chunk_tokens:,}", str(config.max_batch)
    if config.colocated:
        return *budgets, "", ""
    ring = f", ring of {config.ring_slots}" if config.route == "staged" else ""
    return *budgets, config.route + ring, str(config.layers_per_copy or "as measured")


def _cost(found: Tuning, trial: Trial) -> str:
    return f"{trial.cost:g} an hour" if found.priced else plural(trial.devices, "device")


def workload(trace: Path | None, lengths: float, count: int, prompt: int, new: int, seed: int) -> list[Arrival]:
    """The first arrivals of a trace, lengths scaled; or drawn ones, whose prompts and answers have long tails."""
    if trace is not None:
        return scaled(read_trace(trace)[:count], lengths)
    return poisson(count, 4.0, Lengths(prompt, 1.0, most=10 * prompt), Lengths(new, 0.7, most=10 * new), seed)


def effort(found: Tuning) -> str:
    requests, skipped = found.load.requests, found.skipped
    words = f"{plural(len(found.trials), 'candidate')}, {plural(found.simulations, 'simulation')}"
    if found.best.per_s:
        seconds = len(requests) / found.best.per_s
        words += f"; at the best rate the {len(requests)} requests arrive within {seconds:.3g} s"
    reasons = dict.fromkeys(trial.why for trial in skipped)
    return ". ".join([words, *(f"{sum(t.why == why for t in skipped)} {why}" for why in reasons)]) + "."


def as_json(found: Tuning, asked: dict) -> bytes:
    """All trials as rows, the front by their numbers, and what `workload` was asked for, so that each runs again."""
    asked = {**asked, "trace": None if asked["trace"] is None else asked["trace"].name}
    content: dict[str, object] = {"workload": asked, "hardware": found.hardware.words, "slo": vars(found.slo)}
    content |= {"requests": len(found.load.requests), "front": [found.trials.index(trial) for trial in found.front]}
    content["rows"] = [trial.row for trial in found.trials]
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
