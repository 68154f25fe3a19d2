"""Models of known shapes (twin/model_shapes) with random weights, for shapes whose weights are not at hand."""

from typing import Any

import torch

from disagg.twin.model_shapes import RANDOM, RANDOM_CONTEXT, SHAPES

__all__ = ["RANDOM", "SHAPES", "make_random"]


def make_random(
    name: str, dtype: torch.dtype, device: torch.device | str, seed: int = 0, **changes: Any
) -> torch.nn.Module:
    """The shape's module, made where it will run, with the weights that transformers draws for a new model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = SHAPES[name]
    fields: dict[str, Any] = {**sizes, **changes}
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    fields |= dict(max_position_embeddings=RANDOM_CONTEXT, bos_token_id=None, eos_token_id=None, rope_parameters=rope)
    config = AutoConfig.for_model(kind, **fields)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
