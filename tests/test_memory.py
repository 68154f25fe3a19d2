"""Too little memory is a sentence: what was asked, what is free, which setting to lower. None is filled here."""

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers
from engine_tools import fail_nth
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.robustness.architectures import make_tiny
from disagg.plan.errors import EngineError
from disagg.run.gpu import memory
from disagg.run.gpu.decode_graph import GraphDecodeStage
from disagg.run.gpu.memory import room_for
from disagg.run.kv_cache import KVCache
from disagg.run.model import load_check
from disagg.run.model.folder_checks import count_weights
from disagg.run.model.model import load_model
from disagg.run.model.source import Made
from disagg.run.reports import Reports

CPU = torch.device("cpu")
HOST_SAYS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"
CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB of which 3 MiB is free."
)


def test_it_says_what_was_asked_and_what_was_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 12_345)
    with pytest.raises(EngineError) as caught, room_for("a thing", CPU, "Lower it."):
        raise torch.OutOfMemoryError(CUDA_SAYS)
    words = "no room for a thing on cpu: tried to allocate 20.00 MiB, 12,345 bytes were free before. Lower it."
    assert str(caught.value) == words
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_what_must_stay_free_is_asked_for_before():
    with pytest.raises(EngineError, match="must stay. Lower it."), room_for("a thing", CPU, "Lower it.", 1 << 60):
        raise AssertionError("nothing may be allocated")


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="^no memory is to blame$"), room_for("a thing", CPU, "Lower it."):
        raise RuntimeError("no memory is to blame")


REFUSALS = {
    "weights": (Made, "module", torch.OutOfMemoryError(CUDA_SAYS), 'tried to allocate 20.*dtype="bfloat16"'),
    "reference": (load_check, "reference_logits", RuntimeError(HOST_SAYS), "tried to allocate 64 bytes"),
    "probe": (load_check, "paged_logits", RuntimeError(HOST_SAYS), "tried to allocate 64 bytes"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_load_without_memory_is_no_fault_of_the_model(what, monkeypatch):
    owner, name, error, words = REFUSALS[what]
    fail_nth(monkeypatch, owner, name, 1, error)
    with pytest.raises(EngineError, match=f"no room for the weights of tiny on cpu: {words}"):
        load_model("tiny")


def test_a_step_that_does_not_fit_names_the_setting(monkeypatch):
    model = load_model("tiny")
    reports = Reports(lambda event: None, None, None, None)
    stage = GraphDecodeStage(model, KVCache(model.shape, 8, 16), None, 4, False, reports)
    fail_nth(monkeypatch, GraphDecodeStage, "_run", 1, torch.OutOfMemoryError())
    with pytest.raises(EngineError, match="a decode step of 4 rows on cpu: more was asked than there is.*max_batch"):
        stage.prepare(lambda text: None)


def test_an_allocator_of_the_host_that_refuses_is_a_sentence_too():
    match = "tried to allocate 99999999999999999 bytes, [0-9,]+ bytes were free before"
    with pytest.raises(EngineError, match=match), room_for("a thing", CPU, "Lower it."):
        torch.empty(99999999999999999, dtype=torch.uint8)


def test_weights_that_cannot_fit_are_refused_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "free_bytes", lambda device: memory.HOST_RESERVE_BYTES + 10_000)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", lambda *a, **b: pytest.fail("not to be read"))
    folder = make_tiny("llama", tmp_path)
    asked = {"random-llama3-8b": "16,060,522,496", str(folder): f"{2 * count_weights(folder):,}"}
    for name, nbytes in asked.items():
        with pytest.raises(EngineError, match=f"the weights of .* on cpu: {nbytes} bytes asked, 134,227,728 are free"):
            load_model(name, dtype="bfloat16")


LIMITS = st.one_of(st.just("max"), st.integers(0, 2**40))


@st.composite
def groups(draw):
    """(limits, bytes in use, of them files in memory) of each group, the innermost last."""
    rows = draw(st.lists(st.tuples(LIMITS, LIMITS, st.integers(0, 2**40), st.integers(0, 2**20)), max_size=4))
    return [(limits, used + cache, cache) for *limits, used, cache in rows]


def written(place: Path, version: int, rows) -> int:
    """Writes the files of nested groups as the kernel shows them; what the least of them still lets one take."""
    files, root = (memory.V1, place / "memory") if version == 1 else (memory.V2, place)
    shutil.rmtree(place, ignore_errors=True)
    root.mkdir(parents=True)
    free, group = [2**41], root
    for limits, used, cache in rows:
        group = group / "inner"
        group.mkdir()
        for name, limit in zip(files.limits, limits, strict=False):
            unlimited = version == 1 and limit == "max"
            (group / name).write_text(f"{2**63 - 4096 if unlimited else limit}\n")
            free += [] if limit == "max" else [max(0, limit - used + cache)]
        (group / files.usage).write_text(f"{used}\n")
        inactive, active = files.cache
        (group / "memory.stat").write_text(f"cache 5\n{inactive} {cache // 2}\n{active} {cache - cache // 2}\nrss 7\n")
    path = "/" + "/".join(["inner"] * len(rows))
    (place / "self").mkdir()
    lines = [f"4:cpu,memory:{path}", "1:cpu:/", "0::/"] if version == 1 else [f"0::{path}"]
    (place / "self" / "cgroup").write_text("\n".join(lines))
    (place / "meminfo").write_text(f"MemTotal: 5 kB\nMemAvailable:  {2**31} kB\nHugePages_Total: 0\n")
    return min(free)


@given(st.sampled_from([1, 2]), groups())
@settings(max_examples=60, deadline=None)
def test_what_is_free_is_the_least_of_machine_and_groups(tmp_path_factory, version, rows):
    place = tmp_path_factory.getbasetemp() / "groups"
    expected = written(place, version, rows)
    with patch.multiple(memory, PROC=place, GROUPS=place):
        assert memory.free_bytes(CPU) == expected


def test_a_group_that_a_container_does_not_see_leaves_the_one_it_sees(tmp_path, monkeypatch):
    """Its path is the host's, its files stand at the root of the mount."""
    written(tmp_path, 2, [])
    (tmp_path / "self" / "cgroup").write_text("0::/kubepods/pod7/abc\n")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1200\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.free_bytes(CPU) == 3800


def test_a_machine_that_says_nothing_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.free_bytes(CPU) is None


def test_pools_leave_something_on_the_host(monkeypatch):
    shape = load_model("tiny").shape
    monkeypatch.setattr("disagg.run.gpu.memory.free_bytes", lambda device: memory.HOST_RESERVE_BYTES + 1000)
    with pytest.raises(EngineError, match="134,218,728 are free and 134,217,728 must stay. Lower prefill_blocks"):
        KVCache(shape, 2, 16)
