"""What begins beyond the probe's 12 tokens is right or refused by name: the untouched module is the judge."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.robustness import architectures
from disagg.plan.errors import ModelError
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.load_check import within_reach
from disagg.run.model.model import context_limit, load_model

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
