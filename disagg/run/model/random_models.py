"""Models of known shapes (twin/model_shapes) with random weights: `tiny`, and shapes whose weights are not at hand."""

from typing import Any

import torch

from disagg.twin.model_shapes import RANDOM, RANDOM_CONTEXT, SHAPES, TINY, TINY_CONTEXT, TINY_EOS

__all__ = ["RANDOM", "SHAPES", "make_random", "make_tiny_llama"]


def make_random(name: str, dtype: torch.dtype, device: torch.device | str) -> torch.nn.Module:
    """The shape's module, made where it will run, with the weights that transformers draws for a new model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = SHAPES[name]
    fields: dict[str, Any] = dict(sizes)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    fields |= dict(max_position_embeddings=RANDOM_CONTEXT, bos_token_id=None, eos_token_id=None, rope_parameters=rope)
    config = AutoConfig.for_model(kind, **fields)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def make_tiny_llama() -> torch.nn.Module:
    """A Llama of 0.2 million weights, equal on every machine; so large that greedy answers wander and ties are rare."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = dict(TINY)
    config = LlamaConfig(**sizes, max_position_embeddings=TINY_CONTEXT, bos_token_id=None, eos_token_id=TINY_EOS)
    module = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            if weight.dim() == 2:  # norms keep their ones
                scale = 1.0 if "embed" in name else 2.0 * weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return module
