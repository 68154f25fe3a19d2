"""Checksums of K/V on a GPU: sums modulo 2^64 over the words of keys and values, plain and weighted by place."""

import torch

WORDS = (torch.int32, torch.int16, torch.uint8)  # the widest that divides a head


def checksum(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Both sums [2] int64 of one layer's keys and values [tokens, kv_heads, head_dim], on their device."""
    return _sums(torch.stack([key, value])[None])[0]


def checksum_blocks(data: torch.Tensor, tokens: int) -> torch.Tensor:
    """Both sums a layer, [layers, 2], of blocks [layers, 2, n, block_size, kv_heads, head_dim], up to `tokens`."""
    return _sums(data.flatten(2, 3)[:, :, :tokens])


def _sums(data: torch.Tensor) -> torch.Tensor:
    """data [layers, 2, tokens, kv_heads, head_dim] -> [layers, 2]; int64 wraps around, alike in every order."""
    head = data.shape[-1] * data.dtype.itemsize
    word = next(word for word in WORDS if head % word.itemsize == 0)
    words = data.contiguous().view(word).flatten(1)
    places = torch.arange(1, words.shape[1] + 1, device=data.device)
    return torch.stack([words.sum(1, dtype=torch.int64), (words * places).sum(1)], dim=1)
