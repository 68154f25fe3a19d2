"""A simulation from one number: the seed draws requests, pools, ring, links, order, and which faults are possible.

simulate_seed(7)    # a simulation that has ended well, or a SeedFailed with its log and how to run it again
"""

import random

from benchmarks.robustness.drawn_faults import DrawnPlan
from benchmarks.robustness.faulty_simulation import FaultySimulation
from disagg.monitor.checked_simulation import SMALL
from disagg.monitor.fault_plan import FaultPlan
from disagg.monitor.violation import entry_in_words
from disagg.plan.blocks import blocks_for
from disagg.plan.config import PRESETS, Config
from disagg.plan.link import Link
from disagg.plan.request import Job
from disagg.twin.simulate import uncollected
from disagg.twin.simulated_engine import Speeds, fake_token

POLICIES = ("fcfs", "fcfs", "shortest", "shortest", "deadline")
DEADLINES_S = (None, None, 1e-9, 2e-6, 2e-5, 1.0)  # the first can't be met
LINKS = (None, None, 1e8, Link(5e7, latency_s=2e-7), Link(2e8, fixed_s=1e-7), (1e8, 2e7))
TAIL = 15

#: Chances of what may go wrong, an event of its kind; rarer stages have higher ones.
RATES = {
    "copy fail": 0.02, "copy flip": 0.01, "copy stall": 0.02, "paging fail": 0.15, "paging flip": 0.15,
    "paging stall": 0.05, "notice twice": 0.1, "notice late": 0.05, "notice unknown": 0.05, "landing lose": 0.01,
    "prefill fail": 0.05, "decode fail": 0.01, "event cancel": 0.04, "event interrupt": 0.002, "paged cancel": 0.1,
}  # fmt: skip

#: Each of these must happen in some of the seeds, or the simulation looks past it.
SOMETIMES = (
    *RATES, "worker die", "spills", "fetches", "recomputes", "ring full", "chunked prefill", "pause", "deadline",
    "retune", "eos", "length", "failed", "cancelled", "rejected", "parked", "mixed pass", "split", "stay",
    "blocking pass", "spilled: fetch", "spilled: recompute", "parked: fetch", "parked: recompute",
    "cancel queued", "cancel prefilling", "cancel handing off", "cancel parking", "cancel landed", "cancel running",
    "cancel spilling", "cancel spilled", "cancel parked", "cancel fetching",
)  # fmt: skip


class SeedFailed(AssertionError):
    """A seed that did not end well: what was wrong, the last of its log, and the line that runs it again."""

    def __init__(self, seed: int, error: BaseException, simulation: FaultySimulation | None) -> None:
        self.seed, self.error = seed, error
        log = simulation.log[-TAIL:] if simulation else []
        tail = "\n".join(f"  {entry_in_words(now, event)}" for now, event in log)
        again = f"python -m benchmarks soak --seed {seed}"
        super().__init__(f"seed {seed}: {type(error).__name__}: {error}\nlast events:\n{tail}\nrerun: {again}")


def simulate_seed(seed: int) -> FaultySimulation:
    """The seed's simulation, ended well; SeedFailed where it did not."""
    simulation = None
    try:
        with uncollected():
            simulation = build(seed)
            simulation.finish()
        tokens = sum(len(job.prompt) + job.max_new_tokens for job in simulation.jobs.values())
        stalls = sum(simulation.faults.struck[name] for name in ("copy stall", "paging stall"))
        limit = 50_000 + 50_000 * (tokens + stalls) + 2e9 * simulation.lost
        assert simulation.now_ns <= limit, f"ended only at {simulation.now_ns} ns"
    except Exception as error:
        raise SeedFailed(seed, error, simulation) from error
    return simulation


def build(seed: int) -> FaultySimulation:
    """The simulation before its first event."""
    rng = random.Random(seed)
    jobs = draw_jobs(rng)
    config = draw_config(rng, jobs)
    changes = {
        "copy_byte": rng.choice((0.0, 1.0, 5.0, 30.0)), "layers": rng.choice((1, 3, 4)),
        "prefill_token": rng.choice((30, 30, 3000)), "step": rng.choice((200, 200, 3000)),
    }  # fmt: skip
    speeds = Speeds(**{**vars(SMALL), **changes})
    simulation = FaultySimulation(config, speeds, rng.choice((1, 2)), seed, draw_faults(rng, seed), record=False)
    for job in jobs:
        simulation.submit(job)
    fit = fits(jobs, config.block_size)
    for _ in range(rng.choice((0, 0, 2, 4))):
        simulation.at(rng.randint(0, 20_000), draw_retune, rng, simulation, fit)
    return simulation


def fits(jobs: list[Job], block_size: int) -> int:
    """Blocks of the largest request."""
    return max(blocks_for(len(job.prompt) + job.max_new_tokens, block_size) for job in jobs)


def draw_jobs(rng: random.Random) -> list[Job]:
    jobs, spread = [], rng.choice((0, 500, 5000))
    for index in range(rng.randint(1, 12)):
        prompt = tuple(range(rng.choice((1, 3, 4, 5, 8, rng.randint(1, 20)))))
        most = rng.choice((1, 2, 5, 20, rng.randint(1, 24)))
        eos = frozenset({fake_token(index, rng.randrange(most))} if rng.random() < 0.3 else ())
        deadline_s = rng.choice(DEADLINES_S)
        jobs.append(Job(index, prompt, most, rng.randint(0, spread), eos, deadline_s=deadline_s))
    return jobs


def draw_config(rng: random.Random, jobs: list[Job]) -> Config:
    """Any preset, with pools that often just fit the largest request."""
    size = rng.choice((1, 2, 4))
    fit = fits(jobs, size)
    pool = lambda: fit + rng.choice((0, 0, 0, 1, 3, fit, 4 * fit))  # noqa: E731
    name = rng.choice([*PRESETS, *("paged",) * 4, "dynamic"])  # paging has the most stages to go wrong in
    changes = {
        "block_size": size, "prefill_blocks": pool(), "decode_blocks": pool(),
        "host_blocks": rng.choice((0, fit, *(5 * fit,) * 4)),
        "chunk_tokens": size * rng.choice((1, 3, 8, 64)), "ring_slots": rng.choice((1, 2, 3, 8)),
        "layers_per_copy": rng.randint(1, 4), "policy": rng.choice(POLICIES),
        "decode_workers": rng.choice((1, 1, 2)), "link": rng.choice(LINKS), "watchdog_s": 1.0,
        "max_batch": rng.choice((1, 2, 4, 32)), "bins": rng.choice(((), (4,), (3, 8, 16))),
        "itl_target_s": rng.choice((None, None, 3e-7, 1.0)), "mixed_passes": rng.random() < 0.7,
    }  # fmt: skip
    handed_off = PRESETS[name].get("prefill_workers") != 0
    if name == "conditional" or (handed_off and rng.random() < 0.15):
        changes |= {"prefill_workers": 0, "decode_workers": 2, "conditional": True}
    elif handed_off:
        changes["prefill_workers"] = rng.choice((1, 1, 2))
    if PRESETS[name].get("route") != "bulk":
        changes["overlap"] = rng.random() < 0.8
    return Config.preset(name, **changes)


def draw_faults(rng: random.Random, seed: int) -> FaultPlan:
    """Each kind is possible in about half of the seeds that have faults at all; in a few, one worker dies."""
    if rng.random() < 0.3:
        return FaultPlan()
    if rng.random() < 0.05:
        return FaultPlan({("worker", rng.randint(1, 30)): "die"})
    return DrawnPlan(seed, {name: rate for name, rate in RATES.items() if rng.random() < 0.5}, most=40)


def draw_retune(rng: random.Random, simulation: FaultySimulation, fit: int) -> None:
    if simulation.controller.broken:
        return
    simulation.change(
        max_batch=rng.choice((1, 2, 8)), bins=rng.choice(((), (5, 9))), policy=rng.choice(POLICIES),
        decode_blocks=fit + rng.choice((0, 2, 50)), prefill_blocks=fit + rng.choice((0, 2, 50)),
        layers_per_copy=rng.randint(1, 3), itl_target_s=rng.choice((None, 4e-7)),
        link=rng.choice((*LINKS, *(2e6,) * 4)),
    )  # fmt: skip
