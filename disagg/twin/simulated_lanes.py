"""A virtual clock, and under it the lanes that carry what a transfer scheduler decides."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from disagg.plan.link import LaneName
from disagg.plan.transfer_scheduler import Copy, Notice, TransferScheduler
from disagg.trace.recorder import Recorder
from disagg.trace.spans import span_of


class VirtualClock:
    """Actions in the order of their times: one heap, one thread. Times in ns."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._heap: list[tuple[int, float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, when_ns: int, action: Callable[..., object], *args: Any) -> None:
        """Schedules an action; simultaneous ones run in the order of scheduling."""
        self._sequence += 1
        heapq.heappush(self._heap, (when_ns, self._tie(), self._sequence, action, args))

    def _tie(self) -> float:
        """Order of simultaneous actions; checked simulations draw it at random."""
        return 0

    def step(self) -> bool:
        """Runs the next scheduled action; False if none is left."""
        if not self._heap:
            return False
        when, _, _, action, args = heapq.heappop(self._heap)
        self.now_ns = max(self.now_ns, when)
        action(*args)
        return True


class SimulatedLanes(VirtualClock, ABC):
    """The lanes of one machine, each with one copy at a time. The engine says how long one takes, and hears of what has
    landed."""

    recorder: Recorder

    def __init__(self, transfers: TransferScheduler) -> None:
        super().__init__()
        self.transfers = transfers
        self.busy_lanes: set[LaneName] = set()
        self.blocked: list[Callable[[], None]] = []  # of passes that wait in a hand-off: each looks whether it goes on

    @abstractmethod
    def deliver(self, notice: Notice) -> None:
        """Tells the engine what has landed."""

    @abstractmethod
    def copy_ns(self, lane: LaneName, nbytes: int) -> int:
        """A copy on an undialled link."""

    def drive_lanes(self) -> None:
        """Starts a copy on every idle lane that has one ready; passes that no copy holds up go on."""
        transfers, busy = self.transfers, self.busy_lanes
        if transfers.queued:
            for name, lane in transfers.lanes.items():
                if lane.ready and name not in busy and (copy := self.start_copy(name)) is not None:
                    self._fly(copy, lane.clock.link.dialled)
        for go_on in list(self.blocked):
            go_on()

    def start_copy(self, lane: LaneName) -> Copy | None:
        """The lane's next copy; None where it waits for a ring slot."""
        return self.transfers.start(lane)

    def _fly(self, copy: Copy, dialled: bool) -> None:
        """Keeps the lane busy and schedules the landing; a copy on an undialled link takes `copy_ns`."""
        self.busy_lanes.add(copy.lane)
        if not dialled:
            copy.start_ns = max(copy.start_ns, self.now_ns)
            took = self.copy_ns(copy.lane, copy.nbytes)
            copy.busy_until_ns = copy.landing_ns = copy.start_ns + took
        if copy.busy_until_ns < copy.landing_ns:
            self.at(copy.busy_until_ns, self._lane_free, copy.lane)
            self.at(copy.landing_ns, self.land, copy)
        else:
            self.at(copy.landing_ns, self._through, copy)

    def _lane_free(self, name: LaneName) -> None:
        self.busy_lanes.discard(name)
        self.drive_lanes()

    def _through(self, copy: Copy) -> None:
        """Without latency a link is free as its copy lands."""
        self._lane_free(copy.lane)
        self.land(copy)

    def land(self, copy: Copy) -> None:
        notices = self.transfers.finish(copy)
        if self.recorder.on:
            self.recorder.span(span_of(copy, copy.landing_ns))
        for notice in notices:
            self.deliver(notice)
        self.drive_lanes()  # whether or not a notice came through
