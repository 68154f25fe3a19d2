"""A picture of a timeline that grows, drawn many times a second. The window of time stands still until the playhead
reaches its end, then moves on by half its length; between two moves only spans, gauges and playhead are drawn.
"""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import floor

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from PIL import Image, ImageDraw, ImageFont

from disagg.show.plots import draw
from disagg.show.plots.live_arrays import Tape, kinds_of, said
from disagg.show.plots.palette import COLOURS, FAINT, HATCHES, INK
from disagg.show.plots.timeline_plot import HATCH_PX, TALL, kind_legend, time_axis

DPI = 100  # one pixel a point of the page: a quarter of the work of a still picture
ROW_IN, GAUGE_IN, TOP_IN, BOTTOM_IN, GAP_IN = 0.42, 0.27, 0.34, 0.56, 0.1
LINE_PX, COLUMNS = 20, 108  # lines of text under the picture
GREY = "#BBBBBB"
TURN_S, DRAWING = 0.0002, threading.Lock()  # one picture at a time: the turn is the whole process's


@contextmanager
def short_turns() -> Iterator[None]:
    """While a picture is drawn, other threads wait for the interpreter 0.2 ms at most, not a millisecond each time."""
    with DRAWING:
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, TURN_S))
        try:
            yield
        finally:
            sys.setswitchinterval(before)


class Frame:
    """Rows are workers and lanes, gauges stand under them. `png` draws what a tape holds at an instant."""

    def __init__(self, rows: dict[str, str], gauges: list[str]) -> None:
        self.rows, self.gauges = rows, gauges
        tall, low = ROW_IN * max(1, len(rows)), GAUGE_IN * len(gauges)
        self.height_in = TOP_IN + tall + GAP_IN + low + BOTTOM_IN
        self.figure = draw.blank(self.height_in)
        assert isinstance(self.figure.canvas, FigureCanvasAgg)
        self._canvas = self.figure.canvas
        self._spans = self._axes(BOTTOM_IN + low + GAP_IN, tall, list(rows.values()))
        self._counts = self._axes(BOTTOM_IN, low, short_names(gauges)) if gauges else None
        self._make_artists()
        self._window: tuple[float, float] | None = None
        self._background = None

    def png(self, tape: Tape, at_ms: float, window_ms: float | None, lines: tuple[str, ...] = ()) -> bytes:
        """The last `window_ms` before the playhead, or all; lines of text stand under the picture as they are."""
        with short_turns():
            self.draw(tape, at_ms, window := window_for(at_ms, window_ms))
            image = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
            image = self._with_text(image, tape, at_ms, window[1], lines)
            image = image.quantize(palette=palette(), dither=Image.Dither.NONE)
            file = io.BytesIO()
            image.save(file, format="png", compress_level=1)
        return file.getvalue()

    def draw(self, tape: Tape, at_ms: float, window: tuple[float, float]) -> None:
        """Everything of the window that began before the playhead."""
        if window != self._window:
            self._draw_background(window)
        self._canvas.restore_region(self._background)
        for kind in COLOURS:
            self._draw_boxes(kind, tape.boxes(kind, window[0], at_ms), window, at_ms)
        if self._counts is not None:
            self._draw_gauges(self._counts, tape, window, at_ms)
        self._playhead.set_segments([[(at_ms, -len(self.rows)), (at_ms, 1)]])
        self._spans.draw_artist(self._playhead)

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _axes(self, bottom_in: float, tall_in: float, names: list[str]) -> Axes:
        width, height = self.figure.get_size_inches()
        axes = self.figure.add_axes((1.5 / width, bottom_in / height, (width - 2.6) / width, tall_in / height))
        draw.rows(axes, names)
        draw.plain(axes, draw.FONT_PT)
        return axes

    def _make_artists(self) -> None:
        """What is drawn again each time belongs to the axes, but not to the background."""
        self._boxes, self._hatched = {}, {}
        for kind, colour in COLOURS.items():
            self._boxes[kind] = PolyCollection([], facecolors=colour, edgecolors="white")
            if HATCHES[kind]:
                look = draw.look(facecolor="none", edgecolor=FAINT, linewidth=0, hatch=HATCHES[kind])
                self._hatched[kind] = PathPatch(Path(np.zeros((1, 2))), **look)
        self._playhead = LineCollection([], colors=INK, linewidths=1.6)
        for artist in (*self._boxes.values(), *self._hatched.values(), self._playhead):
            self._spans.add_artist(artist)
            artist.set_animated(True)
        self._fills = PolyCollection([], facecolors=GREY, edgecolors=INK, linewidths=0.8)
        self._fills.set_animated(True)
        if self._counts is not None:
            self._counts.add_artist(self._fills)
        self._spans.tick_params(labelbottom=self._counts is None)
        kind_legend(self.figure, kinds_of(self.rows), draw.FONT_PT)

    def _draw_background(self, window: tuple[float, float]) -> None:
        for axes in filter(None, (self._spans, self._counts)):
            axes.set_xlim(window)
        time_axis(self._counts or self._spans, window, draw.FONT_PT, "since the start")
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        self._window = window
        self._ms_per_px = (window[1] - window[0]) / self._spans.get_window_extent().width

    def _draw_boxes(self, kind: str, boxes: np.ndarray, window: tuple[float, float], at_ms: float) -> None:
        if not len(boxes):
            return
        start = np.maximum(boxes[:, 0], window[0])
        end = np.maximum(np.minimum(boxes[:, 1], at_ms), start + 1.6 * self._ms_per_px)
        start, end, halves = merged(start, end, 2 * boxes[:, 2] + boxes[:, 3], 4 * self._ms_per_px)
        row, rides = np.divmod(halves, 2)
        width, corners = end - start, draw.boxes(start, end, -row + TALL * (rides * 2 / 3 - 1 / 2), -row + TALL / 2)
        self._boxes[kind].set_verts(corners)
        self._boxes[kind].set_linewidth(np.where(width > 4 * self._ms_per_px, 0.8, 0.0).tolist())
        self._spans.draw_artist(self._boxes[kind])
        wide = corners[width > HATCH_PX * self._ms_per_px]
        if kind in self._hatched and len(wide):  # one path for all: a hatch costs as much for one box as for many
            self._hatched[kind].set_path(Path.make_compound_path_from_polys(wide))
            self._spans.draw_artist(self._hatched[kind])

    def _draw_gauges(self, axes: Axes, tape: Tape, window: tuple[float, float], at_ms: float) -> None:
        fills = []
        for row, name in enumerate(self.gauges):
            times, values = tape.steps(name, window[0], at_ms)
            most = tape.most(name)
            if len(times):
                fills.append(staircase(times, values / most, at_ms, -row - 0.42, 0.8))
        self._fills.set_verts(fills)
        axes.draw_artist(self._fills)

    def _with_text(
        self, image: Image.Image, tape: Tape, at_ms: float, end_ms: float, lines: tuple[str, ...]
    ) -> Image.Image:
        """Values beside their gauges, and lines under the picture, set by Pillow: ten times as fast, and no markup."""
        if lines:
            taller = Image.new("RGB", (image.width, image.height + LINE_PX * len(lines) + 8), "white")
            taller.paste(image)
            image = taller
        pen = ImageDraw.Draw(image)
        height = DPI * self.height_in
        if self._counts is not None:
            for row, name in enumerate(self.gauges):
                x, y = self._counts.transData.transform((end_ms, -row))
                pen.text((x + 8, height - y), gauge_words(tape, name, at_ms), fill=INK, font=_font(), anchor="lm")
        for row, line in enumerate(lines):
            pen.text((12, height + LINE_PX * row), line, fill=INK, font=_font())
        return image


def window_for(at_ms: float, window_ms: float | None) -> tuple[float, float]:
    """The window that shows an instant: all so far, up to the next doubling, or a page that moves on by halves."""
    if window_ms is None:
        end = 100.0
        while end < at_ms:
            end *= 2
        return 0.0, end
    start = max(0, floor(at_ms / (window_ms / 2)) - 1) * window_ms / 2
    return start, start + window_ms


def merged(
    start: np.ndarray, end: np.ndarray, row: np.ndarray, narrow: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Narrow boxes that touch on their row as one: they look the same, and Agg draws one box faster."""
    slim = np.flatnonzero(end - start <= narrow)
    shift = row[slim] * 2 * (end.max() - start.min())  # rows one after the other on one axis
    slim, shift = (part[np.argsort(start[slim] + shift)] for part in (slim, shift))
    reach = np.maximum.accumulate(end[slim] + shift)
    first = np.append(True, start[slim][1:] + shift[1:] > reach[:-1])[: len(slim)]
    last = np.append(first[1:], True)[: len(slim)]
    wide = end - start > narrow
    return (
        np.append(start[wide], start[slim][first]),
        np.append(end[wide], (reach - shift)[last]),
        np.append(row[wide], row[slim][first]),
    )


def staircase(times: np.ndarray, heights: np.ndarray, end: float, base: float, tall: float) -> np.ndarray:
    """The outline of values that hold from each time to the next, standing on a base."""
    x = np.repeat(np.append(times, end), 2)[1:-1]
    y = base + tall * np.repeat(heights, 2)
    return np.column_stack([np.r_[x[0], x, x[-1]], np.r_[base, y, base]])


def short_names(names: list[str]) -> list[str]:
    """Without the number where there is only one of a kind."""
    plain = [" ".join(word for word in name.split() if not word.isdecimal()) for name in names]
    return [said(plain[i] if plain.count(plain[i]) == 1 else name) for i, name in enumerate(names)]


def gauge_words(tape: Tape, name: str, at_ms: float) -> str:
    """3, or 12 of 64 where there is a size."""
    size = tape.timeline.sizes.get(name.removeprefix("free "))
    return f"{tape.value(name, at_ms)}" + (f" of {size}" if size else "")


# ---- letters and colours --------------------------------------------------------------------------------------------


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(FontProperties(family="DejaVu Sans")), 15)


@cache
def palette() -> Image.Image:
    """The colours that occur, mixed with white in steps: a palette's picture is packed six times as fast."""
    mixes = [np.linspace(to_rgb(colour), (1, 1, 1), 12) for colour in COLOURS.values()]
    greys = np.linspace(to_rgb(INK), (1, 1, 1), 24)
    image = Image.new("P", (1, 1))
    image.putpalette(np.round(255 * np.concatenate([greys, *mixes])).astype(np.uint8).tobytes())
    return image
