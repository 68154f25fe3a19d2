"""CUDA streams on the CPU whose work is done late, in any order that waits allow: random numbers pick the next of it.

What no wait keeps apart is done in either order for some seed: a missing wait shows as wrong bytes, and a wait for
what is put on a stream later as a hang. Each operation is done whole; times and memory models need a GPU.
"""

import ctypes
from collections import deque
from functools import partial

import fake_triton
import torch
from fake_cuda import current, fake_streams
from test_captured_hand_off import Rows, tell

import disagg.run.gpu
from disagg.run.gpu import hand_off_links, hand_off_streams
from disagg.run.gpu.hand_off_turn import HandOffTurn


class Refused(Exception):
    """An operation, by the driver."""


class Queues:
    """Of the hardware, with the operations that each does one after the other. Streams have one each, or share some."""

    def __init__(self, random, shared: int | None):
        """With `shared`, that many for all streams. Some go on only seldom, as if theirs were the slow work."""
        self.random, self.queues, self.weights = random, [], []
        self.refuses_in: int | None = None  # operations
        for _ in range(shared or 0):
            self._open()
        self._shared = shared is not None

    def _open(self) -> deque:
        self.queues.append(deque())
        self.weights.append(self.random.choice([1, 1, 0.1, 0.001]))
        return self.queues[-1]

    def of_a_new_stream(self) -> deque:
        return self.random.choice(self.queues) if self._shared else self._open()

    def ask(self) -> None:
        """Before an operation that the driver may refuse."""
        if self.refuses_in is not None:
            self.refuses_in -= 1
            if self.refuses_in < 0:
                self.refuses_in = None
                raise Refused

    def step(self) -> bool:
        """Does one operation that waits for nothing; False if there is none."""
        able = [number for number, queue in enumerate(self.queues) if queue and queue[0].ready()]
        if able:
            [number] = self.random.choices(able, [self.weights[number] for number in able])
            self.queues[number].popleft().do()
        return bool(able)

    def steps(self, most: int) -> None:
        """Some of the work is done while the host goes on, in fewer operations than `most`."""
        for _ in range(self.random.randrange(most)):
            self.step()

    def run(self, until) -> None:
        while not until():
            assert self.step(), f"hangs: operations left in each queue: {list(map(len, self.queues))}"

    def finish(self) -> None:
        self.run(lambda: not any(self.queues))


class Operation:
    """`do` is done at once, when it is `ready` and nothing is before it in its queue."""

    def __init__(self, do, ready=lambda: True):
        self.do, self.ready = do, ready


class LateStream:
    def __init__(self, queues: Queues, device=None, priority=0):
        self.device, self.queues, self.queue = torch.device("cpu"), queues, queues.of_a_new_stream()

    def put(self, do, ready=lambda: True) -> None:
        self.queue.append(Operation(do, ready))

    def wait_event(self, event: "LateEvent") -> None:
        self.put(lambda: None, event.reached)

    def wait_stream(self, stream: "LateStream") -> None:
        event = LateEvent(self.queues)
        event.record(stream)
        self.wait_event(event)

    def synchronize(self) -> None:
        event = LateEvent(self.queues)
        event.record(self)
        event.synchronize()


class LateEvent:
    """Stands for the place where it was recorded last; one that was not recorded has been reached, as with CUDA."""

    def __init__(self, queues: Queues, enable_timing=False):
        self.queues, self.place = queues, [True]

    def record(self, stream: LateStream) -> None:
        self.place = place = []
        stream.put(lambda: place.append(True))

    @property
    def reached(self):
        return partial(bool, self.place)

    def synchronize(self) -> None:
        self.queues.run(self.reached)

    def elapsed_time(self, later: "LateEvent") -> float:
        """Milliseconds, whatever was between them."""
        return 1e-3


class LateKernel:
    """Launched on the current stream."""

    def __init__(self, queues: Queues, kernel):
        self.queues, self.kernel = queues, kernel

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.queues.ask()
            current.stream.put(partial(self.kernel[grid], *args, **options))

        return launch


class LateDial:
    """On a stream beside the link's: what it counts from must be there by then."""

    def __init__(self, queues: Queues):
        self.queues, self.beside, self.state = queues, LateStream(queues), torch.ones(2, dtype=torch.long)

    def occupy(self, ready, freed, times, occupancy_ns):
        def hold():
            since = max(1, int(ready[0]), int(freed[0]), int(self.state[0]))
            assert min(int(ready[0]), int(freed[0])) > 0, "a dial counts from what has not happened"
            times[0], times[1] = since, since + occupancy_ns
            self.state[0] = since + occupancy_ns

        self.queues.ask()
        self.beside.put(hold)


def late_streams(monkeypatch, queues: Queues) -> None:
    """From here on the hand-off of captured passes puts all on streams of these queues."""
    fake_streams(monkeypatch)
    fake_triton.install(monkeypatch, disagg.run.gpu, "device_kernels")
    kernels = disagg.run.gpu.device_kernels
    monkeypatch.setattr(torch.cuda, "Stream", partial(LateStream, queues))
    monkeypatch.setattr(torch.cuda, "Event", partial(LateEvent, queues))
    for name in ("copy_tokens", "sum_tokens"):
        monkeypatch.setattr(kernels, name, LateKernel(queues, getattr(kernels, name)))
    upload = HandOffTurn.upload

    def wait_late(flag, stream):
        queues.ask()
        stream.put(lambda: None, lambda: ctypes.c_int64.from_address(flag).value >= 1)

    def tell_late(flag, stream):
        queues.ask()
        stream.put(partial(tell, flag, stream))

    def upload_late(turn, device):
        queues.ask()
        current.stream.put(partial(upload, turn, device))

    class LateRows(Rows):
        def launch(self, target, source, rows, stream):
            queues.ask()
            stream.put(partial(super().launch, target, source, rows, stream))

    monkeypatch.setattr(hand_off_streams, "wait_for", wait_late)
    for module in (hand_off_streams, hand_off_links):
        monkeypatch.setattr(module, "tell", tell_late)
        monkeypatch.setattr(module, "RowCopy", LateRows)
    monkeypatch.setattr(HandOffTurn, "upload", upload_late)
