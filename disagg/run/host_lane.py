"""A lane between memories of the host: its thread moves the bytes, checks them, and lands each copy at the dial's time.

Notebook: notebooks/00_start_here.ipynb.
"""

import threading
from collections import deque

import torch

from disagg.plan.link import LaneName
from disagg.plan.transfer_scheduler import Copy
from disagg.run.checksum import digest_blocks
from disagg.run.clock import COARSE_NS, now_ns, wait_until
from disagg.run.gpu.device import Scratch
from disagg.run.lane import BaseLane, LaneOwner


class HostLane(BaseLane):
    """Its thread copies and lands; other threads only wake it."""

    def __init__(self, name: LaneName, transfers: LaneOwner) -> None:
        super().__init__(name, transfers)
        self._changed = threading.Condition(transfers.lock)
        self._scratch = Scratch(self._dtype)

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def wake(self) -> None:
        with self.transfers.lock:  # itself: an interrupt leaves a Condition's `with` locked
            self._changed.notify_all()

    drive = stop = wake  # the lane's thread sees to the rest

    # ---- the lane's thread -------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the engine closes. One copy at a time occupies the link; landings follow after its latency."""
        closing = self.transfers.closing
        occupying: Copy | None = None
        landing: deque[Copy] = deque()
        while not closing.is_set():
            now = now_ns()
            if landing and landing[0].landing_ns <= now:
                self.transfers.land(landing.popleft(), now)
                continue
            if occupying is not None and occupying.busy_until_ns <= now:
                occupying = None
            if occupying is None:
                copy = self._next(landing[0].landing_ns if landing else None)
                if copy is None:
                    continue
                if self._copy(copy):
                    occupying = copy
                    landing.append(copy)
                else:
                    self.transfers.drive()  # what it held may let others start
            else:
                wait_until(min(landing[0].landing_ns, occupying.busy_until_ns), closing)
        for copy in landing:
            self.transfers.give_up(copy)

    def _next(self, landing_ns: int | None) -> Copy | None:
        """The next copy; None when it is time for a landing, or to stop. Its last part is waited out exactly."""
        transfers = self.transfers
        with self._changed:
            while (copy := transfers.start_copy(self.name)) is None and not transfers.closing.is_set():
                if landing_ns is not None and landing_ns - now_ns() < 2 * COARSE_NS:
                    break
                self._changed.wait(None if landing_ns is None else (landing_ns - now_ns() - COARSE_NS) / 1e9)
        if copy is None and landing_ns is not None:
            wait_until(landing_ns, transfers.closing)
        return copy

    # ---- one copy ----------------------------------------------------------------------------------------------------

    def _copy(self, copy: Copy) -> bool:
        """Moves the bytes and checks what arrived, within the time that the dial gives; False where it failed."""
        transfers, began = self.transfers, now_ns()
        try:
            flips = transfers.seams.copy(copy)
            data = self._move(copy)
            if flips:
                self._flip(copy, data)
            moved = now_ns()
            wrong = self._wrong_layer(copy, data) if transfers.verify else None
        except Exception as error:
            transfers.raised(copy, error)
            return False
        if wrong is not None:
            transfers.differs(copy, wrong)
            return False
        if not self._link.dialled:
            copy.start_ns, copy.busy_until_ns, copy.landing_ns = began, moved, now_ns()
        return True

    def _move(self, copy: Copy) -> torch.Tensor:
        """From the source's blocks or the ring's slot to the slot or the target's blocks; returns what it read."""
        transfers, layers = self.transfers, range(copy.layer, copy.layer_end)
        place = self._scratch.view(self._shape(copy)) if copy.slot is None else self._ring_view(copy, copy.slot)
        data = place if copy.hop_two else transfers.caches[copy.source].read_blocks(layers, copy.blocks, place)
        if copy.target is not None:
            transfers.caches[copy.target].write_blocks(layers, copy.target_blocks, data)
        return data

    def _flip(self, copy: Copy, data: torch.Tensor) -> None:
        """One bit of what arrived: in the ring's slot, or in the target's first block."""
        there = data
        if copy.target is not None:
            there = self.transfers.caches[copy.target].data[copy.layer :, :, copy.target_blocks[0] :]
        first = there[0, 0, 0, 0, 0].view(torch.uint8)
        first[0] = first[0] ^ 1

    def _wrong_layer(self, copy: Copy, data: torch.Tensor) -> int | None:
        """The first layer whose bytes are not those that left; `data` is what the copy read.

        Where no prefill hook reported them, those are all bytes of the blocks as they leave, or as they were spilled.
        """
        left, tokens = self._known(copy)
        if not left:
            spilled = copy.source.role == "host"
            kept = self.transfers.spilled.pop(copy.request, None) if spilled else None  # parked K/V have none
            left = kept or digest_blocks(data, tokens)
        arrived = data
        if copy.target is not None:
            layers = range(copy.layer, copy.layer_end)
            arrived = self.transfers.caches[copy.target].read_blocks(layers, copy.target_blocks)
        return self._first_difference(copy, left, digest_blocks(arrived, tokens), tokens)
