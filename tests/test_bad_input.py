"""Bad input gets the field, the value and the range in words; nothing is started, nothing is lost."""

import math
import subprocess
import sys

import numpy as np
import pytest
from engine_tools import check_greedy, held, lengths, opened, prompt_of, small, threads, tiny

from disagg import Config, Engine, Link, Request, simulate
from disagg.plan.errors import ConfigError, DisaggError, EngineError, ModelError, RequestError
from disagg.run.machine.devices import check_devices
from disagg.show import panel, watch
from disagg.twin.model_shapes import TINY
from disagg.twin.model_shapes import TINY_CONTEXT as CONTEXT

VOCAB = TINY["vocab_size"]


@pytest.fixture(autouse=True)
def nothing_is_started():
    yield
    assert threads() == []


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, (DisaggError, ValueError))


# ---- Config ----------------------------------------------------------------------------------------------------------


def test_more_threads_than_cores_are_refused_before_one_starts(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    for count in (5, 600):
        words = f"threads={count}: this machine has 4 cores, .*; take 4 or fewer"
        refused(ConfigError, words, lambda count=count: Engine(small(threads=count), tiny()))
    assert asked == []
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    check_devices(Config(threads=2))
    refused(ConfigError, "has 1 cores", lambda: check_devices(Config(threads=3)))


@pytest.mark.parametrize(
    "bins", [64, "64", None, (0,), (64, 64), (128, 64), (64.0,), (True,), ("64",), (-1, 5)], ids=repr
)
def test_bins_rise(bins):
    refused(ConfigError, "bins must", lambda: Config(bins=bins))


def test_pairs_of_devices_that_cannot_work():
    refused(ConfigError, "impossible pair", lambda: Config(prefill_device="cuda:0"))
    refused(ConfigError, "impossible pair", lambda: Config(decode_device="cuda"))
    refused(ConfigError, "set both alike",
            lambda: Config.preset("colocated", prefill_device="cuda:0", decode_device="cuda:1"))  # fmt: skip


@pytest.mark.parametrize("preset", ["baseline", "split"])
def test_a_gpu_that_is_not_there(preset):
    config = Config.preset(preset, model="tiny", prefill_device="cuda:77", decode_device="cuda:77")
    words = "prefill_device='cuda:77': this machine has .* CUDA devices; take \"cpu\""
    refused(ConfigError, words, lambda: Engine(config))


@pytest.mark.parametrize(
    "link, match",
    [
        (1e9, "faster than the emulation holds on a CPU"),
        ("nvlink", "faster than the emulation holds on a CPU"),
        (Link(26e9), "faster than the emulation holds on a CPU"),
        ((None, "25gbe"), "faster than the emulation holds on a CPU"),
        ("wify", "link 'wify' is unknown; known: nvlink"),
        ("", "is unknown; known"),
        (0, "bandwidth must be bytes a second"),
        (-5.0, "bandwidth must be bytes a second"),
        (math.nan, "bandwidth must be bytes a second"),
        (1e-300, "bandwidth must be bytes a second"),
        (True, "link must be a Link"),
        ({}, "link must be a Link"),
        ((None,), "a pair for the two hops"),
        ((None, None, None), "a pair for the two hops"),
        ((), "a pair for the two hops"),
    ],
    ids=repr,
)
def test_links_that_cannot_be(link, match):
    refused(ConfigError, match, lambda: Config(link=link))


@pytest.mark.parametrize("field", ["latency_s", "fixed_s"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, 1e300, "1", None, True], ids=repr)
def test_times_of_a_link(field, value):
    refused(ConfigError, f"link {field} must be seconds", lambda: Link(1e6, **{field: value}))


@pytest.mark.parametrize("bandwidth", ["fast", None, True, [1], math.nan, 0], ids=repr)
def test_bandwidths_of_a_link(bandwidth):
    refused(ConfigError, "bandwidth must be bytes a second", lambda: Link(bandwidth))


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf, "1", True], ids=repr)
def test_ratios_of_a_link(ratio):
    refused(ConfigError, "Link.ratio takes c/x above 0", lambda: Link.ratio(ratio))


def test_a_ratio_faster_than_the_emulation_holds_is_refused_with_advice():
    """Once c is known. Nothing had been started yet."""
    refused(ConfigError, "faster than the emulation holds", lambda: Engine(small(link=Link.ratio(1e9)), tiny()))
    with opened(small(link=Link.ratio(0.5))) as engine:
        refused(ConfigError, "faster than the emulation holds", lambda: engine.retune(link=Link.ratio(1e9)))
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)


def test_numpy_numbers_are_numbers():
    config = small(max_batch=np.int64(4), decode_blocks=np.int32(32), watchdog_s=np.float64(60), bins=(np.int16(64),))
    assert config.max_batch == 4 and type(config.max_batch) is int and type(config.bins[0]) is int
    refused(ConfigError, "max_batch must be a whole number", lambda: small(max_batch=np.float64(4)))
    refused(ConfigError, "max_batch must be a whole number", lambda: small(max_batch=np.bool_(True)))
    requests = [
        Request(np.array(prompt_of(20)), np.int64(5)),
        Request([np.int64(token) for token in prompt_of(20)], 5),
        Request(tuple(prompt_of(20)), 5, seed=np.int64(3), temperature=np.float32(0)),
    ]
    with opened(config) as engine:
        for request, result in zip(requests, engine.serve(requests).results, strict=True):
            check_greedy(prompt_of(20), result, 5)
            assert all(type(token) is int for token in request.prompt)


@pytest.mark.parametrize("model", ["no/such/folder", "tiny2", ""])
def test_a_model_that_is_not_there(model):
    what = f"there is no folder '{model}'" if model else "no config.json in this folder"
    refused(ModelError, f"{what}; a model is 'smollm2'", lambda: Engine(Config(model=model)))


@pytest.mark.parametrize("thing", ["dynamic", None, {"model": "tiny"}])
def test_an_engine_takes_a_config(thing):
    refused(ConfigError, "Engine takes a Config, as in .*; got ", lambda: Engine(thing))


@pytest.mark.parametrize("model", [None, 3, True])
def test_a_model_is_named_by_text(model):
    refused(ConfigError, "model must be", lambda: Config(model=model))


def test_pools_larger_than_memory():
    refused(EngineError, r"bytes asked, .* Lower prefill_blocks", lambda: Engine(small(decode_blocks=10**7), tiny()))


# ---- Request ---------------------------------------------------------------------------------------------------------


FOREIGN = {
    "id": (dict(prompt=[5, VOCAB]), f"token id {VOCAB} is not in tiny's vocabulary of {VOCAB}"),
    "negative": (dict(prompt=[-1]), "token id -1 is not in"),
    "huge": (dict(prompt=[2**80]), "is not in tiny's vocabulary"),
    "forced": (dict(prompt=[1], force_ids=[VOCAB]), f"token id {VOCAB} is not in"),
    "long prompt": (dict(prompt=[1] * (CONTEXT + 1)), f"exceed tiny's context of {CONTEXT}"),
    "one too many": (dict(prompt=[1] * (CONTEXT - 4), max_new_tokens=6), f"exceed tiny's context of {CONTEXT}"),
    "long answer": (dict(prompt=[1], max_new_tokens=10**12), "exceed tiny's context"),
    "long force": (dict(prompt=[1], force_ids=[1] * (CONTEXT + 1)), "exceed tiny's context"),
    "pool": (dict(prompt=[1] * 1000, max_new_tokens=25), "need 65 blocks of 16, but prefill 0 has 64; shorten"),
    "surrogate": (dict(prompt="a\ud800b"), "prompt is no valid text"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_can_never_be_served_is_refused_at_submit(case):
    """And the others of the same call are not started either; those before it go on."""
    fields, match = FOREIGN[case]
    config = small(prefill_blocks=256, decode_blocks=256) if case != "pool" else small()
    with opened(config) as engine:
        good = Request(prompt_of(20), 30, ignore_eos=True)
        handle = engine.submit(good)
        refused(RequestError, match, lambda: engine.submit(Request(**fields)))
        refused(RequestError, match, lambda: engine.serve([good, Request(**fields), good]))
        check_greedy(good.prompt, handle.result(), 30, ignore_eos=True)
        engine.watch.until_idle()
        assert engine.submit(good).result().request == 1, "the refused ones took no number"


@pytest.mark.parametrize("new", [1, 2, 3])
def test_the_longest_context_is_served(new):
    """The last token is never fed back, so it takes no place."""
    request = Request([1] * (CONTEXT - new + 1), new, ignore_eos=True)
    with opened(small(prefill_blocks=129, decode_blocks=129)) as engine:
        check_greedy(request.prompt, engine.serve([request]).results[0], new, ignore_eos=True)


@pytest.mark.parametrize("thing", [None, "text", 5, [Request("a")]])
def test_what_is_no_request(thing):
    with opened(small()) as engine:
        refused(RequestError, "a Request", lambda: engine.submit(thing))
        refused(RequestError, "a Request", lambda: engine.serve([Request("a"), thing]))
        assert held(engine) == {}


@pytest.mark.parametrize("thing", [Request([1]), None, 5])
def test_requests_come_in_a_list(thing):
    words = f"requests come in a list, as in .*; got a {type(thing).__name__}"
    refused(RequestError, words, lambda: simulate(Config(model="tiny"), thing))
    with opened(small()) as engine:
        refused(RequestError, words, lambda: engine.serve(thing))
        refused(RequestError, words, lambda: panel(engine, thing))
        if thing is not None:  # watch without requests watches what is open
            refused(RequestError, words, lambda: watch(engine, thing))


# ---- an engine that runs ---------------------------------------------------------------------------------------------


BAD_CHANGES = {
    "a pool that grows": (dict(decode_blocks=65), "decode_blocks can't grow beyond the 64"),
    "a host pool out of nothing": (dict(host_blocks=4), "host_blocks can't grow beyond the 0"),
    "a wrong type": (dict(max_batch="8"), "max_batch must be a whole number"),
    "an unknown name": (dict(polcy="fcfs"), "field 'polcy' is unknown; nearest: 'policy'"),
    "a half block": (dict(chunk_tokens=40), "must be a multiple of block_size"),
    "another route": (dict(route="staged"), "route can't change while the engine runs"),
    "other blocks": (dict(block_size=8), "block_size can't change while the engine runs"),
    "more workers": (dict(decode_workers=2), "decode_workers can't change while the engine runs"),
    "other memory": (dict(pinned=False), "pinned=False: between CPU cores"),
    "a wait where nothing travels": (dict(overlap=0), "overlap must be True or False; got 0"),
    "no checksums": (dict(verify_kv=False), "verify_kv can't change while the engine runs"),
    "not live": (dict(ring_slots=2), "ring_slots can't change while the engine runs; those that can: link,"),
    "one good, one not": (dict(max_batch=4, threads=3), "threads can't change"),
}


@pytest.mark.parametrize("case", BAD_CHANGES)
def test_a_change_that_cannot_be_is_refused_and_the_engine_goes_on(case):
    changes, match = BAD_CHANGES[case]
    with opened(small()) as engine:
        old = engine.config
        refused(ConfigError, match, lambda: engine.retune(**changes))
        assert engine.config == old == engine.controller.state.config
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)


def test_a_pool_set_back_to_none_is_what_it_was_at_the_start():
    with opened(small()) as engine:
        engine.retune(decode_blocks=4)
        engine.retune(decode_blocks=None, prefill_blocks=None)
        assert (engine.config.decode_blocks, engine.config.prefill_blocks) == (64, 64)
        check_greedy(prompt_of(90), engine.serve(lengths((90, 5))).results[0], 5)


def test_what_no_longer_fits_after_a_change_fails_in_words():
    with opened(small()) as engine:
        handle = engine.submit(Request(prompt_of(40), 200, ignore_eos=True))
        engine.watch.until(lambda state: 0 in state.records and state.records[0].generated)
        engine.retune(decode_blocks=8)
        result = handle.result()
        assert result.finish_reason == "failed" and "need 15 blocks of 16, but decode 0 has 8" in result.error
        refused(RequestError, "need 15 blocks of 16", lambda: engine.submit(Request(prompt_of(40), 200)))
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)


def test_a_request_that_was_checked_before_the_pool_shrank_fails_in_words():
    """It must not wait for ever behind a gate."""
    with opened(small()) as engine:
        engine.controller.refusal = lambda job, ask=engine.controller.refusal: (
            ask(job) if engine.config.decode_blocks == 8 else engine.retune(decode_blocks=8)
        )
        result = engine.serve([Request(prompt_of(40), 200)]).results[0]
        assert result.finish_reason == "failed" and "need 15 blocks of 16, but decode 0 has 8" in result.error


@pytest.mark.parametrize("line", ["from disagg import Engine", "from disagg.show import panel"])
def test_a_missing_package_is_an_error_with_advice(line):
    """In an interpreter in which ipywidgets and torch can't be found."""
    code = f"import sys; sys.modules.update(torch=None, ipywidgets=None)\n{line}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert "PackageError: the package " in done.stderr and "`make setup`" in done.stderr
    assert "torch" in done.stderr or "ipywidgets" in done.stderr
