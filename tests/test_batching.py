"""Bins, padding, the step model and the composer."""

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


def steady(composer: Composer, steps=50, slower=1.0):
    for step in range(steps):
        rows = 1 + step % composer.limit(100, 64)
        composer.observe(rows, rows * 100, slower * (0.010 + 0.010 * rows))


def test_the_composer_stays_under_its_target():
    composer = Composer(0.1)
    assert composer.limit(100, 64) >= 1, "at least one row, whatever is known"
    steady(composer)
    limit = composer.limit(100, 64)
    assert 1 < limit <= 9 and 0.010 + 0.010 * limit <= 0.1
    assert composer.limit(100, 3) == 3


def test_a_step_may_take_the_target_exactly_and_a_limit_the_aim():
    composer = Composer(2.0)
    composer.model.weights, composer.largest = [0.0, 0.25, 0.25], 64  # half a second a row of 1,000 tokens
    assert composer.room(1000, 64) == 4
    assert composer.limit(1000, 64) == 2, "three rows take 1.5 s, and the aim is 1.44 s"


def test_rows_whose_tokens_round_up_beyond_the_target_stay_out():
    composer = Composer(4.9)
    composer.model.weights = [0.0, 0.0, 1000.0]  # a second a token
    assert composer.room(1.6, 64) == 2, "three rows read 4.8 tokens, which count as 5"


def test_the_composer_at_most_doubles_what_it_has_seen():
    composer = Composer(10.0)
    composer.observe(1, 100, 0.001)
    assert composer.limit(100, 64) == 2
    composer.observe(2, 200, 0.001)
    assert composer.limit(100, 64) == 4


def test_who_has_landed_joins_up_to_the_target_itself():
    composer = Composer(0.1)
    steady(composer)
    assert composer.limit(100, 64) < composer.room(100, 64) <= 9, "a step of 9 rows takes the whole target"
    assert composer.room(100, 3) == 3


def test_surprise_makes_the_composer_careful():
    calm, surprised = Composer(0.1), Composer(0.1)
    steady(calm)
    steady(surprised)
    for _ in range(3):
        surprised.observe(4, 400, 0.3)
    assert surprised.limit(100, 64) < calm.limit(100, 64)


def test_an_impossible_target_still_runs_one_row():
    composer = Composer(1e-9)
    steady(composer)
    assert composer.limit(100, 64) == 1


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
    assert worker.issue(1, 0, True).groups == ((0,), (1,)), "they read 8 and 9"


def test_who_leaves_before_its_first_step_never_joins():
    harness = ControllerHarness(decode_blocks=64)
    worker = harness.state.decodes[0]
    records = [decoding(worker, request, 5) for request in range(2)]
    for record in records:
        worker.join(record)
    worker.leave(records[0])
    command = worker.issue(1, 0, True)
    assert ([join.request for join in command.joins], command.left, command.groups) == ([1], (), ((1,),))
