"""Decode steps against their floor: a panel a batch, a bar a rung, and the time that the bytes alone would take.

Notebook: notebooks/07_on_a_gpu.ipynb.
"""

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, HATCHES, INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.show.recordings import RUNGS, StepTimes


def steps_picture(steps: StepTimes, *, projector: bool = False) -> Picture:
    """Median steps of each rung in ms, and in floors."""
    size = draw.font_size(projector)
    height = (0.045 * (len(RUNGS) + 1) + 0.085) * size
    figure = draw.figure(height, projector)
    width_in = figure.get_figwidth()
    panels = figure.subplots(1, len(steps.batches), squeeze=False)[0]
    figure.subplots_adjust(0.095 * size / width_in, 0.05 * size / height, 0.985, 1 - 0.035 * size / height, wspace=0.12)
    for axes, rows in zip(panels, steps.batches, strict=True):
        _panel(axes, steps, rows, size)
        if axes is not panels[0]:
            axes.tick_params(labelleft=False)
    finding = " ".join(_words(steps, rows) for rows in steps.batches)
    return Picture(figure, f"Decode steps in ms, a bar a rung, above them the floor. {finding}", finding)


def _panel(axes: Axes, steps: StepTimes, rows: int, size: float) -> None:
    draw.plain(axes, size)
    bars = {"floor": 1e3 * steps.floor_s(rows)} | {rung: 1e3 * steps.of(rung, rows).seconds for rung in RUNGS}
    longest = max(bars.values())
    for row, (name, ms) in enumerate(bars.items()):
        if name == "floor":
            style, words = draw.look(color="none", edgecolor=INK, hatch="///"), f"{ms:.3g}"
        else:
            style = draw.look(color=COLOURS["decode"], hatch=HATCHES["decode"], edgecolor="white", linewidth=0)
            words = f"{ms:.3g} ({_plain(steps.over_floor(name, rows))}×)"
        axes.barh(-row, ms, 0.7, **style)
        axes.text(ms + 0.02 * longest, -row, words, va="center", fontsize=0.9 * size, color=INK)
    axes.set_xlim(0, 1.75 * longest)
    draw.rows(axes, bars)
    draw.names(axes, size, "ms a step", title=plural(rows, "row"))


def _words(steps: StepTimes, rows: int) -> str:
    over = ", ".join(f"{rung} {_plain(steps.over_floor(rung, rows))}" for rung in RUNGS)
    return f"{plural(rows, 'row').capitalize()}: the floor is {1e3 * steps.floor_s(rows):.3g} ms; in floors, {over}."


def _plain(floors: float) -> str:
    return f"{floors:.2f}" if floors < 10 else f"{floors:.0f}"
