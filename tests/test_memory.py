"""Too little memory is a sentence: what was asked, what is free, which setting to lower. None is filled here."""

import pytest
import torch

from disagg.plan.errors import EngineError
from disagg.run import decode_graph, memory
from disagg.run.decode_graph import GraphDecodeStage
from disagg.run.kv_cache import KVCache
from disagg.run.memory import room_for
from disagg.run.model import Source, load_model

CPU = torch.device("cpu")
CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB of which 3 MiB is free."
)


def test_it_says_what_was_asked_and_what_was_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 12_345)
    with pytest.raises(EngineError) as caught, room_for("a thing", CPU, "Lower it."):
        raise torch.OutOfMemoryError(CUDA_SAYS)
    assert str(caught.value) == (
        "no room for a thing on cpu: tried to allocate 20.00 MiB, 12,345 bytes were free before. Lower it."
    )
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_what_must_stay_free_is_asked_for_before():
    with pytest.raises(EngineError, match="must stay. Lower it."), room_for("a thing", CPU, "Lower it.", 1 << 60):
        raise AssertionError("nothing may be allocated")


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="^no memory is to blame$"), room_for("a thing", CPU, "Lower it."):
        raise RuntimeError("no memory is to blame")


def test_weights_that_do_not_fit_say_so(monkeypatch):
    def refuse(source):
        raise torch.OutOfMemoryError(CUDA_SAYS)

    monkeypatch.setattr(Source, "module", refuse)
    with pytest.raises(EngineError, match='the weights of tiny on cpu: tried to allocate 20.*dtype="bfloat16"'):
        load_model("tiny")


def test_a_step_that_does_not_fit_names_the_setting(monkeypatch):
    model = load_model("tiny")
    stage = GraphDecodeStage(model, KVCache(model.shape, 8, 16), None, 4, False, None)
    monkeypatch.setattr(
        decode_graph.GraphDecodeStage, "_run", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(EngineError, match="a decode step of 4 rows on cpu: more was asked than there is.*max_batch"):
        stage.prepare(lambda text: None)
