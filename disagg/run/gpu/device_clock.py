"""Start and end of GPU work on the host's clock: CUDA events relative to an anchor.

An anchor is an event that ended between two readings of the host's clock; half of that bracket is its error. It is
renewed every few seconds, since events count in float32 milliseconds and the two clocks drift apart.
"""

import functools
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch

from disagg.run.clock import now_ns

RENEW_NS = 2_000_000_000
LONGEST_NS = 5 * RENEW_NS  # beyond this float32 is too coarse for the rate
WIDE_NS = 100_000  # of error; more than clocks drift between two anchors
TRIES = 12  # brackets, of which the narrowest counts


class Anchor(NamedTuple):
    """`event` ended at at_ns ± error_ns; one second by events is `rate` seconds of the host's clock."""

    event: torch.cuda.Event
    at_ns: int
    error_ns: int
    rate: float = 1.0

    def ns(self, event: torch.cuda.Event) -> int:
        """Host time of an ended event of the same device."""
        return self.at_ns + round(self.event.elapsed_time(event) * 1e6 * self.rate)

    def renewed(self, fresh: "Anchor") -> "Anchor":
        """The fresh anchor with the rate between the two; its error is at least this anchor's deviation.

        Returns this anchor if the fresh one's event waited behind other work.
        """
        if fresh.error_ns > WIDE_NS:
            return self
        gap = fresh.at_ns - self.at_ns
        if not RENEW_NS // 2 <= gap <= LONGEST_NS:
            return fresh._replace(rate=self.rate)
        missed = abs(self.ns(fresh.event) - fresh.at_ns)
        rate = gap / (self.event.elapsed_time(fresh.event) * 1e6)
        return fresh._replace(error_ns=max(fresh.error_ns, missed), rate=rate)


def bracket(ended: Callable[[], torch.cuda.Event], now: Callable[[], int] = now_ns, tries: int = TRIES) -> Anchor:
    """The narrowest of several brackets; `ended` records an event and returns it after its end."""
    found = []
    for _ in range(tries):
        before = now()
        event = ended()
        after = now()
        found.append(Anchor(event, (before + after) // 2, (after - before + 1) // 2))
    return min(found, key=lambda anchor: anchor.error_ns)


class DeviceClock:
    """The anchor of one device, for any thread."""

    def __init__(self, device: torch.device) -> None:
        # Only anchors use this stream, so that they end at once: no other stream comes from this priority's pool.
        self._stream = torch.cuda.Stream(device, priority=-2)
        self._renewing = threading.Lock()
        self._anchor = bracket(self._ended)

    @property
    def error_ns(self) -> int:
        return self._anchor.error_ns

    def anchor(self) -> Anchor:
        """The anchor for events recorded now. Another thread renews an old one: on a busy GPU even an idle stream's
        event may take as long as a prefill pass."""
        if now_ns() - self._anchor.at_ns > RENEW_NS and self._renewing.acquire(blocking=False):
            threading.Thread(target=self._renew, name="disagg clock", daemon=True).start()
        return self._anchor

    def _renew(self) -> None:
        try:
            self._anchor = self._anchor.renewed(bracket(self._ended))
        finally:
            self._renewing.release()

    def _ended(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        event.synchronize()  # spins for microseconds: the stream is idle
        return event


class DeviceTimer:
    """The nanosecond timer of a device, which kernels write down (`stamp`), on the host's clock. The host's readings
    around a small kernel give the difference; the narrowest bracket counts."""

    def __init__(self, device: torch.device) -> None:
        from disagg.run.gpu import device_kernels  # needs triton

        self._stream, self._kernel = torch.cuda.Stream(device, priority=-2), device_kernels.write_time[(1,)]
        self._stamp = torch.zeros(1, dtype=torch.long, pin_memory=True)
        self._bracket()  # compiles
        self._measure()

    def ns(self, stamp: int) -> int:
        """Host time of a stamp, never after now."""
        now = now_ns()
        if now - self._at_ns > RENEW_NS:
            self._measure()
        return min(stamp + self._ahead_ns, now)

    def stamp(self, at_ns: int) -> int:
        """The device's time at a host time."""
        return at_ns - self._ahead_ns

    def _measure(self) -> None:
        error_ns, ahead_ns = min(self._bracket() for _ in range(TRIES))
        self._at_ns = now_ns()
        if error_ns <= WIDE_NS or not hasattr(self, "_ahead_ns"):  # else it waited behind other work
            self._ahead_ns = ahead_ns

    def _bracket(self) -> tuple[int, int]:
        """(error, host's clock minus the device's timer) in ns."""
        before = now_ns()
        with torch.cuda.stream(self._stream):
            self._kernel(self._stamp, num_warps=1)
        self._stream.synchronize()
        after = now_ns()
        return (after - before + 1) // 2, (before + after) // 2 - int(self._stamp)


_clocks = functools.cache(DeviceClock)
_timers = functools.cache(DeviceTimer)


def timer_of(device: torch.device) -> DeviceTimer:
    """The process's only timer of a CUDA device with its index."""
    return _timers(device)


def clock_of(device: torch.device) -> DeviceClock:
    """The process's only clock of a CUDA device."""
    return _clocks(torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index))


class Moments:
    """Times of a thread's work: host times on a CPU; events on its stream on a GPU, read after their end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._times: list[int] = []
        self._events: list[torch.cuda.Event] = []
        self._anchor = clock_of(device).anchor() if device.type == "cuda" else None

    def mark(self) -> None:
        if self._anchor is None:
            self._times.append(now_ns())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)

    def keep_up(self, ahead: int) -> None:
        """Waits until all marks but the latest `ahead` have ended."""
        if len(self._events) > ahead:
            self._events[-1 - ahead].synchronize()

    def wait(self) -> None:
        """Waits until the last mark has ended."""
        if self._anchor is not None:
            self._events[-1].synchronize()

    def read(self) -> tuple[int, ...]:
        """Host times in ns of marks that have ended, never after now."""
        if self._anchor is None:
            return tuple(self._times)
        now = now_ns()
        return tuple(min(self._anchor.ns(event), now) for event in self._events)
