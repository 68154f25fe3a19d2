"""CUDA's streams and events on the CPU: all is done at once, and events carry the host's time, or the end of a dial.

It shows that the lanes of a GPU move the right bytes in the right order of calls; races need a GPU.
"""

import contextlib
import copy
import struct
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import torch
from engine_tools import tiny
from fake_driver import FakeDriver

from disagg.course.buglab.lazy_stream import copy_blocks
from disagg.run import engine, executor, transfers
from disagg.run.clock import now_ns
from disagg.run.gpu import device_clock, stream_copy, stream_lane, stream_lanes
from disagg.run.kv_cache import KVCache


class FakeEvent:
    def __init__(self, enable_timing=False):
        self.at_ns, self._stream = None, None

    def record(self, stream=None):
        """Ends now, or when a dial lets its stream go on."""
        self._stream, self.at_ns = stream, max(now_ns(), getattr(stream, "held_until_ns", 0))

    def synchronize(self):
        assert self.at_ns is not None, "it was not recorded"
        while now_ns() < self.at_ns and not getattr(self._stream, "let_go", False):
            time.sleep(1e-5)

    def elapsed_time(self, later) -> float:
        """Milliseconds in float32, as CUDA gives them."""
        return struct.unpack("f", struct.pack("f", (later.at_ns - self.at_ns) / 1e6))[0]


class FakeStream:
    def __init__(self, device=None, priority=0):
        self.device, self.waited, self.held_until_ns, self.let_go = torch.device(device or "cpu"), [], 0, False

    def wait_event(self, event):
        assert event.at_ns is not None, "waits for what was not recorded"
        self.waited.append(event)

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Current(threading.local):
    stream: FakeStream | None = None


current = Current()


@contextlib.contextmanager
def on(stream):
    before, current.stream = current.stream, stream
    try:
        yield stream
    finally:
        current.stream = before


class FakeDial:
    """Of the stream that is current where it is made."""

    def __init__(self, device, beside):
        self.beside, self.stream = beside, current.stream
        self.deadlines, self.state = [0], torch.zeros(2, dtype=torch.int64)

    def post(self, occupancy_ns):
        self.deadlines.append(max(now_ns(), self.deadlines[-1]) + occupancy_ns)

    def go(self):
        """Everything was done at once."""

    def hold(self):
        self.stream.held_until_ns = self.deadlines[-1]

    def now_ns(self):
        return now_ns()

    def occupy(self, ready, freed, times, occupancy_ns):
        start = max(self.now_ns(), int(ready[0]), int(freed[0]), self.deadlines[-1])
        self.deadlines.append(max(start + occupancy_ns, now_ns()))
        times[0], times[1], self.state[0] = start, self.deadlines[-1], self.deadlines[-1]
        self.beside.held_until_ns = self.deadlines[-1]

    def stop(self):
        self.stream.let_go = True


def fake_cuda(monkeypatch, host_blocks: int):
    """From here on, caches of other than `host_blocks` blocks pass for those of a GPU."""
    fake_streams(monkeypatch)
    monkeypatch.setattr(stream_copy, "on_host", lambda cache: cache.num_blocks == host_blocks)
    monkeypatch.setattr(KVCache, "on_gpu", property(lambda cache: cache.num_blocks != host_blocks))


def fake_gpus(monkeypatch, reach: bool = True) -> FakeDriver:
    """From here on an Engine takes a config on CUDA devices, as many as it names. Memories and workers are on the CPU,
    lanes between what passes for memories of those GPUs, and its parts are those of the driver that is given back."""
    fake_streams(monkeypatch)
    driver = FakeDriver()
    bindings = SimpleNamespace(driver=driver)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=bindings))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(engine, "check_devices", lambda config: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: FakeStream())
    monkeypatch.setattr(stream_copy, "ids_on", lambda device, blocks: torch.tensor(blocks))
    monkeypatch.setattr(stream_lane, "reaches", lambda here, there: reach)

    def between(config, caches, *rest):
        there = {name: copy.copy(cache) for name, cache in caches.items()}  # the same memory under another address
        for name, cache in there.items():
            cache.device = torch.device(config.device_of(*name))
        return transfers.Transfers(config, there, *rest)

    monkeypatch.setattr(executor, "Transfers", between)
    return driver


def on_the_cpu(make, device=None, pin_memory=False, **fields):
    """What `make` makes, wherever it was wanted."""
    return make(device="cpu" if torch.device(device or "cpu").type == "cuda" else device, **fields)


def fake_streams(monkeypatch):
    """Streams, events, dials and clocks of GPUs; tensors that are wanted there, or pinned, are made on the CPU."""
    tiny()  # torch and transformers import the rest of themselves at a first load, and would keep the fakes
    import disagg.run.attention.paged
    import disagg.run.gpu.decode_graph
    import disagg.run.gpu.prefill_graph  # noqa: F401

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "set_stream", partial(setattr, current, "stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current.stream)
    for name in ("tensor", "zeros", "empty", "full"):
        make = getattr(torch, name)
        here = lambda *args, make=make, **fields: on_the_cpu(partial(make, *args), **fields)  # noqa: E731
        monkeypatch.setattr(torch, name, here)
    clocks = {}
    clock_of = lambda device: clocks.setdefault(device, device_clock.DeviceClock(device))  # noqa: E731
    monkeypatch.setattr(stream_copy, "clock_of", clock_of)
    monkeypatch.setattr(stream_copy, "DeviceDial", FakeDial)
    monkeypatch.setattr(stream_lanes, "check_triton", lambda: None)
    monkeypatch.setattr(stream_lanes, "triton_is_here", lambda: True)
    monkeypatch.setattr(stream_copy, "copy_blocks", copy_blocks)

    def mark(device):
        event = FakeEvent()
        event.record()
        return event

    monkeypatch.setattr(transfers, "mark", mark)
