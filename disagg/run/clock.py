"""The one clock of the engine, and a wait that ends on time."""

import threading
import time

now_ns = time.perf_counter_ns

COARSE_NS = 1_500_000  # the last part of a wait is slept exactly; what comes before can be interrupted
SPIN_NS = 120_000


def wait_until(deadline_ns: int, interrupt: threading.Event) -> bool:
    """Sleeps until the deadline; False where `interrupt` was set before its last part."""
    coarse = deadline_ns - COARSE_NS - now_ns()
    if coarse > 0 and interrupt.wait(coarse / 1e9):
        return False
    fine = deadline_ns - SPIN_NS - now_ns()
    if fine > 0:
        time.sleep(fine / 1e9)
    while now_ns() < deadline_ns:
        pass  # keeps the core: giving it up here costs a time slice of a thread that computes
    return True
