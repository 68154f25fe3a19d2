"""Short norms: what they replace, what they leave, and that they give the same numbers."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from disagg.run.model.norms import ShortNorm, shorten_norms


def llama_norm(size: int = 48) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(size, eps=1e-5).requires_grad_(False)
    norm.weight.copy_(torch.linspace(-1, 2, size))
    return norm


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])  # below, about and far above what eps stands for
def test_short_norm_gives_what_the_plain_one_gives(scale):
    parent = nn.Sequential(llama_norm())
    x = scale * torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    expected = parent(x)
    shorten_norms(parent)
    assert isinstance(parent[0], ShortNorm)
    torch.testing.assert_close(parent(x), expected, rtol=1e-5, atol=1e-6)


def test_zeros_give_zeros():
    parent = nn.Sequential(llama_norm())
    shorten_norms(parent)
    assert parent(torch.zeros(1, 1, 48)).abs().max() == 0


def test_norms_that_compute_something_else_stay():
    parent = nn.Sequential(GemmaRMSNorm(48), nn.LayerNorm(48), llama_norm().to(torch.bfloat16))
    other = llama_norm()
    other.forward = lambda x: LlamaRMSNorm.forward(other, x) + 1
    parent.append(other)
    before = list(parent)
    shorten_norms(parent)
    assert all(left is norm for left, norm in zip(parent, before, strict=True))
