"""The report's headline numbers as curves: the gain over one request at a time, and goodput against fair rivals."""

from collections.abc import Mapping, Sequence

from disagg.show.plots.picture import COLOURS, INK, WIDTH_IN, Picture, font_size, new_figure, plain_axes

Curve = Sequence[tuple[float, float]]
#: Colour, marker and dash of a preset, so that each can be told without colour.
LOOK = {
    "colocated": ("prefill", "o", "-"), "two_colocated": ("paging", "^", "--"), "dynamic": ("decode", "s", "-."),
    "streamed": ("decode", "s", "-."),
}  # fmt: skip


def gain_picture(
    curves: Mapping[str, Curve], marks: Sequence[float], where: str, *, projector: bool = False
) -> Picture:
    """Tokens a second over one request at a time, by rows that may share a step; a dashed line for each mark."""
    size = font_size(projector)
    figure = new_figure(0.3 * size, 12.0 if projector else WIDTH_IN)
    axes = figure.add_axes(_box(figure, size))
    _lines(axes, curves, size)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    rows = sorted({x for curve in curves.values() for x, _ in curve})
    gains = [2**power for power in range(1, 7)]
    axes.set_xticks(rows, [f"{x:g}" for x in rows])
    axes.set_yticks(gains, [f"{gain}×" for gain in gains])
    for mark in marks:
        _level(axes, mark, f"the report's {mark:g}x", size, right=mark < 8)  # where no curve is
    axes.set_xlabel("rows that may share a decode step", fontsize=size, color=INK)
    axes.set_ylabel("tokens/s over baseline", fontsize=size, color=INK, parse_math=False)
    _legend(figure, axes, size)
    told = "; ".join(f"{name} " + ", ".join(f"{y:.1f} with {x:g}" for x, y in curve) for name, curve in curves.items())
    finding = f"{where}: the gain over one request at a time is about the number of rows in a step. {told}."
    return Picture(figure, f"Tokens a second over those of baseline, by rows in a step. {finding}", finding)


def goodput_picture(panels: Mapping[str, Mapping[str, Curve]], where: str, *, projector: bool = False) -> Picture:
    """Share of requests within their limits over requests a second, a panel a limit; the line at 90 % is goodput's."""
    size = font_size(projector)
    figure = new_figure(0.3 * size, 12.0 if projector else WIDTH_IN)
    left, foot, width, height = _box(figure, size, heads=2)
    room = (width + left) / len(panels)
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_axes((left + index * room, foot, room - left, height))
        _lines(axes, {name: [(x, 100 * y) for x, y in curve] for name, curve in curves.items()}, size)
        axes.set_ylim(0, 104)
        _level(axes, 90, "", size)
        axes.set_title(title, loc="left", fontsize=size, color=INK, parse_math=False)
        axes.set_xlabel("requests a second", fontsize=size, color=INK)
        axes.set_ylabel("" if index else "within both limits, %", fontsize=size, color=INK)
    _legend(figure, axes, size)
    told = [f"{title}: " + ", ".join(f"{name} {_held(curve)}" for name, curve in curves.items())
            for title, curves in panels.items()]  # fmt: skip
    finding = f"{where}: highest rate drawn at which 9 of 10 requests keep their limits. {'. '.join(told)}."
    return Picture(figure, f"Share of requests within TTFT and TPOT limits, over the rate. {finding}", finding)


def _held(curve: Curve) -> str:
    """The highest rate up to which 90 % keep their limits."""
    held = 0.0
    for rate, share in curve:
        if share < 0.9:
            break
        held = rate
    return f"{held:g}/s" if held else f"below {curve[0][0]:g}/s"


def _box(figure, size: float, heads: int = 1) -> tuple[float, float, float, float]:
    width, height = figure.get_size_inches()
    left, foot, head = 0.075 * size / width, 0.05 * size / height, 0.03 * heads * size / height
    return left, foot, 0.975 - left, 1 - foot - head


def _lines(axes, curves: Mapping[str, Curve], size: float) -> None:
    plain_axes(axes, size)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    for name, curve in curves.items():
        colour, marker, dash = LOOK[name]
        axes.plot([x for x, _ in curve], [y for _, y in curve], dash, marker=marker, color=COLOURS[colour], label=name,
                  linewidth=2, markersize=0.6 * size, markerfacecolor="white", markeredgewidth=1.8)  # fmt: skip


def _level(axes, y: float, words: str, size: float, right: bool = False) -> None:
    axes.axhline(y, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(words, (right, y), xycoords=("axes fraction", "data"), xytext=(4 - 8 * right, 4), color=INK,
                  textcoords="offset points", fontsize=size, ha="right" if right else "left")  # fmt: skip


def _legend(figure, axes, size: float) -> None:
    handles, labels = axes.get_legend_handles_labels()
    found = figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False, fontsize=size,
                          bbox_to_anchor=(0.985, 1.0), borderaxespad=0.2, columnspacing=1.4)  # fmt: skip
    for text in found.get_texts():
        text.set_parse_math(False)
