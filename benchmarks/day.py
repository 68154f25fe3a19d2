"""A real trace through the twin, each size in a process of its own: seconds of one core, and the most memory held."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import day_process
from benchmarks.common import Say
from benchmarks.day_process import MODEL
from disagg.plan.errors import EngineError
from disagg.show.report import LeftOut, Row
from disagg.twin.traces import read_trace

SIZES = (1_000, 10_000, 100_000)
HARDWARE = "2xA100"  # keeps up with the trace, a dozen rows in a step
FASTER = "2xH100"  # takes a third more steps for the same tokens, because they are shorter
CONVERSATIONS = 19_366  # requests of Azure's conversation trace, an hour of it


def rows(say: Say, trace: Path | None, sizes: Sequence[int] = SIZES) -> Iterator[Row | LeftOut]:
    """Of Azure's conversation trace, whole, and as many of its requests as each size says, over and over again."""
    if trace is None:
        yield LeftOut("azure_conv_s", "no trace: give the path of Azure's conversation trace with --trace")
        return
    whole = len(read_trace(trace))
    yield from _rows(say, trace, whole, HARDWARE, "", bars=whole == CONVERSATIONS)
    yield from _rows(say, trace, whole, FASTER, f"[{FASTER}]")
    for count in sizes:
        yield from _rows(say, trace, count, HARDWARE, f"[{count}]")


def _rows(say: Say, trace: Path, count: int, hardware: str, name: str, bars: bool = False) -> Iterator[Row]:
    say(f"{trace.name}: {count:,} requests on {hardware} under the virtual clock")
    seconds, gib, steps = in_a_process(trace, count, hardware)
    note = f"dynamic, {MODEL} on {hardware}; {1e3 * seconds / count:.2f} ms a request, {steps:,} decode steps"
    yield Row(f"azure_conv_s{name}", seconds, "s", 60 if bars else None, count, note)
    yield Row(f"azure_conv_gib{name}", gib, "GiB", 1 if bars else None, count)


def in_a_process(trace: Path, count: int, hardware: str) -> tuple[float, float, int]:
    """CPU seconds of the simulation, GiB of the whole process at its peak, decode steps."""
    command = [sys.executable, "-m", day_process.__name__, str(trace), str(count), hardware]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"the simulation of {count:,} requests of {trace.name} failed: {done.stderr.strip()[-2000:]}")
    return tuple(json.loads(done.stdout))
