"""A prediction drawn over its run on one time axis: the measured run above the line of each row, the twin below.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOUR_OF, COLOURS, FAINT, INK, LEGEND
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural, row_names
from disagg.show.plots.timeline_plot import RunView, time_axis
from disagg.show.validate import Compared
from disagg.trace.spans import Span

TALL = 0.42  # of a row, for each of the two
WORDS = {
    "ttft_p50": "median TTFT", "ttft_p90": "p90 TTFT", "tpot_p50": "median TPOT", "tpot_p90": "p90 TPOT",
    "tokens_per_s": "tokens/s", "H": "H",
}  # fmt: skip


def overlay_picture(compared: Compared) -> Picture:
    """Both runs of a workload."""
    size, rows = draw.FONT_PT, row_names(compared.real.timeline)
    figure = draw.blank(1.1 + 0.055 * size * len(rows))
    axes = draw.room(figure, 0.115 * size, 0.62, 0.38)
    views = [RunView(run, None) for run in (compared.real, compared.twin)]
    window = (0.0, max(1e-3, *(view.end_ms for view in views)))
    axes.set_xlim(window)
    y = {place: -row for row, place in enumerate(rows)}
    for view, shift in zip(views, (TALL / 2, -TALL / 2), strict=True):
        shifted = {place: middle + shift for place, middle in y.items()}
        for kind in dict.fromkeys(COLOUR_OF.values()):
            spans = [span for span in view.run.timeline.spans if COLOUR_OF[span.kind] == kind and span.place in y]
            if spans:
                boxes, _ = view.boxes(spans, shifted, TALL, (window[1] - window[0]) / 600)
                look = _look(spans, window, shift < 0)
                axes.add_collection(PolyCollection(boxes, facecolors=COLOURS[kind], **look))
    axes.hlines(list(y.values()), *window, color=INK, linewidth=0.6)
    draw.rows(axes, rows.values())
    draw.plain(axes, size)
    time_axis(axes, window, size, "since the start; measured above each line, predicted below")
    kinds = {COLOUR_OF[span.kind] for span in compared.real.timeline.spans}
    patches = [Patch(color=COLOURS[kind], label=words) for kind, words in LEGEND.items() if kind in kinds]
    patches.append(Patch(facecolor="#888888", edgecolor="white", hatch="////", label="predicted (hatched or pale)"))
    figure.legend(handles=patches, loc="upper right", ncols=len(patches), fontsize=size, frameon=False)
    finding = in_words(compared)
    return Picture(figure, f"Two timelines on one axis, row by row: {finding}", finding)


def in_words(compared: Compared) -> str:
    units = {"H": "points"}
    parts = [f"{WORDS[name]} {error:.0f} {units.get(name, '%')}" for name, error in compared.errors().items()]
    name, count = compared.name, plural(len(compared.real.results), "request")
    return f"{name[:1].upper()}{name[1:]}: {count}; the twin is off by {', '.join(parts)}."


def _look(spans: list[Span], window: tuple[float, float], predicted: bool) -> dict[str, Any]:
    """What was predicted is hatched; pale where boxes are so narrow that edges and hatches would be a moiré."""
    narrow = 1e-6 * float(np.median([span.end_ns - span.start_ns for span in spans])) < (window[1] - window[0]) / 100
    if narrow:
        return draw.look(linewidths=0, alpha=0.5 if predicted else 1)
    if predicted:
        return draw.look(edgecolors=FAINT, linewidths=0.4, hatch="////", alpha=0.75)
    return draw.look(edgecolors="white", linewidths=0.4)
