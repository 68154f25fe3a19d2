"""Engines of a notebook that a variable named until it was bound anew, as when a cell is run again. What still holds
one is the notebook's history of outputs, or a widget; nobody can close it any more, so the next engine does.
"""

import gc
import weakref
from typing import TYPE_CHECKING, Any

from disagg.run.notebook import shell

if TYPE_CHECKING:
    from disagg.run.engine import Engine

_BUILT: "weakref.WeakKeyDictionary[Engine, bool]" = weakref.WeakKeyDictionary()  # did a variable name it?


def close_rebound(new: "Engine") -> None:
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


def _kept(engine: "Engine", notebook: Any) -> bool:
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
