"""A limit on decode's gaps while the load triples and falls back, against the best fixed budget that keeps it.

A fixed budget is as many rows as that, admitted as ours are (a target that no step reaches), so that nobody waits for a
place after the first token; both are held to the same percentile of all gaps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.common import Say, known
from benchmarks.policy_loads import tripled
from disagg.plan.config import Config
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import LeftOut, Row
from disagg.trace.results import Run
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import Speeds

Serve = Callable[..., Run]
TIGHT = 0.6  # of what a batch of 32 without a target gives at p99
FIXED = 1e6  # seconds of a target that no step reaches
BATCHES, BUDGETS = (2, 4, 6, 8, 12, 16, 24, 32), (64, 256)
PRESETS = ("dynamic", "colocated")  # the target of steps beside prefill, and of mixed passes


def rows(say: Say, name: str, serve: Serve, batches: Sequence[int], budgets: Sequence[int]) -> Iterator[Row | LeftOut]:
    """`serve` takes changes to the config and gives a run of the whole load."""
    say(f"{name}: a batch of {max(batches)} without a target")
    widest = known(serve(itl_target_s=None, max_batch=max(batches)).metrics().itl_s.p99)
    target = TIGHT * widest
    say(f"{name}: a target of {target * 1e3:.0f} ms")
    ours = serve(itl_target_s=target, max_batch=max(batches)).metrics()
    note = f"target {target * 1e3:.0f} ms; without one p99 {widest * 1e3:.0f}"
    yield Row(f"itl_target_p99[{name}]", known(ours.itl_s.p99) / target, "of target", 1.05, ours.itl_s.count, note)
    tried = [(batch, budget) for batch in batches for budget in budgets]
    kept: dict[tuple[int, int], float] = {}
    for batch, budget in tried:
        say(f"{name}: a fixed batch of {batch}, chunks of {budget}")
        metrics = serve(itl_target_s=FIXED, max_batch=batch, chunk_tokens=budget).metrics()
        if known(metrics.itl_s.p99) <= target:
            kept[batch, budget] = metrics.tokens_per_s
    yield against(name, ours.tokens_per_s, kept, len(tried))


def against(name: str, rate: float, kept: dict[tuple[int, int], float], tried: int) -> Row | LeftOut:
    """Our tokens a second over those of the best fixed budget that keeps the target."""
    name = f"itl_target_tokens_per_s[{name}]"
    if not kept:
        return LeftOut(name, f"none of {tried} fixed budgets keeps the target; adaptive {rate:.1f} tokens/s")
    (batch, budget), best = max(kept.items(), key=lambda item: item[1])
    note = f"{rate:.1f} against {best:.1f} tokens/s of a fixed batch of {batch}, chunks of {budget}; "
    note += f"{len(kept)} of {tried} budgets keep the target"
    return Row(name, rate / best, "× best fixed", 0.95, tried, note, at_most=False)


def twin_rows(
    say: Say, count: int = 120, batches: Sequence[int] = BATCHES, budgets: Sequence[int] = BUDGETS
) -> Iterator[Row | LeftOut]:
    requests = tripled(count)
    for preset in PRESETS:
        config = Config.preset(preset, model="tiny")

        def serve(config: Config = config, **changes: Any) -> Run:
            return simulate(config.replace(**changes), requests, Speeds(), record=False)

        yield from rows(say, f"twin,{preset}", serve, batches, budgets)


def real_rows(
    say: Say,
    name: str = "smollm2",
    count: int = 45,
    batches: Sequence[int] = (2, 4, 8, 16),
    budgets: Sequence[int] = (256,),
) -> Iterator[Row | LeftOut]:
    """On one engine, whose batch, chunks and target change between runs; fewer requests, at the loads' own rate."""
    requests, model = tripled(count), load_model(name)
    with Engine(Config.preset("dynamic", model=name), model=model) as engine:
        engine.serve(requests[:2])

        def serve(**changes: Any) -> Run:
            engine.retune(**changes)
            return engine.serve(requests)

        yield from rows(say, "real,dynamic", serve, batches, budgets)
