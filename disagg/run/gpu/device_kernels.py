"""The two kernels of the link dial, each of one warp. Imported only where a GPU's link is dialled: it needs triton.

`state` [2] int64 on the device: until when the wire is busy, by the device's nanosecond timer; and whether to stop.
`enqueued` [1] int64 in pinned host memory: the number of the last copy of which everything is on the stream.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["number", "occupancy_ns"])
def post(state, enqueued, number, occupancy_ns, MOST_NS: tl.constexpr) -> None:
    """busy_until = max(now, busy_until) + occupancy, once the host has enqueued all of copy `number`.

    It is waited for during MOST_NS at most: what the host does meanwhile may itself wait for the whole device.
    """
    began = tl.extra.cuda.globaltimer()
    while (tl.load(enqueued, volatile=True) < number) & (tl.extra.cuda.globaltimer() - began < MOST_NS):
        pass
    start = tl.maximum(tl.extra.cuda.globaltimer(), tl.load(state))
    tl.store(state, start + occupancy_ns)


@triton.jit
def hold(state) -> None:
    """Keeps the stream until busy_until, or until someone says stop."""
    until = tl.load(state)
    while (tl.extra.cuda.globaltimer() < until) & (tl.load(state + 1, volatile=True) == 0):
        pass
