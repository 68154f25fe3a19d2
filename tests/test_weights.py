"""SmolLM2's cache folder without home, leave or room; and what a model does beyond the probe's 12 tokens."""

import errno
import os
import shutil
from collections import namedtuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from benchmarks.robustness import architectures
from benchmarks.robustness.architectures import make_tiny
from disagg.cli import doctor
from disagg.plan.errors import ModelError
from disagg.run.kv_cache import KVCache
from disagg.run.model import weights
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.load_check import within_reach
from disagg.run.model.model import context_limit, load_model


@pytest.fixture
def homeless(monkeypatch):
    """As in a container with an arbitrary user id."""
    for name in ("HOME", "XDG_CACHE_HOME", "DISAGG_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    gguf = tmp_path / weights.GGUF_NAME
    gguf.write_bytes(b"pretend")
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "find_gguf", lambda: gguf)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(weights, "GGUF_SHA256", weights.sha256(gguf))
    return tmp_path / "cache"


def test_without_a_home_the_advice_is_to_set_the_cache_folder_and_all_else_works(homeless, tmp_path):
    with pytest.raises(ModelError, match="no home folder .* DISAGG_CACHE to a folder"):
        load_model("smollm2")
    assert not weights.smollm2_ready()
    load_model(str(make_tiny("llama", tmp_path)))
    assert any("not converted yet" in finding for _, finding in doctor.findings())


def test_too_small_a_disk_is_refused_before_anything_is_written(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")(2**40, 2**40 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(weights, "write_safetensors", lambda *arguments: pytest.fail("nothing may be written"))
    with pytest.raises(ModelError, match="cache .560,000,000 bytes are needed, and 1,000 are free.* DISAGG_CACHE"):
        weights.convert_smollm2()
    assert list(cache.iterdir()) == []


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", ["write", "rename"])
def test_a_disk_that_fills_up_leaves_nothing_that_is_trusted(at, error, cache, monkeypatch):
    def write(gguf, folder, say):
        (folder / "model.safetensors").write_bytes(b"half")
        if at == "write":
            raise error
        (folder / "receipt.json").write_text("{}")

    def rename(path, target):
        raise error

    monkeypatch.setattr(weights, "write_safetensors", write)
    monkeypatch.setattr(type(cache), "rename", rename)
    with pytest.raises(ModelError, match="can't be written in .*cache .*(No space|quota).* DISAGG_CACHE"):
        weights.convert_smollm2()
    assert list(cache.iterdir()) == [] and not weights.smollm2_ready()


def test_a_cache_that_cannot_be_written_is_said(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="can't be written .* DISAGG_CACHE"):
        weights.convert_smollm2()


def test_an_interrupted_conversion_leaves_nothing(cache, monkeypatch):
    def interrupted(gguf, folder, say):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.convert_smollm2()
    assert list(cache.iterdir()) == [] and not weights.smollm2_ready()
    monkeypatch.setattr(weights, "GGUF_SHA256", "another")
    with pytest.raises(ModelError, match="not the pinned"):
        weights.convert_smollm2()


def test_another_process_may_finish_first(cache, monkeypatch):
    def write(gguf, folder, say):
        weights.smollm2_folder().mkdir()
        (weights.smollm2_folder() / "receipt.json").write_text("theirs")

    monkeypatch.setattr(weights, "write_safetensors", write)
    assert (weights.convert_smollm2() / "receipt.json").read_text() == "theirs"


MOE = architectures.GROUPED | dict(num_experts_per_tok=2)
LONGER = {  # architecture → its config, but for the size
    "mistral": architectures.GROUPED,
    "qwen2": architectures.GROUPED | dict(use_sliding_window=True, max_window_layers=1),
    "gemma3_text": architectures.GROUPED | dict(head_dim=16),
    "olmoe": MOE | dict(num_experts=4),
    "phimoe": MOE | dict(num_local_experts=4, head_dim=16),
    "llama4_text": architectures.GROUPED
    | dict(head_dim=16, intermediate_size_mlp=64, num_local_experts=2, pad_token_id=0),
}
NEVER_RIGHT = ("olmoe", "phimoe", "llama4_text")  # their own masks are not what they tell their attention


def size_of(architecture: str) -> str:
    return "attention_chunk_size" if architecture == "llama4_text" else "sliding_window"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    def make(architecture: str, **sizes) -> str:
        with patch.dict(architectures.EXTRA, {architecture: LONGER[architecture] | sizes}):
            return str(architectures.make_tiny(architecture, tmp_path_factory.mktemp(architecture)))

    return make


@torch.inference_mode()
def off_by(model, length: int) -> float:
    """Logits of the last of `length` tokens against the untouched module's, in its standard deviations."""
    ids = torch.randint(0, model.vocab_size, (length,), generator=torch.Generator().manual_seed(length))
    cache = KVCache(model.shape, -(-length // 8), 8)
    batch = PrefillBatch(ids, [Segment(0, length, list(range(cache.num_blocks)))], [0])
    expected = model.reference()(input_ids=ids[None], use_cache=False).logits[0, -1]
    return float((model.prefill(cache, batch)[0] - expected).abs().max() / expected.std())


@given(st.sampled_from(sorted(LONGER)), st.integers(2, 40))
@settings(max_examples=12, deadline=None)
def test_a_window_of_any_size_is_right_beyond_it_or_refused_by_name(folder_of, architecture, size):
    name = size_of(architecture)
    try:
        model = load_model(folder_of(architecture, **{name: size}))
    except ModelError as error:
        assert architecture in NEVER_RIGHT
        assert size <= 4 or f"beyond {name} {size} of config.json" in str(error)
    else:
        assert off_by(model, size + 20) < 1e-3


@pytest.mark.parametrize("architecture", LONGER)
def test_a_window_that_no_context_fills_is_no_reason(folder_of, architecture):
    model = load_model(folder_of(architecture, **{size_of(architecture): 256}))
    assert model.context_limit == 256 and off_by(model, 60) < 1e-3


def test_a_probe_leaves_every_setting_as_it_was(folder_of):
    module = load_model(folder_of("qwen2", sliding_window=30)).module
    with pytest.raises(KeyError), within_reach(module, 256) as begins:
        assert begins == {"sliding_window": 30} and module.config.sliding_window == 4
        raise KeyError
    assert module.config.sliding_window == 30 and module.config.max_window_layers == 1
    assert {layer.self_attn.sliding_window for layer in module.model.layers} == {None, 30}


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("layered", [False, True])
def test_a_scaling_that_switches_at_a_length_ends_the_context_there(kind, layered, folder_of):
    config = load_model("tiny").module.config
    switching = dict(rope_type=kind, original_max_position_embeddings=64)
    rope = dict(full_attention=switching, sliding_attention=dict(rope_type="default")) if layered else switching
    changed = type(config)(**config.to_dict())
    changed.rope_parameters = rope
    assert context_limit(changed) == 64
