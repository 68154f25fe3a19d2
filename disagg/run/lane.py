"""What every lane shares: the interface by which it serves `transfers`, and the check of what a copy brought.

A lane has one thread of its own, in `serve`. The transfers' scheduler decides what a lane copies next.
"""

import threading
from typing import Protocol

import torch

from disagg.monitor.seams import Seams
from disagg.plan.commands import Worker
from disagg.plan.link import LaneName, LaneRole, Link
from disagg.plan.transfer_scheduler import Copy, TransferScheduler
from disagg.run.gpu.device import Scratch
from disagg.run.kv_cache import KVCache


class LaneOwner(Protocol):
    """What lanes use of `Transfers`, from their own threads and from those that drive them."""

    scheduler: TransferScheduler
    caches: dict[Worker, KVCache]
    ring: list[Scratch]
    lock: threading.RLock
    closing: threading.Event
    verify: bool
    spilled: dict[int, list]
    seams: Seams

    def drive(self) -> None: ...  # after a change of the scheduler's state: on all lanes, what may start now does
    def start_copy(self, name: LaneName) -> Copy | None: ...
    def land(self, copy: Copy, at_ns: int) -> None: ...  # a copy ends in one of these four ways
    def raised(self, copy: Copy, error: Exception) -> None: ...
    def differs(self, copy: Copy, layer: int) -> None: ...
    def give_up(self, copy: Copy) -> None: ...


class BaseLane:
    """One lane of `transfers`; `drive`, `wake` and `stop` are for any thread, `serve` is the lane's own."""

    def __init__(self, name: LaneName, transfers: LaneOwner) -> None:
        self.name, self.transfers = name, transfers
        cache = next(iter(transfers.caches.values()))  # not kept: its memory goes when the engine lets go of it
        self._dtype, self._block = cache.shape.dtype, tuple(cache.data.shape[3:])  # [block_size, kv_heads, head_dim]

    @property
    def _link(self) -> Link:
        return self.transfers.scheduler.lanes[self.name].clock.link

    def _shape(self, copy: Copy) -> tuple[int, ...]:
        """Of a copy's bytes: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
        return (copy.layer_end - copy.layer, 2, len(copy.blocks), *self._block)

    def _ring_view(self, copy: Copy, slot: int) -> torch.Tensor:
        """The slot's buffer in the shape of the copy; a larger one than ever before enlarges it."""
        return self.transfers.ring[slot].view(self._shape(copy))

    def _known(self, copy: Copy) -> tuple[list, int]:
        """The checksums of what left, one a layer, where they are known; and how many tokens they cover."""
        digests = self.transfers.scheduler.progress[copy.transfer].digests
        if (copy.layer, copy.block) not in digests:
            return [], len(copy.blocks) * self._block[0]
        found = [digests[layer, copy.block] for layer in range(copy.layer, copy.layer_end)]
        return [checksum for checksum, _ in found], found[0][1]

    def _first_difference(self, copy: Copy, left: list, arrived: list, tokens: int) -> int | None:
        """Keeps the checksums of what left; the first layer whose bytes arrived as others, or None."""
        layers = range(copy.layer, copy.layer_end)
        progress = self.transfers.scheduler.progress[copy.transfer]
        known = {(layer, copy.block): (checksum, tokens) for layer, checksum in zip(layers, left, strict=True)}
        progress.digests.update(known)
        if copy.lane.role is LaneRole.SPILL:
            with self.transfers.lock:
                if not progress.aborted:  # else its request may have ended, and its checksums have been dropped
                    self.transfers.spilled[copy.request] = left
        return next((layer for layer, a, b in zip(layers, left, arrived, strict=True) if a != b), None)
