"""CRC-32 of K/V bytes in the order of their tokens, so that a request keeps it wherever its blocks lie.

Where the bytes are on a GPU, run/gpu/device_checksum takes its place.
"""

import zlib
from typing import Any

import torch


def digest(key: torch.Tensor, value: torch.Tensor) -> int:
    """CRC-32 of one layer's keys and values [tokens, kv_heads, head_dim], one after the other."""
    return zlib.crc32(raw(value), zlib.crc32(raw(key)))


def digest_blocks(data: torch.Tensor, tokens: int) -> list[int]:
    """One digest a layer of blocks [layers, 2, n, block_size, kv_heads, head_dim], up to `tokens` tokens."""
    layers = raw(data)
    rows = layers.reshape(len(layers), 2, data.shape[2] * data.shape[3], -1)[:, :, :tokens]
    return [zlib.crc32(value, zlib.crc32(key)) for key, value in rows]


def raw(tensor: torch.Tensor) -> Any:
    """The tensor's bytes as an array of the same shape, the last axis in bytes; numpy, because lanes want few calls."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
