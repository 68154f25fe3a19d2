"""Known models' shapes with random weights, where no weights are at hand: speed depends on the shape alone.

Sizes are those of the models' published config.json files.
"""

import torch

RANDOM = "random-"  # before a shape's name, in Config.model
CONTEXT = 16_384  # rotary positions are computed, not stored, so this is only a limit

_LLAMA = dict(rms_norm_eps=1e-5, rope_theta=500_000.0, tie_word_embeddings=False)
_QWEN = dict(rms_norm_eps=1e-6, rope_theta=1_000_000.0)

#: Name → kind of config, and its fields.
SHAPES = {
    "llama3-8b": ("llama", dict(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, **_LLAMA)),
    "llama3-1b": ("llama", dict(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, **{**_LLAMA, "tie_word_embeddings": True})),
    "qwen3-8b": ("qwen3", dict(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, **_QWEN)),
    "qwen3-0.6b": ("qwen3", dict(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, **_QWEN)),
}  # fmt: skip


def make_random(name: str, dtype: torch.dtype, device, seed: int = 0, **changes) -> torch.nn.Module:
    """The shape's module, made where it will run, with the weights that transformers draws for a new model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, fields = SHAPES[name]
    fields = {**fields, **changes}
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    config = AutoConfig.for_model(kind, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None,
                                  rope_parameters=rope, **fields)  # fmt: skip
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
