"""`tune` finds the arrangement, budgets, granularity and ring with the highest goodput, and their cost.

    found = tune(poisson(200, per_s=4, prompt=Lengths(800, 1.0), new=Lengths(100)), "4xH100", Slo(1.0, 0.05),
                 "random-llama3-8b")
    print(found.best, found.front)

A search in stages: all arrangements, then for those near the best of their cost one setting after the other, and for
the nearest once more. One simulation at the best rate so far shows whether a candidate needs a search of its own.
(TPE of optuna 5.0 found the same best on three questions with as many simulations, without the cheaper points.)
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg.plan.checks import is_number, short
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError, RequestError
from disagg.trace.archive import config_row
from disagg.twin.goodput import FARTHEST, Goodput, Load, Probe, Slo, TooShort, goodput
from disagg.twin.hardware import Hardware
from disagg.twin.model_shapes import vocab_of
from disagg.twin.search_space import Candidate, arrangements, base_of, in_words, settings, starts
from disagg.twin.traces import Arrival

Prices = float | Mapping[str, float] | None  # of a device-hour: one for all, or by name
NEAR = (6, 2)  # steps of 5 % behind the best of its cost up to which an arrangement is tuned once, and again
NOTHING = -FARTHEST - 1  # the step of candidates that meet the limits at no rate


@dataclass(frozen=True)
class Trial:
    """A candidate and its result. `per_s` is its goodput; None if it was skipped or beaten, see `why`."""

    config: Config
    hardware: str  # as many devices as workers
    arrangement: str
    devices: int
    cost: float
    per_s: float | None
    attainment: float | None  # at that rate; for a beaten one at the last simulated rate
    probes: tuple[Probe, ...]
    why: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "config": config_row(self.config), "probes": [list(probe) for probe in self.probes]}

    @property
    def goodput(self) -> float:
        """Requests a second; 0 if no rate was found."""
        return self.per_s or 0.0

    @property
    def words(self) -> str:
        return in_words(self.hardware, self.arrangement, self.config)


@dataclass(frozen=True)
class Tuning:
    """All trials, in the order of the search."""

    load: Load
    slo: Slo
    hardware: Hardware
    trials: tuple[Trial, ...]
    priced: bool = False  # cost is a price an hour, not a number of devices

    @property
    def front(self) -> tuple[Trial, ...]:
        """Trials that no trial as cheap beats: goodput rises with cost. Empty if no trial met the limits."""
        found: list[Trial] = []
        for trial in sorted((t for t in self.trials if t.per_s), key=lambda t: (t.cost, -t.goodput)):
            if not found or trial.goodput > found[-1].goodput:
                found.append(trial)
        return tuple(found)

    @property
    def best(self) -> Trial:
        """The trial with the highest goodput, the cheapest of equals; without one, the closest to the limits."""
        if self.front:
            return self.front[-1]
        return max((t for t in self.trials if t.probes), key=lambda t: t.attainment or 0.0)

    def best_of(self, colocated: bool) -> Trial | None:
        """The trial with the highest goodput among colocated or split ones; None if none was measured."""
        measured = [t for t in self.trials if t.per_s and t.config.colocated == colocated]
        return max(measured, key=lambda t: (t.goodput, -t.cost), default=None)

    @property
    def skipped(self) -> tuple[Trial, ...]:
        """Candidates that could not be simulated; `why` gives the reason."""
        return tuple(trial for trial in self.trials if not trial.probes)

    @property
    def simulations(self) -> int:
        return sum(len(trial.probes) for trial in self.trials)


def tune(
    workload: Load | Iterable[Arrival],
    hardware: str | Hardware,
    slo: Slo,
    config: Config | str | os.PathLike[str] = "smollm2",
    *,
    prices: Prices = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Tries up to all devices of `hardware`. `config` is a model's name, or a Config whose other fields stay; without
    `prices` of a device-hour the cost is the number of devices. ConfigError, RequestError."""
    if not isinstance(slo, Slo):
        raise ConfigError(f"slo must be the two limits, as Slo(ttft_s=1.0, tpot_s=0.05); got {short(slo)}")
    hardware = Hardware.parse(hardware)
    base = base_of(config, hardware)
    search = Search(Load.of(workload, vocab_of(base.model), seed), slo, prices, say)
    families = search.arrange(arrangements(base, hardware))
    for slack in NEAR:
        families = [search.improve(best, step) for best, step in families if search.near(best, step, slack)]
    return Tuning(search.load, slo, hardware, tuple(search.trials), prices is not None)


class Search:
    """The trials so far. A family is the best candidate of an arrangement, with its step."""

    def __init__(self, load: Load, slo: Slo, prices: Prices, say: Callable[[str], None]) -> None:
        self.load, self.slo, self.prices, self.say = load, slo, prices, say
        self.trials: list[Trial] = []
        self.steps: dict[Candidate, int | None] = {}  # None: skipped
        self._bars: list[tuple[float, int]] = []  # cost and step of all measured candidates

    def arrange(self, candidates: list[Candidate]) -> list[tuple[Candidate, int]]:
        """Every arrangement that can be simulated, the cheapest first. ConfigError if there is none."""
        candidates = sorted(candidates, key=lambda candidate: cost_of(candidate, self.prices))
        families = [family for candidate in candidates if (family := self.begin(candidate)) is not None]
        if not families:
            raise ConfigError(f"nothing of this can be simulated. First of all: {self.trials[0].why}")
        return families

    def begin(self, candidate: Candidate) -> tuple[Candidate, int] | None:
        """The better of an arrangement's starts if it is near the best of its cost; None if it is skipped."""
        best = None
        for start in starts(candidate):
            bar, least = self.bar(start), NOTHING if best is None else best[1] + 1
            step = self.attempt(start, None if bar is None else max(least, bar - NEAR[0]))
            if step is None:
                return best
            if best is None or step > best[1]:
                best = start, step
        return best

    def improve(self, best: Candidate, step: int) -> tuple[Candidate, int]:
        """Tries all values of one setting after the other; the best value stays."""
        for changes in settings(best):
            for change in changes:
                other = best.but(**change)
                reached = None if other in self.steps else self.attempt(other, step + 1)
                if reached is not None and reached > step:
                    best, step = other, reached
        return best, step

    def near(self, candidate: Candidate, step: int, slack: int) -> bool:
        bar = self.bar(candidate)
        return bar is None or step >= bar - slack

    def bar(self, candidate: Candidate) -> int | None:
        """The best step so far at this cost or below it."""
        cost = cost_of(candidate, self.prices)
        return max((step for other, step in self._bars if other <= cost), default=None)

    def attempt(self, candidate: Candidate, least: int | None) -> int | None:
        """The candidate's step; NOTHING if it misses the `least` one; None if it is skipped, with the reason kept."""
        self.say(f"{len(self.trials) + 1}: {in_words(candidate.place, candidate.arrangement, candidate.config)}")
        why, found = "", None
        try:
            found = goodput(candidate.config, self.load, self.slo, candidate.hardware, least)
        except (ConfigError, RequestError) as error:
            if isinstance(error, TooShort):
                raise
            why = str(error)
        step = None if found is None else NOTHING if found.step is None else found.step
        self.steps[candidate] = step
        if step is not None:
            self._bars.append((cost_of(candidate, self.prices), step))
        self.trials.append(self._trial(candidate, found, why))
        return step

    def _trial(self, candidate: Candidate, found: Goodput | None, why: str) -> Trial:
        hardware, cost = candidate.hardware, cost_of(candidate, self.prices)
        fixed = candidate.config, candidate.place, candidate.arrangement, hardware.count, cost
        if found is None:
            return Trial(*fixed, None, None, (), f"skipped: {why}")
        if found.step is None:
            last = found.probes[-1]
            why = f"{last.attainment:.0%} within the limits at {last.per_s:.3g} requests a second"
            why += f", {last.failed:.0%} failed" if last.failed else ""
            return Trial(*fixed, None, last.attainment, found.probes, why)
        return Trial(*fixed, found.per_s, found.attainment, found.probes)


def cost_of(candidate: Candidate, prices: Prices) -> float:
    """The number of devices, or their price an hour. ConfigError for a device without a price."""
    if prices is None:
        return float(candidate.hardware.count)
    total = 0.0
    for device in candidate.each_device:
        price = prices.get(device.name) if isinstance(prices, Mapping) else prices
        if price is None or not is_number(price, 1e-9, 1e9):
            raise ConfigError(f"prices must give a device-hour of {device.name} a price above 0; got {short(price)}")
        total += price
    return total
