"""Pictures of two choices: how many slots a ring needs, and whether to spill or to compute again.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from disagg.plan.preemption import Arm, Choice
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural

SIZE = draw.FONT_PT
LINES = (("link", "o", "-"), ("prefill", "s", "--"), ("decode", "^", ":"), ("paging", "D", "-."))


def ring_picture(exposed_ms: dict[str, dict[int, float]]) -> Picture:
    """Exposed time over the slots of the ring, a line a setting: name → slots → ms."""
    figure, axes = draw.single(3.0, 0.84, 0.6, 0.12)
    counts = sorted({slots for line in exposed_ms.values() for slots in line})
    lowest = {slots: min(line[slots] for line in exposed_ms.values() if slots in line) for slots in counts}
    highest = max(value for line in exposed_ms.values() for value in line.values()) or 1
    for (name, line), (colour, marker, dash) in zip(exposed_ms.items(), LINES, strict=False):
        places, values = [counts.index(slots) for slots in line], list(line.values())
        axes.plot(places, values, dash, marker=marker, color=COLOURS[colour], linewidth=2, markersize=8, label=name)
        for slots, value in line.items():
            at, (up, va) = (counts.index(slots), value), (-8, "top") if value == lowest[slots] else (8, "bottom")
            draw.note(axes, f"{value:.0f}", at, (0, up), SIZE, ha="center", va=va)
    axes.set_xticks(range(len(counts)), [str(slots) for slots in counts])
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.1 * highest])
    axes.set_ylim(-0.15 * highest, 1.2 * highest)
    axes.set_xlim(-0.3, len(counts) - 0.7)
    draw.names(axes, SIZE, "slots of the ring", "ms exposed (E)")
    axes.legend(frameon=False, fontsize=SIZE, loc="best")
    words = "; ".join(
        f"{name}: " + ", ".join(f"{value:.0f} ms with {plural(slots, 'slot')}" for slots, value in line.items())
        for name, line in exposed_ms.items()
    )
    finding = f"{words[:1].upper()}{words[1:]}."
    return Picture(figure, f"Lines of exposed time, slots of the ring to the right. {finding}", finding)


def costs_picture(choices: Sequence[Choice]) -> Picture:
    """Both costs of a preemption over the tokens of the request; shaded where it is cheaper to spill."""
    choices = sorted(choices, key=lambda choice: choice.tokens)
    figure, axes = draw.single(3.4, 0.84, 0.6, 0.136)
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
    draw.names(axes, SIZE, "tokens of context (shaded: it is cheaper to spill)", "ms")
    axes.legend(frameon=False, fontsize=SIZE, loc="upper left")
    _turns(axes, choices)
    finding = _costs_words(choices)
    return Picture(figure, f"Two lines of cost over the length of the context. {finding}", finding)


def _turns(axes: Axes, choices: list[Choice]) -> None:
    """A number where the cheaper way changes; the last change before others that are too near for a number."""
    room, free = 0.12 * (choices[-1].tokens - choices[0].tokens), float("inf")
    for before, after in zip(choices[-2::-1], choices[:0:-1], strict=True):
        if before.arm is not after.arm and after.tokens + room <= free:
            words, free = f"{after.tokens} tokens", after.tokens
            draw.note(axes, words, (free, 0), (3, 6), SIZE, "y", va="baseline")


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
