"""The engine's inbox: events of workers and lanes, and calls of users, which its thread takes one after the other."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, TypeAlias, TypeVar

from disagg.plan.errors import DisaggError, EngineError
from disagg.plan.events import Event, Tick, TimeLost
from disagg.run.clock import now_ns

BEAT_S = 1.0  # while a deadline is set, the engine's thread looks at the clock at least so often
LOST_BEATS, LOST_S = 2, 0.1  # so long without a look: this process was suspended, or its machine was

T = TypeVar("T")


class Call(NamedTuple):
    """A question, and where its answer goes. One that `changes` state and fails breaks the engine."""

    question: Callable[[], object]
    answer: queue.SimpleQueue  # of one (value, error); unlike a Future it holds no lock that an interrupt may leave
    changes: bool = False


class EndSignal(Enum):
    """Ends the thread: at once, or because no reference to its engine is left."""

    END = "end"
    ABANDON = "abandon"


Item: TypeAlias = Event | Call | EndSignal


class Inbox:
    """Any thread may `put`, `call` and `ask`; the rest is for the engine's thread."""

    def __init__(self, fail: Callable[[BaseException], EngineError]) -> None:
        """`fail` hears what a change raised, and gives the error of its caller."""
        self._fail = fail
        self._taker: threading.Thread | None = None
        self.seen_ns = now_ns()  # when its thread last looked at the clock
        self._late: deque[Item] = deque()  # an item that came after a stretch of lost time, which goes first
        self.renew()

    def renew(self) -> None:
        """Empty, with a lock of its own, and no thread takes from it."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.put = self._items.put
        self._mutex = threading.RLock()  # of `ended`
        self.ended = True  # its thread does not take from it: not yet, or not any more

    def begin(self) -> None:
        """From now on this thread takes from it."""
        self._taker, self.ended = threading.current_thread(), False

    def next(self, deadline_ns: int | None, watchdog_s: float) -> Item:
        """The next item; a Tick where the deadline comes first, and before both the time that was lost.

        Where far more than a beat lies between two looks at the clock, this process or thread did not run: no deadline
        may pass by that. What is taken before the next look is taken at the time of this one.
        """
        if self._late:
            return self._late.popleft()
        beat = min(BEAT_S, watchdog_s / 4)
        item: Item
        while True:
            since = self.seen_ns
            wait = None if deadline_ns is None else min(beat, max(0, deadline_ns - now_ns()) / 1e9)
            try:
                item = self._items.get(timeout=wait)
            except queue.Empty:
                item = Tick()
            now = self.seen_ns = now_ns()
            if deadline_ns is not None and now - since > 1e9 * max(LOST_S, LOST_BEATS * beat):
                self._late.append(item)
                return TimeLost(now - since)
            if not isinstance(item, Tick) or deadline_ns is None or now >= deadline_ns:
                return item

    def call(self, question: Callable[[], object], changes: bool = False) -> queue.SimpleQueue:
        """The answer to come of `question()`, asked on the engine's thread between two events, in the order of the
        calls; on this one where that thread has ended, or is this one."""
        call = Call(question, queue.SimpleQueue(), changes)
        with self._mutex:
            asked = not self.ended and threading.current_thread() is not self._taker
            if asked:
                self.put(call)
        if not asked:
            self.answer(call)
        return call.answer

    def ask(self, question: Callable[[], T], changes: bool = False) -> T:
        """The answer itself, or what the question raised."""
        value: T
        value, error = self.call(question, changes).get()
        if error is not None:
            raise error
        return value

    def answer(self, call: Call) -> None:
        """A question that fails is the asker's; a change that fails for no reason of the asker's breaks the engine."""
        try:
            call.answer.put((call.question(), None))
        except BaseException as error:
            if not call.changes or isinstance(error, DisaggError):
                call.answer.put((None, error))
                return
            call.answer.put((None, self._fail(error)))
            raise

    def end(self) -> list[Item]:
        """Calls that came meanwhile are answered, and later ones where they are made; returns what else came."""
        others: list[Item] = []
        with self._mutex:
            self.ended = True
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._items.get_nowait()
                if isinstance(item, Call):
                    self.answer(Call(item.question, item.answer))
                else:
                    others.append(item)
        return others
