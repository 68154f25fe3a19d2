"""`tiny`: a random Llama of 0.2 million weights, made in memory from a seed; equal on every machine."""

from typing import Any

import torch

from disagg.twin.model_shapes import TINY, TINY_CONTEXT, TINY_EOS

LAYERS, CONTEXT, VOCAB, EOS = TINY["num_hidden_layers"], TINY_CONTEXT, TINY["vocab_size"], TINY_EOS


def make_tiny_llama(seed: int = 0) -> torch.nn.Module:
    """LlamaForCausalLM with weights large enough that greedy answers wander and near ties are rare."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = dict(TINY)
    config = LlamaConfig(**sizes, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=EOS)
    module = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            if weight.dim() == 2:  # norms keep their ones
                scale = 1.0 if "embed" in name else 2.0 * weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return module
