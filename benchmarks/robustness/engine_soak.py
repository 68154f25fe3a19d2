"""Many short requests on the real engine, with faults and cancels by chance: none lost, none ended twice, no memory."""

import gc
import random
from collections import Counter
from collections.abc import Iterator

import psutil

from benchmarks.common import Say
from benchmarks.robustness.drawn_faults import DrawnPlan
from benchmarks.robustness.fault_matrix import config_of, held, injection_of
from disagg.plan import commands as cmd
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.show.report import Row
from disagg.trace.results import Result

RATES = {"copy": 0.004, "paging": 0.02, "notice": 0.01, "prefill": 0.002, "decode": 0.001}
CANCELLED = 0.15
TOGETHER = 24  # open at a time
ENDS = {"length", "eos", "cancelled", "failed"}


def rows(say: Say, count: int = 10_000) -> Iterator[Row]:
    """Memory is compared between the first half of the requests and the end."""
    draw, plan, process = random.Random(0), DrawnPlan(0, RATES), psutil.Process()
    ends: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    sizes = []
    with Engine(config_of("paged", watchdog_s=60.0), faults=plan) as engine:
        count_ends(engine, ends)
        for half in range(2):
            say(f"soak: {count // 2} requests with faults and cancels, half {half + 1} of 2")
            for _ in range(count // 2 // TOGETHER + 1):
                reasons.update(result.finish_reason for result in together(engine, draw))
            gc.collect()
            sizes.append(process.memory_info().rss)
        left, anomalies = held(engine), engine.controller.state.counts["anomalies"]
        asked, strays = reasons.total(), injection_of(engine).strays
    lost = sum(n for reason, n in reasons.items() if reason not in ENDS) + (asked - len(ends)) + (anomalies > strays)
    note = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    note += "; struck: " + ", ".join(f"{name} {n}" for name, n in sorted(plan.struck.items())) + f"; {left} blocks held"
    yield Row("soak_lost", lost + left, "requests", 0, asked, note)
    yield Row("soak_doubled", sum(n > 1 for n in ends.values()), "requests", 0, asked, "ended more than once")
    growth = (sizes[1] - sizes[0]) / (asked / 2)
    yield Row("soak_rss_bytes_per_request", growth, "bytes", 1024, asked // 2, "second half against the first")


def together(engine: Engine, draw: random.Random, count: int = TOGETHER, cancelled: float = CANCELLED) -> list[Result]:
    """Requests at once, a share of them cancelled; their results."""
    handles = []
    for _ in range(count):
        prompt = [draw.randrange(250) for _ in range(draw.randint(1, 60))]
        handles.append(engine.submit(Request(prompt, draw.randint(1, 24), ignore_eos=draw.random() < 0.5)))
    for handle in handles:
        if draw.random() < cancelled:
            handle.cancel()
    return [handle.result() for handle in handles]


def count_ends(engine: Engine, ends: Counter) -> None:
    """Counts the ends that each request is given."""
    obey = engine._loop.core._obey

    def counting(command: cmd.Command) -> None:
        if isinstance(command, cmd.Ended):
            ends[command.request] += 1
        obey(command)

    vars(engine._loop.core)["_obey"] = counting  # of this engine alone
