"""The engine's inbox: events of workers and lanes, and calls of users, which its thread takes one after the other."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from disagg.plan.errors import DisaggError, EngineError

T = TypeVar("T")


class Call(NamedTuple):
    """A question, and where its answer goes. One that `changes` state and fails breaks the engine."""

    question: Callable[[], object]
    answer: queue.SimpleQueue  # of one (value, error); unlike a Future it holds no lock that an interrupt may leave
    changes: bool = False


class Inbox:
    """Any thread may `put`, `call` and `ask`; the rest is for the engine's thread, which takes from `items`."""

    def __init__(self, fail: Callable[[BaseException], EngineError]) -> None:
        """`fail` hears what a change raised, and gives the error of its caller."""
        self._fail = fail
        self._taker: threading.Thread | None = None
        self.renew()

    def renew(self) -> None:
        """Empty, with a lock of its own, and no thread takes from it."""
        self.items: queue.SimpleQueue = queue.SimpleQueue()
        self.put = self.items.put
        self._mutex = threading.RLock()  # of `ended`
        self.ended = True  # its thread does not take from it: not yet, or not any more

    def begin(self) -> None:
        """From now on this thread takes from it."""
        self._taker, self.ended = threading.current_thread(), False

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

    def end(self) -> list[object]:
        """Calls that came meanwhile are answered, and later ones where they are made; returns what else came."""
        others: list[object] = []
        with self._mutex:
            self.ended = True
        with contextlib.suppress(queue.Empty):
            while True:
                item = self.items.get_nowait()
                if isinstance(item, Call):
                    self.answer(Call(item.question, item.answer))
                else:
                    others.append(item)
        return others
