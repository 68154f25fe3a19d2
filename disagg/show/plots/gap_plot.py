"""Gaps between tokens over time: each point is a token, as high as its reader waited for it.
Notebooks: notebooks/01_baseline.ipynb and notebooks/07_on_a_gpu.ipynb.
"""

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import milliseconds
from disagg.show.plots.timeline_plot import time_axis
from disagg.trace.results import Run

MARKERS = "o^sDvP"
TALL_IN = 0.105  # of a panel, by points of the font


def gaps_picture(runs: dict[str, Run], requests: list[int] | None = None, *, projector: bool = False) -> Picture:
    """One panel for each run, on one scale; `requests` are the results whose gaps are drawn (None: all)."""
    size = draw.font_size(projector)
    numbers = {name: range(len(run.results)) if requests is None else requests for name, run in runs.items()}
    chosen = {name: [(i, run.results[i]) for i in numbers[name]] for name, run in runs.items()}
    head, foot, tall = 0.03 * size, 0.05 * size, TALL_IN * size
    height = len(runs) * (head + tall) + foot
    figure, y = draw.figure(height, projector), height
    axes: Axes | None = None
    left = 0.09 * size / figure.get_figwidth()
    highest = max((1e3 * gap for results in chosen.values() for _, r in results for gap in r.itl_s), default=1.0)
    for name, run in runs.items():
        y -= head + tall
        axes = figure.add_axes((left, y / height, 0.975 - left, tall / height), sharex=axes)
        draw.plain(axes, size, across=True)
        for index, result in chosen[name]:
            times = [(at_ns - run.timeline.start_ns) / 1e6 for at_ns in result.token_times_ns[1:]]
            gaps = [1e3 * gap for gap in result.itl_s]
            look = draw.look(
                color=COLOURS["decode"], markersize=0.5 * size, markerfacecolor="none", markeredgewidth=1.4
            )
            axes.plot(times, gaps, MARKERS[index % len(MARKERS)], label=f"request {index}", **look)
        axes.set_ylim(0, 1.1 * highest)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        draw.names(axes, size, y="gap, ms")
        draw.names(axes, size, title=name, weight="bold", parse_math=False)
        axes.tick_params(labelbottom=name == list(runs)[-1])
    assert axes is not None, "no run was given"
    time_axis(axes, axes.get_xlim(), size, "since the start; each point is a token, each shape a request")
    longest = {name: max((gap for _, r in results for gap in r.itl_s), default=0.0) for name, results in chosen.items()}
    finding = "Longest gap: " + ", ".join(f"{name} {milliseconds(gap)}" for name, gap in longest.items()) + "."
    return Picture(figure, f"Gaps between tokens over time, one panel for each run. {finding}", finding)


def gaps_beside(run: Run, indices: Iterable[int]) -> tuple[list[float], list[float]]:
    """Gaps in seconds of these results, the second token's left out: while others were in prefill, and while none
    was. A gap that any part of another's pass falls into counts among the first."""
    own = {run.results[index].request for index in indices}
    passes = [s for s in run.timeline.spans if s.kind == "prefill"]
    others = [(s.start_ns, s.end_ns) for s in passes if not own & set(s.requests)]
    busy = [(s.start_ns, s.end_ns) for s in passes]
    beside, alone = [], []
    for index in indices:
        times = run.results[index].token_times_ns[1:]
        for start, end in zip(times, times[1:], strict=False):
            if any(a < end and start < b for a, b in others):
                beside.append((end - start) / 1e9)
            elif not any(a < end and start < b for a, b in busy):
                alone.append((end - start) / 1e9)
    return beside, alone
