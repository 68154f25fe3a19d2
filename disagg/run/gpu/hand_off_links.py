"""The links that captured passes' copies take. A dialled one has a stream beside its own, on which a copy that has
moved stays until it may arrive, while the next one moves already.

There the copy engine carries it again and again until most of its time on the link has passed, and a kernel waits for
the rest: a kernel that waits takes an SM from the pass, which made prefill of an 8B model 13 % slower on an H200. It
also counts the time, from what was written down; a kernel before the copy would wait for room on an SM.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from disagg.run.gpu.hand_off_turn import HandOffTurn, Travel
from disagg.run.gpu.stream_copy import StreamCopier
from disagg.run.gpu.stream_memory import RowCopy, tell
from disagg.run.kv_cache import KVCache

MOST_AGAIN = 64  # copies, each of which costs the host microseconds
SPARE_NS = 50_000  # of a copy's time on a dialled link, for the kernel
SLOWER = 1.05  # than measured: a copy beside other traffic
LARGE_BYTES, TRIES, IN_A_ROW = 32 << 20, 3, 4  # of a measurement


class HandOffLinks:
    """In the order in which copies take them."""

    def __init__(self, copiers: list[StreamCopier], ends: Sequence[KVCache], slots: int) -> None:
        """`slots` of the ring between two links."""
        self._copiers, self._slots = copiers, slots
        self._on_one_device = len({cache.device for cache in ends}) == 1
        self._byte_ns = [math.inf for _ in copiers]

    def measure(self, scratch: Sequence[tuple[int, int, int]]) -> None:
        """Times copies over all links at once; `scratch`: of each, where from, where to, and bytes."""
        timed = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in scratch]
        for _ in range(TRIES):
            for copier, (source, target, nbytes), (start, end) in zip(self._copiers, scratch, timed, strict=False):
                row, stream = RowCopy(*[min(nbytes, LARGE_BYTES)] * 3), copier.streams[0]
                start.record(stream)
                for _ in range(IN_A_ROW):
                    row.launch(target, source, 1, stream)
                end.record(stream)
            for hop, (start, end) in enumerate(timed):
                end.synchronize()
                took_ns = 1e6 * start.elapsed_time(end) / IN_A_ROW
                self._byte_ns[hop] = min(self._byte_ns[hop], took_ns / min(scratch[hop][2], LARGE_BYTES))

    def take(
        self,
        stream: torch.cuda.Stream,
        turn: HandOffTurn,
        travel: Travel,
        hop: int,
        index: int,
        move: Callable[[torch.cuda.Stream], None],
        engine_bytes: int = 0,
    ) -> None:
        """Puts copy `index` on the link's stream by `move`; `engine_bytes` of it are carried by copy engines."""
        occupancy_ns, (start, end) = travel.occupancy_ns[hop], turn.events[hop][index]
        since = self._since(turn, travel, hop, index) if occupancy_ns else []
        start.record(stream)
        move(stream)
        end.record(stream)
        if occupancy_ns:
            dial = self._copiers[hop].prepare_dial()
            dial.beside.wait_event(end)
            for _ in range(self._again(occupancy_ns[index], self._byte_ns[hop] * engine_bytes)):
                move(dial.beside)
            dial.occupy(since[0], since[-1], turn.taken[hop][index], occupancy_ns[index])
            stream = dial.beside
        tell(turn.carried[hop][index], stream)

    def leave(self, travel: Travel) -> None:
        """Once all is on the streams: a link ends a pass with what its dial holds."""
        for copier, occupancy_ns in zip(self._copiers, travel.occupancy_ns, strict=False):
            if occupancy_ns:
                copier.streams[0].wait_stream(copier.prepare_dial().beside)

    def _again(self, occupancy_ns: int, copy_ns: float) -> int:
        """How often more a copy is carried: the first time, and another copy, are in its time on the link as well."""
        copy_ns *= SLOWER
        return max(0, min(MOST_AGAIN, int((occupancy_ns - SPARE_NS) / copy_ns - 2))) if 0 < copy_ns < math.inf else 0

    def _since(self, turn: HandOffTurn, travel: Travel, hop: int, index: int) -> list[Tensor]:
        """When a copy could take a dialled link: its layers were stored or down, and its slot of the ring was left."""
        stored, before = turn.stored_at[travel.copies[index][-1]], index - self._slots
        if hop == 0 and (not self._slots or index > 0 > before):
            return [stored]
        if None in travel.occupancy_ns or not self._on_one_device:
            from disagg.run.gpu import device_kernels  # needs triton

            now = turn.taken[hop][index]  # the other link has no such times, or those of another timer
            device_kernels.write_time[(1,)](now, num_warps=1)
            return [now]
        if hop:
            return [turn.left[0][index]]
        return [stored, turn.left[1][before] if index else self._copiers[1].prepare_dial().state]
