"""The page map: every block of every memory at an instant, and over the run; colours are requests, hatches states.
Blocks that were never used in the run are only counted. Notebook: notebooks/04_cpu_paging.ipynb.
"""

import textwrap
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from disagg.plan.preemption import Arm
from disagg.plan.request import Stage
from disagg.show.plots import draw
from disagg.show.plots.block_words import (
    STATE_NAMES,
    BlockView,
    counts_words,
    decision_words,
    owners_words,
)
from disagg.show.plots.palette import INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import milliseconds, plural, runs_of
from disagg.show.plots.timeline_plot import time_axis
from disagg.trace.block_map import Held
from disagg.trace.results import Run

EMPTY = "#FFFFFF"
STATE_HATCH = {"used": "", "in_flight": "////", "quarantined": "xxxx"}
CELL_PX, MAP_PX = 32, 380  # the largest block, and the most that all rows of blocks may be high
OVER_TIME_IN = 4.4  # height of all memories together


# ---- one instant -----------------------------------------------------------------------------------------------------


def page_map_picture(run: Run, at_s: float) -> Picture:
    """All blocks `at_s` seconds after the run began."""
    view, size, at_ns = BlockView(run), draw.FONT_PT, round(at_s * 1e9) + run.timeline.start_ns
    cell, columns, rows = _grid(view, 100 * (draw.WIDTH_IN - 0.3))
    head, top, words = 0.028 * size, 0.03 * size, 0.04 * size
    height = top + words + sum(head + n * cell / 100 for n in rows.values())
    figure, y = draw.blank(height), height - top
    now = view.map.at(at_ns)
    oldest = max((at_ns - h.since_ns for blocks in now.values() for h in blocks if h.owner is not None), default=0)
    for pool, deep in rows.items():
        y -= head + deep * cell / 100
        box = (0.15 / draw.WIDTH_IN, y / height, columns * cell / 100 / draw.WIDTH_IN, deep * cell / 100 / height)
        axes = figure.add_axes(box, xlim=(0, columns), ylim=(deep, 0))
        axes.set_axis_off()
        blocks = [now[pool][block] for block in view.map.touched(pool)]
        _cells(axes, view, blocks, columns)
        _ages(axes, blocks, columns, at_ns, oldest)
        _owners(axes, view, blocks, columns, cell, size)
        _above(axes, _pool_title(view, pool, now[pool]), size)
    past = [d for d in view.decisions if d.at_ns <= at_ns]
    last = decision_words(view, past[-1]) if past else "no request has lost its blocks yet"
    _write(figure, last[0].upper() + last[1:] + ".", size)
    _states_legend(figure, size, f"bar: age, full = {milliseconds(oldest / 1e9)}")
    finding = f"At {view.seconds(at_ns):.3f} s, {counts_words(view, at_ns)}"
    alt = f"Map of blocks, a square a block. {finding}. {owners_words(view, at_ns)}. Last decision: {last}."
    return Picture(figure, alt, finding + ".")


def _grid(view: BlockView, width_px: float) -> tuple[float, int, dict[str, int]]:
    """Pixels of a block, blocks a row, and rows of each memory: the largest blocks that fit."""
    cell = CELL_PX
    while True:
        columns = int(width_px // cell)
        rows = {pool: -(-len(view.map.touched(pool)) // columns) for pool in view.pools}
        if cell <= 3 or sum(rows.values()) * cell <= MAP_PX:
            return cell, columns, rows
        cell -= 1


def _cells(axes: Axes, view: BlockView, blocks: list[Held], columns: int) -> None:
    """Squares by state: a hatch belongs to a whole collection."""
    for state in STATE_NAMES:
        places = [(index, held.owner) for index, held in enumerate(blocks) if held.state == state]
        if not places:
            continue
        cells = [divmod(index, columns) for index, _ in places]
        squares = [draw.box(x + 0.05, x + 0.95, y + 0.05, y + 0.95) for y, x in cells]
        if state == "free":
            axes.add_collection(PolyCollection(squares, facecolors=EMPTY, edgecolors="#BBBBBB", linewidths=0.8))
        else:
            _owned(axes, squares, [view.colour(owner) for _, owner in places if owner is not None], state)


def _owned(axes: Axes, boxes: list, colours: list[str], state: str) -> None:
    """Boxes in their owners' colours, with the hatch of their state."""
    axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="none", label=state))
    if hatch := STATE_HATCH[state]:
        look = draw.look(facecolors="none", edgecolors="#555555", linewidths=0, hatch=hatch)
        axes.add_collection(PolyCollection(boxes, **look))


def _ages(axes: Axes, blocks: list[Held], columns: int, at_ns: int, oldest: int) -> None:
    """A bar at the foot of each held block, as long as it has been in its state."""
    bars = []
    for index, held in enumerate(blocks):
        if held.owner is not None and oldest:
            x, y, wide = index % columns + 0.05, index // columns, 0.9 * (at_ns - held.since_ns) / oldest
            bars.append(draw.box(x, x + wide, y + 0.83, y + 0.95))
    axes.add_collection(PolyCollection(bars, facecolors=INK, edgecolors="none", label="age"))


def _owners(axes: Axes, view: BlockView, blocks: list[Held], columns: int, cell: float, size: float) -> None:
    """A request's number, once for each stretch of its blocks that has room for it."""
    for row in range(-(-len(blocks) // columns)):
        cells = enumerate(blocks[row * columns : (row + 1) * columns])
        for owner, group in groupby(cells, key=lambda pair: pair[1].owner):
            places = [column for column, _ in group]
            if owner is None or cell < 1.4 * size:
                continue
            text = str(view.number(owner))
            if len(places) * cell > (0.9 * len(text) + 0.6) * size:
                draw.tag(axes, places[0] + len(places) / 2, row + 0.44, text, size, 1.0, 0.75)


def _pool_title(view: BlockView, pool: str, blocks: list[Held]) -> str:
    held = sum(h.owner is not None for h in blocks)
    never = len(blocks) - len(view.map.touched(pool))
    more = f" ({never:,} more were never used in this run)" if never else ""
    return f"{view.names[pool]}: {held} of {len(blocks):,} blocks held{more}"


def _above(axes: Axes, text: str, size: float) -> None:
    draw.note(axes, text, (0, 1), (0, 4), size, "xy", ha="left", va="bottom")


def _write(figure: Figure, text: str, size: float) -> None:
    across = int(72 * figure.get_figwidth() / (0.56 * size))
    lines = textwrap.wrap(text, across, max_lines=2, placeholder=" …")
    x, y = 0.15 / figure.get_figwidth(), 0.04 / figure.get_figheight()
    figure.text(x, y, "\n".join(lines), fontsize=size, color=INK, va="bottom", parse_math=False)


def _states_legend(figure: Figure, size: float, more: str = "") -> None:
    patches = [
        Patch(facecolor="#BBBBBB", edgecolor="#444444", linewidth=0, hatch=STATE_HATCH[state], label=STATE_NAMES[state])
        for state in STATE_HATCH
    ]
    patches.append(Patch(facecolor=EMPTY, edgecolor="#BBBBBB", label="free"))
    if more:
        patches.append(Patch(facecolor="none", edgecolor="none", label=more))
    draw.legend(figure, size, patches, 0.995, 0.1, handlelength=1.4, columnspacing=1.0)


# ---- the whole run ---------------------------------------------------------------------------------------------------


class Patchwork(NamedTuple):
    """Neighbouring blocks with one owner and state over the same time, as one box."""

    owner: int
    state: str
    start_s: float
    end_s: float
    low: int
    high: int


def pages_over_time_picture(run: Run) -> Picture:
    """Blocks upwards, time to the right, a panel a memory; below, what became of requests without them."""
    view, size = BlockView(run), draw.FONT_PT
    window = (0.0, max(1e-3, 1e3 * view.seconds(view.map.end_ns)))
    talls = _talls(view, OVER_TIME_IN * size / 12)
    head, strip, top, bottom = 0.028 * size, 0.018 * size * len(paging_events(view)), 0.03 * size, 0.05 * size
    height = top + bottom + strip + 0.012 * size + sum(head + tall for tall in talls.values())
    figure, y, axes = draw.blank(height), height - top, None
    left = 0.1 * size / figure.get_figwidth()
    for pool, tall in talls.items():
        y -= head + tall
        axes = figure.add_axes((left, y / height, 0.985 - left, tall / height), sharex=axes)
        axes.set_xlim(window)
        touched = len(view.map.touched(pool))
        axes.set_ylim(0, touched)
        _patches(axes, view, list(patchwork(view, pool)), size)
        draw.names(axes, size, y="block")
        draw.plain(axes, size)
        axes.set_yticks([0, touched])
        axes.tick_params(labelbottom=False)
        never = view.map.sizes[pool] - touched
        _above(axes, view.names[pool] + (f" ({never:,} more blocks never used)" if never else ""), size)
    y -= strip + 0.012 * size
    axes = figure.add_axes((left, y / height, 0.985 - left, strip / height), sharex=axes, xlim=window)
    _preemptions(axes, view, size)
    time_axis(axes, window, size, "since the start; numbers are requests")
    _states_legend(figure, size)
    finding = _run_words(view)
    words = "; ".join(decision_words(view, decision) for decision in view.decisions)
    decided = f"Decisions: {words}." if words else "No decisions to spill or to recompute."
    return Picture(figure, f"Blocks over time, a panel a memory. {decided} {finding}", finding)


def _talls(view: BlockView, height_in: float) -> dict[str, float]:
    """Heights in inches: more for more blocks, but none so low that it can't be read."""
    roots = {pool: len(view.map.touched(pool)) ** 0.5 for pool in view.pools}
    shares = {pool: max(root, 0.3 * max(roots.values())) for pool, root in roots.items()}
    return {pool: height_in * share / sum(shares.values()) for pool, share in shares.items()}


def patchwork(view: BlockView, pool: str) -> Iterable[Patchwork]:
    """The memory's stretches, those of neighbouring blocks joined; blocks that were never held take no room."""
    place = {block: place for place, block in enumerate(view.map.touched(pool))}
    alike = attrgetter("owner", "state", "start_ns", "end_ns")
    stretches = sorted(view.map.stretches(pool), key=attrgetter("owner", "state", "start_ns", "end_ns", "block"))
    for (owner, state, start, end), group in groupby(stretches, key=alike):
        for first, count in runs_of(place[stretch.block] for stretch in group):
            yield Patchwork(owner, state, view.seconds(start), view.seconds(end), first, first + count)


def _patches(axes: Axes, view: BlockView, boxes: list[Patchwork], size: float) -> None:
    px = axes.get_window_extent()
    ms_per_px, blocks_per_px = np.diff(axes.get_xlim())[0] / px.width, np.diff(axes.get_ylim())[0] / px.height
    for state in STATE_HATCH:
        own = [box for box in boxes if box.state == state]
        shapes = [draw.box(1e3 * box.start_s, 1e3 * box.end_s, box.low, box.high) for box in own]
        _owned(axes, shapes, [view.colour(box.owner) for box in own], state)
        axes.add_collection(PolyCollection(shapes, facecolors="none", edgecolors="white", linewidths=0.7))
    low, high = axes.get_xlim()
    for box in boxes:
        text = str(view.number(box.owner))
        start, end = max(low, 1e3 * box.start_s), min(high, 1e3 * box.end_s)
        wide, tall = (end - start) / ms_per_px, (box.high - box.low) / blocks_per_px
        if wide > (0.9 * len(text) + 0.4) * size and tall > 1.25 * size:
            draw.tag(axes, (start + end) / 2, (box.low + box.high) / 2, text, size, 0.5, 0.75, clip_on=True)


#: What happens to a request without blocks: its row in the strip, and its glyph.
GLYPHS = {"spill": "v", "parked": "s", "fetch": "^", "recompute": "o"}


def paging_events(view: BlockView) -> dict[str, list[tuple[int, int]]]:
    """(instant, request) of every spill, fetch and recompute that was begun, and of all K/V that were parked, where
    some were."""
    some = view.run.counts.get("parked", 0)
    found: dict[str, list[tuple[int, int]]] = {kind: [] for kind in GLYPHS if some or kind != "parked"}
    for decision in view.decisions:
        found[decision.choice.arm.value].append((decision.at_ns, decision.choice.request))
    for result in view.run.results:
        for kind, sought in (("fetch", Stage.FETCHING), ("parked", Stage.PARKED)):
            found.get(kind, []).extend((at, result.request) for at, stage in result.stages if stage is sought)
    return {kind: sorted(events) for kind, events in found.items()}


def _preemptions(axes: Axes, view: BlockView, size: float) -> None:
    """A row a kind; the request's number beside its glyph where there is room."""
    ms_per_px = np.diff(axes.get_xlim())[0] / axes.get_window_extent().width
    found = paging_events(view)
    for row, (kind, events) in enumerate(found.items()):
        taken = -np.inf
        times = [1e3 * view.seconds(at) for at, _ in events]
        axes.plot(times, [-row] * len(times), GLYPHS[kind], color=INK, markersize=0.6 * size, label=kind)
        for at_ms, (_, request) in zip(times, events, strict=True):
            text, x = str(view.number(request)), at_ms + 0.7 * size * ms_per_px
            last = min([t for t in times if t > at_ms], default=np.inf)
            wide = 0.85 * len(text) * size * ms_per_px
            if x > taken and x + wide < last - 0.5 * size * ms_per_px:
                axes.text(x, -row, text, fontsize=size, color=INK, va="center", parse_math=False, clip_on=True)
                taken = x + wide
    draw.plain(axes, size)
    draw.rows(axes, found)
    axes.set_ylim(0.6 - len(found), 0.6)


def _run_words(view: BlockView) -> str:
    peaks = []
    for pool in view.pools:
        fewest_free = min(counts["free"] for _, counts in view.map.counts(pool))
        peaks.append(f"{view.names[pool]} {view.map.sizes[pool] - fewest_free} of {view.map.sizes[pool]}")
    choices = [decision.choice for decision in view.decisions]
    spills = sum(choice.arm is Arm.SPILL for choice in choices)
    parked = view.run.counts.get("parked", 0)
    held = f"Most blocks held at once: {', '.join(peaks)}"
    held += f"; {plural(parked, 'time')} K/V were parked" if parked else ""
    if not choices:
        return f"{held}; no request lost its blocks."
    words = f"{plural(len(choices), 'time')} a request lost its blocks: {spills} spilled, {len(choices) - spills} "
    both = [(c.spill_ns, c.recompute_ns) for c in choices if c.spill_ns is not None and c.recompute_ns is not None]
    costs = ""
    if both:
        spill, again = (sum(each) / len(both) / 1e9 for each in zip(*both, strict=True))
        costs = f" (on average {milliseconds(spill)} to spill and fetch against {milliseconds(again)})"
    return f"{held}; {words}computed again{costs}."
