"""K/V parked in host memory while decode is full: what prefill still holds, and what it does for the requests."""

from collections.abc import Iterator
from fractions import Fraction

from benchmarks.common import Say, known
from benchmarks.policy_loads import POOL_SHARES, crowd
from disagg.plan import events as ev
from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Turn
from disagg.plan.config import Config
from disagg.plan.request import Request, Stage
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import Row
from disagg.trace.metrics import Metrics
from disagg.twin.simulate import simulation_of
from disagg.twin.simulated_engine import SimulatedEngine, Speeds, fake_token

GAIN_AT = 1 / 4  # share of the need at which parking must shorten the tail of TTFT


class Watched(SimulatedEngine):
    """Sums up what prefill holds for requests whose prefill is over, while decode has no blocks for one more."""

    held = full_ns = last_ns = 0

    def deliver(self, event: ev.Event) -> None:
        state, passed_ns = self.controller.state, self.now_ns - self.last_ns
        self.last_ns = self.now_ns
        if self.is_full():
            over = [record for record in state.records.values() if record.stage is Stage.HANDING_OFF]
            self.held += passed_ns * sum(len(r.prefill_table.blocks) for r in over if r.prefill_table)
            self.full_ns += passed_ns
        super().deliver(event)

    def is_full(self) -> bool:
        """Some requests are not on the decode device yet, and none of them fits."""
        state = self.controller.state
        away = [record.context for record in state.records.values() if record.decode_table is None]
        if not away:
            return False
        need, (decode,) = blocks_for(min(away) + 2, state.config.block_size), state.decodes
        return decode.pool.available < need + decode.growth

    @property
    def held_share(self) -> float:
        """Of the prefill pool, over the time in which decode was full."""
        return self.held / max(1, self.full_ns) / self.controller.state.prefills[0].pool.total


def keep(turn: Turn) -> None:
    """In place of parking: hand-offs wait in prefill's memory."""


def config_of(requests: list[Request], share: float, prompts_at_once: int = 8) -> Config:
    """`paged` with a decode pool of this share of what all requests need at once, and ample host memory."""
    size = 16
    need = sum(blocks_for(len(r.prompt) + r.max_new_tokens, size) for r in requests)
    prefill = prompts_at_once * blocks_for(len(requests[0].prompt), size)
    pools = {"decode_blocks": round(share * need), "prefill_blocks": prefill, "host_blocks": 2 * need}
    return Config.preset("paged", model="tiny", max_batch=len(requests), block_size=size, **pools)


def simulated(config: Config, requests: list[Request], parks: bool = True) -> Watched:
    world = simulation_of(Watched, config, requests, Speeds())
    if not parks:
        vars(world.controller.kv_transfers)["_park"] = keep  # of this world alone
    world.run()
    return world


def rows(say: Say, count: int = 48, new: int = 48) -> Iterator[Row]:
    requests, wrong = crowd(count, new=new), 0
    for share in POOL_SHARES:
        name = Fraction(share)
        say(f"a decode pool of {name} of the need, with parking and without")
        on, off = (simulated(config_of(requests, share), requests, parks) for parks in (True, False))
        wrong += sum(
            result.token_ids != [fake_token(index, place) for place in range(new)]
            for world in (on, off)
            for index, result in world.results.items()
        )
        yield from compared(str(name), share, on, off)
    yield Row("parking_wrong[twin]", wrong, "requests", 0, 2 * count * len(POOL_SHARES))


def compared(name: str, share: float, on: Watched, off: Watched) -> Iterator[Row]:
    new, old = on.so_far().metrics(), off.so_far().metrics()
    counts = ", ".join(f"{key} {new.counts.get(key, 0)}" for key in ("parked", "fetches", "recomputes", "spills"))
    note = f"without parking {off.held_share:.0%}; {counts}"
    yield Row(f"parking_held[{name}]", on.held_share, "of prefill's blocks", 0.25, len(on.results), note)
    note = f"{new.tokens_per_s:.1f} against {old.tokens_per_s:.1f} tokens/s without parking"
    rate = new.tokens_per_s / old.tokens_per_s
    yield Row(f"parking_tokens_per_s[{name}]", rate, "×", 0.97, len(on.results), note, at_most=False)
    ours, theirs = ttft_p99(new), ttft_p99(old)
    bar, note = 1.15 if share == GAIN_AT else 0.97, f"without parking {theirs:.1f} s, with it {ours:.1f} s"
    yield Row(f"parking_ttft_p99[{name}]", theirs / ours, "×", bar, len(on.results), note, at_most=False)


def ttft_p99(metrics: Metrics) -> float:
    return known(metrics.ttft_s.p99)


def real_rows(say: Say, count: int = 48, new: int = 48) -> Iterator[Row]:
    """Tokens of the real engine at a quarter of the need, against one request at a time."""
    requests, model = crowd(count, new=new), load_model("tiny")
    say("a crowd on the real engine, parked and one at a time")
    with Engine(config_of(requests, GAIN_AT), model=model) as engine:
        parked = engine.serve(requests)
    with Engine(Config.preset("baseline", model="tiny"), model=model) as engine:
        alone = engine.serve(requests)
    pairs = zip(parked.results, alone.results, strict=True)
    wrong = sum(ours.token_ids != theirs.token_ids for ours, theirs in pairs)
    counts = ", ".join(f"{key} {parked.counts.get(key, 0)}" for key in ("parked", "fetches", "recomputes"))
    yield Row("parking_wrong[real]", wrong, "requests", 0, count, f"tiny, a quarter of the need: {counts}")
