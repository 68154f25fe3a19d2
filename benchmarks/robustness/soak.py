"""The soak: simulated worlds with faults under every detector, a small world in every order, then the real engine."""

import time
from collections import Counter
from collections.abc import Iterator

from rich.markup import escape

from benchmarks.common import Say
from benchmarks.robustness import detectors_cost, engine_soak, fault_matrix
from benchmarks.robustness.model_checker import WORLDS, explore, small
from benchmarks.robustness.random_scenarios import SOMETIMES, SeedFailed, simulate_seed
from disagg.show.report import Row

EVERY = 100  # seeds between two words of progress
SHOWN = 3  # failures shown in full


def simulated_rows(say: Say, seeds: int) -> Iterator[Row]:
    """Seeds from 0 on: how many ended badly, how fast they went, and which faults and branches never came up."""
    failed: list[int] = []
    seen: Counter[str] = Counter()
    began, requests = time.process_time(), 0
    for seed in range(seeds):
        if seed % EVERY == 0:
            say(f"simulated worlds: {seed} of {seeds}, {len(failed)} failed")
        try:
            world = simulate_seed(seed)
        except SeedFailed as failure:
            failed.append(seed)
            if len(failed) <= SHOWN:
                say(escape(str(failure)))
            continue
        seen += world.happened
        requests += len(world.jobs)
    took = time.process_time() - began
    again = "; rerun: python -m benchmarks soak --seed " + str(failed[0]) if failed else ""
    yield Row("sim_breaches", len(failed), "seeds", 0, seeds, f"{requests} requests{again}")
    yield Row("sim_seeds_per_s", seeds / took, "1/s", 100, seeds, "of one core's time", at_most=False)
    missing = [name for name in SOMETIMES if not seen[name]]
    yield Row("sim_never_happened", len(missing), "kinds", 0, len(SOMETIMES), ", ".join(missing))


def small_world_rows(say: Say) -> Iterator[Row]:
    """Every order of a small world; a violation ends the soak with the choices that led there."""
    say("the small world, in every order, notices lost, doubled and late among its faults")
    began = time.process_time()
    found = explore(small(notices=True))
    note = f"{found.steps} steps between them, {found.ends} ends, {time.process_time() - began:.1f} s; no violation"
    yield Row("small_world_states", found.states, "states", n=1, note=note)
    say("worlds that park, share passes, and split by request, in every order")
    every = {name: explore(world()) for name, world in WORLDS.items()}
    note = ", ".join(f"{name} {found.states}" for name, found in every.items())
    yield Row("small_worlds_states", sum(found.states for found in every.values()), "states", n=len(every), note=note)


def suite(say: Say, seeds: int = 10_000, requests: int = 10_000) -> Iterator[Row]:
    """The rows as they are measured: worlds on the virtual clock, then the real engine on the tiny model."""
    yield from small_world_rows(say)
    yield from simulated_rows(say, seeds)
    yield from fault_matrix.rows(say)
    yield from engine_soak.rows(say, requests)
    yield from detectors_cost.rows(say)
