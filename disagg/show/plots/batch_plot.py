"""Decode batches: rows by bin, what padding costs, which rows join and leave; a column a step, or one step as bars.
Heights and lengths are tokens that attention reads, rows × longest of each bin; padding is hatched.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from disagg.plan.batching import bin_of
from disagg.plan.errors import EngineError
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import numbers_of, plural, why_none
from disagg.trace.batch_history import BatchRow, BatchStep, batch_steps, padding_of
from disagg.trace.results import Run

#: Shades of decode's colour for neighbouring bins; they differ in greyscale too.
SHADES = ("#8FD3BE", COLOURS["decode"], "#00523C")
PADDING = "///"
#: Rows under the columns: why rows come and why they go.
REASONS = {
    "first, last step": ("handed off", "prefilled", "eos", "length", "cancelled", "failed"),
    "host memory": ("parked", "back from the host", "spilled"),
    "computed again": ("computed again", "to be computed again"),
    "waits for a block": ("got its block", "waits for a block"),
}
JOINS, LEAVES = ("^", INK), ("v", "white")  # glyph, colour of its face
TALL_IN = 2.6  # of one worker's columns
BAR_IN = 0.024  # of one row's bar, by points of the font
BETWEEN = 0.5  # bins, in heights of a bar


def batches_picture(run: Run) -> Picture:
    """Steps to the right, a panel a decode worker."""
    size, steps = draw.FONT_PT, batch_steps(run)
    workers = sorted({step.worker for step in steps}) or ["decode 0"]
    whys = {why for step in steps for why in (*step.joins.values(), *step.leaves.values())}
    reasons = [name for name, members in REASONS.items() if whys & set(members)]  # the rows under the columns
    tall, strip = TALL_IN * size / 12, 0.024 * size * max(1, len(reasons))
    legend, head, foot, gap = 0.03 * size, 0.03 * size, 0.055 * size, 0.01 * size
    height = legend + len(workers) * (head + tall + gap + strip + foot)
    figure, y = draw.blank(height), height - legend
    left = 0.125 * size / figure.get_figwidth()
    for worker in workers:
        own = [step for step in steps if step.worker == worker]
        window = (own[0].number - 0.5, own[-1].number + 0.5) if own else (-0.5, 0.5)
        y -= head + tall
        axes = figure.add_axes((left, y / height, 0.985 - left, tall / height), xlim=window)
        _columns(axes, own, run.config.bins, size)
        several = f"{worker}, " if len(workers) > 1 else ""
        draw.names(axes, size, title=f"{several}tokens read in each step")
        axes.tick_params(labelbottom=False)
        y -= gap + strip
        below = figure.add_axes((left, y / height, 0.985 - left, strip / height), sharex=axes)
        _comings_and_goings(below, own, reasons, size)
        draw.names(below, size, "decode step")
        y -= foot
    _legend(figure, bool(run.config.bins), size)
    finding, numbers = run_words(steps), numbers_of(run)
    alt = " ".join(_step_alt(step, numbers) for step in steps)
    return Picture(figure, f"Decode batches, a column a step. {finding} {alt}", finding)


def _columns(axes: Axes, steps: list[BatchStep], bounds: tuple[int, ...], size: float) -> None:
    """Each bin's rows from the bottom, then its padding, hatched; the next bin above."""
    px_per_step = axes.get_window_extent().width / np.diff(axes.get_xlim())[0]
    half, line = (0.5, 0) if px_per_step < 6 else (0.42, 0.8)
    filled: list[list] = [[] for _ in SHADES]
    hatched = []
    for step in steps:
        base = 0
        for group in step.bins:
            edges = np.cumsum([base, *(row.length for row in group)])
            top = base + len(group) * _longest(group)
            boxes = [_column(step.number, half, low, high) for low, high in zip(edges, edges[1:], strict=False)]
            filled[_shade(group, bounds)] += boxes if line else [_column(step.number, half, base, edges[-1])]
            hatched.append(_column(step.number, half, edges[-1], top))
            base = top
    _fill(axes, filled, hatched, line)
    highest = max((step.padding.padded_slots for step in steps), default=1)
    axes.set_ylim(0, 1.05 * highest)
    draw.plain(axes, size, across=True)
    axes.locator_params(axis="x", integer=True)


def _longest(group: tuple[BatchRow, ...]) -> int:
    return max(row.length for row in group)


def _shade(group: tuple[BatchRow, ...], bounds: tuple[int, ...]) -> int:
    return bin_of(_longest(group), bounds) % len(SHADES) if bounds else 1


def _fill(axes: Axes, filled: list[list], hatched: list, line: float) -> None:
    for colour, boxes in zip(SHADES, filled, strict=True):
        look = draw.look(facecolors=colour, edgecolors="white", linewidths=line, label="rows")
        axes.add_collection(PolyCollection(boxes, **look))
    look = draw.look(facecolors="white", edgecolors="#777777", linewidths=0, hatch=PADDING, label="padding")
    axes.add_collection(PolyCollection(hatched, **look))


def _column(number: float, half: float, low: float, high: float) -> list[tuple[float, float]]:
    return draw.box(number - half, number + half, low, high)


def _comings_and_goings(axes: Axes, steps: list[BatchStep], reasons: list[str], size: float) -> None:
    """A row a reason: upwards at the step with which rows join, downwards at the last step of those that leave."""
    for row, name in enumerate(reasons):
        joins = [step.number for step in steps if set(step.joins.values()) & set(REASONS[name])]
        leaves = [step.number for step in steps if set(step.leaves.values()) & set(REASONS[name])]
        for kind, numbers, (glyph, face), shift in (("joins", joins, JOINS, 0.2), ("leaves", leaves, LEAVES, -0.2)):
            look = draw.look(color=INK, markerfacecolor=face, markersize=0.45 * size, label=f"{kind}: {name}")
            axes.plot(numbers, [shift - row] * len(numbers), glyph, clip_on=False, **look)
    draw.plain(axes, size)
    axes.set_ylim(0.4 - max(1, len(reasons)), 0.6)
    axes.set_yticks([-row for row in range(len(reasons))], reasons)


def _legend(figure: Figure, several_bins: bool, size: float) -> None:
    handles: list[Patch | Line2D] = [
        Patch(facecolor=SHADES[1], label="rows, a shade a bin" if several_bins else "rows"),
        Patch(facecolor="white", edgecolor="#777777", linewidth=0, hatch=PADDING, label="padding"),
    ]
    for words, (glyph, face) in (("joins", JOINS), ("leaves after it", LEAVES)):
        handles.append(Line2D([], [], color=INK, marker=glyph, linestyle="", markerfacecolor=face, label=words))
    draw.legend(figure, size, handles, 0.995, 0.1, handlelength=1.4, columnspacing=1.0)


# ---- one step --------------------------------------------------------------------------------------------------------


def batch_picture(run: Run, index: int) -> Picture:
    """The run's decode step `index`, counted by start: a bar a row, bin by bin, each with its padding."""
    steps = _steps_of(run)
    if not -len(steps) <= index < len(steps):
        raise EngineError(f"decode step {index} does not exist: this run has {len(steps)}, from 0 to {len(steps) - 1}")
    step, numbers, size = steps[index], numbers_of(run), draw.FONT_PT
    deep = len(step.rows) + BETWEEN * (len(step.bins) - 1)
    height = 0.055 * size + BAR_IN * size * deep
    figure = draw.blank(height)
    box = (0.1 * size / figure.get_figwidth(), 0.05 * size / height, 0.45, BAR_IN * size * deep / height)
    longest = max(row.length for row in step.rows)
    axes = figure.add_axes(box, xlim=(0, longest), ylim=(deep, 0))
    y, places, hatched = 0.0, {}, []
    filled: list[list] = [[] for _ in SHADES]
    for group in step.bins:
        for row in group:
            filled[_shade(group, run.config.bins)].append(draw.box(0, row.length, y + 0.08, y + 0.92))
            hatched.append(draw.box(row.length, _longest(group), y + 0.08, y + 0.92))
            places[row.request] = y + 0.5
            draw.note(axes, _row_words(step, row), (longest, y + 0.5), (6, 0), size)
            y += 1
        y += BETWEEN
    _fill(axes, filled, hatched, 0)
    draw.plain(axes, size)
    axes.set_yticks(list(places.values()), [f"request {numbers[request]}" for request in places])
    draw.names(axes, size, "tokens that attention reads; hatched: padding", loc="left")
    finding = step_words(step, numbers)
    return Picture(figure, f"One decode step, a bar a row. {finding} {_step_alt(step, numbers)}", finding)


def _row_words(step: BatchStep, row: BatchRow) -> str:
    joins, leaves = step.joins.get(row.request), step.leaves.get(row.request)
    return f"{row.length}" + (f"  ▲ {joins}" if joins else "") + (f"  ▽ {leaves}" if leaves else "")


def _steps_of(run: Run) -> list[BatchStep]:
    """EngineError where there are none to choose from."""
    if steps := batch_steps(run):
        return steps
    raise EngineError(f"Decode batches: {why_none(run, 'decode step')}")


# ---- words -----------------------------------------------------------------------------------------------------------


def step_words(step: BatchStep, numbers: dict[int, int]) -> str:
    padding = step.padding
    words = (
        f"Step {step.number} on {step.worker}: {plural(len(step.rows), 'row')} in {plural(len(step.bins), 'bin')}, "
        f"{padding.used_slots} tokens in {padding.padded_slots} slots, {padding.waste:.0%} padding"
    )
    return f"{words}; joins: {_named(step.joins, numbers)}; leaves after it: {_named(step.leaves, numbers)}."


def _named(whys: dict[int, str], numbers: dict[int, int]) -> str:
    return ", ".join(f"{numbers[request]} ({why})" for request, why in whys.items()) or "nobody"


def run_words(steps: list[BatchStep]) -> str:
    """Steps, rows, padding, and the reasons counted."""
    tokens = sum(len(step.rows) for step in steps)
    if not steps:
        return "No decode step was recorded."
    padding = padding_of(steps)
    worst = max(steps, key=lambda step: step.padding.waste)
    at = f" (most in step {worst.number}: {worst.padding.waste:.0%})" if worst.padding.waste else ""
    joins = Counter(why for step in steps for why in step.joins.values())
    leaves = Counter(why for step in steps for why in step.leaves.values())
    return (
        f"{plural(len(steps), 'decode step')} of {tokens / len(steps):.1f} rows on average; {padding.waste:.0%} of the "
        f"{padding.padded_slots:,} slots read were padding{at}; joined: {_counted(joins)}; left: {_counted(leaves)}."
    )


def _counted(whys: Counter) -> str:
    return ", ".join(f"{why} {count}" for why, count in sorted(whys.items())) or "nobody"


def _step_alt(step: BatchStep, numbers: dict[int, int]) -> str:
    """Every length of a step, bin by bin: request = tokens."""
    groups = (", ".join(f"{numbers[row.request]} = {row.length}" for row in group) for group in step.bins)
    return f"Step {step.number}: {' | '.join(groups)}."
