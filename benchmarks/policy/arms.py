"""The arm that the estimates choose, against both arms measured: split or stay, fetch or recompute.

Each case is served with either arm forced by a policy object; what would have been chosen is in the placements.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from benchmarks.common import Say, known
from benchmarks.fixed_works import random_ids
from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Placed
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.policy import FirstCome, Option, soonest
from disagg.plan.request import Request, Waiting
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import LeftOut, Row
from disagg.trace.results import Result, Run

Case = TypeVar("Case", "Place", "Parked")
NEAR = 1.1  # a wrong arm may take so many times what the right one takes
CLOSE = 1.25  # times the shorter one: then one measurement of each does not tell which is the shorter


@dataclass(frozen=True)
class Forced(FirstCome):
    """First come, first served; a prompt of a known length goes a known way."""

    name: str = "forced"
    ways: tuple[tuple[int, str], ...] = ()  # (prompt tokens, way)

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option | str:
        wanted = [option for option in options if (request.prompt, option.way) in self.ways]
        return soonest(wanted or options)


class Tried(NamedTuple):
    """A case: what each arm took in seconds, and which the estimates choose."""

    words: str
    took_s: dict[str, float]
    chosen: str

    @property
    def over_best(self) -> float:
        return self.took_s[self.chosen] / min(self.took_s.values())

    def __str__(self) -> str:
        times = ", ".join(f"{way} {s:.2f}" for way, s in self.took_s.items())
        return f"{self.words}: {self.chosen} ({times} s)"


def both(words: str, ways: Sequence[str], once: Callable[[str], tuple[float, Placed]]) -> Tried:
    """Either way served; where they are close, three times each, and the medians count."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    chosen = ""
    for _ in range(3):
        for way in ways:
            seconds, placement = once(way)
            took[way].append(seconds)
            chosen = chosen or soonest(placement.options).way
        medians = {way: statistics.median(found) for way, found in took.items()}
        if max(medians.values()) > CLOSE * min(medians.values()):
            break
    return Tried(words, medians, chosen)


def arm_rows(name: str, tried: Sequence[Tried]) -> Iterator[Row | LeftOut]:
    right = [case.over_best <= 1 for case in tried]
    wrong = "; ".join(str(case) for case, is_right in zip(tried, right, strict=True) if not is_right)
    best = [min(case.took_s.items(), key=lambda item: item[1])[0] for case in tried]
    counts = ", ".join(f"{way} best in {best.count(way)}" for way in sorted(set(best)))
    yield Row(f"right_arm[{name}]", statistics.mean(right), "of cases", 0.9, len(tried), counts, at_most=False)
    worst = max(case.over_best for case in tried)
    yield Row(f"right_arm_worst[{name}]", worst, "× the best arm", NEAR, len(tried), f"wrong: {wrong or 'none'}")


def choice_of(run: Run, request: int, way: str) -> Placed:
    """The placement of a request among options with this way."""
    found = [p for p in run.placements if p.request == request and way in [option.way for option in p.options]]
    if not found:
        raise EngineError(f"request {request} was never given the choice of {way}; the case does not do what it should")
    return found[-1]


def over_links(cases: Sequence[Case]) -> list[tuple[float | None, list[Case]]]:
    """The cases of each link, which have an engine of their own: rates that it has measured are of that link."""
    links = dict.fromkeys(case.link for case in cases)
    return [(link, [case for case in cases if case.link == link]) for link in links]


# ---- split or stay ---------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A newcomer of so many tokens, over a link, beside rows that decode and behind a prompt on the prefill device."""

    prompt: int
    link: float | None
    rows: int = 0
    ahead: int = 0

    def __str__(self) -> str:
        link = "plain link" if self.link is None else f"{self.link / 1e6:g} MB/s"
        return f"{self.prompt} tokens, {link}, {self.rows} rows, {self.ahead} ahead"


PLACES = (
    *(Place(prompt, link, rows) for prompt in (33, 130, 323) for link in (None, 3e6) for rows in (0, 4)),
    *(Place(prompt, None, rows, 520) for prompt in (33, 130) for rows in (0, 4)),
)


def placed(engine: Engine, case: Place, vocab: int, new: int, start_s: float) -> Tried:
    lengths = [16] * case.rows + [case.ahead] * bool(case.ahead) + [case.prompt]
    ids = random_ids(lengths, vocab, case.prompt)
    requests = [Request(each, new, ignore_eos=True) for each in ids[: case.rows]]
    requests += [Request(each, 2, start_s, ignore_eos=True) for each in ids[case.rows :]]

    def once(way: str) -> tuple[float, Placed]:
        engine.retune(policy=Forced(ways=((16, "stay"), (case.ahead, "split"), (case.prompt, way))))
        run = engine.serve(requests)
        seconds = second_token_s(run.results[-1]) + delay_s(run.results[: case.rows], run.results[-1])
        return seconds, choice_of(run, run.results[-1].request, "split")

    return both(str(case), ("split", "stay"), once)


def second_token_s(result: Result) -> float:
    return known(result.ttft_s) + known(result.second_token_gap_s)


def delay_s(rows: Sequence[Result], newcomer: Result) -> float:
    """By how much longer than before the gaps of the rows are, from the newcomer's arrival to its second token."""
    pairs = [pair for result in rows for pair in pairwise(result.token_times_ns)]
    before = [b - a for a, b in pairs if b <= newcomer.arrival_ns]
    during = [b - a for a, b in pairs if b > newcomer.arrival_ns and a < newcomer.token_times_ns[1]]
    return sum(gap - statistics.median(before) for gap in during) / 1e9 if before else 0.0


def stay_or_split_rows(
    say: Say, name: str = "smollm2", cases: Sequence[Place] = PLACES, new: int = 60, start_s: float = 1.5
) -> Iterator[Row | LeftOut]:
    model, tried = load_model(name), []
    for link, group in over_links(cases):
        say(f"split or stay: {group[0]} and on")
        with Engine(Config.preset("conditional", model=name, max_batch=8, link=link), model=model) as engine:
            engine.serve([Request([5] * 40, 4, ignore_eos=True)] * 4)
            tried += [placed(engine, case, model.vocab_size, new, start_s) for case in group]
    yield from arm_rows("stay_or_split", tried)


# ---- fetch or recompute ----------------------------------------------------------------------------------------------


class Parked(NamedTuple):
    """A prompt of so many tokens that is parked over a link while decode is full."""

    prompt: int
    link: float

    def __str__(self) -> str:
        return f"{self.prompt} tokens, {self.link / 1e6:g} MB/s"


PARKED = tuple(Parked(prompt, link) for prompt in (160, 256, 400) for link in (4e6, 8e6, 16e6, 60e6))
HOLDER = 48  # prompt tokens of the request that holds decode's blocks meanwhile


def came_back(engine: Engine, case: Parked, vocab: int, new: int) -> Tried:
    size = engine.config.block_size
    need = max(blocks_for(case.prompt + 3, size), blocks_for(HOLDER + new, size))
    pools: dict[str, Any] = {"decode_blocks": need + 1, "prefill_blocks": need + blocks_for(HOLDER, size)}
    holder, parked = random_ids([HOLDER, case.prompt], vocab, case.prompt)
    requests = [Request(holder, new, ignore_eos=True), Request(parked, 3, 0.001, ignore_eos=True)]

    def once(way: str) -> tuple[float, Placed]:
        engine.retune(policy=Forced(ways=((case.prompt, way),)), **pools)
        run = engine.serve(requests)
        placement = choice_of(run, run.results[1].request, "fetch")
        return (run.results[1].token_times_ns[1] - placement.at_ns) / 1e9, placement

    return both(str(case), ("fetch", "recompute"), once)


def fetch_or_recompute_rows(
    say: Say, name: str = "smollm2", cases: Sequence[Parked] = PARKED, new: int = 100
) -> Iterator[Row | LeftOut]:
    model, tried = load_model(name), []
    for link, group in over_links(cases):
        say(f"fetch or recompute: {group[0]} and on")
        with Engine(Config.preset("paged", model=name, host_blocks=64, link=link), model=model) as engine:
            engine.serve([Request([5] * 40, 4, ignore_eos=True)] * 2)
            tried += [came_back(engine, case, model.vocab_size, new) for case in group]
    yield from arm_rows("fetch_or_recompute", tried)
