"""The decode step of fused layers, on the CPU under a triton of few lines, against torch and transformers."""

from types import SimpleNamespace
from typing import Any

import fake_triton
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from disagg.run import attention, model
from disagg.run.attention import split_decode
from disagg.run.attention.interface import NAME, number_layers
from disagg.run.attention.paged import PagedDecode, PagedKernel
from disagg.run.gpu import decode_graph
from disagg.run.kv_cache import KVCache
from disagg.run.model import fused_decode
from disagg.run.model.fused_decode import EVERY, FusedDecode, Own, Products, Tile
from disagg.run.model.fused_trial import try_step
from disagg.run.model.model import Model
from disagg.run.model.projections import join_projections

EPS = 1e-5
SIZES = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=2048)  # fmt: skip
FITTING = {
    "llama": dict(tie_word_embeddings=False),
    "qwen3": dict(head_dim=32),
    "qwen2": dict(),
    "mistral": dict(sliding_window=None),
}
OTHERS = {
    "granite": dict(residual_multiplier=0.5),
    "gemma": dict(head_dim=16),
    "olmo2": dict(),
    "phi3": dict(pad_token_id=0),
    "cohere": dict(),
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    fake_triton.install(monkeypatch, attention, "kernels")
    fake_triton.install(monkeypatch, model, "decode_kernels")
    monkeypatch.setattr(split_decode, "sm_count", lambda device: 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors of a few numbers: threads would only wait for each other
    torch.manual_seed(4)
    yield
    torch.set_num_threads(threads)


def make(kind: str, dtype=torch.bfloat16, joined: bool = True, **fields) -> Model:
    """A random model of this kind, whose norms and biases are no ones and zeros."""
    module: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **fields})).to(dtype).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() == 1:
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
            else:
                weight.mul_(5.0)
    module.config._attn_implementation = NAME
    number_layers(module)
    if joined:
        join_projections(module)
    source: Any = SimpleNamespace(name=kind, device=torch.device("cpu"), dtype=dtype)
    text: Any = SimpleNamespace(eos_ids=())
    return Model(module, source, text, "sdpa")


@pytest.mark.parametrize("rows", [1, 5, 16, 40])
@pytest.mark.parametrize("tile", [Tile(16, 16, 32, 4, 3), Tile(32, 32, 64, 4, 3)], ids=str)
def test_norm_and_gated_product(rows, tile):
    x, norm, weight = torch.randn(rows, 64), torch.rand(64) + 0.5, torch.randn(192, 64)
    assert torch.allclose(fused_decode.norm_row(x, norm, EPS), F.rms_norm(x, (64,), norm, EPS), atol=1e-5)
    gate, up = F.linear(x, weight).chunk(2, dim=1)
    for own in (False, True):
        assert torch.allclose(fused_decode.gate_up(x, weight, own, tile), F.silu(gate) * up, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 17, 40])
@pytest.mark.parametrize("split", [0, 1, 2, 4])
def test_products_are_added_to_the_stream_again_and_again(rows, split):
    stream, weights = torch.randn(rows, 96), torch.randn(3, 96, 128)
    expected, products = stream.clone(), Products()
    for weight in weights:
        x = torch.randn(rows, 128)
        products.add(stream, x, weight, split > 0, Tile(16, 32, 32, 4, 3, split))
        expected += x @ weight.T
        assert torch.allclose(stream, expected, atol=1e-4)
    assert not any(finished.any() for _, finished in products._scratch.values()), "a count was not set back"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_a_product_of_its_own(split, bias):
    linear, x = torch.nn.Linear(128, 96, bias), torch.randn(17, 128)
    found = Products().give(x, linear, split > 0, Tile(16, 32, 32, 4, 3, split))
    assert torch.allclose(found, linear(x), atol=1e-4)


@pytest.mark.parametrize("kind, steady", [("default", True), ("llama3", True), ("dynamic", False), ("yarn", True)])
def test_angles_are_the_modules_near_and_far(kind, steady):
    rope = dict(rope_type=kind, rope_theta=1e4, factor=4.0)
    if kind == "llama3":
        rope |= dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)
    if kind == "yarn":
        rope |= dict(original_max_position_embeddings=512)
    it = make("llama", rope_parameters=rope)
    fused, rotary = FusedDecode.of(it), it.module.model.rotary_emb
    assert (fused._frequencies is not None) == steady
    places = torch.tensor([0, 5, 2047]).int()
    found = fused_decode.angles(places, rotary.inv_freq, rotary.attention_scaling, torch.float32)
    for ours, theirs in zip(found, rotary(torch.empty(1, 3, 1), places.long()[None]), strict=True):
        assert not steady or torch.allclose(ours, theirs[0], atol=1e-3)
    exact = fused_decode.angles
    with pytest.MonkeyPatch.context() as meanwhile:  # rounding that shows far away only
        meanwhile.setattr(fused_decode, "angles", lambda at, *given: exact(at * 1.001, *given))
        assert FusedDecode.of(it)._frequencies is None


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.03), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("kind", FITTING)
@pytest.mark.parametrize("contexts", [[0], [1, 0, 40, 33], [300] * 17], ids=["first", "mixed", "two_tiles"])
def test_a_step_gives_the_logits_and_the_keys_of_the_module(kind, contexts, dtype, most):
    it = make(kind, dtype, **FITTING[kind])
    rows, width = len(contexts), max(contexts) // 32 + 1
    ours, plain = (KVCache(it.shape, rows * width, 32) for _ in range(2))
    ours.data.normal_()
    plain.data.copy_(ours.data)
    table, lengths = torch.randperm(rows * width).view(rows, width).int(), torch.tensor(contexts).int()
    fused, tokens = FusedDecode.of(it), torch.randint(97, (rows,))
    expected = it.call(PagedDecode(plain, PagedKernel(), table, lengths), tokens, lengths.long()).float()
    for own in (Own(), EVERY):
        found = fused(ours, table, lengths, tokens, own).float()
        assert float((found - expected).norm() / expected.norm()) < most
        assert torch.allclose(ours.data.float(), plain.data.float(), atol=0.05, rtol=0.05)
        assert torch.equal(fused(ours, table, lengths, tokens, own).float(), found), "sums in another order"


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_are_left_to_the_module(kind):
    assert FusedDecode.of(make(kind, **OTHERS[kind])) is None


def test_products_that_are_not_joined_and_half_precision_stay():
    assert FusedDecode.of(make("llama")) is not None
    assert FusedDecode.of(make("llama", joined=False)) is None
    assert FusedDecode.of(make("llama", torch.float16)) is None


def test_a_scale_that_begins_at_far_places_is_left_to_the_module():
    it = make("llama")
    it.config.rope_parameters = {**it.config.rope_parameters, "llama_4_scaling_beta": 0.1}
    assert FusedDecode.of(it) is None


@pytest.mark.parametrize("errors", [[0.01, float("nan")], [float("nan"), 0.01], [0.01, 0.2]])
def test_no_product_may_give_what_is_no_number(monkeypatch, errors):
    left = iter(errors)
    monkeypatch.setattr("disagg.run.model.fused_trial.step_error", lambda *given: next(left))
    assert "off by" in try_step(None, None, None, 32, 1)


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_the_trial_passes_what_is_right_and_names_what_is_not(rows):
    it = make("qwen3", head_dim=32)
    fused = FusedDecode.of(it)
    assert try_step(fused, it, PagedKernel(), 32, rows) is None
    right, layer = fused._layers[1], fused._layers[1]
    for wrong in (
        dict(key_norm=layer.query_norm),
        dict(scale=0.3),
        dict(norm=layer.second_norm),
        dict(o=layer.o * 1.5),
    ):
        fused._layers[1] = right._replace(**wrong)
        assert "off by" in try_step(fused, it, PagedKernel(), 32, rows), wrong
    fused._layers[1] = None
    assert "NoneType" in try_step(fused, it, PagedKernel(), 32, rows)


@pytest.mark.parametrize(
    "times, kept",
    [
        ({None: 9, (): 8, ("qkv",): 9, ("o",): 7, ("o", "gate_up"): 8, ("o", "down"): 6}, ("o", "down")),
        ({None: 5, (): 8, ("qkv",): 9, ("o",): 9, ("gate_up",): 9, ("down",): 4}, ("down",)),
        ({None: 5, (): 6, ("qkv",): 7, ("o",): 7, ("gate_up",): 7, ("down",): 7}, None),
    ],
    ids=str,
)
def test_a_size_keeps_the_fastest_graph(monkeypatch, times, kept):
    it, said = make("llama"), []
    cache = KVCache(it.shape, 8, 32)
    reports: Any = SimpleNamespace(post=None)
    monkeypatch.setattr(decode_graph, "replay_ns", lambda graph, device: times[graph])
    stage = decode_graph.GraphDecodeStage(it, cache, PagedKernel(), 32, True, reports, fused=True)

    def capture(size, pool, fused=None):
        own = None if fused is None else tuple(n for n in Own._fields if getattr(fused.keywords["own"], n))
        return decode_graph.CapturedStep(own, 0, 0)

    stage._capture = capture
    assert stage._fastest(2, None, said.append).graph == kept and not said
    assert stage.fused_sizes == ({} if kept is None else {2: Own(**dict.fromkeys(kept, True))})

    every = Own(**dict.fromkeys(Own._fields, True))
    stage.fused_sizes[32] = every  # a size between powers of two does without a trial of its own
    assert stage._fastest(24, None, said.append).graph == Own._fields and stage.fused_sizes.pop(24) == every
    assert stage._fastest(16, None, said.append).graph == kept
    del stage.fused_sizes[32]
    assert stage._fastest(24, None, said.append).graph == kept

    def too_little(size, pool, fused=None):
        if fused is not None and any(fused.keywords["own"]):
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return capture(size, pool, fused)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(stage, "_capture", too_little)
        assert stage._fastest(2, None, said.append).graph == (() if times[()] < times[None] else None) and not said
    stage._fused._layers[0] = stage._fused._layers[0]._replace(scale=2.0)
    assert stage._fastest(2, None, said.append).graph is None and "a fused step of 2 rows is off by" in said[0]
    assert stage._fused is None
    stage.close()
