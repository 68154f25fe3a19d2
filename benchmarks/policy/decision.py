"""Microseconds of one decision: which chunks the next prefill pass takes, with a long queue and a full batch."""

import statistics
import time
from collections.abc import Iterator

from benchmarks.common import Say
from disagg.plan.commands import Chunk, Turn
from disagg.plan.config import Config
from disagg.plan.policy import POLICIES
from disagg.plan.request import Job
from disagg.plan.worker_state import PrefillWorkerState
from disagg.show.report import Row
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

FAST = Speeds(prefill_pass=100_000, prefill_token=1000, step=100_000, step_row=1000, step_token=0)
AWAY = 10**6  # ids of requests that wait, after those that run
PRESETS = ("streamed", "colocated")  # prefill alone, and beside rows
BUDGETS = (256, 2048)  # tokens of a pass, on a CPU and on a GPU by default: the second admits 20 prompts at a time


class Busy:
    """A world that stays as full as it is: each request that is admitted is followed by one more."""

    def __init__(self, preset: str, policy: str, budget: int, waiting: int, running: int) -> None:
        blocks = {"prefill_blocks": 8192, "decode_blocks": 100_000, "host_blocks": 0}
        more = {"policy": policy, "max_batch": 2 * running, "chunk_tokens": budget, **blocks}
        self.world = SimulatedEngine(Config.preset(preset, model="tiny", **more), FAST, record=False)
        self.waiting, self.running, self.next_id, self.took_ns = waiting, running, AWAY, list[int]()
        self._compose = self.world.controller.prefilling.compose
        vars(self.world.controller.prefilling)["compose"] = self.timed  # of this world alone
        for index in range(running):
            self.world.submit(Job(index, (1,) * 8, 100_000, 0))

    def measure(self, decisions: int) -> list[int]:
        """Nanoseconds of so many decisions."""
        while sum(len(worker.rows) for worker in self.world.controller.state.decodes) < self.running:
            self.world.step()
        for _ in range(self.waiting):
            self.arrive()
        while len(self.took_ns) < decisions:
            self.world.step()
        self.world.close()
        return self.took_ns

    def arrive(self) -> None:
        self.world.submit(Job(self.next_id, (1,) * (64 + self.next_id % 64), 1, self.world.now_ns))
        self.next_id += 1

    def timed(self, turn: Turn, worker: PrefillWorkerState, budget: int) -> list[Chunk]:
        full, start = len(worker.queue) >= self.waiting, time.perf_counter_ns()
        chunks = self._compose(turn, worker, budget)
        took_ns = time.perf_counter_ns() - start
        if full and chunks:
            self.took_ns.append(took_ns)
        for _ in range(self.waiting - len(worker.queue) if self.next_id >= AWAY + self.waiting else 0):
            self.arrive()
        return chunks


def rows(say: Say, waiting: int = 1000, running: int = 256, decisions: int = 300) -> Iterator[Row]:
    for policy in POLICIES:
        for budget in BUDGETS:
            say(f"decisions of {policy}, passes of {budget}")
            worlds = {preset: Busy(preset, policy, budget, waiting, running) for preset in PRESETS}
            us = {preset: statistics.median(world.measure(decisions)) / 1000 for preset, world in worlds.items()}
            note = f"{waiting:,} waiting, {running} running, passes of {budget:,} tokens: "
            note += ", ".join(f"{preset} {median:.0f}" for preset, median in us.items())
            yield Row(f"decision_us[{policy},{budget}]", max(us.values()), "µs", 100, decisions, note)
