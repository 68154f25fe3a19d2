"""Runs a policy in random small worlds and holds it to its contract.

    check_policy(MyPolicy())   # PolicyError with the smallest world that it fails in

In every world all detectors watch, each answer is asked for twice (a policy keeps no state), and no first token comes
later than WAITS times the request's time alone plus the times alone of those that were there when it came.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from disagg.monitor.checked_simulation import SMALL, CheckedSimulation
from disagg.plan.blocks import blocks_for
from disagg.plan.config import PRESETS, Config
from disagg.plan.errors import PolicyError, in_words
from disagg.plan.policy import METHODS, Policy, named
from disagg.plan.request import Job
from disagg.trace.results import Result

WAITS = 20  # times its own time alone
WORLDS = 10_000
MOST_REQUESTS = 10  # of a world


class World(NamedTuple):
    preset: str
    settings: dict[str, Any]
    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        requests = ", ".join(
            f"{len(job.prompt)} tokens at {job.arrival_ns} ns for {job.max_new_tokens} more" for job in self.jobs
        )
        return f"preset {self.preset} ({settings}) with requests of {requests}"


def check_policy(policy: str | Policy, worlds: int = WORLDS, seed: int = 0) -> None:
    """PolicyError, with the smallest failing world, where the policy breaks its contract. ConfigError for no policy."""
    checked = named(Config(policy=policy).policy)
    for number in range(worlds):
        world = drawn(f"policy {seed} {number}")
        if (problem := fault_of(checked, world)) is not None:
            smallest, problem = shrunk(checked, world, problem)
            raise PolicyError(
                f"policy {checked.name!r} fails in world {number} of {worlds}: {problem}. The world: {smallest}"
            )


def drawn(number: str) -> World:
    """A preset with tight pools, and up to ten requests, none of them with a deadline of its own."""
    dice = random.Random(number)
    size, spread = dice.choice((1, 2, 4)), dice.choice((0, 500, 5000))
    jobs = []
    for index in range(dice.randint(1, MOST_REQUESTS)):
        prompt = tuple(range(dice.choice((1, 3, 5, 8, 40))))
        jobs.append(Job(index, prompt, dice.choice((1, 2, 5, 20)), dice.randint(0, spread)))
    fit = max(blocks_for(len(job.prompt) + job.max_new_tokens, size) for job in jobs)
    pools = {pool: fit + dice.choice((0, 3, 4 * fit)) for pool in ("prefill_blocks", "decode_blocks")}
    settings: dict[str, Any] = {**pools, "block_size": size, "host_blocks": dice.choice((0, 5 * fit))}
    settings |= {"chunk_tokens": size * dice.choice((3, 8, 64)), "max_batch": dice.choice((1, 2, 4, 32))}
    return World(dice.choice(list(PRESETS)), {**settings, "ring_slots": dice.choice((1, 3))}, tuple(jobs))


def fault_of(policy: Policy, world: World) -> str | None:
    """What is wrong with the policy in this world; None where nothing is."""
    try:
        config = Config.preset(world.preset, policy=AskedTwice(policy), **world.settings)
        simulation = _prepared(config, world.jobs)
        if (problem := _fault_at_the_end(simulation)) is not None:
            return problem
        return _longest_wait(config, world.jobs, simulation.results)
    except Exception as error:  # a detector, a check, or the policy itself
        return in_words(error)


def _fault_at_the_end(simulation: CheckedSimulation) -> str | None:
    """Runs it; why the controller broke comes before what detectors and checks find after that."""
    try:
        simulation.finish()
    except Exception as error:
        return simulation.controller.broken or in_words(error)
    return simulation.controller.broken


def shrunk(policy: Policy, world: World, problem: str) -> tuple[World, str]:
    """The world without the requests that it fails without, one after the other."""
    for job in world.jobs:
        fewer = world._replace(jobs=tuple(other for other in world.jobs if other is not job))
        if fewer.jobs and (found := fault_of(policy, fewer)) is not None:
            return shrunk(policy, fewer, found)
    return world, problem


def _prepared(config: Config, jobs: Sequence[Job]) -> CheckedSimulation:
    simulation = CheckedSimulation(config, SMALL, record=False)
    simulation.may_reject = True
    for job in jobs:
        simulation.submit(job)
    simulation.seen["worker die"] = 1  # a policy may break the controller, which says why
    return simulation


def _longest_wait(config: Config, jobs: Sequence[Job], results: dict[int, Result]) -> str | None:
    alone_ns = {job.id: _alone_ns(config, job) for job in jobs}
    for job in jobs:
        result = results[job.id]
        if result.finish_reason == "rejected" or not result.token_times_ns:
            continue
        there = [r.request for r in results.values() if r.arrival_ns <= job.arrival_ns < r.ended_ns]
        ahead_ns = sum(alone_ns[request] for request in there if request != job.id)
        waited_ns, most_ns = result.token_times_ns[0] - job.arrival_ns, WAITS * alone_ns[job.id] + ahead_ns
        if waited_ns > most_ns:
            return (
                f"request {job.id} had its first token after {waited_ns} ns; alone it takes {alone_ns[job.id]}, and "
                f"those that were there when it came {ahead_ns}, so {most_ns} ns are the most"
            )
    return None


def _alone_ns(config: Config, job: Job) -> int:
    """From its arrival to its end, where it is the only request."""
    only = replace(job, id=0, arrival_ns=0)
    return _prepared(config.replace(policy="fcfs"), [only]).finish().results[0].ended_ns


def _plain(answer: object) -> object:
    """Of shares that are yielded a list, up to more of them than a world has requests."""
    return list(islice(answer, MOST_REQUESTS + 1)) if isinstance(answer, Iterator) else answer


class AskedTwice:
    """A policy each of whose answers is asked for twice."""

    def __init__(self, policy: Policy) -> None:
        self.name = policy.name
        self.order, self.choose, self.share = (self._twice(getattr(policy, name), name) for name in METHODS)

    def _twice(self, decide: Callable[..., Any], name: str) -> Callable[..., Any]:
        def ask(*seen: object) -> object:
            first, second = (_plain(decide(*seen)) for _ in range(2))
            if first != second:
                raise ValueError(
                    f"the same question had two answers, {first!r} and {second!r}: a policy keeps no state"
                )
            return first

        return ask
