"""A lane between memories of the host: its thread moves the bytes, checks them, and lands each copy when the dial says.

Notebook: notebooks/00_start_here.ipynb.
"""

import threading
from collections import deque

import torch

from disagg.plan.transfer_scheduler import ActiveCopy, TransferProgress
from disagg.run.checksum import digest_blocks
from disagg.run.clock import COARSE_NS, now_ns, wait_until
from disagg.run.device import Scratch


class HostLane:
    """Serves one lane of `transfers`, which decide what goes next and hear how each copy ended."""

    def __init__(self, name: str, transfers) -> None:
        self.name, self.transfers = name, transfers
        self._changed = threading.Condition(transfers.lock)
        self._scratch = Scratch(transfers.shape.dtype)

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may start now."""
        with self.transfers.lock:  # itself: an interrupt leaves a Condition's `with` locked
            self._changed.notify_all()

    drive = stop = wake  # the lane's thread sees to the rest

    # ---- the lane's thread -------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the engine closes. One copy at a time occupies the wire; landings follow after its latency."""
        closing = self.transfers.closing
        occupying: ActiveCopy | None = None
        flying: deque[ActiveCopy] = deque()
        while not closing.is_set():
            now = now_ns()
            if flying and flying[0].landing_ns <= now:
                self.transfers.land(flying.popleft(), now)
                continue
            if occupying is not None and occupying.busy_until_ns <= now:
                occupying = None
            if occupying is None:
                flight = self._next(flying[0].landing_ns if flying else None)
                if flight is None:
                    continue
                if self._copy(flight):
                    occupying = flight
                    flying.append(flight)
                else:
                    self.transfers.drive()  # what it held may let others start
            else:
                wait_until(min(flying[0].landing_ns, occupying.busy_until_ns), closing)
        for flight in flying:
            self.transfers.give_up(flight)

    def _next(self, landing_ns: int | None) -> ActiveCopy | None:
        """The next copy; None when it is time for a landing, or to stop. Its last part is waited out exactly."""
        transfers = self.transfers
        with self._changed:
            while (flight := transfers.start_copy(self.name)) is None and not transfers.closing.is_set():
                if landing_ns is not None and landing_ns - now_ns() < 2 * COARSE_NS:
                    break
                self._changed.wait(None if landing_ns is None else (landing_ns - now_ns() - COARSE_NS) / 1e9)
        if flight is None and landing_ns is not None:
            wait_until(landing_ns, transfers.closing)
        return flight

    # ---- one copy ----------------------------------------------------------------------------------------------------

    def _copy(self, flight: ActiveCopy) -> bool:
        """Moves the bytes and checks what arrived, within the time that the dial gives; False where it failed."""
        transfers, began = self.transfers, now_ns()
        try:
            flips = transfers.seams.copy(flight)
            data = self._move(flight)
            if flips:
                self._flip(flight, data)
            moved = now_ns()
            wrong = self._wrong_layer(flight, data) if transfers.verify else None
        except Exception as error:
            transfers.raised(flight, error)
            return False
        if wrong is not None:
            transfers.differs(flight, wrong)
            return False
        if not transfers.traffic.lanes[self.name].wire.link.dialled:
            flight.start_ns, flight.busy_until_ns, flight.landing_ns = began, moved, now_ns()
        return True

    def _move(self, flight: ActiveCopy) -> torch.Tensor:
        """From the source's blocks or the ring's slot to the slot or the target's blocks; returns what it read."""
        piece, transfers = flight.piece, self.transfers
        layers = range(piece.layer, piece.layer_end)
        if flight.hop_two:
            data = transfers.ring_view(flight)
        else:
            out = transfers.ring_view(flight) if flight.hop_one else self._scratch.view(transfers.bytes_of(piece))
            data = transfers.caches[piece.source].fetch_blocks(layers, piece.blocks, out)
        if not flight.hop_one:
            transfers.caches[flight.target].store_blocks(layers, flight.target_blocks, data)
        return data

    def _flip(self, flight: ActiveCopy, data: torch.Tensor) -> None:
        """One bit of what arrived: in the ring's slot, or in the target's first block."""
        there = data
        if not flight.hop_one:
            there = self.transfers.caches[flight.target].data[flight.piece.layer :, :, flight.target_blocks[0] :]
        first = there[0, 0, 0, 0, 0].view(torch.uint8)
        first[0] = first[0] ^ 1

    def _wrong_layer(self, flight: ActiveCopy, data: torch.Tensor) -> int | None:
        """The first layer whose bytes are not those that left; `data` is what the copy read."""
        piece, transfers = flight.piece, self.transfers
        journey = transfers.traffic.journeys[piece.transfer]
        layers = range(piece.layer, piece.layer_end)
        if (piece.layer, piece.block) not in journey.digests:
            self._note_departure(flight, journey, data)
        arrived = data
        if not flight.hop_one:
            arrived = transfers.caches[flight.target].fetch_blocks(layers, flight.target_blocks)
        tokens = journey.digests[piece.layer, piece.block][1]
        for layer, found in zip(layers, digest_blocks(arrived, tokens), strict=True):
            if found != journey.digests[layer, piece.block][0]:
                return layer
        return None

    def _note_departure(self, flight: ActiveCopy, journey: TransferProgress, data: torch.Tensor) -> None:
        """K/V that no prefill hook reported: all bytes of the blocks as they leave, or as they were spilled."""
        piece, tokens = flight.piece, data.shape[2] * data.shape[3]
        fetching = piece.source.role == "host"
        digests = self.transfers.take_spilled(piece.request) if fetching else digest_blocks(data, tokens)
        for layer, left in zip(range(piece.layer, piece.layer_end), digests, strict=True):
            journey.digests[layer, piece.block] = (left, tokens)
        if flight.lane.startswith("spill"):
            self.transfers.keep_spilled(journey, digests)
