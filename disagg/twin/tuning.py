"""`tune`: which arrangement, budgets, granularity and ring serve a workload at the highest rate, and at what cost.

    found = tune(poisson(200, per_s=4, prompt=Lengths(800, 1.0), new=Lengths(100)), "4xH100", Slo(1.0, 0.05),
                 "random-llama3-8b")
    print(found.best, found.front)

A plain grid, in stages. First every arrangement with the settings that it was given, and with a wide batch. Then, of
those near the best of their cost, one setting after the other over all its values, keeping what is better; and of the
nearest once more.
(TPE, of optuna 5.0, came to the same best on three questions and as many simulations, without the cheaper points.)
A candidate has to be near, or better, at one rate before its own is searched: whoever is not costs one simulation.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import os
from collections.abc import Callable, Iterable, Mapping

from disagg.plan.checks import is_number, short
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError, RequestError
from disagg.twin.goodput import FARTHEST, Goodput, Load, Slo, TooShort, goodput
from disagg.twin.hardware import Hardware
from disagg.twin.model_shapes import vocab_of
from disagg.twin.search_space import Candidate, arrangements, base_of, settings, starts
from disagg.twin.traces import Arrival
from disagg.twin.tuned import CheckedSimulation, Tuning

NEAR = (6, 2)  # steps of 5 % behind the best of its cost that an arrangement may be, to be tuned once, and again
NOTHING = -FARTHEST - 1  # the step of those that meet the limits at no rate


def tune(
    workload: Load | Iterable[Arrival],
    hardware: str | Hardware,
    slo: Slo,
    config: Config | str | os.PathLike = "smollm2",
    *,
    prices: float | Mapping[str, float] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Tries up to all devices of `hardware` for a workload of Arrivals or Requests; the seed draws prompts' tokens.

    `config` is a model's name, or a Config whose other fields stay. `prices` are those of a device-hour, one for all or
    by name; without them the cost is the number of devices. ConfigError, RequestError.
    """
    if not isinstance(slo, Slo):
        raise ConfigError(f"slo must be the two limits, as Slo(ttft_s=1.0, tpot_s=0.05); got {short(slo)}")
    hardware = Hardware.parse(hardware)
    base = base_of(config, hardware)
    search = Search(Load.of(workload, vocab_of(base.model), seed), slo, prices, say)
    families = search.arrange(arrangements(base, hardware))
    for slack in NEAR:
        families = [search.improve(*family) for family in families if search.near(*family, slack)]
    return Tuning(search.load, slo, hardware, tuple(search.trials), prices is not None)


class Search:
    """What was tried so far. A family is the best candidate of an arrangement, with its step."""

    def __init__(self, load: Load, slo: Slo, prices, say: Callable[[str], None]) -> None:
        self.load, self.slo, self.prices, self.say = load, slo, prices, say
        self.trials: list[CheckedSimulation] = []
        self.steps: dict[Candidate, int | None] = {}  # None: skipped
        self._bars: list[tuple[float, int]] = []  # cost and step of all that were measured

    def arrange(self, candidates: list[Candidate]) -> list[tuple[Candidate, int]]:
        """Every arrangement that can be simulated, the cheapest first. ConfigError where there is none."""
        candidates = sorted(candidates, key=lambda candidate: cost_of(candidate, self.prices))
        families = [family for candidate in candidates if (family := self.begin(candidate)) is not None]
        if not families:
            raise ConfigError(f"nothing of this can be simulated. First of all: {self.trials[0].why}")
        return families

    def begin(self, candidate: Candidate) -> tuple[Candidate, int] | None:
        """The better of an arrangement's starts, if it is near the best of its cost; None where it is skipped."""
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
        """One setting after the other over all its values; a better one stays."""
        for changes in settings(best):
            for change in changes:
                other = best.but(**change)
                reached = None if other in self.steps else self.attempt(other, step + 1)
                if reached is not None and reached > step:
                    best, step = other, reached
        return best, step

    def near(self, candidate: Candidate, step: int, slack: int) -> bool:
        return step >= self.bar(candidate) - slack

    def bar(self, candidate: Candidate) -> int | None:
        """The best step so far at this cost or below it."""
        cost = cost_of(candidate, self.prices)
        return max((step for other, step in self._bars if other <= cost), default=None)

    def attempt(self, candidate: Candidate, least: int | None) -> int | None:
        """Its step; NOTHING where it misses the `least` one; None where it is skipped, with the reason kept."""
        self.say(f"{len(self.trials) + 1}: {candidate.place}, {candidate.arrangement}")
        why, found = candidate.refused, None
        try:
            if not why:
                found = goodput(candidate.config, self.load, self.slo, candidate.hardware, least)
        except TooShort:
            raise
        except (ConfigError, RequestError) as error:
            why = str(error)
        step = None if found is None else NOTHING if found.step is None else found.step
        self.steps[candidate] = step
        if step is not None:
            self._bars.append((cost_of(candidate, self.prices), step))
        self.trials.append(self._trial(candidate, found, why))
        return step

    def _trial(self, candidate: Candidate, found: Goodput | None, why: str) -> CheckedSimulation:
        cost = cost_of(candidate, self.prices)
        fixed = candidate.config, candidate.place, candidate.arrangement, candidate.devices, cost
        if found is None:
            return CheckedSimulation(*fixed, None, None, (), f"skipped: {why}")
        if found.step is None:
            last = found.probes[-1]
            why = f"{last.attainment:.0%} within the limits at {last.per_s:.3g} requests a second"
            why += f", {last.failed:.0%} failed" if last.failed else ""
            return CheckedSimulation(*fixed, None, last.attainment, found.probes, why)
        return CheckedSimulation(*fixed, found.per_s, found.attainment, found.probes)


def cost_of(candidate: Candidate, prices: float | Mapping[str, float] | None) -> float:
    """Devices, or what they cost an hour. ConfigError for a device without a price."""
    if prices is None:
        return float(candidate.devices)
    return float(sum(_price(device.name, prices) for device in candidate.each_device))


def _price(name: str, prices: float | Mapping[str, float]) -> float:
    price = prices.get(name) if isinstance(prices, Mapping) else prices
    if not is_number(price, 1e-9, 1e9):
        raise ConfigError(f"prices must give a device-hour of {name} a price above 0; got {short(price)}")
    return price
