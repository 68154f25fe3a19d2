"""One GPU plays both devices: every preset answers there as the untouched model does on the CPU."""

import pytest
import torch
from engine_tools import check_greedy, lengths, small

from disagg import Engine
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
