"""Prefill on one GPU, decode on the other: the same tokens as the untouched model's, over every route."""

import pytest
import torch
from engine_tools import check_greedy, lengths, prompt_of, small

from disagg import Engine, Request
from disagg.plan.config import PRESETS

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices that torch can use")

ON_TWO = dict(prefill_device="cuda:0", decode_device="cuda:1")
HANDED_OFF = [name for name, fields in PRESETS.items() if fields.get("prefill_workers") != 0]


@pytest.mark.parametrize("peer_access", [True, False])
@pytest.mark.parametrize("preset", [*HANDED_OFF, "two_colocated"])
def test_a_preset_answers_on_two_gpus(preset, peer_access):
    requests = lengths((1, 9), (16, 12), (33, 1), (100, 8), (64, 6), (90, 7))
    with Engine(small(preset, verify_kv=True, peer_access=peer_access, **ON_TWO)) as engine:
        run = engine.serve(requests)
        again = engine.serve(requests)
    assert run.anomalies == again.anomalies == 0
    for served in (run, again):
        for request, result in zip(requests, served.results, strict=True):
            check_greedy(request.prompt, result, request.max_new_tokens)
    devices = set(run.timeline.devices.values())
    assert {"cuda:0", "cuda:1"} <= devices


@pytest.mark.parametrize("peer_access", [True, False])
def test_copies_that_follow_each_other_use_one_buffer_safely(peer_access):
    """Automatic granularity, many prompts in a row, checksums at every stop."""
    requests = [Request(prompt_of(40 + n, n), 4, ignore_eos=True) for n in range(24)]
    changes = dict(verify_kv=True, layers_per_copy=None, peer_access=peer_access)
    with Engine(small("streamed", **changes, **ON_TWO)) as engine:
        run = engine.serve(requests)
    assert run.anomalies == 0 and "copies timed to" in run.machine
    for request, result in zip(requests, run.results, strict=True):
        check_greedy(request.prompt, result, 4, ignore_eos=True)
