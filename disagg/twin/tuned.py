"""What `tune` gives back: every trial, the best of them, and the front of cost against goodput."""

from collections.abc import Mapping
from dataclasses import dataclass

from disagg.plan.config import Config
from disagg.plan.errors import FileError
from disagg.trace.archive import config_from, config_row
from disagg.trace.results import Run
from disagg.twin.goodput import Load, Probe, Slo
from disagg.twin.hardware import Hardware
from disagg.twin.simulate import simulate


@dataclass(frozen=True)
class CheckedSimulation:
    """A candidate and what was found of it. `per_s` is its goodput; None where it was skipped or beaten, see `why`."""

    config: Config
    hardware: str  # what it ran on: as many devices as workers
    arrangement: str
    devices: int
    cost: float
    per_s: float | None
    attainment: float | None  # at that rate; of a beaten one the last that was simulated
    probes: tuple[Probe, ...]
    why: str = ""

    @property
    def row(self) -> dict:
        """In what JSON has; `trial_of` reads it back."""
        return {**vars(self), "config": config_row(self.config), "probes": [list(probe) for probe in self.probes]}

    @property
    def words(self) -> str:
        """The arrangement, and the settings that count there."""
        config = self.config
        said = f"{self.hardware}, {self.arrangement}: chunks of {config.chunk_tokens:,}, {config.max_batch} rows a step"
        if config.colocated:
            return said
        layers = "" if config.layers_per_copy is None else f", {config.layers_per_copy} layers a copy"
        ring = f" through {config.ring_slots} slots" if config.route == "staged" else ""
        return f"{said}, {config.route}{ring}{layers}"


def trial_of(row: Mapping) -> CheckedSimulation:
    """Of a row, as of a file; FileError where it is none."""
    try:
        probes = tuple(Probe(*map(float, probe)) for probe in row["probes"])
        return CheckedSimulation(**{**row, "config": config_from(row["config"]), "probes": probes})
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"a trial's row can't be read: {str(error)[:200]}") from None


@dataclass(frozen=True)
class Tuning:
    """All that was tried. Trials stand in the order of trying, and each can be run again."""

    load: Load
    slo: Slo
    hardware: Hardware
    trials: tuple[CheckedSimulation, ...]
    priced: bool = False  # cost is a price an hour, not a number of devices

    @property
    def front(self) -> tuple[CheckedSimulation, ...]:
        """Those that nothing as cheap beats: goodput rises with cost. Empty where no limit was ever met."""
        found: list[CheckedSimulation] = []
        for trial in sorted((t for t in self.trials if t.per_s), key=lambda t: (t.cost, -t.per_s)):
            if not found or trial.per_s > found[-1].per_s:
                found.append(trial)
        return tuple(found)

    @property
    def best(self) -> CheckedSimulation:
        """The highest goodput, the cheapest of equals; where there is none, the one that came closest to the limits."""
        if self.front:
            return self.front[-1]
        return max((t for t in self.trials if t.probes), key=lambda t: t.attainment)

    def best_of(self, colocated: bool) -> CheckedSimulation | None:
        """The highest goodput among those that do not split, or that do; None where none was measured."""
        measured = [t for t in self.trials if t.per_s and t.config.colocated == colocated]
        return max(measured, key=lambda t: (t.per_s, -t.cost), default=None)

    @property
    def skipped(self) -> tuple[CheckedSimulation, ...]:
        """What could not be simulated, each with its reason in `why`."""
        return tuple(trial for trial in self.trials if not trial.probes)

    @property
    def simulations(self) -> int:
        return sum(len(trial.probes) for trial in self.trials)

    def rerun(self, trial: CheckedSimulation, per_s: float | None = None) -> Run:
        """The run behind a trial, or another of its probes: the same attainment again."""
        rate = per_s or trial.per_s or trial.probes[-1].per_s
        return simulate(trial.config, self.load.at(rate), hardware=trial.hardware)
