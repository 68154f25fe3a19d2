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
SIZE = draw.FONT_PT
HEAD_IN, TALL_IN, FOOT_IN = 0.36, 1.26, 0.6
LOOK = draw.look(color=COLOURS["decode"], markersize=0.5 * SIZE, markerfacecolor="none", markeredgewidth=1.4)


def gaps_picture(runs: dict[str, Run], requests: Iterable[int]) -> Picture:
    """One panel for each run, on one scale, with the gaps of these results."""
    chosen = {name: [(index, run.results[index]) for index in requests] for name, run in runs.items()}
    longest = {name: max((gap for _, r in results for gap in r.itl_s), default=0.0) for name, results in chosen.items()}
    height = len(runs) * (HEAD_IN + TALL_IN) + FOOT_IN
    figure, y = draw.blank(height), height
    axes: Axes | None = None
    for name, run in runs.items():
        y -= HEAD_IN + TALL_IN
        axes = figure.add_axes((0.12, y / height, 0.855, TALL_IN / height), sharex=axes)
        draw.plain(axes, SIZE, across=True)
        for index, result in chosen[name]:
            times = [(at_ns - run.timeline.start_ns) / 1e6 for at_ns in result.token_times_ns[1:]]
            marker, gaps = MARKERS[index % len(MARKERS)], [1e3 * gap for gap in result.itl_s]
            axes.plot(times, gaps, marker, label=f"request {index}", **LOOK)
        axes.set_ylim(0, 1.1 * (1e3 * max(longest.values()) or 1.0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        draw.names(axes, SIZE, y="gap, ms")
        draw.names(axes, SIZE, title=name, weight="bold", parse_math=False)
        words, how = f"longest gap {milliseconds(longest[name])}", draw.look(ha="right", va="baseline")
        draw.note(axes, words, (1, 1), (0, 6), SIZE, "xy", **how)
        axes.tick_params(labelbottom=name == list(runs)[-1])
    assert axes is not None, "no run was given"
    time_axis(axes, axes.get_xlim(), SIZE, "since the start; each point is a token, each shape a request")
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
