"""Pictures of two choices: how many slots a ring needs, and whether to spill or to compute again.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disagg.plan.preemption import Arm, Choice
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural

LINES = (("link", "o", "-"), ("prefill", "s", "--"), ("decode", "^", ":"), ("paging", "D", "-."))


def ring_picture(exposed_ms: dict[str, dict[int, float]], *, projector: bool = False) -> Picture:
    """Exposed time over the slots of the ring, a line a setting: name → slots → ms."""
    size = draw.font_size(projector)
    figure, axes = _axes(size, projector, 3.0)
    counts = sorted({slots for line in exposed_ms.values() for slots in line})
    lowest = {slots: min(line[slots] for line in exposed_ms.values() if slots in line) for slots in counts}
    highest = max(value for line in exposed_ms.values() for value in line.values()) or 1
    for (name, line), (colour, marker, dash) in zip(exposed_ms.items(), LINES, strict=False):
        places, values = [counts.index(slots) for slots in line], list(line.values())
        axes.plot(places, values, dash, marker=marker, color=COLOURS[colour], linewidth=2, markersize=8, label=name)
        for slots, value in line.items():
            up, va = (-8, "top") if value == lowest[slots] else (8, "bottom")
            draw.note(axes, f"{value:.0f}", (counts.index(slots), value), (0, up), size, ha="center", va=va)
    axes.set_xticks(range(len(counts)), [str(slots) for slots in counts])
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.1 * highest])
    axes.set_ylim(-0.15 * highest, 1.2 * highest)
    axes.set_xlim(-0.3, len(counts) - 0.7)
    _words(axes, "slots of the ring", "ms exposed (E)", size)
    words = "; ".join(
        f"{name}: " + ", ".join(f"{value:.0f} ms with {plural(slots, 'slot')}" for slots, value in line.items())
        for name, line in exposed_ms.items()
    )
    finding = f"{words[:1].upper()}{words[1:]}."
    return Picture(figure, f"Lines of exposed time, slots of the ring to the right. {finding}", finding)


def costs_picture(choices: Sequence[Choice], *, projector: bool = False) -> Picture:
    """Both costs of a preemption over the tokens of the request; shaded where it is cheaper to spill."""
    size, choices = draw.font_size(projector), sorted(choices, key=lambda choice: choice.tokens)
    figure, axes = _axes(size, projector, 3.4)
    tokens = [choice.tokens for choice in choices]
    spill_ms = [choice.spill_ns / 1e6 for choice in choices if choice.spill_ns is not None]
    again_ms = [choice.recompute_ns / 1e6 for choice in choices if choice.recompute_ns is not None]
    axes.plot(tokens, spill_ms, "-", color=COLOURS["paging"], linewidth=2.4, label="spill and fetch")
    axes.plot(tokens, again_ms, "--", color=COLOURS["prefill"], linewidth=2.4, label="compute again")
    for choice, after in zip(choices, [*tokens[1:], tokens[-1]], strict=True):
        if choice.arm is Arm.SPILL:
            axes.axvspan(choice.tokens - 0.5, after - 0.5, color=COLOURS["paging"], alpha=0.12, linewidth=0, zorder=0)
    axes.set_xlim(tokens[0], tokens[-1])
    axes.set_ylim(0)
    _words(axes, "tokens of context (shaded: it is cheaper to spill)", "ms", size)
    finding = _costs_words(choices)
    alt = (
        f"Two lines of cost over the length of the context. {finding} At {tokens[-1]} tokens: "
        f"{spill_ms[-1]:.0f} ms to spill and fetch, {again_ms[-1]:.0f} ms to compute again."
    )
    return Picture(figure, alt, finding)


def _costs_words(choices: list[Choice]) -> str:
    """From where on one arm wins for good."""
    spills = [choice.tokens for choice in choices if choice.arm is Arm.SPILL]
    again = [choice.tokens for choice in choices if choice.arm is Arm.RECOMPUTE]
    reach = f"from {choices[0].tokens} to {choices[-1].tokens} tokens"
    if not spills or not again:
        return f"It costs less to {'spill and fetch' if spills else 'compute again'} at every length {reach}."
    lasting = min([tokens for tokens in spills if tokens > again[-1]], default=None)
    words = f"Below {spills[0]} tokens it costs less to compute again"
    if lasting is None:
        return f"{words}; above, it changes with the length up to {choices[-1].tokens} tokens."
    between = f"; up to {again[-1]} it changes with the length" if lasting > spills[0] else ""
    return f"{words}{between}; from {lasting} on it costs less to spill and fetch."


def _axes(size: float, projector: bool, tall_in: float) -> tuple[Figure, Axes]:
    figure = draw.figure(tall_in * size / 12, projector)
    axes = draw.room(figure, 0.07 * size, 0.05 * size, 0.04 * tall_in * size / 12, 0.97)
    draw.plain(axes, size, across=True)
    return figure, axes


def _words(axes: Axes, right: str, up: str, size: float) -> None:
    draw.names(axes, size, right, up)
    axes.legend(frameon=False, fontsize=size, loc="best")
