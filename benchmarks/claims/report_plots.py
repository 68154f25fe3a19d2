"""The report's headline numbers as curves: the gain over one request at a time, and goodput against fair rivals."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture

Curve = Sequence[tuple[float, float]]
#: Colour, marker and dash of a preset, so that each is known without colour.
LOOK = {
    "colocated": ("prefill", "o", "-"),
    "two_colocated": ("paging", "^", "--"),
    **dict.fromkeys(("dynamic", "streamed"), ("decode", "s", "-.")),
}


def gain_picture(curves: Mapping[str, Curve], marks: Sequence[float], where: str) -> Picture:
    """Tokens a second over one request at a time, by rows that may share a step; a dashed line for each mark."""
    size = draw.FONT_PT
    figure = draw.blank(0.3 * size)
    axes = draw.room(figure, 0.075 * size, 0.05 * size, 0.03 * size)
    _lines(axes, curves, size)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    rows = sorted({x for curve in curves.values() for x, _ in curve})
    gains = [2**power for power in range(1, 7)]
    axes.set_xticks(rows, [f"{x:g}" for x in rows])
    axes.set_yticks(gains, [f"{gain}×" for gain in gains])
    for mark in marks:
        _level(axes, mark, f"the report's {mark:g}x", size, right=mark < 8)  # where no curve is
    draw.names(axes, size, "rows that may share a decode step", "tokens/s over baseline")
    draw.legend(figure, size)
    each = "; ".join(f"{name} " + ", ".join(f"{y:.1f} with {x:g}" for x, y in curve) for name, curve in curves.items())
    finding = f"{where}: the gain over one request at a time is about the number of rows in a step. {each}."
    return Picture(figure, f"Tokens a second over those of baseline, by rows in a step. {finding}", finding)


def goodput_picture(panels: Mapping[str, Mapping[str, Curve]], where: str) -> Picture:
    """Share of requests within their limits over requests a second, a panel a limit; the line at 90 % is goodput's."""
    size = draw.FONT_PT
    figure = draw.blank(0.3 * size)
    width, height = figure.get_size_inches()
    left, foot, head = 0.075 * size / width, 0.05 * size / height, 0.03 * 2 * size / height
    wide = (0.975 - left + left) / len(panels)
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_axes((left + index * wide, foot, wide - left, 1 - foot - head))
        _lines(axes, {name: [(x, 100 * y) for x, y in curve] for name, curve in curves.items()}, size)
        axes.set_ylim(0, 104)
        _level(axes, 90, "", size)
        up = "" if index else "within both limits, %"
        draw.names(axes, size, "requests a second", up, title, parse_math=False)
    draw.legend(figure, size)
    each = [
        f"{title}: " + ", ".join(f"{name} {_held(curve)}" for name, curve in curves.items())
        for title, curves in panels.items()
    ]
    finding = f"{where}: highest rate drawn at which 9 of 10 requests keep their limits. {'. '.join(each)}."
    return Picture(figure, f"Share of requests within TTFT and TPOT limits, over the rate. {finding}", finding)


def _held(curve: Curve) -> str:
    """The highest rate up to which 90 % keep their limits."""
    held = 0.0
    for rate, share in curve:
        if share < 0.9:
            break
        held = rate
    return f"{held:g}/s" if held else f"below {curve[0][0]:g}/s"


def _lines(axes: Axes, curves: Mapping[str, Curve], size: float) -> None:
    draw.plain(axes, size, across=True)
    for name, curve in curves.items():
        colour, marker, dash = LOOK[name]
        look = draw.look(linewidth=2, markersize=0.6 * size, markerfacecolor="white", markeredgewidth=1.8)
        x, y = zip(*curve, strict=True)
        axes.plot(x, y, dash, marker=marker, color=COLOURS[colour], label=name, **look)


def _level(axes: Axes, y: float, words: str, size: float, right: bool = False) -> None:
    axes.axhline(y, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    draw.note(axes, words, (right, y), (4 - 8 * right, 4), size, "x", ha="right" if right else "left", va="baseline")
