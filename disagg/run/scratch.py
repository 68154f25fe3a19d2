"""A staging buffer, kept between copies: fresh large ones cost page faults in host memory."""

import math

import torch


class Scratch:
    """In host memory, pinned where asked for, or on a GPU; grows to the largest shape ever asked for."""

    def __init__(self, dtype: torch.dtype, pinned: bool = False, device: torch.device | None = None) -> None:
        self.pinned, self._flat = pinned, torch.empty(0, dtype=dtype, device=device)

    def view(self, shape: tuple[int, ...]) -> torch.Tensor:
        flat, count = self._flat, math.prod(shape)
        if flat.numel() < count:
            self._flat = torch.empty(count, dtype=flat.dtype, device=flat.device, pin_memory=self.pinned)
        return self._flat[:count].view(shape)
