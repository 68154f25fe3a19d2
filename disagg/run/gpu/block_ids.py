"""Block ids on a GPU, kept from copy to copy: all layers of a request travel between the same blocks.

Sending them anew costs the host about as much as all other launches of a copy together.
"""

from collections import OrderedDict

import torch

KEPT = 1024  # tables of 512 bytes and more; two for each chunk of a pass


class BlockIds:
    """The ids of one lane, whose streams order their making before their use."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    def on(self, device: torch.device, blocks: tuple[int, ...]) -> torch.Tensor:
        """These ids as a LongTensor on the device."""
        key = device, blocks
        ids = self._kept.get(key)
        if ids is None:
            ids = self._kept[key] = on_device(blocks, device)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return ids


def on_device(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """By way of pinned memory, so that the host does not wait for the stream."""
    return torch.tensor(ids, pin_memory=True).to(device, non_blocking=True)
