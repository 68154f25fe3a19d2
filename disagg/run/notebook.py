"""The notebook around this process, where there is one."""

import sys
from typing import Any

from disagg.plan.request import Finish
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
