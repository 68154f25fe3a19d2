"""One GPU plays both devices: every preset answers there as the untouched model does on the CPU."""

import pytest
import torch
from engine_tools import check_greedy, lengths, prompt_of, small

from disagg import Engine, Request
from disagg.plan.config import PRESETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use")

ON_ONE_GPU = dict(prefill_device="cuda:0", decode_device="cuda:0")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_answers_on_one_gpu(preset):
    requests = lengths((1, 9), (16, 12), (33, 1), (100, 8))
    with Engine(small(preset, **ON_ONE_GPU)) as engine:
        run = engine.serve(requests)
    assert run.anomalies == 0
    for request, result in zip(requests, run.results, strict=True):
        check_greedy(request.prompt, result, request.max_new_tokens)


@pytest.mark.parametrize("preset", ["streamed", "staged", "paged"])
def test_checksums_and_automatic_copies_on_one_gpu(preset):
    requests = lengths((16, 12), (33, 9), (100, 8))
    with Engine(small(preset, verify_kv=True, layers_per_copy=None, **ON_ONE_GPU)) as engine:
        run = engine.serve(requests)
    assert run.anomalies == 0 and "copies timed to" in run.machine
    for request, result in zip(requests, run.results, strict=True):
        check_greedy(request.prompt, result, request.max_new_tokens)


def test_what_a_gpu_spills_comes_back_the_same():
    requests = [Request(prompt_of(24, n), 48, ignore_eos=True) for n in range(4)]
    sizes = dict(block_size=16, chunk_tokens=256, decode_blocks=8, host_blocks=8, verify_kv=True)
    with Engine(small("paged", **sizes, **ON_ONE_GPU)) as engine:
        run = engine.serve(requests)
    assert run.counts["spills"] >= 1 and run.anomalies == 0
    for request, result in zip(requests, run.results, strict=True):
        check_greedy(request.prompt, result, 48, ignore_eos=True)
