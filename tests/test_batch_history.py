"""Batch view: steps read off a run equal the padding that was counted and the commands that the controller gave."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from test_block_map import arrivals, crowded

from disagg import Config, Engine, Request, simulate
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import PRESETS
from disagg.plan.errors import EngineError
from disagg.plan.request import Job, Stage
from disagg.show.plots.batch_plot import REASONS, batch_picture, batches_picture
from disagg.trace.batch_history import ENDS, JOINS, LEAVES, batch_steps, padding_of
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline
from disagg.twin.simulated_engine import SimulatedEngine

TIGHT = {"decode_blocks": 40, "prefill_blocks": 60, "link": 0.05e9}


class Listening(SimulatedEngine):
    """A virtual world that keeps the decode commands."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.decodes: dict[str, list[cmd.Decode]] = {}

    def _decode(self, command):
        self.decodes.setdefault(str(command.worker), []).append(command)
        super()._decode(command)

    def _prefill(self, command):
        if command.step is not None:  # a mixed pass reads each row alone
            alone = tuple((request,) for request in command.rows)
            self.decodes.setdefault(str(command.worker), []).append(command.step._replace(groups=alone))
        super()._prefill(command)


def served(config: Config, requests, cancels=(), steps_in_flight=1):
    """(run, decode commands by worker); `cancels` are (seconds, request)."""
    world = Listening(config, steps_in_flight=steps_in_flight)
    for index, request in enumerate(requests):
        arrival = round(request.arrival_s * 1e9)
        world.submit(Job(index, tuple(request.prompt), request.max_new_tokens, arrival))
    for at_s, request in cancels:
        world.at(round(at_s * 1e9), world.deliver, ev.Cancel(request))
    world.run()
    return world.recorder.run(config, [world.results[index] for index in range(len(requests))]), world.decodes


def compare(run, decodes):
    """Steps against commands: rows by bin, who came with which length, who went."""
    steps = batch_steps(run)
    assert padding_of(steps) == run.padding and run.counts["padding_mismatches"] == 0
    for worker, commands in decodes.items():
        own = [step for step in steps if step.worker == worker]
        assert [step.number for step in own] == [command.step for command in commands]
        for index, (step, command) in enumerate(zip(own, commands, strict=True)):
            assert tuple(tuple(row.request for row in group) for group in step.bins) == command.groups
            assert step.joins.keys() == {join.request for join in command.joins}
            lengths = {row.request: row.length for row in step.rows}
            assert all(lengths[join.request] == join.context + 1 for join in command.joins)
            assert set(step.joins.values()) <= set(JOINS) and set(step.leaves.values()) <= set(LEAVES)
            left = set(commands[index + 1].left) if index + 1 < len(commands) else set(lengths)
            assert step.leaves.keys() == left
    return steps


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("host_blocks", [0, 40])
@pytest.mark.parametrize("preset", PRESETS)
def test_steps_equal_padding_and_commands(preset, host_blocks, steps_in_flight):
    config = Config.preset(preset, **TIGHT, host_blocks=host_blocks)
    compare(*served(config, arrivals(), steps_in_flight=steps_in_flight))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0, 12), st.integers(0, 11)), max_size=8),
    st.sampled_from(["paged", "dynamic", "two_colocated"]),
    st.sampled_from([1, 2]),
)
def test_cancelled_requests_leave_as_cancelled(cancels, preset, steps_in_flight):
    config = Config.preset(preset, **{**TIGHT, "decode_blocks": 24}, host_blocks=10)
    run, decodes = served(config, arrivals(12), cancels, steps_in_flight)
    steps = compare(run, decodes)
    last = {request: why for step in steps for request, why in step.leaves.items()}
    for request, why in last.items():
        reason = run.results[request].finish_reason
        assert why == reason or reason == "cancelled", "a row that is cancelled outside the batch left it before"


def test_two_steps_with_unused_tokens_differ_by_one_token():
    config = Config.preset("split", **{**TIGHT, "decode_blocks": 400})
    run, decodes = served(config, arrivals(8), [(2.0 + 0.137 * i, i) for i in range(8)], steps_in_flight=2)
    assert any(result.finish_reason == "cancelled" and len(result.token_ids) > 1 for result in run.results)
    compare(run, decodes)


def test_a_row_that_goes_and_comes_at_one_instant_did_both():
    def at(steps, *stages):
        result = Result(0, 5, 0, [1, 2, 3], [5, 15, 25], finish_reason="length", stages=stages, ended_ns=25)
        spans = [
            Span("decode", "decode 0", 10, 15, (0,), 0, 1, ready_ns=10, groups=(1,)),
            Span("decode", "decode 0", 20, 25, (0,), 1, 1, ready_ns=20, groups=(1,)),
        ]
        return batch_steps(Run(Config(model="tiny"), [result], Timeline(spans[:steps])))

    start = ((0, Stage.PREFILLING), (5, Stage.HANDING_OFF), (6, Stage.LANDED), (10, Stage.RUNNING), (20, Stage.LANDED))
    first, second = at(2, *start, (20, Stage.RUNNING), (25, Stage.ENDED))
    assert (first.leaves, second.joins) == ({0: "waits for a block"}, {0: "got its block"})
    (gone,) = at(1, *start, (20, Stage.SPILLING), (25, Stage.ENDED))
    assert gone.leaves == {0: "spilled"}, "it sat out, and was preempted at the same instant"


def test_reasons_follow_the_stages():
    spilling, again = crowded(host_blocks=40), crowded(host_blocks=0)
    spilled, computed = ("spilled", "back from the host"), ("to be computed again", "computed again")
    for run, (out, back) in ((spilling, spilled), (again, computed)):
        steps = batch_steps(run)
        came = [why for step in steps for why in step.joins.values()]
        went = [why for step in steps for why in step.leaves.values()]
        assert came.count(back) and went.count(out)
        assert came.count("parked") == sum(
            [stage for _, stage in result.stages[at : at + 2]] == [Stage.PARKED, Stage.FETCHING]
            for result in run.results
            for at in range(len(result.stages))
        )
        known = ("got its block", "handed off", "parked", back)
        assert sum(map(came.count, known)) == len(came) == len(went)
        ends = {(span.end_ns, request) for span in run.timeline.spans if span.groups for request in span.requests}
        stepped = sum((result.token_times_ns[-1], result.request) in ends for result in run.results)
        assert went.count("length") == stepped, "a last token may come from the prefill that computes again"
    colocated = batch_steps(crowded("colocated", decode_blocks=400))
    assert {why for step in colocated for why in step.joins.values()} == {"prefilled"}


def test_a_real_run_gives_its_own_padding():
    """Short of blocks on purpose: some requests are computed again, and some return from the host."""
    requests = [Request([3 + i] * (20 + 9 * i), 30, ignore_eos=True) for i in range(6)]
    for host_blocks in (0, 12):
        config = Config.preset("dynamic", model="tiny", decode_blocks=14, host_blocks=host_blocks, bins=(32, 64))
        with Engine(config) as engine:
            for _ in range(2):  # step numbers go on in the second run
                run = engine.serve(requests)
                steps = batch_steps(run)
                assert run.choices and padding_of(steps) == run.padding
                assert sum(len(step.rows) for step in steps) == sum(s.count for s in run.timeline.spans if s.groups)
                heard = [(e.used_slots, e.padded_slots) for _, e in run.log if isinstance(e, ev.Stepped)]
                assert heard == [(s.padding.used_slots, s.padding.padded_slots) for s in steps]


def test_rows_of_another_caller_are_refused():
    run = crowded()
    missing = run.results.pop(3)
    with pytest.raises(EngineError, match=rf"requests \[{missing.request}\]"):
        batch_steps(run)


# ---- pictures --------------------------------------------------------------------------------------------------------


def area(axes, label: str) -> float:
    found = [c for c in axes.collections if isinstance(c, PolyCollection)]
    boxes = [path.get_extents() for c in found if c.get_label() == label for path in c.get_paths()]
    return sum(box.width * box.height for box in boxes)


@pytest.mark.parametrize("preset", ["dynamic", "two_colocated"])
def test_drawn_areas_are_the_slots(preset):
    run = crowded(preset, host_blocks=40)
    panels, steps = batches_picture(run).figure.axes[::2], batch_steps(run)
    assert len(panels) == run.config.decode_workers
    for index, axes in enumerate(panels):
        total = padding_of(step for step in steps if step.worker == f"decode {index}")
        share = total.padded_slots / total.used_slots - 1
        assert area(axes, "padding") / area(axes, "rows") == pytest.approx(share)


def test_glyphs_are_one_a_step_and_reason():
    run = crowded(host_blocks=40)
    steps = batch_steps(run)
    lines = {line.get_label(): line for axes in batches_picture(run).figure.axes for line in axes.lines}
    for name, members in REASONS.items():
        for kind in ("joins", "leaves"):
            numbers = [s.number for s in steps if set(getattr(s, kind).values()) & set(members)]
            assert list(lines[f"{kind}: {name}"].get_xdata()) == numbers if numbers else True
    assert {why for members in REASONS.values() for why in members} == {*JOINS, *LEAVES}


def test_findings_count():
    slow, fast = (crowded(link=link, decode_blocks=400) for link in (1e6, 50e6))
    assert batches_picture(slow).finding != batches_picture(fast).finding
    assert f"{slow.padding.waste:.0%} of the {slow.padding.padded_slots:,} slots" in batches_picture(slow).finding
    assert set(ENDS) == {"eos", "length", "cancelled", "failed"}


def test_one_step_has_a_bar_a_row():
    run = crowded("dynamic", host_blocks=40)
    steps = batch_steps(run)
    index = max(range(len(steps)), key=lambda i: len(steps[i].bins))
    picture, step = batch_picture(run, index), steps[index]
    rows = [c for c in picture.figure.axes[0].collections if c.get_label() == "rows"]
    assert sum(len(c.get_paths()) for c in rows) == len(step.rows)
    assert f"{step.padding.used_slots} tokens in {step.padding.padded_slots} slots" in picture.finding
    assert all(f"{row.request} = {row.length}" in picture.alt for row in step.rows)


def test_a_run_without_steps_has_a_picture():
    run = simulate(Config.preset("staged"), [Request([1, 2, 3], 1)])
    assert batches_picture(run).finding == "No decode step was recorded." and batches_picture(run).png()
    with pytest.raises(EngineError, match="no decode step, .*: each answer ended with its first token"):
        batch_picture(run, 0)
