"""The two kernels of the link dial, each of one warp. Imported only where a GPU's link is dialled: it needs triton.

`state` [2] int64 on the device: until when the wire is busy, by the device's nanosecond timer; and whether to stop.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["occupancy_ns"])
def post(state, occupancy_ns):
    """busy_until = max(now, busy_until) + occupancy"""
    start = tl.maximum(tl.extra.cuda.globaltimer(), tl.load(state))
    tl.store(state, start + occupancy_ns)


@triton.jit
def hold(state):
    """Keeps the stream until busy_until, or until someone says stop."""
    until = tl.load(state)
    while (tl.extra.cuda.globaltimer() < until) & (tl.load(state + 1, volatile=True) == 0):
        pass
