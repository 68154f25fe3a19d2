"""Bins, padding, the step model and the composer."""

import statistics

import pytest
from controller_harness import ControllerHarness
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.batching import BinRow, Composer, Group, Padding, StepModel, bin_end, bin_of
from disagg.plan.blocks import Table
from disagg.plan.request import Job, Record
from disagg.plan.worker_state import DecodeWorkerState
from disagg.trace.batch_history import padding


def test_bins_hold_contexts_up_to_their_bound():
    assert [bin_of(context, (4, 8)) for context in (1, 4, 5, 8, 9, 99)] == [0, 0, 1, 1, 2, 2]
    assert [bin_end(context, (4, 8)) for context in (4, 5, 9)] == [5, 9, None]
    assert (bin_of(7, ()), bin_end(7, ())) == (0, None)


def test_padding_by_hand():
    total = padding([[3, 5], [], [8]])
    assert (total.used_slots, total.padded_slots, total.waste) == (16, 18, 1 - 16 / 18)
    assert Padding().waste == 0.0


@given(st.lists(st.integers(1, 40), min_size=1), st.lists(st.integers(1, 40), unique=True))
def test_bins_never_add_padding(contexts, bounds):
    bounds = tuple(sorted(bounds))
    groups: dict[int, list[int]] = {}
    for context in contexts:
        groups.setdefault(bin_of(context, bounds), []).append(context)
    binned, whole = padding(list(groups.values())), padding([contexts])
    assert binned.used_slots == whole.used_slots and binned.padded_slots <= whole.padded_slots


def test_a_group_counts_what_attention_reads_and_one_more_each_step():
    rows = [BinRow(Record(Job(n, (0,), 9, 0)), joined=2, base=base, last_step=9) for n, base in ((5, 3), (6, 7))]
    group = Group({row.record.id: row for row in rows})
    group.refresh(4)
    assert (group.ids, group.used, group.longest) == ((5, 6), 6 + 10, 10)
    group.advance()
    refreshed = Group(group.rows)
    refreshed.refresh(5)
    assert (group.used, group.longest) == (refreshed.used, refreshed.longest)


def test_the_step_model_learns_a_linear_cost():
    model = StepModel()
    for step in range(200):
        rows = 1 + step * 7 % 13
        tokens = rows * (50 + step * 11 % 300)
        model.observe(rows, tokens, 0.02 + 0.003 * rows + 0.004 * tokens / 1000)
    assert model.predict(8, 2000) == pytest.approx(0.02 + 0.003 * 8 + 0.004 * 2, rel=0.01)


def test_a_first_step_without_context_says_nothing_about_context():
    model = StepModel()
    model.observe(1, 0, 1.0)
    assert model.predict(1, 1000) == model.predict(1, 0) == pytest.approx(1.0, rel=0.01)


def step_s(rows: int, tokens: int) -> float:
    return 0.010 + 0.010 * rows + 0.00001 * tokens


def observe(composer: Composer, rows: int, tokens: int, seconds: float, gaps_s=()):
    """As the scheduler does after a step."""
    composer.learn(rows, tokens / rows, seconds, gaps_s)
    composer.model.observe(rows, tokens, seconds)


def steady(composer: Composer, steps=400, slower=lambda step: 1.0):
    """As many rows as there is room for, at 100 tokens a row."""
    gaps = []
    for step in range(steps):
        rows = composer.room(100, 64)
        gaps.append(slower(step) * step_s(rows, rows * 100))
        observe(composer, rows, rows * 100, gaps[-1])
    return gaps


def on_time(target_s: float) -> Composer:
    """One that expects no gap to be late."""
    composer = Composer(target_s, StepModel())
    composer.late = 1.0
    return composer


def taught(target_s: float) -> Composer:
    composer = on_time(target_s)
    for rows, tokens in ((1, 16), (4, 64), (4, 256)):
        observe(composer, rows, tokens, step_s(rows, tokens))
    return composer


def test_the_composer_fills_its_target_and_stays_under_it():
    composer = taught(0.1)
    assert Composer(0.1, StepModel()).room(100, 64) >= 1, "at least one row, whatever is known"
    assert composer.room(100, 64) == 8, "eight rows of 100 tokens take 98 ms"
    assert max(steady(composer)) <= 0.1 and composer.room(100, 3) == 3


def test_room_rounds_tokens_as_the_model_does():
    composer = on_time(2.0)
    composer.model.weights = [0.0, 0.25, 0.25]  # half a second a row of 1,000 tokens
    assert composer.room(1000, 64) == 4
    composer = on_time(4.9)
    composer.model.weights = [0.0, 0.0, 1000.0]  # a second a token
    assert composer.room(1.6, 64) == 2, "three rows read 4.8 tokens, which count as 5"


@pytest.mark.parametrize("every", [10, 20])
def test_late_steps_leave_room_and_no_more_than_one_gap_in_a_hundred_is_over(every):
    """Every so many steps take 1.3 times as long: the rule ends where those are within the target."""
    composer = taught(0.2)
    gaps = steady(composer, 3000, lambda step: 1.3 if step % every == 0 else 1.0)[500:]
    assert sum(gap > 0.2 * 1.0001 for gap in gaps) <= 0.02 * len(gaps)
    assert statistics.fmean(gaps) > 0.2 / 1.6, "and it leaves no more room than they need"


def test_it_settles_where_steps_become_slower_for_good():
    """Twice the time from one step to the next: it follows, and does not swing."""
    composer = taught(0.2)
    before = steady(composer, 200)
    rows = []
    for _ in range(2500):
        rows.append(composer.room(100, 64))
        observe(composer, rows[-1], rows[-1] * 100, 2 * step_s(rows[-1], rows[-1] * 100))
    assert max(rows[-300:]) - min(rows[-300:]) <= 2 and 2 * step_s(rows[-1], 100 * rows[-1]) <= 0.2 < 4 * before[-1]


def test_a_quiet_hour_and_gaps_of_one_row_teach_nothing():
    """Only steps as full as they may be lower `late`; a second token that one row would have had as late is no miss."""
    composer = taught(0.2)
    composer.room(100, 64)
    composer.late = 2.0
    for _ in range(500):
        observe(composer, 2, 200, step_s(2, 200))
    assert composer.late == 2.0
    composer.room(100, 2)
    observe(composer, 2, 200, step_s(2, 200), [2 * step_s(1, 100)])
    assert composer.late == 2.0 - Composer.GAIN
    late = taught(0.03)  # one row takes 21 ms, so its second token may take 42
    late.late = 1.5
    late.room(100, 1)
    observe(late, 1, 100, step_s(1, 100), [2 * step_s(1, 100)])
    assert late.late == 1.5 - Composer.GAIN


def test_work_beside_another_worker_takes_as_many_times_as_long_as_it_did():
    model = StepModel()
    for rows in (2, 4, 8, 2, 4, 8):
        model.observe(rows, 100 * rows, step_s(rows, 100 * rows))
    for _ in range(60):
        model.observe(4, 400, 1.5 * step_s(4, 400), beside=True)
        model.observe(1, 100, 0.5 * step_s(1, 100))
    assert model.predict(8, 800, beside=True) == pytest.approx(1.5 * step_s(8, 800), rel=0.05)
    assert model.predict(8, 800) == pytest.approx(step_s(8, 800), rel=0.05)
    assert model.predict(1, 100) == pytest.approx(0.5 * step_s(1, 100), rel=0.05)
    composer = Composer(0.12, model)
    rows = composer.room(100, 64)
    assert model.predict(rows, 100 * rows, beside=True) * composer.late <= 0.12, "room is left for a pass beside it"


def test_second_tokens_count_as_gaps():
    """A tenth of the gaps is twice as long as a step: steps have to leave room for them."""
    calm, late = taught(0.2), taught(0.2)
    for _ in range(2000):
        for composer, gaps in ((calm, []), (late, [2 * step_s(10, 1000)])):
            observe(composer, 10, 1000, step_s(10, 1000), gaps)
    assert late.room(100, 64) < calm.room(100, 64) and 1.8 < late.late <= Composer.MOST and calm.late < 1.001


def test_a_target_out_of_reach_leaves_one_row_and_no_tokens():
    composer = taught(1e-9)
    assert composer.room(100, 64) == 1
    assert composer.budget(composer.model, 1, 512) == 0


def test_the_budget_of_a_mixed_pass_keeps_its_time_within_the_target():
    composer, passes = on_time(0.1), StepModel()
    assert composer.budget(passes, 4, 512) == 512, "nothing is known yet"
    for rows, tokens in ((0, 16), (0, 64), (4, 64), (8, 256)):
        passes.observe(rows, tokens, 0.010 + 0.001 * rows + 0.0005 * tokens)
    budget = composer.budget(passes, 4, 512)
    assert passes.predict(4, budget) <= 0.1 < passes.predict(4, budget + 2)
    composer.late = 2.0
    assert composer.budget(passes, 4, 512) < budget / 2


def decoding(worker: DecodeWorkerState, request: int, context: int) -> Record:
    record = Record(Job(request, (0,) * context, 9, 0))
    record.decode_table = Table.reserve(worker.pool, 9, request)
    record.generated.append(7)
    return record


def test_a_row_that_joins_stands_in_the_bin_of_what_its_step_reads():
    harness = ControllerHarness(bins=(8,), decode_blocks=64)
    worker = harness.state.decodes[0]
    for request, context in enumerate((7, 8)):
        worker.join(decoding(worker, request, context))
    assert worker.issue(1, 0, True, False).groups == ((0,), (1,)), "they read 8 and 9"


def test_who_leaves_before_its_first_step_never_joins():
    harness = ControllerHarness(decode_blocks=64)
    worker = harness.state.decodes[0]
    records = [decoding(worker, request, 5) for request in range(2)]
    for record in records:
        worker.join(record)
    worker.leave(records[0])
    command = worker.issue(1, 0, True, False)
    assert ([join.request for join in command.joins], command.left, command.groups) == ([1], (), ((1,),))
