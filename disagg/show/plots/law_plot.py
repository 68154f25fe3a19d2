"""The law as a curve: H over c/x for one hop, and what was measured beside it; and the same for two hops.
Notebooks: notebooks/03_layer_streaming.ipynb and notebooks/07_on_a_gpu.ipynb.
"""

from collections.abc import Iterable, Mapping
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disagg.plan.errors import EngineError
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.trace.law import simplest_hidden
from disagg.trace.results import Run

SIZE = draw.FONT_PT
MARKERS = ("o", "s", "^", "D")
Point = tuple[float, float]  # c/x, and H as a fraction


def law_picture(points: Mapping[str, Iterable[Point]], layers: int, *, times: bool = True) -> Picture:
    """Points of (c/x, H) by name on the law of so many layers: a ramp up to c = x, and the ceiling. `times=False` keeps
    what was measured out of the finding."""
    series = {name: list(pairs) for name, pairs in points.items()}
    off = {name: [100 * abs(h - simplest_hidden(layers, r)) for r, h in pairs] for name, pairs in series.items()}
    right = 1.06 * max([2.0, *(ratio for pairs in series.values() for ratio, _ in pairs)])
    ceiling = 100 * simplest_hidden(layers, 1)
    law = [(0.0, 0.0), (1.0, ceiling), (right, ceiling)]
    figure, axes = _drawn(f"law, {layers} layers", law, series, max([0.0, *chain(*off.values())]), "its copy")
    axes.axvline(1, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    draw.note(axes, "c = x", (1, 0), (6, 8), SIZE, "y", va="baseline")
    words = f"ceiling 1 − 1/{layers} = {ceiling:.1f} %"
    draw.note(axes, words, (right, ceiling), (-4, -8), SIZE, ha="right", va="top")
    axes.set_xlim(0, right)
    said = [f"The law for {plural(layers, 'layer')} rises with c/x to {ceiling:.1f} % at c = x and stays there"]
    for name, pairs in series.items():
        far = f", at most {max(off[name]):.1f} percentage points off" if times and pairs else ""
        said.append(f"{name}: {plural(len(pairs), 'point')}{far}")
    finding = "; ".join(said) + "."
    return Picture(figure, f"H in percent over c/x. {finding}", finding)


def dials_picture(runs: Mapping[float, Run]) -> Picture:
    """H of request 0 over the c/x that each run measured, two hops; and the law with each run's own c, x and tail."""
    points = _hidden(runs)
    ratios, measured, law = ([point[i] for point in points] for i in range(3))
    off = max(abs(found - predicted) for _, found, predicted in points)
    series = {"measured": [(r, h / 100) for r, h, _ in points]}
    name = "law, with the run's own c, x and tail"
    figure, _ = _drawn(name, list(zip(ratios, law, strict=True)), series, off, "one hop of it")
    finding = (
        f"H is {measured[0]:.1f} % at c/x = {ratios[0]:.2f} and {measured[-1]:.1f} % at {ratios[-1]:.2f}; "
        f"{plural(len(runs), 'run')}, at most {off:.1f} percentage points off the law."
    )
    return Picture(figure, f"H in percent over c/x, two hops. {finding}", finding)


def _drawn(
    name: str, law: list[Point], series: Mapping[str, list[Point]], off: float, copy: str
) -> tuple[Figure, Axes]:
    """The law as a line, a ring a measured point, and how far the points are off; a single series has its values."""
    figure, axes = draw.single(3.24, 0.78, 0.6, 0.42)
    axes.plot(*zip(*law, strict=True), color=COLOURS["link"], linewidth=3, label=name)
    look = draw.look(markersize=0.75 * SIZE, color="none", markeredgecolor=INK, markeredgewidth=1.8)
    for marker, (label, pairs) in zip(MARKERS * len(series), series.items(), strict=False):
        heights = [100 * h for _, h in pairs]
        axes.plot([r for r, _ in pairs], heights, marker, label=label, zorder=3, **look)
        for at in zip((r for r, _ in pairs), heights, strict=True):
            if len(series) == 1:
                draw.note(axes, f"{at[1]:.0f} %", at, (-7, 8), 0.8 * SIZE, ha="right")
    if any(series.values()):
        words = f"at most {off:.1f} points off the law"
        draw.note(axes, words, (1, 0), (-6, 12), SIZE, "xy", ha="right")
    axes.set_ylim(min([0, *(h for _, h in law), *(100 * h for pairs in series.values() for _, h in pairs)]), 112)
    draw.names(axes, SIZE, f"c/x, compute of a layer over {copy} (faster link to the right)", "H in %")
    draw.legend(figure, SIZE)
    return figure, axes


def ratio(run: Run) -> float:
    """c/x of request 0's hand-off, as the run measured it; x is the slower hop. EngineError without a hand-off."""
    law = run.law(0) if run.results else None
    if law is None:
        raise EngineError("c/x means nothing: no hand-off of a request 0 was recorded")
    return law.compute_s / max(law.hops_s)


def _hidden(runs: Mapping[float, Run]) -> list[tuple[float, float, float]]:
    """(c/x, H as measured, H by the law) of each run's request 0, the slowest link first; H in percent. EngineError
    where it means nothing."""
    points = []
    for dial, run in runs.items():
        hidden, predicted = (run.overlap(0).hidden, run.law(0)) if run.results else (None, None)
        if hidden is None or predicted is None:
            raise EngineError(f"H at dial {dial:g} means nothing: no hand-off of a request 0 was recorded")
        points.append((ratio(run), 100 * hidden, 100 * predicted.hidden))
    return sorted(points)
