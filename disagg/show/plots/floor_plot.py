"""Decode steps against their floor: a panel a batch, a bar a rung, and the time that the bytes alone would take.
Notebook: notebooks/07_on_a_gpu.ipynb.
"""

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.show.recordings import StepTimes


def steps_picture(steps: StepTimes) -> Picture:
    """Median steps of each rung in ms, and in floors."""
    height = 0.54 * (len(steps.rungs) + 1) + 1.02
    figure, panels = draw.panels(len(steps.batches), height, 1.14, 0.6, 0.42, 0.985)
    for axes, rows in zip(panels, steps.batches, strict=True):
        _panel(axes, steps, rows, draw.FONT_PT)
    draw.rows(panels[0], ["floor", *steps.rungs])
    finding = " ".join(_words(steps, rows) for rows in steps.batches)
    return Picture(figure, f"Decode steps in ms, a bar a rung, above them the floor. {finding}", finding)


def _panel(axes: Axes, steps: StepTimes, rows: int, size: float) -> None:
    draw.plain(axes, size)
    bars = {"floor": 1e3 * steps.floor_s(rows)} | {rung: 1e3 * steps.of(rung, rows).seconds for rung in steps.rungs}
    longest = max(bars.values())
    for row, (name, ms) in enumerate(bars.items()):
        kind, floors = (None, "") if name == "floor" else ("decode", f" ({_plain(steps.over_floor(name, rows))}×)")
        draw.bar(axes, -row, ms, f"{ms:.3g}{floors}", longest, kind, 0.7, size)
    axes.set_xlim(0, 1.75 * longest)
    draw.names(axes, size, "ms a step", title=plural(rows, "row"))


def _words(steps: StepTimes, rows: int) -> str:
    over = ", ".join(f"{rung} {_plain(steps.over_floor(rung, rows))}" for rung in steps.rungs)
    return f"{plural(rows, 'row').capitalize()}: the floor is {1e3 * steps.floor_s(rows):.3g} ms; in floors, {over}."


def _plain(floors: float) -> str:
    return f"{floors:.2f}" if floors < 10 else f"{floors:.0f}"
