"""What the controller counts over a run: queues, batches, the ring and free blocks, as steps over time."""

from typing import NamedTuple

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.show.plots.timeline_plot import time_axis
from disagg.trace.results import Run

TALL_IN, ROW_IN = 0.396, 0.492  # of a row, and with the space below it


class CounterSteps(NamedTuple):
    """One counter's steps: from each instant on, a value. `most` is what it can't exceed, None where nothing limits."""

    name: str
    times_ms: list[float]
    values: list[int]
    colour: str
    most: int | None

    @property
    def extreme(self) -> str:
        """The value that matters: the fewest free blocks, the most of anything else."""
        limit = "" if self.most is None else f" of {self.most:,}"
        which, value = ("least", min(self.values)) if self.name.startswith("free") else ("most", max(self.values))
        return f"{which} {value:,}{limit}"


def counters_picture(run: Run) -> Picture:
    """A row a counter, in the order of a request's life; at the right the value that matters."""
    rows, size = counters(run), draw.FONT_PT
    end_ms = max(1e-3, (run.timeline.end_ns - run.timeline.start_ns) / 1e6)
    height = 0.78 + max(1, len(rows)) * ROW_IN
    figure, axes = draw.blank(height), None
    for number, row in enumerate(rows):
        y = height - 0.18 - number * ROW_IN - TALL_IN
        box = (0.213, y / height, 0.552, TALL_IN / height)
        axes = figure.add_axes(box, sharex=axes, xlim=(0.0, end_ms))
        _steps(axes, row, end_ms, size)
    if axes is not None:
        axes.tick_params(labelbottom=True)
        time_axis(axes, (0.0, end_ms), size, "since the start")
    finding = _in_words(rows)
    return Picture(figure, f"Counters over time, a row each. {finding}", finding)


def counters(run: Run) -> list[CounterSteps]:
    """The run's numeric marks by name; queues that never held anything are left out."""
    found: dict[str, tuple[list[float], list[int]]] = {}
    for mark in run.timeline.marks:
        if isinstance(mark.value, int):
            times, values = found.setdefault(mark.name, ([], []))
            times.append((mark.at_ns - run.timeline.start_ns) / 1e6)
            values.append(mark.value)
    several = sum(name.startswith("batch") for name in found) > 1
    rows = []
    for name, steps in sorted(found.items(), key=lambda item: (list(KINDS).index(_kind(item[0])), item[0])):
        words, colour = KINDS[_kind(name)]
        number = "".join(filter(str.isdigit, name))
        most = run.config.max_batch if name.startswith("batch") else run.timeline.sizes.get(name.removeprefix("free "))
        rows.append(CounterSteps(f"{words} {number}" if several and number else words, *steps, COLOURS[colour], most))
    return [row for row in rows if max(row.values)]


#: What is counted, in the order of a request's life: a word of the mark's name → what a student reads, and the colour.
KINDS = {
    "queue": ("waiting for prefill", "prefill"),
    "wanting": ("needing blocks", "link"),
    "ring": ("ring slots held", "link"),
    "landed": ("landed, waiting", "decode"),
    "batch": ("rows in batch", "decode"),
    "free prefill": ("free blocks, prefill", "prefill"),
    "free host": ("free blocks, host", "paging"),
    "free decode": ("free blocks, decode", "decode"),
}


def _kind(name: str) -> str:
    return next(kind for kind in KINDS if kind in name)


def _steps(axes: Axes, row: CounterSteps, end_ms: float, size: float) -> None:
    times, values = [*row.times_ms, max(end_ms, row.times_ms[-1])], [*row.values, row.values[-1]]
    axes.fill_between(times, values, step="post", color=row.colour, alpha=0.35, linewidth=0)
    axes.step(times, values, where="post", color=row.colour, linewidth=1.6, label=row.name)
    draw.plain(axes, size)
    low = min(values) if row.name.startswith("free") else 0
    axes.set_ylim(low - 0.08 * (max(values) - low), max(values) + 0.12 * max(1, max(values) - low))
    axes.set_yticks([])
    axes.tick_params(labelbottom=False)
    draw.note(axes, row.name, (0, 0.5), (-6, 0), size, "xy", ha="right")
    draw.note(axes, row.extreme, (1, 0.5), (6, 0), size, "xy", ha="left")


def _in_words(rows: list[CounterSteps]) -> str:
    queues = [row for row in rows if row.name.startswith(("waiting", "landed", "needing"))]
    batches = [max(row.values) for row in rows if row.name.startswith("rows")]
    memories = [row for row in rows if row.name.startswith("free")]
    full = [row.name.removeprefix("free blocks, ") for row in memories if not min(row.values)]
    parts = []
    if queues:
        longest = max(queues, key=lambda row: max(row.values))
        parts.append(f"the longest queue was {longest.name} ({plural(max(longest.values), 'request')})")
    if batches:
        parts.append(f"the largest batch had {plural(max(batches), 'row')}")
    parts.append(f"memories that were ever full: {', '.join(full) or 'none'}")
    words = "; ".join(parts)
    return f"{words[0].upper()}{words[1:]}."
