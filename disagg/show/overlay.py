"""A prediction drawn over the run that it predicts: one time axis, measured above the line of each row, the twin below.

Notebook: notebooks/06_twin_and_claims.ipynb.
"""

from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from disagg.plan.spans import Span
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOUR_OF, COLOURS, FAINT, INK, LEGEND
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural, row_names
from disagg.show.plots.timeline_plot import time_axis
from disagg.show.validate import Compared
from disagg.trace.results import Run

TALL = 0.42  # of a row, for each of the two
WORDS = {
    f"{name}_p{at}": f"{words} {name.upper()}"
    for name in ("ttft", "tpot")
    for at, words in ((50, "median"), (90, "p90"))
}
WORDS |= {"tokens_per_s": "tokens/s", "H": "H"}


def overlay_picture(compared: Compared, *, times: bool = True, projector: bool = False) -> Picture:
    """Both runs of a workload. `times=False` keeps measured times out of the finding."""
    size, rows = draw.font_size(projector), row_names(compared.real.timeline)
    figure = draw.figure(1.1 + 0.055 * size * len(rows), projector)
    axes = draw.room(figure, 0.115 * size, 0.62, 0.38)
    window = (0.0, max(1e-3, *(_ms(run, run.timeline.end_ns) for run in (compared.real, compared.twin))))
    axes.set_xlim(window)
    y = {place: -row for row, place in enumerate(rows)}
    for run, shift, drawn in ((compared.real, TALL / 2, _solid), (compared.twin, -TALL / 2, _hatched)):
        for kind in dict.fromkeys(COLOUR_OF.values()):
            spans = [span for span in run.timeline.spans if COLOUR_OF[span.kind] == kind and span.place in y]
            if spans:
                axes.add_collection(drawn(_boxes(run, spans, y, shift, window), kind))
    axes.hlines(list(y.values()), *window, color=INK, linewidth=0.6)
    draw.rows(axes, rows.values())
    draw.plain(axes, size)
    time_axis(axes, window, size, "since the start; measured above each line, predicted below")
    _legend(figure, {COLOUR_OF[span.kind] for span in compared.real.timeline.spans}, size)
    finding = in_words(compared) if times else f"{_subject(compared)}, measured and predicted."
    return Picture(figure, f"Two timelines on one axis, row by row: {finding}", finding)


def in_words(compared: Compared) -> str:
    """What the twin said of each figure, and how far off it was."""
    errors = compared.errors()
    units = {name: "points" if name == "H" else "%" for name in errors}
    parts = [f"{WORDS[name]} {error:.0f} {units[name]}" for name, error in errors.items()]
    return f"{_subject(compared)}; the twin is off by {', '.join(parts)}."


def _subject(compared: Compared) -> str:
    name, count = compared.name, plural(len(compared.real.results), "request")
    return f"{name[:1].upper()}{name[1:]}: {count}"


def _ms(run: Run, at_ns: int) -> float:
    return (at_ns - run.timeline.start_ns) / 1e6


def _boxes(run: Run, spans: list[Span], y: dict[str, int], shift: float, window: tuple[float, float]) -> Any:
    """None is thinner than a six-hundredth of the window."""
    starts = np.array([_ms(run, span.start_ns) for span in spans])
    widths = np.maximum([(span.end_ns - span.start_ns) / 1e6 for span in spans], (window[1] - window[0]) / 600)
    middles = np.array([y[span.place] + shift for span in spans])
    return draw.boxes(starts, starts + widths, middles - TALL / 2, middles + TALL / 2)


def _solid(boxes: Any, kind: str) -> PolyCollection:
    return PolyCollection(boxes, facecolors=COLOURS[kind], edgecolors="white", linewidths=0.4)


def _hatched(boxes: Any, kind: str) -> PolyCollection:
    return PolyCollection(boxes, facecolors=COLOURS[kind], edgecolors=FAINT, linewidths=0.4, hatch="////", alpha=0.75)


def _legend(figure: Figure, kinds: set[str], size: float) -> None:
    patches = [Patch(color=COLOURS[kind], label=LEGEND[kind]) for kind in LEGEND if kind in kinds]
    patches.append(Patch(facecolor="#888888", edgecolor="white", hatch="////", label="predicted"))
    figure.legend(handles=patches, loc="upper right", ncols=len(patches), fontsize=size, frameon=False)
