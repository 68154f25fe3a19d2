"""A target for the gaps, in the controller: which rows join, how long passes are, and who waits for a place."""

import pytest
from controller_harness import DECODE, ControllerHarness

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.queues import BATCH_SLOT

MS = 10**6


def step_ns(rows: int) -> int:
    return 10 * MS + 10 * MS * rows


def world(preset: str, target_ms: float | None, fixed_ms=2, **changes) -> ControllerHarness:
    """A step of r rows takes 10 ms × (r + 1), a token of a pass 1 ms, beside rows too."""
    sizes = {"prefill_blocks": 100, "decode_blocks": 100, "max_batch": 8, **changes}
    target_s = None if target_ms is None else target_ms / 1000
    harness = ControllerHarness(preset, itl_target_s=target_s, **sizes)
    harness.pass_ns = fixed_ms * MS
    for decode in harness.state.decodes if target_ms else ():
        decode.composer.late = 1.0  # no gap has been later than its model
    steps = tuple((rows, 40 * rows, step_ns(rows)) for rows in (1, 2, 4, 3, 1, 4))
    passes = tuple((tokens, fixed_ms * MS + MS * tokens) for tokens in (8, 16, 64, 32))
    harness.tell(ev.Probed(None, passes, steps))
    return harness


def answer(harness: ControllerHarness, slower=1.0):
    """The pass or step under way ends, after the time that it takes; copies land at once."""
    worker, decode = harness.state.prefills[0], harness.state.decodes[0]
    if worker.passing is None:
        step = decode.steps[0]
        start, tokens, slots = harness.now, (7,) * len(step.requests), (step.used_slots, step.padded_slots)
        harness.now += round(slower * step_ns(len(tokens)))
        harness.tell(ev.Stepped(DECODE, step.number, tokens, start, harness.now, *slots), after=0)
        return
    rows = len(harness.last(cmd.Prefill).rows)
    fixed_ns, took_ns = harness.pass_ns, harness.pass_ns + MS * worker.passing.tokens
    harness.pass_ns = round(slower * took_ns)
    harness.prefilled(*[7] * (sum(final for _, final in worker.passing.items) + rows))
    harness.now, harness.pass_ns = harness.now + harness.pass_ns, fixed_ns
    for transfer in list(harness.state.transfers):
        harness.land_all(transfer)


def steady(harness: ControllerHarness, *requests: int, prompt=8, new=60):
    """These requests are in the batch."""
    for request in requests:
        harness.submit(request, prompt, new)
    while any(harness.stage(request) != "running" for request in requests):
        answer(harness)


def late(harness: ControllerHarness) -> float:
    return harness.state.decodes[0].composer.late


def test_no_more_rows_join_than_a_step_within_the_target_has():
    harness = world("split", None)
    for request in range(6):
        harness.submit(request, prompt=8, new=60)
        harness.prefilled(7)
        harness.land_all()
    decode = harness.state.decodes[0]
    assert (len(decode.rows), len(decode.landed)) == (1, 5), "a step is under way"
    harness.tell(ev.Retune(harness.state.config.replace(itl_target_s=0.045)))
    decode.composer.late = 1.0
    answer(harness)
    assert [*decode.rows] == [0, 1, 2] and [record.id for record in decode.landed] == [3, 4, 5]
    assert decode.landed.gate == BATCH_SLOT


@pytest.mark.parametrize("slower, moves", [(1.0, False), (15.0, True)])
@pytest.mark.parametrize("preset, prompt", [("split", None), ("colocated", None), ("colocated", 200)])
def test_steps_and_mixed_passes_count_that_are_later_than_their_model_and_target(preset, prompt, slower, moves):
    harness = world(preset, 200, chunk_tokens=32)
    steady(harness, 0)
    if prompt:
        harness.submit(1, prompt)
        for _ in range(4):
            answer(harness)
        assert harness.state.prefills[0].passing.step is not None
    assert late(harness) == 1
    answer(harness, slower)
    assert (late(harness) > 1) == moves


def test_a_second_token_long_after_the_first_counts():
    harness = world("split", 45)
    steady(harness, 0)
    answer(harness)
    harness.hand_off(1, prompt=8, new=60)
    harness.now += 400 * MS
    harness.land_all()
    answer(harness)
    assert late(harness) == 1
    answer(harness)
    assert late(harness) > 1


@pytest.mark.parametrize("target_ms, fixed_ms, most", [(None, 2, 60), (40, 2, 36), (40, 38, 4)])
def test_a_pass_beside_rows_has_the_tokens_that_the_target_leaves_and_a_block_at_least(target_ms, fixed_ms, most):
    harness = world("colocated", target_ms, fixed_ms)
    steady(harness, 0)
    harness.submit(1, prompt=100)
    answer(harness)
    command = harness.last(cmd.Prefill)
    assert command.rows == (0,) and command.prompts[0].stop == most


def test_a_place_is_for_rows_and_for_those_on_their_way_together():
    """Four rows stay within 55 ms."""
    for landed in range(5):
        harness = world("split", 55)
        steady(harness, *range(landed))
        for request in range(landed, 6):
            harness.submit(request, prompt=60, new=60)
            if harness.state.prefills[0].passing:
                harness.prefilled(7)
        queue = harness.state.prefills[0].queue
        assert ([record.id for record in queue], queue.gate) == ([4, 5], BATCH_SLOT), landed


@pytest.mark.parametrize("new, stage", [(60, "queued"), (3, "prefilling")])
def test_rows_that_end_before_a_prefill_does_leave_their_places_to_it(new, stage):
    harness = world("split", 55)
    steady(harness, *range(4), new=new)
    harness.submit(4, prompt=60)
    assert [*harness.state.decodes[0].rows] == [0, 1, 2, 3] and harness.stage(4) == stage


def test_two_decode_workers_have_places_of_their_own():
    harness = world("split", 55, decode_workers=2)
    for request in range(9):
        harness.submit(request, prompt=8, new=60)
        if harness.state.prefills[0].passing:
            harness.prefilled(7)
    assert [record.id for record in harness.state.prefills[0].queue] == [8]


@pytest.mark.parametrize("target_ms, max_batch", [(45, 8), (None, 3)])
def test_a_worker_that_does_both_admits_no_more_prompts_than_it_has_places(target_ms, max_batch):
    """Three places: a row's, a long prompt's that is not prefilled to the end, and that of one short one beside it."""
    harness = world("colocated", target_ms, max_batch=max_batch, chunk_tokens=16)
    steady(harness, 0)
    for request in range(1, 6):
        harness.submit(request, prompt=60 if request == 1 else 4, new=60)
    partial, queue = harness.state.prefills[0].partial, harness.state.prefills[0].queue
    for _ in range(12):
        answer(harness)
        assert len(harness.state.decodes[0].rows) + len(partial) + len(harness.state.decodes[0].landed) <= 3
    assert [record.id for record in queue] == [3, 4, 5] and queue.gate == BATCH_SLOT
