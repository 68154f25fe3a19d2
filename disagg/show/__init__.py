"""Draws and teaches: reads timelines and metrics, drives Engine, never touches a worker.

from disagg.show import watch, panel, replay, stepper, microscope, batches
"""

import importlib
from typing import Any

from disagg.plan.errors import DisaggError, PackageError

_WORDS = {  # none is a module's name: importing that would put it in the function's place
    "watch": "disagg.show.live",  # a run as it goes, everywhere
    "panel": "disagg.show.player",  # the same with controls that stay live
    "replay": "disagg.show.player",  # a recorded run
    "stepper": "disagg.show.stepping",  # the controller, one event at a time
    "microscope": "disagg.show.plots.block_plot",  # the blocks of every memory
    "batches": "disagg.show.plots.batch_plot",  # the decode batch of each step
}
__all__ = [*_WORDS]


def __getattr__(name: str) -> Any:
    """These need torch and ipywidgets, which are imported when one of them is first asked for."""
    if name not in _WORDS:
        raise AttributeError(f"module 'disagg.show' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_WORDS[name]), name)
    except DisaggError:
        raise
    except Exception as error:  # a broken package raises whatever it likes while it is imported
        raise PackageError.of(error) from (None if isinstance(error, ModuleNotFoundError) else error)
