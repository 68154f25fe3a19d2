"""Draws and teaches: reads timelines and metrics, drives Engine, never touches a worker.

from disagg.show import watch, panel, replay, stepper, microscope, batches
"""

import importlib
import sys
from types import ModuleType

from disagg.plan.errors import DisaggError, PackageError

_WORDS = {  # none is a module's name: importing that would put it in the function's place
    "watch": "disagg.show.live",  # a run as it goes, everywhere
    "panel": "disagg.show.player",  # the same with controls that stay live
    "replay": "disagg.show.player",  # a recorded run
    "stepper": "disagg.show.stepping",  # the controller, one event at a time
    "microscope": "disagg.show.pages",  # the blocks of every memory
    "batches": "disagg.show.batch_history",  # the decode batch of each step
}
__all__ = [*_WORDS]


def __getattr__(name: str):
    """These need torch and ipywidgets, which are imported when one of them is first asked for."""
    if name in _WORDS:
        return _asked_for(_WORDS[name], name)
    raise AttributeError(f"module 'disagg.show' has no attribute {name!r}")


def _asked_for(module: str, name: str):
    try:
        return getattr(importlib.import_module(module), name)
    except DisaggError:
        raise
    except Exception as error:  # a broken package raises whatever it likes while it is imported
        raise PackageError.of(error) from (None if isinstance(error, ModuleNotFoundError) else error)


class _Moved(ModuleType):
    """A path from which `batches` was once imported, and still may be. Whoever looks at all modules for a name of
    their own, as torch's compiler does, must find nothing here, and import nothing by looking."""

    def __getattr__(self, name: str):
        if name != "batches":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return _asked_for(_WORDS[name], name)


sys.modules["disagg.show.batches"] = _Moved("disagg.show.batches")
