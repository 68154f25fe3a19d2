"""What the cells tagged `gpu` of notebooks/07_on_a_gpu.ipynb call: the recordings' parts, measured on this GPU."""

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.common import known
from benchmarks.gpu import record, streaming
from benchmarks.gpu.fixture import Stand
from disagg.plan.errors import DisaggError, FileError
from disagg.plan.link import Link
from disagg.run.engine import Engine
from disagg.show import recordings
from disagg.show.plots.floor_plot import steps_picture
from disagg.show.plots.law_plot import dials_picture
from disagg.show.plots.picture import Picture
from disagg.show.plots.timeline_plot import compare_picture
from disagg.show.report import LeftOut
from disagg.trace.results import Run

SHAPE = "llama3-1b"  # small enough for most GPUs; its weights are random


class Words(str):
    """What a cell shows in place of a picture."""

    def __repr__(self) -> str:
        return str(self)


def live(part: str, shape: str = SHAPE) -> Picture | Words:
    """Measures a part ("steps", "timelines" or "staged") on this machine's GPU and draws it; says so where there is
    none. About a minute."""
    if part not in _LIVE:
        raise ValueError(f"{part!r} is unknown; known: {', '.join(_LIVE)}")
    if not at_hand():
        return Words("No GPU that torch can use is at hand here; what is above comes from a recording.")
    stand = _stand(shape)
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
    found = dict(record.side_by_side(stand))
    runs = {recordings.ARRANGEMENTS[name]: run for name, run in found.items() if not isinstance(run, LeftOut)}
    reasons = [run.reason for run in found.values() if isinstance(run, LeftOut)]
    return compare_picture(runs) if runs else Words("; ".join(reasons))


_LIVE: dict[str, Callable[[Stand], Picture | Words]] = {
    "steps": lambda stand: steps_picture(record.step_times(stand)),
    "timelines": _timelines,
    "staged": lambda stand: dials_picture(dict(record.staged_runs(stand))),
}


# ---- the slider ------------------------------------------------------------------------------------------------------


def link_of(dial: float) -> Link | None:
    """The link on which a layer's hop takes `dial` of its compute; None for pinned memory as it is."""
    return Link.ratio(1 / dial) if dial else None


class StagedDial:
    """`dial(link)` gives the run of one prompt over the staged route: on the GPU at hand, or else from a recording."""

    def __init__(self, shape: str = SHAPE) -> None:
        self.shape = shape
        self._stand: Stand | None = None
        self._engine: Engine | None = None
        self._compute_s = 0.0

    def __call__(self, link: Link | None) -> Run:
        dial = 1 / known(link.compute_ratio) if link else 0.0
        return self._served(dial) if at_hand() else self._recorded(dial)

    def _recorded(self, dial: float) -> Run:
        runs = recordings.staged()
        if isinstance(runs, recordings.Missing):
            raise FileError(repr(runs))
        near = min(runs, key=lambda recorded: abs(recorded - dial))
        if abs(near - dial) > 0.01:
            raise FileError(f"no run was recorded at x/c = {dial:g}; recorded: {', '.join(f'{d:g}' for d in runs)}")
        return runs[near]

    def _served(self, dial: float) -> Run:
        if self._stand is None or self._engine is None:
            self._stand = self._stand or _stand(self.shape)
            self._engine = streaming.staged_engine(self._stand)
            self._compute_s, _ = streaming.compute_alone(self._stand, self._engine)
        ((_, _, runs),) = streaming.over_dials(self._stand, self._engine, {"": dial}, self._compute_s)
        return runs[-1]

    def close(self) -> None:
        """Gives the GPU back. Closing twice does nothing."""
        if self._stand is not None:
            self._stand.close()
            self._stand = self._engine = None
