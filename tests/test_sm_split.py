"""One GPU cut in two by its SMs, under a driver that keeps books; which GPUs reach each other, as `doctor` says it."""

import sys
from types import SimpleNamespace

import pytest
import torch
from engine_tools import check_run, lengths, small, threads, tiny
from fake_driver import FakeDriver

from disagg import Config, Engine
from disagg.cli import doctor
from disagg.plan.errors import ConfigError, EngineError
from disagg.run.decode_worker import DecodeStage
from disagg.run.gpu import peer_access, sm_split
from disagg.run.gpu.device import new_stream
from disagg.run.gpu.machine import machine
from disagg.run.gpu.sm_split import check_sizes, choices, describe, sm_count, split_gpu

GPU = torch.device("cuda", 0)


@pytest.fixture
def install(monkeypatch):
    """Puts a driver in cuda.bindings' place, and streams that know their number in torch's."""

    def put(driver) -> FakeDriver:
        bindings = SimpleNamespace(driver=driver)
        monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=bindings))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        return driver

    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: SimpleNamespace(cuda_stream=number))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return put


def test_decode_gets_what_was_asked_and_prefill_the_rest():
    check_sizes(132, 32)
    assert list(choices(132))[:2] == [8, 16] and choices(132)[-1] == 120  # 128 would leave 4
    check_sizes(132, 120)
    check_sizes(16, 8)
    assert list(choices(46, least=4, step=2))[::19] == [4, 42] and list(choices(40, least=10, step=8)) == [16, 24]


@pytest.mark.parametrize(
    "sms, decode, words",
    [
        (132, 4, "sm_split=4: of this GPU's 132 SMs decode can have 8 to 120 in steps of 8, so that prefill keeps 8 or "
         "more; take 8, or "),
        (132, 30, "sm_split=30: of this GPU's 132 SMs decode can have 8 to 120 in steps of 8, so that prefill keeps 8 "
         "or more; take 32, or "),
        (132, 128, "sm_split=128: of this GPU's 132 SMs decode can have 8 to 120 in steps of 8, so that prefill keeps "
         "8 or more; take 120, or "),
        (14, 8, "sm_split=8: this GPU's 14 SMs make no two parts of 8 or more; "),
    ],
)  # fmt: skip
def test_a_cut_that_cannot_be_is_refused_with_the_numbers(sms, decode, words):
    with pytest.raises(ConfigError) as caught:
        check_sizes(sms, decode)
    assert str(caught.value) == words + sm_split.REMEDY


def test_two_parts_share_no_sm_and_end_after_their_streams(install):
    driver = install(FakeDriver())
    parts = split_gpu(GPU, 32)
    sets = list(driver.open.values())
    assert [len(ids) for ids in sets] == [32, 100] and not sets[0] & sets[1]
    assert (parts["decode"].sms, parts["prefill"].sms) == (32, 100) and driver.log.count("split") == 1
    for part in parts.values():
        part.stream(), part.stream(priority=-1)
    assert len(driver.open) == 6
    for part in [*parts.values(), *parts.values()]:  # a second close does nothing
        part.close()
    assert not driver.open and not sm_split._SMS
    assert driver.log.count("context ends") == 2 and driver.log.count("stream ends") == 4
    ends = [entry for entry in driver.log if entry in ("wait", "stream ends", "context ends")]
    assert ends[:5] == ["wait", "stream ends", "wait", "stream ends", "context ends"]


def test_a_thread_can_ask_for_the_sms_of_its_part(install, monkeypatch):
    install(FakeDriver())
    parts = split_gpu(GPU, 48)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: SimpleNamespace(cuda_stream=77))
    for part, sms in ((parts["decode"], 48), (parts["prefill"], 84), (None, 132)):
        stream = new_stream(GPU, part)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, stream=stream: stream)
        assert sm_count(GPU) == sms
    for part in parts.values():
        part.close()


def test_the_driver_says_how_fine_a_cut_can_be(install):
    install(FakeDriver(sms=46, minSmPartitionSize=4, smCoscheduledAlignment=2))
    sm_split.check_split(GPU, 6)
    words = "possible: sm_split=4 to 42 in steps of 2 for decode, the rest of cuda:0's 46 SMs for prefill"
    assert describe() == words


@pytest.mark.parametrize("call, which", [("split", 1), ("context", 1), ("context", 2), ("describe", 2)])
def test_what_the_driver_refuses_leaves_nothing_behind(install, call, which):
    driver = install(FakeDriver(fail={call: which}))
    with pytest.raises(EngineError, match="CUDA_ERROR_OUT_OF_MEMORY; leave sm_split at None"):
        split_gpu(GPU, 32)
    assert not driver.open


def test_an_old_driver_is_refused(install):
    install(FakeDriver(version=12020))
    with pytest.raises(ConfigError) as caught:
        split_gpu(GPU, 32)
    assert str(caught.value) == (
        "sm_split needs green contexts, which drivers have from CUDA 12.5 on; this driver is of CUDA 12.2. Update it, "
        "or leave sm_split at None: the two workers then share the SMs through streams alone"
    )
    assert describe() == f"not here: {caught.value}"


def test_without_the_bindings_or_a_function_of_the_driver(install, monkeypatch):
    driver = install(FakeDriver())

    def cuGreenCtxCreate(*arguments):
        raise RuntimeError('Function "cuGreenCtxCreate" not found')

    driver.cuGreenCtxCreate = cuGreenCtxCreate
    with pytest.raises(EngineError, match='cuGreenCtxCreate can\'t be called .Function "cuGreenCtxCreate" not found'):
        split_gpu(GPU, 32)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ConfigError, match="`pip install cuda-bindings`, or leave sm_split at None"):
        split_gpu(GPU, 32)


def test_doctor_says_why_not_on_a_cpu(monkeypatch):
    """Also where a driver counts GPUs that CUDA can't use: nothing is asked of them."""
    from disagg.cli import doctor

    def asked(*_):
        raise AssertionError("Torch not compiled with CUDA enabled")

    machine.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", asked)
        patch.setattr("disagg.run.attention.kernel_trial.find_kernel", asked)
        found = dict(doctor.findings())
        assert "none: prefill and decode are two workers on the CPU" in found["GPUs"]
        assert found["SM split"] == "not here: sm_split cuts a GPU in two, and torch finds none"
        assert found["attention"].startswith("PyTorch SDPA over gathered slots runs on cpu")
    machine.cache_clear()


def test_an_engine_refuses_an_impossible_cut_before_it_loads_a_model(install, monkeypatch):
    install(FakeDriver())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = Config.preset("streamed", model="tiny", prefill_device="cuda:0", decode_device="cuda:0", sm_split=200)
    with pytest.raises(ConfigError, match="sm_split=200: of this GPU's 132 SMs decode can have 8 to 120"):
        Engine(config)


@pytest.fixture
def on_a_split_cpu(install, monkeypatch):
    """An engine on CPU workers that takes `sm_split`; their parts come from the fake driver, and time is not real."""
    driver = install(FakeDriver())
    monkeypatch.setattr(Config, "_check_split", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = sm_split.check_split
    monkeypatch.setattr(sm_split, "check_split", lambda device, decode: check(GPU, decode))
    monkeypatch.setattr(sm_split, "split_gpu", lambda device, decode: split_gpu(GPU, decode))
    return driver


def test_parts_end_after_the_threads_and_the_memory(on_a_split_cpu):
    requests, before = lengths((5, 4), (40, 6)), threads()
    engine = Engine(small("streamed", sm_split=32), tiny())
    found = {}
    for role, part in engine.executor.parts.items():
        inner = part.close
        note = lambda role=role: found.update({role: (threads(), dict(engine.executor.caches))})  # noqa: E731
        part.close = lambda note=note, inner=inner: note() or inner()
    run = engine.serve(requests)
    assert "32 SMs for decode and 100 for prefill" in run.machine
    check_run(run, requests)
    assert len(on_a_split_cpu.open) == 2
    engine.close()
    engine.close()
    assert found == {"decode": (before, {}), "prefill": (before, {})} and not on_a_split_cpu.open


def test_a_start_that_fails_leaves_no_part(on_a_split_cpu, monkeypatch):
    def fail(*_):
        raise EngineError("no room for a graph")

    monkeypatch.setattr(DecodeStage, "prepare", fail)
    before = threads()
    with pytest.raises(EngineError, match="no room for a graph"):
        Engine(small("streamed", sm_split=32), tiny())
    assert not on_a_split_cpu.open and threads() == before


@pytest.mark.parametrize(
    ("count", "apart", "words"),
    [
        (0, (), "nothing to reach: it takes two GPUs"),
        (1, (), "nothing to reach: it takes two GPUs"),
        (2, (), "between all 2 GPUs; peer_access=False sends K/V through pinned host memory all the same"),
        (3, ((0, 2), (2, 0)), "not between cuda:0 and cuda:2: K/V go through pinned host memory there"),
        (2, ((1, 0),), "not between cuda:0 and cuda:1: K/V go through pinned host memory there"),
    ],
)
def test_doctor_says_which_gpus_reach_each_other(monkeypatch, count, apart, words):
    machine()  # kept from here on: what it really is
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if not count:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(peer_access, "reaches", lambda a, b: (a.index, b.index) not in apart)
    assert peer_access.describe() == dict(doctor.findings())["peer access"] == words


def test_the_driver_is_asked_once_a_pair_and_not_about_a_gpu_and_itself(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: asked.append((a, b)))
    first, second = torch.device("cuda:6"), torch.device("cuda:7")
    assert (
        peer_access.reaches(first, first)
        and not peer_access.reaches(first, second)
        and not peer_access.reaches(first, second)
    )
    assert asked == [(first, second)]
    peer_access.reaches.cache_clear()
