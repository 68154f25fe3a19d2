"""When does splitting pay? Prompt length × arrival rate × link, each with the winner against two devices that do both.

    should_split_map("2xH100", model="random-llama3-8b")
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

from collections.abc import Sequence
from typing import NamedTuple

from disagg.plan.config import Config
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.twin.simulate import simulate
from disagg.twin.workloads import Lengths, poisson, requests_of

RIVAL, EQUAL = "two_colocated", 0.03  # nearer than this share, nobody wins
MARKS = {"split": ("S", COLOURS["prefill"]), "stay": ("T", COLOURS["link"]), "equal": ("=", "#BBBBBB")}


class Cell(NamedTuple):
    """One load on one link: mean seconds a request with a split, and with two devices that do both."""

    link: str | None
    prompt: int
    per_s: float
    split_s: float
    rival_s: float

    @property
    def winner(self) -> str:
        if abs(self.split_s / self.rival_s - 1) <= EQUAL:
            return "equal"
        return "split" if self.split_s < self.rival_s else "stay"


def split_cells(
    hardware: str,
    model: str,
    links: Sequence[str | None],
    prompts: Sequence[int],
    rates: Sequence[float],
    new_tokens: int = 100,
    count: int = 60,
    preset: str = "streamed",
) -> list[Cell]:
    """Simulates each load on `preset` and on `two_colocated`; lengths vary around those given."""
    devices = {"prefill_device": "cuda:0", "decode_device": "cuda:1", "dtype": "bfloat16", "model": model}
    found = []
    for link in links:
        for prompt in prompts:
            for per_s in rates:
                arrivals = poisson(count, per_s, Lengths(prompt, 0.3), Lengths(new_tokens, 0.3), seed=1)
                requests = requests_of(arrivals, 32_000)
                means = []
                for name in (preset, RIVAL):
                    config = Config.preset(name, link=link, **devices)
                    results = simulate(config, requests, hardware=hardware, record=False).results
                    means.append(sum(r.ended_ns - r.arrival_ns for r in results) / 1e9 / len(results))
                found.append(Cell(link, prompt, per_s, *means))
    return found


def should_split_map(
    hardware: str = "2xH100",
    model: str = "random-llama3-8b",
    links: Sequence[str | None] = (None, "25gbe"),
    prompts: Sequence[int] = (128, 512, 2048, 8192),
    rates: Sequence[float] = (1, 4, 16),
    *,
    projector: bool = False,
) -> Picture:
    """A map for each link (None: the devices' own); a letter says who wins, so that it reads without colour."""
    cells = split_cells(hardware, model, links, prompts, rates)
    size = draw.font_size(projector)
    figure = draw.figure(0.28 * size, projector)
    for index, link in enumerate(links):
        axes = figure.add_axes((0.09 + index * 0.91 / len(links), 0.24, 0.8 / len(links), 0.56))
        for cell in (cell for cell in cells if cell.link == link):
            letter, colour = MARKS[cell.winner]
            x, y = list(prompts).index(cell.prompt), list(rates).index(cell.per_s)
            axes.fill(*zip(*draw.box(x - 0.48, x + 0.48, y - 0.46, y + 0.46), strict=True), color=colour, alpha=0.55)
            ratio = cell.rival_s / cell.split_s
            axes.text(x, y, f"{letter} {ratio:.2f}", ha="center", va="center", fontsize=size, color=INK)
        axes.set_xticks(range(len(prompts)), [f"{prompt:,}" for prompt in prompts])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        draw.plain(axes, size)
        axes.grid(visible=False)
        first = "requests/s" if index == 0 else ""
        draw.names(axes, size, "prompt, tokens", first, f"link {link or 'of the devices'}")
    finding = in_words(cells, hardware)
    each = "; ".join(
        f"{cell.prompt:,} tokens at {cell.per_s:g} a second, link {cell.link or 'of the devices'}: {cell.winner}, "
        f"{cell.rival_s / cell.split_s:.2f}"
        for cell in cells
    )
    return Picture(figure, f"Who wins, split (S) or two devices that do both (T). {finding} {each}.", finding)


def in_words(cells: Sequence[Cell], hardware: str) -> str:
    won = [cell for cell in cells if cell.winner == "split"]
    lost = sum(cell.winner == "stay" for cell in cells)
    text = (
        f"{hardware}: a split has the shorter mean time a request in {len(won)} of {len(cells)} loads, and the longer "
    )
    text += f"one in {lost}"
    if not won:
        return f"{text}; here it never pays."
    best = max(won, key=lambda cell: cell.rival_s / cell.split_s)
    link = f"link {best.link}" if best.link else "the devices' own link"
    gain = best.rival_s / best.split_s
    return (
        f"{text}; most with prompts of {best.prompt:,} tokens at {best.per_s:g} a second over {link}: {gain:.2f} times."
    )
