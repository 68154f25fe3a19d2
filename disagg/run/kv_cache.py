"""Keys and values of every layer in the blocks of one memory: prefill device, host memory or decode device.

A slot is the place of one token: block * block_size + offset. Which request owns a block is known in plan/, not here.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from disagg.plan.errors import EngineError
from disagg.run.gpu.memory import check_room

Ids = Sequence[int] | torch.Tensor  # of blocks
ADVICE = "Lower prefill_blocks, host_blocks or decode_blocks of the Config, or block_size."


@dataclass(frozen=True)
class KVShape:
    """What one token stores: K and V of [kv_heads, head_dim] in each layer."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of K and V of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token in all layers."""
        return self.layers * self.layer_token_bytes


def slots_of(blocks: Ids, start: int, stop: int, block_size: int) -> torch.Tensor:
    """Slots of the positions [start, stop) of a request whose block table is `blocks`; LongTensor on the CPU."""
    table, positions = np.asarray(blocks, np.int64), np.arange(start, stop)  # numpy: a tenth of torch's time
    assert stop <= len(table) * block_size, f"{len(table)} blocks of {block_size} hold no position {stop - 1}"
    return torch.from_numpy(table[positions // block_size] * block_size + positions % block_size)


class KVCache:
    """One tensor `data` [layers, 2, num_blocks, block_size, kv_heads, head_dim] and the copies in and out of it.

    `pinned` asks for page-locked host memory; without a GPU there is none to lock for, and `data.is_pinned()` is False.
    """

    def __init__(
        self, shape: KVShape, num_blocks: int, block_size: int, device: torch.device | str = "cpu", pinned: bool = False
    ) -> None:
        self.shape, self.num_blocks, self.block_size = shape, num_blocks, block_size
        self.device = torch.device(device)
        self.bytes = shape.token_bytes * num_blocks * block_size
        self.data = self._allocate(pinned and self.device.type == "cpu" and torch.cuda.is_available())
        self.device = self.data.device  # "cuda" with its index
        self._flat = self.data.view(shape.layers, 2, num_blocks * block_size, shape.kv_heads, shape.head_dim)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store key and value [T, kv_heads, head_dim] of one layer at slots [T]."""
        self._flat[layer, 0].index_copy_(0, slots, key)
        self._flat[layer, 1].index_copy_(0, slots, value)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer in place, each [num_blocks, block_size, kv_heads, head_dim]."""
        return self.data[layer, 0], self.data[layer, 1]

    def gather(self, layer: int, slots: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Copy K and V of the slots [n] into out [2, n, kv_heads, head_dim], and return it."""
        torch.index_select(self._flat[layer, 0], 0, slots, out=out[0])
        torch.index_select(self._flat[layer, 1], 0, slots, out=out[1])
        return out

    def tokens(self, layer: int, blocks: Ids, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value [num_tokens, kv_heads, head_dim] of one request, in the order of its tokens."""
        slots = slots_of(blocks, 0, num_tokens, self.block_size).to(self.device)
        key, value = self._flat[layer].index_select(1, slots)
        return key, value

    def read_blocks(self, layers: range, blocks: Ids, out: torch.Tensor | None = None) -> torch.Tensor:
        """Whole blocks [n] as a contiguous tensor [len(layers), 2, n, block_size, kv_heads, head_dim]; into `out` where
        it has the right shape."""
        return torch.index_select(self._layers(layers), 2, torch.as_tensor(blocks), out=out)

    def write_blocks(self, layers: range, blocks: Ids, data: torch.Tensor) -> None:
        """Store what `read_blocks` returned, of any cache of this shape, into the blocks [n] of this one."""
        self._layers(layers).index_copy_(2, torch.as_tensor(blocks), data)

    def poison(self, blocks: Ids) -> None:
        """Fill blocks with NaN, so that a test notices a read after they were freed."""
        self.data.index_fill_(2, torch.as_tensor(blocks, dtype=torch.long, device=self.device), float("nan"))

    def _layers(self, layers: range) -> torch.Tensor:
        assert layers.step == 1 and 0 <= layers.start <= layers.stop <= self.shape.layers, f"{layers} of {self.shape}"
        return self.data[layers.start : layers.stop]

    def _allocate(self, pinned: bool) -> torch.Tensor:
        """Zeros, so that every page is mapped now and not during the first steps."""
        shape, where = self.shape, "pinned host memory" if pinned else str(self.device)
        size = (shape.layers, 2, self.num_blocks, self.block_size, shape.kv_heads, shape.head_dim)
        if min(size) < 1:
            raise EngineError(f"a KV cache needs at least one of everything; asked for {size} on {where}")
        held = f"{self.num_blocks} blocks of {self.block_size} tokens, {shape.token_bytes:,} bytes a token"
        check_room(f"the KV cache ({held})", self.device, self.bytes, ADVICE)
        try:
            return torch.zeros(size, dtype=shape.dtype, device=self.device, pin_memory=pinned)
        except (MemoryError, RuntimeError) as error:
            asked, cause = f"{self.bytes:,} bytes asked", str(error).split("\n")[0]
            raise EngineError(f"no room for the KV cache ({held}) on {where}: {asked}. {ADVICE} {cause}") from None
