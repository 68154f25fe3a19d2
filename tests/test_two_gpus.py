"""Prefill on one GPU, decode on the other: the same tokens as the untouched model's, over every route."""

import pytest
import torch
from engine_tools import check_run, lengths, prompt_of, small

from disagg import Engine, Request
from disagg.plan.config import PRESETS

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices that torch can use")

ON_TWO = dict(prefill_device="cuda:0", decode_device="cuda:1")
HANDED_OFF = [name for name, fields in PRESETS.items() if fields.get("prefill_workers") != 0 or "conditional" in fields]


@pytest.mark.parametrize("peer_access", [True, False])
@pytest.mark.parametrize("preset", [*HANDED_OFF, "two_colocated"])
def test_a_preset_answers_on_two_gpus(preset, peer_access):
    requests = lengths((1, 9), (16, 12), (33, 1), (100, 8), (64, 6), (90, 7))
    with Engine(small(preset, verify_kv=True, peer_access=peer_access, **ON_TWO)) as engine:
        run = engine.serve(requests)
        check_run(engine.serve(requests), requests)
    check_run(run, requests)
    assert {"cuda:0", "cuda:1"} <= set(run.timeline.devices.values())


@pytest.mark.parametrize("peer_access", [True, False])
def test_copies_that_follow_each_other_use_one_buffer_safely(peer_access):
    requests = [Request(prompt_of(40 + n, n), 4, ignore_eos=True) for n in range(24)]
    changes = dict(verify_kv=True, layers_per_copy=None, peer_access=peer_access)
    with Engine(small("streamed", **changes, **ON_TWO)) as engine:
        run = engine.serve(requests)
    check_run(run, requests)
    assert "copies timed to" in run.machine
