"""What a pass that is handed off costs the host: its worker's time before it waits, and the lanes' threads."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from disagg.run import prefill_worker
from disagg.run.clock import now_ns
from disagg.run.engine import Engine
from disagg.show.report import LeftOut, Row
from disagg.trace.spans import Span

PASS_US, LAYER_US = 400, 5  # at most


class HostTime:
    """Of the passes of one engine, while `watched`."""

    def __init__(self, engine: Engine) -> None:
        names = {f"disagg {name}" for name in engine.executor.transfers.lanes}
        self._layers = engine.model.layers
        self._lanes = [thread for thread in threading.enumerate() if thread.name in names]  # other engines are closed
        self._waits: list[tuple[str, int]] = []  # thread, and when it began to wait for its device
        self._before: list[int] = []  # ns of each pass
        self._beside: list[int] = []  # ns that the lanes computed for it
        self._spun: list[int] = []  # ns on a core in which one of them waited for a device, which it does at full speed

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sees where prefill workers begin to wait, and how long lanes wait."""
        wait, synchronize = prefill_worker.settle, torch.cuda.Event.synchronize

        def settle(device: torch.device) -> None:
            self._waits.append((threading.current_thread().name, now_ns()))
            wait(device)

        def spin(event: torch.cuda.Event) -> None:
            began = time.thread_time_ns()
            synchronize(event)
            if threading.current_thread() in self._lanes:
                self._spun.append(time.thread_time_ns() - began)

        prefill_worker.settle = settle
        setattr(torch.cuda.Event, "synchronize", spin)  # noqa: B010 - until the end of this block
        try:
            yield
        finally:
            prefill_worker.settle = wait
            setattr(torch.cuda.Event, "synchronize", synchronize)  # noqa: B010

    def lanes_ns(self) -> int:
        """Time on a core of the lanes' threads since they began, without waits; 0 where the system doesn't tell."""
        if not hasattr(time, "pthread_getcpuclockid"):
            return 0
        clocks = [time.pthread_getcpuclockid(thread.ident) for thread in self._lanes if thread.ident is not None]
        return sum(map(time.clock_gettime_ns, clocks)) - sum(self._spun)

    def add(self, span: Span, lanes_ns: int) -> None:
        """A pass that was handed off, and what the lanes computed for it."""
        name = f"disagg {span.place}"
        waits = [at for thread, at in self._waits if thread == name and span.start_ns <= at <= span.end_ns]
        self._before += [waits[0] - span.start_ns] if waits else []
        self._beside += [lanes_ns] if lanes_ns else []

    def rows(self, tokens: int) -> Iterator[Row | LeftOut]:
        """The medians; left out where nothing was seen."""
        found = (
            ("host_us_pass", self._before, 1, PASS_US, "its worker, from the command to its wait for the device"),
            (
                "host_us_layer",
                self._beside,
                self._layers,
                LAYER_US,
                "time on a core of the lanes' threads ÷ layers, but for their waits",
            ),
        )
        for name, times_ns, parts, bar, note in found:
            if times_ns:
                value = statistics.median(times_ns) / 1e3 / parts
                yield Row(f"{name}[{tokens}]", value, "µs", bar, len(times_ns), note)
            else:
                yield LeftOut(f"{name}[{tokens}]", f"nothing was seen of {note}")
