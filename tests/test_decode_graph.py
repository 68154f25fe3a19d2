"""Decode as GPUs do it, on the CPU: the batch lives in `DeviceRows`, steps are launched one ahead, nothing is captured.

The engine's own tests run again over it, with a paged kernel of plain PyTorch in flash-attn's place.
"""

import fake_triton
import pytest
import torch
from engine_tools import check_run, lengths, small
from paged_kernel import PlainKernel
from test_engine import (  # noqa: F401
    test_a_drawn_answer_is_the_same_alone_and_in_company,
    test_a_drawn_answer_survives_preemption,
    test_a_live_change_takes_force_and_changes_no_answer,
    test_a_one_token_answer_sends_nothing,
    test_a_preset_answers_as_the_untouched_model_generates,
    test_a_preset_gives_the_logits_of_the_untouched_model,
    test_a_prompt_around_the_edges_of_a_block,
    test_a_request_that_fills_the_pool_to_the_last_slot,
    test_an_end_of_sequence_at_once_ends_one_request_only,
    test_kept_logits_belong_to_their_own_request,
    test_one_engine_serves_again_and_again,
    test_other_presets_preempt_too,
    test_prompts_around_the_edges_of_a_chunk,
    test_two_workers_of_each_role,
    test_what_is_spilled_comes_back_the_same,
    test_without_a_host_pool_or_with_one_too_small_it_is_computed_again,
)

from disagg import Engine
from disagg.plan.errors import ConfigError
from disagg.run import executor, model
from disagg.run.gpu import decode_graph
from disagg.run.gpu.device_rows import DeviceRows
from disagg.run.model.model import Model


@pytest.fixture(autouse=True)
def a_paged_kernel(monkeypatch):
    monkeypatch.setattr(executor, "pick_kernel", lambda *args: PlainKernel())


def test_a_step_is_launched_before_the_last_one_is_known():
    ahead = []
    with Engine(small("colocated")) as it:
        decode = next(iter(it.executor.workers.values())).decode
        inner = decode.step
        decode.step = lambda command: ahead.append(len(it.controller.state.decodes[0].steps)) or inner(command)
        run = it.serve(lengths((5, 12), (9, 12)))
    assert max(ahead) == 2 and run.anomalies == 0
    assert run.metrics().padding_waste == 0  # the kernel reads no slot that holds nothing


def test_nothing_that_belongs_to_a_stream_outlives_the_worker():
    with Engine(small("colocated")) as it:
        decode = next(iter(it.executor.workers.values())).decode
        it.serve(lengths((5, 3)))
        assert decode.state is not None and len(decode._outputs) == 3
        decode._captured[1] = ("a graph", "logits", "tokens")
    assert decode.state is None and not decode._outputs and not decode._captured


def test_more_rows_than_places_are_refused_while_it_runs():
    with Engine(small("colocated", max_batch=4)) as it:
        it.retune(max_batch=2)
        it.retune(max_batch=4)
        with pytest.raises(ConfigError, match="beyond the 4 places captured at the start; got 5"):
            it.retune(max_batch=5)


def test_a_batch_runs_in_the_smallest_size_that_holds_it():
    assert decode_graph.buckets(1) == [1] and decode_graph.buckets(3) == [1, 2, 3]
    assert decode_graph.buckets(20) == [1, 2, 4, 8, 16, 20]
    with Engine(small("colocated", max_batch=20)) as it:
        decode, sizes = next(iter(it.executor.workers.values())).decode, []
        inner = decode._run
        decode._run = lambda size: sizes.append(size) or inner(size)
        requests = lengths(*[(3 + index, 6) for index in range(11)])
        run = it.serve(requests)
    assert 16 in sizes and set(sizes) <= {1, 2, 4, 8, 16}
    check_run(run, requests)


def test_compiled_code_is_made_once_for_all_sizes(monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    count, inner = CompileCounterWithBackend("aot_eager"), Model.compile
    monkeypatch.setattr(Model, "compile", lambda model: inner(model, backend=count))
    with Engine(small("streamed", compile=True, join_projections=False)) as it:
        before = count.frame_count
        requests = lengths((1, 5), (40, 6), (100, 4), (64, 9), (129, 2))
        run = it.serve(requests)
    assert 2 <= before <= 6, "a layer compiled for itself"
    assert count.frame_count == before, "a pass or a step of another size compiled again"
    check_run(run, requests)


def test_rows_on_the_device_follow_the_changes():
    state = DeviceRows(3, width=4, spare_block=9, device="cpu")
    state.set_row(1, token=7, length=5, blocks=[2, 3])
    state.set_order([1], 2)
    state.set_token(1, 8)  # the later value counts
    state.upload()
    assert state.order.tolist() == [1, 3, 3] and state.tokens.tolist() == [0, 8, 0, 0]
    assert state.lengths.tolist() == [0, 5, 0, 0] and state.tables[1].tolist() == [2, 3, 9, 9]
    state.set_block(1, 2, 6)
    state.upload()
    assert state.tables[1].tolist() == [2, 3, 6, 9] and state.tables[3].tolist() == [9] * 4
    for place in range(3):
        state.set_row(place, 1, 1, list(range(4)))
    state.set_order([2, 0], 3)
    state.upload()
    assert state.order.tolist() == [2, 0, 3] and state.tables[:3].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("vocab", [97, 1024, 5000])
@pytest.mark.parametrize("size", [1, 5, 9])
def test_kernels_take_rows_and_move_them_on_as_torch_does(monkeypatch, size, vocab):
    """Ties go to the first token; NaN and infinity are not finite; padding stays empty."""
    fake_triton.install(monkeypatch, model, "decode_kernels")
    torch.manual_seed(size)
    logits = torch.randn(size, vocab).bfloat16()
    logits[0, [vocab // 2, vocab - 1]] = 9.0
    for row, bad in zip(range(1, size), (float("nan"), float("inf"), float("-inf")), strict=False):
        logits[row] = bad if bad < 0 else logits[row].index_fill(0, torch.tensor([vocab - 2]), bad)
    found = []
    for on_gpu in (False, True):
        rows = DeviceRows(12, 3, 40, "cpu")
        monkeypatch.setattr(DeviceRows, "on_gpu", on_gpu)
        for place in range(6):
            rows.set_row(place, 10 + place, 100 * place, [place, 7 + place])
        rows.set_order([4, 1, 5, 0, 2][:size], size)
        rows.upload()
        taken = rows.take(size)
        picked = rows.move_on(logits)
        kept = picked.clone()
        kept[0, picked[1] == 0] = -1  # of a logit that is not finite
        found.append([*taken, kept, rows.lengths, rows.tokens[4]])
    finite = kept[1].bool()
    assert finite.tolist() == [True, *[False] * min(3, size - 1), *[True] * (size - 4)][:size]
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
