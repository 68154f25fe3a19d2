"""A lane with a GPU at one end: the thread that makes a copy possible enqueues it; the lane's thread lands it.

A prefill worker enqueues the layers that it hands off, and the thread that sees the end of hop one enqueues hop two. A
thread that did nothing else would have to be woken, and to be let into an interpreter that others keep busy: beside a
prefill pass that took ten times as long as the launch itself, and held up the pass as well.
Nothing of a transfer is reported closed before the host has seen the end of its last copy on the streams.
"""

import queue
import threading
from collections import deque
from enum import Enum, auto
from typing import Any, NamedTuple

import torch

from disagg.plan.link import Link
from disagg.plan.transfer_scheduler import ActiveCopy
from disagg.run.clock import COARSE_NS, now_ns, wait_until
from disagg.run.gpu.stream_copy import EnqueuedCopy, Route, StreamCopier

AHEAD = 2  # copies on the streams at once: the link has no gap while the host handles what has ended


class Word(Enum):
    """Messages to a lane's thread."""

    WAKE, STOP = auto(), auto()


class Refused(NamedTuple):
    """A copy that could not be put on the streams as a whole."""

    flight: ActiveCopy
    error: Exception


class StreamLane:
    """Serves one lane of `transfers`, which decide what goes next and hear how each copy ended."""

    def __init__(self, name: str, transfers: Any, copier: StreamCopier) -> None:
        self.name, self.transfers, self.copier = name, transfers, copier
        self._room = threading.Semaphore(AHEAD)
        self._launching = threading.Lock()  # copies enter the streams in the order in which the traffic started them
        self._news: queue.SimpleQueue[EnqueuedCopy | Refused | Word] = queue.SimpleQueue()  # for the lane's thread

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def drive(self) -> None:
        """Enqueues what may start now. For threads that have made it possible, and have the time."""
        if not self.transfers.traffic.waiting(self.name):
            return
        with self._launching:
            while self._room.acquire(blocking=False):
                flight = self.transfers.start_copy(self.name)
                if flight is None:
                    self._room.release()
                    break
                self._news.put(self._launch(flight))

    def wake(self) -> None:
        """Has the lane's thread do so: the thread of all events must not spend a millisecond on a copy."""
        if self.transfers.traffic.waiting(self.name):
            self._news.put(Word.WAKE)

    def stop(self) -> None:
        """Nothing is enqueued any more, and the lane's thread ends."""
        self.copier.stop()
        with self._launching:
            self.copier.stop()  # also a dial that was made meanwhile
            self._news.put(Word.STOP)

    # ---- the lane's thread -------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the engine closes: whatever comes first, the end of the oldest copy or a landing."""
        aloft: deque[EnqueuedCopy] = deque()  # on the streams
        flying: deque[ActiveCopy] = deque()  # off the link, within its latency
        try:
            while self._hear(aloft, wait_s(aloft, flying)):
                landing_ns = flying[0].landing_ns if flying else None
                if landing_ns is not None and landing_ns <= now_ns():
                    flight = flying.popleft()
                    self.transfers.land(flight, flight.landing_ns)
                elif aloft and ends_first(aloft, flying):
                    flying.extend(self._finish(aloft.popleft()))
                    self.transfers.drive()
                elif landing_ns is not None and landing_ns - now_ns() <= 2 * COARSE_NS:
                    wait_until(landing_ns, self.transfers.closing)
        finally:
            self.copier.drain()  # only now does nothing read or write for these transfers
        for flight in [*flying, *(copy.flight for copy in aloft)]:
            self.transfers.give_up(flight)

    def _hear(self, aloft: deque[EnqueuedCopy], wait_s: float | None) -> bool:
        """Takes in what is new, and waits so long for it (None: for ever); False at the end."""
        while True:
            try:
                news = self._news.get(wait_s is None or wait_s > 0, wait_s)
            except queue.Empty:
                return True
            match news:
                case EnqueuedCopy():
                    aloft.append(news)
                case Refused():
                    self._refuse(*news)
                case Word.WAKE:
                    self.drive()
                case Word.STOP:
                    return False
            wait_s = 0.0

    @property
    def _link(self) -> Link:
        return self.transfers.traffic.lanes[self.name].wire.link

    @torch.inference_mode(False)  # a prefill pass may launch: buffers made in its mode could not be written elsewhere
    def _launch(self, flight: ActiveCopy) -> EnqueuedCopy | Refused:
        """Puts a copy on the streams, where it waits for the event behind its K/V."""
        piece, link = flight.piece, self._link
        journey = self.transfers.traffic.journeys[piece.transfer]
        written = None if flight.hop_two else journey.written.get((piece.layer_end - 1, piece.block))
        try:
            check = self._check(flight) if self.transfers.verify else {}
            occupancy_ns = link.occupancy_ns(piece.nbytes) if link.dialled else None
            with self.copier.current():
                return self.copier.launch(flight, self._route(flight), written, occupancy_ns, **check)
        except Exception as error:
            return Refused(flight, error)

    def _refuse(self, flight: ActiveCopy, error: Exception) -> None:
        """Reports a copy that could not be launched, once what was launched of it has ended."""
        self.copier.drain()
        self._room.release()
        self.transfers.raised(flight, error)
        self.transfers.drive()

    def _finish(self, copy: EnqueuedCopy) -> list[ActiveCopy]:
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

    def _route(self, flight: ActiveCopy) -> Route:
        piece, caches = flight.piece, self.transfers.caches
        return Route(
            range(piece.layer, piece.layer_end),
            None if flight.hop_two else caches[piece.source], piece.blocks,
            None if flight.hop_one else caches[flight.target], flight.target_blocks,
            self.transfers.ring_view(flight) if flight.slot is not None else None,
        )  # fmt: skip

    # ---- checksums ---------------------------------------------------------------------------------------------------

    def _known(self, flight: ActiveCopy) -> tuple[object, int]:
        """What left in the piece's first layer (on the device, as numbers, or None), and how many tokens it covers."""
        piece, transfers = flight.piece, self.transfers
        everything = len(piece.blocks) * next(iter(transfers.caches.values())).block_size
        return transfers.traffic.journeys[piece.transfer].digests.get((piece.layer, piece.block), (None, everything))

    def _check(self, flight: ActiveCopy) -> dict:
        """Which checksums the copy takes along."""
        piece, (left, tokens) = flight.piece, self._known(flight)
        digests = self.transfers.traffic.journeys[piece.transfer].digests
        layers = range(piece.layer, piece.layer_end)
        known = [digests[layer, piece.block][0] for layer in layers] if isinstance(left, torch.Tensor) else None
        return dict(check_tokens=tokens, left=known, departs=left is None and piece.source.role != "host")

    def _wrong_layer(self, flight: ActiveCopy, left: list[tuple], found: list[tuple]) -> int | None:
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


def ends_first(aloft: deque[EnqueuedCopy], flying: deque[ActiveCopy]) -> bool:
    """Does the oldest copy on the streams come before the next landing, by the link's account?"""
    return not flying or aloft[0].flight.busy_until_ns <= flying[0].landing_ns


def wait_s(aloft: deque[EnqueuedCopy], flying: deque[ActiveCopy]) -> float | None:
    """How long a lane may wait for news before something else is due; None: for ever."""
    if aloft and ends_first(aloft, flying):
        return 0.0  # its end is waited for without the interpreter
    return max(0, flying[0].landing_ns - now_ns() - COARSE_NS) / 1e9 if flying else None
