"""Split or stay, per request, against always splitting and never splitting: goodput in the twin, and real loads."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.common import Say, known
from benchmarks.policy_loads import SIMULATED, RealLoad, TwinLoad, configured, real
from disagg.plan.config import Config
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import Failed, LeftOut, Row
from disagg.trace.metrics import Metrics
from disagg.twin.goodput import LASTS, Load, TooShort, goodput
from disagg.twin.simulate import simulate

RIVALS, OURS = ("streamed", "two_colocated"), "conditional"
EACH_ARM = 0.2  # of the requests, for a load on which both arms are taken


class Rate(NamedTuple):
    """Requests a second that keep the limits; `beyond` where the load is too short to find the end."""

    per_s: float
    beyond: bool = False

    def __str__(self) -> str:
        return f"{'beyond ' if self.beyond else ''}{self.per_s:.3g}"


def rate_of(config: Config, load: TwinLoad, rated: Load) -> Rate:
    try:
        return Rate(goodput(config, rated, load.slo, load.hardware).per_s)
    except TooShort:
        return Rate(rated.rate(rated.last_step(LASTS * load.slo.ttft_s)), beyond=True)


def stayed(config: Config, load: TwinLoad, rated: Load, per_s: float) -> float:
    """The share of the requests that stayed where they decode, at this rate."""
    counts = simulate(config, rated.at(per_s), hardware=load.hardware, record=False).counts
    stay, split = counts.get("stay", 0), counts.get("split", 0)
    return stay / max(1, stay + split)


def twin_rows(say: Say, loads: Sequence[TwinLoad] = SIMULATED) -> Iterator[Row | LeftOut]:
    ratios, both = [], 0
    for load in loads:
        rated = Load.of(list(load.arrivals))
        rates = {}
        for preset in (OURS, *RIVALS):
            say(f"goodput of {preset}: {load.name}")
            rates[preset] = rate_of(configured(preset, load), load, rated)
        best, ours = max(rates[rival] for rival in RIVALS), rates[OURS]
        words = ", ".join(f"{preset} {rate}" for preset, rate in rates.items())
        if not best.per_s:
            yield Failed(f"conditional_over_best[{load.name}]", f"no rate keeps the limits: {words}")
            continue
        share = stayed(configured(OURS, load), load, rated, ours.per_s or best.per_s)
        both += EACH_ARM <= share <= 1 - EACH_ARM
        ratios.append(ours.per_s / best.per_s)
        note = f"{words} a second; {share:.0%} stayed"
        yield Row(f"conditional_over_best[{load.name}]", ratios[-1], "×", 0.97, len(rated.requests), note, False)
    yield Row("conditional_over_best[largest]", max(ratios, default=0), "×", 1.1, len(ratios), "", False)
    yield Row("conditional_both_arms[twin]", both, "loads", 4, len(ratios), "each arm at least 20 %", False)


def real_rows(say: Say, name: str = "smollm2", loads: Sequence[RealLoad] | None = None) -> Iterator[Row]:
    """New tokens a second within the limits: those of requests that kept both."""
    model, both = load_model(name), 0
    loads = real() if loads is None else loads
    for load in loads:
        found: dict[str, tuple[float, Metrics]] = {}
        for preset in (OURS, *RIVALS):
            say(f"{load.name}, real, {preset}")
            with Engine(Config.preset(preset, model=name, link=load.link), model=model) as engine:
                engine.serve(load.requests[:1])
                run = engine.serve(load.requests)
            metrics = run.metrics(load.slo.ttft_s, load.slo.tpot_s)
            found[preset] = known(metrics.attainment), metrics
        counts = found[OURS][1].counts
        share = counts.get("stay", 0) / max(1, counts.get("stay", 0) + counts.get("split", 0))
        both += EACH_ARM <= share <= 1 - EACH_ARM
        kept = {preset: met * metrics.requests / metrics.seconds for preset, (met, metrics) in found.items()}
        best = max(kept[rival] for rival in RIVALS)
        words = ", ".join(f"{p} {kept[p]:.3g} ({met:.0%})" for p, (met, _) in found.items())
        note = f"requests a second within the limits: {words}; {share:.0%} stayed"
        value = kept[OURS] / best if best else 0.0
        yield Row(f"conditional_over_best[real {load.name}]", value, "×", 0.97, len(load.requests), note, False)
    yield Row("conditional_both_arms[real]", both, "loads", 4, len(loads), "each arm at least 20 %", at_most=False)
