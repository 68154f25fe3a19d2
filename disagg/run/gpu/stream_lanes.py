"""The lanes of an engine with a GPU: on streams, through a ring in host memory, with checksums on the devices."""

from disagg.plan.config import Config
from disagg.plan.link import LaneName
from disagg.run.gpu.device_checksum import checksum
from disagg.run.gpu.link_dial import check_triton, triton_is_here
from disagg.run.gpu.sm_split import SMPartition
from disagg.run.gpu.stream_lane import HAND_OFF, StreamLane, fill_ring, make_lanes
from disagg.run.lane import LaneOwner


class StreamLanes(dict[LaneName, StreamLane]):
    """The lanes by name; ConfigError if a dialled link needs a missing package."""

    checksum = staticmethod(checksum)

    def __init__(self, transfers: LaneOwner, config: Config, parts: dict[str, SMPartition]) -> None:
        self._scheduler = transfers.scheduler
        self.check(config)
        super().__init__(make_lanes(transfers, config, parts))
        shape = next(iter(transfers.caches.values())).shape
        fill_ring(transfers.ring, config, shape, self._scheduler.layers_per_copy)

    def check(self, config: Config) -> None:
        if self._scheduler.lanes and any(link.dialled for link in config.links):
            check_triton()

    def prepare(self, config: Config) -> None:
        """Compiles the dial's kernels and measures the least size of a copy, before workers capture graphs: a capture
        must not overlap other GPU work, and no copy of a link that is dialled later may wait for the compiler."""
        if triton_is_here():
            for lane in self.values():
                lane.copier.prepare_dial()
        if first := next((lane for lane in self.values() if lane.name.role in HAND_OFF), None):
            self._scheduler.measured(config, first.measure().least_bytes)

    def in_words(self) -> str:
        """The error of GPU events on the host's clock."""
        errors = [clock.error_ns for lane in self.values() for clock in lane.copier.clocks]
        return f", copies timed to {max(errors) / 1e3:.1f} us" if errors else ""
