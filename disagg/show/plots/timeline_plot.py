"""Timelines as pictures: a row a device or link in the order a request passes them, time to the right.
Notebook: notebooks/00_start_here.ipynb.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOUR_OF, COLOURS, FAINT, HATCHES, INK, LEGEND
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import milliseconds, numbers_of, row_names, sentence, short_list
from disagg.trace.results import Run
from disagg.trace.spans import Span

LEGEND_MANY = {**LEGEND, "link": "copy of layers"}
TALL = 0.72  # of a row
TICK_PX = 4  # hand-off ticks closer than this would run together
SPARSE = 0.15  # of a stretch that is busy
HATCH_PX = 6  # a hatch on narrower boxes would only make them pale


def timeline_picture(
    run: Run,
    request: int | None = None,
    *,
    window_ms: tuple[float, float] | None = None,
    times: bool = True,
    marks: Sequence[Mapping[str, Any]] = (),
) -> Picture:
    """The run, or the way of result `request` up to its second token. `times=False` keeps times out of the finding.
    `marks` are brackets (show/scene.py): stretches of rows with their words."""
    found = " ".join([sentence(run, request, times), *(f"Marked: {mark['words']}." for mark in marks)])
    return _pictures({"": run}, request, window_ms, found, marks)


def compare_picture(
    runs: dict[str, Run],
    request: int | None = None,
    *,
    window_ms: tuple[float, float] | None = None,
    times: bool = True,
) -> Picture:
    """Runs under each other on one scale of time, each with its name."""
    if times:
        finding = " ".join(f"{name}: {sentence(run, request)}" for name, run in runs.items())
    else:
        exposed = {name: run.overlap(request).exposed_s for name, run in runs.items()}
        most, least = max(exposed, key=exposed.__getitem__), min(exposed, key=exposed.__getitem__)
        finding = f"More copying is left after token 1 with {most} than with {least}."
    return _pictures(runs, request, window_ms, finding)


def _pictures(
    runs: dict[str, Run],
    request: int | None,
    window_ms: tuple[float, float] | None,
    finding: str,
    marks: Sequence[Mapping[str, Any]] = (),
) -> Picture:
    size = draw.FONT_PT
    views = [RunView(run, request) for run in runs.values()]
    assert views, "no run was given"
    window = window_ms or (0.0, max(1e-3, max(view.end_ms for view in views)))
    heads = [0.03 * size if name or view.only else 0.0 for name, view in zip(runs, views, strict=True)]
    talls = [0.042 * size * max(1, len(view.rows)) for view in views]
    height = 0.08 * size + sum(heads) + sum(talls) + 0.02 * size * (len(views) - 1)
    figure = draw.blank(height)
    left, right = 0.115 * size / draw.WIDTH_IN, 0.87 if any(view.facts() for view in views) else 0.975
    y = height - 0.03 * size
    axes: Axes | None = None
    for name, view, head, tall in zip(runs, views, heads, talls, strict=True):
        y -= head + tall
        axes = figure.add_axes((left, y / height, right - left, tall / height), sharex=axes, xlim=window)
        view.draw(axes, size)
        view.mark(axes, size, marks)
        if name:
            up = (y + tall) / height + 0.04 * size / 72 / height
            figure.text(0.012, up, name, fontsize=size, weight="bold", color=INK, va="bottom", parse_math=False)
        axes.tick_params(labelbottom=view is views[-1])
        y -= 0.02 * size
    assert axes is not None
    since = "since the start" if request is None else "since the request arrived"
    many = "; numbers are requests" if any(len(run.results) > 1 for run in runs.values()) else ""
    time_axis(axes, window, size, since + many)
    _legend(figure, views, size)
    words = " ".join(f"{name}: {sentence(run, request)}".removeprefix(": ") for name, run in runs.items())
    rows = ", ".join(views[0].rows.values())
    return Picture(figure, f"Timeline, time to the right, rows from the top: {rows}. {words}", finding)


class RunView:
    """What is drawn of a run: its spans in ms since the run began, or since the arrival of one request."""

    def __init__(self, run: Run, request: int | None) -> None:
        self.run, self.result = run, None if request is None else run.results[request]
        self.only = run.results[0] if request is None and len(run.results) == 1 else self.result
        self.origin_ns = run.timeline.start_ns if self.result is None else self.result.arrival_ns
        self.rows = row_names(run.timeline)
        self.numbers = numbers_of(run)
        self.passes = {(s.place, s.start_ns) for s in run.timeline.spans if s.kind == "prefill"}
        self.end_ms = self._end_ms()

    def ms(self, at_ns: int) -> float:
        return (at_ns - self.origin_ns) / 1e6

    def rides(self, span: Span) -> bool:
        """A step whose rows decode in a prefill pass, which is drawn below it."""
        return span.kind == "decode" and (span.place, span.start_ns) in self.passes

    def draw(self, axes: Axes, size: float) -> None:
        """Boxes, ticks, numbers, and row names. One collection a kind: a hatch belongs to a whole collection."""
        y = {place: -row for row, place in enumerate(self.rows)}
        ms_per_px = np.diff(axes.get_xlim())[0] / axes.get_window_extent().width
        for kind in dict.fromkeys(COLOUR_OF.values()):
            spans = [span for span in self.run.timeline.spans if COLOUR_OF[span.kind] == kind]
            if spans:
                self._boxes(axes, kind, spans, y, ms_per_px)
        self._ticks(axes, y, ms_per_px)
        if self.only is not None:
            self._exposure(axes, ms_per_px, size, self.only.request)
        for place, words in self.facts().items():
            draw.note(axes, words, (1, y[place]), (8, 0), 0.9 * size, "x", linespacing=1.05)
        if len(self.run.results) > 1:
            self._numbers(axes, y, ms_per_px, size)
        draw.rows(axes, self.rows.values())
        draw.plain(axes, size)

    def facts(self) -> dict[str, str]:
        """Beside a row, what was measured there: when token 1 came, how much of the copying was hidden, and the gap
        before token 2; of several requests the longest gap."""
        place_of: dict[str, list[str]] = {kind: [] for kind in COLOUR_OF}
        for span in self.run.timeline.spans:
            place_of[span.kind].append(span.place)
        found = {}
        if self.only and self.only.ttft_s is not None:
            found = {place: f"TTFT\n{milliseconds(self.only.ttft_s)}" for place in place_of["prefill"]}
        overlap = self.run.overlap(None if self.only is None else self.run.results.index(self.only))
        if place_of["copy"] and overlap.hidden is not None:
            share = "–" if overlap.share is None else f"{overlap.share:.0%}"
            found[next(place for place in self.rows if place in place_of["copy"])] = f"H = {share}"
        return found | {place: words for place in set(place_of["decode"]) if (words := self._gap(place))}

    def _gap(self, place: str) -> str:
        if self.only is not None:
            gap = self.only.second_token_gap_s
            return "" if gap is None else f"second-token\ngap {milliseconds(gap)}"
        here = {r for s in self.run.timeline.spans if (s.place, s.kind) == (place, "decode") for r in s.requests}
        gaps = [gap for result in self.run.results if result.request in here for gap in result.itl_s]
        return f"longest gap\n{milliseconds(max(gaps))}" if gaps else ""

    def mark(self, axes: Axes, size: float, marks: Sequence[Mapping[str, Any]]) -> None:
        """Brackets over stretches of rows; an instant is a line through its row."""
        y, (low, high) = {place: -row for row, place in enumerate(self.rows)}, axes.get_xlim()
        for one in marks:
            start, end = (self.ms(one[edge] + self.run.timeline.start_ns) for edge in ("start", "end"))
            top, foot = y[one["place"]] + 0.47, y[one["place"]] - TALL / 2 * (start == end)
            x = [start, start, min(end, high), min(end, high)]
            axes.plot(x, [foot, top, top, foot], color=INK, linewidth=2, solid_capstyle="butt", zorder=5)
            wide = (min(end, high) - start) / (high - low) > 0.3
            left = start > (low + high) / 2
            x_words = (start + min(end, high)) / 2 if wide else start if left else min(end, high)
            side = "center" if wide else "right" if left else "left"
            white = dict(facecolor="white", edgecolor="none", pad=1)
            how = draw.look(ha=side, zorder=6, bbox=white, parse_math=False)
            by = (0 if wide else -5 if left else 5, 0)
            draw.note(axes, one["words"], (x_words, y[one["place"]] + 0.35), by, 0.8 * size, **how)

    def boxes(self, spans: list[Span], y: Mapping[str, float], tall: float, least_ms: float) -> tuple[Any, np.ndarray]:
        """Boxes around the rows' middles, and their widths in ms, none below the least one."""
        starts = np.array([self.ms(span.start_ns) for span in spans])
        widths = np.maximum([(span.end_ns - span.start_ns) / 1e6 for span in spans], least_ms)
        middles = np.array([y[span.place] for span in spans])
        lows = middles - tall / 2 + tall * 2 / 3 * np.array([self.rides(span) for span in spans])
        return draw.boxes(starts, starts + widths, lows, middles + tall / 2), widths

    def _boxes(self, axes: Axes, kind: str, spans: list[Span], y: dict, ms_per_px: float) -> None:
        boxes, widths = self.boxes(spans, y, TALL, 1.6 * ms_per_px)
        edges = np.where(widths > 4 * ms_per_px, 0.8, 0.0)
        look = draw.look(facecolors=COLOURS[kind], edgecolors="white", linewidths=edges, label=kind)
        axes.add_collection(PolyCollection(boxes, **look))
        wide = boxes[widths > HATCH_PX * ms_per_px]
        if HATCHES[kind] and len(wide):
            hatched = PolyCollection(wide, facecolors="none", edgecolors=FAINT, linewidths=0, hatch=HATCHES[kind])
            axes.add_collection(hatched)

    def _ticks(self, axes: Axes, y: dict, ms_per_px: float) -> None:
        """Ticks at each layer's hand-off, in passes wide enough for separate ticks."""
        lines = []
        for span in self.run.timeline.spans:
            if span.hand_offs_ns and (span.end_ns - span.start_ns) / 1e6 > TICK_PX * ms_per_px * len(span.hand_offs_ns):
                low = y[span.place] - TALL / 2
                lines += [[(self.ms(at), low), (self.ms(at), low + TALL / 3)] for at in span.hand_offs_ns]
        self.has_ticks = bool(lines)
        if lines:
            axes.add_collection(LineCollection(lines, colors="white", linewidths=1.2, label="hand-off"))

    def _numbers(self, axes: Axes, y: dict, ms_per_px: float, size: float) -> None:
        """The requests' numbers, once for each stretch of work on the same requests that has room for them."""
        low, high = axes.get_xlim()
        packed = {request: s.requests for s in self.run.timeline.spans if s.kind == "prefill" for request in s.requests}

        def together(span: Span) -> tuple:
            """Copies of requests that shared a pass alternate on the link: they count as one stretch."""
            return span.kind, packed.get(span.requests[0], span.requests) if span.kind == "copy" else span.requests

        for place in self.rows:
            spans = sorted(
                (s for s in self.run.timeline.spans if s.place == place and not self.rides(s)), key=lambda s: s.start_ns
            )
            for group in (list(alike) for _, alike in groupby(spans, key=together)):
                start, end = max(low, self.ms(group[0].start_ns)), min(high, self.ms(max(s.end_ns for s in group)))
                if sum(s.end_ns - s.start_ns for s in group) / 1e6 < SPARSE * (end - start):
                    continue  # a number between boxes would belong to none of them
                text = short_list(sorted({self.numbers.get(r, r) for span in group for r in span.requests}))
                if (end - start) / ms_per_px > (0.9 * len(text) + 1.2) * size:
                    draw.tag(axes, (start + end) / 2, y[place], text, size, 1.5, clip_on=True)

    def _exposure(self, axes: Axes, ms_per_px: float, size: float, request: int) -> None:
        """A line where token 1 exists, and a shade over what is still copied after it."""
        token_1 = self.run.timeline.prefill_end_ns(request)
        if token_1 is None:
            return
        found = self.run.timeline.overlap(request)
        at, exposed_ms = self.ms(token_1), 1e3 * found.exposed_s
        axes.axvline(at, color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
        words = f"token 1, then E = {milliseconds(found.exposed_s)}" if found.transfer_s else "token 1"
        late = at > 0.55 * axes.get_xlim()[1]
        how = draw.look(ha="right" if late else "left", va="baseline")
        draw.note(axes, words, (at, 1), (0, 3), size, "y", **how)
        if exposed_ms > 2 * ms_per_px:
            end = min(at + exposed_ms, axes.get_xlim()[1])
            axes.axvspan(at, end, color=INK, alpha=0.08, linewidth=0, zorder=0)
            axes.plot([at, at, end, end], [0.4, 0.47, 0.47, 0.4], color=INK, linewidth=2, solid_capstyle="butt")

    def _end_ms(self) -> float:
        """The run's end; for one request a little after its second token, or what came last."""
        if self.result is None:
            return self.ms(self.run.timeline.end_ns)
        copies = self.run.timeline.hand_off(self.result.request)
        ends = [*self.result.token_times_ns[:2], *(span.end_ns for span in copies)] or [self.result.ended_ns]
        return 1.06 * self.ms(max(ends))


def time_axis(axes: Axes, window: tuple[float, float], size: float, words: str) -> None:
    in_s = window[1] - window[0] > 3000
    axes.xaxis.set_major_formatter(lambda ms, _: f"{ms / 1e3:g}" if in_s else f"{ms:g}")
    draw.names(axes, size, f"{'s' if in_s else 'ms'} {words}")


def _legend(figure: Figure, views: list[RunView], size: float) -> None:
    spans = [span for view in views for span in view.run.timeline.spans]
    words = LEGEND_MANY if any(span.kind == "copy" and span.count > 1 for span in spans) else LEGEND
    present = {COLOUR_OF[span.kind] for span in spans}
    if any(view.has_ticks for view in views):
        ticks = "tick: K/V of a layer are there" if len(present) < len(LEGEND) else "ticks: layers"  # no room for more
        words = {**words, "prefill": f"prefill pass ({ticks})"}
    kind_legend(figure, {kind: word for kind, word in words.items() if kind in present}, size)


def kind_legend(figure: Figure, words: dict[str, str], size: float) -> None:
    patches = [
        Patch(facecolor=COLOURS[kind], edgecolor=FAINT, linewidth=0, hatch=HATCHES[kind], label=word)
        for kind, word in words.items()
    ]
    draw.legend(figure, size, patches, handlelength=1.6)
