"""A random fault plan, equal for equal seeds."""

import random
from collections.abc import Iterable, Mapping

from disagg.monitor.fault_plan import FaultPlan, faults_of


class DrawnPlan(FaultPlan):
    """Each event of these kinds ("copy": all its faults; "copy fail": one) has a fault with this probability, or with
    its kind's own, up to `most` faults."""

    def __init__(
        self, seed: int, kinds: Iterable[str] | Mapping[str, float], rate: float = 0.05, most: int | None = None
    ) -> None:
        super().__init__()
        self.dice, self._most = random.Random(seed), most
        self._rates: dict[str, dict[str, float]] = {}
        for name, chance in (kinds if isinstance(kinds, Mapping) else dict.fromkeys(kinds, rate)).items():
            for fault in faults_of(name):
                self._rates.setdefault(name.split()[0], {})[fault] = chance

    def strike(self, kind: str) -> str | None:
        fault = super().strike(kind)
        if fault is not None and self._most is not None and self.struck.total() >= self._most:
            self._rates = {}
        return fault

    def fault_of(self, kind: str) -> str | None:
        if kind not in self._rates:
            return None
        die = self.dice.random()
        for fault, rate in self._rates[kind].items():
            if die < rate:
                return fault
            die -= rate
        return None

    @property
    def quiet(self) -> bool:
        return not self._rates
