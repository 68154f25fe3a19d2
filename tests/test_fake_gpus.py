"""Every arrangement starts, serves and stops on GPUs: with fakes of CUDA, so that it is asked on every machine."""

import pytest
from engine_tools import check_run, lengths, opened, prompt_of, small, tiny
from fake_cuda import fake_gpus
from paged_kernel import PlainKernel

from disagg import Config, Link, Request
from disagg.monitor.seams import Seams
from disagg.plan.config import PRESETS
from disagg.run import executor
from disagg.run.gpu.device import Scratch
from disagg.run.machine import devices

ONE = dict(prefill_device="cuda:0", decode_device="cuda:0")
TWO = dict(prefill_device="cuda:0", decode_device="cuda:1")
EAGER = dict(compile=False, graphs=False)  # there is nothing to compile or capture for
HANDED_OFF = [name for name, fields in PRESETS.items() if fields.get("prefill_workers") != 0 or "conditional" in fields]
SHARED = [name for name in PRESETS if name not in HANDED_OFF]
ROUTES = {"bulk": "split", "direct": "streamed", "staged": "staged"}


@pytest.fixture(params=["gathered", "paged kernel"])
def attention(request, monkeypatch):
    """As GPUs attend in fp32, and as they do in 16 bits: there steps are launched ahead."""
    kernel = PlainKernel() if request.param == "paged kernel" else None
    monkeypatch.setattr(executor, "pick_kernel", lambda *args: kernel)


def answers(config: Config, requests=None):
    """Starts, serves, stops: the run, in which every request has the reference's tokens."""
    requests = requests or lengths((1, 5), (33, 1), (70, 6))
    with opened(config) as it:
        run = it.serve(requests)
    check_run(run, requests)
    assert ("copies timed to" in run.machine) == bool(it.executor.transfers.lanes)
    return run


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_answers_on_one_gpu(monkeypatch, attention, preset):
    fake_gpus(monkeypatch)
    answers(small(preset, **ONE, **EAGER))


@pytest.mark.parametrize("peer_access", [True, False])
@pytest.mark.parametrize("preset", [*HANDED_OFF, "two_colocated"])
def test_a_preset_answers_on_two_gpus(monkeypatch, preset, peer_access):
    fake_gpus(monkeypatch)
    answers(small(preset, verify_kv=True, peer_access=peer_access, **TWO, **EAGER))


def test_gpus_that_do_not_reach_each_other_go_by_way_of_the_host(monkeypatch):
    fake_gpus(monkeypatch, reach=False)
    answers(small("streamed", verify_kv=True, **TWO, **EAGER))


@pytest.mark.parametrize("verify, together", [(True, 1), (True, None), (False, 1), (False, None)])
@pytest.mark.parametrize("route", ROUTES)
def test_a_route_answers_on_one_gpu(monkeypatch, route, verify, together):
    fake_gpus(monkeypatch)
    answers(small(ROUTES[route], verify_kv=verify, layers_per_copy=together, **ONE, **EAGER))


@pytest.mark.parametrize("preset", HANDED_OFF)
@pytest.mark.parametrize("places", [ONE, TWO], ids=["one", "two"])
def test_pageable_memory_is_asked_for_wherever_pinned_would_be(monkeypatch, preset, places):
    fake_gpus(monkeypatch, reach=False)
    asked, view = [], Scratch.view
    monkeypatch.setattr(Scratch, "view", lambda self, shape: asked.append(self.pinned) or view(self, shape))
    for pinned in (True, False):
        asked.clear()
        answers(small(preset, pinned=pinned, link=Link(1e9), **places, **EAGER))
        staged = "staged" if preset in ("staged", "paged", "dynamic") else ""
        assert any(asked) == (pinned and bool(staged or places is TWO))


@pytest.mark.parametrize("pinned", [True, False])
def test_what_is_paged_goes_to_pinned_memory_unless_that_is_switched_off(monkeypatch, pinned):
    asked = {}
    monkeypatch.setattr(devices, "KVCache", lambda shape, blocks, size, at, pinned: asked.update({at: pinned}))
    devices.make_caches(small("paged", pinned=pinned, **TWO), tiny().shape, spare=False, seams=Seams(print))
    assert asked == {"cuda:0": False, "cuda:1": False, "cpu": pinned}


@pytest.mark.parametrize("together", [1, None])
@pytest.mark.parametrize("preset", ["streamed", "staged", "paged"])
def test_hand_offs_block_on_one_gpu(monkeypatch, attention, preset, together):
    fake_gpus(monkeypatch)
    answers(small(preset, overlap=False, layers_per_copy=together, **ONE, **EAGER))


@pytest.mark.parametrize("preset", [name for name in HANDED_OFF if name != "conditional"])
def test_a_split_gpu_answers_and_gives_its_parts_back(monkeypatch, preset):
    driver = fake_gpus(monkeypatch)
    run = answers(small(preset, sm_split=32, **ONE, **EAGER))
    assert "32 SMs for decode and 100 for prefill" in run.machine and not driver.open


@pytest.mark.parametrize("preset", PRESETS)
def test_host_memory_beside_a_gpu_takes_what_is_spilled(monkeypatch, attention, preset):
    fake_gpus(monkeypatch)
    requests = [Request(prompt_of(24, n), 48, ignore_eos=True) for n in range(4)]
    sizes = dict(block_size=16, chunk_tokens=256, decode_blocks=8, host_blocks=8, verify_kv=True)
    run = answers(small(preset, **sizes, **ONE, **EAGER), requests)
    if preset != "baseline":  # which serves one at a time
        assert run.counts["spills"] >= 1 and run.counts["fetches"] >= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_link_is_dialled_while_it_serves(monkeypatch, preset):
    fake_gpus(monkeypatch)
    with opened(small(preset, **ONE, **EAGER)) as it:
        for link in (Link(1e9), None):
            it.retune(link=link, layers_per_copy=None)
            requests = lengths((40, 4))
            check_run(it.serve(requests), requests)


@pytest.mark.parametrize("preset", SHARED)
def test_where_nothing_is_handed_off_a_dial_asks_for_no_triton(monkeypatch, preset):
    fake_gpus(monkeypatch)
    monkeypatch.setattr("disagg.run.gpu.stream_lanes.check_triton", lambda: pytest.fail("no copy waits for a dial"))
    answers(small(preset, link=Link(1e9), **ONE, **EAGER))
