"""What day.py runs in a process of its own. It imports nothing large, so that the memory is the simulation's.

python -m benchmarks.day_process TRACE REQUESTS HARDWARE
"""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

import psutil

from disagg.plan.config import Config
from disagg.twin.simulate import simulate
from disagg.twin.traces import Arrival, read_trace
from disagg.twin.workloads import requests_of

MODEL = "random-llama3-8b"


def simulated(trace: Path, count: int, hardware: str) -> tuple[float, float, int]:
    """CPU seconds of the simulation alone, GiB of this process at its peak, and decode steps."""
    requests = requests_of(_repeated(read_trace(trace), count), vocab=128_256)
    config, start = Config.preset("dynamic", model=MODEL, dtype="bfloat16"), time.process_time()
    run = simulate(config, requests, hardware=hardware, record=False)
    took = time.process_time() - start
    ended = {result.finish_reason for result in run.results}
    if len(run.results) != count or ended != {"length"}:
        raise AssertionError(f"{len(run.results)} of {count} requests ended, as {ended}")
    steps = len({at for result in run.results for at in result.token_times_ns[1:]})
    return took, peak_bytes() / 2**30, steps


def _repeated(arrivals: list[Arrival], count: int) -> list[Arrival]:
    """The first so many; where there are fewer, all of them once more behind the last one."""
    found: list[Arrival] = []
    long = arrivals[-1].at_s + 1.0
    while len(found) < count:
        shift = long * (len(found) // len(arrivals))
        found += [arrival._replace(at_s=arrival.at_s + shift) for arrival in arrivals[: count - len(found)]]
    return found


def peak_bytes() -> int:
    """Most resident memory so far. Linux counts a new program's from what started it, but for VmHWM."""
    with contextlib.suppress(OSError):
        if peak := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(peak[1]) * 1024
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)


if __name__ == "__main__":
    print(json.dumps(simulated(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
