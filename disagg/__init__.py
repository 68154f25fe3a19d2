"""A workbench for disaggregated LLM inference: prefill on one device, decode on another, the KV cache in between.

from disagg import Config, Engine, Request, simulate
"""

import os
from typing import TYPE_CHECKING

from disagg.imported_later import imported_later
from disagg.plan.config import Config
from disagg.plan.errors import DisaggError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.trace.results import Result, Run
from disagg.trace.timeline import Timeline

if TYPE_CHECKING:
    from disagg.monitor.policy_check import check_policy
    from disagg.run.engine import Engine
    from disagg.run.handle import Handle
    from disagg.trace.run_diff import diff
    from disagg.twin.simulate import simulate

__all__ = [
    "Config",
    "Engine",
    "Handle",
    "Link",
    "Request",
    "Result",
    "Run",
    "Timeline",
    "check_policy",
    "diff",
    "simulate",
]
__version__ = "0.2.0"

#: Imported when they are first asked for: the engine needs torch, which the rest does without.
_LATER = {
    "Engine": "disagg.run.engine",
    "check_policy": "disagg.monitor.policy_check",
    "Handle": "disagg.run.handle",
    "diff": "disagg.trace.run_diff",
    "simulate": "disagg.twin.simulate",
}
__getattr__ = imported_later(__name__, _LATER)


def _to_html(run: Run, path: str | os.PathLike[str]) -> object:
    """Writes the run as one self-contained page: timeline, receipts, blocks over time, texts."""
    from disagg.show.html_page import to_html

    return to_html(run, path)


def _repr_html(run: Run) -> str:
    """At a cell's end: its sentence, its timeline, and where its requests' time went."""
    from disagg.show.plots.run_card import run_card

    return run_card(run)


def _render_traceback(error: DisaggError) -> list[str]:
    """In a notebook, without the frames of this package."""
    from disagg.show.short_traceback import render

    return render(error)


DisaggError._render_traceback_ = _render_traceback  # type: ignore[attr-defined]  # plan/ knows no notebook
Run._repr_html_ = _repr_html  # type: ignore[attr-defined]  # as below
Run.to_html = _to_html  # type: ignore[attr-defined]  # pictures are made by show/, which results do not import
