"""The notebook around this process, if any: what an interrupt tells it, and engines that none of its variables name.
What still holds such an engine is the history of outputs, or a widget; nobody can close it, so the next one does.
"""

import gc
import sys
import weakref
from typing import Any, Protocol

from disagg.plan.request import Finish
from disagg.run.executor import Executor
from disagg.trace.results import Run


def shell() -> Any:
    """IPython's shell; None in plain Python."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def tell_interrupt(run: Run) -> None:
    """Says that an interrupt ended the run. The cell has the run and goes on to its end, and then counts as
    interrupted, so that *Run All* stops there."""
    if (notebook := shell()) is None:
        return
    cut = sum(result.finish_reason == Finish.CANCELLED.value for result in run.results)
    print(f"Interrupted: {cut} of {len(run.results)} requests were cancelled; the run holds what there was.")

    def end(result: Any) -> None:
        notebook.events.unregister("post_run_cell", end)
        if result is not None and result.error_in_exec is None:
            result.error_in_exec = KeyboardInterrupt()

    notebook.events.register("post_run_cell", end)


class Rebindable(Protocol):
    """An engine, as far as its name matters."""

    executor: Executor

    @property
    def idle(self) -> bool: ...
    def close(self) -> None: ...


_BUILT: "weakref.WeakKeyDictionary[Rebindable, bool]" = weakref.WeakKeyDictionary()  # did a variable name it?


def close_rebound(new: "Rebindable") -> None:
    """Closes those without a name and without a request, and says so. Plain Python has no such history."""
    if (notebook := shell()) is None:
        return
    named = {id(value) for name, value in list(notebook.user_ns.items()) if not name.startswith("_")}
    for ref in _BUILT.keyrefs():
        if (engine := ref()) is None:
            continue
        if id(engine) in named:
            _BUILT[engine] = True
        elif _BUILT[engine] and engine.idle and not _kept(engine, notebook):
            nbytes = sum(cache.bytes for cache in engine.executor.caches.values())
            print(f"Closed an engine that no variable names any more; it held {nbytes / 1e6:.0f} MB of K/V.")
            engine.close()
    _BUILT[new] = False


def _kept(engine: "Rebindable", notebook: Any) -> bool:
    """Does a container hold it, or an object of the notebook's own?"""
    ours = [notebook.user_ns, notebook.user_ns_hidden, notebook.user_ns.get("Out")]
    for holder in gc.get_referrers(engine):
        if isinstance(holder, dict) and not any(holder is one for one in ours):
            owners = [owner for owner in gc.get_referrers(holder) if getattr(owner, "__dict__", None) is holder]
            if not owners or any(type(owner).__module__ == "__main__" for owner in owners):
                return True
        elif isinstance(holder, list | tuple | set) or type(holder).__module__ == "__main__":
            return True
    return False
