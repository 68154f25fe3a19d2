"""Receipts: disjoint lines whose sum is the measured time, each wait under its own name; the difference of two runs."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_archive import simulated

from disagg import Config, Engine, Request, diff
from disagg.plan import events as ev
from disagg.plan.config import PRESETS
from disagg.plan.errors import DifferenceError, DisaggError, EngineError
from disagg.plan.policy import EarliestDeadline
from disagg.plan.request import Job, Stage
from disagg.trace.receipts import NAMES, Line, Receipt, _lay
from disagg.trace.results import Result
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

MS = 1_000_000
STALL = 50 * MS


def mixed(count=60, seed=0) -> list[Request]:
    draw = random.Random(seed)
    return [Request([1] * draw.randint(1, 300), draw.randint(1, 20), arrival_s=0.3 * i) for i in range(count)]


@pytest.mark.parametrize("preset", PRESETS)
def test_lines_are_disjoint_and_sum_to_the_measured_time(preset):
    run = simulate(Config.preset(preset, link=0.05e9, decode_blocks=60, prefill_blocks=40), mixed())
    for result in run.results:
        bill = result.receipt
        assert bill.total_s == (result.ended_ns - result.arrival_ns) / 1e9
        assert bill.unaccounted_s == 0, f"{bill}\n{result.stages}"
        assert set(bill.totals()) <= set(NAMES)
        for a, b in zip(bill.lines, bill.lines[1:], strict=False):
            assert a.end_ns <= b.start_ns and a.start_ns < a.end_ns
    assert sum(run.receipts().values()) == pytest.approx(sum(r.receipt.total_s for r in run.results) / len(run.results))


@pytest.mark.parametrize("preset", ["colocated", "staged", "paged"])
def test_a_cancelled_request_has_a_whole_receipt_too(preset):
    jobs = mixed(20)
    config = Config.preset(preset, link=0.02e9, decode_blocks=60, prefill_blocks=40, host_blocks=0)
    quiet = simulate(config, jobs)
    for number in range(0, len(quiet.log), len(quiet.log) // 25):
        at = quiet.log[number][0]
        world = SimulatedEngine(quiet.config.replace(decode_blocks=60, prefill_blocks=40, host_blocks=0))
        for _, event in quiet.log:
            if isinstance(event, ev.Submit):
                world.submit(event.job)
        world.at(at, world.deliver, ev.Cancel(5))
        world.run()
        bill = world.results[5].receipt
        assert bill.unaccounted_s <= max(1e-3, 0.01 * bill.total_s), f"{bill}\n{world.results[5].stages}"


def test_time_to_first_token_and_second_gap_are_parts_of_it():
    run = simulate(Config.preset("staged", link=0.01e9), mixed(5))
    for result in run.results:
        if len(result.token_ids) < 2:
            continue
        bill, (first, second) = result.receipt, result.token_times_ns[:2]
        until_first, gap = bill.between(result.arrival_ns, first), bill.between(first, second)
        assert sum(until_first.totals().values()) == pytest.approx(result.ttft_s)
        assert sum(gap.totals().values()) == pytest.approx(result.second_token_gap_s)
        assert "transfer" not in until_first.totals(), "what hides behind prefill costs the request nothing"


def test_a_request_that_has_not_ended_has_none():
    with pytest.raises(EngineError, match="no receipt"):
        _ = Result(0, 1, 0, timeline=Timeline()).receipt
    with pytest.raises(EngineError, match="record=False"):
        _ = Result(0, 1, 0, finish_reason="eos").receipt


def test_it_prints_as_a_table():
    lines = (Line("queue", 0, 30 * MS), Line("prefill", 30 * MS, 90 * MS), Line("decode", 91 * MS, 100 * MS))
    assert str(Receipt(3, 0, 100 * MS, lines)).splitlines() == [
        "request 3: 100.0 ms",
        "  wait  queue              30.0 ms   30%  ×1",
        "  work  prefill            60.0 ms   60%  ×1",
        "  work  decode              9.0 ms    9%  ×1",
        "        unaccounted         1.0 ms",
    ]


instants = st.integers(-5, 45)
claims = st.lists(
    st.builds(lambda name, a, b: Line(name, min(a, b), max(a, b)), st.sampled_from(NAMES), instants, instants),
    max_size=12,
)


@given(claims)
def test_each_instant_goes_to_the_first_claim_that_covers_it(lines):
    laid = list(_lay((0, 40), lines))
    for instant in range(40):
        wanted = next((c.name for c in lines if c.start_ns <= instant < c.end_ns), None)
        found = [line.name for line in laid if line.start_ns <= instant < line.end_ns]
        assert found == ([wanted] if wanted else [])


class Stalled(SimulatedEngine):
    """A virtual world in which one thing, once, takes 50 ms longer."""

    def __init__(self, config, where: str | None, request: int):
        super().__init__(config, Speeds(tail=0))
        self.where, self.of = where, request

    def _take(self, where: str, requests) -> int:
        if self.where == where and self.of in requests:
            self.where = None
            return STALL
        return 0

    def _prefill(self, command):
        self._stretch("prefill", command, [chunk.request for chunk in command.chunks], super()._prefill)

    def _decode(self, command):
        rows = [request for group in command.groups for request in group]
        self._stretch("decode", command, rows if command.step >= 6 else [], super()._decode)

    def _stretch(self, where, command, requests, carry_out):
        """The work begins late by the stall; what the worker reports counts it as work."""
        calm = self.speeds
        more = self._take(where, requests)
        self.speeds = Speeds(tail=more, step=calm.step + more)
        carry_out(command)
        self.speeds = calm

    def drive_lanes(self):
        start = self.transfers.start

        def slow(name):
            flight = start(name)
            if flight is not None and (more := self._take(name.role, [flight.request])):
                flight.busy_until_ns += more
                flight.landing_ns += more
                self.transfers.lanes[name].clock.busy_until_ns += more
            return flight

        self.transfers.start = slow
        super().drive_lanes()
        self.transfers.start = start


def served(config: Config, requests: list[Request], where=None, of=0):
    world = Stalled(config, where, of)
    for index, request in enumerate(requests):
        arrival = round(request.arrival_s * 1e9)
        world.submit(Job(index, tuple(request.prompt), request.max_new_tokens, arrival))
    world.run()
    return world


TWO = [Request([1] * 64, 12), Request([1] * 64, 4, arrival_s=0.01)]
WIDE = {"decode_blocks": 64, "prefill_blocks": 64, "chunk_tokens": 64}
NARROW = {**WIDE, "link": 0.004e9, "layers_per_copy": 30}

#: gate → (config, where the stall strikes, whom it strikes, who is asked)
GATES = {
    "prefill": (Config.preset("split", **WIDE), "prefill", 0, 0),
    "decode": (Config.preset("split", **WIDE), "decode", 0, 0),
    "queue": (Config.preset("split", **WIDE), "prefill", 0, 1),
    "transfer": (Config.preset("split", **NARROW), "direct", 0, 0),
    "link-busy": (Config.preset("split", **NARROW), "direct", 0, 1),
    "ring-full": (Config.preset("staged", **NARROW, ring_slots=1), "up", 0, 1),
    "batch-slot": (Config.preset("split", **WIDE, max_batch=1), "decode", 0, 1),
    "no-block": (Config.preset("split", **{**WIDE, "decode_blocks": 5}), "decode", 0, 1),
    "device-busy": (Config.preset("colocated", decode_blocks=64, chunk_tokens=64, mixed_passes=False), "prefill", 1, 0),
}


@pytest.mark.parametrize("gate", GATES)
def test_a_stall_moves_its_own_line_alone(gate):
    config, where, struck, asked = GATES[gate]
    calm, stalled = served(config, TWO), served(config, TWO, where, struck)
    before, after = (world.results[asked].receipt.totals() for world in (calm, stalled))
    moved = {name: after.get(name, 0) - before.get(name, 0) for name in NAMES}
    assert moved.pop(gate) == pytest.approx(0.05, abs=0.005), (gate, before, after)
    assert all(abs(change) <= 0.005 for change in moved.values()), (gate, before, after)


def test_works_come_before_waits():
    run = simulate(Config.preset("split", link=0.05e9), TWO)
    own = next(span for span in run.timeline.spans if span.kind == "prefill" and 0 in span.requests)
    run.timeline.spans.append(own._replace(requests=(99,)))  # somebody else's pass at the same time is no wait
    assert run.results[0].receipt.totals()["prefill"] == (own.end_ns - own.start_ns) / 1e9


def bill(spans: list[Span], *stages: tuple[int, Stage], end=200) -> dict[str, tuple[int, int]]:
    """Name → first and last instant, of request 0."""
    result = Result(0, 1, 0, finish_reason="length", ended_ns=end, stages=(*stages, (end, Stage.ENDED)))
    result.timeline = Timeline(spans)
    return {line.name: (line.start_ns, line.end_ns) for line in result.receipt.lines}


def test_time_in_host_memory_has_its_line():
    spans = [Span("spill", "spill 0", 0, 50, (0,)), Span("fetch", "up 0", 120, 200, (0,))]
    found = bill(spans, (0, Stage.SPILLING), (50, Stage.SPILLED), (120, Stage.FETCHING))
    assert found == {"spill": (0, 50), "spilled": (50, 120), "fetch": (120, 200)}
    spans = [Span("fetch", "up 0", 125, 200, (0,), ready_ns=123)]
    found = bill(spans, (0, Stage.PARKED), (120, Stage.FETCHING))
    assert found == {"parked": (0, 120), "dispatch": (120, 123), "fetch": (125, 200)}, "the way to the lane has a name"


def test_a_row_does_not_wait_for_the_worker_that_computes_it_again_later():
    spans = [Span("decode", "decode 0", 0, 40, (0,), ready_ns=0), Span("prefill", "prefill 0", 0, 100, (1,))]
    spans.append(Span("prefill", "prefill 0", 100, 200, (0,)))
    found = bill(spans, (0, Stage.RUNNING), (100, Stage.QUEUED), (100, Stage.PREFILLING))
    assert found["decode"] == (0, 40) and "device-busy" not in found


def summed(run, name: str) -> float:
    return sum(getattr(result, name) for result in run.results if getattr(result, name) is not None)


@pytest.mark.parametrize("preset", PRESETS)
def test_totals_are_the_runs_own_numbers(preset):
    a, b = simulated("split", 8), simulated(preset, 8)
    found = diff(a, b)
    for name in ("ttft_s", "second_token_gap_s"):
        change = getattr(found.total, name)
        assert (change.before_s, change.after_s) == pytest.approx((summed(a, name), summed(b, name)))
    for name, seconds in b.receipts().items():
        assert found.total.receipt[name].after_s == pytest.approx(8 * seconds)
    for changes in (found.total, *(request.changes for request in found.requests)):
        assert sum(c.by_s for c in changes.receipt.values()) == pytest.approx(changes.end_to_end_s.by_s)
        assert changes.end_to_end_s.after_s > 0
    took = [(result.ended_ns - result.arrival_ns) / 1e9 for result in b.results]
    assert [request.changes.end_to_end_s.after_s for request in found.requests] == took
    assert not found.differing


def test_the_way_back_is_the_opposite_and_a_run_and_itself_are_equal():
    a, b = simulated("split"), simulated("streamed")
    there, back = diff(a, b), diff(b, a)
    assert there.total.end_to_end_s.by_s == -back.total.end_to_end_s.by_s < 0
    assert "shorter on average, above all transfer (-" in there.finding
    assert "longer on average, above all transfer (+" in back.finding
    run = simulated()
    assert diff(run, run).finding == "A request takes as long in both runs, on average; all tokens are equal."
    assert diff(simulated(count=0), simulated(count=0)).requests == ()


def test_it_names_the_first_token_that_differs():
    a, b, short = simulated(), simulated(), simulated()
    b.results[3].token_ids[1] += 1
    short.results[4].token_ids = short.results[4].token_ids[:-1]
    assert [request.differs_at for request in diff(a, b).requests] == [None, None, None, 1, None, None]
    assert diff(a, b).finding.endswith("1 of 6 requests have other tokens, request 3 from token 2 on.")
    assert diff(a, short).requests[4].differs_at == len(short.results[4].token_ids)


def test_what_one_run_rejected_is_left_out_and_named():
    asked = mixed(6)
    served = simulate(Config.preset("streamed", policy="deadline"), asked)
    strict = simulate(Config.preset("streamed", policy=EarliestDeadline(ttft_s=0.4)), asked)
    gone = [index for index, result in enumerate(strict.results) if result.finish_reason == "rejected"]
    found = diff(strict, served)
    assert 0 < len(gone) < 6 and [request.index for request in found.requests if request.rejected] == gone
    named = f"all tokens are equal; one run rejected what the other served: {', '.join(map(str, gone))}."
    assert found.finding.endswith(named)
    kept = [r for index, r in enumerate(served.results) if index not in gone]
    assert found.total.end_to_end_s.after_s == pytest.approx(sum(r.ended_ns - r.arrival_ns for r in kept) / 1e9)


def test_it_prints_as_a_short_table():
    found = diff(simulated("split"), simulated("streamed"))
    lines = str(found).splitlines()
    assert lines[0] == found.finding and lines[1].split() == ["ms", "a", "request", "before", "after", "change"]
    assert [line[:18].strip() for line in lines[2:5]] == ["TTFT", "second-token gap", "end to end"]
    assert any(line.startswith("  transfer") for line in lines) and len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_table_holds_means_in_milliseconds_and_no_line_of_nothing(count):
    found = diff(simulated("split", count), simulated("streamed", count))
    printed = {line[:18].strip(): line[18:].split() for line in str(found).splitlines()[2:]}
    total = found.total.end_to_end_s
    means = (1e3 * seconds / count for seconds in (total.before_s, total.after_s))
    assert printed["end to end"][:2] == [f"{ms:.1f}" for ms in means]
    assert found.total.receipt["unaccounted"] == (0.0, 0.0) and "unaccounted" not in printed


def test_other_requests_are_refused():
    with pytest.raises(DifferenceError, match="one run served 6 requests, the other 5; compare two runs of the same"):
        diff(simulated(), simulated(count=5))
    other = copy.copy(simulated())
    other.results[3].prompt_tokens = 1
    with pytest.raises(DisaggError, match=r"the prompt of request 3 has \d+ tokens in one run and 1 in the other"):
        diff(simulated(), other)


def test_times_that_a_run_does_not_have_are_left_out():
    requests = [Request([1, 2, 3], 1)]
    with Engine(Config.preset("colocated", model="tiny", decode_blocks=16)) as engine:
        found = diff(engine.serve(requests), engine.serve(requests, record=False))
    assert found.total.second_token_gap_s is None and "second-token gap" not in str(found)
    assert found.total.receipt["prefill"].after_s == 0 and found.total.ttft_s.after_s > 0
