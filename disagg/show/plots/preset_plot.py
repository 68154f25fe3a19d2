"""The ladder of presets: what each rung adds, and how rungs compare on the same requests.
Notebook: notebooks/00_start_here.ipynb.
"""

from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, FAINT, HATCHES, INK
from disagg.show.plots.picture import Picture
from disagg.trace.results import Run

#: What each preset adds to the one before it, in the order of the course.
ADDS = {
    "baseline": "one device, one request at a time",
    "colocated": "many requests share each step",
    "split": "a second device; K/V handed off after prefill",
    "streamed": "K/V leaves layer by layer, during prefill",
    "staged": "K/V passes host memory, through a small ring",
    "paged": "K/V may wait in host memory and come back",
    "dynamic": "rows of like length together; steps kept short",
    "two_colocated": "the rival: two devices, each does everything",
    "conditional": "both do all; a request is split or stays",
}


class Rung(NamedTuple):
    """One preset's numbers: medians over the requests, and `hidden` None where nothing is handed off."""

    name: str
    ttft_s: float | None
    second_token_gap_s: float | None
    tokens_per_s: float
    hidden: float | None

    @classmethod
    def of(cls, name: str, run: Run) -> "Rung":
        metrics = run.metrics()
        gaps = metrics.second_token_gap_s.p50
        return cls(name, metrics.ttft_s.p50, gaps, metrics.tokens_per_s, run.overlap().share)


class Column(NamedTuple):
    title: str
    unit: str
    values: list[float | None]
    colour: str


def ladder_picture(rungs: Iterable[Rung] | dict[str, Run]) -> Picture:
    """Bars for TTFT, second-token gap, tokens a second and H, a row a preset; takes Rungs, or runs by preset name."""
    rungs = [Rung.of(*pair) for pair in rungs.items()] if isinstance(rungs, dict) else list(rungs)
    columns = _columns(rungs)
    figure, panels = draw.panels(len(columns), 0.36 * len(rungs) + 0.9, 1.5, 0.01, 0.624, 0.99)
    for axes, column in zip(panels, columns, strict=True):
        _bars(axes, column, draw.FONT_PT)
    draw.rows(panels[0], [rung.name for rung in rungs], parse_math=False)
    finding = _finding(rungs)
    return Picture(figure, f"Bars for {len(rungs)} presets. {_table_in_words(rungs)} {finding}", finding)


def _columns(rungs: list[Rung]) -> list[Column]:
    def column(title: str, unit: str, factor: float, values: Iterable[float | None], colour: str) -> Column:
        return Column(title, unit, [None if value is None else factor * value for value in values], colour)

    return [
        column("TTFT", "ms", 1e3, (rung.ttft_s for rung in rungs), "prefill"),
        column("second-token gap", "ms", 1e3, (rung.second_token_gap_s for rung in rungs), "link"),
        column("throughput", "tokens/s", 1, (rung.tokens_per_s for rung in rungs), "decode"),
        column("H, hidden copying", "%", 100, (rung.hidden for rung in rungs), "link"),
    ]


def _bars(axes: Axes, column: Column, size: float) -> None:
    """Bars from 0, each with its value in front of it, so that no axis has to be read."""
    draw.plain(axes, size)
    rows = [-row for row in range(len(column.values))]
    lengths = [max(0.0, value or 0.0) for value in column.values]
    look = draw.look(color=COLOURS[column.colour], hatch=HATCHES[column.colour], edgecolor=FAINT, linewidth=0)
    axes.barh(rows, lengths, height=0.62, **look)
    longest = max(lengths, default=0) or 1.0
    for row, value, length in zip(rows, column.values, lengths, strict=True):
        axes.text(length + 0.03 * longest, row, _short(value), va="center", fontsize=size, color=INK)
    axes.set_xlim(0, 1.75 * longest)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    draw.names(axes, size, title=f"{column.title}\n({column.unit})")


def _finding(rungs: list[Rung]) -> str:
    fastest = max(rungs, key=lambda rung: rung.tokens_per_s)
    gaps = {rung.name: rung.second_token_gap_s for rung in rungs if rung.second_token_gap_s is not None}
    first = f"Most tokens a second: {fastest.name} ({_short(fastest.tokens_per_s)})"
    if len(gaps) < 2:
        return first + "."
    low, high = min(gaps, key=gaps.__getitem__), max(gaps, key=gaps.__getitem__)
    span = f"{_short(1e3 * gaps[low])} ms with {low} to {_short(1e3 * gaps[high])} ms with {high}"
    return f"{first}; the second-token gap goes from {span}."


def _table_in_words(rungs: list[Rung]) -> str:
    columns = _columns(rungs)
    rows = []
    for row, rung in enumerate(rungs):
        values = ", ".join(f"{column.title} {_short(column.values[row])} {column.unit}" for column in columns)
        rows.append(f"{rung.name}: {values}.".replace("none %", "none"))
    return " ".join(rows)


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"
