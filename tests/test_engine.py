"""The engine on `tiny`: every preset answers as the untouched model does, in every shape of request and batch."""

import dataclasses
import random
import threading
from functools import partial

import pytest
import torch
from engine_tools import (
    TOLERANCE,
    after,
    answered,
    check_greedy,
    check_logits,
    check_run,
    expected_logits,
    generated,
    held_at,
    joined,
    lengths,
    logit_error,
    opened,
    overflowing,
    prompt_of,
    reference,
    small,
    started,
    threads,
    tiny,
)

from disagg import Link, Request
from disagg.plan.config import PRESETS
from disagg.plan.errors import EngineError, RequestError
from disagg.plan.request import Stage
from disagg.run.decode_worker import DecodeStage
from disagg.run.host_lane import HostLane
from disagg.run.model.model import Model
from disagg.twin.model_shapes import TINY
from disagg.twin.model_shapes import TINY_EOS as EOS

LAYERS = TINY["num_hidden_layers"]

HAND_OFFS = ("split", "streamed", "staged")  # one for each route
MIXED = ((1, 9), (15, 4), (16, 12), (17, 20), (33, 1), (40, 16), (100, 8))  # (prompt tokens, new tokens)


# ---- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_answers_as_the_untouched_model_generates(preset):
    requests = lengths(*MIXED)
    run = answered(small(preset), requests)
    same = [r.token_ids == generated(q.prompt, q.max_new_tokens) for q, r in zip(requests, run.results, strict=True)]
    assert sum(same) >= len(same) - 1, "more than one near tie in a hundred tokens"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_the_logits_of_the_untouched_model(preset):
    forced = random.Random(preset).choices(range(256), k=20)
    requests = [Request(prompt_of(n), force_ids=forced, keep_logits=True) for n in (5, 16, 50)]
    with opened(small(preset, chunk_tokens=32)) as engine:
        results = engine.serve(requests).results
    for request, result in zip(requests, results, strict=True):
        assert result.token_ids == forced and result.finish_reason == "length"
        check_logits(request.prompt, result)


@pytest.mark.parametrize("route", ["bulk", "direct", "staged"])
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_one_zeroed_block_shows_in_the_logits(monkeypatch, route, layer):
    """The control: parity could fail."""

    def zeroing(self, flight, _):
        if not flight.hop_one and flight.layer <= layer < flight.layer_end:
            self.transfers.caches[flight.target].data[layer, :, flight.target_blocks[1]] = 0

    after(monkeypatch, HostLane, "_move", zeroing)
    request = Request(prompt_of(50), force_ids=prompt_of(8, 1), keep_logits=True)
    with opened(small(route=route, verify_kv=False)) as engine:
        result = engine.serve([request]).results[0]
    assert torch.allclose(result.logits[0], expected_logits(request.prompt, request.force_ids)[0], atol=TOLERANCE)
    assert logit_error(request.prompt, result) > 100 * TOLERANCE


def test_kept_logits_belong_to_their_own_request():
    requests = [Request(prompt_of(10 + n, n), 6 + n, keep_logits=True, ignore_eos=True) for n in range(5)]
    with opened(small("staged")) as engine:
        for request, result in zip(requests, engine.serve(requests).results, strict=True):
            check_logits(request.prompt, result)


# ---- shapes of one request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", HAND_OFFS)
@pytest.mark.parametrize(
    "tokens", [1, 15, 16, 17, 32, 33], ids=["one", "shorter", "equal", "one_over", "two", "two_and_one"]
)
def test_a_prompt_around_the_edges_of_a_block(preset, tokens):
    answered(small(preset), [Request(prompt_of(tokens), 18, ignore_eos=True)])


@pytest.mark.parametrize("preset", ["colocated", *HAND_OFFS])
def test_prompts_around_the_edges_of_a_chunk(preset):
    with opened(small(preset, chunk_tokens=32)) as engine:
        for tokens in (32, 33, 64, 100):
            requests = [Request(prompt_of(tokens), 10, ignore_eos=True)]
            run = engine.serve(requests)
            check_run(run, requests)
            assert sum(span.kind == "prefill" for span in run.timeline.spans) == -(-tokens // 32)


def test_chunks_of_several_prompts_share_a_pass():
    run = answered(small("staged", chunk_tokens=48), lengths((20, 5), (20, 5), (90, 5), (3, 5), (33, 5)))
    assert any(len(span.requests) > 1 for span in run.timeline.spans if span.kind == "prefill")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_one_token_answer_sends_nothing(preset):
    run = answered(small(preset), [Request(prompt_of(40), 1)])
    assert {span.kind for span in run.timeline.spans} == {"prefill"}
    assert run.results[0].tpot_s is None and run.results[0].second_token_gap_s is None
    assert run.metrics().bytes_moved == {}


def prompt_that_ends_at_once(length: int = 5) -> list[int]:
    """A prompt whose first token is the end of sequence, and not by a near tie."""
    prompts = torch.randint(0, 256, (4096, length), generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        best = reference()(input_ids=prompts).logits[:, -1].topk(2)
    clear = (best.indices[:, 0] == EOS) & (best.values[:, 0] - best.values[:, 1] > 0.01)
    return prompts[int(clear.nonzero()[0])].tolist()


@pytest.mark.parametrize("preset", PRESETS)
def test_an_end_of_sequence_at_once_ends_one_request_only(preset):
    short = Request(prompt_that_ends_at_once(), 30)
    run = answered(small(preset), [short, *lengths((20, 10)), short])
    assert [run.results[i].token_ids for i in (0, 2)] == [[EOS], [EOS]]
    assert run.results[0].finish_reason == "eos" and run.results[0].text == ""


def test_an_ignored_end_of_sequence_goes_on():
    run = answered(small(), [Request(prompt_that_ends_at_once(), 12, ignore_eos=True)])
    assert run.results[0].token_ids[0] == EOS


def test_a_prompt_as_text_is_its_bytes():
    with opened(small()) as engine:
        text, ids = engine.serve([Request("Why?", 8), Request(list(b"Why?"), 8)]).results
    assert text.token_ids == ids.token_ids and text.prompt_tokens == 4


# ---- pools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["colocated", *HAND_OFFS])
def test_a_request_that_fills_the_pool_to_the_last_slot(preset):
    """41 + 23 = 64 tokens = 4 blocks. Eight of them take turns."""
    requests = [Request(prompt_of(41, n), 23, ignore_eos=True) for n in range(8)]
    with opened(small(preset, prefill_blocks=4, decode_blocks=4)) as engine:
        run = engine.serve(requests)
        with pytest.raises(RequestError, match="need 5 blocks of 16, but .* has 4"):
            engine.submit(Request(prompt_of(41), 24))
    check_run(run, requests)
    assert run.peak_blocks["decode 0"] == 4


@pytest.mark.parametrize("block_size", [1, 8, 32])
@pytest.mark.parametrize("preset", ["colocated", *HAND_OFFS])
def test_other_sizes_of_blocks(preset, block_size):
    blocks = 1024 // block_size
    config = small(preset, block_size=block_size, chunk_tokens=64, prefill_blocks=blocks, decode_blocks=blocks)
    answered(config, lengths(*MIXED))


def paged(**changes):
    """Room for little more than one answer on the decode device."""
    return small("paged", **{"decode_blocks": 8, "host_blocks": 8, **changes})


LONG = overflowing(keep_logits=True)


def long_run(config):
    run = answered(config, LONG)
    for request, result in zip(LONG, run.results, strict=True):
        check_logits(request.prompt, result)
    return run


def test_what_is_spilled_comes_back_the_same():
    run = long_run(paged())
    assert run.counts["spills"] >= 1 and run.counts["fetches"] >= 1
    kinds = {span.kind for span in run.timeline.spans}
    assert {"spill", "fetch"} <= kinds and run.choices[0].arm.value == "spill"
    assert run.peak_blocks["host"] > 0
    assert {stage for result in run.results for _, stage in result.stages} == {*Stage} - {Stage.PARKED}, "all was seen"


@pytest.mark.parametrize("host_blocks", [0, 1])
def test_without_a_host_pool_or_with_one_too_small_it_is_computed_again(host_blocks):
    run = long_run(paged(host_blocks=host_blocks))
    assert run.counts["recomputes"] >= 1 and "spills" not in {n for n, count in run.counts.items() if count}
    assert all(choice.spill_ns is None for choice in run.choices)


def test_where_the_link_is_slow_it_is_computed_again():
    """At 0.3 MB/s a spill there and back takes some 500 ms, a prefill of 90 tokens a few (100, on a busy machine)."""
    run = long_run(paged(link=3e5))
    assert run.counts["recomputes"] >= 1
    slow = [choice for choice in run.choices if choice.spill_ns is not None and choice.recompute_ns is not None]
    assert all((c.spill_ns <= c.recompute_ns) == (c.arm.value == "spill") for c in slow)
    assert any(choice.arm.value == "recompute" for choice in slow)


@pytest.mark.parametrize("preset", ["colocated", "split", "dynamic"])
def test_other_presets_preempt_too(preset):
    blocks = dict(decode_blocks=8) if preset != "dynamic" else dict(decode_blocks=8, host_blocks=8)
    long_run(small(preset, **blocks))


# ---- several workers, layers, slots ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [*HAND_OFFS, "paged", "dynamic"])
def test_two_workers_of_each_role(preset):
    run = answered(small(preset, prefill_workers=2, decode_workers=2), lengths(*MIXED, *MIXED))
    assert {"prefill 0", "prefill 1", "decode 0", "decode 1"} <= set(run.timeline.places)


@pytest.mark.parametrize("route", ["direct", "staged"])
@pytest.mark.parametrize("together", [1, 2, 3, LAYERS, 99])
def test_layers_that_travel_together(route, together):
    run = answered(small(route=route, layers_per_copy=together), lengths((40, 6)))
    copies = [span for span in run.timeline.spans if span.kind == "copy"]
    per_lane = -(-LAYERS // min(together, LAYERS))
    assert len(copies) == per_lane * (1 if route == "direct" else 2)
    for lane in {span.place for span in copies}:
        layers = [layer for s in copies if s.place == lane for layer in range(s.index, s.index + s.count)]
        assert sorted(layers) == list(range(LAYERS))


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_narrow_ring(slots, workers):
    changes = dict(ring_slots=slots, prefill_workers=workers, decode_workers=workers, chunk_tokens=32)
    answered(small("staged", **changes), lengths(*MIXED))


@pytest.mark.parametrize("policy", ["fcfs", "shortest"])
def test_policies_change_the_order_and_no_answer(monkeypatch, policy):
    requests = lengths((60, 6), (3, 6), (30, 6), (4, 6))
    with opened(small("baseline", policy=policy)) as engine:
        gate = held_at(monkeypatch, Model, "prefill")
        handles = [engine.submit(request) for request in requests]
        gate.wait()
        engine.watch.until(lambda state: len(state.records) == 4)
        gate.open()
        results = [handle.result() for handle in handles]
    for request, result in zip(requests, results, strict=True):
        check_greedy(request.prompt, result, 6)
    order = sorted(range(4), key=lambda i: results[i].token_times_ns[0])
    assert order == ([0, 1, 2, 3] if policy == "fcfs" else [0, 1, 3, 2])


# ---- the engine's life -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_an_engine_that_is_idle_or_serves_nothing_closes(preset):
    with opened(small(preset)):
        assert threads()
    with opened(small(preset)) as engine:
        run = engine.serve([])
    assert run.results == [] and run.metrics().new_tokens == 0 and run.overlap().hidden is None


def test_one_engine_serves_again_and_again():
    requests = lengths(*MIXED)
    with opened(small("staged")) as engine:
        runs = [engine.serve(requests) for _ in range(3)]
    for run in runs:
        check_run(run, requests)
        ids = {result.request for result in run.results}
        assert {i for span in run.timeline.spans for i in span.requests} <= ids, "spans of another run"
    assert len({r.request for run in runs for r in run.results}) == 3 * len(requests)
    assert [r.token_ids for r in runs[0].results] == [r.token_ids for r in runs[2].results]


def test_two_engines_at_once():
    requests = lengths(*MIXED)
    with opened(small("staged")) as one, opened(small("colocated")) as two:
        handles = [(request, engine.submit(request)) for request in requests for engine in (one, two)]
        for request, handle in handles:
            check_greedy(request.prompt, handle.result(), request.max_new_tokens)


def test_a_second_serve_at_the_same_time_is_refused(monkeypatch):
    gate = held_at(monkeypatch, Model, "prefill")
    with opened(small("baseline")) as engine:
        runs = []
        first = started(lambda: runs.append(engine.serve(lengths((5, 3)))))
        gate.wait()
        with pytest.raises(EngineError, match="serving already"):
            engine.serve(lengths((5, 3)))
        gate.open()
        joined(first)
    check_run(runs[0], lengths((5, 3)))


def test_arrivals_out_of_order_come_back_in_the_order_asked():
    run = answered(small(), [Request(prompt_of(9, n), 4, arrival_s=s) for n, s in enumerate((0.02, 0.0, 0.01))])
    arrivals = [result.arrival_ns for result in run.results]
    assert sorted(arrivals) == [arrivals[1], arrivals[2], arrivals[0]]


def test_requests_from_several_threads_keep_their_own_numbers():
    with opened(small()) as engine:
        handles, barrier = [], threading.Barrier(8)

        def submit(seed):
            barrier.wait()
            handles.extend(engine.submit(request) for request in [Request(prompt_of(4, seed), 2)] * 5)

        joined(started(*(partial(submit, seed) for seed in range(8))))
        assert len({handle.result().request for handle in handles}) == 40


# ---- streaming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["baseline", *HAND_OFFS])
def test_pieces_of_text_come_as_tokens_do(preset):
    request = Request("Tell me", 30)
    with opened(small(preset)) as engine:
        handle = engine.submit(request)
        pieces = list(handle)
        result = handle.result()
        assert handle.done and list(handle) == []
    check_greedy(list(b"Tell me"), result, 30)
    assert "".join(pieces) == result.text


def test_the_first_piece_is_there_before_the_last_token(monkeypatch):
    gate = held_at(monkeypatch, DecodeStage, "step")
    with opened(small()) as engine:
        handle = engine.submit(Request(prompt_of(7), force_ids=list(b"abc")))
        pieces = iter(handle)
        assert next(pieces) == "a" and not handle.done
        with pytest.raises(TimeoutError, match="has not ended within 0 s"):
            handle.result(0)
        gate.open()
        assert "".join(pieces) == "bc"


# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["streamed", "dynamic"])
def test_a_drawn_answer_is_the_same_alone_and_in_company(preset):
    drawn = [
        Request(prompt_of(20), 24, temperature=t, top_p=p, seed=s, ignore_eos=True)
        for t, p, s in ((1.0, 1.0, 0), (1.0, 1.0, 1), (0.7, 0.5, 0), (2.0, 0.9, 3))
    ]
    with opened(small(preset)) as engine:
        alone = [engine.serve([request]).results[0].token_ids for request in drawn]
        company = [r.token_ids for r in engine.serve([*lengths(*MIXED), *drawn]).results[len(MIXED) :]]
    with opened(small("baseline")) as engine:
        plain = [r.token_ids for r in engine.serve(drawn).results]
    assert alone == company == plain
    assert len(set(map(tuple, alone))) == 4, "seed, temperature and top_p make a difference"


def test_another_seed_of_the_config_draws_other_answers_and_a_request_with_a_seed_keeps_its_own():
    own, none = (Request(prompt_of(20), 16, temperature=1.0, seed=s, ignore_eos=True) for s in (0, None))
    answers = []
    for seed in (0, 12345):
        with opened(small(seed=seed)) as engine:
            answers.append([r.token_ids for r in engine.serve([own, none]).results])
    (first, as_before), (second, other) = answers
    assert first == second == as_before != other


def test_a_drawn_answer_survives_preemption():
    drawn = [dataclasses.replace(request, temperature=1.0, seed=n) for n, request in enumerate(overflowing())]
    with opened(small("paged")) as engine:
        roomy = [r.token_ids for r in engine.serve(drawn).results]
    for host_blocks in (0, 8):
        with opened(paged(host_blocks=host_blocks)) as engine:
            run = engine.serve(drawn)
        assert run.counts["preemptions"] >= 1
        assert [r.token_ids for r in run.results] == roomy


# ---- live changes ----------------------------------------------------------------------------------------------------

#: Change → what every span of a kind then shows, in the run that follows.
CHANGES = {
    "link": (dict(link=Link(bandwidth=2e7, latency_s=1e-4)), "copy", lambda s: s.occupied_ns == round(s.nbytes * 50)),
    "max_batch": (dict(max_batch=1), "decode", lambda s: s.count == 1),
    "bins": (dict(bins=(32, 64)), "decode", bool),
    "policy": (dict(policy="shortest"), "decode", bool),
    "decode_blocks": (dict(decode_blocks=8), "decode", bool),
    "prefill_blocks": (dict(prefill_blocks=8), "decode", bool),
    "host_blocks": (dict(host_blocks=8), "decode", bool),
    "chunk_tokens": (dict(chunk_tokens=16), "prefill", lambda s: s.count <= 16),
    "layers_per_copy": (dict(layers_per_copy=3), "copy", lambda s: s.count == min(3, LAYERS - s.index)),
    "itl_target_s": (dict(itl_target_s=0.05), "decode", bool),
    "no itl_target_s": (dict(itl_target_s=None), "decode", bool),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_live_change_takes_force_and_changes_no_answer(change):
    fields, kind, holds = CHANGES[change]
    requests = [Request(prompt_of(20 + 9 * n, n), 24, ignore_eos=True) for n in range(6)]
    with opened(small("dynamic")) as engine:
        handles = [engine.submit(request) for request in requests[:4]]
        engine.watch.until(lambda state: any(len(r.generated) > 5 for r in state.records.values()))
        engine.retune(**fields)
        handles += [engine.submit(request) for request in requests[4:]]
        results = [handle.result() for handle in handles]
        for name, value in fields.items():
            assert getattr(engine.controller.state.config, name) == value == getattr(engine.config, name)
        run = engine.serve(requests[:4])
    for request, result in zip(requests, results, strict=True):
        check_greedy(request.prompt, result, 24, ignore_eos=True)
    check_run(run, requests[:4])
    spans = [span for span in run.timeline.spans if span.kind == kind]
    assert spans and all(map(holds, spans))
    assert change != "decode_blocks" or run.peak_blocks["decode 0"] <= 8


def test_the_model_that_the_tests_share_is_left_as_it_was():
    assert tiny().module.training is False
    assert reference().config._attn_implementation != tiny().module.config._attn_implementation
