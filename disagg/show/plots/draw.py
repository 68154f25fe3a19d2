"""What drawings share: figures, axes, rows, labels, legends and boxes. `size` is that of letters, in points.
There is no pyplot: widget callbacks may run on any thread, and pyplot's current figure is one for all of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from disagg.show.plots.palette import COLOURS, HATCHES, INK

WIDTH_IN = 9.0
FONT_PT = 12
GRID = "#DDDDDD"


def blank(height_in: float) -> Figure:
    """A white figure with a canvas of its own; 100 points an inch."""
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def room(
    figure: Figure, left_in: float, foot_in: float, top_in: float = 0.0, right: float = 0.975, **more: Any
) -> Axes:
    """Axes that fill a figure but for these inches; `right` is a share of the width."""
    width, height = figure.get_size_inches()
    left, foot = left_in / width, foot_in / height
    return figure.add_axes((left, foot, right - left, max(0.0, 1 - foot - top_in / height)), **more)


def single(height_in: float, left_in: float, foot_in: float, top_in: float) -> tuple[Figure, Axes]:
    """A figure, and axes with a grid that fill it but for these inches."""
    page = blank(height_in)
    axes = room(page, left_in, foot_in, top_in)
    plain(axes, FONT_PT, across=True)
    return page, axes


def panels(
    count: int, height_in: float, left_in: float, foot_in: float, top_in: float, right: float
) -> tuple[Figure, list[Axes]]:
    """Panels beside each other, with the rows of the first."""
    page = blank(height_in)
    found = page.subplots(1, count, squeeze=False, sharey=True)[0]
    sides = left_in / WIDTH_IN, foot_in / height_in, right, 1 - top_in / height_in
    page.subplots_adjust(*sides, wspace=0.12)
    return page, list(found)


def look(**how: Any) -> dict[str, Any]:
    return how


def plain(axes: Axes, size: float, across: bool = False) -> None:
    """Only what is needed to read a value: bottom line, ticks of the right size, pale grid, also `across`."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=size, colors=INK, length=4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="both" if across else "x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def names(axes: Axes, size: float, x: str = "", y: str = "", title: str = "", **more: Any) -> None:
    """Words at the axes, and above them at the left."""
    for put, words in ((axes.set_xlabel, x), (axes.set_ylabel, y)):
        if words:
            put(words, fontsize=size, color=INK, **more)
    if title:
        axes.set_title(title, loc="left", fontsize=size, color=INK, **more)


def rows(axes: Axes, names: Iterable[str], **more: Any) -> None:
    """A row a name, the first one at the top, at y = 0, -1, …"""
    names = list(names)
    axes.set_ylim(0.5 - max(1, len(names)), 0.5)
    axes.set_yticks([-row for row in range(len(names))], names, **more)


def note(
    axes: Axes, words: str, at: tuple[float, float], by: tuple[float, float], size: float, within: str = "", **more: Any
) -> None:
    """Words `by` so many points from a place in data; letters in `within` ("x", "y", "xy") name shares of the axes."""
    x, y = ("axes fraction" if letter in within else "data" for letter in "xy")
    more = {"fontsize": size, "color": INK, "va": "center", **more}
    axes.annotate(words, at, xycoords=(x, y), xytext=by, textcoords="offset points", **more)


def tag(
    axes: Axes, x: float, y: float, text: str, size: float, pad: float, alpha: float | None = None, **more: Any
) -> None:
    """A few letters in the middle of a box, on white."""
    white = dict(facecolor="white", edgecolor="none", pad=pad, alpha=alpha)
    more = {"parse_math": False, **more}
    axes.text(x, y, text, fontsize=size, color=INK, ha="center", va="center", bbox=white, **more)


def bar(
    axes: Axes, y: float, length: float, words: str, longest: float, kind: str | None, thick: float, size: float
) -> None:
    """A bar in the colour of a kind of work, or hollow where it is only predicted; its value stands beside it."""
    style = look(color="none", edgecolor=INK, hatch="///")
    if kind is not None:
        style = look(color=COLOURS[kind], hatch=HATCHES[kind], edgecolor="white", linewidth=0)
    axes.barh(y, length, thick, **style)
    axes.text(length + 0.02 * longest, y, words, va="center", fontsize=0.9 * size, color=INK)


def legend(
    figure: Figure, size: float, handles: Sequence | None = None, right: float = 0.985, pad: float = 0.2, **more: Any
) -> None:
    """One line at the top right; names from outside stay text."""
    if handles is None:
        handles, _ = figure.axes[-1].get_legend_handles_labels()
    more = {"columnspacing": 1.4, "ncols": len(handles), "loc": "upper right", "bbox_to_anchor": (right, 1.0), **more}
    legend = figure.legend(handles=handles, frameon=False, fontsize=size, borderaxespad=pad, **more)
    for text in legend.get_texts():
        text.set_parse_math(False)


def box(left: float, right: float, low: float, high: float) -> list[tuple[float, float]]:
    return [(left, low), (right, low), (right, high), (left, high)]


def boxes(left: np.ndarray, right: np.ndarray, low: np.ndarray, high: np.ndarray) -> Any:
    """[n, 4, 2] of boxes."""
    return np.array([(left, low), (right, low), (right, high), (left, high)]).transpose(2, 0, 1)
