"""What the cells tagged `gpu` of notebooks/07_on_a_gpu.ipynb call: the recordings' parts, measured on this GPU."""

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.gpu import record
from benchmarks.gpu.fixture import Stand
from disagg.plan.errors import DisaggError
from disagg.show import recordings
from disagg.show.plots.floor_plot import steps_picture
from disagg.show.plots.law_plot import dials_picture
from disagg.show.plots.picture import Picture
from disagg.show.plots.timeline_plot import compare_picture
from disagg.show.report import LeftOut

SHAPE = "llama3-1b"  # small enough for most GPUs; its weights are random


class Words(str):
    """What a cell shows in place of a picture."""

    def __repr__(self) -> str:
        return str(self)


def live(part: str, shape: str | None = None) -> Picture | Words:
    """Measures a part ("steps", "hand_off", "timelines" or "staged") on this machine's GPU and draws it; says so where
    there is none. About a minute."""
    if part not in _LIVE:
        raise ValueError(f"{part!r} is unknown; known: {', '.join(_LIVE)}")
    if not at_hand():
        return Words("No GPU that torch can use is at hand here; what is above comes from a recording.")
    stand = _stand(shape or (record.SMALL if part == "hand_off" else SHAPE))
    try:
        return _LIVE[part](stand)
    except DisaggError as error:
        return Words(f"{type(error).__name__}: {error}")
    finally:
        stand.close()


def at_hand() -> bool:
    """Is there a GPU that torch can use?"""
    return torch.cuda.is_available()


def _stand(shape: str) -> Stand:
    stand = record.make_stand(shape, lambda text: None)
    stand.scale = replace(stand.scale, batches=stand.scale.batches[:2], repeats=min(3, stand.scale.repeats))
    return stand


def _timelines(stand: Stand) -> Picture | Words:
    found = {name: run for name, run in record.side_by_side(stand) if name in recordings.ARRANGEMENTS}
    runs = {recordings.ARRANGEMENTS[name]: run for name, run in found.items() if not isinstance(run, LeftOut)}
    reasons = [run.reason for run in found.values() if isinstance(run, LeftOut)]
    return compare_picture(runs) if runs else Words("; ".join(reasons))


_LIVE: dict[str, Callable[[Stand], Picture | Words]] = {
    "steps": lambda stand: steps_picture(record.step_times(stand)),
    "hand_off": lambda stand: Words(record.hand_off_times(stand).table()),
    "timelines": _timelines,
    "staged": lambda stand: dials_picture(dict(record.staged_runs(stand))),
}
