"""The engines that are open in this process, and what ends them: the interpreter's end, or a fork.

A forked process has none of its parent's threads, neither an engine's nor torch's own.
"""

import atexit
import os
from collections import Counter
from itertools import chain
from typing import Protocol

from disagg.plan.errors import EngineError
from disagg.run.executor import Executor
from disagg.run.model import shared

FORKED = (
    "this engine belongs to the process that built it, and a forked one has none of its threads; start the process "
    'with multiprocessing\'s "spawn", or build a new engine with threads=1 here'
)


class OpenEngine(Protocol):
    """From its first thread to the end of its last."""

    executor: Executor

    def shut_and_wait(self) -> None: ...
    def end(self) -> None: ...
    def orphan(self) -> None: ...  # in a forked process


OPEN: set[OpenEngine] = set()
_forked = False  # is this process a forked one?


def held_in_words() -> str:
    """What open engines hold, as a sentence for the error of one that finds no room; nothing where none is open."""
    memories = [caches for engine in list(OPEN) if (caches := list(engine.executor.caches.values()))]
    held: Counter[str] = Counter()
    for cache in chain.from_iterable(memories):
        held[str(cache.device)] += cache.bytes
    if not held:
        return ""
    sizes = ", ".join(f"{nbytes:,} bytes on {device}" for device, nbytes in held.items())
    return f" Engines still open: {len(memories)}; they hold {sizes}; close() those that are done"


def check_fork(threads: int) -> None:
    """EngineError where torch would wait for threads that a forked process has not."""
    if _forked and threads > 1:
        raise EngineError(
            f"threads={threads}: this process was forked from one with an engine, and torch's threads did not come "
            'along; take threads=1, or start the process with multiprocessing\'s "spawn"'
        )


def _in_a_forked_process() -> None:
    global _forked
    _forked = True
    shared.in_a_forked_process()
    for engine in OPEN:
        engine.orphan()
    OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_process)


@atexit.register
def _close_all() -> None:
    """No worker is left inside torch while the interpreter goes down."""
    for engine in list(OPEN):
        engine.shut_and_wait()
        engine.end()
