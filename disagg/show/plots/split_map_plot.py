"""When does splitting pay? Prompt length × arrival rate × link, each with the winner against two devices that do both.

    should_split_map("2xH100", links=(None, "25gbe"), prompts=(512, 8192), rates=(4, 16))
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from disagg.plan.config import Config
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.twin.simulate import simulate
from disagg.twin.workloads import Lengths, poisson, requests_of

SPLIT, RIVAL, EQUAL = "streamed", "two_colocated", 0.03  # nearer than this share, nobody wins
DEVICES = {"prefill_device": "cuda:0", "decode_device": "cuda:1", "dtype": "bfloat16", "model": "random-llama3-8b"}
MARKS = {"split": ("S", COLOURS["prefill"]), "stay": ("T", COLOURS["link"]), "equal": ("=", "#BBBBBB")}


class MapCell(NamedTuple):
    """One load on one link: mean seconds a request with a split, and with two devices that do both."""

    link: str | None
    prompt: int
    per_s: float
    split_s: float
    rival_s: float

    @property
    def gain(self) -> float:
        return self.rival_s / self.split_s

    @property
    def winner(self) -> str:
        if abs(self.split_s / self.rival_s - 1) <= EQUAL:
            return "equal"
        return "split" if self.split_s < self.rival_s else "stay"


def split_cells(
    hardware: str, links: Sequence[str | None], prompts: Sequence[int], rates: Sequence[float]
) -> list[MapCell]:
    """Simulates each load on both; lengths vary around those given and around 100 new tokens."""
    found = []
    for link, prompt, per_s in product(links, prompts, rates):
        requests = requests_of(poisson(60, per_s, Lengths(prompt, 0.3), Lengths(100, 0.3), seed=1), 32_000)
        means = []
        for name in (SPLIT, RIVAL):
            config = Config.preset(name, link=link, **DEVICES)
            results = simulate(config, requests, hardware=hardware, record=False).results
            means.append(sum(r.ended_ns - r.arrival_ns for r in results) / 1e9 / len(results))
        found.append(MapCell(link, prompt, per_s, *means))
    return found


def should_split_map(
    hardware: str, links: Sequence[str | None], prompts: Sequence[int], rates: Sequence[float]
) -> Picture:
    """A map for each link (None: the devices' own); a letter says who wins, so that it reads without colour."""
    cells, size = split_cells(hardware, links, prompts, rates), draw.FONT_PT
    figure = draw.blank(3.36)
    for index, link in enumerate(links):
        axes = figure.add_axes((0.09 + index * 0.91 / len(links), 0.24, 0.8 / len(links), 0.56))
        for cell in (cell for cell in cells if cell.link == link):
            letter, colour = MARKS[cell.winner]
            x, y = list(prompts).index(cell.prompt), list(rates).index(cell.per_s)
            axes.fill(*zip(*draw.box(x - 0.48, x + 0.48, y - 0.46, y + 0.46), strict=True), color=colour, alpha=0.55)
            axes.text(x, y, f"{letter} {cell.gain:.2f}", ha="center", va="center", fontsize=size, color=INK)
        axes.set_xticks(range(len(prompts)), [f"{prompt:,}" for prompt in prompts])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        draw.plain(axes, size)
        axes.grid(visible=False)
        first = "requests/s" if index == 0 else ""
        draw.names(axes, size, "prompt, tokens", first, f"link {link or 'of the devices'}")
    finding = in_words(cells, hardware)
    return Picture(figure, f"Who wins, split (S) or two devices that do both (T). {finding}", finding)


def in_words(cells: Sequence[MapCell], hardware: str) -> str:
    won = [cell for cell in cells if cell.winner == "split"]
    lost = sum(cell.winner == "stay" for cell in cells)
    shorter = f"{hardware}: a split has the shorter mean time a request in {len(won)} of {len(cells)} loads"
    text = f"{shorter}, and the longer one in {lost}"
    if not won:
        return f"{text}; here it never pays."
    best = max(won, key=lambda cell: cell.gain)
    link = f"link {best.link}" if best.link else "the devices' own link"
    where = f"prompts of {best.prompt:,} tokens at {best.per_s:g} a second over {link}"
    return f"{text}; most with {where}: {best.gain:.2f} times."
