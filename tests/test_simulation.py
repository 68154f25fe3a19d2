"""Two hundred small worlds: the seed draws everything, and whatever it draws must end well."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from world import SMALL, CheckedWorld, Faults

from disagg.plan.blocks import blocks_for
from disagg.plan.config import PRESETS, Config
from disagg.plan.controller import Controller
from disagg.plan.link import Link
from disagg.plan.request import Job
from disagg.plan.simulator import Speeds, fake_token

SEEDS = int(os.environ.get("SEEDS", 200))
WIRES = (None, None, 1e8, Link(5e7, latency_s=2e-7), Link(2e8, fixed_s=1e-7), (1e8, 2e7))

#: Each of these must happen in some of the seeds, or the simulation looks past it.
SOMETIMES = (
    "spills", "fetches", "recomputes", "paging_fails", "ring full", "chunked prefill", "pause", "deadline",
    "copy_fails", "pass_fails", "step_fails", "landing_lost", "notice_twice", "notice_unknown", "retune",
    "eos", "length", "failed", "cancelled",
    "cancel queued", "cancel prefilling", "cancel handing off", "cancel landed", "cancel running",
    "cancel spilling", "cancel spilled", "cancel fetching",
)  # fmt: skip


def draw_jobs(rng: random.Random) -> list[Job]:
    jobs, spread = [], rng.choice((0, 500, 5000))
    for index in range(rng.randint(1, 16)):
        prompt = tuple(range(rng.choice((1, 3, 4, 5, 8, rng.randint(1, 20)))))
        most = rng.choice((1, 2, 5, 20, rng.randint(1, 24)))
        eos = frozenset({fake_token(index, rng.randrange(most))} if rng.random() < 0.3 else ())
        jobs.append(Job(index, prompt, most, rng.randint(0, spread), eos))
    return jobs


def draw_config(rng: random.Random, jobs: list[Job]) -> Config:
    """Any preset, with pools that often just fit the largest request."""
    size = rng.choice((1, 2, 4))
    fit = max(blocks_for(len(job.prompt) + job.max_new_tokens, size) for job in jobs)
    pool = lambda: fit + rng.choice((0, 0, 1, 3, fit, 4 * fit))  # noqa: E731
    name = rng.choice([*PRESETS, "paged", "paged", "dynamic"])  # paging has the most stages to go wrong in
    changes = {
        "block_size": size, "prefill_blocks": pool(), "decode_blocks": pool(),
        "host_blocks": rng.choice((0, fit, 5 * fit, 5 * fit)),
        "chunk_tokens": size * rng.choice((1, 3, 8, 64)), "ring_slots": rng.choice((1, 2, 3, 8)),
        "layers_per_copy": rng.randint(1, 4), "policy": rng.choice(("fcfs", "shortest")),
        "decode_workers": rng.choice((1, 1, 2)), "link": rng.choice(WIRES), "watchdog_s": 1.0,
        "max_batch": rng.choice((1, 2, 4, 32)), "bins": rng.choice(((), (4,), (3, 8, 16))),
        "itl_target_s": rng.choice((None, None, 3e-7, 1.0)),
    }  # fmt: skip
    if PRESETS[name].get("prefill_workers") != 0:
        changes["prefill_workers"] = rng.choice((1, 1, 2))
    return Config.preset(name, **changes)


def draw_faults(rng: random.Random) -> Faults:
    """Each kind is possible in about half of the seeds that have faults at all."""
    if rng.random() < 0.3:
        return Faults()
    chance = lambda value: value * rng.choice((0, 1))  # noqa: E731
    return Faults(
        copy_fails=chance(0.03), pass_fails=chance(0.05), step_fails=chance(0.01), landing_lost=chance(0.01),
        notice_twice=chance(0.1), notice_unknown=chance(0.05), cancel=chance(0.04), paging_fails=chance(0.2),
        cancel_paging=chance(0.2),
    )  # fmt: skip


def draw_retune(rng: random.Random, world: CheckedWorld, fit: int):
    world.seen["retune"] += 1
    world.retune(
        max_batch=rng.choice((1, 2, 8)), bins=rng.choice(((), (5, 9))), policy=rng.choice(("fcfs", "shortest")),
        decode_blocks=fit + rng.choice((0, 2, 50)), prefill_blocks=fit + rng.choice((0, 2, 50)),
        layers_per_copy=rng.randint(1, 3), itl_target_s=rng.choice((None, 4e-7)), link=rng.choice(WIRES),
    )  # fmt: skip


def build(seed: int) -> CheckedWorld:
    rng = random.Random(seed)
    jobs = draw_jobs(rng)
    config = draw_config(rng, jobs)
    changes = {
        "copy_byte": rng.choice((0.0, 1.0, 5.0, 30.0)), "layers": rng.choice((1, 3, 4)),
        "prefill_token": rng.choice((30, 3000)),
    }  # fmt: skip
    speeds = Speeds(**{**vars(SMALL), **changes})
    world = CheckedWorld(config, speeds, rng.choice((1, 2)), seed, draw_faults(rng))
    for job in jobs:
        world.submit(job)
    fit = max(blocks_for(len(job.prompt) + job.max_new_tokens, config.block_size) for job in jobs)
    for _ in range(rng.choice((0, 0, 0, 2))):
        world.at(rng.randint(0, 20_000), draw_retune, rng, world, fit)
    return world


def simulate(seed: int) -> CheckedWorld:
    world = build(seed)
    world.run()
    world.check_drained()
    world.check_answers()
    longest = 50_000 + 50_000 * sum(len(job.prompt) + job.max_new_tokens for job in world.jobs.values())
    assert world.now_ns <= longest + 2e9 * world.lost, f"ended only at {world.now_ns} ns"
    return world


def test_every_seed_ends_well():
    seen = Counter()
    for seed in range(SEEDS):
        try:
            world = simulate(seed)
        except Exception as error:
            again = f'python -c "import test_simulation as t; t.simulate({seed})"'
            raise AssertionError(f"seed {seed}: {error}; rerun in tests/ with: {again}") from error
        seen += world.seen + world.book.counts + Counter(result.finish_reason for result in world.results.values())
    missing = [name for name in SOMETIMES if not seen[name]]
    assert not missing, f"never happened in {SEEDS} seeds: {missing}"


def crowded(preset: str, seed=0) -> CheckedWorld:
    """Three requests in pools that hold one and a half of them: chunks, hand-offs and paging, as far as preset goes."""
    config = Config.preset(
        preset, block_size=2, prefill_blocks=9, decode_blocks=9, chunk_tokens=4, host_blocks=20, ring_slots=2,
        itl_target_s=None, link=1e8, watchdog_s=1.0,
    )  # fmt: skip
    world = CheckedWorld(config, Speeds(**{**vars(SMALL), "prefill_token": 3000}), 2, seed)
    for index in range(3):
        world.submit(Job(index, tuple(range(5 + index)), 9, 100 * index))
    return world


def finish(world: CheckedWorld):
    world.run()
    world.check_drained()
    world.check_answers()


@pytest.mark.parametrize("preset", PRESETS)
def test_cancel_at_every_event(preset):
    quiet = crowded(preset)
    finish(quiet)
    for number in range(len(quiet.recorder.log)):
        for request in range(3):
            world = crowded(preset)
            while len(world.recorder.log) <= number:
                world.step()
            world.cancel(request)
            finish(world)


@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "paged"])
def test_each_copy_fails_in_turn(preset):
    """That request fails and is named, or is computed again if it was only paged; the others' tokens are unchanged."""
    quiet = crowded(preset)
    finish(quiet)
    copies = [span for span in quiet.recorder.timeline.spans if span.kind in ("copy", "spill", "fetch")]
    assert copies and (preset != "paged" or {span.kind for span in copies} == {"copy", "spill", "fetch"})
    for number, span in enumerate(copies):
        world = crowded(preset)
        count = iter(range(10**6))
        world.chance = lambda fault, n=number, c=count: fault in ("copy_fails", "paging_fails") and next(c) == n
        finish(world)
        reasons = [world.results[index].finish_reason for index in range(3)]
        expected = ["length"] * 3
        if span.kind == "copy":
            expected[span.requests[0]] = "failed"
        assert reasons == expected, (number, span)


@pytest.mark.parametrize("seed", range(20))
def test_replayed_events_give_the_same_commands(seed):
    """The log of events is the controller's only input."""
    world = simulate(seed)
    shape = {"layers": world.speeds.layers, "token_bytes": world.speeds.token_bytes}
    fresh = Controller(world.config, **shape, steps_in_flight=world.book.steps_in_flight)
    assert [command for now, event in world.recorder.log for command in fresh.handle(event, now)] == world.commands


LOG = """
import hashlib, test_simulation as t
for seed in range(40):
    world = t.simulate(seed)
    print(hashlib.sha256(repr((world.recorder.log, world.results)).encode()).hexdigest())
"""


def test_same_seed_same_log_whatever_the_hashes():
    """`plan/` iterates over no set: two hash seeds, one log."""
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), *sys.path])
    logs = [
        subprocess.run(
            [sys.executable, "-c", LOG], env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hashes},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("1", "2")
    ]  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0].split()) == 40
