"""A lane with a GPU at one end: whoever makes a copy possible enqueues it, and the lane's thread lands what has ended.

A prefill worker enqueues the layers that it hands off, and the thread that sees the end of hop one enqueues hop two. A
thread that did nothing else would have to be woken, and to be let into an interpreter that others keep busy: beside a
prefill pass that took ten times as long as the launch itself, and held up the pass as well.
Nothing of a transfer is reported closed before the host has seen the end of its last copy on the streams.
"""

import queue
import threading
from collections import deque

import torch

from disagg.plan.traffic import Flight
from disagg.run.clock import now_ns, wait_until
from disagg.run.stream_copy import Aloft, Route, StreamCopier

AHEAD = 2  # copies on the streams at once: the wire has no gap while the host looks at what has ended


class StreamLane:
    """Serves one lane of `transfers`, which decide what goes next and hear how each copy ended."""

    def __init__(self, name: str, transfers, copier: StreamCopier):
        self.name, self.transfers, self.copier = name, transfers, copier
        self._room = threading.Semaphore(AHEAD)
        self._launching = threading.Lock()  # copies enter the streams in the order in which the traffic started them
        self._launched: queue.SimpleQueue[Aloft | None] = queue.SimpleQueue()

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def drive(self) -> bool:
        """Enqueues what may start now. True where a copy failed on the way: what it held may let others start."""
        if not self.transfers.traffic.waiting(self.name):
            return False
        failed = False
        with self._launching:
            while self._room.acquire(blocking=False):
                flight = self.transfers.start_copy(self.name)
                if flight is None:
                    self._room.release()
                    break
                failed |= not self._launch(flight)
        return failed

    def stop(self):
        """Nothing is enqueued any more, and the lane's thread ends."""
        self.copier.stop()  # who waits for a copy under the lock goes on
        with self._launching:
            self.copier.stop()  # also a dial that was made meanwhile
            self._launched.put(None)

    # ---- the lane's thread -------------------------------------------------------------------------------------------

    def serve(self):
        """Until the engine closes: whatever comes first, the end of the oldest copy or a landing."""
        aloft: deque[Aloft] = deque()  # on the streams
        flying: deque[Flight] = deque()  # off the wire, within its latency
        try:
            while self._hear(aloft, idle=not aloft and not flying):
                landing_ns = flying[0].landing_ns if flying else None
                if landing_ns is not None and landing_ns <= now_ns():
                    self.transfers.land(flying.popleft())
                elif aloft and (landing_ns is None or aloft[0].flight.busy_until_ns <= landing_ns):
                    flying.extend(self._finish(aloft.popleft()))
                    self.transfers.drive()
                elif flying:
                    wait_until(landing_ns, self.transfers.closing)
        finally:
            self.copier.drain()  # only now does nothing read or write for these transfers
        for flight in [*flying, *(copy.flight for copy in aloft)]:
            self.transfers.give_up(flight)

    def _hear(self, aloft: deque[Aloft], idle: bool) -> bool:
        """Takes in what was launched, and waits for something if there is nothing else to do; False at the end."""
        while True:
            try:
                copy = self._launched.get(block=idle)
            except queue.Empty:
                return True
            if copy is None:
                return False
            aloft.append(copy)
            idle = False

    @property
    def _link(self):
        return self.transfers.traffic.lanes[self.name].wire.link

    @torch.inference_mode(False)  # a prefill pass may launch: buffers made in its mode could not be written elsewhere
    def _launch(self, flight: Flight) -> bool:
        """Puts a copy on the streams, where it waits for the event behind its K/V; False where that failed."""
        piece, link = flight.piece, self._link
        journey = self.transfers.traffic.journeys[piece.transfer]
        written = None if flight.hop_two else journey.written.get((piece.layer_end - 1, piece.block))
        try:
            check = self._check(flight) if self.transfers.verify else {}
            occupancy_ns = link.occupancy_ns(piece.nbytes) if link.dialled else None
            with self.copier.current():
                copy = self.copier.launch(flight, self._route(flight), written, occupancy_ns, **check)
        except Exception as error:
            self._room.release()
            self.copier.drain()  # part of the copy may be on the streams
            self.transfers.raised(flight, error)
            return False
        self._launched.put(copy)
        return True

    def _finish(self, copy: Aloft) -> list[Flight]:
        """Waits for a copy's end, without the interpreter, and checks it: the flight if it is to land."""
        flight = copy.flight
        try:
            left, found = copy.finish(round(self._link.latency_s * 1e9))
            wrong = self._wrong_layer(flight, left, found) if self.transfers.verify else None
        except Exception as error:
            self.transfers.raised(flight, error)
            return []
        finally:
            self._room.release()
        if wrong is not None:
            self.transfers.differs(flight, wrong)
            return []
        return [flight]

    def _route(self, flight: Flight) -> Route:
        piece, caches = flight.piece, self.transfers.caches
        return Route(
            range(piece.layer, piece.layer_end),
            None if flight.hop_two else caches[piece.source], piece.blocks,
            None if flight.hop_one else caches[flight.target], flight.target_blocks,
            self.transfers.ring_view(flight) if flight.slot is not None else None,
        )  # fmt: skip

    # ---- checksums ---------------------------------------------------------------------------------------------------

    def _known(self, flight: Flight) -> tuple[object, int]:
        """What left in the piece's first layer (on the device, as numbers, or None), and how many tokens it covers."""
        piece, transfers = flight.piece, self.transfers
        everything = len(piece.blocks) * next(iter(transfers.caches.values())).block_size
        return transfers.traffic.journeys[piece.transfer].digests.get((piece.layer, piece.block), (None, everything))

    def _check(self, flight: Flight) -> dict:
        """Which checksums the copy takes along."""
        piece, (left, tokens) = flight.piece, self._known(flight)
        digests = self.transfers.traffic.journeys[piece.transfer].digests
        layers = range(piece.layer, piece.layer_end)
        known = [digests[layer, piece.block][0] for layer in layers] if isinstance(left, torch.Tensor) else None
        return dict(check_tokens=tokens, left=known, departs=left is None and piece.source.role != "host")

    def _wrong_layer(self, flight: Flight, left: list[tuple], found: list[tuple]) -> int | None:
        """The first layer whose checksums are not those that left; these are plain numbers from here on."""
        piece, transfers = flight.piece, self.transfers
        journey = transfers.traffic.journeys[piece.transfer]
        layers = range(piece.layer, piece.layer_end)
        first, tokens = self._known(flight)
        if isinstance(first, tuple):
            left = [journey.digests[layer, piece.block][0] for layer in layers]
        elif first is None and piece.source.role == "host":
            left = transfers.take_spilled(piece.request)
        for layer, sums in zip(layers, left, strict=True):
            journey.digests[layer, piece.block] = (sums, tokens)
        if flight.lane.startswith("spill"):
            transfers.keep_spilled(journey, left)
        return next((layer for layer, a, b in zip(layers, left, found, strict=True) if a != b), None)
