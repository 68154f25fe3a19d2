"""What can be chosen in the explorer, in one table: the page's controls, permalinks and checks all follow it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from disagg.plan.checks import short
from disagg.plan.config import PRESETS, Config
from disagg.plan.errors import ConfigError
from disagg.plan.link import PRESETS as LINKS
from disagg.plan.request import Request
from disagg.show.scene import Control, Menu, Numbers
from disagg.trace.describe import POLICY_WORDS
from disagg.twin.hardware import DEVICES
from disagg.twin.model_shapes import RANDOM, SHAPES
from disagg.twin.workloads import Lengths, poisson

OWN = "own"  # the link that the devices have
SPREAD = 0.7  # of prompts' and answers' lengths
MIXED = ("H100+L4", "L4+H100", "H100+A10", "A100+L4")


_PRESETS = {
    "baseline": "one device, one request at a time",
    "colocated": "one device, requests share each step",
    "split": "two devices, K/V handed off after prefill",
    "streamed": "two devices, K/V leaves layer by layer",
    "staged": "layer by layer through host memory",
    "paged": "K/V may wait in host memory",
    "dynamic": "rows of like length together",
    "conditional": "split or kept, by estimate",
    "two_colocated": "two devices, each does everything",
}
_DEVICES = {f"2x{device.name}": f"2 × {device.name}" for device in DEVICES.values()}

#: Name in a permalink → what can be chosen. The names stay, so that old links work.
CONTROLS: dict[str, Control] = {
    "preset": Menu("preset", "streamed", {name: f"{name}: {_PRESETS[name]}" for name in PRESETS}),
    "model": Menu("model", "llama3-8b", {name: name for name in SHAPES}),
    "hardware": Menu(
        "hardware", "2xA100", _DEVICES | {pair: pair.replace("+", ", then ") for pair in MIXED}
    ),
    "link": Menu(
        "link between the two", "25gbe",
        {OWN: "what the devices have"} | {name: f"{name}, {rate / 1e9:g} GB/s" for name, rate in LINKS.items()},
    ),
    "policy": Menu("policy", "fcfs", POLICY_WORDS),
    "requests": Numbers("requests", 100, range(10, 301, 10)),
    "rate": Numbers("arrivals a second", 10, range(1, 65)),
    "prompt": Numbers("median prompt, tokens", 800, range(50, 4001, 50)),
    "answer": Numbers("median answer, tokens", 32, range(1, 129)),
    "seed": Numbers("seed of the load", 0, range(100)),
}  # fmt: skip


@dataclass(frozen=True)
class ExplorerSettings:
    """One choice of each. `ExplorerSettings.parse` is the one way in from outside."""

    preset: str
    model: str
    hardware: str
    link: str
    policy: str
    requests: int
    rate: int
    prompt: int
    answer: int
    seed: int

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> "ExplorerSettings":
        """From names and texts, as a permalink has them; what is left out is as at the start. ConfigError."""
        for name, text in given.items():
            if name not in CONTROLS or not isinstance(text, str):
                raise ConfigError(f"setting {short(name)} is unknown; known: {', '.join(CONTROLS)}")
        chosen: dict[str, Any] = {
            name: control.read(name, given[name]) if name in given else control.default
            for name, control in CONTROLS.items()
        }
        return cls(**chosen)

    @property
    def config(self) -> Config:
        """As on a machine with these devices; where it can't be, ConfigError."""
        on_cpu, alone = self.hardware == "2xCPU", self.preset in ("baseline", "colocated")
        first, second = ("cpu", "cpu") if on_cpu else ("cuda:0", "cuda:0" if alone else "cuda:1")
        return Config.preset(
            self.preset,
            model=RANDOM + self.model,
            dtype="float32" if on_cpu else "bfloat16",
            prefill_device=first,
            decode_device=second,
            link=None if self.link == OWN else self.link,
            policy=self.policy,
        )

    @property
    def asked(self) -> tuple[Request, ...]:
        return load(self.requests, self.rate, self.prompt, self.answer, self.seed)


@lru_cache(maxsize=4)
def load(count: int, rate: int, prompt: int, answer: int, seed: int) -> tuple[Request, ...]:
    """Requests by chance, the same for the same seed. Only lengths matter to the twin: every token is 0. They are kept,
    as most controls leave them as they are."""
    prompts, answers = Lengths(prompt, SPREAD, most=16_000), Lengths(answer, SPREAD, most=1000)
    arrivals = poisson(count, rate, prompts, answers, seed)
    return tuple(Request([0] * a.prompt_tokens, a.new_tokens, a.at_s, ignore_eos=True) for a in arrivals)
