"""What the controller counts over a run: queues, batches, the ring and free blocks, as steps over time."""

from typing import NamedTuple

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.show.plots.timeline_plot import time_axis
from disagg.trace.results import Run

TALL_IN, GAP_IN = 0.033, 0.008  # of a row, by points of the font


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


def counters_picture(run: Run, *, window_ms: tuple[float, float] | None = None, projector: bool = False) -> Picture:
    """A row a counter, in the order of a request's life; at the right the value that matters."""
    rows, size = counters(run), draw.font_size(projector)
    end_ms = max(1e-3, (run.timeline.end_ns - run.timeline.start_ns) / 1e6)
    window = window_ms or (0.0, end_ms)
    tall, gap, top, foot = TALL_IN * size, GAP_IN * size, 0.015 * size, 0.05 * size
    height = top + foot + max(1, len(rows)) * (tall + gap)
    figure, y, axes = draw.figure(height, projector), height - top, None
    left = 0.16 * size / figure.get_figwidth()
    for row in rows:
        y -= tall
        axes = figure.add_axes((left, y / height, 0.765 - left, tall / height), sharex=axes, xlim=window)
        _steps(axes, row, end_ms, size)
        y -= gap
    if axes is not None:
        axes.tick_params(labelbottom=True)
        time_axis(axes, window, size, "since the start")
    extremes = "; ".join(f"{row.name}: {row.extreme}" for row in rows)
    finding = counters_words(run, rows)
    return Picture(figure, f"Counters over time, a row each. {extremes or 'Nothing was counted'}. {finding}", finding)


def counters(run: Run) -> list[CounterSteps]:
    """The run's numeric marks by name; queues that never held anything are left out."""
    found: dict[str, tuple[list[float], list[int]]] = {}
    for mark in run.timeline.marks:
        if isinstance(mark.value, int):
            times, values = found.setdefault(mark.name, ([], []))
            times.append((mark.at_ns - run.timeline.start_ns) / 1e6)
            values.append(mark.value)
    several = sum(name.startswith("batch") for name in found) > 1
    rows = [
        CounterSteps(_words(name, several), *steps, COLOURS[_kind(name)], _most(run, name))
        for name, steps in sorted(found.items(), key=lambda item: _rank(item[0]))
    ]
    return [row for row in rows if max(row.values)]


_RANKS = ("queue", "wanting", "ring", "landed", "batch", "free prefill", "free host", "free decode")


def _rank(name: str) -> tuple[int, str]:
    return next(index for index, word in enumerate(_RANKS) if word in name), name


def _kind(name: str) -> str:
    """The colour of what it belongs to."""
    kinds = {"queue": "prefill", "free prefill": "prefill", "ring": "link", "wanting": "link", "free host": "paging"}
    return next((kind for word, kind in kinds.items() if word in name), "decode")


def _words(name: str, several: bool) -> str:
    """What a student reads; workers keep their number where there are several."""
    first, _, rest = name.partition(" ")
    number = f" {name.split()[1 if first != 'free' else -1]}" if several and first not in ("ring", "wanting") else ""
    if name == "free host":
        return "free blocks, host"
    if first == "free":
        return f"free blocks, {rest.split()[0]}{number}"
    if first == "batch":
        return f"rows in batch{number}"
    fixed = {"ring": "ring slots held", "wanting": "wanting blocks"}
    return fixed.get(name) or f"{'landed, waiting' if name.endswith('landed') else 'waiting for prefill'}{number}"


def _most(run: Run, name: str) -> int | None:
    if name.startswith("batch"):
        return run.config.max_batch
    return run.timeline.sizes.get(name.removeprefix("free "))


def _steps(axes: Axes, row: CounterSteps, end_ms: float, size: float) -> None:
    """Filled under the steps, from each mark to the next."""
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


def counters_words(run: Run, rows: list[CounterSteps]) -> str:
    """The longest queue, the largest batch, and which memories were ever full."""
    queues = [row for row in rows if row.name.startswith(("waiting", "landed", "wanting"))]
    batches = [row for row in rows if row.name.startswith("rows")]
    full = [
        row.name.removeprefix("free blocks, ") for row in rows if row.name.startswith("free") and not min(row.values)
    ]
    longest = max(queues, key=lambda row: max(row.values), default=None)
    parts = []
    if longest:
        parts.append(f"the longest queue was {longest.name} ({plural(max(longest.values), 'request')})")
    if batches:
        parts.append(f"the largest batch had {plural(max(max(row.values) for row in batches), 'row')}")
    parts.append(f"memories that were ever full: {', '.join(full) or 'none'}")
    words = "; ".join(parts)
    return f"{words[0].upper()}{words[1:]}."
