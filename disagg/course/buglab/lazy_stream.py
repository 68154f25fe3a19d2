"""Streams on a CPU whose work is done late: an operation runs only when an ordering edge forces it.

A GPU may run a stream's work at any time that its edges allow; a CPU does it at once, and so hides every missing edge.
With a seed, streams also run ahead by themselves, in an order that the edges allow. Notebook: 08_bug_lab.
"""

import contextlib
import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from disagg.run import transfers
from disagg.run.clock import now_ns
from disagg.run.gpu import device_clock, stream_copy, stream_lanes
from disagg.run.kv_cache import KVCache


class LazyStream:
    """A queue of operations that run in order, and never before an edge asks for them."""

    def __init__(self, world: "LazyWorld") -> None:
        self.world, self.done = world, 0  # how many of its operations have run
        self.work: list[Callable] = []
        world.streams.append(self)

    def add(self, operation: Callable) -> None:
        with self.world.lock:
            self.work.append(operation)
            self.world.run_ahead()

    def force(self, upto: int) -> None:
        """Runs the stream as far as its operation `upto`, and other streams as far as these wait for them."""
        with self.world.lock, _disable_current_modes():
            while self.done < upto:
                self.done += 1
                self.work[self.done - 1]()

    def wait_event(self, event: "LazyEvent") -> None:
        self.add(event.synchronize)

    def wait_stream(self, other: "LazyStream") -> None:
        upto = len(other.work)
        self.add(lambda: other.force(upto))

    def synchronize(self) -> None:
        self.force(len(self.work))


class LazyEvent:
    """A place in a stream. Waiting for it runs the stream up to there."""

    def __init__(self, world: "LazyWorld") -> None:
        self.world, self.upto, self.at_ns = world, 0, 0
        self.stream: LazyStream | None = None

    def record(self, stream: LazyStream | None = None) -> None:
        self.stream = on = stream or self.world.current()
        with self.world.lock:
            on.add(self._note)
            self.upto = len(on.work)

    def _note(self) -> None:
        self.at_ns = now_ns()

    def synchronize(self) -> None:
        if self.stream is not None:  # CUDA, too, waits for nothing where nothing was recorded
            self.stream.force(self.upto)

    def elapsed_time(self, later: "LazyEvent") -> float:
        """Milliseconds in float32, as CUDA gives them."""
        return struct.unpack("f", struct.pack("f", (later.at_ns - self.at_ns) / 1e6))[0]


class Keeps(TorchDispatchMode):
    """Operations of this thread go to a stream. Views and fresh tensors are made at once; only contents come late."""

    def __init__(self, stream: LazyStream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, returns = kwargs or {}, func._schema.returns
        reads = any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs)))
        aliases = any(value.alias_info is not None for value in returns)
        if func._schema.is_mutable:
            self.stream.add(lambda: func(*args, **kwargs))
            return kwargs["out"] if "out" in kwargs else args[0]
        with _disable_current_modes():  # a thread may enqueue on a lane from amid its own stream
            made = func(*args, **kwargs)
        if reads and not aliases and isinstance(made, torch.Tensor):
            with _disable_current_modes():
                made.zero_()  # not computed yet
            self.stream.add(lambda: made.copy_(func(*args, **kwargs)))
        return made


class LazyWorld:
    """Streams and events of one machine that is not there. `seed`: how streams run ahead; None: they never do."""

    def __init__(self, seed: int | None = None) -> None:
        self.streams: list[LazyStream] = []
        self.lock = threading.RLock()
        self._dice = None if seed is None else random.Random(seed)
        self._here = threading.local()
        self._ahead = False

    def current(self) -> LazyStream:
        stack = getattr(self._here, "stack", None)
        assert stack, "no stream is current in this thread"
        return stack[-1]

    @contextlib.contextmanager
    def on(self, stream: LazyStream) -> Iterator[LazyStream]:
        """Stands for torch.cuda.stream."""
        stack = self._here.__dict__.setdefault("stack", [])
        stack.append(stream)
        try:
            with Keeps(stream):
                yield stream
        finally:
            stack.pop()

    def run_ahead(self) -> None:
        """Some streams go on by a few operations, as a GPU's may at any time."""
        if self._dice is None or self._ahead:
            return
        self._ahead = True  # what runs now may wait, but enqueues nothing
        try:
            for stream in self._dice.sample(self.streams, min(2, len(self.streams))):
                stream.force(min(len(stream.work), stream.done + self._dice.randrange(4)))
        finally:
            self._ahead = False

    def mark(self, device: object) -> LazyEvent:
        """Stands for disagg.run.gpu.device.mark."""
        event = LazyEvent(self)
        event.record()
        return event


def copy_blocks(route: stream_copy.Route, blocks: torch.Tensor, onto: torch.Tensor) -> None:
    """The bytes that the kernel of this name moves, in torch's own operations."""
    assert route.source is not None and route.target is not None
    route.target.write_blocks(route.layers, onto, route.source.read_blocks(route.layers, blocks))


@contextlib.contextmanager
def lazy_gpus(host_blocks: int, seed: int | None = None) -> Iterator[LazyWorld]:
    """While it is open, caches of other than `host_blocks` blocks pass for a GPU's, with lazy streams; the world."""
    world = LazyWorld(seed)
    clocks: dict[object, device_clock.DeviceClock] = {}
    with contextlib.ExitStack() as stack:
        put = lambda owner, name, stand_in: stack.enter_context(mock.patch.object(owner, name, stand_in))  # noqa: E731
        put(torch.cuda, "Event", lambda **fields: LazyEvent(world))
        put(torch.cuda, "Stream", lambda *args, **fields: LazyStream(world))
        put(torch.cuda, "stream", world.on)
        for name in ("tensor", "zeros", "empty"):  # there is nothing to pin memory for
            make = getattr(torch, name)
            put(torch, name, lambda *args, make=make, pin_memory=False, **fields: make(*args, **fields))
        clock_of = lambda device: clocks.setdefault(device, device_clock.DeviceClock(device))  # noqa: E731
        put(stream_copy, "clock_of", clock_of)
        put(stream_copy, "copy_blocks", copy_blocks)
        put(stream_copy, "on_host", lambda cache: cache.num_blocks == host_blocks)
        put(KVCache, "on_gpu", property(lambda cache: cache.num_blocks != host_blocks))
        put(stream_lanes, "triton_is_here", lambda: False)
        put(transfers, "mark", world.mark)
        yield world
