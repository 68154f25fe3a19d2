"""The roofline: FLOPs and bytes of work (twin/work) and a machine's ceilings in one picture.
Notebook: notebooks/01_baseline.ipynb.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.trace.results import Run
from disagg.twin.work import Sizes, Work, prefill_work, step_work

__all__ = ["Sizes", "Work", "prefill_work", "step_work"]  # notebook 01 takes them from here
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # words of a point stand over lines


class Ceilings(NamedTuple):
    flops_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which compute is the limit, and below which memory is."""
        return self.flops_per_s / self.bytes_per_s


def best_s(work: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several runs: a ceiling is the best that was ever seen."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_ceilings(threads: int = 1, side: int = 1024, rows: int = 32_768, repeats: int = 5) -> Ceilings:
    """FLOP/s of a product of two square matrices; bytes/s of a matrix far larger than caches, times one vector, or
    copied (read and written), whichever is faster. In float32. The number of torch threads is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        square, out = torch.ones(side, side), torch.empty(side, side)
        flops_per_s = 2 * side**3 / best_s(lambda: torch.mm(square, square, out=out), repeats)
        tall, vector = torch.ones(rows, 2048), torch.ones(2048)
        read = tall.nbytes / best_s(lambda: tall @ vector, repeats)
        half = rows // 2
        copied = tall.nbytes / best_s(lambda: tall[:half].copy_(tall[half:]), repeats)  # half is read, half written
        return Ceilings(flops_per_s, max(read, copied))
    finally:
        torch.set_num_threads(before)


def seconds_of(run: Run, kind: str, count: int) -> float:
    """Median seconds of the run's passes ("prefill") of `count` tokens, or steps ("decode") of `count` rows."""
    alike = [span for span in run.timeline.spans if (span.kind, span.count) == (kind, count)]
    return statistics.median((span.end_ns - span.start_ns) / 1e9 for span in alike)


class Point(NamedTuple):
    """A pass or a step by name; `seconds` is None if it was only counted."""

    name: str
    kind: str  # prefill or decode
    work: Work
    seconds: float | None = None


def roofline_picture(ceilings: Ceilings, points: list[Point]) -> Picture:
    """Both ceilings over FLOPs a byte. A point without seconds stands under its ceiling as a ring, on the roof."""
    figure, axes = draw.single(3.6, 1.14, 0.6, 0.108)
    size = draw.FONT_PT
    axes.set_xscale("log")
    axes.set_yscale("log")
    intensities = [ceilings.ridge, *(point.work.intensity for point in points)]
    low, high = 0.4 * min(intensities), 9 * max(intensities)
    corners = [low, ceilings.ridge, high]
    axes.plot(corners, [_roof(ceilings, x) / 1e9 for x in corners], color=INK, linewidth=2, label="roof")
    axes.axvline(ceilings.ridge, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    lowest = 0.3 * min(_height(ceilings, p) for p in points) / 1e9
    axes.set_xlim(low, high)
    axes.set_ylim(lowest, 3 * ceilings.flops_per_s / 1e9)
    for x, side, words in ((0.93, "right", "memory is the limit"), (1.07, "left", "compute is the limit")):
        axes.text(x * ceilings.ridge, 1.8 * ceilings.flops_per_s / 1e9, words, ha=side, fontsize=size, color=INK)
    for point in points:
        x, y = point.work.intensity, _height(ceilings, point) / 1e9
        marker = "o" if point.kind == "decode" else "s"
        face = "white" if point.seconds is None else COLOURS[point.kind]
        look = draw.look(markersize=0.75 * size, color=COLOURS[point.kind], markerfacecolor=face, markeredgewidth=2)
        axes.plot([x], [y], marker, label=point.name, **look)
        draw.note(axes, point.name, (x, y), (0.7 * size, -0.9 * size), size, bbox=PLAIN)
        least, taken = point.work.seconds(ceilings), point.seconds
        words = f"≥ {1e3 * least:.0f} ms" if taken is None else f"{1e3 * taken:.0f} ms, {least / taken:.0%} of the roof"
        draw.note(axes, words, (x, y), (0.7 * size, -2 * size), 0.85 * size, bbox=PLAIN)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    draw.names(axes, size, "FLOPs for every byte", "GFLOP/s")
    each = " ".join(_point_words(ceilings, point) for point in points)
    finding = f"The ridge is at {ceilings.ridge:.1f} FLOPs a byte. {each}"
    return Picture(figure, f"Roofline, FLOPs a byte to the right, GFLOP/s upwards. {finding}", finding)


def _roof(ceilings: Ceilings, intensity: float) -> float:
    return min(ceilings.flops_per_s, ceilings.bytes_per_s * intensity)


def _height(ceilings: Ceilings, point: Point) -> float:
    """FLOP/s that were measured, or that the roof allows."""
    return _roof(ceilings, point.work.intensity) if point.seconds is None else point.work.flops / point.seconds


def _point_words(ceilings: Ceilings, point: Point) -> str:
    limit = "compute" if point.work.intensity > ceilings.ridge else "memory"
    words = f"{point.name.capitalize()}: {point.work.intensity:.1f} FLOPs a byte, the limit is {limit}"
    least = point.work.seconds(ceilings)
    if point.seconds is None:
        return f"{words}, {1e3 * least:.0f} ms at least."
    return f"{words}; {1e3 * point.seconds:.0f} ms measured, {least / point.seconds:.0%} of the ceiling."
