"""The curve of an instrument, where it is drawn as a picture."""

from collections.abc import Mapping
from typing import Any

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture

DASHES = ("-", "--", ":")


def curve_picture(plane: Mapping[str, Any]) -> Picture:
    """`plane` is a scene's Curve as it is sent to a front end (show/scene.py)."""
    figure, axes = draw.single(3.0, 0.7, 0.6, 0.4)
    for number, (name, line) in enumerate(plane["lines"]):
        look = draw.look(linestyle=DASHES[number % 3], color=list(COLOURS.values())[number % 4], linewidth=2.5)
        axes.plot([x for x, _ in line], [y for _, y in line], label=name, **look)
    for name, (x, y) in plane["points"]:
        axes.plot([x], [y], "o", color=INK, markersize=8)
        draw.note(axes, name, (x, y), (8, -12), draw.FONT_PT)
    for _, at in plane["handles"]:
        axes.axvline(at, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    if plane["log"]:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")

    draw.names(axes, draw.FONT_PT, plane["x"], plane["y"])
    draw.legend(figure, draw.FONT_PT)
    words = "; ".join(f"{name} at {x:.3g}, {y:.3g}" for name, (x, y) in plane["points"])
    return Picture(figure, f"{plane['y']} over {plane['x']}. {words}", words)
