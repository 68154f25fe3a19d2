"""Digests of K/V bytes in the order of their tokens, so that a request keeps them wherever its blocks lie."""

import zlib

import torch


def digest(*tensors: torch.Tensor) -> int:
    """CRC-32 of the tensors' bytes, one after the other."""
    value = 0
    for tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(flat.numpy(), value)
    return value


def digest_blocks(data: torch.Tensor, tokens: int) -> list[int]:
    """One digest a layer of blocks [layers, 2, n, block_size, kv_heads, head_dim], up to `tokens` tokens."""
    rows = data.flatten(2, 3)[:, :, :tokens]
    return [digest(layer[0], layer[1]) for layer in rows]
