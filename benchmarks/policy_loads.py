"""The loads that policies are measured on, fixed before the code that serves them: lengths, rates, limits, links.

Simulated ones are of Llama-3-8B's shape in bfloat16; real ones are of the embedded model on two CPU cores.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.twin.goodput import Slo
from disagg.twin.traces import Arrival
from disagg.twin.workloads import Lengths, bursts, poisson, requests_of

VOCAB = 32_000
MODEL: dict[str, object] = {"model": "random-llama3-8b", "dtype": "bfloat16"}


class TwinLoad(NamedTuple):
    """Arrivals on given hardware, over a link, with the limits that count as served."""

    name: str
    hardware: str
    link: object
    arrivals: Sequence[Arrival]
    slo: Slo


class RealLoad(NamedTuple):
    """Requests for the embedded model, over a dialled link."""

    name: str
    link: object
    requests: Sequence[Request]
    slo: Slo


def mixed(count: int, per_s: float, long: int, short: int, share: float, new: Lengths, seed: int) -> list[Arrival]:
    """Short prompts, and a share of long ones among them."""
    dice = random.Random(f"mixed {seed}")
    arrivals = poisson(count, per_s, Lengths(short, 0.3), new, seed)
    return [a._replace(prompt_tokens=long) if dice.random() < share else a for a in arrivals]


#: Twelve loads of the simulator: what arrives, how long it is, and how fast the link is.
SIMULATED = (
    TwinLoad("chat", "2xH100", None, poisson(240, 8, Lengths(400, 1.0), Lengths(200, 0.6), 1), Slo(0.5, 0.02)),
    TwinLoad("chat, slow", "2xH100", "10gbe", poisson(240, 8, Lengths(400, 1.0), Lengths(200, 0.6), 2), Slo(0.5, 0.02)),
    TwinLoad("code", "2xH100", None, poisson(240, 6, Lengths(2000, 0.8), Lengths(30, 0.6), 3), Slo(1.0, 0.03)),
    TwinLoad("code, slow", "2xH100", "25gbe", poisson(240, 6, Lengths(2000, 0.8), Lengths(30, 0.6), 4), Slo(1.0, 0.03)),
    TwinLoad("long", "2xH100", None, poisson(160, 1, Lengths(6000, 0.3), Lengths(64, 0.3), 5), Slo(2.5, 0.02)),
    TwinLoad("long strict", "2xL4", None, poisson(160, 0.3, Lengths(6000, 0.0), Lengths(64, 0.0), 6), Slo(20.0, 0.088)),
    TwinLoad("short", "2xH100", None, poisson(300, 20, Lengths(64, 0.4), Lengths(100, 0.6), 7), Slo(0.25, 0.015)),
    TwinLoad("short on L4", "2xL4", None, poisson(240, 3, Lengths(64, 0.4), Lengths(100, 0.6), 8), Slo(1.0, 0.1)),
    TwinLoad("mixed", "2xH100", None, mixed(240, 6, 8000, 200, 0.1, Lengths(120, 0.5), 9), Slo(1.0, 0.02)),
    TwinLoad("mixed, slow", "2xH100", "25gbe", mixed(240, 6, 8000, 200, 0.1, Lengths(120, 0.5), 10), Slo(1.0, 0.02)),
    TwinLoad("bursts", "2xH100", None, bursts(240, 8, Lengths(600, 0.8), Lengths(150, 0.6), 11), Slo(1.0, 0.025)),
    TwinLoad("long answers", "2xL4", None, poisson(160, 0.5, Lengths(300, 0.8), Lengths(400, 0.5), 12), Slo(3.0, 0.1)),
)  # fmt: skip


def _real(name: str, link: object, count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int) -> RealLoad:
    arrivals = poisson(count, per_s, prompt, new, seed)
    return RealLoad(name, link, requests_of(arrivals, VOCAB, seed, most=1000), Slo(3.0, 0.25))


def real() -> list[RealLoad]:
    """Six loads of the engine: few requests each, since a core reads about 250 tokens a second."""
    return [
        _real("short", None, 24, 2.0, Lengths(24, 0.3), Lengths(12, 0.2), 1),
        _real("short slow link", 2e6, 24, 2.0, Lengths(24, 0.3), Lengths(12, 0.2), 2),
        _real("middle", None, 16, 1.0, Lengths(120, 0.5), Lengths(16, 0.2), 3),
        _real("middle slow link", 4e6, 16, 1.0, Lengths(120, 0.5), Lengths(16, 0.2), 4),
        _real("long", None, 10, 0.4, Lengths(360, 0.3), Lengths(24, 0.2), 5),
        _real("answers", None, 16, 0.8, Lengths(48, 0.3), Lengths(48, 0.2), 6),
    ]


def short_behind_long(long: int = 4000, short: int = 16, count: int = 5, delay_s: float = 0.02) -> list[Request]:
    """One long prompt, and short ones just behind it; the ids are of any vocabulary from 256 on."""
    dice = random.Random("short behind long")
    lengths = [long] + [short] * count
    return [
        Request(dice.choices(range(3, 250), k=length), 2, delay_s * (index > 0), ignore_eos=True)
        for index, length in enumerate(lengths)
    ]


def crowd(count: int = 48, prompt: int = 96, new: int = 48) -> list[Request]:
    """Equal requests that all come at once: decode needs blocks for all of them at the same time."""
    dice = random.Random("crowd")
    return [Request(dice.choices(range(3, 250), k=prompt), new, ignore_eos=True) for _ in range(count)]


POOL_SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the blocks that the crowd needs, which the decode pool has


def tripled(count: int = 120, per_s: float = 2.0, seed: int = 13) -> list[Request]:
    """A load that triples after a third of its requests, and falls back after the second third."""
    dice, at_s, made = random.Random(f"tripled {seed}"), 0.0, []
    for index in range(count):
        rate = per_s * (3 if count <= 3 * index < 2 * count else 1)
        at_s += dice.expovariate(rate)
        length = round(96 * dice.lognormvariate(0, 0.5))
        made.append(Request(dice.choices(range(3, 250), k=length), 32, at_s, ignore_eos=True))
    return made


def configured(preset: str, load: TwinLoad) -> Config:
    devices = {"prefill_device": "cuda:0", "decode_device": "cuda:1"}
    return Config.preset(preset, link=load.link, itl_target_s=load.slo.tpot_s, **MODEL, **devices)
