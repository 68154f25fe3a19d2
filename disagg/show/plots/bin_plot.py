"""Where bins stop paying: slots read, padding among them, and groups of a step, against the number of bins.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.patches import Patch

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, FAINT, INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import plural
from disagg.trace.batch_history import batch_steps, padding_of
from disagg.trace.results import Run

PADDING, CALLS = "///", "..."  # hatches


def even_bounds(lengths: Sequence[int], bins: int) -> tuple[int, ...]:
    """Bounds that put about as many of these lengths into each bin; fewer where lengths are equal."""
    ordered = sorted(lengths)
    return tuple(sorted({ordered[len(ordered) * index // bins - 1] for index in range(1, bins)}))


class Binned(NamedTuple):
    """Means of a decode step with a number of bins."""

    bins: int
    used: float  # slots that held a token
    padded: float  # all slots that attention read
    groups: float  # bins with a row in them: a call of attention in each layer

    @classmethod
    def of(cls, run: Run) -> "Binned":
        steps = batch_steps(run)
        total, groups = padding_of(steps), sum(len(step.bins) for step in steps)
        means = (part / len(steps) for part in (total.used_slots, total.padded_slots, groups))
        return cls(len(run.config.bins) + 1, *means)

    @property
    def waste(self) -> float:
        return 1 - self.used / self.padded


def bins_picture(found: Sequence[Binned], slot_us: float, group_us: float) -> Picture:
    """Attention's time in a step as bars: tokens, padding, calls. Prices are of a slot and of a group, all layers."""
    size = draw.FONT_PT
    row, head, foot = 0.036 * size, 0.04 * size, 0.052 * size
    height = row * len(found) + head + foot
    figure = draw.blank(height)
    axes = draw.room(figure, 0.085 * size, foot, head, 0.98)
    draw.plain(axes, size)
    costs = [_parts_ms(one, slot_us, group_us) for one in found]
    looks: tuple[tuple[str, str, Any], ...] = (
        (COLOURS["decode"], "", FAINT),
        ("white", PADDING, "#777777"),
        ("#BBBBBB", CALLS, INK),
    )
    for y, (one, parts) in enumerate(zip(found, costs, strict=True)):
        start = 0.0
        for part, (colour, hatch, edge) in zip(parts, looks, strict=True):
            axes.barh(-y, part, left=start, height=0.66, color=colour, hatch=hatch, edgecolor=edge, linewidth=0)
            start += part
        words = f"  {start:.0f} ms: {one.waste:.0%} padding, {plural(round(one.groups), 'group')}"
        axes.text(start, -y, words, va="center", fontsize=size, color=INK)
    axes.set_xlim(0, 1.55 * max(map(sum, costs)))
    draw.rows(axes, [plural(one.bins, "bin") for one in found])
    draw.names(axes, size, "ms of attention in a step")
    named = zip(("tokens", "padding", "calls"), looks, strict=True)
    patches = [Patch(facecolor=c, hatch=h, edgecolor=e, linewidth=0, label=name) for name, (c, h, e) in named]
    draw.legend(figure, size, patches, handlelength=1.6)
    finding = _finding(found, costs)
    rows = " ".join(
        f"{plural(one.bins, 'bin')}: {sum(parts):.0f} ms, {one.waste:.0%} padding, {one.groups:.1f} groups."
        for one, parts in zip(found, costs, strict=True)
    )
    return Picture(figure, f"Bars of attention's time by number of bins. {rows} {finding}", finding)


def _parts_ms(one: Binned, slot_us: float, group_us: float) -> tuple[float, float, float]:
    return one.used * slot_us / 1e3, (one.padded - one.used) * slot_us / 1e3, one.groups * group_us / 1e3


def _finding(found: Sequence[Binned], costs: list[tuple]) -> str:
    first, last = found[0], found[-1]
    best = min(range(len(found)), key=lambda index: sum(costs[index]))
    return (
        f"Padding falls from {first.waste:.0%} of the slots with {plural(first.bins, 'bin')} to {last.waste:.0%} with "
        f"{last.bins}, groups of a step rise from {first.groups:.1f} to {last.groups:.1f}; cheapest: "
        f"{plural(found[best].bins, 'bin')}, {sum(costs[best]):.0f} ms of attention in a step."
    )
