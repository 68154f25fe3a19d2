"""A limit on decode's gaps while the load triples and falls back, against the best fixed budget that keeps it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.common import Say, known
from benchmarks.policy_loads import tripled
from disagg.plan.config import Config
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import Row
from disagg.trace.metrics import Metrics
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import Speeds

Serve = Callable[..., Metrics]
TIGHT = 0.6  # of what a batch of 32 without a target gives at p99
BATCHES, BUDGETS = (2, 4, 8, 12, 16, 24, 32), (64, 256)
PRESETS = ("dynamic", "colocated")  # the target of steps beside prefill, and of mixed passes


def rows(say: Say, name: str, serve: Serve, batches: Sequence[int], budgets: Sequence[int]) -> Iterator[Row]:
    """`serve` takes changes to the config and gives the metrics of the whole load."""
    say(f"{name}: a batch of {max(batches)} without a target")
    widest = serve(itl_target_s=None, max_batch=max(batches))
    target = TIGHT * known(widest.itl_s.p99)
    say(f"{name}: a target of {target * 1e3:.0f} ms")
    ours = serve(itl_target_s=target, max_batch=max(batches))
    kept: dict[tuple[int, int], Metrics] = {}
    for batch in batches:
        for budget in budgets:
            say(f"{name}: a fixed batch of {batch}, chunks of {budget}")
            found = serve(itl_target_s=None, max_batch=batch, chunk_tokens=budget)
            if known(found.itl_s.p99) <= target:
                kept[batch, budget] = found
    p99, note = (
        known(ours.itl_s.p99),
        f"target {target * 1e3:.0f} ms; without one p99 {known(widest.itl_s.p99) * 1e3:.0f}",
    )
    yield Row(f"itl_target_p99[{name}]", p99 / target, "of target", 1.05, ours.itl_s.count, note)
    if not kept:
        return
    (batch, budget), best = max(kept.items(), key=lambda item: item[1].tokens_per_s)
    note = f"{ours.tokens_per_s:.1f} against {best.tokens_per_s:.1f} tokens/s of a fixed batch of {batch}, "
    note += f"chunks of {budget}; {len(kept)} of {len(batches) * len(budgets)} budgets keep the target"
    rate = ours.tokens_per_s / best.tokens_per_s
    yield Row(f"itl_target_tokens_per_s[{name}]", rate, "× best fixed", 0.95, ours.requests, note, at_most=False)


def twin_rows(
    say: Say, count: int = 120, batches: Sequence[int] = BATCHES, budgets: Sequence[int] = BUDGETS
) -> Iterator[Row]:
    requests = tripled(count)
    for preset in PRESETS:
        config = Config.preset(preset, model="tiny")

        def serve(config: Config = config, **changes: Any) -> Metrics:
            return simulate(config.replace(**changes), requests, Speeds(), record=False).metrics()

        yield from rows(say, f"twin,{preset}", serve, batches, budgets)


def real_rows(
    say: Say,
    name: str = "smollm2",
    count: int = 45,
    batches: Sequence[int] = (4, 16, 32),
    budgets: Sequence[int] = (256,),
) -> Iterator[Row]:
    """On one engine, whose batch, chunks and target change between runs; fewer requests, at the loads' own rate."""
    requests, model = tripled(count), load_model(name)
    with Engine(Config.preset("dynamic", model=name), model=model) as engine:
        engine.serve(requests[:2])

        def serve(**changes: Any) -> Metrics:
            engine.retune(**changes)
            return engine.serve(requests).metrics()

        yield from rows(say, "real,dynamic", serve, batches, budgets)
