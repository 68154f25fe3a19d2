"""Models of known shapes (plan/shapes) with random weights, where no weights are at hand."""

import torch

from disagg.twin.model_shapes import RANDOM, RANDOM_CONTEXT, SHAPES

__all__ = ["RANDOM", "SHAPES", "make_random"]


def make_random(name: str, dtype: torch.dtype, device, seed: int = 0, **changes) -> torch.nn.Module:
    """The shape's module, made where it will run, with the weights that transformers draws for a new model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, fields = SHAPES[name]
    fields = {**fields, **changes}
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    config = AutoConfig.for_model(kind, max_position_embeddings=RANDOM_CONTEXT, bos_token_id=None, eos_token_id=None,
                                  rope_parameters=rope, **fields)  # fmt: skip
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
