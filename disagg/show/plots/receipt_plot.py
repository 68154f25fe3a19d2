"""Receipts as pictures: where a request's milliseconds went, where a preset's did, and what changed between two runs.
Works are solid in the colour of the device or link that did them; waits are pale, hatched, tinted like their cause.
"""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from disagg.plan.errors import RequestError
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, FAINT, INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import milliseconds, plural
from disagg.show.plots.timeline_plot import time_axis
from disagg.trace.receipts import NAMES, WORKS
from disagg.trace.results import Result, Run

GREY = "#EEEEEE"
PALE = {"prefill": "#D3E5F0", "link": "#FBEBCC", "decode": "#CDEBE2", "paging": "#F6E6EE"}
SOLID = {"prefill": "prefill", "transfer": "link", "decode": "decode", "spill": "paging"}


class Ink(NamedTuple):
    face: str
    hatch: str


#: How each name is drawn: a work has no hatch, every wait one of its own.
INKS = {
    **{name: Ink(COLOURS[kind], "") for name, kind in SOLID.items()},
    "recompute": Ink("#003F63", ""), "fetch": Ink("#8A4A71", ""),
    "submission": Ink(GREY, ".."), "dispatch": Ink(GREY, "///"), "notice": Ink(GREY, "\\\\\\"),
    "queue": Ink(PALE["prefill"], "///"), "link-busy": Ink(PALE["link"], "///"), "ring-full": Ink(PALE["link"], "ooo"),
    "batch-slot": Ink(PALE["decode"], "|||"), "no-block": Ink(PALE["decode"], "xxx"),
    "step-boundary": Ink(PALE["decode"], "---"), "device-busy": Ink(PALE["decode"], "\\\\\\"),
    "spilled": Ink(PALE["paging"], "+++"), "parked": Ink(PALE["paging"], "..."),
}  # fmt: skip
SIZE, ROW_IN = draw.FONT_PT, 0.312


# ---- one request -----------------------------------------------------------------------------------------------------


def receipt_picture(result: Result, *, times: bool = True) -> Picture:
    """One request's lines as a strip, and below it a row a name, each with its milliseconds; tokens 1 and 2 marked."""
    bill = result.receipt
    names = list(bill.totals())
    figure, axes = _rows_figure(len(names) + 1, 1.38, 0.86)
    window = (0.0, max(1e-3, 1e3 * bill.total_s))
    axes.set_xlim(window)
    totals = {"receipt": bill.total_s, **bill.totals()}
    for row, name in enumerate(names, 1):
        lines = [line for line in bill.lines if line.name == name]
        spans = [((line.start_ns - bill.start_ns) / 1e6, 1e3 * line.seconds) for line in lines]
        for y in (0, -row):
            axes.broken_barh(spans, (y - 0.38, 0.76), **_style(name), label=name)
    for y, seconds in enumerate(totals.values()):
        draw.note(axes, milliseconds(seconds), (1, -y), (6, 0), SIZE, "x")
    _tokens(axes, result, SIZE)
    draw.plain(axes, SIZE)
    draw.rows(axes, totals)
    time_axis(axes, window, SIZE, "since the request arrived")
    _kinds(figure)
    alt = f"Receipt of one request, time to the right. {receipt_words(result)}"
    return Picture(figure, alt, receipt_words(result, times))


def _rows_figure(rows: int, left_in: float, right: float) -> tuple[Figure, Axes]:
    figure = draw.blank(1.26 + ROW_IN * rows)
    return figure, draw.room(figure, left_in, 0.6, 0.66, right)


def _style(name: str, line: float = 0.0) -> dict:
    ink = INKS[name]
    return dict(facecolor=ink.face, edgecolor=FAINT if name in WORKS else "#777777", hatch=ink.hatch, linewidth=line)


def _tokens(axes: Axes, result: Result, size: float) -> None:
    """Dashed lines where tokens 1 and 2 came; where their words would meet, the second stands a line higher."""
    times = [(at_ns - result.arrival_ns) / 1e6 for at_ns in result.token_times_ns[:2]]
    room = 0.22 * axes.get_xlim()[1]
    for index, (at, words) in enumerate(zip(times, ("token 1 (TTFT)", "token 2"), strict=False)):
        leftwards = index == 0 and at > room
        close = index == 1 and times[0] <= room and at - times[0] < room
        axes.axvline(at, color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
        by, ha = (-4 if leftwards else 4, 3 + 1.3 * size * close), "right" if leftwards else "left"
        draw.note(axes, words, (at, 1), by, size, "y", ha=ha, va="baseline")


def receipt_words(result: Result, times: bool = True) -> str:
    """The longest work and the longest wait; without times, counts and whether the lines explain all of it."""
    bill = result.receipt
    if not times:
        lost = abs(bill.unaccounted_s) > max(1e-3, 0.01 * bill.total_s)
        return (
            f"{plural(result.prompt_tokens, 'prompt token')}, {plural(len(result.token_ids), 'new token')}: "
            f"waits and works {'do not explain all of' if lost else 'add up to'} the measured time."
        )
    works = {name: seconds for name, seconds in bill.totals().items() if name in WORKS}
    waits = {name: seconds for name, seconds in bill.totals().items() if name not in WORKS}
    most = f"{_most('works', works)}, {_most('waits', waits)}"
    words = f"Request {result.request} took {milliseconds(bill.total_s)}: {most}"
    if result.ttft_s is not None:
        words += f"; token 1 came after {milliseconds(result.ttft_s)}"
    if result.second_token_gap_s is not None:
        words += f", token 2 {milliseconds(result.second_token_gap_s)} later"
    return words + "."


def _most(kind: str, sums: dict[str, float]) -> str:
    if not sums:
        return f"no {kind}"
    first = max(sums, key=sums.__getitem__)
    return f"{milliseconds(sum(sums.values()))} of {kind} (most: {first}, {milliseconds(sums[first])})"


# ---- presets ---------------------------------------------------------------------------------------------------------


def receipts_picture(runs: dict[str, Run]) -> Picture:
    """A bar a run, mean milliseconds of a request by name: works from the left, then waits, values where they fit."""
    bills = {name: _ordered(run.receipts()) for name, run in runs.items()}
    present = [name for name in _ORDER if any(name in bill for bill in bills.values())]
    columns = 4
    top = 0.258 * -(-len(present) // columns) + 0.18
    figure = draw.blank(top + 0.6 + 0.6 * len(bills))
    axes = draw.room(figure, 1.62, 0.6, top, 0.83)
    longest = max((1e3 * sum(bill.values()) for bill in bills.values()), default=0) or 1.0
    axes.set_xlim(0, longest)
    for y, bill in enumerate(bills.values()):
        _bar(axes, -y, bill, SIZE)
    draw.plain(axes, SIZE)
    draw.rows(axes, bills, parse_math=False)
    draw.names(axes, SIZE, "ms of a request on average; works first, then waits")
    handles = [Patch(**_style(name), label=name) for name in present]
    draw.legend(figure, SIZE, handles, 0.01, 0.1, loc="upper left", ncols=columns, handlelength=2.2, columnspacing=1.2)
    finding = _receipts_words(bills)
    return Picture(figure, f"Where the milliseconds went, a bar a run. {finding}", finding)


_ORDER = (*(name for name in NAMES if name in WORKS), *(name for name in NAMES if name not in WORKS))


def _ordered(bill: dict[str, float]) -> dict[str, float]:
    """Works first, so that all bars' works start at one line."""
    return {name: bill[name] for name in _ORDER if bill.get(name)}


def _bar(axes: Axes, y: float, bill: dict[str, float], size: float) -> None:
    ms_per_px = axes.get_xlim()[1] / axes.get_window_extent().width
    x = 0.0
    for name, seconds in bill.items():
        ms = 1e3 * seconds
        axes.barh(y, ms, 0.66, left=x, **_style(name, 0.8), label=name)
        room = ms / ms_per_px / size - 1.0
        text = next((t for t in (f"{name} {ms:.0f}", f"{ms:.0f}") if 0.8 * len(t) < room), None)
        if text:
            draw.tag(axes, x + ms / 2, y, text, size, 1.5)
        x += ms
    waits = 1e3 * _waits(bill)
    words = f"{x:.0f} ms" + (f"\n{waits:.0f} waiting" if waits >= 0.5 else "")
    draw.note(axes, words, (x, y), (5, 0), size, annotation_clip=False)


def _waits(bill: dict[str, float]) -> float:
    return sum(seconds for name, seconds in bill.items() if name not in WORKS)


def _receipts_words(bills: dict[str, dict[str, float]]) -> str:
    totals = {name: sum(bill.values()) for name, bill in bills.items()}
    if not totals:
        return "No runs were given."
    low, high = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    parts = [
        f"{name} {1e3 * totals[name]:.0f} ms, of which {1e3 * _waits(bills[name]):.0f} ms waiting"
        for name in dict.fromkeys((low, high))
    ]
    return f"A request takes on average: {'; '.join(parts)} (least and most of {plural(len(bills), 'run')})."


# ---- two runs --------------------------------------------------------------------------------------------------------


def diff_picture(a_name: str, a: Run, b_name: str, b: Run) -> Picture:
    """What a request spends less (left) and more (right) in `b` than in `a`, by name; both on the same requests."""
    _check_same(a_name, a, b_name, b)
    before, after, size = a.receipts(), b.receipts(), SIZE
    names = [name for name in NAMES if name in before or name in after]
    change = {name: 1e3 * (after.get(name, 0.0) - before.get(name, 0.0)) for name in names}
    figure, axes = _rows_figure(len(names) + 1, 1.5, 0.975)
    rows = {"all": sum(change.values()), **change}
    furthest = max(map(abs, rows.values())) or 1.0
    axes.set_xlim(-1.35 * furthest, 1.35 * furthest)
    for y, (name, ms) in enumerate(rows.items()):
        axes.barh(-y, ms, 0.72, **(draw.look(color="#444444") if name == "all" else _style(name, 0.8)), label=name)
        side = -1 if ms < 0 else 1
        how = draw.look(ha="right" if side < 0 else "left")
        draw.note(axes, f"{_signed(ms)} ms", (ms, -y), (6 * side, 0), size, **how)
    axes.axvline(0, color=INK, linewidth=1.0)
    draw.plain(axes, size)
    draw.rows(axes, rows)
    draw.names(axes, size, "ms of a request on average")
    for at, ha, words in ((0.0, "left", f"◂ less time with {b_name}"), (1.0, "right", f"more time with {b_name} ▸")):
        draw.note(axes, words, (at, 1), (0, 4), size, "xy", ha=ha, va="baseline", parse_math=False)
    _kinds(figure)
    finding = _diff_words(a_name, b_name, change)
    return Picture(figure, f"What changed from {a_name} to {b_name}, by name. {finding}", finding)


def _check_same(a_name: str, a: Run, b_name: str, b: Run) -> None:
    prompts = [[result.prompt_tokens for result in run.results] for run in (a, b)]
    if prompts[0] != prompts[1]:
        raise RequestError(
            f"{a_name} served {plural(len(prompts[0]), 'request')} of {sum(prompts[0])} prompt tokens, {b_name} "
            f"{len(prompts[1])} of {sum(prompts[1])}; give both runs the same requests"
        )


def _diff_words(a_name: str, b_name: str, change: dict[str, float]) -> str:
    total, largest = sum(change.values()), max(change, key=lambda name: abs(change[name]), default=None)
    if largest is None or not change[largest]:
        return f"A request takes as long with {b_name} as with {a_name}."
    more = "more" if total > 0 else "less"
    return (
        f"With {b_name} a request takes {abs(total):.0f} ms {more} than with {a_name}; "
        f"most changes in {largest} ({_signed(change[largest])} ms)."
    )


def _signed(ms: float) -> str:
    return f"{ms:+.0f}".replace("-", "\N{MINUS SIGN}")


def _kinds(figure: Figure) -> None:
    handles = [
        Patch(facecolor="#555555", linewidth=0, label="work"),
        Patch(facecolor=GREY, edgecolor="#777777", linewidth=0, hatch="///", label="wait"),
    ]
    draw.legend(figure, SIZE, handles, pad=0.1, handlelength=1.6)
