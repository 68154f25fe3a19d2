"""The law as a curve: H over c/x for one hop, and what was measured beside it; and the same for two hops.
Notebooks: notebooks/03_layer_streaming.ipynb and notebooks/07_on_a_gpu.ipynb.
"""

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes

from disagg.plan.errors import EngineError
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.trace.law import simplest_hidden
from disagg.trace.results import Run

MARKERS = ("o", "s", "^", "D")
Point = tuple[float, float]  # c/x, and H as a fraction


def law_picture(
    points: Mapping[str, Iterable[Point]] | Iterable[Point], layers: int, *, times: bool = True, projector: bool = False
) -> Picture:
    """Points of (c/x, H) on the law of so many layers, by name. `times=False` keeps what was measured out of the
    finding."""
    named = points if isinstance(points, Mapping) else {"measured": points}
    series = {name: list(pairs) for name, pairs in named.items()}
    size, figure, axes = draw.single(0.27, 0.065, 0.05, 0.035, projector)
    _curve(axes, layers, series, size)
    for marker, (name, pairs) in zip(MARKERS * len(series), series.items(), strict=False):
        _rings(axes, [r for r, _ in pairs], [100 * h for _, h in pairs], marker, name, size)
    draw.legend(figure, size)
    each = [f"{name}: " + ", ".join(f"{100 * h:.1f} % at {r:.2f}" for r, h in pairs) for name, pairs in series.items()]
    alt = f"H in percent over c/x. {_words(layers, series, True)} {'. '.join(each)}{'.' * bool(each)}"
    return Picture(figure, alt, _words(layers, series, times))


def _rings(axes: Axes, x: list[float], y: list[float], marker: str, name: str, size: float) -> None:
    look = draw.look(markersize=0.75 * size, color="none", markeredgecolor=INK, markeredgewidth=1.8)
    axes.plot(x, y, marker, label=name, zorder=3, **look)


def _curve(axes: Axes, layers: int, series: dict[str, list[Point]], size: float) -> None:
    """The law: a ramp up to c = x, and the ceiling."""
    ratios = [ratio for pairs in series.values() for ratio, _ in pairs]
    heights = [100 * hidden for pairs in series.values() for _, hidden in pairs]
    right, ceiling = 1.06 * max([2.0, *ratios]), 100 * simplest_hidden(layers, 1)
    axes.plot([0, 1, right], [0, ceiling, ceiling], color=COLOURS["link"], linewidth=3, label=f"law, {layers} layers")
    axes.axvline(1, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    draw.note(axes, "c = x", (1, 0), (6, 8), size, "y", va="baseline")
    words = f"ceiling 1 − 1/{layers} = {ceiling:.1f} %"
    draw.note(axes, words, (right, ceiling), (-4, -8), size, ha="right", va="top")
    draw.plain(axes, size, across=True)
    axes.set_xlim(0, right)
    axes.set_ylim(min([0, *heights]), 108)
    draw.names(axes, size, "c/x, compute of a layer over its copy (faster link to the right)", "H in %")


def _words(layers: int, series: dict[str, list[Point]], times: bool) -> str:
    law = f"The law for {plural(layers, 'layer')} rises with c/x to {100 * simplest_hidden(layers, 1):.1f} % at c = x"
    parts = []
    for name, pairs in series.items():
        away = max((100 * abs(h - simplest_hidden(layers, r)) for r, h in pairs), default=0.0)
        off = f", at most {away:.1f} percentage points off" if times and pairs else ""
        parts.append(f"{name}: {plural(len(pairs), 'point')}{off}")
    return "; ".join([f"{law} and stays there", *parts]) + "."


def dials_picture(runs: Mapping[float, Run], *, projector: bool = False) -> Picture:
    """H of request 0 over the c/x that each run measured, two hops; and the law with each run's own c, x and tail."""
    points = _hidden(runs)
    ratios, measured, law = ([point[i] for point in points] for i in range(3))
    size, figure, axes = draw.single(0.27, 0.065, 0.05, 0.035, projector)
    axes.plot(ratios, law, label="law, with the run's own c, x and tail", color=COLOURS["link"], linewidth=3)
    _rings(axes, ratios, measured, "o", "measured", size)
    draw.plain(axes, size, across=True)
    axes.set_ylim(min([0, *measured, *law]), 108)
    draw.names(axes, size, "c/x, compute of a layer over one hop of it (faster link to the right)", "H in %")
    draw.legend(figure, size)
    off = max(abs(found - predicted) for _, found, predicted in points)
    finding = (
        f"H is {measured[0]:.1f} % at c/x = {ratios[0]:.2f} and {measured[-1]:.1f} % at {ratios[-1]:.2f}; "
        f"{plural(len(runs), 'run')}, at most {off:.1f} percentage points off the law."
    )
    each = ", ".join(f"{found:.1f} (law {predicted:.1f}) at {at:.2f}" for at, found, predicted in points)
    return Picture(figure, f"H in percent over c/x, two hops. {finding} {each}.", finding)


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
