"""The scheduler's rows: each part yields its rows, in tiny sizes, and measures what it says."""

from dataclasses import replace

import pytest
from engine_tools import tiny

from benchmarks import policy_loads
from benchmarks.policy import arms, decision, mixing, parking, placing, suite, target, waiting
from disagg import Config, Engine, Request
from disagg.plan.errors import ConfigError
from disagg.plan.policy import POLICIES
from disagg.plan.request import Job
from disagg.show.report import Failed, LeftOut, Row
from disagg.trace.results import Result, Run
from disagg.trace.timeline import Timeline
from disagg.twin.goodput import Slo
from disagg.twin.simulated_engine import SimulatedEngine, Speeds
from disagg.twin.workloads import Lengths, poisson


def say(text: str) -> None:
    """Nothing is shown."""


def names(rows) -> list[str]:
    return [row.name for row in rows]


def test_a_decision_is_timed_with_a_queue_that_stays_full():
    busy = decision.Busy("colocated", "shortest", 64, waiting=30, running=6)
    assert len(busy.measure(5)) >= 5
    state = busy.world.controller.state
    assert len(state.prefills[0].queue) >= 30 - 2  # those that the last pass took are about to be replaced
    assert len(state.decodes[0].rows) == 6
    rows = list(decision.rows(say, waiting=20, running=4, decisions=3))
    assert names(rows) == [f"decision_us[{name},{size}]" for name in POLICIES for size in decision.BUDGETS]


def test_parking_is_compared_with_the_same_run_without_it():
    asked = policy_loads.crowd(24)
    config = parking.config_of(asked, 1 / 8, prompts_at_once=4)
    on, off = (parking.simulated(config, asked, parks) for parks in (True, False))
    assert on.controller.state.counts["parked"] > 0 == off.controller.state.counts["parked"]
    assert 0 <= on.held_share < off.held_share <= 1
    rows = list(parking.rows(say, count=12, new=8))
    each = [f"parking_{what}[{s}]" for s in ("1/8", "1/4", "1/2") for what in ("held", "tokens_per_s", "ttft_p99")]
    assert names(rows) == [*each, "parking_wrong[twin]"] and rows[-1].value == 0


def test_a_wrong_token_is_counted(monkeypatch):
    monkeypatch.setattr(parking, "fake_token", lambda request, index: request)
    assert list(parking.rows(say, count=12, new=4))[-1].value == 2 * 12 * 3


def test_parked_tokens_of_the_real_engine_are_those_of_one_at_a_time():
    (row,) = parking.real_rows(say, count=8, new=6)
    assert row.name == "parking_wrong[real]" and row.value == 0 and "parked 0" not in row.note


def test_short_ones_behind_a_long_one():
    pairs = [f"{what}[{{}},{order}]" for order in waiting.ORDERS for what in ("short_behind_long", "long_before_short")]
    rows = list(waiting.twin_rows(say, long=600))
    assert names(rows) == [name.format("twin") for name in pairs]
    assert names(waiting.real_rows(say, "tiny", long=300)) == [name.format("real") for name in pairs]
    assert all(row.value > 0 for row in rows)


def test_mixed_passes_against_steps_in_turn(tmp_path):
    (left_out,) = mixing.twin_rows(say, [])
    assert isinstance(left_out, LeftOut) and "--trace" in left_out.reason
    trace = tmp_path / "code.csv"
    lines = [f"2023-11-16 18:15:{index:02}.0,{400 + 50 * index},{8 + index}" for index in range(12)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    both = ["mixed_passes_gap_p99[{}]", "mixed_passes_tokens_per_s[{}]"]
    assert names(mixing.twin_rows(say, [trace], count=10)) == [name.format("twin") for name in both]
    assert names(mixing.real_rows(say, "tiny", rounds=1)) == [name.format("work C") for name in both]


def test_smaller_chunks_spare_the_gaps_and_cost_prompts():
    small, large = (mixing.price(chunk, rows=4, prompts=2, length=4000) for chunk in (128, 4096))
    assert max(small[1]) < max(large[1]) and small[2] < large[2]
    assert min(large[1]) >= 0.99 * large[0]  # no row decodes faster beside a prompt than alone


def test_split_or_stay_against_the_better_rival(monkeypatch):
    load = policy_loads.TwinLoad(
        "few", "2xH100", None, poisson(40, 4, Lengths(300, 0.5), Lengths(8), 1), Slo(0.05, 0.05)
    )
    rows = list(placing.twin_rows(say, [load, load._replace(name="slow", link="10gbe")]))
    ours = "conditional_over_best[{}]"
    assert names(rows) == [*map(ours.format, ("few", "slow", "largest")), "conditional_both_arms[twin]"]
    assert rows[2].value == max(row.value for row in rows[:2])
    (failed, *_) = placing.twin_rows(say, [load._replace(slo=Slo(1e-6, 1e-6))])
    assert isinstance(failed, Failed) and "no rate keeps the limits" in failed.reason
    asked = [Request([5] * 40, 4, 0.01 * index, ignore_eos=True) for index in range(3)]
    real = policy_loads.RealLoad("few", None, asked, Slo(10.0, 10.0))
    assert names(placing.real_rows(say, "tiny", [real])) == [ours.format("real few"), "conditional_both_arms[real]"]


def test_forced_arms_are_taken_and_judged():
    case = arms.Place(33, None, rows=2)
    with Engine(Config.preset("conditional", model="tiny"), model=tiny()) as engine:
        tried = arms.placed(engine, case, 250, new=12, start_s=0.01)
    assert tried.took_s.keys() == {"split", "stay"} and tried.chosen in tried.took_s
    with Engine(Config.preset("paged", model="tiny", host_blocks=64), model=tiny()) as engine:
        tried = arms.came_back(engine, arms.Parked(160, 60e6), 250, new=100)
    assert tried.took_s.keys() == {"fetch", "recompute"} and tried.over_best >= 1
    right, wrong = (
        arms.Tried("a", {"split": 1.0, "stay": 2.0}, "split"),
        arms.Tried("b", {"split": 3.0, "stay": 2.0}, "split"),
    )
    share, worst = arms.arm_rows("stay_or_split", [right, wrong])
    assert (share.name, share.value, worst.name, worst.value) == (
        "right_arm[stay_or_split]",
        0.5,
        "right_arm_worst[stay_or_split]",
        1.5,
    )
    assert "b: split" in worst.note and "a:" not in worst.note


def test_a_forced_way_goes_to_prompts_of_its_length_alone():
    policy = arms.Forced(ways=((40, "split"),))
    with Engine(Config.preset("conditional", model="tiny", policy=policy), model=tiny()) as engine:
        run = engine.serve([Request([5] * length, 2, ignore_eos=True) for length in (40, 41, 40)])
    ways = {placed.request: placed.way for placed in run.placements}
    assert [ways[result.request] for result in run.results][::2] == ["split", "split"]


def test_a_target_against_the_best_fixed_budget_that_keeps_it():
    def run_of(gap_s: float, tokens: int = 300) -> Run:
        """A second token that comes after 1 s, then even gaps."""
        times = [0, *(10**9 + round(1e9 * gap_s * index) for index in range(tokens - 1))]
        return Run(Config(model="tiny"), [Result(0, 1, 0, [5] * tokens, times)], Timeline())

    def serve(itl_target_s=None, max_batch=1, chunk_tokens=0) -> Run:
        ours = itl_target_s and itl_target_s < target.FIXED
        return run_of(0.03) if ours else run_of(max_batch / 100 + chunk_tokens / 10_000)

    p99, rate = target.rows(say, "x", serve, (2, 4, 6, 10), (1, 2))
    assert (p99.name, rate.name) == ("itl_target_p99[x]", "itl_target_tokens_per_s[x]")
    assert p99.value == pytest.approx(0.03 / 0.06) and rate.value < 1
    assert "fixed batch of 2, chunks of 1; 4 of 8 budgets" in rate.note
    assert isinstance(target.against("x", 1.0, {}, 4), LeftOut)
    few = {"batches": (1, 4), "budgets": (64,)}
    assert names(target.twin_rows(say, 6, **few))[0] == "itl_target_p99[twin,dynamic]"
    assert names(target.real_rows(say, "tiny", 4, **few))[0] == "itl_target_p99[real,dynamic]"


def test_parts_are_chosen_by_name_and_a_failing_one_is_a_row(monkeypatch):
    found = suite.parts(())
    assert list(suite.chosen(found, "parking[real]")) == ["parking[real]"]
    assert list(suite.chosen(found, "itl_target, parking")) == [
        "parking",
        "itl_target[twin]",
        "parking[real]",
        "itl_target[real]",
    ]
    with pytest.raises(ConfigError, match="--only nothing: no such row; rows: decision_us"):
        suite.chosen(found, "nothing")
    fine = {"a": lambda say: iter([Row("a", 1.0)]), "b": lambda say: 1 / 0}
    monkeypatch.setattr(suite, "parts", lambda traces: fine)
    a, b, worlds = suite.suite(say)
    assert (a.name, type(b), worlds.name) == ("a", Failed, "worlds") and "soak" in worlds.reason


class Simulated(SimulatedEngine):
    """The engine's two methods that arms are tried with, in one simulated world whose measured rates go on."""

    def retune(self, **changes):
        super().retune(self.controller.state.config.replace(**changes))

    def serve(self, requests):
        first, start_ns = len(self.results), self.now_ns
        self.recorder.begin(start_ns)
        for index, request in enumerate(requests, first):
            arrival_ns = start_ns + round(request.arrival_s * 1e9)
            self.submit(Job(index, tuple(request.prompt), request.max_new_tokens, arrival_ns))
        self.run()
        run = self.so_far()
        return replace(run, results=run.results[first:])


def test_fetch_or_recompute_is_chosen_as_the_twin_finds_it():
    """A pass takes as long as a step, however few its tokens; 256 tokens and one more are two passes."""
    tried = []
    for link, cases in arms.over_links(arms.PARKED):
        config = Config.preset("paged", model="smollm2", link=link, host_blocks=64, prefill_blocks=64, decode_blocks=64)
        world = Simulated(config, Speeds(prefill_pass=60_000_000))
        tried += [arms.came_back(world, case, 250, 100) for case in cases]
    assert [str(case) for case in tried if case.over_best > 1] == []
    assert {case.chosen for case in tried} == {"fetch", "recompute"}
